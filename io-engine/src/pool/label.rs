//! The sector by which a pool's disk is found, and the mark that its creation ended.
//!
//! The label is written first, durably, and never changed: whatever a crash leaves of a create, the disk says whose it
//! is (SAFETY C7). A pool counts as complete from its first valid superblock on; the ready mark, written last, keeps a
//! pool whose superblocks are both damaged from being taken for an unfinished create and begun again.

use uuid::Uuid;

use super::codec::{Decoder, Encoder};
use super::layout::{FORMAT_VERSION, LABEL_MAGIC};

const READY_MAGIC: &[u8] = b"MAYAREDY";
/// The label ends within the first 512 bytes, which every disk writes whole or not at all.
const LABEL_BYTES: usize = 512;
const CRC_OFFSET: usize = 8;

/// Longest name of a pool, in bytes.
pub const POOL_NAME_BYTES_MAX: usize = 255;

/// The cluster that a pool belongs to (SAFETY C1); minted by the control plane with its first pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClusterId(pub Uuid);

/// What a label says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The cluster; nil for a pool made by hand or by a control plane without identity.
    pub cluster: ClusterId,
    /// The pool.
    pub uuid: Uuid,
    /// Random for each creation: tells this pool's records from those of an earlier one on the same disk.
    pub incarnation: Uuid,
    /// The pool's name.
    pub name: String,
}

/// What the first page of a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstPage {
    /// A label of ours.
    Label(Label),
    /// Ours by its first bytes, and damaged or of another version; the text says which.
    Unreadable(String),
    /// Not ours.
    Other,
}

impl Label {
    /// The label's sector, padded to `len`, the size of the page it is written in.
    pub fn encode(&self, len: usize) -> Vec<u8> {
        let mut out = Encoder::new();
        out.raw(LABEL_MAGIC);
        out.u32(0);
        out.u32(FORMAT_VERSION);
        out.uuid(self.cluster.0);
        out.uuid(self.uuid);
        out.uuid(self.incarnation);
        out.text(&self.name);
        out.pad_to(LABEL_BYTES);
        let mut bytes = out.into_bytes();
        let crc = crc32c::crc32c(&bytes[CRC_OFFSET + 4..]);
        bytes[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
        bytes.resize(len, 0);
        bytes
    }

    /// Reads the first page of a disk.
    pub fn decode(page: &[u8]) -> FirstPage {
        let Some(sector) = page.get(..LABEL_BYTES).filter(|sector| sector.starts_with(LABEL_MAGIC)) else {
            return FirstPage::Other;
        };
        let mut from = Decoder::new(&sector[LABEL_MAGIC.len()..]);
        let crc = from.u32().expect("within the sector");
        if crc != crc32c::crc32c(&sector[CRC_OFFSET + 4..]) {
            return FirstPage::Unreadable("the label's checksum is wrong".to_owned());
        }
        let version = from.u32().expect("within the sector");
        if version != FORMAT_VERSION {
            return FirstPage::Unreadable(format!(
                "the pool has format version {version}, this engine reads {FORMAT_VERSION}"
            ));
        }
        let mut fields = || {
            let (cluster, uuid, incarnation) = (from.uuid()?, from.uuid()?, from.uuid()?);
            from.text().map(|name| Self { cluster: ClusterId(cluster), uuid, incarnation, name })
        };
        match fields() {
            Ok(label) => FirstPage::Label(label),
            Err(_) => FirstPage::Unreadable("the label's name is no text".to_owned()),
        }
    }
}

/// The ready mark of the pool of this incarnation, one page.
pub fn encode_ready(incarnation: Uuid, len: usize) -> Vec<u8> {
    let mut out = Encoder::new();
    out.raw(READY_MAGIC);
    out.u32(crc32c::crc32c(incarnation.as_bytes()));
    out.u32(0);
    out.uuid(incarnation);
    out.pad_to(len);
    out.into_bytes()
}

/// True where the page is the ready mark of this incarnation.
pub fn is_ready(page: &[u8], incarnation: Uuid) -> bool {
    page.get(..LABEL_BYTES).is_some_and(|sector| sector == &encode_ready(incarnation, LABEL_BYTES)[..])
}
