//! Asks for values without showing them.

use std::io::{IsTerminal, Read, Write};

use vault::Secret;
use vault::services::{self, Kind};
use vault::store::{Entry, Error, MAX_VALUE, Protection};
use zeroize::Zeroizing;

use crate::failure::{Failure, INTERRUPTED};
use crate::terminal::Raw;

/// Names a file with the passphrase.
const PASSPHRASE_FILE: &str = "VIV_VAULT_PASSPHRASE_FILE";

/// The value of a secret: asked for on a terminal, else the whole standard input.
pub(super) fn value(entry: &Entry, interactive: bool) -> Result<Secret, Failure> {
    if !std::io::stdin().is_terminal() {
        return from_stdin();
    }
    if !interactive {
        return Err(Failure::new("there is nobody to ask for the value")
            .hint(format!("pipe it in: printf %s \"$TOKEN\" | {}", again(entry))));
    }
    let service = entry.service.as_deref().and_then(services::find);
    if service.is_some_and(|service| service.kind == Kind::Aws) {
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_VALUE.saturating_mul(2)));
        for prompt in ["Access key id: ", "Secret access key: ", "Session token (empty for none): "] {
            text.extend_from_slice(hidden(prompt)?.expose());
            text.push(b'\n');
        }
        return Ok(Secret::from(text));
    }
    let title = service.map_or(entry.name.as_str(), |service| service.title.as_str());
    hidden(&format!("Value for {title} (not shown): "))
}

/// The command that was typed, as far as its beginning says which it is.
fn again(entry: &Entry) -> String {
    match &entry.service {
        Some(service) => format!("viv secret set {service}"),
        None => format!("viv secret set-custom {} …", entry.name),
    }
}

fn from_stdin() -> Result<Secret, Failure> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_VALUE.saturating_add(3)));
    let limit = u64::try_from(MAX_VALUE.saturating_add(2)).unwrap_or(u64::MAX);
    std::io::stdin()
        .lock()
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::new(format!("the standard input cannot be read: {error}")))?;
    for end in [b'\n', b'\r'] {
        if bytes.last() == Some(&end) {
            bytes.pop();
        }
    }
    if bytes.is_empty() {
        return Err(Failure::new("the standard input is empty, and no value was given")
            .hint("pipe the value in, or run it on a terminal"));
    }
    Ok(Secret::from(bytes))
}

/// A line from the terminal that is not shown. Ctrl-C ends the command, with the terminal as it was.
fn hidden(prompt: &str) -> Result<Secret, Failure> {
    let fail = |error: std::io::Error| Failure::new(format!("no answer: {error}"));
    // First, so that nothing is shown of what somebody types as soon as the question is there.
    let raw = Raw::enter().map_err(fail)?;
    eprint!("{prompt}");
    let _ = std::io::stderr().flush();
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_VALUE.saturating_add(1)));
    let outcome = loop {
        let mut byte = [0];
        match std::io::stdin().lock().read(&mut byte) {
            Ok(0) => break Err(Failure::new("the input ended before there was a value")),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => break Err(fail(error)),
            Ok(_) => match byte {
                [b'\r' | b'\n'] => break Ok(()),
                // Ctrl-C and Ctrl-D.
                [3] => break Err(Failure::new("interrupted; nothing was changed").code(INTERRUPTED)),
                [4] => break Err(Failure::new("the input ended before there was a value")),
                // Backspace and Ctrl-U.
                [8 | 0x7f] => drop(line.pop()),
                [0x15] => line.clear(),
                [byte] if line.len() < MAX_VALUE => line.push(byte),
                _ => {}
            },
        }
    };
    drop(raw);
    eprintln!();
    outcome.map(|()| Secret::from(line))
}

/// The passphrase that is in a file, if one is named.
fn from_file() -> Result<Option<Secret>, Error> {
    let Some(path) = std::env::var_os(PASSPHRASE_FILE).map(std::path::PathBuf::from) else { return Ok(None) };
    let fail = |source| Error::PassphraseFile { path: path.clone(), source };
    let mut bytes = Zeroizing::new(std::fs::read(&path).map_err(fail)?);
    while matches!(bytes.last(), Some(b'\n' | b'\r')) {
        bytes.pop();
    }
    Ok(Some(Secret::from(bytes)))
}

/// The passphrase that opens the secrets.
pub(super) fn passphrase(prompt: &str, interactive: bool) -> Result<Secret, Error> {
    if let Some(passphrase) = from_file()? {
        return Ok(passphrase);
    }
    if !interactive {
        return Err(Error::Locked);
    }
    hidden(prompt).map_err(|_| Error::Locked)
}

/// A passphrase that will open the secrets.
pub(super) fn new_passphrase(interactive: bool) -> Result<Protection, Failure> {
    if let Some(passphrase) = from_file()? {
        return Ok(Protection::Passphrase(passphrase));
    }
    if !interactive || !std::io::stdin().is_terminal() {
        return Err(Failure::new("there is nobody to ask for a new passphrase")
            .hint(format!("{PASSPHRASE_FILE} names a file with it, or --store key-file does without")));
    }
    let first = hidden("New passphrase for the secrets: ")?;
    twice(first)
}

fn twice(first: Secret) -> Result<Protection, Failure> {
    if first.is_empty() {
        return Err(Failure::new("the passphrase is empty").hint("--store key-file does without one"));
    }
    let second = hidden("The same again: ")?;
    if first.expose() != second.expose() {
        return Err(
            Failure::new("the two passphrases differ; nothing was changed").hint("the same command again")
        );
    }
    Ok(Protection::Passphrase(first))
}

/// How the encrypted files shall be protected that are about to be made.
pub(super) fn protection(interactive: bool) -> Result<Protection, Failure> {
    if let Some(passphrase) = from_file()? {
        return Ok(Protection::Passphrase(passphrase));
    }
    if !interactive || !std::io::stdin().is_terminal() {
        return Ok(Protection::KeyFile);
    }
    eprintln!("There is no keychain here, so values go into an encrypted file.");
    let first = hidden("Passphrase for it (empty: a key file that only you can read): ")?;
    if first.is_empty() { Ok(Protection::KeyFile) } else { twice(first) }
}
