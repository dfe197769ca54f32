//! Servers on this host's loopback address, each on threads of its own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;

/// Ports of all servers.
pub(crate) struct Servers {
    /// Reads and throws away.
    pub(crate) sink: u16,
    /// Writes without end.
    pub(crate) source: u16,
    /// Answers with what it hears.
    pub(crate) echo: u16,
    /// Holds connections until [`Servers::let_go`].
    pub(crate) gate: u16,
    /// Bytes that the sinks have read.
    pub(crate) sunk: Arc<AtomicU64>,
    held: Arc<Mutex<Vec<TcpStream>>>,
}

impl Servers {
    pub(crate) fn start() -> Result<Self> {
        let sunk = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&sunk);
        let sink = serve(move |mut stream| {
            let mut buffer = vec![0; 1 << 20];
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                count.fetch_add(read as u64, Ordering::Relaxed);
            }
        })?;
        let source = serve(|mut stream| {
            let zeros = vec![0; 1 << 20];
            while stream.write_all(&zeros).is_ok() {}
        })?;
        let echo = serve(|mut stream| {
            let _ = stream.set_nodelay(true);
            let mut buffer = vec![0; 4096];
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
        })?;
        let held = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&held);
        let gate = serve(move |stream| keep.lock().unwrap_or_else(PoisonError::into_inner).push(stream))?;
        Ok(Self { sink, source, echo, gate, sunk, held })
    }

    /// Ends the gate's connections.
    pub(crate) fn let_go(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// All ports.
    pub(crate) fn ports(&self) -> [u16; 4] {
        [self.sink, self.source, self.echo, self.gate]
    }
}

/// A thread for each connection, with little of a stack: there are many.
pub(crate) fn serve(work: impl Fn(TcpStream) + Send + Sync + 'static) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let work = Arc::new(work);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let work = Arc::clone(&work);
            let thread = std::thread::Builder::new().stack_size(256 << 10);
            if let Err(error) = thread.spawn(move || work(stream)) {
                eprintln!("a server has no thread: {error}");
            }
        }
    });
    Ok(port)
}
