//! What the host sees of a sandbox: its files' modes, its processes' filters and descriptors; and what the guest sees of the
//! processor. One sandbox for all cases. Without an image they are skipped with the reason, and counted.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::{Child, ExitCode, Stdio};

use e2e::{Case, Verdict, World, ensure};
use hostile::workload::shim;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

type Look = fn(&World, &Processes) -> Case;

const CASES: &[(&str, Look)] = &[
    ("only_its_user_reaches_a_sandboxs_files", modes),
    ("every_thread_is_filtered_and_none_dumps", threads),
    ("a_vmm_holds_exactly_these_descriptors", descriptors),
    ("a_gateway_and_its_keeper_hold_nothing_of_the_guests_memory", network_descriptors),
    ("no_nested_virtualisation_is_offered", processor),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let images = e2e::cache_home().join("vivarium/images");
    let there = fs::read_dir(&images).is_ok_and(|mut entries| entries.next().is_some());
    // Made when the first case runs.
    let sandbox = std::sync::Arc::new(std::sync::OnceLock::<Result<Sandbox, String>>::new());
    let trials = CASES.iter().map(|(name, look)| {
        let sandbox = sandbox.clone();
        Trial::ignorable_test(*name, move || {
            if !there {
                return Ok(Completion::ignored_with("there is no image"));
            }
            let sandbox = sandbox.get_or_init(|| Sandbox::start().map_err(|error| format!("{error:?}")));
            let sandbox = sandbox.as_ref().map_err(|why| Failed::from(why.clone()))?;
            match look(&sandbox.world, &sandbox.processes) {
                Ok(()) => Ok(Completion::Completed),
                Err(Verdict::Skipped(why)) => Ok(Completion::ignored_with(why)),
                Err(Verdict::Wrong(what)) => Err(what.into()),
            }
        })
    });
    let code = libtest_mimic::run(&arguments, trials.collect()).exit_code();
    if let Some(Ok(sandbox)) = std::sync::Arc::into_inner(sandbox).and_then(std::sync::OnceLock::into_inner) {
        sandbox.end();
    }
    code
}

/// A sandbox with a session that keeps it.
struct Sandbox {
    world: World,
    session: Child,
    processes: Processes,
}

/// Its four processes.
struct Processes {
    vmm: u32,
    shim: u32,
    keeper: u32,
    gateway: u32,
}

impl Processes {
    /// Those of the sandbox with this shim.
    fn of(shim: u32) -> Result<Self, Verdict> {
        let child = |parent, role| {
            child_of(parent, role).ok_or_else(|| Verdict::Wrong(format!("{parent} has no {role}")))
        };
        let keeper = child(shim, "gateway")?;
        Ok(Self { vmm: child(shim, "vmm")?, shim, keeper, gateway: child(keeper, "gateway")? })
    }
}

impl Sandbox {
    fn start() -> Result<Self, Verdict> {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap_or(Path::new("/var/tmp"));
        let world = World::new(target).map_err(Verdict::Wrong)?;
        let folder = world.project("seen");
        let arguments = ["run", "shell", ".", "--engine", "soft", "--", "-c", "echo up; cat"];
        let mut session =
            world.viv(&folder, arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        if let Some(out) = session.stdout.as_mut() {
            BufReader::new(out).read_line(&mut line)?;
        }
        ensure(line == "up\n", format!("it said {line:?}"))?;
        let shim = u32::try_from(shim(&world)?).map_err(|error| Verdict::Wrong(error.to_string()))?;
        Ok(Self { world, session, processes: Processes::of(shim)? })
    }

    fn end(mut self) {
        drop(self.session.stdin.take());
        let _ = self.session.wait();
        self.world.clean_up();
    }
}

/// The child of a process that was started, or forked, for this role.
fn child_of(parent: u32, role: &str) -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.find(|id| {
        let its = field(Path::new(&format!("/proc/{id}/status")), "PPid:");
        let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        its == Some(parent.to_string()) && line.split(|byte| *byte == 0).nth(1) == Some(role.as_bytes())
    })
}

/// A field of a `status`.
fn field(path: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().to_owned())
}

/// Nobody else may enter the folders or read the files. The socket's own mode says nothing: its folder keeps others from it.
fn modes(world: &World, _: &Processes) -> Case {
    let (mut folders, mut files, mut sockets) = (0, 0, 0);
    let mut rest = vec![world.state().join("sandboxes")];
    while let Some(path) = rest.pop() {
        let about = fs::symlink_metadata(&path)?;
        let is_socket = about.file_type().is_socket();
        let open = about.mode() & 0o077;
        ensure(is_socket || open == 0, format!("{} has the mode {:o}", path.display(), about.mode()))?;
        if about.is_dir() {
            folders += 1;
            rest.extend(fs::read_dir(&path)?.flatten().map(|entry| entry.path()));
        } else if is_socket {
            sockets += 1;
        } else {
            files += 1;
        }
    }
    ensure(
        folders >= 3 && files >= 4 && sockets == 1,
        format!("{folders} folders, {files} files, {sockets} sockets"),
    )
}

/// All filters hold in every thread, not in the first one only, and there is nothing to be had by privileges or from a dump. A gateway has
/// its keeper's and two more.
fn threads(_: &World, processes: &Processes) -> Case {
    let Processes { vmm, shim, keeper, gateway } = *processes;
    for (process, filters, is_alone) in
        [(vmm, "2", false), (shim, "2", false), (keeper, "2", true), (gateway, "4", true)]
    {
        let mut count = 0;
        for thread in fs::read_dir(format!("/proc/{process}/task"))?.flatten() {
            let status = thread.path().join("status");
            let found = ["Seccomp:", "Seccomp_filters:", "NoNewPrivs:"].map(|name| field(&status, name));
            let expected = ["2", filters, "1"].map(|value| Some(value.to_owned()));
            ensure(found == expected, format!("{}: {found:?}", status.display()))?;
            count += 1;
        }
        ensure((count == 1) == is_alone, format!("process {process} has {count} threads"))?;
        let limits = fs::read_to_string(format!("/proc/{process}/limits"))?;
        let core =
            limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap_or_default();
        let core: Vec<&str> = core.split_ascii_whitespace().collect();
        ensure(core == ["0", "0", "bytes"], format!("core files: {core:?}"))?;
        if is_alone {
            let data = limits.lines().find_map(|line| line.strip_prefix("Max data size")).unwrap_or_default();
            let data: Vec<&str> = data.split_ascii_whitespace().collect();
            ensure(data == ["2147483648", "2147483648", "bytes"], format!("memory of its own: {data:?}"))?;
        }
        // What cannot be dumped belongs to root in /proc, whoever runs it.
        let owner = fs::metadata(format!("/proc/{process}/mem"))?.uid();
        ensure(owner == 0, format!("the memory of process {process} belongs to user {owner}"))?;
    }
    Ok(())
}

/// What a process holds, by what it is. Skipped where this user may not look at it.
fn held(world: &World, process: u32) -> Result<BTreeSet<String>, Verdict> {
    let Ok(held) = fs::read_dir(format!("/proc/{process}/fd")) else {
        return Err(Verdict::Skipped("needs root: no role lets its user look at it".into()));
    };
    let work = world.project("seen");
    let mut found = BTreeSet::new();
    for entry in held.flatten() {
        // One that is closed meanwhile is not held.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let text = target.to_string_lossy().into_owned();
        let kind = match text.split_once(":[") {
            Some(("anon_inode", kind)) => kind.trim_end_matches(']').to_owned(),
            Some((kind, _)) => kind.to_owned(),
            None if target == work => "the share".to_owned(),
            None if text.starts_with("anon_inode:") => text.replace("anon_inode:", ""),
            None if text.starts_with("/memfd:") => text.replace(" (deleted)", ""),
            None => target.file_name().map_or(text.clone(), |name| name.to_string_lossy().into_owned()),
        };
        found.insert(kind);
    }
    Ok(found)
}

/// A vmm's descriptors while its guest idles.
fn descriptors(world: &World, processes: &Processes) -> Case {
    let found = held(world, processes.vmm)?;
    let expected = [
        // The control socket, which is its standard input, and streams between clients and guest.
        "socket",
        // Its log, and the guest's console.
        "pipe",
        // Its standard output.
        "null",
        // The bells of its own threads, and what they wait by.
        "eventfd",
        "eventpoll",
        // The rings of the network card.
        "/memfd:vivarium-frames",
        // The guest's memory. The base image, the kernel and the initramfs are not open any more.
        "/memfd:vivarium-ram",
        "layer-0.raw",
        "the share",
    ];
    let expected: BTreeSet<String> = expected.map(str::to_owned).into();
    ensure(found == expected, format!("the vmm holds {found:?}"))
}

/// The frames' ring is all that a gateway shares with its guest, and its keeper does not have even that.
fn network_descriptors(world: &World, processes: &Processes) -> Case {
    // The standard streams, the line to the shim, the pipe whose end tells the keeper of the gateway's.
    let both = ["null", "pipe", "socket"];
    // What it waits by, and the bells and the memory of the ring.
    let gateways = ["eventfd", "eventpoll", "/memfd:vivarium-frames"];
    for (process, more) in [(processes.keeper, &[][..]), (processes.gateway, &gateways[..])] {
        let found = held(world, process)?;
        let expected = both.iter().chain(more).map(|kind| (*kind).to_owned()).collect();
        ensure(found == expected, format!("process {process} holds {found:?}"))?;
        // What is mapped needs no descriptor.
        let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
        ensure(maps.contains("[stack]") && !maps.contains("vivarium-ram"), maps)?;
    }
    let maps = fs::read_to_string(format!("/proc/{}/maps", processes.vmm))?;
    ensure(maps.contains("vivarium-ram"), "this is how the guest's memory is seen where it is")
}

/// The flags of the guest's processor that would let it be a host.
fn processor(world: &World, _: &Processes) -> Case {
    let folder = world.project("seen");
    let script = "cat /proc/cpuinfo";
    let said = e2e::say(world.viv(&folder, ["exec", "shell-seen", "sh", "-c", script]), b"")?;
    let flags =
        said.text().lines().find(|line| line.starts_with("flags")).map(str::to_owned).unwrap_or_default();
    let flags: BTreeSet<&str> = flags.split_ascii_whitespace().collect();
    ensure(flags.contains("sse2") && !flags.contains("svm") && !flags.contains("vmx"), format!("{flags:?}"))
}
