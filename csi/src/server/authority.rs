//! Calls of kubelets before Kubernetes 1.26, made palatable.
//!
//! They name the server (HTTP/2's `:authority`) by the path of its socket, `/var/lib/kubelet/plugins/…`, which is no
//! authority, and our HTTP/2 resets such a call with PROTOCOL_ERROR before anybody sees it. Nobody looks at the name:
//! so the slashes in it become dashes on the way in, and that is all that is changed.
//!
//! ```text
//! socket --bytes--> Frames (9-byte head, payload) --HEADERS--> fields --:authority--> '/' and '%' become '-'
//! ```
//!
//! The bytes stay as many as they were, and so does every length in them: in the plain form a byte is exchanged, in the
//! Huffman form a code of six bits for another of six. So the compressor's table, which both sides keep, stays in step.
//! A header that goes over several frames is left as it is; so is everything that is not understood.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::Connected;

/// RFC 9113, 3.4: what a client sends first.
const PREFACE_BYTES: usize = 24;
/// RFC 9113, 4.1.
const FRAME_HEAD_BYTES: usize = 9;
/// RFC 9113, 4.2: no frame is longer unless we allow it, and we do not.
const FRAME_BYTES_MAX: usize = 16_384;
/// RFC 9113, 6.2.
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;
/// RFC 7541, appendix A.
const AUTHORITY_INDEX: usize = 1;
/// How much is read at once.
const READ_BYTES: usize = 8192;

/// A connection whose calls name the server by a valid authority, whatever was sent.
#[derive(Debug)]
pub struct Palatable {
    stream: UnixStream,
    frames: Frames,
    /// To be handed on, from `handed` on.
    ready: Vec<u8>,
    handed: usize,
}

impl Palatable {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, frames: Frames::default(), ready: Vec::new(), handed: 0 }
    }
}

impl Connected for Palatable {
    type ConnectInfo = <UnixStream as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Palatable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.handed == this.ready.len() {
            this.ready.clear();
            this.handed = 0;
            let mut bytes = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                // The end; a frame that was cut off goes on as it is.
                this.ready.append(&mut this.frames.held);
                if this.ready.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                break;
            }
            this.frames.pass(read.filled(), &mut this.ready);
        }
        let count = buffer.remaining().min(this.ready.len() - this.handed);
        buffer.put_slice(&this.ready[this.handed..this.handed + count]);
        this.handed += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Palatable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Where in the stream of frames we are.
#[derive(Debug)]
struct Frames {
    /// Bytes that only pass.
    passing: usize,
    /// The head of a frame, or all of it where it is to be changed; at most [`FRAME_BYTES_MAX`] and its head.
    held: Vec<u8>,
}

impl Default for Frames {
    fn default() -> Self {
        Self { passing: PREFACE_BYTES, held: Vec::new() }
    }
}

impl Frames {
    /// Takes what came in and appends what goes on.
    fn pass(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let count = if self.passing > 0 { self.passing } else { self.missing() }.min(bytes.len());
            let (now, later) = bytes.split_at(count);
            bytes = later;
            if self.passing > 0 {
                out.extend_from_slice(now);
                self.passing -= count;
                continue;
            }
            self.held.extend_from_slice(now);
            if self.missing() == 0 {
                self.finish(out);
            }
        }
    }

    /// Bytes until what is held can be dealt with.
    fn missing(&self) -> usize {
        if self.held.len() < FRAME_HEAD_BYTES {
            return FRAME_HEAD_BYTES - self.held.len();
        }
        match self.is_held_whole() {
            true => FRAME_HEAD_BYTES + self.payload_bytes() - self.held.len(),
            false => 0,
        }
    }

    /// The head is whole.
    fn payload_bytes(&self) -> usize {
        usize::from(self.held[0]) << 16 | usize::from(self.held[1]) << 8 | usize::from(self.held[2])
    }

    fn is_held_whole(&self) -> bool {
        self.held[3] == HEADERS && self.payload_bytes() <= FRAME_BYTES_MAX
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        if self.is_held_whole() {
            let flags = self.held[4];
            let payload = &mut self.held[FRAME_HEAD_BYTES..];
            let before =
                usize::from(flags & PADDED != 0) + if flags & PRIORITY != 0 { PRIORITY_BYTES } else { 0 };
            if let Some(fields) = payload.get_mut(before..) {
                mend_fields(fields);
            }
        } else {
            self.passing = self.payload_bytes();
        }
        out.append(&mut self.held);
    }
}

/// Mends the authority among the fields of a header (RFC 7541, section 6), and stops at what it does not understand:
/// the authority is one of the first.
fn mend_fields(fields: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while let Some(&first) = fields.get(at) {
        let (prefix_bits, has_value) = match first {
            // 6.1: a field that both sides know.
            0x80.. => (7, false),
            // 6.2.1: a field to be remembered.
            0x40.. => (6, true),
            // 6.3: another size of the table.
            0x20.. => (5, false),
            // 6.2.2, 6.2.3: a field not to be remembered.
            _ => (4, true),
        };
        let index = integer(fields, &mut at, prefix_bits)?;
        if !has_value {
            continue;
        }
        if index == 0 {
            text(fields, &mut at)?;
        }
        let (value, is_huffman) = text(fields, &mut at)?;
        if index == AUTHORITY_INDEX {
            match is_huffman {
                true => mend_huffman(&mut fields[value]),
                false => mend_plain(&mut fields[value]),
            }
        }
    }
    Some(())
}

/// RFC 7541, section 5.1.
fn integer(fields: &[u8], at: &mut usize, prefix_bits: u32) -> Option<usize> {
    let mask = (1 << prefix_bits) - 1;
    let mut value = usize::from(fields.get(*at)? & mask);
    *at += 1;
    if value < usize::from(mask) {
        return Some(value);
    }
    // Three more bytes are more than any length that fits into a frame.
    for shift in [0, 7, 14] {
        let byte = *fields.get(*at)?;
        *at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// RFC 7541, section 5.2: where the text is, and whether it is in the Huffman form.
fn text(fields: &[u8], at: &mut usize) -> Option<(std::ops::Range<usize>, bool)> {
    let is_huffman = fields.get(*at)? & 0x80 != 0;
    let length = integer(fields, at, 7)?;
    let range = *at..at.checked_add(length)?;
    fields.get(range.clone())?;
    *at = range.end;
    Some((range, is_huffman))
}

fn mend_plain(text: &mut [u8]) {
    for byte in text.iter_mut().filter(|byte| matches!(**byte, b'/' | b'%')) {
        *byte = b'-';
    }
}

/// Lengths of the codes of what paths and names consist of, and the first and the last code of each length (RFC 7541,
/// appendix B). Longer ones are of rare characters.
const CODES: [(usize, u8, u8); 4] = [(5, 0x00, 0x09), (6, 0x14, 0x2d), (7, 0x5c, 0x7b), (8, 0xf8, 0xfd)];
const DASH: u8 = 0x16;
/// '%' and '/'.
const NOT_ALLOWED: [u8; 2] = [0x15, 0x18];

fn mend_huffman(text: &mut [u8]) {
    let bits = text.len() * 8;
    let bit = |text: &[u8], at: usize| text[at / 8] >> (7 - at % 8) & 1;
    let mut at = 0;
    'text: while at < bits {
        for (length, first, last) in CODES {
            if at + length > bits {
                break 'text;
            }
            let code = (at..at + length).fold(0, |code, at| code << 1 | bit(text, at));
            if !(first..=last).contains(&code) {
                continue;
            }
            if length == 6 && NOT_ALLOWED.contains(&code) {
                for offset in 0..length {
                    let (byte, mask) = ((at + offset) / 8, 1 << (7 - (at + offset) % 8));
                    match DASH >> (length - 1 - offset) & 1 {
                        0 => text[byte] &= !mask,
                        _ => text[byte] |= mask,
                    }
                }
            }
            at += length;
            continue 'text;
        }
        // A rare character, or the padding at the end.
        break;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOCKET: &str = "/var/lib/kubelet/plugins/io.openebs.csi-mayastor/csi.sock";
    const MENDED: &str = "-var-lib-kubelet-plugins-io.openebs.csi-mayastor-csi.sock";

    /// The text in the Huffman form, for the letters of [`SOCKET`].
    fn huffman(text: &str) -> Vec<u8> {
        let codes = [
            ('a', 5, 0x3),
            ('c', 5, 0x4),
            ('e', 5, 0x5),
            ('i', 5, 0x6),
            ('o', 5, 0x7),
            ('s', 5, 0x8),
            ('t', 5, 0x9),
            ('-', 6, 0x16),
            ('.', 6, 0x17),
            ('/', 6, 0x18),
            ('b', 6, 0x23),
            ('g', 6, 0x26),
            ('l', 6, 0x28),
            ('m', 6, 0x29),
            ('n', 6, 0x2a),
            ('p', 6, 0x2b),
            ('r', 6, 0x2c),
            ('u', 6, 0x2d),
            ('k', 7, 0x75),
            ('v', 7, 0x77),
            ('y', 7, 0x7a),
        ];
        let code_of = |letter| {
            let (_, length, code) = codes.iter().find(|(one, ..)| *one == letter).unwrap();
            format!("{code:0length$b}")
        };
        let (mut bits, mut out) = (text.chars().map(code_of).collect::<Vec<_>>().concat(), Vec::new());
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        for byte in bits.as_bytes().chunks(8) {
            out.push(u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 2).unwrap());
        }
        out
    }

    /// A HEADERS frame of a call as Go's gRPC sends it: method and scheme known, path and authority to be remembered.
    fn call(authority: &[u8], is_huffman: bool) -> Vec<u8> {
        let path = b"/csi.v1.Identity/Probe";
        let mut fields = vec![0x83, 0x86, 0x45, u8::try_from(path.len()).unwrap()];
        fields.extend_from_slice(path);
        fields.push(0x41);
        fields.push(u8::try_from(authority.len()).unwrap() | if is_huffman { 0x80 } else { 0 });
        fields.extend_from_slice(authority);
        let mut frame = vec![0, 0, u8::try_from(fields.len()).unwrap(), HEADERS, 0x4, 0, 0, 0, 1];
        frame.extend(fields);
        frame
    }

    fn conversation(call: Vec<u8>) -> Vec<u8> {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        // Empty settings, and a message after the call that looks like one.
        bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
        bytes.extend(call);
        bytes.extend([0, 0, 5, 0, 1, 0, 0, 0, 1, 0x41, 3, b'/', b'/', b'/']);
        bytes
    }

    /// However the bytes arrive, the path becomes a name of the same length, and nothing else changes.
    #[test]
    fn a_path_becomes_an_authority_and_all_else_stays() {
        for (sent, wanted) in [
            (call(SOCKET.as_bytes(), false), call(MENDED.as_bytes(), false)),
            (call(&huffman(SOCKET), true), call(&huffman(MENDED), true)),
            (call(b"localhost", false), call(b"localhost", false)),
        ] {
            let (sent, wanted) = (conversation(sent), conversation(wanted));
            for piece in [1, 2, 7, 16, 4096] {
                let (mut frames, mut out) = (Frames::default(), Vec::new());
                for bytes in sent.chunks(piece) {
                    frames.pass(bytes, &mut out);
                }
                assert_eq!(out, wanted, "in pieces of {piece}");
            }
        }
    }

    /// Whatever is sent goes on with the same length, and is not the end of the process.
    #[test]
    fn nonsense_goes_on_as_it_is() {
        for seed in 0..2000_u32 {
            let mut word = seed.wrapping_mul(2_654_435_761) | 1;
            let mut fields: Vec<u8> = (0..40)
                .map(|_| {
                    word ^= word << 13;
                    word ^= word >> 17;
                    word ^= word << 5;
                    word.to_be_bytes()[0]
                })
                .collect();
            let length = fields.len();
            mend_fields(&mut fields);
            assert_eq!(fields.len(), length);
        }
    }
}
