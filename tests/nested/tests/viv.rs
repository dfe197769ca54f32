//! `viv --engine kvm` in a nested machine: the end-to-end cases that show each part of it once, by the program that drives
//! them everywhere else.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use libtest_mimic::{Completion, Failed};
use nested::{Job, Nested};

/// Boot, exec, terminal, workspace both ways, Docker, stop and start.
const CASES: &[&str] = &[
    "sessions::bytes_pass_through_unchanged",
    "sessions::exit_codes_are_the_commands_own",
    "sessions::an_interactive_shell_is_a_terminal",
    "workspace::what_the_guest_writes_is_on_the_host",
    "workspace::what_the_host_writes_is_in_the_guest",
    "docker::build_and_run_from_scratch",
    "many::exec_has_its_own_user_folder_variables_and_input",
    "many::a_stopped_sandbox_keeps_its_disk",
];

/// Installing from the registries, from bash, a container and a build; refusals, and what `check` says beforehand. What starts very
/// many processes takes hours in this machine: cargo's packages, and the tools' own stores of roots (`trust`).
const NETWORK: &[&str] = &[
    "network::apt_works_in_a_fresh_sandbox",
    "network::pip_and_npm_install_from_their_registries",
    "network::a_container_and_a_build_reach_the_registries",
    "network::a_refused_name_is_not_there_and_the_way_to_allow_it_is_said",
    "network::an_address_without_a_rule_is_refused_at_once",
    "network::check_says_what_enforcement_does",
];

/// Names, credentials and signing in, with servers in a network namespace of the machine. The cases of `git` and of AWS's client are
/// none of them: the machine has neither git with its http-backend nor pip, and a case that is skipped has not passed.
const SERVED: &[&str] = &[
    "http::a_host_without_a_rule_is_not_asked_for",
    "resolving::a_name_that_resolves_to_a_guarded_address_is_refused",
    "resolving::a_name_that_is_bound_anew_is_judged_anew",
    "resolving::all_addresses_are_tried",
    "resolving::a_name_with_an_ipv6_address_alone_works",
    "resolving::an_alias_is_followed",
    "credentials::a_value_is_put_in_masked_in_answers_and_replaced_at_once",
    "credentials::a_placeholder_on_its_way_elsewhere_is_stopped",
    "credentials::a_host_that_cannot_prove_its_name_gets_nothing",
    "credentials::what_is_set_and_removed_is_so_in_all_that_run_and_nothing_else_is_touched",
    "credentials::npm_and_pip_sign_in_with_placeholders",
    "sign_in::tokens_of_a_login_stay_here_and_are_renewed_and_kept",
    "tunnels::a_dns_tunnel_carries_nothing",
];

/// The machine's home is on its disk: its root is in memory.
const SCRIPT: &str = r#"
mkdir -p /disk/home /disk/tmp /var/tmp; chmod 1777 /disk/tmp
mount --bind /disk/tmp /tmp; mount --bind /disk/tmp /var/tmp
export HOME=/disk/home VIV_BIN=/opt/viv VIV_E2E_FLAGS="--engine kvm" VIV_E2E_CACHE=/disk/cache
cd /var/tmp
"#;

/// What the network's tests replace by files of their own must be there; the roots are this host's.
const WITH_NETWORK: &str = r#"
mkdir -p /usr/local/share/ca-certificates; touch /etc/resolv.conf /etc/hosts
export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
"#;

/// The host's roots: the machine meets the same proxies. Those beside the system's are the guest's, too.
const ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
const EXTRA_ROOTS: &str = "/usr/local/share/ca-certificates";

/// Runs the cases. Without a base image on this host there is nothing to boot, and the case is skipped.
pub(crate) fn works_on_true_kvm(nested: &Nested) -> Result<Completion, Failed> {
    on_true_kvm(nested, "", &[("e2e", CASES)], false)
}

/// The network, with a true KVM under the guest.
pub(crate) fn network_on_true_kvm(nested: &Nested) -> Result<Completion, Failed> {
    on_true_kvm(nested, WITH_NETWORK, &[("e2e", NETWORK), ("network", SERVED)], true)
}

/// Runs these cases of these test programs, one program after the other.
fn on_true_kvm(
    nested: &Nested,
    prepare: &str,
    programs: &[(&str, &[&str])],
    network: bool,
) -> Result<Completion, Failed> {
    if !e2e::long_cases() {
        return Ok(Completion::ignored_with(e2e::LONG));
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().ok_or("there is no target folder")?;
    let cache = e2e::cache_home();
    let images = cache.join("vivarium/images");
    if !std::fs::read_dir(&images).is_ok_and(|mut entries| entries.next().is_some()) {
        let why = format!("there is no base image in {} (the test e2e makes one)", images.display());
        return Ok(Completion::ignored_with(why));
    }
    let viv = program(target)?;
    let staging = tempfile::tempdir_in(target)?;
    let place = staging.path().join("cache/vivarium/images");
    std::fs::create_dir_all(&place)?;
    // Links where the file system has them: an image is over a gigabyte.
    let copied = Command::new("cp").arg("-al").arg(images.join(".")).arg(&place).status()?;
    if !copied.success() {
        return Err("the image could not be copied".into());
    }
    // Busybox's setsid has no --ctty, its unshare no --keep-caps; its applets give way to files.
    let mut files: Vec<(PathBuf, String)> = vec![
        (viv, "/opt/viv".into()),
        ("/bin/bash".into(), "/bin/bash".into()),
        ("/usr/bin/setsid".into(), "/bin/setsid".into()),
    ];
    if network {
        files.push(("/usr/bin/unshare".into(), "/bin/unshare".into()));
        files.push((ROOTS.into(), ROOTS.into()));
        for root in std::fs::read_dir(EXTRA_ROOTS).into_iter().flatten().flatten() {
            if root.path().is_file() {
                files.push((root.path(), root.path().display().to_string()));
            }
        }
    }
    let mut script = format!("{SCRIPT}{prepare}status=0\n");
    for (name, cases) in programs {
        let driver = driver(target, name)?;
        script += &format!("/opt/{name} --exact{} || status=$?\n", skipped(&driver, cases)?);
        files.push((driver, format!("/opt/{name}")));
    }
    script += "exit $status\n";
    let files: Vec<(&Path, &str)> = files.iter().map(|(from, to)| (from.as_path(), to.as_str())).collect();
    let job = Job {
        files: &files,
        folder: Some(staging.path()),
        free_mib: 6144,
        script: &script,
        memory_mib: 6144,
        network,
        limit: Duration::from_secs(2 * 3600),
        ..Job::default()
    };
    let output = nested.run(&job)?;
    let cases: usize = programs.iter().map(|(_, cases)| cases.len()).sum();
    let passed =
        output.text.lines().filter(|line| line.starts_with("test ") && line.ends_with(" ok")).count();
    if output.status != 0 || passed != cases {
        return Err(format!("{passed} of {cases} cases passed:\n{}", output.text).into());
    }
    Ok(Completion::Completed)
}

/// No engine can be used on a processor of 2008 without virtualization: one sentence with both causes and a next step, and
/// `diagnose` answers all the same.
pub(crate) fn old_processor(nested: &Nested) -> Result<Completion, Failed> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().ok_or("there is no target folder")?;
    let viv = program(target)?;
    let job = Job {
        files: &[(&viv, "/opt/viv")],
        script: "export HOME=/home; mkdir -p /home/p; cd /home/p
/opt/viv run shell . </dev/null; echo \"run $?\"; /opt/viv diagnose; echo \"diagnose $?\"; ls -A /home/.local/state/vivarium/sandboxes",
        cpu: "Nehalem,-vmx",
        ..Job::default()
    };
    let output = nested.run(&job)?;
    let (run, diagnose) = output.text.split_once("run 125").ok_or_else(|| output.text.clone())?;
    let run: Vec<&str> = run.lines().filter(|line| !line.is_empty()).collect();
    let said = run.len() == 2
        && run[0].starts_with("error: ")
        && run[0].contains("BMI2")
        && run[0].contains("/dev/kvm")
        && run[1].trim_start().starts_with("hint: ");
    let found =
        diagnose.contains("none can be used") && diagnose.contains("BMI2") && diagnose.contains("diagnose 0");
    if said && found { Ok(Completion::Completed) } else { Err(output.text.into()) }
}

/// The `viv` that is tested.
fn program(target: &Path) -> Result<PathBuf, Failed> {
    match std::env::var_os("VIV_BIN") {
        Some(path) => Ok(path.into()),
        None => Ok(e2e::build(target)?),
    }
}

/// The test program of a crate that is named like it.
fn driver(target: &Path, name: &str) -> Result<PathBuf, Failed> {
    let output = Command::new(env!("CARGO"))
        .args([
            "test",
            // As this program was, with the same features: what is built already is taken.
            "--workspace",
            "--test",
            name,
            "--no-run",
            if cfg!(debug_assertions) { "--profile=dev" } else { "--release" },
            "--message-format",
            "json",
            "--target-dir",
        ])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()?;
    // One JSON object a line; the program's is the only one with a path in "executable".
    let text = String::from_utf8_lossy(&output.stdout);
    let path = text.lines().rev().find_map(|line| line.split_once("\"executable\":\"")?.1.split('"').next());
    path.map(PathBuf::from).ok_or_else(|| format!("the tests of {name} could not be built").into())
}

/// Arguments that leave out every other case.
fn skipped(driver: &Path, cases: &[&str]) -> Result<String, Failed> {
    let output = Command::new(driver).arg("--list").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    if let Some(unknown) = cases.iter().find(|case| !names.contains(case)) {
        return Err(format!("there is no case {unknown}").into());
    }
    Ok(names.iter().filter(|name| !cases.contains(name)).map(|name| format!(" --skip {name}")).collect())
}
