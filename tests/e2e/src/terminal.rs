//! A terminal with a program in it, as a user sits before one.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::{Case, PATIENCE, Verdict};

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// What has appeared on the screen so far.
type Screen = Arc<(Mutex<Vec<u8>>, Condvar)>;

/// A pseudo-terminal and the program in it.
#[derive(Debug)]
pub struct Terminal {
    master: std::fs::File,
    /// Kept open so that the modes can be looked at when the program has ended.
    slave: OwnedFd,
    child: Child,
    screen: Screen,
}

impl Terminal {
    /// Starts the program as the terminal's session, as a login does. Needs `setsid` of util-linux.
    pub fn start(command: &Command, rows: u16, columns: u16) -> Result<Self, Verdict> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        let slave = rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty())?;
        let mut session = Command::new("setsid");
        session.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args()).env_clear();
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                session.env(name, value);
            }
        }
        if let Some(folder) = command.get_current_dir() {
            session.current_dir(folder);
        }
        // Before the program looks.
        tcsetwinsize(&master, size(rows, columns))?;
        let end = |slave: &OwnedFd| slave.try_clone().map(Stdio::from);
        session.stdin(end(&slave)?).stdout(end(&slave)?).stderr(end(&slave)?);
        let mut terminal = Self {
            master: std::fs::File::from(master),
            slave,
            child: session.spawn()?,
            screen: Screen::default(),
        };
        terminal.watch()?;
        Ok(terminal)
    }

    fn watch(&mut self) -> Case {
        let mut master = self.master.try_clone()?;
        let screen = self.screen.clone();
        std::thread::spawn(move || {
            let mut piece = [0u8; 4096];
            while let Ok(count) = master.read(&mut piece) {
                let (text, changed) = &*screen;
                text.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(piece.get(..count).unwrap_or_default());
                changed.notify_all();
                if count == 0 {
                    break;
                }
            }
        });
        Ok(())
    }

    /// Makes the window another size; the kernel tells the program.
    pub fn resize(&self, rows: u16, columns: u16) -> Case {
        Ok(tcsetwinsize(&self.master, size(rows, columns))?)
    }

    /// Types.
    pub fn keys(&mut self, text: &str) -> Case {
        Ok(self.master.write_all(text.as_bytes())?)
    }

    /// Waits until this text has appeared since the last call that found one, and forgets all before it.
    pub fn wait_for(&self, text: &str) -> Case {
        if self.appears(text, PATIENCE) { Ok(()) } else { Err(self.absent(text)) }
    }

    /// The same for texts of writers that do not wait for each other: they may appear in any order.
    pub fn wait_for_all(&self, texts: &[&str]) -> Case {
        let all = |seen: &[u8]| {
            texts.iter().map(|text| end_of(seen, text)).try_fold(0, |last, end| Some(last.max(end?)))
        };
        if self.comes(all, PATIENCE) { Ok(()) } else { Err(self.absent(&texts.join(" and "))) }
    }

    /// What has appeared since the last text that was waited for.
    pub fn screen(&self) -> String {
        let seen = self.screen.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// Types this again and again until the text has appeared.
    pub fn type_until(&mut self, keys: &str, text: &str) -> Case {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            self.keys(keys)?;
            if self.appears(text, Duration::from_secs(1)) {
                return Ok(());
            }
        }
        Err(self.absent(text))
    }

    fn absent(&self, text: &str) -> Verdict {
        Verdict::Wrong(format!("{text:?} did not appear; there was {:?}", self.screen()))
    }

    fn appears(&self, text: &str, patience: Duration) -> bool {
        self.comes(|seen| end_of(seen, text), patience)
    }

    /// Whether this finds something before the patience is over; gives where it ends, and all before that is forgotten.
    fn comes(&self, find: impl Fn(&[u8]) -> Option<usize>, patience: Duration) -> bool {
        let (screen, changed) = &*self.screen;
        let deadline = Instant::now() + patience;
        let mut seen = screen.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(end) = find(&seen) {
                seen.drain(..end);
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            (seen, _) = changed.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the program's end and gives its code.
    pub fn end(&mut self) -> Result<i32, Verdict> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code().unwrap_or(256));
            }
            if Instant::now() >= deadline {
                return Err(Verdict::Wrong("the program in the terminal did not end".into()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether the terminal is as a shell left it: lines and echo, not raw.
    pub fn is_cooked(&self) -> Result<bool, Verdict> {
        use rustix::termios::{LocalModes, tcgetattr};
        let modes = tcgetattr(self.slave.as_fd())?.local_modes;
        Ok(modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG))
    }
}

/// Where a text ends that is among these bytes.
fn end_of(seen: &[u8], text: &str) -> Option<usize> {
    let at = seen.windows(text.len()).position(|window| window == text.as_bytes())?;
    Some(at + text.len())
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
