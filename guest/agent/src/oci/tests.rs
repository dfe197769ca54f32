//! Descriptions as Docker and BuildKit write them, before and after.

use super::*;

fn config() -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": ["PATH=/bin", "NODE_EXTRA_CA_CERTS=/own.pem", "SSL_CERT_FILE="],
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 18_446_744_073_709_551_615_u64, "soft": 1 }],
        },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts" },
        ],
        "linux": { "seccomp": { "defaultAction": "SCMP_ACT_ERRNO" } },
    })
}

fn variables(process: &Value) -> Vec<&str> {
    process["env"].as_array().expect("a list").iter().map(|v| v.as_str().expect("text")).collect()
}

#[test]
fn a_container_finds_the_certificates_and_keeps_what_it_says_itself() {
    let before = config();
    let mut after = before.clone();
    add_to_container(&mut after).expect("changed");
    let mounts = after["mounts"].as_array().expect("a list");
    assert_eq!(mounts.len(), 3 + MOUNTS.len());
    assert_eq!(mounts[..3], before["mounts"].as_array().expect("a list")[..]);
    for (mount, (source, name)) in mounts[3..].iter().zip(MOUNTS) {
        assert_eq!(mount["source"], source);
        assert_eq!(mount["destination"], format!("/dev/vivarium/{name}"));
        assert!(mount["options"].as_array().expect("a list").contains(&"ro".into()));
    }
    let env = variables(&after["process"]);
    assert_eq!(env[..3], ["PATH=/bin", "NODE_EXTRA_CA_CERTS=/own.pem", "SSL_CERT_FILE="]);
    assert!(env.contains(&"CURL_CA_BUNDLE=/dev/vivarium/ca-certificates.crt"));
    assert!(env.contains(&"APT_CONFIG=/dev/vivarium/apt.conf"));
    assert_eq!(env.iter().filter(|v| v.starts_with("NODE_EXTRA_CA_CERTS=")).count(), 1);
    assert_eq!(env.iter().filter(|v| v.starts_with("SSL_CERT_FILE=")).count(), 1);
    // Everything else is as it was, large numbers too.
    after["mounts"] = before["mounts"].clone();
    after["process"]["env"] = before["process"]["env"].clone();
    assert_eq!(after, before);
}

#[test]
fn every_variable_names_a_file_that_is_mounted() {
    for (name, file) in VARIABLES {
        assert!(MOUNTS.iter().any(|(_, mounted)| *mounted == file), "{name}");
    }
}

#[test]
fn without_a_dev_of_its_own_a_container_is_left_alone() {
    let cases: [fn(&mut Value); 7] = [
        |c| c["mounts"] = json!([]),
        |c| c["mounts"][1]["type"] = "bind".into(),
        |c| c["mounts"][1]["destination"] = 7.into(),
        // A later mount hides the first.
        |c| {
            c["mounts"]
                .as_array_mut()
                .expect("a list")
                .push(json!({ "destination": "/dev/", "type": "bind" }))
        },
        |c| c["mounts"][2]["destination"] = "/dev/vivarium/mine".into(),
        |c| *c = json!([]),
        |c| c["process"] = Value::Null,
    ];
    for (number, spoil) in cases.into_iter().enumerate() {
        let mut config = config();
        spoil(&mut config);
        assert_eq!(add_to_container(&mut config), None, "case {number}");
    }
}

#[test]
fn a_process_without_variables_gets_some() {
    for mut process in [json!({ "args": [] }), json!({ "env": null })] {
        add_to_process(&mut process).expect("changed");
        assert_eq!(variables(&process).len(), VARIABLES.len());
    }
    assert_eq!(add_to_process(&mut json!({ "env": "x" })), None);
    assert_eq!(add_to_process(&mut json!(["env"])), None);
}

#[test]
fn files_are_rewritten_with_their_mode_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.json");
    let edit = Edit::Container { bundle: folder.path().into() };
    fs::write(&file, config().to_string()).expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("a mode");
    apply(&edit).expect("changed");
    let after: Value = serde_json::from_slice(&fs::read(&file).expect("there")).expect("JSON");
    assert_eq!(after["mounts"].as_array().expect("a list").len(), 3 + MOUNTS.len());
    assert_eq!(fs::metadata(&file).expect("there").mode() & 0o777, 0o640);
    // Twice is once.
    assert_eq!(apply(&edit), None);
    for broken in ["", "{", "[1]", &"[".repeat(100_000)] {
        fs::write(&file, broken).expect("written");
        assert_eq!(apply(&edit), None);
        assert_eq!(fs::read_to_string(&file).expect("there"), broken);
    }
    fs::remove_file(&file).expect("removed");
    assert_eq!(apply(&edit), None);
}

#[test]
fn a_process_is_told_of_certificates_that_its_container_has() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, state) = (folder.path().join("process"), folder.path().join("state.json"));
    let edit = Edit::Process { file: file.clone(), state: state.clone() };
    let process = json!({ "env": ["A=1"] }).to_string();
    fs::write(&file, &process).expect("written");
    assert_eq!(apply(&edit), None, "there is no state");
    fs::write(&state, r#"{"config":{"mounts":[{"destination":"/dev"}]}}"#).expect("written");
    assert_eq!(apply(&edit), None, "it has no certificates");
    assert_eq!(fs::read_to_string(&file).expect("there"), process);
    fs::write(&state, r#"{"config":{"mounts":[{"destination":"/dev/vivarium/roots.pem"}]}}"#)
        .expect("written");
    apply(&edit).expect("changed");
    let after: Value = serde_json::from_slice(&fs::read(&file).expect("there")).expect("JSON");
    assert_eq!(variables(&after).len(), 1 + VARIABLES.len());
}

#[test]
fn the_real_program_is_the_first_other_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = |name: &str| {
        let dir = folder.path().join(name);
        fs::create_dir(&dir).expect("a folder");
        dir
    };
    let (own, plain, real) = (dir("own"), dir("plain"), dir("real"));
    symlink("/proc/self/exe", own.join(NAME)).expect("a link");
    fs::write(plain.join(NAME), "").expect("written");
    fs::set_permissions(plain.join(NAME), fs::Permissions::from_mode(0o644)).expect("a mode");
    fs::write(real.join(NAME), "").expect("written");
    fs::set_permissions(real.join(NAME), fs::Permissions::from_mode(0o755)).expect("a mode");
    let path = std::env::join_paths([&own, &plain, &real]).expect("a path");
    assert_eq!(behind(&path), Some(real.join(NAME)));
    assert_eq!(behind(&std::env::join_paths([&own, &plain]).expect("a path")), None);
    assert!(is_meant(Some(&"/run/vivarium/bin/runc".into())) && is_meant(Some(&"runc".into())));
    assert!(!is_meant(Some(&"/init".into())) && !is_meant(None));
}
