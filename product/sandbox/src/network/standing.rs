//! The policy that is in force for a running sandbox, whatever becomes of the files that it is written in.
//!
//! | a file | at the start | while it runs |
//! |---|---|---|
//! | was never there | nothing is said by it | likewise |
//! | cannot be read | nothing is allowed | what held before holds on, and what it does not speak of is refused |
//! | was there and is gone | | likewise, until it is there again |
//!
//! What was allowed until the sandbox stops (`--ask`, "once") is held here, in no file, and is part of what holds.
//!
//! Editors and tools move a file away, or empty it, and write it in the next moment: only what is still so after [`GRACE`] counts.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use gateway::control::Mode;
use policy::{PolicySet, Rule};

use super::policy_files::{self, Found};
use crate::control::Notice;
use crate::error::Result;
use crate::escape::{LONGEST, escaped};
use crate::folder::Sandbox;
use crate::places::Places;

/// How long a file may be away, or half written.
pub(super) const GRACE: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Standing {
    policy: PolicySet,
    /// The files that it is from.
    files: BTreeSet<PathBuf>,
    /// Whether it was ever read: what is in force is then the last one that could be.
    was_read: bool,
    /// Why it is not what the files say.
    problem: Option<String>,
    /// When the files are looked at again.
    again: Option<Instant>,
}

impl Standing {
    /// As a sandbox starts.
    pub(crate) fn at_start(places: &Places, sandbox: &Sandbox, own: &[IpAddr]) -> Self {
        let mut standing = Self {
            policy: policy_files::closed(sandbox, own),
            files: BTreeSet::new(),
            was_read: false,
            problem: None,
            again: None,
        };
        standing.take(policy_files::find(places, sandbox, own), None);
        standing
    }

    /// Looks at the files.
    pub(crate) fn read(&mut self, places: &Places, sandbox: &Sandbox, own: &[IpAddr], now: Instant) {
        self.take(policy_files::find(places, sandbox, own), Some(now));
    }

    fn take(&mut self, found: Result<Found>, now: Option<Instant>) {
        let why = match found {
            Ok(found) => match self.files.difference(&found.files).next().cloned() {
                None => {
                    let once = std::mem::take(&mut self.policy.once);
                    (self.policy, self.files, self.was_read) = (found.policy, found.files, true);
                    self.policy.once = once;
                    (self.problem, self.again) = (None, None);
                    return;
                }
                Some(gone) => format!("{} was there and is gone", gone.display()),
            },
            Err(error) => error.to_string(),
        };
        let waits = now.is_some_and(|now| self.again.is_none_or(|again| now < again));
        if self.was_read && self.problem.is_none() && waits {
            self.again = self.again.or_else(|| now?.checked_add(GRACE));
            return;
        }
        tracing::error!(%why, "The policy cannot be read");
        (self.problem, self.again) = (Some(escaped(&why, LONGEST)), None);
    }

    /// What holds.
    pub(crate) fn in_force(&self) -> &PolicySet {
        &self.policy
    }

    /// Allows until the sandbox stops what a rule is about; no file has it.
    pub(crate) fn allow_once(&mut self, rule: Rule) {
        policy::upsert(&mut self.policy.once, rule);
    }

    /// Allows that no longer.
    pub(crate) fn forget_once(&mut self, keys: &[String]) {
        self.policy.once.retain(|rule| !keys.contains(&rule.key()));
    }

    /// When [`Standing::read`] is due.
    pub(crate) fn again(&self) -> Option<Instant> {
        self.again
    }

    /// Why what holds is not what the files say.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// The same for sessions.
    pub(crate) fn notice(&self) -> Option<Notice> {
        self.problem.clone().map(|why| Notice::NoPolicy { why, holds_on: self.was_read })
    }

    /// What sessions want holds only while the policy can be read: else nobody knows what was denied.
    pub(crate) fn mode(&self, wanted: Mode) -> Mode {
        if self.problem.is_some() { Mode::Enforce } else { wanted }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use policy::{Host, Name, Outcome, Policy, Protocol, Target};

    use super::*;
    use crate::folder::tests::{sandboxes, wish};

    const DENIES: &str = "{\"schema\": 1, \"preset\": \"balanced\", \"rules\": [{\"decision\": \"deny\", \"resource\": \"github.com\"}]}";

    struct Case {
        root: tempfile::TempDir,
        places: Places,
        sandbox: Sandbox,
        start: Instant,
    }

    impl Case {
        fn new() -> Self {
            let (root, all) = sandboxes();
            let sandbox = all.create(&wish("/a/project", None)).unwrap().0;
            let path = |name: &str| root.path().join(name);
            let places =
                Places { state: path("s"), cache: path("c"), config: path("e"), home: root.path().into() };
            fs::create_dir_all(&places.config).unwrap();
            Self { root, places, sandbox, start: Instant::now() }
        }

        fn file(&self) -> PathBuf {
            policy_files::global_path(&self.places)
        }

        fn standing(&self) -> Standing {
            Standing::at_start(&self.places, &self.sandbox, &[])
        }

        fn read(&self, standing: &mut Standing, millis: u64) {
            standing.read(&self.places, &self.sandbox, &[], self.start + Duration::from_millis(millis));
        }
    }

    fn outcome(standing: &Standing, name: &str) -> Outcome {
        let name = Name::parse(name).unwrap();
        let target = Target { host: Host::Name(&name), port: 443, protocol: Protocol::Tcp };
        Policy::compile(standing.in_force()).connect(target).outcome
    }

    #[test]
    fn a_file_that_is_away_for_a_moment_opens_nothing_and_alarms_nobody() {
        let case = Case::new();
        fs::write(case.file(), DENIES).unwrap();
        let mut standing = case.standing();
        assert_eq!(outcome(&standing, "github.com"), Outcome::Deny);
        let aside = case.root.path().join("aside");
        fs::rename(case.file(), &aside).unwrap();
        case.read(&mut standing, 0);
        assert_eq!(outcome(&standing, "github.com"), Outcome::Deny);
        assert_eq!((standing.problem(), standing.again()), (None, Some(case.start + GRACE)));
        fs::rename(&aside, case.file()).unwrap();
        case.read(&mut standing, 10);
        assert_eq!((standing.problem(), standing.again()), (None, None));
        // Written in place: empty for a moment.
        fs::write(case.file(), "").unwrap();
        case.read(&mut standing, 1000);
        assert_eq!((outcome(&standing, "github.com"), standing.problem()), (Outcome::Deny, None));
        fs::write(case.file(), DENIES.replace("github.com", "gitlab.com")).unwrap();
        case.read(&mut standing, 1100);
        assert_eq!((outcome(&standing, "gitlab.com"), standing.again()), (Outcome::Deny, None));
    }

    #[test]
    fn a_file_that_stays_away_or_damaged_leaves_what_held() {
        let case = Case::new();
        fs::write(case.file(), DENIES).unwrap();
        let mut standing = case.standing();
        fs::remove_file(case.file()).unwrap();
        for millis in [0, 499] {
            case.read(&mut standing, millis);
            assert_eq!(standing.problem(), None);
        }
        case.read(&mut standing, 500);
        assert!(standing.problem().unwrap().contains("policy.json was there and is gone"));
        assert_eq!(standing.again(), None);
        assert_eq!(outcome(&standing, "github.com"), Outcome::Deny);
        assert!(matches!(standing.notice(), Some(Notice::NoPolicy { holds_on: true, .. })));
        fs::write(case.file(), "{\"schema\": 1,").unwrap();
        case.read(&mut standing, 600);
        assert!(standing.problem().unwrap().contains("line 1 column"));
        assert_eq!(outcome(&standing, "github.com"), Outcome::Deny);
        fs::write(case.file(), DENIES).unwrap();
        case.read(&mut standing, 700);
        assert_eq!(standing.problem(), None);
    }

    #[test]
    fn a_kit_or_a_sandbox_file_that_goes_takes_no_denial_along() {
        let case = Case::new();
        let kit = case.root.path().join("kit.json");
        fs::write(&kit, "{\"schema\":1,\"kit\":\"k\",\"version\":\"1\",\"rules\":[{\"decision\":\"deny\",\"resource\":\"github.com\"}]}").unwrap();
        policy_files::add_kits(&case.sandbox, &[kit]).unwrap();
        let mut standing = case.standing();
        assert_eq!(outcome(&standing, "github.com"), Outcome::Deny);
        fs::remove_dir_all(case.sandbox.folder().join(policy_files::KITS)).unwrap();
        case.read(&mut standing, 0);
        case.read(&mut standing, 500);
        assert!(standing.problem().is_some());
        assert_eq!(outcome(&standing, "github.com"), Outcome::Deny);
    }

    #[test]
    fn at_the_start_a_file_that_cannot_be_read_allows_nothing_also_where_all_is_observed() {
        let case = Case::new();
        fs::write(case.file(), "{\"schema\": 1, \"rules\": [").unwrap();
        let mut standing = case.standing();
        assert!(!outcome(&standing, "pypi.org").is_open());
        assert_eq!(
            [Mode::Observe, Mode::Ask, Mode::Enforce].map(|wanted| standing.mode(wanted)),
            [Mode::Enforce; 3]
        );
        assert!(matches!(standing.notice(), Some(Notice::NoPolicy { holds_on: false, .. })));
        fs::write(case.file(), DENIES).unwrap();
        case.read(&mut standing, 0);
        assert_eq!(standing.mode(Mode::Observe), Mode::Observe);
        assert_eq!(outcome(&standing, "github.com"), Outcome::Deny);
        // Later, too.
        fs::write(case.file(), "").unwrap();
        case.read(&mut standing, 1000);
        case.read(&mut standing, 1500);
        assert_eq!(standing.mode(Mode::Observe), Mode::Enforce);
    }

    #[test]
    fn what_was_allowed_once_holds_whatever_the_files_say_and_is_in_none() {
        let case = Case::new();
        fs::write(case.file(), "{\"schema\": 1, \"preset\": \"deny-all\"}").unwrap();
        let mut standing = case.standing();
        let resource = policy::Resource::parse("a.example:443").unwrap();
        let rule = Rule::new(policy::Decision::Allow, resource);
        standing.allow_once(rule.clone());
        standing.allow_once(rule);
        assert_eq!(standing.in_force().once.len(), 1);
        // Another file, one that is lost, and one that is there again.
        fs::write(case.file(), DENIES).unwrap();
        case.read(&mut standing, 0);
        assert_eq!(
            ["a.example", "github.com"].map(|name| outcome(&standing, name)),
            [Outcome::Allow, Outcome::Deny]
        );
        fs::remove_file(case.file()).unwrap();
        for millis in [100, 600] {
            case.read(&mut standing, millis);
            assert_eq!(outcome(&standing, "a.example"), Outcome::Allow);
        }
        fs::write(case.file(), DENIES.replace("github.com", "a.example")).unwrap();
        case.read(&mut standing, 700);
        assert_eq!(outcome(&standing, "a.example"), Outcome::Deny, "a denial of a file beats it");
        // The next start knows nothing of it.
        assert_eq!(case.standing().in_force().once, []);
        assert!(!fs::read_to_string(case.file()).unwrap().contains("once"));
    }

    #[test]
    fn a_reset_is_no_file_that_is_gone() {
        let case = Case::new();
        fs::write(case.file(), DENIES).unwrap();
        let mut standing = case.standing();
        policy_files::reset_global(&case.places).unwrap();
        case.read(&mut standing, 0);
        assert_eq!((standing.problem(), standing.again()), (None, None));
        assert!(outcome(&standing, "github.com").is_open());
    }
}
