//! The protocol against itself: what is written can be read, what is wrong is refused, and the bytes stay what they are.

use std::io::Cursor;

use agent_proto::ProtoError;
use agent_proto::client::{Control, STDIN_WINDOW, Session, SessionEvent};
use agent_proto::frame::{self, FrameReader, HEADER_LEN, MAX_DATA, MAX_MESSAGE, MAX_SMALL, SKIPPABLE, kind};
use agent_proto::messages::{
    Cause, Docker, Empty, Ending, Environment, Event, Exec, Exit, Happening, Hello, NotStarted, Opened,
    Operation, Outcome, Phase, Pty, Purpose, Refused, Reply, Request, Setup, Share, Shutdown, Status, Trust,
    Welcome, WindowSize,
};
use prost::Message;

/// A stream whose input is given and whose output is kept.
struct Script {
    input: Cursor<Vec<u8>>,
    output: Vec<u8>,
}

impl Script {
    fn new(frames: &[(u8, Vec<u8>)]) -> Self {
        Self { input: Cursor::new(join(frames)), output: Vec::new() }
    }
}

impl std::io::Read for Script {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        // A byte at a time now and then: frames must not depend on how the stream cuts them.
        let most = if self.input.position().is_multiple_of(3) { 1 } else { buffer.len() };
        let end = most.min(buffer.len());
        self.input.read(&mut buffer[..end])
    }
}

impl std::io::Write for Script {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        self.output.write(buffer)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn join(frames: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, body) in frames {
        frame::write(&mut bytes, *kind, &[body]).expect("within the limits");
    }
    bytes
}

fn welcome() -> (u8, Vec<u8>) {
    (kind::WELCOME, Welcome { generation: 1, agent_version: "0.1.0".into() }.encode_to_vec())
}

fn status(phase: Phase) -> (u8, Vec<u8>) {
    let mut status = Status::default();
    status.set_phase(phase);
    (kind::EVENT, Event { happening: Some(Happening::Status(status)) }.encode_to_vec())
}

fn data(kind: u8, offset: u64, data: &[u8]) -> (u8, Vec<u8>) {
    (kind, [&offset.to_le_bytes(), data].concat())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn full_exec() -> Exec {
    Exec {
        session_id: "s".into(),
        argv: vec![b"ls".to_vec(), vec![0xff]],
        env: vec![b"A=b".to_vec()],
        cwd: b"/w".to_vec(),
        user: "root".into(),
        pty: Some(Pty { size: Some(WindowSize { rows: 24, cols: 80 }), term: "xterm".into() }),
        stdin: true,
    }
}

/// These bytes are in the world: a running sandbox's agent reads them whatever this code becomes.
#[test]
fn golden_bytes() {
    let framed = |kind: u8, body: Vec<u8>| hex(&join(&[(kind, body)]));
    let hello = Hello { generation: 1, oldest: 1, purpose: Purpose::Session.into() };
    assert_eq!(framed(kind::HELLO, hello.encode_to_vec()), "0600000001080110011802");
    assert_eq!(framed(kind::WELCOME, welcome().1), "090000000208011205302e312e30");
    assert_eq!(
        framed(kind::EXEC, full_exec().encode_to_vec()),
        "2a000000200a017312026c731201ff1a03413d6222022f772a04726f6f74320d0a04081810501205787465726d3801"
    );
    let exit = Exit { ending: Some(Ending::Signal(9)), out_of_memory: true };
    assert_eq!(framed(kind::EXIT, exit.encode_to_vec()), "040000002b10091801");
    let setup = Setup {
        hostname: "h".into(),
        shares: vec![Share { name: "0".into(), path: b"/w".to_vec(), read_only: true }],
        ..Setup::default()
    };
    let request = Request { id: 1, operation: Some(Operation::Setup(setup)) };
    assert_eq!(
        framed(kind::REQUEST, request.encode_to_vec()),
        "12000000100801120e0a016822090a013012022f771801"
    );
    let network = Setup {
        trust: Some(Trust { certificates: vec![b"c".to_vec()] }),
        environment: Some(Environment { variables: vec![b"A=b".to_vec()] }),
        ..Setup::default()
    };
    let request = Request { id: 3, operation: Some(Operation::Setup(network)) };
    assert_eq!(framed(kind::REQUEST, request.encode_to_vec()), "10000000100803120c32030a01633a050a03413d62");
    let request = Request { id: 4, operation: Some(Operation::SetTrust(Trust::default())) };
    assert_eq!(framed(kind::REQUEST, request.encode_to_vec()), "040000001008045200");
    let shutdown = Request {
        id: 2,
        operation: Some(Operation::Shutdown(Shutdown { timeout_ms: 1000, ..Shutdown::default() })),
    };
    assert_eq!(framed(kind::REQUEST, shutdown.encode_to_vec()), "07000000100802420308e807");
    assert_eq!(hex(&join(&[data(kind::STDOUT, 258, b"hi")])), "0a0000002702010000000000006869");
    assert_eq!(hex(&join(&[(kind::STDIN_END, Vec::new())])), "0000000024");
}

#[test]
fn kinds_keep_their_numbers() {
    let kinds = [
        kind::HELLO,
        kind::WELCOME,
        kind::REFUSED,
        kind::REQUEST,
        kind::REPLY,
        kind::EVENT,
        kind::EXEC,
        kind::OPENED,
        kind::NOT_STARTED,
        kind::STDIN,
        kind::STDIN_END,
        kind::STDIN_TAKEN,
        kind::STDIN_CLOSED,
        kind::STDOUT,
        kind::STDERR,
        kind::RESIZE,
        kind::SIGNAL,
        kind::EXIT,
    ];
    assert_eq!(hex(&kinds), "010203101112202122232425262728292a2b");
    assert!(kinds.iter().all(|k| frame::limit(*k).is_some() && *k < SKIPPABLE));
    assert_eq!((0..SKIPPABLE).filter(|k| frame::limit(*k).is_some()).count(), kinds.len());
}

#[test]
fn messages_come_back_as_they_were() {
    let mut bytes = Vec::new();
    frame::write_message(&mut bytes, kind::EXEC, &full_exec()).expect("memory");
    let status = Status {
        phase: Phase::Ready.into(),
        message: "m".into(),
        docker: Docker::Failing.into(),
        sessions: 3,
        ready_micros: 1 << 40,
        kernel: "6.12".into(),
        first_boot: true,
        base: "pmem".into(),
        set_up: true,
        network: true,
    };
    let event = Event { happening: Some(Happening::Status(status)) };
    frame::write_message(&mut bytes, kind::EVENT, &event).expect("memory");
    let mut frames = FrameReader::new(bytes.as_slice());
    assert_eq!(frames.read_frame().expect("a frame"), Some(kind::EXEC));
    assert_eq!(frames.message::<Exec>().expect("a message"), full_exec());
    assert_eq!(frames.read_frame().expect("a frame"), Some(kind::EVENT));
    assert_eq!(frames.message::<Event>().expect("a message"), event);
    assert_eq!(frames.read_frame().expect("the end"), None);
}

#[test]
fn what_is_sent_for_the_network_has_bounds() {
    let trust = |certificates: Vec<Vec<u8>>| Trust { certificates }.check();
    assert_eq!(trust(vec![vec![0; 1024]; Trust::MAX]), Ok(()));
    assert!(trust(vec![vec![0; 1]; Trust::MAX + 1]).is_err());
    assert!(trust(vec![vec![0; Trust::MAX_LEN + 1]]).is_err());
    assert!(trust(vec![vec![0; Trust::MAX_LEN]; Trust::MAX_TOTAL / Trust::MAX_LEN + 1]).is_err());

    let pairs = |variables: &[&[u8]]| {
        let variables = variables.iter().map(|one| one.to_vec()).collect();
        Environment { variables }
            .pairs()
            .map(|pairs| pairs.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect::<Vec<_>>())
    };
    let good = pairs(&[b"A=", b"_b2=x=y\xff"]).expect("variables");
    assert_eq!(good, [("A".into(), b"".to_vec()), ("_b2".into(), b"x=y\xff".to_vec())]);
    let npm = pairs(&[b"npm_config_//registry.example/:_authToken=x"]).expect("a name that no shell has");
    assert_eq!(npm[0].0, "npm_config_//registry.example/:_authToken");
    for bad in [&b""[..], b"A", b"=x", b"2A=x", b"A B=x", b"A\n=x", b"\xff=x", b"A=\0"] {
        assert!(pairs(&[bad]).is_err(), "{bad:?}");
    }
    assert!(pairs(&[&b"A=x"[..]; Environment::MAX + 1]).is_err());
    let large = [b"A=".to_vec(), vec![b'x'; Environment::MAX_TOTAL]].concat();
    assert!(pairs(&[&large]).is_err());
    // The largest of both goes into one setup.
    let both = Setup {
        trust: Some(Trust { certificates: vec![vec![0; Trust::MAX_LEN]; Trust::MAX_TOTAL / Trust::MAX_LEN] }),
        environment: Some(Environment { variables: vec![vec![b'x'; Environment::MAX_TOTAL]] }),
        ..Setup::default()
    };
    assert!(both.encoded_len() < MAX_SMALL as usize - 32 * 1024);
}

#[test]
fn every_cut_of_a_stream_is_truncated() {
    let whole = join(&[welcome(), data(kind::STDOUT, 0, b"output")]);
    let first = HEADER_LEN + welcome().1.len();
    for end in 0..=whole.len() {
        let mut frames = FrameReader::new(&whole[..end]);
        let last = loop {
            match frames.read_frame() {
                Ok(Some(_)) => {}
                other => break other,
            }
        };
        match last {
            Ok(None) => assert!(end == 0 || end == first || end == whole.len(), "{end}"),
            Err(ProtoError::Truncated) => assert!(end != 0 && end != first && end != whole.len(), "{end}"),
            other => panic!("{other:?} at {end}"),
        }
    }
}

#[test]
fn a_frame_over_its_limit_is_refused_before_its_body() {
    for (kind, limit) in [
        (kind::HELLO, MAX_SMALL),
        (kind::EXEC, MAX_MESSAGE),
        (kind::STDOUT, MAX_DATA as u32 + 8),
        (kind::STDIN_END, 0),
        (kind::STDIN_TAKEN, 8),
        (SKIPPABLE, MAX_SMALL),
        (0xff, MAX_SMALL),
    ] {
        for len in [limit + 1, u32::MAX] {
            // No body follows: reading one would say that it is truncated.
            let header = [&len.to_le_bytes()[..], &[kind]].concat();
            match FrameReader::new(header.as_slice()).read_frame() {
                Err(ProtoError::TooLarge { kind: k, len: l, limit: m }) => {
                    assert_eq!((k, l, m), (kind, len, limit))
                }
                other => panic!("{other:?} for {kind:#x}"),
            }
        }
        let body = vec![0; limit as usize];
        assert_eq!(
            FrameReader::new(join(&[(kind, body)]).as_slice()).read_frame().expect("fits"),
            Some(kind)
        );
        let over = vec![0; limit as usize + 1];
        let mut written = Vec::new();
        assert!(matches!(frame::write(&mut written, kind, &[&over]), Err(ProtoError::TooLarge { .. })));
        assert!(written.is_empty());
    }
}

#[test]
fn unknown_kinds_end_the_connection_unless_marked() {
    for kind in [0x00, 0x04, 0x0f, 0x13, 0x2c, 0x7f] {
        let header = [0, 0, 0, 0, kind];
        let read = FrameReader::new(&header[..]).read_frame();
        assert!(matches!(read, Err(ProtoError::UnexpectedFrame(k)) if k == kind), "{kind:#x}");
    }
    let script = Script::new(&[
        welcome(),
        status(Phase::Booting),
        (0x80, vec![1, 2, 3]),
        (0xff, vec![]),
        status(Phase::Ready),
    ]);
    assert_eq!(
        Control::connect(script).expect("connected").wait_ready().expect("ready").phase(),
        Phase::Ready
    );
}

#[test]
fn unknown_fields_and_choices_are_skipped() {
    // A newer agent's welcome with a field 15, and an event of a kind that this host does not know.
    let mut newer = welcome();
    newer.1.extend_from_slice(&[0x7a, 0x02, 0x01, 0x02]);
    let strange = (kind::EVENT, vec![0x9a, 0x06, 0x00]);
    let script = Script::new(&[newer, strange, status(Phase::Ready)]);
    assert_eq!(Control::connect(script).expect("connected").status().phase(), Phase::Ready);
}

#[test]
fn malformed_bodies_are_refused() {
    let bad = Script::new(&[(kind::WELCOME, vec![0xff])]);
    assert!(matches!(Control::connect(bad), Err(ProtoError::Malformed(kind::WELCOME))));
    let mut frames = FrameReader::new(&[3, 0, 0, 0, kind::STDOUT, 1, 2, 3][..]);
    assert_eq!(frames.read_frame().expect("a frame"), Some(kind::STDOUT));
    assert!(matches!(frames.data(), Err(ProtoError::Malformed(kind::STDOUT))));
}

#[test]
fn generations_are_negotiated() {
    let refused = Refused { reason: "old".into(), generation: 0 };
    let script = Script::new(&[(kind::REFUSED, refused.encode_to_vec())]);
    assert!(matches!(Control::connect(script), Err(ProtoError::Refused(reason)) if reason == "old"));
    // An agent cannot choose a generation that was not offered.
    let script =
        Script::new(&[(kind::WELCOME, Welcome { generation: 2, ..Welcome::default() }.encode_to_vec())]);
    assert!(matches!(Control::connect(script), Err(ProtoError::Incompatible { theirs: 2, .. })));
    let script = Script::new(&[(kind::WELCOME, Vec::new())]);
    assert!(matches!(Control::connect(script), Err(ProtoError::Incompatible { theirs: 0, .. })));
}

#[test]
fn replies_find_their_request_among_events() {
    let reply = |id, outcome| (kind::REPLY, Reply { id, outcome: Some(outcome) }.encode_to_vec());
    let failure = agent_proto::messages::Failure { message: "no".into() };
    let script = Script::new(&[
        welcome(),
        status(Phase::Booting),
        status(Phase::Ready),
        reply(77, Outcome::Done(Empty {})),
        reply(1, Outcome::Done(Empty {})),
        reply(2, Outcome::Failure(failure)),
        reply(3, Outcome::Done(Empty {})),
    ]);
    let mut control = Control::connect(script).expect("connected");
    control.set_clock().expect("done");
    assert_eq!(control.next_status().expect("kept").phase(), Phase::Ready);
    assert!(matches!(control.seed(vec![1]), Err(ProtoError::Failed(why)) if why == "no"));
    // The wrong sort of answer is the guest's mistake, not data.
    assert!(matches!(control.metrics(), Err(ProtoError::Malformed(kind::REPLY))));
    assert!(matches!(control.metrics(), Err(ProtoError::Closed)));
}

#[test]
fn a_failed_boot_is_told() {
    let mut failed = Status { message: "no base".into(), ..Status::default() };
    failed.set_phase(Phase::Failed);
    let event = (kind::EVENT, Event { happening: Some(Happening::Status(failed)) }.encode_to_vec());
    let mut control =
        Control::connect(Script::new(&[welcome(), status(Phase::Booting), event])).expect("connected");
    assert!(matches!(control.wait_ready(), Err(ProtoError::Failed(why)) if why == "no base"));
}

#[test]
fn a_session_from_start_to_exit() {
    let opened = (kind::OPENED, Opened { session_id: "s1".into(), pid: 7 }.encode_to_vec());
    let exit = (kind::EXIT, Exit { ending: Some(Ending::Code(3)), out_of_memory: false }.encode_to_vec());
    let input = join(&[
        welcome(),
        opened,
        data(kind::STDOUT, 0, b"ab"),
        (kind::STDIN_TAKEN, STDIN_WINDOW.to_le_bytes().to_vec()),
        (0x90, vec![0; 5]),
        data(kind::STDERR, 0, b""),
        exit,
    ]);
    let mut output = Vec::new();
    let Session::Running { mut reader, mut writer, opened } =
        Session::open(input.as_slice(), &mut output, &full_exec()).expect("open")
    else {
        panic!("it did not start")
    };
    assert_eq!((opened.session_id.as_str(), opened.pid), ("s1", 7));
    assert_eq!(writer.stdin_room() as u64, STDIN_WINDOW);
    let big = vec![7; STDIN_WINDOW as usize];
    assert!(writer.stdin(&big).expect("sent"));
    assert_eq!(writer.stdin_room(), 0);
    assert_eq!(reader.next_event().expect("output"), SessionEvent::Stdout { offset: 0, data: b"ab" });
    assert_eq!(reader.next_event().expect("output"), SessionEvent::Stderr { offset: 0, data: b"" });
    assert_eq!(writer.stdin_room() as u64, STDIN_WINDOW);
    let SessionEvent::Exit(exit) = reader.next_event().expect("the exit") else { panic!("no exit") };
    assert_eq!(exit.shell_code(), 3);
    assert!(!writer.stdin(b"more").expect("not sent"));
    assert!(matches!(reader.next_event(), Err(ProtoError::Closed)));

    // What went out: hello, exec, and the input in pieces that fit, without gaps.
    let mut frames = FrameReader::new(output.as_slice());
    assert_eq!(frames.read_frame().expect("a frame"), Some(kind::HELLO));
    assert_eq!(frames.read_frame().expect("a frame"), Some(kind::EXEC));
    let mut sent = 0;
    while let Some(kind) = frames.read_frame().expect("a frame") {
        assert_eq!(kind, kind::STDIN);
        let (offset, piece) = frames.data().expect("input");
        assert_eq!(offset, sent);
        sent += piece.len() as u64;
    }
    assert_eq!(sent, STDIN_WINDOW);
}

#[test]
fn what_did_not_start_has_a_shells_code() {
    let code = |cause: Cause| NotStarted { cause: cause.into(), message: String::new() }.shell_code();
    assert_eq!(
        [Cause::NotFound, Cause::NotExecutable, Cause::NoSuchUser, Cause::Unknown].map(code),
        [127, 126, 125, 125]
    );
    let strange = NotStarted { cause: 99, message: String::new() };
    assert_eq!(strange.shell_code(), 125);
    let exit = |ending| Exit { ending, out_of_memory: false }.shell_code();
    assert_eq!([exit(Some(Ending::Code(256 + 4))), exit(Some(Ending::Signal(9))), exit(None)], [4, 137, 125]);
}
