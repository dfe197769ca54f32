//! What the cases about attacks share: programs that run in the guest as root, what they said, and how the gateway bore it.

use e2e::{Case, Verdict, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::Net;

/// The programs of the guest's, by their files' names. Python's own library is all that they need.
const TOOLS: [(&str, &str); 6] = [
    ("link.py", include_str!("../tests/guest/link.py")),
    ("frames.py", include_str!("../tests/guest/frames.py")),
    ("names.py", include_str!("../tests/guest/names.py")),
    ("speak.py", include_str!("../tests/guest/speak.py")),
    ("h2.py", include_str!("../tests/guest/h2.py")),
    ("flood.py", include_str!("../tests/guest/flood.py")),
];

/// What a conversation of `speak.py` came to.
#[derive(Clone, Debug, Deserialize)]
pub struct Spoken {
    /// What the other side said; each byte is a character.
    pub heard: String,
    /// How it ended: `closed`, `reset`, `refused`, `no name`, `enough`, `silence`, or another error's name.
    pub end: String,
}

impl Spoken {
    /// The statuses of the HTTP/1 answers in it.
    pub fn statuses(&self) -> Vec<u16> {
        let after = self.heard.split("HTTP/1.1 ").skip(1);
        after.filter_map(|text| text.get(..3)?.parse().ok()).collect()
    }
}

impl Net {
    /// Runs one of the guest's programs as root in the shared sandbox, with these words as arguments. Gives what it printed.
    pub fn attack(&self, program: &str, words: &[&str]) -> Result<String, Verdict> {
        let folder = self.shared();
        for (name, text) in TOOLS {
            let path = folder.join(name);
            if !path.exists() {
                std::fs::write(path, text)?;
            }
        }
        let words: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        // The variables with the placeholders are among those that are kept.
        self.guest_ok(&format!("exec sudo -E timeout 250 python3 {program} {}", words.join(" ")))
    }

    /// The same for a program that prints JSON.
    pub fn attacked(&self, program: &str, words: &[&str]) -> Result<Value, Verdict> {
        let said = self.attack(program, words)?;
        serde_json::from_str(&said).map_err(|error| Verdict::Wrong(format!("{program}: {error}: {said}")))
    }

    /// Has the guest speak with servers: each conversation is an object as `speak.py` has it.
    pub fn speak(&self, conversations: &[Value]) -> Result<Vec<Spoken>, Verdict> {
        std::fs::write(self.shared().join("conversations.json"), serde_json::to_string(conversations)?)?;
        let said = self.attack("speak.py", &["conversations.json"])?;
        let spoken: Vec<Spoken> =
            serde_json::from_str(&said).map_err(|error| Verdict::Wrong(format!("{error}: {said}")))?;
        ensure(spoken.len() == conversations.len(), said)?;
        Ok(spoken)
    }

    /// Keeps a secret for one host, whose placeholder is in a variable.
    pub fn keep(&self, name: &str, host: &str, variable: &str, value: &str) -> Case {
        let words = ["secret", "set-custom", name, "--host", host, "--env", variable];
        let said = e2e::say(self.world.viv(self.scratch(), words), value.as_bytes())?;
        ensure(said.code == 0, format!("{said:?}"))
    }

    /// The shared sandbox's gateway as it is now.
    pub fn gateway(&self) -> Result<Gateway, Verdict> {
        // Half a minute after the last session there would be none.
        self.guest_ok("true")?;
        let inspected: Value = serde_json::from_str(&self.viv_ok(&["inspect", crate::NAME])?)?;
        let keeper = &inspected["processes"]["keeper"];
        let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"))?;
        let process: u32 =
            children.trim().parse().map_err(|_| Verdict::Wrong(format!("{keeper} has {children:?}")))?;
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches(" kB").parse().ok()
        };
        let memory = (kib("VmRSS:"), kib("VmHWM:"));
        let (Some(memory), Some(peak)) = memory else { return Err(Verdict::Wrong(status)) };
        let flows = inspected["network"]["counters"]["flows"].as_u64().unwrap_or(u64::MAX);
        Ok(Gateway { process, memory, peak, flows })
    }
}

/// A gateway's process.
#[derive(Clone, Copy, Debug)]
pub struct Gateway {
    /// Its process id.
    pub process: u32,
    /// Its memory in KiB (VmRSS).
    pub memory: u64,
    /// The most that it had so far, in KiB (VmHWM).
    pub peak: u64,
    /// Flows that it has.
    pub flows: u64,
}

impl Gateway {
    /// What `docs/network.md` promises of the memory of a gateway whose guest floods it, in KiB.
    pub const MOST: u64 = 400 << 10;

    /// It is still the process of before, and has stayed within its memory.
    pub fn holds(&self, net: &Net) -> Case {
        let now = net.gateway()?;
        ensure(now.process == self.process, format!("another gateway: {self:?}, now {now:?}"))?;
        ensure(now.peak <= Self::MOST, format!("the gateway needs too much: {now:?}"))
    }
}
