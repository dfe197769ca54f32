//! Which refusals a session is told of, so that an agent's work is not drowned in them: each once in a while, and few at once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use gateway::record::{Decision, Kind, Record, UNRESOLVED, What};
use policy::Protocol;

use crate::control::Notice;

/// The same refusal is not told again for so long.
const AGAIN: Duration = Duration::from_secs(300);
/// So many different ones in so long.
const MOST: usize = 4;
const WINDOW: Duration = Duration::from_secs(10);
/// How many were not told is, after so long and once in a [`WINDOW`], unless another one is told before and says it.
const REST: Duration = Duration::from_secs(1);
/// So many attempts to carry a secret off in so long; a guest can make any number, and what else stands on the terminal must stay to be seen.
const MOST_SECRETS: usize = 8;
/// Most refusals that are remembered.
const REMEMBERED: usize = 256;

/// What sessions were told lately.
#[derive(Debug, Default)]
pub(super) struct Hints {
    told: VecDeque<(Instant, String)>,
    untold: u64,
    /// When that is said on its own, if there is any, and when it last was.
    rest: Option<Instant>,
    said: Option<Instant>,
    secrets: VecDeque<Instant>,
    untold_secrets: u64,
}

impl Hints {
    /// What a record is to be told as, if at all.
    pub(super) fn notice(&mut self, record: &Record, now: Instant) -> Option<Notice> {
        let (what, record) = (what(&record.what), &record.what);
        let unresolved = unresolved(record);
        match record.decision {
            Decision::Refused if record.kind == Kind::Exfiltration => {
                return self.exfiltration(what, &record.text, now);
            }
            Decision::Refused if is_service_question(record) => return None,
            Decision::Refused => {}
            _ if unresolved.is_some() => {}
            _ => return None,
        }
        while self.told.front().is_some_and(|(at, _)| *at + AGAIN <= now) || self.told.len() > REMEMBERED {
            self.told.pop_front();
        }
        // An SSH agent is one, and is refused this and that: each is told.
        let told = match record.kind {
            Kind::SshAgent => record.text.clone(),
            // Whatever the port.
            _ if unresolved.is_some() => format!("{UNRESOLVED}: {}", record.host),
            _ => what.clone(),
        };
        if self.told.iter().any(|(_, known)| *known == told) {
            return None;
        }
        if self.told.iter().filter(|(at, _)| *at + WINDOW > now).count() >= MOST {
            self.untold = self.untold.saturating_add(1);
            self.rest.get_or_insert((now + REST).max(self.said.map_or(now, |said| said + WINDOW)));
            return None;
        }
        self.told.push_back((now, told));
        if let Some(why) = unresolved {
            return Some(Notice::Unresolved { host: record.host.clone(), why: why.to_owned() });
        }
        self.rest = None;
        let untold = std::mem::take(&mut self.untold);
        Some(Notice::Blocked { what, why: why(record), allow: record.remedy.clone(), untold })
    }

    /// When [`Hints::rest`] has something to say.
    pub(super) fn due(&self) -> Option<Instant> {
        self.rest
    }

    /// How many were not told, when that is due.
    pub(super) fn rest(&mut self, now: Instant) -> Option<Notice> {
        self.rest.filter(|at| *at <= now)?;
        (self.rest, self.said) = (None, Some(now));
        Some(Notice::MoreBlocked { count: std::mem::take(&mut self.untold) })
    }

    /// How many were not told so far.
    pub(super) fn untold(&self) -> u64 {
        self.untold
    }

    fn exfiltration(&mut self, what: String, why: &str, now: Instant) -> Option<Notice> {
        while self.secrets.front().is_some_and(|at| *at + WINDOW <= now) {
            self.secrets.pop_front();
        }
        if self.secrets.len() >= MOST_SECRETS {
            self.untold_secrets = self.untold_secrets.saturating_add(1);
            return None;
        }
        self.secrets.push_back(now);
        let why = match std::mem::take(&mut self.untold_secrets) {
            0 => why.to_owned(),
            untold => format!("{why}; {untold} more such attempts were not told"),
        };
        Some(Notice::Exfiltration { what, why })
    }

    /// What was told may be told again: the rules have changed.
    pub(super) fn forget(&mut self) {
        self.told.clear();
    }

    /// The same, as often as before: a session has begun that nothing was told to.
    pub(super) fn begin(&mut self) {
        self.told.iter_mut().for_each(|(_, told)| told.clear());
    }
}

/// Why the name of what was let through does not resolve, if it is that.
fn unresolved(record: &What) -> Option<&str> {
    let is_flow = matches!(record.kind, Kind::Connect | Kind::Datagram | Kind::Request);
    let why =
        record.text.strip_prefix(UNRESOLVED).filter(|_| is_flow && record.decision == Decision::Failed)?;
    Some(why.trim_start_matches(": "))
}

/// Whether it is asked which servers a service has: apt asks it of every mirror, and goes on without an answer.
pub fn is_service_question(record: &What) -> bool {
    record.kind == Kind::Dns && record.host.starts_with('_')
}

/// Why something was decided, with the layer that did.
pub fn why(record: &What) -> String {
    match &record.layer {
        Some(layer) if !record.text.is_empty() => format!("{layer}: {}", record.text),
        _ => record.text.clone(),
    }
}

/// What a record is about, as in the line that a user sees.
pub fn what(record: &What) -> String {
    let host = match record.address {
        Some(address) if record.host.is_empty() => address.to_string(),
        _ => record.host.clone(),
    };
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    match (&record.method, record.kind) {
        (Some(method), _) => {
            let port =
                if matches!(record.port, 0 | 80 | 443) { String::new() } else { format!(":{}", record.port) };
            format!("{method} {bracketed}{port}{}", record.path.as_deref().unwrap_or("/"))
        }
        (None, Kind::Dns) => host,
        (None, _) if record.port == 0 => host,
        (None, _) if record.protocol == Some(Protocol::Udp) => format!("{bracketed}:{}/udp", record.port),
        (None, _) => format!("{bracketed}:{}", record.port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(host: &str) -> What {
        What {
            layer: Some("balanced".into()),
            text: "can carry data out".into(),
            remedy: Some(format!("viv policy allow {host}")),
            ..What::new(Kind::Connect, Decision::Refused, host, 443)
        }
    }

    fn one(what: What) -> Record {
        Record { time: 0, last: 0, count: 1, bytes_up: 0, bytes_down: 0, what }
    }

    #[test]
    fn the_same_is_told_once_and_many_are_counted() {
        let (mut hints, start) = (Hints::default(), Instant::now());
        let first = hints.notice(&one(refused("a.example")), start).unwrap();
        let Notice::Blocked { what, why, allow, untold } = first else { panic!("{first:?}") };
        assert_eq!(
            (what.as_str(), why.as_str(), untold),
            ("a.example:443", "balanced: can carry data out", 0)
        );
        assert_eq!(allow.as_deref(), Some("viv policy allow a.example"));
        assert_eq!(hints.notice(&one(refused("a.example")), start), None);
        let told =
            (0..100).filter_map(|n| hints.notice(&one(refused(&format!("h{n}.example"))), start)).count();
        assert_eq!(told, MOST - 1);
        let later = hints.notice(&one(refused("b.example")), start + WINDOW).unwrap();
        assert!(matches!(later, Notice::Blocked { untold: 97, .. }), "{later:?}");
        assert!(hints.notice(&one(refused("a.example")), start + WINDOW).is_none());
        assert!(hints.notice(&one(refused("a.example")), start + AGAIN).is_some());
        hints.forget();
        assert!(hints.notice(&one(refused("a.example")), start + AGAIN).is_some());
    }

    #[test]
    fn what_was_not_told_is_counted_also_when_nothing_comes_after_it() {
        let (mut hints, start) = (Hints::default(), Instant::now());
        let flood = |hints: &mut Hints, name: &str, at: Instant| {
            (0..7).filter_map(|n| hints.notice(&one(refused(&format!("{name}{n}.example"))), at)).count()
        };
        assert_eq!((flood(&mut hints, "a", start), hints.untold()), (MOST, 3));
        assert_eq!((hints.due(), hints.rest(start)), (Some(start + REST), None));
        assert_eq!(hints.rest(start + REST), Some(Notice::MoreBlocked { count: 3 }));
        assert_eq!((hints.due(), hints.untold()), (None, 0), "nothing to wake up for");
        // A flood that goes on is told of as seldom as its hints.
        let again = start + REST * 2;
        assert_eq!(flood(&mut hints, "b", again), 0);
        assert_eq!(hints.due(), Some(start + REST + WINDOW));
        // A hint that comes before says it.
        let hint = hints.notice(&one(refused("c.example")), start + WINDOW);
        assert!(matches!(hint, Some(Notice::Blocked { untold: 7, .. })), "{hint:?}");
        assert_eq!(hints.due(), None);
    }

    #[test]
    fn a_session_that_begins_is_told_what_others_were() {
        let (mut hints, now) = (Hints::default(), Instant::now());
        let record = one(refused("a.example"));
        assert!(hints.notice(&record, now).is_some());
        assert!(hints.notice(&record, now).is_none());
        // As often as the others: sessions that begin all the time make no flood.
        let told = (0..9).filter(|_| {
            hints.begin();
            hints.notice(&record, now).is_some()
        });
        assert_eq!(told.count(), MOST - 1);
    }

    #[test]
    fn a_name_that_is_allowed_and_does_not_resolve_is_told_once() {
        let (mut hints, now) = (Hints::default(), Instant::now());
        let failed = |host: &str, port: u16, text: &str| {
            one(What::new(Kind::Connect, Decision::Failed, host, port).text(text))
        };
        let text = format!("{UNRESOLVED}: the host's name servers know no such name");
        let told = hints.notice(&failed("nosuch.example", 443, &text), now);
        let why = "the host's name servers know no such name".to_owned();
        assert_eq!(told, Some(Notice::Unresolved { host: "nosuch.example".into(), why }));
        assert_eq!(hints.notice(&failed("nosuch.example", 80, &text), now), None);
        assert_eq!(hints.notice(&failed("other.example", 443, "Connection refused"), now), None);
        let more =
            (0..9).filter(|n| hints.notice(&failed(&format!("n{n}.example"), 1, &text), now).is_some());
        assert_eq!(more.count(), MOST - 1);
    }

    #[test]
    fn what_is_allowed_is_no_hint_and_an_attempt_to_carry_off_a_secret_always_is() {
        let mut hints = Hints::default();
        let now = Instant::now();
        assert_eq!(hints.notice(&one(What { decision: Decision::Allowed, ..refused("a") }), now), None);
        let service = What { kind: Kind::Dns, ..refused("_http._tcp.deb.debian.org") };
        assert_eq!(hints.notice(&one(service), now), None);
        let secret = one(What { kind: Kind::Exfiltration, ..refused("a") });
        for _ in 0..3 {
            assert!(matches!(hints.notice(&secret, now), Some(Notice::Exfiltration { .. })));
        }
        let more = (0..1000).filter(|_| hints.notice(&secret, now).is_some()).count();
        assert_eq!(more, MOST_SECRETS - 3);
        let later = hints.notice(&secret, now + WINDOW);
        assert!(matches!(later, Some(Notice::Exfiltration { why, .. }) if why.contains("995 more")));
    }

    #[test]
    fn each_thing_that_the_ssh_agent_may_not_do_is_told() {
        let (mut hints, now) = (Hints::default(), Instant::now());
        let refused = |why: &str| one(What::new(Kind::SshAgent, Decision::Refused, "SSH agent", 0).text(why));
        let told = ["a key added", "a signature", "a key added"]
            .map(|why| hints.notice(&refused(why), now).is_some());
        assert_eq!(told, [true, true, false]);
    }

    #[test]
    fn what_is_meant_is_said_as_a_user_would() {
        let request = What {
            method: Some("POST".into()),
            path: Some("/x".into()),
            kind: Kind::Request,
            ..refused("gist.github.com")
        };
        assert_eq!(what(&request), "POST gist.github.com/x");
        assert_eq!(what(&What { port: 8443, ..request }), "POST gist.github.com:8443/x");
        assert_eq!(what(&What { kind: Kind::Dns, ..refused("a.example") }), "a.example");
        let address = What { address: "2001:db8::1".parse().ok(), ..refused("") };
        assert_eq!(what(&address), "[2001:db8::1]:443");
        let udp = What { protocol: Some(Protocol::Udp), ..refused("a.example") };
        assert_eq!(what(&udp), "a.example:443/udp");
    }
}
