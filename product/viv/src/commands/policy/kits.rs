//! `viv policy approve`: under `deny-all` a kit's rules hold only after the user has approved that very version of them.

use policy::Approval;
use sandbox::escape::escaped;
use sandbox::folder::{Sandbox, Sandboxes};
use sandbox::network::policy_files::{self, Kit};
use sandbox::places::Places;

use super::{find, nearest};
use crate::cli::ApproveOptions;
use crate::commands::say;
use crate::failure::Failure;

/// The verb.
pub(super) fn approve(places: &Places, options: &ApproveOptions) -> Result<u8, Failure> {
    let sandboxes = match find(places, options.sandbox.as_ref())? {
        Some(sandbox) => vec![sandbox],
        None => Sandboxes::open(places)?.list()?.0,
    };
    let mut all: Vec<(Sandbox, Kit)> = Vec::new();
    for sandbox in sandboxes {
        all.extend(policy_files::kits(&sandbox)?.into_iter().map(|kit| (sandbox.clone(), kit)));
    }
    let approvals = policy_files::global(places)?.approvals;
    let Some(name) = &options.kit else { return list(&all, &approvals) };
    let mut meant: Vec<&Kit> = all.iter().map(|(_, kit)| kit).filter(|kit| kit.file.kit == *name).collect();
    meant.sort_by(|a, b| a.digest.cmp(&b.digest));
    meant.dedup_by(|a, b| a.digest == b.digest);
    if meant.is_empty() {
        let names: Vec<&str> = all.iter().map(|(_, kit)| kit.file.kit.as_str()).collect();
        let failure = Failure::new(format!("no sandbox has a kit called \"{}\"", escaped(name, 80)));
        return Err(match nearest(name, &names) {
            Some(near) => failure.hint(format!("did you mean {}?", escaped(&near, 80))),
            None => failure.hint("viv policy approve lists the kits that wait"),
        });
    }
    let meant: Vec<Approval> = meant.into_iter().map(Kit::approval).collect();
    policy_files::change_global(places, |file| {
        file.approvals.retain(|known| !meant.contains(known));
        if !options.revoke {
            file.approvals.extend(meant.iter().cloned());
        }
        Ok(())
    })?;
    for approval in meant {
        let (kit, version) = (escaped(&approval.kit, 80), escaped(&approval.version, 80));
        say(&format!("{kit} {version}{}\n", if options.revoke { "   no longer approved" } else { "" }))?;
    }
    Ok(0)
}

fn list(all: &[(Sandbox, Kit)], approvals: &[Approval]) -> Result<u8, Failure> {
    for (sandbox, kit) in all.iter().filter(|(_, kit)| !kit.is_approved(approvals)) {
        let rules: Vec<String> = kit.file.rules.iter().map(|rule| escaped(&rule.key(), 200)).collect();
        say(&format!(
            "{} {}  in {}: {}\n",
            escaped(&kit.file.kit, 80),
            escaped(&kit.file.version, 80),
            sandbox.spec.name,
            rules.join(", ")
        ))?;
    }
    Ok(0)
}
