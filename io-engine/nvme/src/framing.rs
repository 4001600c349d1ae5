//! Incremental bytes -> PDUs, with size limits, and never more than one header in memory.
//!
//! Headers are gathered in a fixed array; data is passed on as it comes, in slices of the bytes that were handed in.
//! A peer can make this neither panic nor allocate.

use crate::codec::u32_at;
use crate::pdu::digest::{DIGEST_BYTES, Digests, digest, digest_append};
use crate::pdu::{
    COMMON_HEADER_BYTES, CommonHeader, FLAG_DATA_DIGEST, FLAG_HEADER_DIGEST, FatalError, HEADER_BYTES_MAX,
    Pdu, PduType,
};

/// Bytes of a terminate request at most: its header and the offending one.
const TERMINATE_BYTES_MAX: u32 = 152;

/// Which side reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The controller: PDUs of hosts are expected.
    Controller,
    /// The host: PDUs of controllers are expected.
    Host,
}

/// How much data a PDU may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In a command capsule.
    pub capsule_data_max: u32,
    /// In H2CData or C2HData.
    pub data_max: u32,
}

/// What the framer found.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A header, complete and with a correct digest. With `data_len > 0`, pieces of data and [`Piece::End`] follow.
    Pdu {
        /// The header.
        pdu: Pdu,
        /// Bytes of data that follow.
        data_len: u32,
    },
    /// The next bytes of the data.
    Data(&'a [u8]),
    /// The data is complete.
    End {
        /// False where the data digest does not match.
        is_intact: bool,
    },
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Gathering `need` bytes of header, digest included once the kind is known.
    Header { need: usize },
    /// Skipping the padding before the data.
    Padding { left: usize, data_len: u32 },
    /// Passing data on.
    Data { left: u32, crc: u32 },
    /// Gathering the data digest.
    Trailer { expected: u32 },
    /// A fatal error was reported; everything else is dropped.
    Failed,
}

/// Cuts a stream of bytes into PDUs.
#[derive(Debug)]
pub struct Framer {
    reader: Reader,
    limits: Limits,
    digests: Digests,
    state: State,
    header: [u8; HEADER_BYTES_MAX + DIGEST_BYTES],
    filled: usize,
    /// Bytes of the last complete header, which stays in the array until the next one.
    header_len: usize,
    has_trailer: bool,
}

impl Framer {
    /// A framer at the start of a connection; no digests yet.
    pub fn new(reader: Reader, limits: Limits) -> Self {
        Self {
            reader,
            limits,
            digests: Digests::default(),
            state: State::Header { need: COMMON_HEADER_BYTES },
            header: [0; HEADER_BYTES_MAX + DIGEST_BYTES],
            filled: 0,
            header_len: 0,
            has_trailer: false,
        }
    }

    /// What was negotiated, from the next PDU on.
    pub fn set_digests(&mut self, digests: Digests) {
        self.digests = digests;
    }

    /// Changes the limits from the next PDU on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The header being gathered, else the last one: what a terminate request quotes.
    pub fn offending_header(&self) -> &[u8] {
        let len = if self.header_len > 0 { self.header_len } else { self.filled };
        &self.header[..len]
    }

    /// Bytes of the current PDU's data that are still to come; zero outside of data. A driver may receive that many
    /// bytes right into the command's buffer.
    pub fn data_left(&self) -> u32 {
        match self.state {
            State::Data { left, .. } => left,
            _ => 0,
        }
    }

    /// Takes bytes off `input` until there is something to report; `None` when all were taken.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Piece<'a>>, FatalError> {
        let outcome = self.advance(input);
        if outcome.is_err() {
            self.state = State::Failed;
        }
        outcome
    }

    fn advance<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Piece<'a>>, FatalError> {
        loop {
            match self.state {
                State::Header { need } => {
                    if !self.gather(input, need) {
                        return Ok(None);
                    }
                    if need == COMMON_HEADER_BYTES {
                        self.state = State::Header { need: self.check_common()? };
                        continue;
                    }
                    return self.finish_header().map(Some);
                }
                State::Padding { left, data_len } => {
                    let skipped = left.min(input.len());
                    *input = &input[skipped..];
                    if skipped < left {
                        self.state = State::Padding { left: left - skipped, data_len };
                        return Ok(None);
                    }
                    self.state = State::Data { left: data_len, crc: 0 };
                }
                State::Data { left, crc } => {
                    if left == 0 {
                        self.filled = 0;
                        if self.has_trailer {
                            self.state = State::Trailer { expected: crc };
                            continue;
                        }
                        self.state = State::Header { need: COMMON_HEADER_BYTES };
                        return Ok(Some(Piece::End { is_intact: true }));
                    }
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let available = u32::try_from(input.len()).unwrap_or(u32::MAX).min(left);
                    let (data, rest) = input.split_at(available as usize);
                    *input = rest;
                    let crc = if self.has_trailer { digest_append(crc, data) } else { 0 };
                    self.state = State::Data { left: left - available, crc };
                    return Ok(Some(Piece::Data(data)));
                }
                State::Trailer { expected } => {
                    if !self.gather(input, DIGEST_BYTES) {
                        return Ok(None);
                    }
                    let is_intact = u32_at(&self.header, 0) == expected;
                    self.filled = 0;
                    self.state = State::Header { need: COMMON_HEADER_BYTES };
                    return Ok(Some(Piece::End { is_intact }));
                }
                State::Failed => {
                    *input = &[];
                    return Ok(None);
                }
            }
        }
    }

    /// Takes bytes into the header array until it has `need`; true when it has.
    fn gather(&mut self, input: &mut &[u8], need: usize) -> bool {
        let taken = (need - self.filled).min(input.len());
        self.header[self.filled..self.filled + taken].copy_from_slice(&input[..taken]);
        *input = &input[taken..];
        self.filled += taken;
        self.filled == need
    }

    fn common(&self) -> CommonHeader {
        let mut bytes = [0; COMMON_HEADER_BYTES];
        bytes.copy_from_slice(&self.header[..COMMON_HEADER_BYTES]);
        CommonHeader::decode(&bytes)
    }

    /// Checks the common header; bytes of header and digest.
    fn check_common(&mut self) -> Result<usize, FatalError> {
        self.header_len = 0;
        let common = self.common();
        // nvme-tcp 1.0 figure 22: an unknown or misdirected type is an invalid field at offset 0.
        let kind = PduType::from_code(common.type_code)
            .filter(|kind| kind.is_from_host() == (self.reader == Reader::Controller))
            .ok_or(FatalError::InvalidField { offset: 0 })?;
        if common.header_len != kind.header_bytes() {
            return Err(FatalError::InvalidField { offset: 2 });
        }
        let has_digest = self.digests.header && kind.takes_digests();
        if kind.takes_digests() && (common.flags & FLAG_HEADER_DIGEST != 0) != has_digest {
            return Err(FatalError::InvalidField { offset: 1 });
        }
        let need = usize::from(common.header_len) + if has_digest { DIGEST_BYTES } else { 0 };
        let least = u32::from(common.header_len) + if has_digest { 4 } else { 0 };
        if common.pdu_len < least || (common.pdu_len > least && !kind.takes_data()) {
            return Err(FatalError::InvalidField { offset: 4 });
        }
        Ok(need)
    }

    fn finish_header<'a>(&mut self) -> Result<Piece<'a>, FatalError> {
        let common = self.common();
        let kind = PduType::from_code(common.type_code).expect("checked with the common header");
        let header_len = usize::from(common.header_len);
        self.header_len = header_len;
        let has_digest = self.filled > header_len;
        if has_digest {
            let received = u32_at(&self.header, header_len);
            if received != digest(&self.header[..header_len]) {
                return Err(FatalError::HeaderDigest { received });
            }
        }
        let (padding, data_len) = self.data_layout(kind, common)?;
        let pdu = Pdu::decode(kind, common.flags, &self.header[COMMON_HEADER_BYTES..header_len]);
        if let Pdu::H2cData(transfer) | Pdu::C2hData(transfer) = &pdu {
            // nvme-tcp 1.0 section 3.6.2.7: DATAL is the length of the data in this PDU.
            if transfer.len != data_len {
                return Err(FatalError::InvalidField { offset: 16 });
            }
        }
        if data_len == 0 {
            self.filled = 0;
            self.state = State::Header { need: COMMON_HEADER_BYTES };
        } else {
            self.state = State::Padding { left: padding, data_len };
        }
        Ok(Piece::Pdu { pdu, data_len })
    }

    /// Bytes of padding and of data behind the header.
    fn data_layout(&mut self, kind: PduType, common: CommonHeader) -> Result<(usize, u32), FatalError> {
        self.has_trailer = false;
        let behind_header = u32::try_from(self.filled).expect("a header has at most 132 bytes");
        if !kind.takes_digests() {
            if common.pdu_len > TERMINATE_BYTES_MAX {
                return Err(FatalError::InvalidField { offset: 4 });
            }
            return Ok((0, common.pdu_len - behind_header));
        }
        if common.pdu_len == behind_header {
            return match kind {
                // A data PDU without data has no meaning.
                PduType::H2cData | PduType::C2hData => Err(FatalError::InvalidField { offset: 4 }),
                _ => Ok((0, 0)),
            };
        }
        let has_trailer = self.digests.data;
        if (common.flags & FLAG_DATA_DIGEST != 0) != has_trailer {
            return Err(FatalError::InvalidField { offset: 1 });
        }
        let data_offset = u32::from(common.data_offset);
        // nvme-tcp 1.0 section 3.6.1: PDO lies behind the header and is a multiple of 4.
        if data_offset < behind_header || !data_offset.is_multiple_of(4) {
            return Err(FatalError::InvalidField { offset: 3 });
        }
        let trailer = if has_trailer { 4 } else { 0 };
        let Some(data_len @ 1..) = common.pdu_len.checked_sub(data_offset + trailer) else {
            return Err(FatalError::InvalidField { offset: 4 });
        };
        let limit = match kind {
            PduType::CapsuleCmd => self.limits.capsule_data_max,
            _ => self.limits.data_max,
        };
        if data_len > limit {
            return Err(match kind {
                PduType::CapsuleCmd => FatalError::InvalidField { offset: 4 },
                _ => FatalError::LimitExceeded,
            });
        }
        self.has_trailer = has_trailer;
        Ok(((data_offset - behind_header) as usize, data_len))
    }
}
