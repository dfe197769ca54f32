//! The body of the fuzz target `agent_proto`; the replay test runs it on the corpus.

use agent_proto::client::{Control, Session, SessionEvent};
use agent_proto::frame::{self, FrameReader};
use agent_proto::messages::{
    Environment, Event, Exec, Exit, Hello, Operation, Reply, Request, Signal, Status, Trust, Welcome,
    WindowSize,
};

/// Input from the fuzzer, output to nowhere.
struct OneWay<'a>(&'a [u8]);

impl std::io::Read for OneWay<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl std::io::Write for OneWay<'_> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Must neither panic nor loop, whatever the bytes; the first chooses the reader.
pub(crate) fn drive(data: &[u8]) {
    let Some((choice, stream)) = data.split_first() else { return };
    match choice % 3 {
        0 => as_frames(stream),
        1 => {
            if let Ok(mut control) = Control::connect(OneWay(stream)) {
                let _ = control.wait_ready();
                let _ = control.metrics();
                while control.next_status().is_ok() {}
            }
        }
        _ => {
            let opened = Session::open(stream, std::io::sink(), &Exec::default());
            if let Ok(Session::Running { mut reader, mut writer, .. }) = opened {
                let mut expected = 0u64;
                while let Ok(event) = reader.next_event() {
                    if let SessionEvent::Stdout { data, .. } | SessionEvent::Stderr { data, .. } = event {
                        expected += data.len() as u64;
                    }
                    let room = writer.stdin_room().min(16);
                    let _ = writer.stdin(&[0; 16][..room]);
                }
                assert!(expected <= stream.len() as u64, "more output than was sent");
            }
        }
    }
}

fn as_frames(stream: &[u8]) {
    let mut frames = FrameReader::new(stream);
    while let Ok(Some(kind)) = frames.read_frame() {
        let limit = frame::limit(kind).expect("a kind that was let through has a limit");
        assert!(frames.body().len() <= limit as usize);
        let _ = frames.data();
        let _ = frames.message::<Hello>();
        let _ = frames.message::<Welcome>();
        let _ = frames.message::<Request>().map(bounded);
        let _ = frames.message::<Reply>();
        let _ = frames.message::<Event>();
        let _ = frames.message::<Status>();
        let _ = frames.message::<Exec>();
        let _ = frames.message::<Exit>().map(|exit| exit.shell_code());
        let _ = frames.message::<Signal>();
        let _ = frames.message::<WindowSize>();
    }
}

/// What the agent checks before it uses it keeps its bounds.
fn bounded(request: Request) {
    let (trust, environment) = match request.operation {
        Some(Operation::Setup(setup)) => (setup.trust, setup.environment),
        Some(Operation::SetTrust(trust)) => (Some(trust), None),
        Some(Operation::SetEnvironment(environment)) => (None, Some(environment)),
        _ => (None, None),
    };
    if let Some(trust) = trust.filter(|trust| trust.check().is_ok()) {
        assert!(trust.certificates.iter().map(Vec::len).sum::<usize>() <= Trust::MAX_TOTAL);
    }
    if let Some(pairs) = environment.as_ref().and_then(|environment| environment.pairs().ok()) {
        assert!(pairs.len() <= Environment::MAX);
        assert!(pairs.iter().all(|(name, value)| !name.contains(['=', '\0']) && !value.contains(&0)));
    }
}
