//! Builds the guest's agent, a static program, and leaves it where `viv` embeds it.
//!
//! A nested cargo, because the agent is another target: statically linked, so that it runs as PID 1 of an initramfs that
//! holds nothing else. It has a target folder of its own and so waits for no lock of the outer build.
//!
//! `VIV_AGENT` names one that is built already: a system without a linker for Linux takes it from elsewhere, and
//! `.ci/portable`, which makes no program, gives an empty file.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let root = here.join("../..");
    for path in ["guest/agent", "guest/agent-proto", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    println!("cargo::rerun-if-env-changed=VIV_AGENT");
    if let Some(agent) = env::var_os("VIV_AGENT") {
        std::fs::copy(agent, out.join("agent")).expect("VIV_AGENT is a file");
        return;
    }
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the target's architecture");
    let agent = build(&root, &out.join("agent-build"), &format!("{arch}-unknown-linux-gnu"));
    std::fs::copy(&agent, out.join("agent")).expect("the agent was just built");
}

/// Runs the nested build and returns the program's path.
fn build(root: &Path, folder: &Path, target: &str) -> PathBuf {
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
    cargo
        .current_dir(root)
        .args(["build", "--release", "--package", "viv-agent", "--bin", "viv-agent", "--target", target])
        .arg("--target-dir")
        .arg(folder);
    // What the outer build decided for the host's program is not for the guest's.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let outer = text.starts_with("CARGO_") && !matches!(&*text, "CARGO_HOME" | "CARGO_NET_OFFLINE")
            || matches!(
                &*text,
                "RUSTFLAGS" | "RUSTC_WORKSPACE_WRAPPER" | "RUSTC_WRAPPER" | "TARGET" | "HOST"
            );
        if outer
            && !text.starts_with("CARGO_REGISTRIES")
            && !text.starts_with("CARGO_SOURCE")
            && !text.starts_with("CARGO_HTTP")
        {
            cargo.env_remove(&name);
        }
    }
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "none");
    let status = cargo.status().expect("cargo can be started again");
    assert!(status.success(), "the guest's agent could not be built");
    folder.join(target).join("release/viv-agent")
}
