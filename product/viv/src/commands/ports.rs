//! `viv ports`: which ports of a sandbox can be reached from this host.

use std::ffi::OsString;

use sandbox::client;
use sandbox::folder::{Sandbox, Sandboxes};
use sandbox::network::ports::{self, FORM, Protocol, Publish};
use sandbox::places::Places;
use serde::Serialize;

use crate::cli::PortsOptions;
use crate::commands::say;
use crate::failure::Failure;

/// A published port as `--json` has it.
#[derive(Debug, Serialize)]
struct Object {
    host_ip: String,
    host_port: u16,
    guest_port: u16,
    protocol: Protocol,
}

/// The verb.
pub(crate) fn run(options: &PortsOptions) -> Result<u8, Failure> {
    let places = Places::from_env()?;
    let sandbox = Sandboxes::open(&places)?.find(&options.name)?;
    // Nothing is done before all is understood.
    let (publish, unpublish) = (parse(&options.publish)?, parse(&options.unpublish)?);
    for ports in unpublish {
        client::unpublish(&sandbox, ports)?;
    }
    for ports in publish {
        client::publish(&sandbox, ports)?;
    }
    for port in published(&sandbox)? {
        if options.json {
            let object = Object {
                host_ip: port.host_ip.to_string(),
                host_port: port.host_port,
                guest_port: port.guest_port,
                protocol: port.protocol,
            };
            say(&format!("{}\n", serde_json::to_string(&object).map_err(Failure::new)?))?;
        } else {
            say(&format!("{port}\n"))?;
        }
    }
    Ok(0)
}

/// What a sandbox publishes; of one that runs, what it really does.
pub(crate) fn published(sandbox: &Sandbox) -> Result<Vec<Publish>, Failure> {
    match client::network(sandbox) {
        Ok(Some(network)) => Ok(network.ports),
        _ => Ok(ports::read(sandbox.folder())?),
    }
}

/// As a user wrote them.
pub(crate) fn parse(given: &[OsString]) -> Result<Vec<Publish>, Failure> {
    let one = |text: &OsString| match text.to_str() {
        Some(text) => Ok(text.parse::<Publish>()?),
        None => Err(Failure::new("a port to publish is no text").hint(FORM)),
    };
    given.iter().map(one).collect()
}
