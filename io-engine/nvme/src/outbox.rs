//! What a session has to send: header bytes of its own, and ranges of payloads that stay with the caller.

use std::ops::Range;

use crate::pdu::digest::{DIGEST_BYTES, Digests, digest};
use crate::pdu::{COMMON_HEADER_BYTES, CommonHeader, FLAG_DATA_DIGEST, FLAG_HEADER_DIGEST, PduType};

/// Names a command in flight on one session; dense from zero, below the queue's number of entries, so that a driver
/// can keep its side in an array. Free again when the command has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u16);

impl Tag {
    /// As an array index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A piece of the stream to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// These bytes of [`Outbox::headers`].
    Header(Range<usize>),
    /// These bytes of the payload that was handed in for `tag`.
    Payload {
        /// The command.
        tag: Tag,
        /// Range in its payload.
        range: Range<usize>,
    },
}

/// Payload of a PDU: looked at for its digest, and sent by the caller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Payload<'a> {
    pub(crate) tag: Tag,
    pub(crate) offset: usize,
    pub(crate) bytes: &'a [u8],
}

/// The stream to send, in order. Bounded by the commands in flight as long as the driver takes it after each call.
#[derive(Debug, Default)]
pub struct Outbox {
    headers: Vec<u8>,
    parts: Vec<Part>,
}

impl Outbox {
    /// True where there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Header bytes that parts refer to.
    pub fn headers(&self) -> &[u8] {
        &self.headers
    }

    /// What to send, in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Forgets what was sent and keeps the memory.
    pub fn clear(&mut self) {
        self.headers.clear();
        self.parts.clear();
    }

    /// The stream as bytes, with payloads looked up by `payload`; for tests and small sessions.
    pub fn drain_to_vec<'a>(&mut self, payload: impl Fn(Tag) -> &'a [u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in &self.parts {
            match part {
                Part::Header(range) => bytes.extend_from_slice(&self.headers[range.clone()]),
                Part::Payload { tag, range } => bytes.extend_from_slice(&payload(*tag)[range.clone()]),
            }
        }
        self.clear();
        bytes
    }

    /// Appends a PDU. `alignment` is what the peer asked of the place where data starts, in bytes.
    pub(crate) fn push(
        &mut self,
        kind: PduType,
        flags: u8,
        specific: &[u8],
        payload: Option<Payload<'_>>,
        digests: Digests,
        alignment: usize,
    ) {
        let digests = if kind.takes_digests() { digests } else { Digests::default() };
        let header_len = COMMON_HEADER_BYTES + specific.len();
        assert_eq!(header_len, usize::from(kind.header_bytes()), "{kind:?} has a fixed header");
        let digest_len = if digests.header { DIGEST_BYTES } else { 0 };
        let data_offset = (header_len + digest_len).next_multiple_of(alignment);
        let mut header = CommonHeader {
            type_code: kind.code(),
            flags: flags | if digests.header { FLAG_HEADER_DIGEST } else { 0 },
            header_len: kind.header_bytes(),
            data_offset: 0,
            pdu_len: pdu_len(header_len + digest_len),
        };
        if let Some(payload) = payload {
            let trailer = if digests.data { DIGEST_BYTES } else { 0 };
            header.flags |= if digests.data { FLAG_DATA_DIGEST } else { 0 };
            header.data_offset =
                u8::try_from(data_offset).expect("headers and alignment are at most 128 bytes each");
            header.pdu_len = pdu_len(data_offset + payload.bytes.len() + trailer);
        }
        let start = self.headers.len();
        self.headers.extend_from_slice(&header.encode());
        self.headers.extend_from_slice(specific);
        if digests.header {
            let crc = digest(&self.headers[start..]);
            self.headers.extend_from_slice(&crc.to_le_bytes());
        }
        if let Some(payload) = payload {
            self.headers.resize(start + data_offset, 0);
            self.push_header(start);
            if !payload.bytes.is_empty() {
                let range = payload.offset..payload.offset + payload.bytes.len();
                self.parts.push(Part::Payload { tag: payload.tag, range });
            }
            if digests.data {
                let start = self.headers.len();
                self.headers.extend_from_slice(&digest(payload.bytes).to_le_bytes());
                self.push_header(start);
            }
        } else {
            self.push_header(start);
        }
    }

    /// Appends bytes that belong to the session itself, e.g. the data of a terminate request.
    pub(crate) fn push_terminate(&mut self, kind: PduType, specific: &[u8], offending: &[u8]) {
        let header_len = kind.header_bytes();
        let header = CommonHeader {
            type_code: kind.code(),
            flags: 0,
            header_len,
            data_offset: 0,
            pdu_len: pdu_len(usize::from(header_len) + offending.len()),
        };
        let start = self.headers.len();
        self.headers.extend_from_slice(&header.encode());
        self.headers.extend_from_slice(specific);
        self.headers.extend_from_slice(offending);
        self.push_header(start);
    }

    /// Adds `headers[start..]` to the stream, as one part with the header bytes before it.
    fn push_header(&mut self, start: usize) {
        let end = self.headers.len();
        match self.parts.last_mut() {
            Some(Part::Header(range)) if range.end == start => range.end = end,
            _ => self.parts.push(Part::Header(start..end)),
        }
    }
}

fn pdu_len(len: usize) -> u32 {
    u32::try_from(len).expect("transfers are limited far below 4 GiB")
}
