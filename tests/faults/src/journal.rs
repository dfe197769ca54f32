//! A journal that a guest writes and that this side keeps: a number that was said to be durable must be there after anything.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use e2e::{Case, Verdict, World, ensure, eventually};

/// The program, which a guest runs to write and anybody to check.
pub const PROGRAM: &str = include_str!("journal.py");
const NAME: &str = "journal.py";

/// What is known of a sandbox's journal.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    /// The last number that the guest said to be durable.
    pub last: u64,
}

/// A guest's program that writes it.
#[derive(Debug)]
pub struct Writer {
    client: Child,
    last: Arc<AtomicU64>,
    reader: Option<JoinHandle<()>>,
}

impl Journal {
    /// An empty one of the sandbox with this workspace.
    pub fn new(folder: &Path) -> Result<Self, Verdict> {
        std::fs::write(folder.join(NAME), PROGRAM)?;
        Ok(Self { folder: folder.to_owned(), last: 0 })
    }

    /// Starts the sandbox, if need be, and the writer in it, where the last one ended.
    pub fn write(&self, world: &World) -> Result<Writer, Verdict> {
        let mut arguments = world.interactive();
        arguments.extend(["--", "-c"].map(str::to_owned));
        arguments.push(format!("exec python3 {NAME} write {}", self.last + 1));
        let mut client = world
            .viv(&self.folder, arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let out = client.stdout.take().ok_or_else(|| Verdict::Wrong("the client has no output".into()))?;
        let last = Arc::new(AtomicU64::new(self.last));
        let heard = last.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if let Ok(number) = line.parse() {
                    heard.fetch_max(number, Ordering::SeqCst);
                }
            }
        });
        Ok(Writer { client, last, reader: Some(reader) })
    }

    /// All that was said is there. Starts the sandbox, if need be.
    pub fn check(&self, world: &World) -> Case {
        let said = world.shell_ok(&self.folder, &format!("python3 {NAME} check {}", self.last))?;
        ensure(said == "whole", format!("of {} durable records these are lost:\n{said}", self.last))
    }
}

impl Writer {
    /// The last number that came.
    pub fn last(&self) -> u64 {
        self.last.load(Ordering::SeqCst)
    }

    /// Waits until it has written.
    pub fn wait(&self) -> Case {
        let before = self.last();
        eventually("a record from the guest", || self.last() > before)
    }

    /// Waits for the end of its client and of its output, and notes the last number that was said.
    pub fn end(mut self, journal: &mut Journal) -> Result<(), Verdict> {
        self.client.wait()?;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        journal.last = self.last();
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}
