//! A client that runs beside the test, and what it has said so far.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use e2e::{Said, Verdict};

/// A client without input, whose errors are heard as they come. Its output is read at its end: it must fit into a pipe.
#[derive(Debug)]
pub struct Session {
    client: Child,
    errors: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Session {
    /// Starts it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut command: Command) -> Result<Self, Verdict> {
        let mut client =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stderr = client.stderr.take().ok_or_else(|| Verdict::Wrong("no standard error".into()))?;
        let errors = Arc::default();
        let heard = Arc::clone(&errors);
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut bytes) {
                lock(&heard).push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Ok(Self { client, errors, reader })
    }

    /// What it has said on its standard error so far.
    pub fn errors(&self) -> String {
        lock(&self.errors).clone()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// Its output cannot be read.
    pub fn end(self) -> Result<Said, Verdict> {
        let mut said = Said::from(self.client.wait_with_output()?);
        let _ = self.reader.join();
        said.err = lock(&self.errors).clone();
        Ok(said)
    }
}

fn lock(errors: &Mutex<String>) -> MutexGuard<'_, String> {
    errors.lock().unwrap_or_else(PoisonError::into_inner)
}
