//! The agent's sessions and control connections against the real client, over socket pairs, with real processes.
//!
//! One agent for all tests: it reaps every child of the test process, as PID 1 would.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use agent_proto::client::{Control, STDIN_WINDOW, Session, SessionEvent, SessionReader, SessionWriter};
use agent_proto::frame::{self, FrameReader, kind};
use agent_proto::messages::{
    Cause, Ending, Exec, Exit, GENERATION, Hello, NotStarted, Phase, Pty, Purpose, Refused, Reply, Request,
    WindowSize,
};

use crate::boot::Agent;

type Reader = SessionReader<UnixStream>;
type Writer = SessionWriter<UnixStream>;

fn agent() -> &'static Arc<Agent> {
    static AGENT: OnceLock<Arc<Agent>> = OnceLock::new();
    AGENT.get_or_init(|| {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("orphans come to us");
        let agent = Agent::new(false);
        agent.board.change(|status| status.set_phase(Phase::Ready));
        let reaper = Arc::clone(&agent.reaper);
        std::thread::spawn(move || reaper.run());
        agent
    })
}

fn dial() -> UnixStream {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    std::thread::spawn(|| super::serve(agent(), &{ theirs }));
    ours
}

fn exec(argv: &[&str]) -> Exec {
    Exec {
        argv: argv.iter().map(|a| a.as_bytes().to_vec()).collect(),
        user: rustix::process::geteuid().as_raw().to_string(),
        cwd: b"/".to_vec(),
        ..Exec::default()
    }
}

fn sh(script: &str) -> Exec {
    exec(&["sh", "-c", script])
}

fn open(exec: &Exec) -> (Reader, Writer) {
    let stream = dial();
    match Session::open(stream.try_clone().expect("a clone"), stream, exec).expect("a session") {
        Session::Running { reader, writer, opened } => {
            assert!(opened.pid > 1 && !opened.session_id.is_empty());
            (reader, writer)
        }
        Session::NotStarted(refusal) => panic!("{refusal:?}"),
    }
}

fn refused(exec: &Exec) -> NotStarted {
    let stream = dial();
    match Session::open(stream.try_clone().expect("a clone"), stream, exec).expect("an answer") {
        Session::NotStarted(refusal) => refusal,
        Session::Running { .. } => panic!("it runs"),
    }
}

/// Everything until the exit; offsets must be without gaps.
fn finish(reader: &mut Reader) -> (Vec<u8>, Vec<u8>, Exit) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match reader.next_event().expect("an event") {
            SessionEvent::Stdout { offset, data } => {
                assert_eq!(offset, out.len() as u64);
                out.extend_from_slice(data);
            }
            SessionEvent::Stderr { offset, data } => {
                assert_eq!(offset, err.len() as u64);
                err.extend_from_slice(data);
            }
            SessionEvent::StdinClosed => {}
            SessionEvent::Exit(exit) => return (out, err, exit),
        }
    }
}

fn run(exec: &Exec) -> (Vec<u8>, Vec<u8>, Exit) {
    finish(&mut open(exec).0)
}

/// Waits for something that must come; gives up only when it surely does not.
fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The processes whose command line has this word.
fn processes_with(word: &str) -> usize {
    let has = |entry: &fs::DirEntry| {
        fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| line.split(|b| *b == 0).any(|w| w == word.as_bytes()))
    };
    fs::read_dir("/proc").expect("/proc").flatten().filter(has).count()
}

#[test]
fn a_host_that_leaves_before_it_is_told_of_the_start_leaves_no_process() {
    let word = "86399.25";
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    frame::write_message(&mut { &ours }, kind::EXEC, &exec(&["sleep", word])).expect("sent");
    // What it has sent is read; what it is told finds nobody.
    drop(ours);
    let frames = FrameReader::new(theirs.try_clone().expect("a clone"));
    assert!(agent().sessions.serve(&theirs, frames).is_err());
    assert_eq!(processes_with(word), 0);
}

#[test]
fn streams_stay_apart_and_the_code_comes_back() {
    let (out, err, exit) = run(&sh("echo out; echo err >&2; exit 7"));
    assert_eq!((out.as_slice(), err.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!((exit.ending, exit.shell_code()), (Some(Ending::Code(7)), 7));
}

#[test]
fn a_kill_is_137_as_in_a_shell() {
    let (_, _, exit) = run(&sh("kill -9 $$"));
    assert_eq!((exit.ending, exit.shell_code()), (Some(Ending::Signal(9)), 137));
}

#[test]
fn input_of_any_size_comes_back_unchanged() {
    let data: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let (mut reader, mut writer) = open(&Exec { stdin: true, ..exec(&["cat"]) });
    let sent = data.clone();
    let sender = std::thread::spawn(move || {
        assert!(writer.stdin(&sent).expect("sent"));
        writer.stdin_end().expect("sent");
        writer
    });
    let (out, _, exit) = finish(&mut reader);
    sender.join().expect("sent");
    assert_eq!(exit.shell_code(), 0);
    assert!(out == data, "the bytes differ");
}

#[test]
fn without_input_there_is_none() {
    let (out, _, exit) = run(&exec(&["cat"]));
    assert_eq!((out.len(), exit.shell_code()), (0, 0));
}

#[test]
fn what_cannot_start_says_why() {
    let code = |exec: &Exec| {
        let refusal = refused(exec);
        assert!(!refusal.message.is_empty());
        (refusal.cause(), refusal.shell_code())
    };
    assert_eq!(code(&exec(&["no-such-program"])), (Cause::NotFound, 127));
    assert_eq!(code(&exec(&["/no/such/program"])), (Cause::NotFound, 127));
    assert_eq!(code(&exec(&[""])), (Cause::NotFound, 127));
    assert_eq!(code(&exec(&["/etc/passwd"])), (Cause::NotExecutable, 126));
    assert_eq!(code(&exec(&["/"])), (Cause::NotExecutable, 126));
    assert_eq!(
        code(&Exec { cwd: b"/no/such/folder".to_vec(), ..exec(&["true"]) }),
        (Cause::NoDirectory, 125)
    );
    assert_eq!(code(&Exec { user: "no-such-user".into(), ..exec(&["true"]) }), (Cause::NoSuchUser, 125));
    assert_eq!(code(&exec(&["a\0b"])), (Cause::Invalid, 125));
}

#[test]
fn environment_and_folder_are_as_asked() {
    let asked = Exec {
        env: [&b"MINE=a=b"[..], b"LANG", b"=odd", b"HOME=/elsewhere"].map(<[u8]>::to_vec).to_vec(),
        cwd: b"/usr".to_vec(),
        ..exec(&["sh", "-c", "pwd; env"])
    };
    let (out, _, _) = run(&asked);
    let text = String::from_utf8(out).expect("text");
    let (cwd, env) = text.split_once('\n').expect("lines");
    let env: HashMap<_, _> = env.lines().filter_map(|line| line.split_once('=')).collect();
    assert_eq!(cwd, "/usr");
    assert_eq!((env["MINE"], env["HOME"]), ("a=b", "/elsewhere"));
    assert!(env["PATH"].contains("/usr/bin") && env.contains_key("USER") && env.contains_key("SHELL"));
    assert!(
        !env.contains_key("LANG") && !env.contains_key("TERM") && !env.contains_key("CARGO_MANIFEST_DIR")
    );
}

#[test]
fn a_terminal_has_size_job_control_and_ctrl_c() {
    let pty = Pty { size: Some(WindowSize { rows: 33, cols: 101 }), term: "dumb".into() };
    let script = "trap 'stty size; echo $TERM' WINCH; stty size; test -t 0 && test -t 1 && test -t 2 && echo tty; \
                  while sleep 0.1; do :; done";
    let (mut reader, mut writer) = open(&Exec { pty: Some(pty), ..sh(script) });
    let mut seen = String::new();
    let mut wait_for = |text: &str| {
        while !seen.contains(text) {
            match reader.next_event().expect("an event") {
                SessionEvent::Stdout { data, .. } => seen.push_str(&String::from_utf8_lossy(data)),
                other => panic!("{other:?} before {text:?} in {seen:?}"),
            }
        }
    };
    wait_for("33 101\r\n");
    wait_for("tty\r\n");
    writer.resize(50, 132).expect("sent");
    wait_for("50 132\r\n");
    wait_for("dumb\r\n");
    writer.stdin(b"\x03").expect("sent");
    let (_, _, exit) = loop {
        if let SessionEvent::Exit(exit) = reader.next_event().expect("an event") {
            break ((), (), exit);
        }
    };
    assert_eq!(exit.ending, Some(Ending::Signal(2)));
}

#[test]
fn what_the_agent_ignores_its_commands_do_not() {
    // SAFETY: no pointers are passed; nobody else uses this signal.
    unsafe { libc::signal(libc::SIGUSR2, libc::SIG_IGN) };
    let (_, _, exit) = run(&sh("kill -USR2 $$; exit 1"));
    assert_eq!(exit.ending, Some(Ending::Signal(libc::SIGUSR2)));
}

#[test]
fn the_end_of_input_ends_a_terminals_reader() {
    let (mut reader, mut writer) = open(&Exec { pty: Some(Pty::default()), stdin: true, ..exec(&["cat"]) });
    writer.stdin(b"line\n").expect("sent");
    writer.stdin_end().expect("sent");
    let (out, _, exit) = finish(&mut reader);
    assert_eq!(exit.shell_code(), 0);
    assert_eq!(String::from_utf8_lossy(&out).matches("line\r\n").count(), 2, "echoed once, printed once");
}

#[test]
fn a_terminals_last_words_are_not_lost() {
    for _ in 0..20 {
        let (out, _, exit) = run(&Exec { pty: Some(Pty::default()), ..sh("seq 1 2000; exit 5") });
        assert_eq!(exit.shell_code(), 5);
        assert!(out.ends_with(b"1999\r\n2000\r\n"));
    }
}

#[test]
fn a_process_that_wants_no_input_ends_the_sending() {
    let (mut reader, mut writer) =
        open(&Exec { stdin: true, ..sh("exec <&-; read x; cat /dev/null; sleep 0.2; echo done") });
    let sender = std::thread::spawn(move || {
        let data = vec![b'x'; 4 * STDIN_WINDOW as usize];
        writer.stdin(&data).expect("sent")
    });
    let (out, _, _) = finish(&mut reader);
    assert_eq!(out, b"done\n");
    assert!(!sender.join().expect("no panic"));
}

#[test]
fn a_signal_overtakes_input_that_nobody_reads() {
    let (mut reader, mut writer) = open(&Exec { stdin: true, ..exec(&["sleep", "1000"]) });
    let room = writer.stdin_room();
    assert_eq!(room as u64, STDIN_WINDOW);
    writer.stdin(&vec![0; room]).expect("sent");
    writer.signal(15).expect("sent");
    assert_eq!(finish(&mut reader).2.shell_code(), 143);
}

#[test]
fn a_slow_reader_stops_only_its_own_session() {
    let (mut slow, slow_writer) = open(&sh("yes"));
    let (out, _, exit) = run(&sh("echo quick"));
    assert_eq!((out.as_slice(), exit.shell_code()), (&b"quick\n"[..], 0));
    let mut slow_writer = slow_writer;
    slow_writer.signal(9).expect("sent");
    assert_eq!(finish(&mut slow).2.shell_code(), 137);
}

#[test]
fn a_background_process_does_not_hold_the_exit() {
    let (out, _, exit) = run(&sh("sleep 1000 & echo $!"));
    assert_eq!(exit.shell_code(), 0);
    let pid = String::from_utf8(out).expect("a number").trim().to_owned();
    assert!(Path::new("/proc").join(&pid).exists(), "it lives on");
    let (_, _, exit) = run(&exec(&["kill", "-9", &pid]));
    assert_eq!(exit.shell_code(), 0);
    until("the orphan's reaping", || !Path::new("/proc").join(&pid).exists());
}

#[test]
fn a_lost_connection_hangs_up() {
    let dir = tempfile::tempdir().expect("a folder");
    let mark = dir.path().join("mark");
    let script =
        format!("trap 'echo hup > {}; exit' HUP; echo up; while :; do sleep 0.05; done", mark.display());
    let (mut reader, writer) = open(&sh(&script));
    assert!(matches!(reader.next_event(), Ok(SessionEvent::Stdout { .. })));
    drop((reader, writer));
    until("the hang-up", || fs::read(&mark).is_ok_and(|text| text == b"hup\n"));
}

#[test]
fn many_sessions_at_once_each_get_their_own_end() {
    let sessions: Vec<_> = (0..40)
        .map(|n| std::thread::spawn(move || (n, run(&sh(&format!("(sleep 0.01 &); echo {n}; exit {n}"))))))
        .collect();
    for session in sessions {
        let (n, (out, _, exit)) = session.join().expect("no panic");
        assert_eq!((out, exit.shell_code()), (format!("{n}\n").into_bytes(), n));
    }
}

#[test]
fn a_name_is_used_once_at_a_time() {
    let named = Exec { session_id: "mine".into(), ..exec(&["sleep", "1000"]) };
    let (mut reader, mut writer) = open(&named);
    assert_eq!(refused(&named).cause(), Cause::Invalid);
    writer.signal(9).expect("sent");
    finish(&mut reader);
}

#[test]
fn too_much_input_ends_the_session() {
    let stream = dial();
    let (_reader, writer) = {
        let session = Session::open(
            stream.try_clone().expect("a clone"),
            stream.try_clone().expect("a clone"),
            &Exec { stdin: true, ..exec(&["sleep", "1000"]) },
        );
        match session.expect("a session") {
            Session::Running { reader, writer, .. } => (reader, writer),
            Session::NotStarted(refusal) => panic!("{refusal:?}"),
        }
    };
    // The client keeps the window; a host that does not is cut off.
    let mut raw = stream.try_clone().expect("a clone");
    let piece = vec![0; frame::MAX_DATA];
    let mut offset = 0;
    while frame::write_data(&mut raw, kind::STDIN, offset, &piece).is_ok() {
        offset += piece.len() as u64;
        assert!(offset < 64 * STDIN_WINDOW, "it takes everything");
    }
    drop(writer);
}

#[test]
fn control_tells_status_and_metrics() {
    let mut control = Control::connect(dial()).expect("connected");
    assert_eq!(control.welcome().generation, GENERATION);
    assert_eq!(control.wait_ready().expect("ready").phase(), Phase::Ready);
    let metrics = control.metrics().expect("metrics");
    assert!(metrics.memory_total > 0);
    assert!(!control.get_status().expect("status").kernel.is_empty());
    let mut second = Control::connect(dial()).expect("connected");
    assert!(second.metrics().is_ok() && control.metrics().is_ok());
}

#[test]
fn control_hears_of_sessions() {
    let mut control = Control::connect(dial()).expect("connected");
    let (mut reader, mut writer) = open(&exec(&["sleep", "1000"]));
    let seen = control.next_status().expect("an event");
    assert!(seen.phase() == Phase::Ready);
    writer.signal(9).expect("sent");
    finish(&mut reader);
}

#[test]
fn an_unknown_request_is_answered_with_a_failure() {
    let mut stream = dial();
    let hello = Hello { generation: 9, oldest: 1, purpose: Purpose::Control.into() };
    frame::write_message(&mut stream, kind::HELLO, &hello).expect("sent");
    // Field 99 stands for an operation that a newer host knows.
    let mut request = prost_request(5);
    request.extend_from_slice(&[0x9a, 0x06, 0x00]);
    frame::write(&mut stream, kind::REQUEST, &[&request]).expect("sent");
    let mut frames = FrameReader::new(stream);
    loop {
        if frames.read_frame().expect("a frame") == Some(kind::REPLY) {
            let reply: Reply = frames.message().expect("a reply");
            assert_eq!(reply.id, 5);
            assert!(matches!(reply.outcome, Some(agent_proto::messages::Outcome::Failure(_))));
            return;
        }
    }
}

/// A request with an id only, as bytes.
fn prost_request(id: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write_message(&mut bytes, kind::REQUEST, &Request { id, operation: None }).expect("memory");
    bytes.split_off(frame::HEADER_LEN)
}

#[test]
fn a_wrong_hello_is_refused() {
    let answer = |hello: Hello| {
        let mut stream = dial();
        frame::write_message(&mut stream, kind::HELLO, &hello).expect("sent");
        let mut frames = FrameReader::new(stream);
        assert_eq!(frames.read_frame().expect("a frame"), Some(kind::REFUSED));
        let refused: Refused = frames.message().expect("a refusal");
        assert_eq!(refused.generation, GENERATION);
    };
    let control: i32 = Purpose::Control.into();
    answer(Hello { generation: GENERATION + 9, oldest: GENERATION + 1, purpose: control });
    answer(Hello { generation: 0, oldest: 0, purpose: control });
    answer(Hello { generation: GENERATION, oldest: 1, purpose: 77 });

    let mut stream = dial();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("sent");
    match FrameReader::new(stream).read_frame() {
        Ok(None) => {}
        Err(e) => assert!(e.is_disconnect(), "{e}"),
        Ok(Some(kind)) => panic!("it answers with {kind}"),
    }
}

#[test]
fn a_logs_followers_get_what_is_kept_and_what_comes() {
    crate::console::log("before anybody listens");
    let mut control = Control::connect(dial()).expect("a connection");
    control.follow_logs().expect("it is known");
    let mut next = |word: &str| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if let agent_proto::messages::Happening::Log(line) = control.next_event().expect("an event")
                && line.text == word.as_bytes()
            {
                assert_eq!(line.source(), agent_proto::messages::LogSource::Agent);
                return;
            }
        }
        panic!("{word} never came");
    };
    next("before anybody listens");
    crate::console::log("while somebody listens");
    next("while somebody listens");
}
