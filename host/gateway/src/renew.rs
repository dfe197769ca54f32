//! Tokens that people got by signing in are asked for anew before they end, also while no guest asks for anything. Until the next one
//! is due nothing wakes up, and without any nothing ever does.

use std::collections::HashMap;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use policy::{CanonicalPath, HostKey, Name, Outcome, Protocol, Reason, Request};
use tokio::time::sleep;

use crate::core::{Course, Target};
use crate::dial::Dialer;
use crate::intercept::{Interceptor, Reporter};
use crate::record::{Decision, Kind, What};
use crate::serve::World;

/// So long before its end a token is asked for anew; one that holds for less than twice as long, when half of its life is over.
const AHEAD: Duration = Duration::from_secs(300);
/// No sooner after an answer, whatever it says of its tokens' ends.
const APART: Duration = Duration::from_secs(30);
/// After a failure: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(1800);
/// Logins that are renewed.
const MOST: usize = 64;

/// When whose tokens are asked for.
#[derive(Debug, Default)]
struct Schedule {
    logins: HashMap<String, Login>,
    /// How many there were at last that nobody asks for.
    beyond: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Login {
    /// When its tokens end.
    ends: SystemTime,
    /// When they are asked for.
    at: SystemTime,
    /// Not before, as there was an answer a moment ago.
    not_before: SystemTime,
    /// After the next failure, or since the last one.
    pause: Option<Duration>,
    /// The policy refused it: another one may allow it.
    refused: bool,
}

impl Schedule {
    /// Takes note of what there is: the names, and when their tokens end. Whether more are left out than before.
    fn look(&mut self, logins: &[(String, SystemTime)], now: SystemTime) -> bool {
        self.logins.retain(|name, _| logins.iter().any(|(known, _)| known == name));
        for (name, ends) in logins.iter().take(MOST) {
            let before = self.logins.get(name);
            if before.is_some_and(|login| login.ends == *ends) {
                continue;
            }
            let left = ends.duration_since(now).unwrap_or_default();
            let not_before = before.map_or(now, |login| login.not_before);
            let wait = left.saturating_sub(AHEAD).max(left.checked_div(2).unwrap_or_default());
            let at = later(now, wait).max(not_before);
            let login = Login { ends: *ends, at, not_before, pause: None, refused: false };
            self.logins.insert(name.clone(), login);
        }
        let before = std::mem::replace(&mut self.beyond, logins.len().saturating_sub(MOST));
        self.beyond > before
    }

    /// One that is due.
    fn due(&self, now: SystemTime) -> Option<String> {
        let due = self.logins.iter().filter(|(_, login)| login.at <= now);
        due.min_by_key(|(_, login)| login.at).map(|(name, _)| name.clone())
    }

    /// When the next one is.
    fn next(&self) -> Option<SystemTime> {
        self.logins.values().map(|login| login.at).min()
    }

    /// An answer came. What it says of the tokens' end is looked at next.
    fn answered(&mut self, name: &str, now: SystemTime) {
        if let Some(login) = self.logins.get_mut(name) {
            login.not_before = later(now, APART);
            // Should the end be the same as before.
            login.at = later(now, LONGEST_PAUSE);
            (login.pause, login.refused) = (None, false);
        }
    }

    /// None came. How long it is until the next try.
    fn failed(&mut self, name: &str, now: SystemTime, refused: bool) -> Duration {
        let Some(login) = self.logins.get_mut(name) else { return FIRST_PAUSE };
        let pause = login.pause.map_or(FIRST_PAUSE, |pause| pause.saturating_mul(2).min(LONGEST_PAUSE));
        (login.pause, login.at, login.refused) = (Some(pause), later(now, pause), refused);
        pause
    }

    /// The policy may be another one: what it refused is tried at once.
    fn another_policy(&mut self, now: SystemTime) {
        for login in self.logins.values_mut().filter(|login| login.refused) {
            login.at = now;
        }
    }
}

/// A time that cannot be written is none that comes.
fn later(now: SystemTime, wait: Duration) -> SystemTime {
    now.checked_add(wait).unwrap_or(now)
}

/// Renews until it is dropped.
pub(crate) async fn run(world: &Rc<World>) -> Infallible {
    let mut schedule = Schedule::default();
    loop {
        let interceptor = world.interceptor();
        let logins = interceptor.as_ref().map(|interceptor| interceptor.renewable()).unwrap_or_default();
        let now = SystemTime::now();
        if schedule.look(&logins, now) {
            let text = format!("more than {MOST} logins: the tokens of {} are not renewed", schedule.beyond);
            world.shared.record(What::new(Kind::Limit, Decision::Refused, "logins", 0).text(text));
        }
        if let (Some(interceptor), Some(name)) = (interceptor, schedule.due(now)) {
            renew(world, interceptor.as_ref(), &name, &mut schedule).await;
            continue;
        }
        let pause = schedule.next().map(|at| at.duration_since(now).unwrap_or_default());
        tokio::select! {
            () = world.shared.logins.notified() => {
                if world.other_policy.take() {
                    schedule.another_policy(SystemTime::now());
                }
            }
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }
}

async fn renew(world: &Rc<World>, interceptor: &dyn Interceptor, name: &str, schedule: &mut Schedule) {
    let shared = &world.shared;
    let Some(renewal) = interceptor.renewal(name) else {
        schedule.logins.remove(name);
        return;
    };
    let Ok(host) = Name::parse(&renewal.host) else {
        schedule.failed(name, SystemTime::now(), false);
        return;
    };
    let target = Target { host: HostKey::Name(host), port: renewal.port, protocol: Protocol::Tcp };
    let mut what = target.what(Kind::Request, Decision::Allowed);
    (what.method, what.path) = (Some("POST".into()), Some(renewal.path.clone()));
    if let Err(reason) = allowed(world, &target, &renewal.path) {
        let pause = schedule.failed(name, SystemTime::now(), true);
        let what = What { decision: Decision::Refused, ..what }.because(&reason);
        let text = format!("the tokens of {name} cannot be renewed: {}", reason.text);
        return shared.record(what.text(again(text, pause)));
    }
    let dialer = Dialer::new(Arc::clone(shared), target);
    match interceptor.renew(renewal, dialer).await {
        Ok(grant) => {
            schedule.answered(name, SystemTime::now());
            shared.record(what.text(format!("the gateway renewed the tokens of {name}")));
            Reporter(Arc::clone(shared)).grant(grant);
        }
        Err(why) => {
            let pause = schedule.failed(name, SystemTime::now(), false);
            let text = format!("the tokens of {name} cannot be renewed: {why}");
            shared.record(What { decision: Decision::Failed, ..what }.text(again(text, pause)));
        }
    }
}

fn again(text: String, pause: Duration) -> String {
    format!("{text}; tried again in {} s", pause.as_secs())
}

/// Whether the guest itself might send this request.
fn allowed(world: &World, target: &Target, path: &str) -> Result<(), Reason> {
    let core = world.shared.lock();
    let judgement = core.rules.judge(target);
    let verdict = match judgement.course {
        Course::Pass | Course::Observe => return Ok(()),
        Course::Refuse | Course::Ask => judgement.verdict,
        Course::Inspect => match CanonicalPath::parse(path) {
            Ok(path) => core.rules.policy.request(target.view(), Request { method: "POST", path: &path }),
            Err(error) => return Err(Reason { text: error.to_string(), ..judgement.verdict.reason }),
        },
    };
    if verdict.outcome == Outcome::Allow { Ok(()) } else { Err(verdict.reason) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    fn at(seconds: u64) -> SystemTime {
        START + Duration::from_secs(seconds)
    }

    /// Seconds from `now` until the next one, for a token that ends at `ends`.
    fn wait(schedule: &mut Schedule, ends: u64, now: u64) -> u64 {
        schedule.look(&[("a".into(), at(ends))], at(now));
        schedule.next().unwrap().duration_since(at(now)).unwrap_or_default().as_secs()
    }

    #[test]
    fn tokens_are_asked_for_before_they_end_and_never_in_a_circle() {
        assert_eq!(wait(&mut Schedule::default(), 3600, 0), 3300);
        assert_eq!(wait(&mut Schedule::default(), 400, 0), 200);
        let mut schedule = Schedule::default();
        assert_eq!(wait(&mut schedule, 10, 1000), 0, "ended while nothing ran");
        assert_eq!(schedule.due(at(1000)).as_deref(), Some("a"));
        // A server that gives tokens without a life is not asked without end.
        schedule.answered("a", at(1001));
        assert_eq!(wait(&mut schedule, 1001, 1001), 30);
        assert_eq!(schedule.due(at(1030)), None);
        schedule.answered("a", at(1031));
        assert_eq!(wait(&mut schedule, 1001, 1031), 1800, "nor one whose answer changes nothing");
        schedule.look(&[], at(1031));
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn logins_beyond_the_most_are_noted_once() {
        let logins = |count: usize| (0..count).map(|name| (name.to_string(), at(3600))).collect::<Vec<_>>();
        let mut schedule = Schedule::default();
        for (count, noted, beyond) in
            [(64, false, 0), (65, true, 1), (65, false, 1), (67, true, 3), (64, false, 0), (65, true, 1)]
        {
            assert_eq!((schedule.look(&logins(count), at(0)), schedule.beyond), (noted, beyond), "{count}");
            assert_eq!(schedule.logins.len(), MOST);
        }
    }

    #[test]
    fn pauses_after_failures_grow_and_end_with_another_policy() {
        let mut schedule = Schedule::default();
        assert_eq!(wait(&mut schedule, 10, 0), 5);
        let pauses: Vec<u64> = (0..8).map(|_| schedule.failed("a", at(10), false).as_secs()).collect();
        assert_eq!(pauses, [30, 60, 120, 240, 480, 960, 1800, 1800]);
        schedule.another_policy(at(11));
        assert_eq!(schedule.due(at(11)), None, "the policy was not why");
        schedule.failed("a", at(11), true);
        schedule.another_policy(at(12));
        assert_eq!(schedule.due(at(12)).as_deref(), Some("a"));
        // New tokens end the pauses.
        assert_eq!(wait(&mut schedule, 4000, 12), 3688);
        assert_eq!(schedule.failed("a", at(13), false).as_secs(), 30);
    }
}
