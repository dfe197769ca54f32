//! What a line of a role's table says: a system call, with which arguments, who needs it, and how that is shown.

use std::ffi::c_long;

/// One system call that is let through. A number may stand in several lines, each with arguments of its own.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub(crate) constant: &'static str,
    /// Its number on this architecture.
    pub number: c_long,
    /// With which arguments.
    pub when: When,
    /// Which code of the role makes it, and why.
    pub who: &'static str,
    /// How it is shown that the role needs it.
    pub shown: Shown,
}

impl Call {
    /// Its name as in `syscalls(2)`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.constant.trim_start_matches("SYS_")
    }
}

/// With which arguments a call is let through. Arguments count from 0, and 32 bits of each are looked at.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// Any.
    Always,
    /// None: it is answered with ENOSYS, as by a kernel that does not have it, because code that is not ours makes it and can
    /// do without. Everything else that is not in a table kills.
    Refused,
    /// The argument has one of these values.
    OneOf(u8, &'static [u64]),
    /// One argument has the first and another the second value of one of these pairs.
    Pairs(u8, u8, &'static [(u64, u64)]),
    /// None of these bits is set in the argument.
    Without(u8, u64),
    /// All of these bits are set in the argument.
    With(u8, u64),
    /// The argument is this process's id.
    OwnProcess(u8),
    /// Both arguments are zero; all bits of the second one, a pointer.
    BothZero(u8, u8),
    /// `kill` of the one process that the grants name, with SIGKILL.
    KillsChild,
}

/// How it is shown that a role needs a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// `hostile`'s test `needed` sees each of its values made while a sandbox is used, whatever the engine.
    Recorded,
    /// The same on this engine only (its name on the command line).
    RecordedOn(&'static str),
    /// It is made, but not in every run; the text says when, and what would break without it. `confined`'s case of this name
    /// makes it, and is killed when the line is taken away.
    Case(&'static str, &'static str),
    /// The same, but no test of ours can bring about what needs it: the text is all that there is to show.
    Argued(&'static str),
}

/// A line of a table: the constant's name gives the call's.
#[cfg(target_os = "linux")]
macro_rules! call {
    ($constant:ident, $when:expr, $shown:expr, $who:literal) => {
        $crate::table::Call {
            constant: stringify!($constant),
            number: libc::$constant,
            when: $when,
            shown: $shown,
            who: $who,
        }
    };
}

#[cfg(target_os = "linux")]
pub(crate) use call;
