//! What the end-to-end cases share: the real `viv`, a home of its own, a terminal, and a record of what was skipped.
//!
//! Everything is done as a user does it, through the program. The cache (packages, base image) lies in the target folder
//! and is kept between runs; the state (sandboxes) is new each time and deleted at the end.

mod dice;
mod harness;
mod limits;
mod terminal;

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub use dice::Dice;
pub use harness::{Groups, Named, run, run_in, run_in_lanes, target};
pub use limits::Limits;
pub use terminal::Terminal;

/// The program under test and the folders that it uses.
#[derive(Debug)]
pub struct World {
    viv: PathBuf,
    cache: PathBuf,
    root: tempfile::TempDir,
    flags: Vec<String>,
}

/// Why a case could not be tried here; it is counted and shown.
#[derive(Debug)]
pub enum Verdict {
    /// Something is not as it should be.
    Wrong(String),
    /// It cannot be tried on this machine.
    Skipped(String),
}

impl<E: std::error::Error> From<E> for Verdict {
    fn from(error: E) -> Self {
        Self::Wrong(error.to_string())
    }
}

/// What a case comes to.
pub type Case = Result<(), Verdict>;

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// Its exit code; 256 and the signal when it was killed.
    pub code: i32,
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error, as text.
    pub err: String,
}

impl Said {
    /// The output as text without the last line's end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).trim_end().to_owned()
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let code = output.status.code().unwrap_or_else(|| 256 + output.status.signal().unwrap_or(0));
        Self { code, out: output.stdout, err: String::from_utf8_lossy(&output.stderr).into_owned() }
    }
}

/// Fails the case unless the condition holds.
pub fn ensure(condition: bool, otherwise: impl Into<String>) -> Case {
    if condition { Ok(()) } else { Err(Verdict::Wrong(otherwise.into())) }
}

/// Whether the long cases were asked for: `VIV_TESTS=all`. They do not fit in the time that a change may take to be checked.
pub fn long_cases() -> bool {
    std::env::var_os("VIV_TESTS").is_some_and(|value| value == "all")
}

/// Why a long case was skipped.
pub const LONG: &str = "takes long: VIV_TESTS=all runs it";

/// Where downloads and images are kept: what `VIV_E2E_CACHE` names, else the user's own cache, so that all tests and the
/// user share one base image.
pub fn cache_home() -> PathBuf {
    let named = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let own = || named("HOME").unwrap_or_else(|| PathBuf::from("/root")).join(".cache");
    named("VIV_E2E_CACHE").or_else(|| named("XDG_CACHE_HOME")).unwrap_or_else(own)
}

impl World {
    /// Builds `viv` and makes the folders. `VIV_BIN` names a program to test instead, `VIV_E2E_FLAGS` words for
    /// every `viv run` (such as `--engine kvm`), `VIV_E2E_CACHE` another cache.
    pub fn new(target: &Path) -> Result<Self, String> {
        let viv = match std::env::var_os("VIV_BIN") {
            Some(path) => PathBuf::from(path),
            None => build(target)?,
        };
        Self::with(viv)
    }

    /// Makes the folders for this program.
    pub(crate) fn with(viv: PathBuf) -> Result<Self, String> {
        let cache = cache_home();
        std::fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
        // Not below /tmp, which is often small and in memory.
        let root = tempfile::Builder::new()
            .prefix("viv-e2e-")
            .tempdir_in("/var/tmp")
            .map_err(|error| error.to_string())?;
        let flags = std::env::var("VIV_E2E_FLAGS").unwrap_or_default();
        let flags = flags.split_ascii_whitespace().map(str::to_owned).collect();
        let root_path = root.path().canonicalize().map_err(|error| error.to_string())?;
        for folder in ["home", "work"] {
            std::fs::create_dir(root_path.join(folder)).map_err(|error| error.to_string())?;
        }
        Ok(Self { viv, cache, root, flags })
    }

    /// A new project folder with this name.
    pub fn project(&self, name: &str) -> PathBuf {
        let path = self.root.path().join("work").join(name);
        std::fs::create_dir_all(&path).expect("the test's own folder can be written");
        path
    }

    /// The folder with all state of the program under test.
    pub fn state(&self) -> PathBuf {
        self.root.path().join("home/state/vivarium")
    }

    /// The folder of the sandbox with this name, found as a user's program finds it.
    ///
    /// # Errors
    /// `ls` does not list it.
    pub fn folder(&self, name: &str) -> Result<PathBuf, Verdict> {
        let listed = self.run(&["ls", "--json"])?.text();
        let id = listed
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .find(|row| row["name"] == name)
            .and_then(|row| Some(row["id"].as_str()?.to_owned()));
        let id = id.ok_or_else(|| Verdict::Wrong(format!("ls does not list {name}: {listed}")))?;
        Ok(self.state().join("sandboxes").join(id))
    }

    /// The folder that holds downloads and images.
    pub fn cache(&self) -> PathBuf {
        self.cache.join("vivarium")
    }

    /// The program's own path.
    pub fn program(&self) -> &Path {
        &self.viv
    }

    /// `viv` with arguments, to be run in `folder`.
    pub fn viv<S: AsRef<OsStr>>(&self, folder: &Path, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.viv);
        self.environment(&mut command, folder);
        command.args(arguments);
        command
    }

    /// The environment of a user with nothing but these folders.
    pub fn environment(&self, command: &mut Command, folder: &Path) {
        let home = self.root.path().join("home");
        command
            .env_clear()
            .env("HOME", &home)
            .env("XDG_STATE_HOME", home.join("state"))
            .env("XDG_CACHE_HOME", &self.cache)
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TERM", "xterm-256color")
            .current_dir(folder);
        for kept in
            ["VIV_LOG", "VIV_DEBIAN_MIRROR", "VIV_NPM_REGISTRY", "http_proxy", "https_proxy", "SSL_CERT_FILE"]
        {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
    }

    /// `viv run shell FOLDER -- -c SCRIPT` with this input.
    pub fn shell(&self, folder: &Path, script: &str, input: &[u8]) -> Result<Said, Verdict> {
        let mut arguments = vec!["run", "shell", "."];
        arguments.extend(self.flags.iter().map(String::as_str));
        arguments.extend(["--", "-c", script]);
        say(self.viv(folder, arguments), input)
    }

    /// [`Self::shell`] that must end with 0; gives its output.
    pub fn shell_ok(&self, folder: &Path, script: &str) -> Result<String, Verdict> {
        let said = self.shell(folder, script, b"")?;
        ensure(
            said.code == 0,
            format!("`{script}` ended with {}:\n{}\n{}", said.code, said.text(), said.err),
        )?;
        Ok(said.text())
    }

    /// `viv` with these arguments in no particular folder.
    pub fn run(&self, arguments: &[&str]) -> Result<Said, Verdict> {
        say(self.viv(&self.root.path().join("work"), arguments), b"")
    }

    /// The arguments that start an interactive session.
    pub fn interactive(&self) -> Vec<String> {
        let mut arguments: Vec<String> = ["run", "shell", "."].map(str::to_owned).into();
        arguments.extend(self.flags.iter().cloned());
        arguments
    }

    /// Deletes all sandboxes, whatever the cases left.
    pub fn clean_up(&self) {
        let names = self.run(&["ls", "-q"]).map(|said| said.text()).unwrap_or_default();
        for name in names.lines() {
            let _ = self.run(&["rm", "-f", name]);
        }
    }
}

/// Runs a command with this input, while its output is read.
pub fn say(mut command: Command, input: &[u8]) -> Result<Said, Verdict> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stdin = child.stdin.take();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if let Some(mut stdin) = stdin {
                // A command that reads no input breaks the pipe.
                let _ = stdin.write_all(input);
            }
        });
        Ok(Said::from(child.wait_with_output()?))
    })
}

/// How long something may take; for tests that would hang, nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(300);

/// Waits until something is so, and says what was waited for if it never is.
pub fn eventually(what: &str, is_so: impl FnMut() -> bool) -> Case {
    within(PATIENCE, what, is_so)
}

/// As [`eventually`], where what comes later is another thing.
pub fn within(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) -> Case {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if is_so() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(Verdict::Wrong(format!("it never came: {what}")))
}

/// Ends a child that may still run.
pub fn end(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// The cargo that runs this test, to build further programs with.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What cargo tells a test of its own package is not for that one: build scripts that look at it would run again for
    // each test, and all that depends on them be built again.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"]
            .iter()
            .any(|of| text.starts_with(of))
        {
            command.env_remove(&name);
        }
    }
    command
}

/// Builds the released `viv` into this target folder and gives its path.
///
/// # Errors
/// A sentence that says what failed.
pub fn build(target: &Path) -> Result<PathBuf, String> {
    let status = cargo()
        .args(["build", "--release", "--package", "viv", "--target-dir"])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .map_err(|error| format!("cargo: {error}"))?;
    let viv = target.join("release/viv");
    if status.success() && viv.is_file() { Ok(viv) } else { Err("viv could not be built".into()) }
}
