//! Runs one command in the guest through its agent, with this process's standard streams.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use agent_proto::client::{Control, Session, SessionEvent};
use agent_proto::{abi, messages::Exec};
use virtio_devices::VsockHost;

fn dial(host: &VsockHost) -> std::io::Result<UnixStream> {
    let (near, far) = UnixStream::pair()?;
    host.connect(far.into(), abi::AGENT_PORT);
    Ok(near)
}

/// Waits for the agent, runs `command` with a shell; gives its exit code.
pub(crate) fn run(host: &VsockHost, command: &str) -> anyhow::Result<u32> {
    let start = Instant::now();
    let mut control = loop {
        match Control::connect(dial(host)?) {
            Ok(control) => break control,
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    control.wait_ready()?;
    eprintln!("the agent is ready after {:?}", start.elapsed());
    let start = Instant::now();
    let stream = dial(host)?;
    let argv = ["/bin/sh", "-c", command].map(|word| word.as_bytes().to_vec()).to_vec();
    let exec = Exec { argv, user: "root".to_owned(), stdin: true, ..Exec::default() };
    let (mut reader, mut writer) = match Session::open(stream.try_clone()?, stream, &exec)? {
        Session::Running { reader, writer, .. } => (reader, writer),
        Session::NotStarted(reason) => anyhow::bail!("not started: {reason:?}"),
    };
    std::thread::spawn(move || {
        let mut buffer = [0; 16 << 10];
        loop {
            match std::io::stdin().read(&mut buffer) {
                Ok(0) | Err(_) => return writer.stdin_end(),
                Ok(len) => {
                    writer.stdin(&buffer[..len])?;
                }
            }
        }
    });
    loop {
        match reader.next_event()? {
            SessionEvent::Stdout { data, .. } => std::io::stdout().write_all(data)?,
            SessionEvent::Stderr { data, .. } => std::io::stderr().write_all(data)?,
            SessionEvent::Exit(exit) => {
                eprintln!("exit {} after {:?}", exit.shell_code(), start.elapsed());
                return Ok(exit.shell_code() as u32);
            }
            _ => {}
        }
    }
}
