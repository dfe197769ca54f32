//! What only some runs need: each line of a table that names a case works in it, and the case dies without the line.

use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use confine::{Call, Shown, table};
use libtest_mimic::{Failed, Trial};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, kill_process};

use crate::{CONFINED, FINE, confine_as, failed, for_roles};

pub(crate) fn trials() -> Vec<Trial> {
    for_roles(|role, of| {
        let shown = |call: &Call| match call.shown {
            Shown::Case(case, _) => Some((case, call.name().to_owned())),
            _ => None,
        };
        let lines: Vec<_> = table(of).iter().filter_map(shown).collect();
        let mut cases: Vec<_> = lines.iter().map(|(case, _)| *case).collect();
        cases.sort_unstable();
        cases.dedup();
        let can = cases
            .into_iter()
            .map(|case| Trial::test(format!("{role}_can::{case}"), move || works(role, case)));
        let needs = lines.into_iter().map(|(case, call)| {
            Trial::test(format!("{role}_needs::{call}"), move || needs(role, case, &call))
        });
        can.chain(needs).collect()
    })
}

/// The child: confines itself, by a table without the line of one call if there is one, and does what the case is about.
pub(crate) fn act(role: &str, case: &str, lacking: &str) -> Result<(), String> {
    if !lacking.is_empty() {
        confine::hostile::remove_line(lacking);
    }
    let text = |error: std::io::Error| error.to_string();
    // What a role has before it is confined, it has for a case, too.
    let called = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, called.clone()).map_err(text)?;
    let file = std::fs::File::open("/dev/null").map_err(text)?;
    let network = Network::new().map_err(text)?;
    let folder = std::fs::File::open("/").map_err(text)?;
    confine_as(role)?;
    match case {
        "abort" => std::process::abort(),
        "go_on_after_a_stop" => std::thread::sleep(Duration::from_secs(1)),
        "sleep" => std::thread::sleep(Duration::from_millis(1)),
        "yield" => std::thread::yield_now(),
        "look_at_the_clock" => confine::hostile::look_at_the_clock().map_err(text)?,
        // Pieces below 128 KiB come from the heap, and this is the first thread.
        "grow_the_heap" => {
            let pieces: Vec<Vec<u8>> = (0..128).map(|fill| vec![fill; 64 << 10]).collect();
            std::hint::black_box(&pieces);
        }
        "grow_a_buffer" => {
            let mut buffer = vec![1u8; 1 << 20];
            buffer.resize(8 << 20, 2);
            std::hint::black_box(&buffer);
        }
        "return_from_a_handler" => {
            signal_hook::low_level::raise(signal_hook::consts::SIGUSR1).map_err(text)?;
            if !called.load(Ordering::SeqCst) {
                return Err("the handler was not called".into());
            }
        }
        "close_a_descriptor" => drop(file),
        "hand_over_memory" => memory(None).map_err(text)?,
        "make_a_ring" => memory(Some(4096)).map_err(text)?,
        "list_a_folder" => {
            let mut space = Vec::with_capacity(4096);
            let mut entries = rustix::fs::RawDir::new(&folder, space.spare_capacity_mut());
            if entries.next().is_none() {
                return Err("nothing is in it".into());
            }
        }
        "make_every_socket" => every_socket().map_err(text)?,
        "serve_a_listener" => drop(
            rustix::net::accept_with(&network.listener, SocketFlags::CLOEXEC).map_err(|e| e.to_string())?,
        ),
        "send_in_pieces" => network.pieces().map_err(text)?,
        "ask_for_addresses" => {
            network.server.local_addr().map_err(text)?;
            network.server.peer_addr().map_err(text)?;
        }
        // Nobody has this number; what is asked is answered that it is not there.
        "kill_its_gateway" => drop(kill_process(Pid::from_raw(i32::MAX).ok_or("no number")?, Signal::KILL)),
        _ => return Err(format!("there is no case {case}")),
    }
    println!("{FINE}");
    Ok(())
}

/// Memory for another process.
fn memory(length: Option<u64>) -> std::io::Result<()> {
    use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, fcntl_get_seals, memfd_create, seek};
    let memory = memfd_create("case", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    if let Some(length) = length {
        rustix::fs::ftruncate(&memory, length)?;
    }
    fcntl_add_seals(&memory, SealFlags::GROW)?;
    seek(&memory, SeekFrom::Start(0))?;
    let sealed = fcntl_get_seals(&memory)?.contains(SealFlags::GROW);
    if sealed { Ok(()) } else { Err(std::io::Error::other("not sealed")) }
}

/// The four kinds of sockets that a gateway makes.
fn every_socket() -> std::io::Result<()> {
    for family in [AddressFamily::INET, AddressFamily::INET6] {
        for kind in [SocketType::STREAM, SocketType::DGRAM] {
            match rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None) {
                // A host without IPv6 is one for which the line is not needed.
                Err(rustix::io::Errno::AFNOSUPPORT) if family == AddressFamily::INET6 => {}
                other => drop(other?),
            }
        }
    }
    Ok(())
}

/// What a gateway is handed over: a listener, and a connection with both ends.
struct Network {
    listener: TcpListener,
    client: TcpStream,
    server: TcpStream,
    _waits: TcpStream,
}

impl Network {
    fn new() -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let client = TcpStream::connect(address)?;
        let (server, _) = listener.accept()?;
        Ok(Self { _waits: TcpStream::connect(address)?, listener, client, server })
    }

    fn pieces(mut self) -> std::io::Result<()> {
        let sent = self.client.write_vectored(&[IoSlice::new(b"head"), IoSlice::new(b"body")])?;
        let (mut one, mut two) = ([0u8; 4], [0u8; 4]);
        let got = self.server.read_vectored(&mut [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)])?;
        if sent == 8 && got == 8 && one == *b"head" { Ok(()) } else { Err(std::io::Error::other("lost")) }
    }
}

/// Lets a child do it. One that goes on after a stop is stopped.
fn acted(role: &str, case: &str, lacking: &str) -> Result<Output, Failed> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--act", role, case, lacking])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut out = child.stdout.take().ok_or("there is no output")?;
    let mut said = vec![0; CONFINED.len()];
    out.read_exact(&mut said)?;
    if case == "go_on_after_a_stop" {
        let process = Pid::from_child(&child);
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(20));
            kill_process(process, Signal::STOP)?;
            std::thread::sleep(Duration::from_millis(5));
            kill_process(process, Signal::CONT)?;
        }
    }
    out.read_to_end(&mut said)?;
    Ok(Output { status: child.wait()?, stdout: said, stderr: Vec::new() })
}

fn works(role: &str, case: &str) -> Result<(), Failed> {
    let output = acted(role, case, "")?;
    // A process that gives up must be seen to have done so, and not to have been stopped by its own filter.
    let well = match case {
        "abort" => output.status.signal() == Some(libc::SIGABRT) && output.stdout == CONFINED.as_bytes(),
        _ => output.status.success() && output.stdout == format!("{CONFINED}{FINE}\n").as_bytes(),
    };
    if well { Ok(()) } else { Err(failed(case, &output)) }
}

fn needs(role: &str, case: &str, call: &str) -> Result<(), Failed> {
    let output = acted(role, case, call)?;
    let killed = output.status.signal() == Some(libc::SIGSYS) && output.stdout == CONFINED.as_bytes();
    if killed { Ok(()) } else { Err(failed(&format!("{case} without {call}"), &output)) }
}
