//! The network with real servers, in a private network namespace: `cargo test -p network`; a name's part as argument chooses cases.
//!
//! A file a subject. What cannot be tried on this machine is skipped with its reason, and counted.

mod changes;
mod credentials;
mod disguise;
mod ethernet;
mod floods;
mod flows;
mod git;
mod host_services;
mod http;
mod placeholders;
mod proxied;
mod registry;
mod resolving;
mod rules;
mod sign_in;
mod smuggling;
mod streams;
mod tools;
mod tunnels;

use std::process::ExitCode;

fn main() -> ExitCode {
    network::run(&[
        ("http", http::CASES),
        ("resolving", resolving::CASES),
        ("changes", changes::CASES),
        ("flows", flows::CASES),
        ("rules", rules::CASES),
        ("credentials", credentials::CASES),
        ("credentials", tools::CASES),
        ("git", git::CASES),
        ("registry", registry::CASES),
        ("sign_in", sign_in::CASES),
        ("streams", streams::CASES),
        ("host_services", host_services::CASES),
        ("proxied", proxied::CASES),
        ("ethernet", ethernet::CASES),
        ("tunnels", tunnels::CASES),
        ("disguise", disguise::CASES),
        ("smuggling", smuggling::CASES),
        ("placeholders", placeholders::CASES),
        ("floods", floods::CASES),
    ])
}
