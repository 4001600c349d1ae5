//! Submission queue entry: base 3.3.3.1, figure 87.

pub mod admin;
pub mod fabrics;
pub mod nvm;
pub mod reservation;
pub mod vendor;

use crate::codec::{put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::sgl::Sgl;

/// CID, chosen by the host, unique among its commands in flight on one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u16);

/// Namespace identifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nsid(pub u32);

impl Nsid {
    /// All namespaces.
    pub const ALL: Self = Self(0xFFFF_FFFF);
}

/// PSDT 01b: SGLs are used, as fabrics demand (base 3.3.3.1).
const FLAG_SGL: u8 = 0b01 << 6;

/// Which way a command's data goes: the low two bits of opcodes (base figure 87) and of fabrics command types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// No data.
    None,
    /// Host to controller.
    ToController,
    /// Controller to host.
    ToHost,
    /// Both ways, which no command here does.
    Both,
}

/// One command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubmissionEntry {
    /// Opcode; 7Fh for fabrics commands.
    pub opcode: u8,
    /// FUSE and PSDT.
    pub flags: u8,
    /// Command identifier.
    pub cid: CommandId,
    /// Namespace; in fabrics commands the command type in its first byte.
    pub nsid: Nsid,
    /// Dwords 2 and 3.
    pub cdw2_3: u64,
    /// Metadata pointer; unused here.
    pub mptr: u64,
    /// SGL entry 1.
    pub sgl: Sgl,
    /// Dwords 10 to 15.
    pub cdw10_15: [u32; 6],
}

impl SubmissionEntry {
    /// A command with its dwords 10 on; identifier and data pointer are the session's business.
    pub fn new(opcode: u8, nsid: Nsid, cdw10_15: [u32; 6]) -> Self {
        Self {
            opcode,
            flags: FLAG_SGL,
            cid: CommandId(0),
            nsid,
            cdw2_3: 0,
            mptr: 0,
            sgl: Sgl::NONE,
            cdw10_15,
        }
    }

    /// From the wire.
    pub fn decode(bytes: &[u8; 64]) -> Self {
        let mut sgl = [0; 16];
        sgl.copy_from_slice(&bytes[24..40]);
        let dword = |index: usize| u32_at(bytes, 40 + 4 * index);
        Self {
            opcode: bytes[0],
            flags: bytes[1],
            cid: CommandId(u16_at(bytes, 2)),
            nsid: Nsid(u32_at(bytes, 4)),
            cdw2_3: u64_at(bytes, 8),
            mptr: u64_at(bytes, 16),
            sgl: Sgl::decode(&sgl),
            cdw10_15: [dword(0), dword(1), dword(2), dword(3), dword(4), dword(5)],
        }
    }

    /// To the wire.
    pub fn encode(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[0] = self.opcode;
        bytes[1] = self.flags;
        put_u16(&mut bytes, 2, self.cid.0);
        put_u32(&mut bytes, 4, self.nsid.0);
        put_u64(&mut bytes, 8, self.cdw2_3);
        put_u64(&mut bytes, 16, self.mptr);
        bytes[24..40].copy_from_slice(&self.sgl.encode());
        for (index, dword) in self.cdw10_15.iter().enumerate() {
            put_u32(&mut bytes, 40 + 4 * index, *dword);
        }
        bytes
    }

    /// True for fabrics commands.
    pub fn is_fabrics(&self) -> bool {
        self.opcode == fabrics::OPCODE
    }

    /// FCTYPE of a fabrics command.
    pub fn fabrics_type(&self) -> u8 {
        crate::codec::low_u8(self.nsid.0)
    }

    /// Which way its data goes.
    pub fn direction(&self) -> Direction {
        let code = if self.is_fabrics() { self.fabrics_type() } else { self.opcode };
        match code & 0b11 {
            0b00 => Direction::None,
            0b01 => Direction::ToController,
            0b10 => Direction::ToHost,
            _ => Direction::Both,
        }
    }

    /// Dwords 10 and 11 as one value: the starting LBA of I/O commands.
    pub fn cdw10_11(&self) -> u64 {
        u64::from(self.cdw10_15[0]) | u64::from(self.cdw10_15[1]) << 32
    }

    /// Dwords 12 and 13 as one value.
    pub fn cdw12_13(&self) -> u64 {
        u64::from(self.cdw10_15[2]) | u64::from(self.cdw10_15[3]) << 32
    }
}
