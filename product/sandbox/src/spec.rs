//! What a sandbox is (`spec.json`, decided once) and how it fares (`runtime.json`, written by its shim).

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::host;
use crate::workspace::Share;

/// The newest format of the files in a sandbox's folder that this program reads, and the one it writes.
pub const SCHEMA: u32 = 1;

/// Everything that is decided when a sandbox is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Format number; see [`SCHEMA`].
    pub schema: u32,
    /// The folder's name: 16 random hexadecimal digits.
    pub id: String,
    /// What the user calls it.
    pub name: String,
    /// The agent it runs, such as `shell`.
    pub agent: String,
    /// Architecture of the guest.
    pub arch: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// The workspace first, then further folders.
    pub shares: Vec<Share>,
    /// vCPUs.
    pub cpus: u32,
    /// Guest memory in bytes.
    pub memory: u64,
    /// Size of the writable disk in bytes; it takes room only as it is filled.
    pub disk: u64,
    /// The engine that the user asked for; none means the best one of the host, found anew at each start.
    pub engine: Option<String>,
    /// Whether it has a network at all.
    #[serde(default)]
    pub network: Networking,
    /// Id of the base image below the writable disk; the two belong together for the sandbox's whole life.
    pub image: String,
}

/// What a sandbox's network is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Networking {
    /// A gateway that lets through what the policy allows.
    #[default]
    Gateway,
    /// None: the guest has no network card.
    None,
}

impl Spec {
    /// What in it no machine can be made of, as after a change by hand; none is the rule.
    pub(crate) fn fault(&self) -> Option<String> {
        let Self { cpus, memory, disk, .. } = self;
        if *cpus == 0 || *cpus > host::MOST_CPUS {
            return Some(format!("it has cpus: {cpus}, and 1 to {} can be had", host::MOST_CPUS));
        }
        if *memory < host::LEAST_MEMORY {
            return Some(format!("it has memory: {memory}, and {} is the least", host::LEAST_MEMORY));
        }
        if !(host::LEAST_DISK..=host::MOST_DISK).contains(disk) {
            let (least, most) = (host::LEAST_DISK, host::MOST_DISK);
            return Some(format!("it has disk: {disk}, and {least} to {most} can be had"));
        }
        None
    }

    /// The folder of the host that the sandbox is for.
    pub fn workspace(&self) -> &std::path::Path {
        self.shares.first().map_or(std::path::Path::new("/home/agent"), |share| &share.path)
    }

    /// The folder of the guest in which sessions begin.
    pub fn guest_workspace(&self) -> &std::path::Path {
        self.shares.first().map_or(std::path::Path::new("/home/agent"), Share::guest_path)
    }
}

/// What a sandbox does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The guest boots.
    Starting,
    /// Sessions can be opened.
    Running,
    /// The guest was asked to shut down.
    Stopping,
    /// It does not run; `viv check` looks at its disk.
    Checking,
    /// No process belongs to it: it was stopped, idle, or switched off from within.
    Stopped,
    /// No process belongs to it, and nobody wanted it to end.
    Failed,
}

impl State {
    /// The word that users see.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Checking => "checking",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// Whether no process belongs to it.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed)
    }
}

/// What the shim notes in `runtime.json`. Only true while the folder's lock is held; what a dead shim left behind tells
/// how the last run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// Format number; see [`SCHEMA`].
    pub schema: u32,
    /// The shim's process id.
    pub pid: u32,
    /// State at the time of writing.
    pub state: State,
    /// When this run began, RFC 3339.
    pub started: String,
    /// When it ended, RFC 3339.
    pub ended: Option<String>,
    /// Why it ended: "idle", "asked to stop", "powered off", or what went wrong.
    pub reason: Option<String>,
    /// The engine of this run.
    pub engine: String,
    /// Whether this run goes on without sessions until it is stopped (`-d`).
    #[serde(default)]
    pub detached: bool,
}

/// The time in RFC 3339, to the second, in UTC.
pub fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// What [`rfc3339`] wrote.
pub fn from_rfc3339(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(text).ok()
}

/// A size such as `4g`, `512MiB` or `1073741824`, in bytes. Units are powers of 1024, as with Docker.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("\"{text}\" is not a size; write it like 4g or 512m");
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let shift = match unit.trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_users_write_them() {
        for (text, bytes) in
            [("4g", 4 << 30), ("512MiB", 512 << 20), ("1 GB", 1 << 30), ("7", 7), ("2T", 2 << 40)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "g", "-1g", "4x", "1.5g", "99999999999999t"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_come_back_as_they_were() {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_790_000_000);
        assert_eq!(from_rfc3339(&rfc3339(time)), Some(time));
        assert!(rfc3339(time).ends_with('Z'));
    }
}
