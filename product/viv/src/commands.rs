//! One module for each verb.

pub(crate) mod check;
pub(crate) mod cp;
pub(crate) mod diagnose;
pub(crate) mod exec;
pub(crate) mod inspect;
pub(crate) mod lifecycle;
pub(crate) mod logs;
pub(crate) mod ls;
pub(crate) mod policy;
pub(crate) mod ports;
pub(crate) mod prune;
pub(crate) mod run;
pub(crate) mod secret;

use std::time::{Duration, Instant};

use sandbox::client::{self, Held};
use sandbox::control::Attention;
use sandbox::escape::{LONGEST, escaped};
use sandbox::folder::{Damaged, Sandbox};
use sandbox::network::Handover;
use sandbox::places::Places;
use sandbox::spec::State;

use crate::failure::Failure;
use crate::setup;

/// The exit codes of a process that was hung up on, killed, or asked to end, as all are when their sandbox stops.
const HUNG_UP: u8 = 129;
const ENDED: [u8; 3] = [HUNG_UP, 137, 143];

/// What most sessions are told of the network.
pub(crate) const HINTS: Attention = Attention { hints: true, asks: false, observes: false, keeps: true };

/// Whether questions may be asked and progress drawn.
pub(crate) fn may_interact(no_input: bool) -> bool {
    use std::io::IsTerminal;
    let quiet = no_input || std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false");
    !quiet && std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Holds a sandbox that was made before; its image is made again if it has to be.
pub(crate) fn hold_known(
    places: &Places,
    sandbox: &Sandbox,
    attention: Attention,
    interactive: bool,
) -> Result<Held, Failure> {
    if !sandbox.is_running() {
        setup::restore_image(places, sandbox, interactive)?;
    }
    hold(sandbox, attention, interactive)
}

/// Holds a sandbox whose image is there, with a word to the user when that takes more than a moment.
pub(crate) fn hold(sandbox: &Sandbox, attention: Attention, interactive: bool) -> Result<Held, Failure> {
    let mut spinner = None;
    let starting = || {
        if interactive {
            spinner =
                Some(Spinner::saying(format!("Starting {}", sandbox.spec.name), Duration::from_secs(1)));
        }
    };
    // What the sandbox's shim gets from this process when it is started by it.
    let mut given = None;
    let handover = || {
        let proxies = sandbox::network::proxies(&Places::from_env()?)?;
        let mut secrets = secret::for_shim(sandbox, interactive)?;
        let handover = Handover { proxies, secrets: std::mem::take(&mut secrets.secrets) };
        given = Some(secrets);
        Ok::<_, Failure>(handover)
    };
    let held = client::hold(sandbox, attention, handover, starting);
    drop(spinner);
    if let (Ok(Held { started: true, .. }), Some(given)) = (&held, &given) {
        secret::if_changed(sandbox, given, interactive)?;
    }
    held
}

/// The outcome of a session, with the reason when the sandbox ended under it: told with the failure, or on its own when the
/// session's process was hung up on in time.
pub(crate) fn say_if_stopped(sandbox: &Sandbox, outcome: Result<u8, Failure>) -> Result<u8, Failure> {
    let rounds = if matches!(outcome, Ok(HUNG_UP)) { 10 } else { 1 };
    if outcome.as_ref().is_ok_and(|code| ENDED.contains(code))
        && (0..rounds).any(|round| {
            // A guest that powers off hangs up on its sessions a moment before its shim hears of it.
            std::thread::sleep(Duration::from_millis(if round == 0 { 0 } else { 50 }));
            sandbox.state() != State::Running
        })
        && let Some(reason) = end_of(sandbox)
    {
        eprintln!("viv: {} is stopped: {}", sandbox.spec.name, escaped(&reason, LONGEST));
    }
    outcome.map_err(|failure| failure.because(|| end_of(sandbox)))
}

/// Says which sandboxes cannot be read; never with a next step that deletes one, which nobody has asked about.
pub(crate) fn say_damaged(damaged: &[Damaged]) {
    for one in damaged {
        let cause = escaped(&one.cause().to_string(), LONGEST);
        eprintln!("viv: {cause}   viv diagnose says what can be done");
    }
}

/// Writes to the standard output. Whoever closed it wants no more, and is told as a shell's programs tell it.
pub(crate) fn say(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new("nobody reads the output").code(crate::session::BROKEN_PIPE))
        }
        Err(error) => Err(sandbox::Error::host("cannot write the output", error).into()),
        Ok(()) => Ok(()),
    }
}

/// Why a sandbox that just ended did so, as its shim notes it before it ends, too.
pub(crate) fn end_of(sandbox: &Sandbox) -> Option<String> {
    let begun = Instant::now();
    loop {
        let state = sandbox.state();
        if state.is_over() {
            return sandbox.end(state);
        }
        // A guest that goes down has some seconds for its daemons.
        let patience = if state == State::Stopping { 30 } else { 5 };
        if begun.elapsed() >= Duration::from_secs(patience) {
            return None;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A spinner that appears only if it is still wanted after a while, and leaves no trace.
pub(crate) struct Spinner {
    bar: indicatif::ProgressBar,
    wanted: std::sync::mpsc::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Spinner {
    /// One that says this.
    fn saying(message: String, pause: Duration) -> Self {
        // Hidden from the beginning: a bar draws what it is told at once, and a line that one target drew is not cleared by the next.
        let bar = indicatif::ProgressBar::with_draw_target(None, indicatif::ProgressDrawTarget::hidden());
        Self::after(bar.with_style(indicatif::ProgressStyle::default_spinner()).with_message(message), pause)
    }

    /// One that is hidden so far.
    pub(crate) fn after(bar: indicatif::ProgressBar, pause: Duration) -> Self {
        Self::on(indicatif::ProgressDrawTarget::stderr(), bar, pause)
    }

    fn on(target: indicatif::ProgressDrawTarget, bar: indicatif::ProgressBar, pause: Duration) -> Self {
        let (wanted, over) = std::sync::mpsc::channel::<()>();
        let drawn = bar.clone();
        let draw = move || {
            if over
                .recv_timeout(pause)
                .is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                if drawn.is_hidden() {
                    drawn.set_draw_target(target);
                }
                drawn.enable_steady_tick(Duration::from_millis(100));
                let _ = over.recv();
            }
        };
        // Where no thread can be had, as with a limit of processes, nothing is drawn.
        let thread = std::thread::Builder::new().name("spinner".into()).spawn(draw).ok();
        Self { bar, wanted, thread }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        let _ = self.wanted.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.bar.finish_and_clear();
    }
}

/// `NAME=VALUE`, or `NAME` alone for the host's value; a name that the host does not have is left out, as Docker does.
pub(crate) fn environment(given: &[String]) -> Result<Vec<Vec<u8>>, Failure> {
    use std::os::unix::ffi::OsStrExt;
    let mut variables = Vec::with_capacity(given.len());
    for text in given {
        let name = text.split('=').next().unwrap_or_default();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(Failure::new(format!("\"{text}\" sets no variable"))
                .hint("-e NAME=VALUE, or -e NAME to pass the host's on"));
        }
        if text.contains('=') {
            variables.push(text.as_bytes().to_vec());
        } else if let Some(value) = std::env::var_os(text) {
            variables.push([text.as_bytes(), b"=", value.as_bytes()].concat());
        }
    }
    Ok(variables)
}

/// Lines of cells, each column as wide as its widest one.
pub(crate) fn columns<const N: usize>(lines: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| escaped(cell, LONGEST).chars().count()).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for line in lines {
        let mut out = String::new();
        for (cell, width) in line.iter().zip(widths) {
            let cell = escaped(cell, LONGEST);
            out.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(out.trim_end());
        text.push('\n');
    }
    text
}

/// A size as in the tables: "1.2 GiB".
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let number = if unit == 0 || value >= 100.0 || (value.fract() < 0.05) {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    };
    format!("{number} {}", UNITS.get(unit).unwrap_or(&"B"))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1536, "1.5 KiB"),
            (8 << 30, "8 GiB"),
            (1_288_490_189, "1.2 GiB"),
            (250 << 20, "250 MiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    /// A terminal of 140 columns, as far as a spinner uses one.
    #[derive(Clone, Debug, Default)]
    struct Screen(Arc<Mutex<Drawn>>);

    #[derive(Debug, Default)]
    struct Drawn {
        rows: Vec<String>,
        row: usize,
        times: usize,
    }

    impl Screen {
        fn rows(&self) -> Vec<String> {
            let rows = self.0.lock().unwrap().rows.clone();
            rows.iter().map(|row| row.trim_end().to_owned()).filter(|row| !row.is_empty()).collect()
        }

        fn change(&self, change: impl FnOnce(&mut Vec<String>, &mut usize)) -> io::Result<()> {
            let mut drawn = self.0.lock().unwrap();
            let Drawn { rows, row, .. } = &mut *drawn;
            rows.resize(rows.len().max(*row + 1), String::new());
            change(rows, row);
            Ok(())
        }

        fn target(&self) -> ProgressDrawTarget {
            ProgressDrawTarget::term_like(Box::new(self.clone()))
        }
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            140
        }
        fn move_cursor_up(&self, n: usize) -> io::Result<()> {
            self.change(|_, row| *row -= n)
        }
        fn move_cursor_down(&self, n: usize) -> io::Result<()> {
            self.change(|_, row| *row += n)
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            unreachable!("it begins at the left")
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            unreachable!("it begins at the left")
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)?;
            self.change(|_, row| *row += 1)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            for c in text.chars() {
                self.change(|rows, row| {
                    // What is written behind the last column wraps.
                    if rows[*row].chars().count() == 140 {
                        *row += 1;
                        rows.resize(rows.len().max(*row + 1), String::new());
                    }
                    rows[*row].push(c);
                })?;
            }
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            self.change(|rows, row| rows[*row].clear())
        }
        fn flush(&self) -> io::Result<()> {
            self.0.lock().unwrap().times += 1;
            Ok(())
        }
    }

    #[test]
    fn a_spinner_leaves_no_trace() {
        let text = "Starting shell-api";
        let hidden = || ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let shown = |screen: &Screen| ProgressBar::with_draw_target(None, screen.target());
        let bars: [&dyn Fn(&Screen) -> ProgressBar; 2] = [&|_| hidden(), &shown];
        for bar in bars {
            let screen = Screen::default();
            let bar = bar(&screen).with_style(ProgressStyle::default_spinner());
            bar.set_message(text);
            let spinner = Spinner::on(screen.target(), bar, Duration::from_millis(20));
            for _ in 0..1000 {
                if screen.0.lock().unwrap().times >= 4 {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            assert!(screen.0.lock().unwrap().times >= 4, "it is not drawn: {screen:?}");
            drop(spinner);
            assert!(screen.rows().is_empty(), "{:?}", screen.rows());
        }
        // What is over before a second draws nothing.
        let spinner = Spinner::saying(text.into(), Duration::from_secs(1));
        assert!(spinner.bar.is_hidden());
    }

    #[test]
    fn variables_with_values_are_taken_as_they_are() {
        let of = |given: &str| environment(&[given.to_owned()]);
        assert_eq!(of("A=b=c").unwrap(), [b"A=b=c".to_vec()]);
        assert!(of("VIV_NOT_SET_ANYWHERE").unwrap().is_empty());
        assert!(of("=x").is_err() && of("").is_err() && of("A B=x").is_err());
    }
}
