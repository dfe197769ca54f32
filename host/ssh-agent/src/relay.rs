//! The way between a guest's connections and the user's agent, through a [`Filter`] each.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use crate::filter::{Event, FAILURE, Filter, Grants, Verdict};
use crate::wire::{Frames, MAX_MESSAGE};

/// Connections at one time; what comes on others is closed.
const MOST: usize = 64;

/// All connections of one guest. Judges and asks on the thread that feeds it: an agent that asks its user holds the guest's other questions
/// up, and nobody else's.
#[derive(Debug)]
pub struct Relay {
    grants: Grants,
    agent: PathBuf,
    connections: BTreeMap<u32, Connection>,
}

#[derive(Debug)]
struct Connection {
    filter: Filter,
    frames: Frames,
    /// From the first request on that passes.
    agent: Option<UnixStream>,
}

/// What a connection gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// These bytes; there may be none.
    Bytes(Vec<u8>),
    /// Its end.
    Closed,
}

impl Relay {
    /// To the agent behind a socket of this host.
    pub fn new(grants: Grants, agent: PathBuf) -> Self {
        Self { grants, agent, connections: BTreeMap::new() }
    }

    /// Takes what came on a connection; nothing at all is its end. `told` hears what was decided.
    pub fn take(&mut self, number: u32, bytes: &[u8], told: &mut dyn FnMut(&Event)) -> Answer {
        if bytes.is_empty() {
            self.connections.remove(&number);
            return Answer::Closed;
        }
        if !self.connections.contains_key(&number) && self.connections.len() >= MOST {
            return Answer::Closed;
        }
        let (grants, agent) = (&self.grants, &self.agent);
        let connection = self.connections.entry(number).or_insert_with(|| Connection {
            filter: Filter::new(grants.clone()),
            frames: Frames::default(),
            agent: None,
        });
        connection.frames.feed(bytes);
        let mut out = Vec::new();
        loop {
            match connection.frames.next_message() {
                Ok(Some(message)) => {
                    let answer = connection.answer(&message, agent, told);
                    out.extend_from_slice(&Frames::framed(&answer));
                }
                Ok(None) => return Answer::Bytes(out),
                Err(_) => {
                    self.connections.remove(&number);
                    return Answer::Closed;
                }
            }
        }
    }
}

impl Connection {
    fn answer(&mut self, message: &[u8], agent: &PathBuf, told: &mut dyn FnMut(&Event)) -> Vec<u8> {
        match self.filter.request(message) {
            Verdict::Answer(answer, event) => {
                told(&event);
                answer
            }
            Verdict::Pass(event) => {
                told(&event);
                match self.asked(message, agent) {
                    Ok(answer) => self.filter.answer(&event, &answer),
                    Err(_) => {
                        // The next request finds it again, or not.
                        self.agent = None;
                        vec![FAILURE]
                    }
                }
            }
        }
    }

    fn asked(&mut self, message: &[u8], agent: &PathBuf) -> io::Result<Vec<u8>> {
        let stream = match &mut self.agent {
            Some(stream) => stream,
            none => none.insert(UnixStream::connect(agent)?),
        };
        stream.write_all(&Frames::framed(message))?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    }
}
