//! The encoding of RFC 4251, section 5, and the frames of the agent's protocol.

/// The longest message, in bytes, as OpenSSH has it (AGENT_MAX_LEN).
pub const MAX_MESSAGE: usize = 256 << 10;

/// A frame that says it is longer than [`MAX_MESSAGE`], or empty: the connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message to the SSH agent is empty or longer than {MAX_MESSAGE} bytes")]
pub struct TooLong;

/// Cuts a stream into messages.
#[derive(Debug, Default)]
pub struct Frames(Vec<u8>);

impl Frames {
    /// Takes the next bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next message without its length, if all of it has come.
    pub fn next_message(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let Some((length, rest)) = self.0.split_first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length == 0 || length > MAX_MESSAGE {
            return Err(TooLong);
        }
        let Some(message) = rest.get(..length) else { return Ok(None) };
        let message = message.to_vec();
        self.0.drain(..length.saturating_add(4));
        Ok(Some(message))
    }

    /// A message with its length before it.
    pub fn framed(message: &[u8]) -> Vec<u8> {
        // No message of ours is longer than what was taken.
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        [&length.to_be_bytes(), message].concat()
    }
}

/// Reads values one after another; `None` where one does not fit.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    pub(crate) fn bool(&mut self) -> Option<bool> {
        self.byte().map(|byte| byte != 0)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*bytes))
    }

    pub(crate) fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        let value = self.0.get(..length)?;
        self.0 = self.0.get(length..)?;
        Some(value)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

pub(crate) fn put_string(out: &mut Vec<u8>, value: &[u8]) {
    out.extend_from_slice(&Frames::framed(value));
}
