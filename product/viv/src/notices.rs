//! What a session's user is told, and asked, while the session goes on, on the standard error.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use policy::{Decision, Protocols, Resource, Rule, Via};
use rustix::termios::{OutputModes, tcgetattr};
use sandbox::client::Held;
use sandbox::control::Notice;
use sandbox::escape::escaped;
use sandbox::folder::Sandbox;
use sandbox::network::policy_files;
use sandbox::places::Places;

use crate::keep;

/// The longest line, in characters.
const LONGEST: usize = 400;

/// Ctrl-]: what comes after it is for us. A letter alone would be the guest's: who types into an agent must not allow hosts by it.
const ATTENTION: u8 = 0x1d;

/// What is asked just now, for the thread that reads the keys.
static ASKED: Mutex<Asking> = Mutex::new(Asking { open: VecDeque::new(), armed: false, asker: None });

/// Tells until the sandbox or this process ends. The session's place in the sandbox goes with the thread, and ends with the process.
pub(crate) fn watch(held: Arc<Held>, sandbox: &Sandbox) {
    let sandbox = sandbox.clone();
    asked().asker = Some(Asker { held: held.clone(), sandbox: sandbox.clone() });
    let tell = |words: Option<String>| {
        if let Some(words) = words {
            say(&escaped(&words, LONGEST));
        }
    };
    let hear = move || {
        while let Some(notice) = held.next_notice() {
            tell(words(&notice));
            match notice {
                Notice::Asked { question, host, port, udp } => {
                    asked().open.push_back(Question { number: question, host, port, udp });
                }
                Notice::AskOver { question } => asked().open.retain(|open| open.number != question),
                Notice::Grant(unkept) => tell(keep::grant(&held, &sandbox, &unkept)),
                Notice::AuthorityEnds => tell(keep::authority(&held, &sandbox)),
                Notice::SecretsEnd => tell(keep::secrets(&sandbox)),
                _ => {}
            }
        }
    };
    // Without it the session is as good, but for this.
    let _ = std::thread::Builder::new().name("notices".into()).spawn(hear);
}

fn words(notice: &Notice) -> Option<String> {
    Some(match notice {
        Notice::HostFull => {
            "the host's disk is full: what the sandbox writes waits, nothing is lost   free some space, and it goes on".into()
        }
        Notice::HostHasRoom => "there is room on the host's disk again: the sandbox goes on".into(),
        Notice::Blocked { what, why, allow, untold } => {
            let mut text = format!("blocked  {what}");
            if !why.is_empty() {
                text.push_str(&format!("  ({why})"));
            }
            if let Some(allow) = allow {
                text.push_str(&format!("   allow: {allow}"));
            }
            if *untold > 0 {
                text.push_str(&format!("   and {untold} more: viv policy log"));
            }
            text
        }
        Notice::Exfiltration { what, why } => {
            format!("blocked  {what}  A SECRET WAS ON ITS WAY TO WHERE IT DOES NOT BELONG: {why}   viv policy log")
        }
        Notice::Asked { host, port, udp, .. } => {
            let udp = if *udp { "/udp" } else { "" };
            format!("may the sandbox reach {host}:{port}{udp}?   Ctrl-] and then: o once, s this sandbox, a always, n no   (no after 60 s)")
        }
        Notice::AskOver { .. } | Notice::Grant(_) | Notice::AuthorityEnds | Notice::SecretsEnd => {
            return None;
        }
        Notice::AuthorityStays { why } => format!(
            "the sandbox's certificates end before long, and {why}   viv stop it, and start it again"
        ),
        Notice::NetworkDown { why } => format!("the sandbox has no network just now: {why}"),
        Notice::NetworkBack => "the sandbox has its network again".into(),
        Notice::NoPolicy { why } => format!("nothing is allowed: {why}   viv policy ls says more"),
        Notice::PolicyBack => "the policy can be read again, and holds".into(),
        Notice::NotPublished { publish, why } => format!("not published: {publish}: {why}"),
    })
}

/// A line of its own, also on a terminal in raw mode, in the middle of what the session draws.
fn say(words: &str) {
    let mut out = std::io::stderr().lock();
    let raw =
        tcgetattr(std::io::stderr()).is_ok_and(|modes| !modes.output_modes.contains(OutputModes::OPOST));
    let text = if raw { format!("\r\nviv: {words}\r\n") } else { format!("viv: {words}\n") };
    let _ = out.write_all(text.as_bytes());
}

fn asked() -> MutexGuard<'static, Asking> {
    ASKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An open question.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Question {
    number: u64,
    host: String,
    port: u16,
    udp: bool,
}

/// What the user says to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Once,
    Sandbox,
    Always,
    No,
}

/// Who is told the answers.
#[derive(Debug)]
struct Asker {
    held: Arc<Held>,
    sandbox: Sandbox,
}

#[derive(Debug)]
struct Asking {
    open: VecDeque<Question>,
    /// Whether the key before was [`ATTENTION`].
    armed: bool,
    asker: Option<Asker>,
}

impl Asking {
    /// Takes our keys out of what was typed; the rest is the guest's. Gives the answers.
    fn take(&mut self, typed: &[u8], rest: &mut Vec<u8>) -> Vec<(Question, Answer)> {
        let mut answers = Vec::new();
        for byte in typed {
            if std::mem::take(&mut self.armed) {
                let answer = match byte.to_ascii_lowercase() {
                    b'o' => Some(Answer::Once),
                    b's' => Some(Answer::Sandbox),
                    b'a' => Some(Answer::Always),
                    b'n' => Some(Answer::No),
                    _ => None,
                };
                match answer.and_then(|answer| Some((self.open.pop_front()?, answer))) {
                    Some(answered) => answers.push(answered),
                    None => rest.extend([ATTENTION, *byte]),
                }
            } else if *byte == ATTENTION && !self.open.is_empty() {
                self.armed = true;
            } else {
                rest.push(*byte);
            }
        }
        answers
    }
}

/// What of the typed bytes is the guest's. Called by the thread that reads the keys.
pub(crate) fn for_the_guest(typed: &[u8]) -> Vec<u8> {
    let mut rest = Vec::with_capacity(typed.len());
    let mut asking = asked();
    for (question, answer) in asking.take(typed, &mut rest) {
        if let Some(asker) = &asking.asker {
            asker.answer(&question, answer);
        }
    }
    rest
}

impl Asker {
    fn answer(&self, question: &Question, answer: Answer) {
        let kept = match answer {
            Answer::Once | Answer::No => Ok(()),
            Answer::Sandbox | Answer::Always => self.keep(question, answer),
        };
        let whom = match answer {
            Answer::Once => "allowed once",
            Answer::Sandbox => "allowed in this sandbox",
            Answer::Always => "allowed in all sandboxes",
            Answer::No => "refused",
        };
        match kept {
            Ok(()) => say(&escaped(&format!("{}:{} is {whom}", question.host, question.port), LONGEST)),
            Err(why) => {
                say(&escaped(&format!("{} is allowed this once only: {why}", question.host), LONGEST))
            }
        }
        let _ = self.held.answer(question.number, answer != Answer::No);
    }

    /// Writes the rule that the answer is.
    fn keep(&self, question: &Question, answer: Answer) -> Result<(), String> {
        let rule = rule(question)?;
        let add = |rules: &mut Vec<Rule>| {
            policy::upsert(rules, rule);
            Ok(())
        };
        let written = match answer {
            Answer::Always => Places::from_env()
                .and_then(|places| policy_files::change_global(&places, |file| add(&mut file.rules))),
            _ => policy_files::change_local(&self.sandbox, |file| add(&mut file.rules)),
        };
        written.map_err(|error| error.to_string())
    }
}

fn rule(question: &Question) -> Result<Rule, String> {
    let Question { host, port, .. } = question;
    let text = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let resource = Resource::parse(&text).map_err(|error| error.to_string())?;
    let rule = Rule::new(Decision::Allow, resource).with_via(Via::Approval);
    if question.udp {
        return rule.with_protocols(Protocols::Udp).map_err(|error| error.to_string());
    }
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(number: u64) -> Question {
        Question { number, host: "a.example".into(), port: 443, udp: false }
    }

    #[test]
    fn only_keys_after_the_attention_key_are_answers() {
        let mut asking = Asking { open: VecDeque::new(), armed: false, asker: None };
        let take = |asking: &mut Asking, typed: &[u8]| {
            let mut rest = Vec::new();
            let answers = asking.take(typed, &mut rest);
            (
                rest,
                answers.into_iter().map(|(question, answer)| (question.number, answer)).collect::<Vec<_>>(),
            )
        };
        // Nothing is asked: all is the guest's.
        assert_eq!(take(&mut asking, b"a\x1da"), (b"a\x1da".to_vec(), vec![]));
        asking.open.extend([question(1), question(2)]);
        assert_eq!(take(&mut asking, b"aon"), (b"aon".to_vec(), vec![]));
        assert_eq!(take(&mut asking, b"x\x1d"), (b"x".to_vec(), vec![]));
        assert_eq!(take(&mut asking, b"sy"), (b"y".to_vec(), vec![(1, Answer::Sandbox)]));
        assert_eq!(take(&mut asking, b"\x1dq\x1dN\x1da"), (b"\x1dq\x1da".to_vec(), vec![(2, Answer::No)]));
    }

    #[test]
    fn an_answer_that_stays_is_a_rule_for_that_port() {
        assert_eq!(rule(&question(1)).unwrap().key(), "allow:a.example:443");
        let udp = Question { host: "2001:db8::1".into(), udp: true, ..question(1) };
        let rule = rule(&udp).unwrap();
        assert!(
            rule.protocols().contains(policy::Protocol::Udp)
                && !rule.protocols().contains(policy::Protocol::Tcp)
        );
    }

    #[test]
    fn a_refusal_is_one_line_with_what_would_allow_it() {
        let notice = Notice::Blocked {
            what: "POST gist.github.com/".into(),
            why: "balanced: \"can carry data out\"".into(),
            allow: Some("viv policy allow --sandbox claude-api gist.github.com".into()),
            untold: 0,
        };
        assert_eq!(
            words(&notice).unwrap(),
            "blocked  POST gist.github.com/  (balanced: \"can carry data out\")   allow: viv policy allow --sandbox claude-api gist.github.com"
        );
    }
}
