//! Questions to the user: flows that no rule speaks of are held until the shim brings an answer. A yes is a rule, of the one-time layer at
//! least, and answers the question as any rule does that comes meanwhile; a no is a word of its own.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::allowance::Allowance;
use crate::control::FromGateway;
use crate::core::{Core, Course, Shared, Target};

/// How long a flow is held.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// A no holds for this long: programs try again at once.
const NO_HOLDS: Duration = Duration::from_secs(10);
/// Open questions. What else would be asked is refused. [`A_MINUTE`] is hit first: it lets at most 60 be asked while the oldest of them waits.
/// This one holds whatever the two others are.
pub const MOST_QUESTIONS: usize = 64;
/// Questions in a minute, after a burst of as many: each is a line on the user's terminal, and a guest that takes its questions back can ask
/// for ever. What else would be asked is refused.
pub const A_MINUTE: u32 = 30;
/// Words that wait for the shim. While there are more nothing is asked.
const MOST_WORDS: usize = 1024;
/// Flows that are held for one question. What else would wait for it is refused.
pub const MOST_HELD: usize = 64;

#[derive(Debug)]
struct Question {
    target: Target,
    held: Vec<oneshot::Sender<bool>>,
}

/// The questions without an answer.
#[derive(Debug)]
pub(crate) struct Questions {
    open: HashMap<u64, Question>,
    refused: HashMap<Target, Instant>,
    next: u64,
    pace: Allowance,
}

impl Default for Questions {
    fn default() -> Self {
        Self { open: HashMap::new(), refused: HashMap::new(), next: 0, pace: pace() }
    }
}

fn pace() -> Allowance {
    Allowance::new(f64::from(A_MINUTE), f64::from(A_MINUTE) / 60.0)
}

/// What was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// There is a rule now.
    Yes,
    No,
    /// Nobody answered.
    Nothing,
    /// Nobody could be asked.
    TooMany,
}

/// Asks about a flow and waits.
pub(crate) async fn ask(shared: &Shared, target: &Target) -> Said {
    let Some((number, answer)) = put(&mut shared.lock(), target) else { return Said::TooMany };
    shared.outbox.notify_one();
    let Some(answer) = answer else { return Said::No };
    let waiting = Withdraw { shared, number };
    let said = tokio::time::timeout(PATIENCE, answer).await;
    drop(waiting);
    match said {
        Ok(Ok(true)) => Said::Yes,
        Ok(_) => Said::No,
        Err(_) => Said::Nothing,
    }
}

/// A question's number, and where the answer comes; none if the user said no a moment ago.
type Put = (u64, Option<oneshot::Receiver<bool>>);

fn put(core: &mut Core, target: &Target) -> Option<Put> {
    let now = Instant::now();
    core.questions.refused.retain(|_, at| now.saturating_duration_since(*at) < NO_HOLDS);
    if core.questions.refused.contains_key(target) {
        return Some((0, None));
    }
    let (sender, receiver) = oneshot::channel();
    if let Some((number, question)) =
        core.questions.open.iter_mut().find(|(_, question)| question.target == *target)
    {
        question.held.retain(|held| !held.is_closed());
        if question.held.len() >= MOST_HELD {
            return None;
        }
        question.held.push(sender);
        return Some((*number, Some(receiver)));
    }
    let is_full = core.questions.open.len() >= MOST_QUESTIONS || core.words.len() >= MOST_WORDS;
    if is_full || !core.questions.pace.take(now) {
        return None;
    }
    core.questions.next = core.questions.next.wrapping_add(1);
    let number = core.questions.next;
    core.questions.open.insert(number, Question { target: target.clone(), held: vec![sender] });
    let reason = core.rules.policy.connect(target.view()).reason;
    core.words.push_back(FromGateway::Question {
        question: number,
        host: target.host.to_string(),
        port: target.port,
        protocol: target.protocol,
        text: reason.text,
        remedy: reason.remedy,
    });
    Some((number, Some(receiver)))
}

/// Takes a question back when the last flow that waits for it is gone.
struct Withdraw<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        let mut core = self.shared.lock();
        let Some(question) = core.questions.open.get_mut(&self.number) else { return };
        question.held.retain(|held| !held.is_closed());
        if question.held.is_empty() {
            core.questions.open.remove(&self.number);
            core.words.push_back(FromGateway::QuestionOver { question: self.number });
            drop(core);
            self.shared.outbox.notify_one();
        }
    }
}

/// The user said no.
pub(crate) fn refused(core: &mut Core, number: u64) {
    let Some(question) = core.questions.open.remove(&number) else { return };
    if core.questions.refused.len() < MOST_QUESTIONS {
        core.questions.refused.insert(question.target, Instant::now());
    }
    for held in question.held {
        let _ = held.send(false);
    }
}

/// The policy or the mode changed: what it speaks of now needs no answer.
pub(crate) fn judge_again(core: &mut Core) {
    core.questions.refused.clear();
    let judged: Vec<_> = core
        .questions
        .open
        .iter()
        .map(|(number, question)| (*number, core.rules.judge(&question.target).course))
        .filter(|(_, course)| *course != Course::Ask)
        .collect();
    for (number, course) in judged {
        let Some(question) = core.questions.open.remove(&number) else { continue };
        for held in question.held {
            let _ = held.send(course != Course::Refuse);
        }
        core.words.push_back(FromGateway::QuestionOver { question: number });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_takes_its_questions_back_does_not_ask_for_ever() {
        let start = Instant::now();
        let mut pace = pace();
        let mut asked = |at: Instant| (0..1000).filter(|_| pace.take(at)).count();
        assert_eq!(asked(start), 30);
        assert_eq!(asked(start), 0);
        assert_eq!(asked(start + Duration::from_secs(10)), 5);
        assert_eq!(asked(start + Duration::from_secs(3600)), 30);
    }

    #[test]
    fn the_pace_of_questions_is_hit_before_there_are_too_many() {
        let start = Instant::now();
        let mut pace = pace();
        let tenths = 0..PATIENCE.as_secs() * 10;
        let asked = tenths.filter(|tenth| pace.take(start + Duration::from_millis(tenth * 100))).count();
        assert_eq!(asked, 59);
        assert!(asked < MOST_QUESTIONS);
    }
}
