//! What a session's user is told, and asked, while the session goes on, on the standard error.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use policy::{HostKey, Protocol, Rule, Target, Via, allow_of};
use rustix::termios::{OutputModes, tcgetattr};
use sandbox::client::{self, Held};
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
/// Digits of a question's label that are read.
const MOST_DIGITS: usize = 9;

/// What is asked just now, for the thread that reads the keys.
static ASKED: Mutex<Asking> = Mutex::new(Asking::new());

/// Whether this session was told of a refusal.
static BLOCKED: AtomicBool = AtomicBool::new(false);

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
            tell(words(&notice, &sandbox.spec.name));
            match notice {
                Notice::Blocked { .. } | Notice::MoreBlocked { .. } => BLOCKED.store(true, Ordering::Relaxed),
                Notice::Asked { question, host, port, udp } => {
                    let question = Question { number: question, host, port, udp };
                    // Before it can be answered: the words tell how.
                    let mut asking = asked();
                    tell(Some(question.words(asking.next())));
                    asking.put(question);
                }
                Notice::AskOver { question } => asked().over(question),
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

/// At the end of the session: how many refusals there were that it was not told of.
pub(crate) fn last_words(sandbox: &Sandbox) {
    if !BLOCKED.load(Ordering::Relaxed) {
        return;
    }
    if let Ok(Some(status)) = client::network(sandbox)
        && status.untold > 0
    {
        say(&more(status.untold, &sandbox.spec.name));
    }
}

/// So many were not told, and where they stand.
fn more(count: u64, name: &str) -> String {
    format!("blocked  and {count} more   viv policy log --type refused,failed {name}")
}

/// What was decided on, why, and what would allow it.
pub(crate) fn decided(what: &str, why: &str, allow: Option<&str>) -> String {
    let mut text = what.to_owned();
    if !why.is_empty() {
        text.push_str(&format!("  ({why})"));
    }
    if let Some(allow) = allow {
        text.push_str(&format!("   allow: {allow}"));
    }
    text
}

fn words(notice: &Notice, name: &str) -> Option<String> {
    Some(match notice {
        Notice::HostFull => {
            "the host's disk is full: what the sandbox writes waits, nothing is lost   free some space, and it goes on".into()
        }
        Notice::HostHasRoom => "there is room on the host's disk again: the sandbox goes on".into(),
        Notice::Blocked { what, why, allow, untold } => {
            let mut text = format!("blocked  {}", decided(what, why, allow.as_deref()));
            if *untold > 0 {
                text.push_str(&format!("   and {untold} more: viv policy log {name}"));
            }
            text
        }
        Notice::MoreBlocked { count } => more(*count, name),
        Notice::Unresolved { host, why } => {
            format!("{host} is allowed, but its name does not resolve  ({why})")
        }
        Notice::Exfiltration { what, why } => {
            format!("blocked  {what}  A SECRET WAS ON ITS WAY TO WHERE IT DOES NOT BELONG: {why}   viv policy log {name}")
        }
        Notice::Asked { .. }
        | Notice::AskOver { .. }
        | Notice::Grant(_)
        | Notice::AuthorityEnds
        | Notice::SecretsEnd => {
            return None;
        }
        Notice::AuthorityStays { why } => format!(
            "the sandbox's certificates end before long, and {why}   viv stop it, and start it again"
        ),
        Notice::NetworkDown { why } => format!("the sandbox has no network just now: {why}"),
        Notice::NetworkBack => "the sandbox has its network again".into(),
        Notice::NoPolicy { why, holds_on: false } => {
            format!("nothing is allowed: {why}   viv policy ls says more")
        }
        Notice::NoPolicy { why, holds_on: true } => format!(
            "the rules of before hold on, and what they do not speak of is refused: {why}   viv policy ls says more"
        ),
        Notice::PolicyBack => "the policy can be read again, and holds".into(),
        Notice::NoRecord { why } => format!("{why}   it is kept and tried again"),
        Notice::RecordBack => "the record of the network is written again, nothing is missing".into(),
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

impl Question {
    /// Its line; `label` stands before the letter of an answer to it.
    fn words(&self, label: u64) -> String {
        let Self { host, port, udp, .. } = self;
        let udp = if *udp { "/udp" } else { "" };
        format!(
            "may the sandbox reach {host}:{port}{udp}?   Ctrl-] and then: {label}o once, {label}s this sandbox, {label}a always, {label}n no   (no after 60 s)"
        )
    }
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

/// What was typed for us.
#[derive(Debug, PartialEq, Eq)]
enum Typed {
    /// To this question.
    Answer(Question, Answer),
    /// To one that is over, or was never asked.
    TooLate(u64),
}

/// The open questions. Each is answered by the label that was printed with it, which none before or after it has: the guest decides when
/// questions come and go, and with whatever else an answer would go by it could put another one under the user's finger.
#[derive(Debug)]
struct Asking {
    open: Vec<(u64, Question)>,
    last_label: u64,
    /// After [`ATTENTION`]: the digits since.
    armed: Option<Vec<u8>>,
    asker: Option<Asker>,
}

impl Asking {
    const fn new() -> Self {
        Self { open: Vec::new(), last_label: 0, armed: None, asker: None }
    }

    /// The label of the question that comes next.
    fn next(&self) -> u64 {
        self.last_label.saturating_add(1)
    }

    fn put(&mut self, question: Question) {
        self.last_label = self.next();
        self.open.push((self.last_label, question));
    }

    fn over(&mut self, number: u64) {
        self.open.retain(|(_, open)| open.number != number);
    }

    /// Takes our keys out of what was typed; the rest is the guest's. Gives the answers.
    fn take(&mut self, typed: &[u8], rest: &mut Vec<u8>) -> Vec<Typed> {
        let mut answers = Vec::new();
        for byte in typed {
            let Some(mut digits) = self.armed.take() else {
                // Also when all questions are over: who answers one that has just ended must not have typed that into the guest.
                if *byte == ATTENTION && self.last_label > 0 {
                    self.armed = Some(Vec::new());
                } else {
                    rest.push(*byte);
                }
                continue;
            };
            if byte.is_ascii_digit() && digits.len() < MOST_DIGITS {
                digits.push(*byte);
                self.armed = Some(digits);
                continue;
            }
            let label = std::str::from_utf8(&digits).ok().and_then(|digits| digits.parse::<u64>().ok());
            let answer = match byte.to_ascii_lowercase() {
                b'o' => Some(Answer::Once),
                b's' => Some(Answer::Sandbox),
                b'a' => Some(Answer::Always),
                b'n' => Some(Answer::No),
                _ => None,
            };
            match (label, answer) {
                (Some(label), Some(answer)) => {
                    let at = self.open.iter().position(|(known, _)| *known == label);
                    answers.push(match at {
                        Some(at) => Typed::Answer(self.open.remove(at).1, answer),
                        None => Typed::TooLate(label),
                    });
                }
                _ => {
                    rest.push(ATTENTION);
                    rest.append(&mut digits);
                    rest.push(*byte);
                }
            }
        }
        answers
    }
}

/// What of the typed bytes is the guest's. Called by the thread that reads the keys.
pub(crate) fn for_the_guest(typed: &[u8]) -> Vec<u8> {
    let mut rest = Vec::with_capacity(typed.len());
    let mut asking = asked();
    for typed in asking.take(typed, &mut rest) {
        match (typed, &asking.asker) {
            (Typed::Answer(question, answer), Some(asker)) => asker.answer(&question, answer),
            (Typed::TooLate(label), _) => {
                say(&format!("there is no question {label} any more: nothing was answered"))
            }
            (Typed::Answer(..), None) => {}
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
            Answer::Once => "allowed until the sandbox stops",
            Answer::Sandbox => "allowed in this sandbox",
            Answer::Always => "allowed in all sandboxes",
            Answer::No => "refused",
        };
        match kept {
            Ok(()) => say(&escaped(&format!("{}:{} is {whom}", question.host, question.port), LONGEST)),
            Err(why) => say(&escaped(
                &format!("{} is allowed until the sandbox stops only: {why}", question.host),
                LONGEST,
            )),
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
    let host = HostKey::parse(&question.host).map_err(|error| error.to_string())?;
    let protocol = if question.udp { Protocol::Udp } else { Protocol::Tcp };
    let target = Target { host: host.as_host(), port: question.port, protocol };
    Ok(allow_of(target).with_via(Via::Approval))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(number: u64) -> Question {
        Question { number, host: "a.example".into(), port: 443, udp: false }
    }

    fn take(asking: &mut Asking, typed: &[u8]) -> (Vec<u8>, Vec<(u64, Option<Answer>)>) {
        let mut rest = Vec::new();
        let said = asking.take(typed, &mut rest).into_iter().map(|typed| match typed {
            Typed::Answer(question, answer) => (question.number, Some(answer)),
            Typed::TooLate(label) => (label, None),
        });
        let said = said.collect();
        (rest, said)
    }

    #[test]
    fn only_keys_after_the_attention_key_are_answers() {
        let mut asking = Asking::new();
        // Nothing was ever asked: all is the guest's.
        assert_eq!(take(&mut asking, b"a\x1d1a"), (b"a\x1d1a".to_vec(), vec![]));
        asking.put(question(71));
        asking.put(question(72));
        assert_eq!(take(&mut asking, b"a1on"), (b"a1on".to_vec(), vec![]));
        assert_eq!(take(&mut asking, b"x\x1d"), (b"x".to_vec(), vec![]));
        assert_eq!(take(&mut asking, b"1"), (vec![], vec![]));
        assert_eq!(take(&mut asking, b"sy"), (b"y".to_vec(), vec![(71, Some(Answer::Sandbox))]));
        assert_eq!(
            take(&mut asking, b"\x1d2q\x1dN\x1d2N"),
            (b"\x1d2q\x1dN".to_vec(), vec![(72, Some(Answer::No))])
        );
    }

    #[test]
    fn an_answer_is_for_the_question_that_it_was_shown_with() {
        let mut asking = Asking::new();
        asking.put(question(1));
        assert!(asking.open[0].1.words(1).contains("1o once"));
        // The guest lets go of what the user reads and asks about something else, with the gateway's number of before even.
        asking.over(1);
        asking.put(question(1));
        assert_eq!(take(&mut asking, b"\x1d1a"), (vec![], vec![(1, None)]));
        // The newest line is not the oldest question.
        asking.put(question(5));
        assert_eq!(take(&mut asking, b"\x1d3o"), (vec![], vec![(5, Some(Answer::Once))]));
        // A letter alone is for nobody: which one was meant is not known.
        assert_eq!(take(&mut asking, b"\x1do"), (b"\x1do".to_vec(), vec![]));
        assert_eq!(take(&mut asking, b"\x1d2n\x1d999999999999o").1, vec![(1, Some(Answer::No))]);
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
            words(&notice, "claude-api").unwrap(),
            "blocked  POST gist.github.com/  (balanced: \"can carry data out\")   allow: viv policy allow --sandbox claude-api gist.github.com"
        );
        assert_eq!(
            words(&Notice::MoreBlocked { count: 3 }, "claude-api").unwrap(),
            "blocked  and 3 more   viv policy log --type refused,failed claude-api"
        );
        let why = "the host's name servers know no such name".to_owned();
        assert_eq!(
            words(&Notice::Unresolved { host: "nosuch.pypi.org".into(), why }, "claude-api").unwrap(),
            "nosuch.pypi.org is allowed, but its name does not resolve  (the host's name servers know no such name)"
        );
    }
}
