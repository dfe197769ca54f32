//! A stream that ends at a moment, however its other side spreads its bytes.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A socket whose reads and writes fail with [`io::ErrorKind::TimedOut`] from the deadline on. A timeout for each read
/// would not do: who sends a byte now and then meets it for ever.
#[derive(Debug)]
pub(crate) struct Deadline {
    stream: UnixStream,
    at: Instant,
}

impl Deadline {
    pub(crate) fn new(stream: UnixStream, at: Instant) -> Self {
        Self { stream, at }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Deadline {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(bytes)
    }
}

impl Write for Deadline {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_keep_coming_do_not_move_the_deadline() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"one after another").unwrap();
        let mut stream = Deadline::new(near, Instant::now() + Duration::from_secs(3600));
        let mut byte = [0u8; 1];
        assert_eq!(stream.read(&mut byte).unwrap(), 1);
        // There is more to read, but the time is over.
        stream.at = Instant::now();
        assert_eq!(stream.read(&mut byte).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(stream.write(b"x").unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
