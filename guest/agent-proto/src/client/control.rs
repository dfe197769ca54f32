//! A control connection.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{hear_welcome, say_hello};
use crate::ProtoError;
use crate::frame::{self, FrameReader, SKIPPABLE, kind};
use crate::messages::{
    Empty, Environment, Event, Happening, Metrics, Mount, Operation, Outcome, Phase, Purpose, Reply, Request,
    Seed, SetClock, Setup, Share, Shutdown, Status, Trust, Welcome,
};

/// The most events that wait while a reply is awaited; older ones are dropped (only the last status counts).
const MAX_WAITING: usize = 64;

/// A control connection to the agent. One thread at a time; open another connection to follow events beside requests.
#[derive(Debug)]
pub struct Control<S> {
    frames: FrameReader<S>,
    welcome: Welcome,
    status: Status,
    waiting: VecDeque<Status>,
    next_id: u64,
}

impl<S: Read + Write> Control<S> {
    /// Greets the agent on a fresh stream. Returns once the agent has answered and told its first status, which may be long before
    /// it is ready.
    ///
    /// # Errors
    /// The stream's, or [`ProtoError::Refused`], [`ProtoError::Incompatible`].
    pub fn connect(mut stream: S) -> Result<Self, ProtoError> {
        say_hello(&mut stream, Purpose::Control)?;
        let mut frames = FrameReader::new(stream);
        let welcome = hear_welcome(&mut frames)?;
        let mut control =
            Self { frames, welcome, status: Status::default(), waiting: VecDeque::new(), next_id: 1 };
        control.next_status()?;
        Ok(control)
    }

    /// What the agent said of itself.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// The last status that has come.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// The stream, for instance to shut it down from elsewhere through a clone.
    pub fn stream(&self) -> &S {
        self.frames.get_ref()
    }

    /// Waits for the next change of status.
    ///
    /// # Errors
    /// The stream's; [`ProtoError::Closed`] when the guest is gone.
    pub fn next_status(&mut self) -> Result<Status, ProtoError> {
        if let Some(status) = self.waiting.pop_front() {
            return Ok(status);
        }
        loop {
            match self.frames.read_frame()?.ok_or(ProtoError::Closed)? {
                kind::EVENT => {
                    if let Some(Happening::Status(status)) = self.frames.message::<Event>()?.happening {
                        self.status = status.clone();
                        return Ok(status);
                    }
                }
                SKIPPABLE.. => {}
                other => return Err(ProtoError::UnexpectedFrame(other)),
            }
        }
    }

    /// Waits until sessions can be opened.
    ///
    /// # Errors
    /// [`ProtoError::Failed`] with the guest's reason when it cannot come up; else as [`Control::next_status`].
    pub fn wait_ready(&mut self) -> Result<Status, ProtoError> {
        loop {
            match self.status.phase() {
                Phase::Ready => return Ok(self.status.clone()),
                Phase::Failed => return Err(ProtoError::Failed(self.status.message.clone())),
                Phase::Stopping => return Err(ProtoError::Failed("The sandbox is stopping".into())),
                Phase::Unknown | Phase::Booting => self.next_status()?,
            };
        }
    }

    /// Tells the guest all that it needs after boot. The clock is filled in when `setup` has none.
    ///
    /// # Errors
    /// [`ProtoError::Failed`] with what could not be done, or the stream's.
    pub fn setup(&mut self, mut setup: Setup) -> Result<(), ProtoError> {
        setup.clock.get_or_insert_with(now);
        self.done(Operation::Setup(setup))
    }

    /// Sets the guest's wall clock to the host's.
    ///
    /// # Errors
    /// As [`Control::setup`].
    pub fn set_clock(&mut self) -> Result<(), ProtoError> {
        self.done(Operation::SetClock(now()))
    }

    /// Binds more shares to their paths.
    ///
    /// # Errors
    /// As [`Control::setup`].
    pub fn mount(&mut self, shares: Vec<Share>) -> Result<(), ProtoError> {
        self.done(Operation::Mount(Mount { shares }))
    }

    /// Mixes entropy into the guest's pool.
    ///
    /// # Errors
    /// As [`Control::setup`].
    pub fn seed(&mut self, bytes: Vec<u8>) -> Result<(), ProtoError> {
        self.done(Operation::Seed(Seed { bytes }))
    }

    /// Makes the guest trust these certificates (DER, one each) besides its own roots, instead of those that it was given before.
    ///
    /// # Errors
    /// As [`Control::setup`].
    pub fn set_trust(&mut self, certificates: Vec<Vec<u8>>) -> Result<(), ProtoError> {
        self.done(Operation::SetTrust(Trust { certificates }))
    }

    /// Gives the sessions that begin from now on these variables (`NAME=VALUE`), instead of those that were given before.
    ///
    /// # Errors
    /// As [`Control::setup`].
    pub fn set_environment(&mut self, variables: Vec<Vec<u8>>) -> Result<(), ProtoError> {
        self.done(Operation::SetEnvironment(Environment { variables }))
    }

    /// Asks for the status now.
    ///
    /// # Errors
    /// As [`Control::setup`].
    pub fn get_status(&mut self) -> Result<Status, ProtoError> {
        match self.ask(Operation::GetStatus(Empty {}))? {
            Outcome::Status(status) => {
                self.status = status.clone();
                Ok(status)
            }
            _ => Err(ProtoError::Malformed(kind::REPLY)),
        }
    }

    /// Asks what the guest uses.
    ///
    /// # Errors
    /// As [`Control::setup`].
    pub fn metrics(&mut self) -> Result<Metrics, ProtoError> {
        match self.ask(Operation::GetMetrics(Empty {}))? {
            Outcome::Metrics(metrics) => Ok(metrics),
            _ => Err(ProtoError::Malformed(kind::REPLY)),
        }
    }

    /// Asks the guest to power off; what runs has `timeout` to end. Returns when the guest has begun; the machine ends by itself.
    ///
    /// # Errors
    /// As [`Control::setup`].
    pub fn shutdown(&mut self, timeout: Duration) -> Result<(), ProtoError> {
        self.go_down(timeout, false)
    }

    /// As [`Control::shutdown`], but with a reset of the machine at the end.
    ///
    /// # Errors
    /// As [`Control::setup`].
    pub fn reboot(&mut self, timeout: Duration) -> Result<(), ProtoError> {
        self.go_down(timeout, true)
    }

    fn go_down(&mut self, timeout: Duration, reboot: bool) -> Result<(), ProtoError> {
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        self.done(Operation::Shutdown(Shutdown { timeout_ms, reboot }))
    }

    /// Asks for the lines of the agent's and dockerd's logs; they come with [`Control::next_event`], which this connection is for
    /// from here on.
    ///
    /// # Errors
    /// As [`Control::setup`].
    pub fn follow_logs(&mut self) -> Result<(), ProtoError> {
        self.done(Operation::FollowLogs(Empty {}))
    }

    /// Waits for the next line of a log, or change of the status.
    ///
    /// # Errors
    /// The stream's; [`ProtoError::Closed`] when the guest is gone.
    pub fn next_event(&mut self) -> Result<Happening, ProtoError> {
        loop {
            match self.frames.read_frame()?.ok_or(ProtoError::Closed)? {
                kind::EVENT => {
                    if let Some(happening) = self.frames.message::<Event>()?.happening {
                        return Ok(happening);
                    }
                }
                SKIPPABLE.. => {}
                other => return Err(ProtoError::UnexpectedFrame(other)),
            }
        }
    }

    fn done(&mut self, operation: Operation) -> Result<(), ProtoError> {
        match self.ask(operation)? {
            Outcome::Done(_) => Ok(()),
            _ => Err(ProtoError::Malformed(kind::REPLY)),
        }
    }

    fn ask(&mut self, operation: Operation) -> Result<Outcome, ProtoError> {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let request = Request { id, operation: Some(operation) };
        frame::write_message(self.frames.get_mut(), kind::REQUEST, &request)?;
        loop {
            match self.frames.read_frame()?.ok_or(ProtoError::Closed)? {
                kind::REPLY => {
                    let reply: Reply = self.frames.message()?;
                    if reply.id != id {
                        continue;
                    }
                    return match reply.outcome {
                        Some(Outcome::Failure(failure)) => Err(ProtoError::Failed(failure.message)),
                        Some(outcome) => Ok(outcome),
                        None => Err(ProtoError::Malformed(kind::REPLY)),
                    };
                }
                kind::EVENT => {
                    if let Some(Happening::Status(status)) = self.frames.message::<Event>()?.happening {
                        self.status = status.clone();
                        if self.waiting.len() >= MAX_WAITING {
                            self.waiting.pop_front();
                        }
                        self.waiting.push_back(status);
                    }
                }
                SKIPPABLE.. => {}
                other => return Err(ProtoError::UnexpectedFrame(other)),
            }
        }
    }
}

fn now() -> SetClock {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    SetClock { seconds: now.as_secs(), nanos: now.subsec_nanos() }
}
