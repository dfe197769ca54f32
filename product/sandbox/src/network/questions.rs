//! The gateway's open questions to the user, under numbers of the shim's own: no number ever means a second question, although each gateway
//! counts its own from one. An answer that was on its way while the gateway was started again answers nothing.

use std::collections::BTreeMap;

use policy::Protocol;

use crate::control::Notice;

/// Questions at once.
const MOST: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Questions {
    /// By our number: the gateway's, and what sessions are told.
    open: BTreeMap<u64, (u64, Notice)>,
    last: u64,
}

impl Questions {
    /// Takes one over. Gives what sessions are to be told; `None`: there are too many, or the gateway asks under a number that is open.
    pub(crate) fn put(
        &mut self,
        gateways: u64,
        host: String,
        port: u16,
        protocol: Protocol,
    ) -> Option<Notice> {
        if self.open.len() >= MOST || self.open.values().any(|(open, _)| *open == gateways) {
            return None;
        }
        self.last = self.last.wrapping_add(1);
        let asked = Notice::Asked { question: self.last, host, port, udp: protocol == Protocol::Udp };
        self.open.insert(self.last, (gateways, asked.clone()));
        Some(asked)
    }

    /// The gateway's number of an open one.
    pub(crate) fn gateways(&self, ours: u64) -> Option<u64> {
        self.open.get(&ours).map(|(gateways, _)| *gateways)
    }

    /// The gateway needs no answer any more.
    pub(crate) fn over(&mut self, gateways: u64) -> Option<Notice> {
        let question = self.open.iter().find(|(_, (open, _))| *open == gateways).map(|(ours, _)| *ours)?;
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
        self.open.values().map(|(_, asked)| asked.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(questions: &mut Questions, gateways: u64, host: &str) -> Option<u64> {
        match questions.put(gateways, host.into(), 443, Protocol::Tcp) {
            Some(Notice::Asked { question, .. }) => Some(question),
            _ => None,
        }
    }

    #[test]
    fn a_number_never_means_a_second_question() {
        let mut questions = Questions::default();
        let first = put(&mut questions, 1, "a.example").unwrap();
        assert_eq!(questions.gateways(first), Some(1));
        assert_eq!(questions.all_over(), [Notice::AskOver { question: first }]);
        // The next gateway counts from one again, and asks about something else.
        let second = put(&mut questions, 1, "b.example").unwrap();
        assert_ne!(second, first);
        assert_eq!(questions.gateways(first), None, "an answer to the first is none to the second");
        assert_eq!(put(&mut questions, 1, "c.example"), None, "nor is one put under an open number");
        assert_eq!(questions.notices().count(), 1);
        assert_eq!(questions.over(1), Some(Notice::AskOver { question: second }));
        assert_eq!(questions.over(1), None);
        let open = (2..).map_while(|number| put(&mut questions, number, "d.example")).count();
        assert_eq!(open, MOST);
    }
}
