//! Where a value comes from that is not kept here: a variable of the host, a password manager's own program, or any command.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::MAX_VALUE;
use super::error::{Error, Result};
use crate::secret::Secret;

/// How long a program may take: some ask their user.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a value that came from a program is used.
pub const DEFAULT_REFRESH: Duration = Duration::from_secs(55 * 60);

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// It is kept here.
    Kept,
    /// A variable of the host, read at each start of a sandbox.
    Env(String),
    /// A reference that a program resolves.
    Ref(Reference),
    /// A command for the shell.
    Command(String),
    /// Somebody signs in inside the guest.
    SignIn,
}

impl Source {
    /// In a word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Env(_) => "environment",
            Self::Ref(_) => "reference",
            Self::Command(_) => "command",
            Self::SignIn => "sign-in",
        }
    }

    /// Whether a program is run for it.
    pub fn is_dynamic(&self) -> bool {
        matches!(self, Self::Ref(_) | Self::Command(_))
    }
}

/// A reference to a value elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    text: String,
    program: String,
    arguments: Vec<String>,
    /// The field of a JSON object that the program prints.
    field: Option<String>,
}

impl Reference {
    /// The program that resolves it.
    pub fn program(&self) -> &str {
        &self.program
    }

    /// How the program is called, as one types it in a shell.
    fn command_line(&self) -> String {
        let words: Vec<&String> = std::iter::once(&self.program).chain(&self.arguments).collect();
        policy::command_line(&words)
    }
}

impl std::str::FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::BadReference { text: text.to_owned() };
        if text.chars().any(char::is_control) || text.len() > 1024 {
            return Err(bad());
        }
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let (program, arguments, field): (_, Vec<String>, _) = if let Some(rest) = text.strip_prefix("op://")
        {
            if rest.split('/').filter(|part| !part.is_empty()).count() < 3 {
                return Err(bad());
            }
            ("op", words(&["read", "--no-newline", text]), None)
        } else if text.starts_with("arn:") {
            let (arn, field) =
                text.split_once('#').map_or((text, None), |(arn, field)| (arn, Some(field.to_owned())));
            let parts: Vec<&str> = arn.split(':').collect();
            let [_, partition, "secretsmanager", region, _account, "secret", _name, ..] = parts.as_slice()
            else {
                return Err(bad());
            };
            if !partition.starts_with("aws") || region.is_empty() {
                return Err(bad());
            }
            let get = [
                "secretsmanager",
                "get-secret-value",
                "--region",
                region,
                "--secret-id",
                arn,
                "--query",
                "SecretString",
                "--output",
                "text",
            ];
            ("aws", words(&get), field)
        } else if let Some(rest) = text.strip_prefix("vault:") {
            let (path, field) = rest
                .split_once('#')
                .filter(|(path, field)| !path.is_empty() && !field.is_empty())
                .ok_or_else(bad)?;
            if path.starts_with('-') {
                return Err(bad());
            }
            ("vault", vec!["kv".into(), "get".into(), format!("-field={field}"), path.to_owned()], None)
        } else {
            return Err(bad());
        };
        Ok(Self { text: text.to_owned(), program: program.to_owned(), arguments, field })
    }
}

impl TryFrom<String> for Reference {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> String {
        reference.text
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// Gets a value now. `None` for sources that have none of their own.
pub(crate) fn fetch(source: &Source) -> Result<Option<Secret>> {
    fetched(source).map_err(|error| match error {
        Error::Source { what, why, .. } => Error::Source { what, why, hint: next_step(source) },
        other => other,
    })
}

/// What can be done where a source gives nothing.
fn next_step(source: &Source) -> Option<String> {
    Some(match source {
        Source::Kept | Source::SignIn => return None,
        Source::Env(name) => {
            format!(
                "export {name}=… in the shell that viv is started from; --no-verify does not look at it now"
            )
        }
        Source::Ref(reference) => {
            format!("run it yourself to see what it says:  {}", reference.command_line())
        }
        Source::Command(_) => "run it yourself to see what it says".into(),
    })
}

fn fetched(source: &Source) -> Result<Option<Secret>> {
    match source {
        Source::Kept | Source::SignIn => Ok(None),
        Source::Env(name) => {
            let what = format!("the variable {name}");
            let value = std::env::var_os(name).ok_or_else(|| failed(&what, "is not set"))?;
            if value.is_empty() {
                return Err(failed(&what, "is empty"));
            }
            let value = Secret::new(std::os::unix::ffi::OsStringExt::into_vec(value));
            trimmed(value, &what).map(Some)
        }
        Source::Ref(reference) => {
            let mut command = Command::new(&reference.program);
            command.args(&reference.arguments);
            let what = format!("the program {}", reference.program);
            let value = run(command, &what, PATIENCE)?;
            match &reference.field {
                None => trimmed(value, &what).map(Some),
                Some(field) => json_field(&value, field, &what).map(Some),
            }
        }
        Source::Command(text) => {
            let mut command = Command::new("/bin/sh");
            command.arg("-c").arg(text);
            let what = "the command for the value";
            trimmed(run(command, what, PATIENCE)?, what).map(Some)
        }
    }
}

fn failed(what: &str, why: impl Into<String>) -> Error {
    Error::Source { what: what.to_owned(), why: why.into(), hint: None }
}

/// Without the line end that most programs print.
fn trimmed(value: Secret, what: &str) -> Result<Secret> {
    let bytes = value.expose();
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    if bytes.is_empty() {
        return Err(failed(what, "gave nothing"));
    }
    Ok(Secret::new(bytes.to_vec()))
}

fn json_field(value: &Secret, field: &str, what: &str) -> Result<Secret> {
    let missing = || failed(what, format!("gave no JSON object with a text \"{}\"", field.escape_debug()));
    let object: std::collections::BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(value.expose()).map_err(|_| missing())?;
    match object.into_iter().find(|(name, _)| name == field) {
        Some((_, serde_json::Value::String(text))) if !text.is_empty() => Ok(Secret::from(text)),
        _ => Err(missing()),
    }
}

/// Runs a program; its output is the value. What it says on the standard error may have the value in it, and is not shown.
fn run(mut command: Command, what: &str, patience: Duration) -> Result<Secret> {
    let fail = |why: String| failed(what, why);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => fail("is not installed".into()),
        _ => fail(format!("cannot be started: {error}")),
    })?;
    let Some(output) = child.stdout.take() else { return Err(fail("has no output".into())) };
    let (sender, receiver) = mpsc::channel();
    let reader = move || {
        // Room for all that is taken, so that the buffer never moves.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_VALUE.saturating_add(2)));
        let limit = u64::try_from(MAX_VALUE.saturating_add(1)).unwrap_or(u64::MAX);
        let outcome = output.take(limit).read_to_end(&mut bytes);
        let _ = sender.send(outcome.map(|_| bytes));
    };
    std::thread::Builder::new()
        .name("source".into())
        .spawn(reader)
        .map_err(|error| fail(format!("cannot be read: {error}")))?;
    let end = Instant::now().checked_add(patience);
    let read = receiver.recv_timeout(patience);
    let bytes = match read {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => {
            stop(&mut child);
            return Err(fail(format!("cannot be read: {error}")));
        }
        Err(_) => {
            stop(&mut child);
            return Err(fail(format!("gave nothing within {} seconds", patience.as_secs())));
        }
    };
    if bytes.len() > MAX_VALUE {
        stop(&mut child);
        return Err(fail(format!("gave more than {MAX_VALUE} bytes")));
    }
    // The output is closed; it should end at once.
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(Secret::from(bytes)),
            Ok(Some(status)) => {
                let code =
                    status.code().map_or_else(|| "a signal".to_owned(), |code| format!("exit code {code}"));
                return Err(fail(format!("ended with {code}")));
            }
            Ok(None) if end.is_some_and(|end| Instant::now() < end) => {
                std::thread::sleep(Duration::from_millis(10))
            }
            Ok(None) => {
                stop(&mut child);
                return Err(fail("does not end".into()));
            }
            Err(error) => return Err(fail(format!("was lost: {error}"))),
        }
    }
}

/// Ends a program and all that it started.
fn stop(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(text: &str) -> Result<Option<Secret>> {
        fetch(&Source::Command(text.into()))
    }

    #[test]
    fn a_command_gives_its_output() {
        assert_eq!(command("printf 'value\\r\\n'").unwrap().unwrap().expose(), b"value");
        assert_eq!(command("echo ' two words '").unwrap().unwrap().expose(), b" two words ");
    }

    #[test]
    fn a_command_that_fails_says_so_without_its_output() {
        let error = command("echo the-value; echo the-value >&2; exit 3").unwrap_err().to_string();
        assert!(error.contains("exit code 3") && !error.contains("the-value"), "{error}");
        assert!(command("true").unwrap_err().to_string().contains("gave nothing"));
        assert!(command("head -c 100000 /dev/zero").unwrap_err().to_string().contains("more than"));
        assert!(command("kill -9 $$").unwrap_err().to_string().contains("signal"));
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_all_that_it_started() {
        let mut slow = Command::new("/bin/sh");
        slow.arg("-c").arg("sleep 1000 & sleep 1000");
        let error = run(slow, "it", Duration::from_millis(200)).unwrap_err().to_string();
        assert!(error.contains("within"), "{error}");
        let missing = run(Command::new("/no/such/program"), "it", PATIENCE).unwrap_err().to_string();
        assert!(missing.contains("not installed"), "{missing}");
    }

    #[test]
    fn what_can_be_done_fits_the_source() {
        let hint = |source: Source| fetch(&source).unwrap_err().hint().unwrap();
        let unset = Source::Env("VIV_TEST_NO_SUCH_VARIABLE".into());
        let error = fetch(&unset).unwrap_err().to_string();
        assert_eq!(error, "the variable VIV_TEST_NO_SUCH_VARIABLE is not set");
        let env = hint(unset);
        assert!(env.contains("export VIV_TEST_NO_SUCH_VARIABLE=") && !env.contains("run it"), "{env}");
        assert!(hint(Source::Command("exit 3".into())).contains("run it yourself"));
        let reference: Reference = "op://My Work/GitHub/it's".parse().unwrap();
        let line = "op read --no-newline 'op://My Work/GitHub/it'\\''s'";
        assert_eq!(reference.command_line(), line);
        assert!(next_step(&Source::Ref(reference)).unwrap().ends_with(line));
    }

    #[test]
    fn references_name_their_program() {
        let of = |text: &str| {
            text.parse::<Reference>()
                .map(|reference| (reference.program().to_owned(), reference.arguments.join(" ")))
        };
        assert_eq!(
            of("op://Work/GitHub/token").unwrap(),
            ("op".into(), "read --no-newline op://Work/GitHub/token".into())
        );
        let (program, arguments) =
            of("arn:aws:secretsmanager:eu-west-1:123456789012:secret:name-AbCdEf#key").unwrap();
        assert!(program == "aws" && arguments.contains("--region eu-west-1") && !arguments.contains("#key"));
        assert_eq!(
            of("vault:secret/ci#token").unwrap(),
            ("vault".into(), "kv get -field=token secret/ci".into())
        );
        for bad in
            ["", "op://a/b", "arn:aws:s3:::bucket", "vault:secret", "vault:-x#y", "https://x", "op://a/b/c\n"]
        {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_field_of_json_is_taken_alone() {
        let value = Secret::from(r#"{"user":"u","key":"k1"}"#.to_owned());
        assert_eq!(json_field(&value, "key", "it").unwrap().expose(), b"k1");
        let error = json_field(&value, "other", "it").unwrap_err().to_string();
        assert!(!error.contains("k1"));
        assert!(json_field(&Secret::from("k1".to_owned()), "key", "it").is_err());
    }
}
