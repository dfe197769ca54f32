//! How a command that fails says so: one sentence, one hint, one exit code (`docs/exit-codes.md`).

use std::fmt::Display;

use sandbox::escape::escaped;

/// The longest sentence, in characters: a path may be in it.
pub(crate) const LONGEST: usize = 6000;

/// The exit code when the failure is ours and not the command's.
pub(crate) const OURS: u8 = 125;

/// Interrupted from the keyboard.
pub(crate) const INTERRUPTED: u8 = 130;

/// What is said of a sandbox that went away under a session.
const LOST: &str = "the sandbox ended";

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    /// One sentence in the user's words.
    message: String,
    /// The next step.
    pub(crate) hint: Option<String>,
    /// Whether it is only known that the sandbox is gone; see [`Failure::because`].
    is_loss: bool,
}

impl Failure {
    /// A failure of ours.
    pub(crate) fn new(message: impl Display) -> Self {
        Self { code: OURS, message: message.to_string(), hint: None, is_loss: false }
    }

    /// The sentence.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// With a next step.
    pub(crate) fn hint(mut self, hint: impl Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// With another exit code.
    pub(crate) fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// With the reason for which a sandbox ended, when only its end is known yet. `reason` may wait for it.
    pub(crate) fn because(mut self, reason: impl FnOnce() -> Option<String>) -> Self {
        if self.is_loss
            && let Some(reason) = reason()
        {
            self.message = format!("{LOST}: {reason}");
        }
        self
    }

    /// Says it on the standard error.
    pub(crate) fn print(&self) {
        use std::io::Write;
        let mut out = std::io::stderr().lock();
        let _ = out.write_all(self.text().as_bytes());
    }

    /// The lines. A guest may have had a part in the words, and makes folders whose names are in them.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("error: {}\n", escaped(&self.message, LONGEST));
        if let Some(hint) = &self.hint {
            text.push_str(&format!("  hint: {}\n", escaped(hint, LONGEST)));
        }
        text
    }
}

impl From<sandbox::Error> for Failure {
    fn from(error: sandbox::Error) -> Self {
        tracing::info!(?error, "The operation failed");
        Self { code: OURS, message: error.to_string(), hint: error.hint(), is_loss: false }
    }
}

impl From<agent_proto::ProtoError> for Failure {
    fn from(error: agent_proto::ProtoError) -> Self {
        tracing::info!(?error, "The conversation with the guest failed");
        if error.is_disconnect() {
            let lost = Self::new(LOST).hint("viv ls shows its state; the same command starts it again");
            return Self { is_loss: true, ..lost };
        }
        Self::new(format!("the guest's agent: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_words_draw_nothing_and_add_no_line() {
        let failure = Failure::new("it said \x1b[2J\nerror: forged").hint("/tmp/\x1b]0;x\x07");
        let text = failure.text();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }
}
