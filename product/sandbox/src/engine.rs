//! Which engine runs a sandbox on this host, and why.
//!
//! The presence of `/dev/kvm` proves little: some KVMs emulate kernel code one instruction at a time. So it is timed, once
//! in the life of a host's boot, and the result is kept in the cache.

use std::fs;
use std::time::Duration;

use hv::Unavailable;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;
use crate::places::Places;
use crate::sys;

/// Format of the remembered measurement.
const SCHEMA: u32 = 1;

/// How long the measurement may take.
const DEADLINE: Duration = Duration::from_millis(300);

/// An engine of this platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Linux's KVM.
    Kvm,
    /// The software CPU.
    Soft,
}

impl Engine {
    /// The name that users type after `--engine`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Soft => "soft",
        }
    }

    /// The engine of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Kvm, Self::Soft].into_iter().find(|engine| engine.name() == name)
    }
}

/// The engine for a sandbox, with the reasons that `viv diagnose` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// The engine.
    pub engine: Engine,
    /// Why this one, in one sentence.
    pub why: String,
    /// What would make sandboxes faster here, if anything.
    pub would_help: Option<String>,
}

/// What was found out about `/dev/kvm`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Finding {
    schema: u32,
    /// The host's boot in which it was measured; another boot may be another machine.
    boot: String,
    /// The program that measured.
    version: String,
    /// Whether KVM can be opened and has what is needed; else why not and what would help.
    missing: Option<(String, String)>,
    /// Nanoseconds for one instruction of kernel code.
    ns_per_instruction: Option<f64>,
    /// Whether kernel code is emulated.
    emulated: bool,
}

/// The engine for a new run: the one asked for, else KVM where it is real, else the software CPU.
pub fn choose(asked: Option<Engine>, places: &Places) -> Result<Choice> {
    let finding = || find(places);
    let soft = sys::probe_soft;
    match asked {
        Some(Engine::Soft) => {
            soft().map_err(no_soft)?;
            Ok(Choice { engine: Engine::Soft, why: "asked for with --engine soft".into(), would_help: None })
        }
        Some(Engine::Kvm) => {
            let finding = finding();
            match finding.missing {
                Some((why, hint)) => Err(Error::Engine { engine: "kvm".into(), why, hint }),
                None => Ok(Choice {
                    engine: Engine::Kvm,
                    why: "asked for with --engine kvm".into(),
                    would_help: finding
                        .emulated
                        .then(|| "leave --engine out: this /dev/kvm emulates kernel code".into()),
                }),
            }
        }
        None => judge(&finding(), soft()),
    }
}

fn no_soft(unavailable: Unavailable) -> Error {
    Error::Engine { engine: "soft".into(), why: unavailable.reason, hint: unavailable.hint }
}

fn judge(finding: &Finding, soft: std::result::Result<(), Unavailable>) -> Result<Choice> {
    let choice = prefer(finding);
    match (choice.engine, soft) {
        (Engine::Soft, Err(unavailable)) if finding.missing.is_some() => Err(Error::Engine {
            engine: "soft".into(),
            why: format!("{}; and for kvm: {}", unavailable.reason, choice.why),
            hint: choice.would_help.unwrap_or(unavailable.hint),
        }),
        (Engine::Soft, Err(unavailable)) => Ok(Choice {
            engine: Engine::Kvm,
            why: format!("{}; and the software CPU cannot be used: {}", choice.why, unavailable.reason),
            ..choice
        }),
        _ => Ok(choice),
    }
}

/// What would be best here if the software CPU can be used.
fn prefer(finding: &Finding) -> Choice {
    if let Some((why, hint)) = &finding.missing {
        return Choice { engine: Engine::Soft, why: why.clone(), would_help: Some(hint.clone()) };
    }
    let ns = finding.ns_per_instruction.unwrap_or(f64::INFINITY);
    if finding.emulated {
        return Choice {
            engine: Engine::Soft,
            why: format!(
                "/dev/kvm opens, but one instruction of kernel code takes {ns:.0} ns: it is emulated, without VT-x or AMD-V"
            ),
            would_help: Some(
                "a host with VT-x or AMD-V, or nested virtualization switched on for this VM".into(),
            ),
        };
    }
    Choice {
        engine: Engine::Kvm,
        why: format!("/dev/kvm runs kernel code at {ns:.1} ns an instruction"),
        would_help: None,
    }
}

fn find(places: &Places) -> Finding {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let kept = places.cache.join("engine.json");
    // Whether it may be opened can change at any time (a group is joined), and asking is cheap.
    if let Err(unavailable) = sys::probe_kvm() {
        let missing = Some((unavailable.reason, unavailable.hint));
        return Finding { schema: SCHEMA, boot, version, missing, ns_per_instruction: None, emulated: false };
    }
    if let Ok(finding) = files::read_json::<Finding>(&kept, SCHEMA)
        && finding.boot == boot
        && finding.version == version
        && !boot.is_empty()
    {
        return finding;
    }
    let mut finding =
        Finding { schema: SCHEMA, boot, version, missing: None, ns_per_instruction: None, emulated: false };
    match sys::measure_kvm(DEADLINE) {
        Ok((ns_per_instruction, emulated)) => {
            finding.ns_per_instruction = Some(ns_per_instruction);
            finding.emulated = emulated;
        }
        Err(error) => {
            let why = format!("/dev/kvm cannot make a virtual machine: {}", sentence(&*error));
            finding.missing = Some((why, "use a host with VT-x or AMD-V".into()));
            return finding;
        }
    }
    let written = fs::create_dir_all(&places.cache).is_ok() && files::write_json(&kept, &finding).is_ok();
    if !written {
        tracing::debug!("The engine's speed could not be kept");
    }
    finding
}

/// An error and its sources in one sentence, for people.
pub(crate) fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let words = match inner.downcast_ref::<std::io::Error>() {
            Some(io) => crate::error::in_words(io),
            None => inner.to_string(),
        };
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(missing: bool, ns: f64, emulated: bool) -> Finding {
        Finding {
            schema: SCHEMA,
            boot: "b".into(),
            version: "v".into(),
            missing: missing.then(|| ("There is no /dev/kvm".into(), "Turn it on".into())),
            ns_per_instruction: Some(ns),
            emulated,
        }
    }

    #[test]
    fn an_emulating_kvm_is_not_chosen_and_the_reason_says_so() {
        let slow = judge(&finding(false, 587.0, true), Ok(())).unwrap();
        assert_eq!(slow.engine, Engine::Soft);
        assert!(slow.why.contains("587 ns") && slow.would_help.is_some(), "{slow:?}");
        assert_eq!(judge(&finding(false, 0.4, false), Ok(())).unwrap().engine, Engine::Kvm);
        let none = judge(&finding(true, 0.0, false), Ok(())).unwrap();
        assert_eq!((none.engine, none.why.as_str()), (Engine::Soft, "There is no /dev/kvm"));
    }

    #[test]
    fn a_processor_that_the_software_cpu_cannot_use_is_named() {
        let old =
            || Err(Unavailable { reason: "The processor lacks BMI2".into(), hint: "Use a newer one".into() });
        let emulated = judge(&finding(false, 587.0, true), old()).unwrap();
        assert_eq!(emulated.engine, Engine::Kvm, "slow is better than nothing");
        assert!(emulated.why.contains("BMI2"), "{emulated:?}");
        let neither = judge(&finding(true, 0.0, false), old()).unwrap_err();
        assert!(neither.to_string().contains("BMI2; and for kvm: There is no /dev/kvm"), "{neither}");
        assert_eq!(neither.hint().as_deref(), Some("Turn it on"));
        assert_eq!(judge(&finding(false, 0.4, false), old()).unwrap().engine, Engine::Kvm);
    }

    #[test]
    fn names_are_what_users_type() {
        for engine in [Engine::Kvm, Engine::Soft] {
            assert_eq!(Engine::from_name(engine.name()), Some(engine));
        }
        assert_eq!(Engine::from_name("hvf"), None);
    }
}
