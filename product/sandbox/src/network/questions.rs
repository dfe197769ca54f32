//! The gateway's open questions to the user, under numbers of the shim's own: no number ever means a second question, although each gateway
//! counts its own from one. An answer that was on its way while the gateway was started again answers nothing.

use std::collections::BTreeMap;

use gateway::Target;
use policy::{HostKey, Outcome, Policy, PolicySet, Protocol, Rule, Via, allow_of};

use crate::control::Notice;

/// Questions at once.
const MOST: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Questions {
    /// By our number.
    open: BTreeMap<u64, Question>,
    last: u64,
}

/// An open one.
#[derive(Debug)]
pub(crate) struct Question {
    /// The gateway's number.
    pub(crate) gateways: u64,
    target: Target,
}

impl Question {
    /// The rule that a yes is, unless those that hold already say whether the target may be reached.
    pub(crate) fn allowed_by(&self, holds: &PolicySet) -> Option<Rule> {
        let said = Policy::compile(holds).connect(self.target.view()).outcome;
        (said == Outcome::Undecided).then(|| allow_of(self.target.view()).with_via(Via::Approval))
    }

    fn asked(&self, question: u64) -> Notice {
        let Target { host, port, protocol } = &self.target;
        Notice::Asked { question, host: host.to_string(), port: *port, udp: *protocol == Protocol::Udp }
    }
}

impl Questions {
    /// Takes one over. Gives what sessions are to be told; `None`: there are too many, the gateway asks under a number that is open, or about
    /// what is no host.
    pub(crate) fn put(&mut self, gateways: u64, host: &str, port: u16, protocol: Protocol) -> Option<Notice> {
        if self.open.len() >= MOST || self.open.values().any(|open| open.gateways == gateways) {
            return None;
        }
        let target = Target { host: HostKey::parse(host).ok()?, port, protocol };
        self.last = self.last.wrapping_add(1);
        let question = Question { gateways, target };
        let asked = question.asked(self.last);
        self.open.insert(self.last, question);
        Some(asked)
    }

    /// An open one, which is answered now: the gateway says no more of it.
    pub(crate) fn take(&mut self, ours: u64) -> Option<Question> {
        self.open.remove(&ours)
    }

    /// The gateway needs no answer any more.
    pub(crate) fn over(&mut self, gateways: u64) -> Option<Notice> {
        let question = self.open.iter().find(|(_, open)| open.gateways == gateways).map(|(ours, _)| *ours)?;
        self.open.remove(&question);
        Some(Notice::AskOver { question })
    }

    /// There is no gateway any more.
    pub(crate) fn all_over(&mut self) -> Vec<Notice> {
        let all = std::mem::take(&mut self.open);
        all.into_keys().map(|question| Notice::AskOver { question }).collect()
    }

    /// What a session that begins is told.
    pub(crate) fn notices(&self) -> impl Iterator<Item = Notice> {
        self.open.iter().map(|(ours, open)| open.asked(*ours))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(questions: &mut Questions, gateways: u64, host: &str) -> Option<u64> {
        match questions.put(gateways, host, 443, Protocol::Tcp) {
            Some(Notice::Asked { question, .. }) => Some(question),
            _ => None,
        }
    }

    #[test]
    fn a_number_never_means_a_second_question() {
        let mut questions = Questions::default();
        let first = put(&mut questions, 1, "a.example").unwrap();
        assert_eq!(questions.all_over(), [Notice::AskOver { question: first }]);
        // The next gateway counts from one again, and asks about something else.
        let second = put(&mut questions, 1, "b.example").unwrap();
        assert_ne!(second, first);
        assert!(questions.take(first).is_none(), "an answer to the first is none to the second");
        assert_eq!(put(&mut questions, 1, "c.example"), None, "nor is one put under an open number");
        assert_eq!(questions.notices().count(), 1);
        assert_eq!(questions.over(1), Some(Notice::AskOver { question: second }));
        assert_eq!(questions.over(1), None);
        let open = (2..).map_while(|number| put(&mut questions, number, "d.example")).count();
        assert_eq!(open, MOST);
    }

    #[test]
    fn answered_questions_make_room() {
        let mut questions = Questions::default();
        for number in 1..=MOST as u64 * 2 {
            let asked = put(&mut questions, number, "a.example").unwrap();
            assert_eq!(questions.take(asked).unwrap().gateways, number);
        }
        assert_eq!(questions.notices().count(), 0);
        assert_eq!(put(&mut questions, 1, "no host"), None);
    }

    #[test]
    fn a_yes_is_a_rule_for_what_was_asked_and_nothing_else() {
        let mut questions = Questions::default();
        let first = put(&mut questions, 1, "a.example").unwrap();
        let question = questions.take(first).unwrap();
        let mut holds = PolicySet::default();
        let rule = question.allowed_by(&holds).unwrap();
        assert_eq!((rule.key().as_str(), rule.via()), ("allow:a.example:443", Via::Approval));
        holds.once.push(rule);
        assert_eq!(question.allowed_by(&holds), None, "it is there");
        holds.local = vec![Rule::new(policy::Decision::Deny, policy::Resource::parse("a.example").unwrap())];
        assert_eq!(question.allowed_by(&holds), None, "a denial is not answered away");
        let policy = Policy::compile(&holds);
        assert_eq!(policy.connect(question.target.view()).outcome, Outcome::Deny);

        let Some(Notice::Asked { question, udp: true, .. }) =
            questions.put(2, "2001:db8::1", 123, Protocol::Udp)
        else {
            panic!("it is asked")
        };
        let rule = questions.take(question).unwrap().allowed_by(&PolicySet::default()).unwrap();
        assert_eq!(rule.key(), "allow:[2001:db8::1]:123:udp");
    }
}
