//! Records which system calls the confined roles of a `viv` make, by tracing it and all that it starts.
//!
//! The program is traced from its first instruction, as it is: no hook in it, no other build. A tracer that was there before
//! the process made itself untraceable stays. What a process does before it is confined is not recorded; from its second
//! filter on everything is (`confine` installs two). A call is written down when it is made, and once more when it was
//! answered with something else than a refusal: only that shows that it is needed.
#![expect(unsafe_code, reason = "nix has no names for real-time signals, which KVM's kick is")]

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Command;

use confine::{Role, When};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// A call: its role, its number, and the value of the argument that the table looks at (0 where it looks at none).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Made {
    /// Who made it: 'v' the vmm, 's' the shim, 'k' the gateway's keeper, 'g' the gateway.
    pub role: char,
    /// The system call's number.
    pub number: i64,
    /// The argument's value, 32 bits of it.
    pub value: u64,
}

/// What a recording shows.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// Every call that was made, also the one that killed its process.
    pub made: BTreeSet<Made>,
    /// Those that were not refused at least once (EACCES, EPERM, ENOSYS), and those that never return.
    pub served: BTreeSet<Made>,
}

/// The letter of a role in a [`Made`].
#[must_use]
pub fn letter(role: Role) -> char {
    match role {
        Role::Vmm => 'v',
        Role::Shim => 's',
        Role::Keeper => 'k',
        Role::Gateway => 'g',
    }
}

/// Filters that `confine` installs, one after the other.
const FILTERS: u32 = 2;

/// `seccomp(2)`'s operation that installs a filter.
const SET_MODE_FILTER: u64 = 1;

/// What is known of a process.
#[derive(Clone, Copy, Debug, Default)]
struct Process {
    role: Option<Role>,
    filters: u32,
}

/// The calls that have no answer.
const WITHOUT_END: [i64; 2] = [libc::SYS_exit, libc::SYS_exit_group];

/// Whether a call's answer is a refusal.
fn refusal(answer: i64) -> bool {
    [Errno::EACCES, Errno::EPERM, Errno::ENOSYS].iter().any(|errno| answer == -i64::from(*errno as i32))
}

/// Runs a program with its arguments to its end, and everything that it starts, and writes each call that is seen, and
/// served, for the first time to `out` at once. Gives the program's own exit code. Everything traced ends with this process.
///
/// # Errors
/// This machine does not let processes be traced, or the file cannot be written.
pub fn record(out: &Path, program: &[OsString], without_vdso: bool) -> Result<i32, String> {
    // It stops itself before it becomes the program, so that nothing of it is missed.
    let child = Command::new("/bin/sh")
        .args(["-c", r#"kill -STOP $$; exec "$@""#, "sh"])
        .args(program)
        .spawn()
        .map_err(|error| error.to_string())?;
    let first = Pid::from_raw(i32::try_from(child.id()).map_err(|error| error.to_string())?);
    waitpid(first, Some(WaitPidFlag::WUNTRACED)).map_err(|error| format!("it did not stop: {error}"))?;
    let options = Options::PTRACE_O_EXITKILL
        | Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC;
    if let Err(error) = ptrace::seize(first, options) {
        let _ = kill(first, Signal::SIGKILL);
        return Err(format!("processes cannot be traced here: {error}"));
    }
    kill(first, Signal::SIGCONT).map_err(|error| error.to_string())?;
    let file = std::fs::File::create(out).map_err(|error| format!("{}: {error}", out.display()))?;
    Recorder {
        file,
        processes: HashMap::new(),
        of_thread: HashMap::new(),
        under_way: HashMap::new(),
        known: Recorded::default(),
        without_vdso,
    }
    .run(first)
}

#[derive(Debug)]
struct Recorder {
    file: std::fs::File,
    processes: HashMap<i32, Process>,
    of_thread: HashMap<i32, i32>,
    /// What each thread has asked for.
    under_way: HashMap<i32, Made>,
    known: Recorded,
    without_vdso: bool,
}

impl Recorder {
    fn run(&mut self, first: Pid) -> Result<i32, String> {
        let mut code = 0;
        loop {
            let (thread, status) = match wait_for_any() {
                Ok(stopped) => stopped,
                Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) => return Ok(code),
                Err(error) => return Err(error.to_string()),
            };
            if !libc::WIFSTOPPED(status) {
                self.of_thread.remove(&thread.as_raw());
                self.under_way.remove(&thread.as_raw());
                if thread == first {
                    code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 };
                }
                continue;
            }
            let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
            let signal = match event {
                0 if signal == libc::SIGTRAP | 0x80 => {
                    self.system_call(thread)?;
                    0
                }
                0 => signal,
                libc::PTRACE_EVENT_EXEC => {
                    self.executed(thread);
                    0
                }
                _ => 0,
            };
            match go_on(thread, signal) {
                // Killed in between; its end is reported next.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// The process of a thread.
    fn process(&mut self, thread: Pid) -> i32 {
        *self.of_thread.entry(thread.as_raw()).or_insert_with(|| {
            let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
            let group = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
            group.and_then(|text| text.trim().parse().ok()).unwrap_or(thread.as_raw())
        })
    }

    /// A process that a confined keeper has forked is a gateway, from its own filters on.
    fn notice_gateway(&mut self, process: i32) {
        if self.processes.contains_key(&process) {
            return;
        }
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse::<i32>().ok());
        let of_keeper = parent
            .and_then(|parent| self.processes.get(&parent))
            .is_some_and(|parent| parent.role == Some(Role::Keeper) && parent.filters == FILTERS);
        let role = of_keeper.then_some(Role::Gateway);
        self.processes.insert(process, Process { role, filters: 0 });
    }

    fn executed(&mut self, thread: Pid) {
        let process = self.process(thread);
        if self.without_vdso {
            // What cannot be read is a process that has ended.
            let _ = hide_vdso(thread);
        }
        let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        let role = match line.split(|byte| *byte == 0).nth(1) {
            Some(b"vmm") => Some(Role::Vmm),
            Some(b"shim") => Some(Role::Shim),
            Some(b"gateway") => Some(Role::Keeper),
            _ => None,
        };
        self.processes.insert(process, Process { role, filters: 0 });
    }

    fn system_call(&mut self, thread: Pid) -> Result<(), String> {
        let (Ok(registers), Ok(stop)) = (ptrace::getregs(thread), ptrace::syscall_info(thread)) else {
            return Ok(());
        };
        if stop.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
            return match self.under_way.remove(&thread.as_raw()) {
                Some(made) if !refusal(registers.rax.cast_signed()) => self.served(made),
                _ => Ok(()),
            };
        }
        let process = self.process(thread);
        self.notice_gateway(process);
        let Some(known) = self.processes.get_mut(&process) else { return Ok(()) };
        let Some(role) = known.role else { return Ok(()) };
        let number = registers.orig_rax.cast_signed();
        if known.filters < FILTERS {
            known.filters += u32::from(number == nix::libc::SYS_seccomp && registers.rdi == SET_MODE_FILTER);
            return Ok(());
        }
        let arguments =
            [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9];
        let made = Made { role: letter(role), number, value: value(role, number, arguments) };
        if self.known.made.insert(made) {
            self.write(made, "made")?;
        }
        if WITHOUT_END.contains(&number) {
            return self.served(made);
        }
        self.under_way.insert(thread.as_raw(), made);
        Ok(())
    }

    fn served(&mut self, made: Made) -> Result<(), String> {
        if self.known.served.insert(made) { self.write(made, "served") } else { Ok(()) }
    }

    fn write(&mut self, made: Made, how: &str) -> Result<(), String> {
        let Made { role, number, value } = made;
        writeln!(self.file, "{how} {role} {number} {value}").map_err(|error| error.to_string())
    }
}

/// The value of the argument that the table looks at, 32 bits of it.
fn value(role: Role, number: i64, arguments: [u64; 6]) -> u64 {
    let call = confine::table(role).iter().find(|call| call.number == number);
    let Some(When::OneOf(argument, _)) = call.map(|call| call.when) else { return 0 };
    arguments.get(usize::from(argument)).map_or(0, |word| word & 0xffff_ffff)
}

/// Takes the vDSO out of what a new program is told of itself, as on a host that has no clock in it.
fn hide_vdso(thread: Pid) -> Result<(), Errno> {
    const VDSO: i64 = 33; // AT_SYSINFO_EHDR
    const IGNORE: i64 = 1; // AT_IGNORE
    const WORD: usize = 8;
    let at = |address: usize| address as ptrace::AddressType;
    // On the stack: the number of arguments, they, null, the environment, null, pairs until one of type null.
    let mut here = usize::try_from(ptrace::getregs(thread)?.rsp).unwrap_or_default() + WORD;
    for _ in 0..2 {
        while ptrace::read(thread, at(here))? != 0 {
            here += WORD;
        }
        here += WORD;
    }
    loop {
        match ptrace::read(thread, at(here))? {
            0 => return Ok(()),
            VDSO => return ptrace::write(thread, at(here), IGNORE),
            _ => here += 2 * WORD,
        }
    }
}

/// Waits until any traced thread stops or ends.
fn wait_for_any() -> Result<(Pid, i32), Errno> {
    let mut status = 0;
    // SAFETY: the status is this function's own.
    let thread = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
    if thread < 0 { Err(Errno::last()) } else { Ok((Pid::from_raw(thread), status)) }
}

/// Lets a stopped thread go on to its next system call, with this signal if it is not 0.
fn go_on(thread: Pid, signal: i32) -> Result<(), Errno> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the request touches no memory of this process.
    let result = unsafe { libc::ptrace(libc::PTRACE_SYSCALL, thread.as_raw(), none, signal) };
    if result < 0 { Err(Errno::last()) } else { Ok(()) }
}

/// Reads what [`record`] wrote.
///
/// # Errors
/// The file cannot be read.
pub fn read(path: &Path) -> Result<Recorded, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut recorded = Recorded::default();
    for line in text.lines() {
        let mut words = line.split(' ');
        let how = words.next();
        let mut made = || {
            let role = words.next()?.chars().next()?;
            Some(Made { role, number: words.next()?.parse().ok()?, value: words.next()?.parse().ok()? })
        };
        match how {
            Some("made") => recorded.made.extend(made()),
            Some("served") => recorded.served.extend(made()),
            _ => return Err(format!("a line that nobody wrote: {line:?}")),
        }
    }
    Ok(recorded)
}

/// The arguments with which a test's own program calls [`record`] in a process of its own: the tracer waits for whatever
/// child there is.
#[must_use]
pub fn asked_for() -> Option<i32> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [mode, out, program @ ..] = &arguments[..] else { return None };
    let without_vdso = match mode.as_bytes() {
        flag if flag == FLAG.as_bytes() => false,
        flag if flag == FLAG_WITHOUT_VDSO.as_bytes() => true,
        _ => return None,
    };
    Some(record(Path::new(out), program, without_vdso).unwrap_or_else(|why| {
        eprintln!("{why}");
        UNTRACEABLE
    }))
}

/// The first argument for [`asked_for`].
pub const FLAG: &str = "--record";

/// The same, with every program's vDSO hidden from it.
pub const FLAG_WITHOUT_VDSO: &str = "--record-without-vdso";

/// The exit code of a recorder that cannot trace.
pub const UNTRACEABLE: i32 = 211;

/// A command that records what `program` with `arguments` does.
///
/// # Errors
/// The path of this program is not known.
pub fn recorded(out: &Path, program: &Path, arguments: &[&str]) -> Result<Command, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(own);
    command.arg(FLAG).arg(out).arg(program).args(arguments.iter().map(OsStr::new));
    Ok(command)
}
