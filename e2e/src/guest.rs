//! What runs inside the virtual Linux host, and the protocol by which the harness talks to it.
//!
//! ```text
//! harness == unix socket == qemu == virtio-serial == guest-agent serve
//!                                                       +-- sh -ec <script>          one per request
//!                                                       +-- guest-agent io …         measured I/O
//! ```
//!
//! Virtio-serial rather than the network, so that the faults under test never touch the conversation.
//!
//! A frame is: length of the header (4 bytes, little endian), length of the body (4 bytes), the header as JSON, the
//! body as it is. Requests are answered in the order in which they end, not in which they came.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub mod agent;
pub mod fabrics;
pub mod io_load;
pub mod pattern;
pub mod plugin;

/// More than any output a story looks at; a larger one is a runaway script.
pub const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Headers carry scripts.
pub const HEADER_BYTES_MAX: usize = 1024 * 1024;

/// From the harness to the agent.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Run `sh -ec <script>` with the body as its standard input.
    Run { id: u64, script: String },
    /// Kill the script of an earlier request, and everything it started. It is then answered as killed.
    Kill { id: u64 },
}

/// From the agent to the harness.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// The first frame: the guest is up.
    Ready { kernel: String },
    /// The script ended. The body is its standard output, then from `stdout_bytes` on its standard error.
    /// `code` is absent when a signal ended it.
    Done { id: u64, code: Option<i32>, stdout_bytes: usize },
}

/// Writes one frame.
pub fn write_frame<T: Serialize>(mut to: impl Write, header: &T, body: &[u8]) -> io::Result<()> {
    to.write_all(&encode(header, body)?)?;
    to.flush()
}

/// The bytes of one frame.
pub fn encode<T: Serialize>(header: &T, body: &[u8]) -> io::Result<Vec<u8>> {
    let header = serde_json::to_vec(header)?;
    let lengths = [length(header.len(), HEADER_BYTES_MAX)?, length(body.len(), BODY_BYTES_MAX)?];
    let mut bytes = Vec::with_capacity(8 + header.len() + body.len());
    bytes.extend(lengths.iter().flat_map(|length| length.to_le_bytes()));
    bytes.extend(header);
    bytes.extend(body);
    Ok(bytes)
}

/// Lengths of header and body, from the first eight bytes of a frame.
pub fn decode_lengths(bytes: [[u8; 4]; 2]) -> io::Result<(usize, usize)> {
    let [header, body] = bytes.map(|bytes| u32::from_le_bytes(bytes) as usize);
    length(header, HEADER_BYTES_MAX)?;
    length(body, BODY_BYTES_MAX)?;
    Ok((header, body))
}

/// Reads one frame.
pub fn read_frame<T: DeserializeOwned>(mut from: impl Read) -> io::Result<(T, Vec<u8>)> {
    let mut lengths = [[0; 4]; 2];
    from.read_exact(lengths.as_flattened_mut())?;
    let (header_len, body_len) = decode_lengths(lengths)?;
    let mut header = vec![0; header_len];
    from.read_exact(&mut header)?;
    let mut body = vec![0; body_len];
    from.read_exact(&mut body)?;
    Ok((serde_json::from_slice(&header)?, body))
}

fn length(bytes: usize, max: usize) -> io::Result<u32> {
    match u32::try_from(bytes) {
        Ok(length) if bytes <= max => Ok(length),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame part of {bytes} bytes exceeds the limit of {max}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Outputs are bytes, not text: the body must come through untouched.
    #[test]
    fn a_frame_comes_back_as_it_was_sent() {
        let header = Request::Run { id: 7, script: "cat".into() };
        let bytes = encode(&header, &[0, 255, b'\n']).unwrap();
        let (back, body) = read_frame::<Request>(&bytes[..]).unwrap();
        assert_eq!((back, body), (header, vec![0, 255, b'\n']));
    }

    /// A stray byte on the line must not make either side reserve gigabytes.
    #[test]
    fn a_length_beyond_the_limit_is_refused() {
        let error = read_frame::<Request>(&[0xff; 64][..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
