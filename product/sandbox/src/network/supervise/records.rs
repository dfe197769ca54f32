//! What the gateway records, on its way into the log.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use gateway::control::FromGateway;
use gateway::record::Record;

use super::{Network, plain};
use crate::control::Notice;
use crate::packet;

/// How long it is until what could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(2);

impl Network {
    /// Writes records down. Gives what sessions are to be told.
    pub(super) fn write_down(&mut self, records: Vec<Record>) -> Vec<Notice> {
        let now = Instant::now();
        let mut told: Vec<Notice> =
            records.iter().filter_map(|record| self.hints.notice(record, now)).collect();
        match (self.log.append(records), self.unwritten.take()) {
            (Ok(()), None) => {}
            (Ok(()), Some(_)) => {
                tracing::info!("The record of the network is written again");
                told.push(Notice::RecordBack);
            }
            (Err(_), Some((why, _))) => self.unwritten = Some((why, now + AGAIN)),
            (Err(error), None) => {
                tracing::error!(%error, "The record of the network cannot be written");
                let why = plain(&format!("the record of the network cannot be written: {error}"));
                told.push(Notice::NoRecord { why: why.clone() });
                self.unwritten = Some((why, now + AGAIN));
            }
        }
        told
    }

    /// The last try, at the end.
    pub(super) fn write_the_rest(&mut self) {
        self.write_down(Vec::new());
        let count = self.log.unwritten();
        if count > 0 {
            tracing::error!(count, "Decisions about the network are in no record: it could not be written");
        }
    }

    /// What a gateway that has ended said before: its records above all.
    pub(super) fn hear_the_rest(&mut self, told: &mut Vec<Notice>) {
        let lines = [self.left.take(), self.control.take()];
        for word in lines.into_iter().flatten().flat_map(rest) {
            self.take(word, told);
        }
    }
}

/// Words that are heard of a gateway that has ended; a socket holds fewer.
const MOST_WORDS: usize = 4096;

/// What a gateway that has ended left on its line that still counts.
fn rest(control: OwnedFd) -> Vec<FromGateway> {
    let words = std::iter::from_fn(|| packet::receive_large::<FromGateway>(&control).ok().flatten());
    let words = words.take(MOST_WORDS);
    let counts = |word: &FromGateway| {
        matches!(
            word,
            FromGateway::Records { .. }
                | FromGateway::Failed { .. }
                | FromGateway::Saved { .. }
                | FromGateway::Grant { .. }
        )
    };
    words.map(|(word, _)| word).filter(counts).collect()
}

#[cfg(test)]
mod tests {
    use gateway::record::{Decision, Kind, What};
    use policy::Protocol;

    use super::*;

    #[test]
    fn what_a_gateway_said_before_it_died_still_counts() {
        let (near, far) = packet::pair().unwrap();
        let what = What::new(Kind::Exfiltration, Decision::Refused, "evil.example", 443);
        let record = Record { time: 1, last: 1, count: 1, bytes_up: 0, bytes_down: 0, what };
        let question = FromGateway::Question {
            question: 1,
            host: "a.example".into(),
            port: 443,
            protocol: Protocol::Tcp,
            text: String::new(),
            remedy: None,
        };
        let failed = FromGateway::Failed { why: "the frame ring".into() };
        for word in [FromGateway::Records { records: vec![record.clone()] }, question, failed] {
            packet::send_large(&far, &word, &[]).unwrap();
        }
        drop(far);
        let said = rest(near);
        // Nobody can answer its questions any more.
        let [FromGateway::Records { records }, FromGateway::Failed { why }] = &said[..] else {
            panic!("{said:?}")
        };
        assert_eq!((records.as_slice(), why.as_str()), (&[record][..], "the frame ring"));
    }
}
