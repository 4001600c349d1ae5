//! What a pool remembers, as changes: the journal holds them one after the other, a checkpoint the few that lead to the
//! same state. Encoded field by field, tables in `ARCHITECTURE.md`.

use uuid::Uuid;

use super::bitmap::Bitmap;
use super::codec::{Decoder, Encoder, Truncated};
use super::layout::PAGE_BYTES;
use crate::member::Epoch;

/// Names a layer within a pool; never used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(pub u64);

/// What is stored of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaRow {
    /// The replica.
    pub uuid: Uuid,
    /// Its name, unique in the pool.
    pub name: String,
    /// The control plane's note of the volume it was made for; may be empty.
    pub entity_id: String,
    /// The layer that writes go to.
    pub layer: LayerId,
    /// Size in bytes, whole extents.
    pub len_bytes: u64,
    /// True where extents are taken at the first write, not at creation.
    pub is_thin: bool,
    /// True where the replica is to be served over NVMe/TCP, again after an import too.
    pub is_shared: bool,
    /// The host NQNs that may connect.
    pub allowed_hosts: Vec<String>,
    /// Bytes per region of the open-region map.
    pub region_bytes: u32,
    /// Volume it is a member of; nil before the first nexus opened it.
    pub volume: Uuid,
    /// The membership it last took part in.
    pub epoch: Epoch,
    /// The members of that membership, as far as they were told.
    pub members: Vec<Uuid>,
    /// See `MemberReport::lost_power`.
    pub has_lost_power: bool,
}

/// What is stored of a layer: blocks held over those of a parent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerRow {
    /// The layer.
    pub id: LayerId,
    /// The layer whose blocks show where this one holds none.
    pub parent: Option<LayerId>,
    /// Length in bytes, whole extents.
    pub len_bytes: u64,
    /// True for a snapshot: never written again.
    pub is_frozen: bool,
    /// True where extents stay when they are empty: the layer of a thick replica.
    pub keeps_extents: bool,
}

/// A run of extents of a layer, one after the other on the disk too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentRun {
    /// The layer.
    pub layer: LayerId,
    /// First extent of the layer.
    pub logical: u32,
    /// First extent of the disk.
    pub physical: u32,
    /// How many.
    pub count: u32,
    /// True where all their blocks are held; only in checkpoints.
    pub is_held: bool,
}

/// Names an attribute; the purposes are in [`attribute`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttributeKey {
    /// The replica or snapshot it belongs to and goes away with.
    pub owner: Uuid,
    /// What it is for.
    pub purpose: u16,
    /// Tells several of one purpose apart; else nil.
    pub item: Uuid,
}

/// Purposes of attributes. Their values belong to the rooms that write them.
pub mod attribute {
    /// Reservation and registrants of a replica's namespace, kept over power loss (PTPL).
    pub const RESERVATION: u16 = 1;
    /// Name, transaction, entity and time of a snapshot.
    pub const SNAPSHOT: u16 = 3;
    /// Source and time of a clone.
    pub const CLONE: u16 = 4;
}

/// A run of numbers: `count` from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// One change of a pool's state. Applying a change twice in a row is applying it once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A replica is made, or its row replaced.
    ReplicaPut(ReplicaRow),
    /// A replica is gone, with its region map and attributes; its layer goes by a change of its own.
    ReplicaRemoved(Uuid),
    /// A layer is made, or its row replaced.
    LayerPut(LayerRow),
    /// A layer is gone; its extents are free.
    LayerRemoved(LayerId),
    /// Extents now belong to a layer; none of their blocks is held yet.
    ExtentsAssigned(ExtentRun),
    /// Extents of a layer are free; nothing is held there.
    ExtentsReleased {
        /// The layer.
        layer: LayerId,
        /// First extent of the layer.
        logical: u32,
        /// How many.
        count: u32,
    },
    /// 4 KiB blocks of a layer are held, with the CRC32C of each as it was written: after a power loss a block whose
    /// data and record were not flushed counts as written only if the data is there.
    BlocksWritten {
        /// The layer.
        layer: LayerId,
        /// First block of the layer.
        first: u64,
        /// One for each block.
        checksums: Vec<u32>,
    },
    /// 4 KiB blocks of a layer are not held any more, and show no parent's: they read as zeroes.
    BlocksCleared {
        /// The layer.
        layer: LayerId,
        /// Which.
        blocks: Run,
    },
    /// Regions of a replica are open.
    RegionsOpened {
        /// The replica.
        replica: Uuid,
        /// Which.
        regions: Vec<Run>,
    },
    /// Regions of a replica are closed.
    RegionsClosed {
        /// The replica.
        replica: Uuid,
        /// Which.
        regions: Vec<Run>,
    },
    /// An attribute is set.
    AttributePut {
        /// Which.
        key: AttributeKey,
        /// Its value.
        value: Vec<u8>,
    },
    /// An attribute is gone.
    AttributeRemoved(AttributeKey),
    /// A member is absent since this epoch; what it missed is kept from now on.
    MissedPut {
        /// The replica that keeps it.
        replica: Uuid,
        /// The absent member.
        member: Uuid,
        /// The last membership it took part in.
        since: Epoch,
    },
    /// An absent member misses what is in these regions.
    RegionsMissed {
        /// The replica that keeps it.
        replica: Uuid,
        /// The absent member.
        member: Uuid,
        /// Which.
        regions: Vec<Run>,
    },
    /// A member has caught up, or is given up.
    MissedRemoved {
        /// The replica that kept it.
        replica: Uuid,
        /// The member.
        member: Uuid,
    },
    /// Closed regions of a replica in which nothing was written since they were opened, and which nobody missed before:
    /// no absent member misses them.
    RegionsNotMissed {
        /// The replica.
        replica: Uuid,
        /// Which.
        regions: Vec<Run>,
    },
    /// In checkpoints: which blocks of one extent are held, where it is some.
    HeldMap {
        /// The layer.
        layer: LayerId,
        /// The extent of the layer.
        logical: u32,
        /// The map.
        held: Bitmap,
    },
    /// In checkpoints: which blocks of one extent read as zeroes whatever the parent holds.
    ZeroedMap {
        /// The layer.
        layer: LayerId,
        /// The extent of the layer.
        logical: u32,
        /// The map.
        zeroed: Bitmap,
    },
    /// In checkpoints: a part of a replica's open-region map.
    RegionMap {
        /// The replica.
        replica: Uuid,
        /// Index of the first 64-bit word.
        first_word: u32,
        /// The words, encoded.
        words: Vec<u8>,
    },
    /// In checkpoints: a part of what an absent member missed.
    MissedMap {
        /// The replica that keeps it.
        replica: Uuid,
        /// The absent member.
        member: Uuid,
        /// Index of the first 64-bit word.
        first_word: u32,
        /// The words, encoded.
        words: Vec<u8>,
    },
}

mod kind {
    pub(super) const REPLICA_PUT: u8 = 1;
    pub(super) const REPLICA_REMOVED: u8 = 2;
    pub(super) const LAYER_PUT: u8 = 3;
    pub(super) const LAYER_REMOVED: u8 = 4;
    pub(super) const EXTENTS_ASSIGNED: u8 = 5;
    pub(super) const EXTENTS_RELEASED: u8 = 6;
    pub(super) const BLOCKS_WRITTEN: u8 = 7;
    pub(super) const BLOCKS_CLEARED: u8 = 8;
    pub(super) const REGIONS_OPENED: u8 = 9;
    pub(super) const REGIONS_CLOSED: u8 = 10;
    pub(super) const ATTRIBUTE_PUT: u8 = 11;
    pub(super) const ATTRIBUTE_REMOVED: u8 = 12;
    pub(super) const MISSED_PUT: u8 = 13;
    pub(super) const REGIONS_MISSED: u8 = 14;
    pub(super) const MISSED_REMOVED: u8 = 15;
    pub(super) const REGIONS_NOT_MISSED: u8 = 16;
    pub(super) const HELD_MAP: u8 = 32;
    pub(super) const ZEROED_MAP: u8 = 33;
    pub(super) const REGION_MAP: u8 = 34;
    pub(super) const MISSED_MAP: u8 = 35;
}

fn encode_runs(runs: &[Run], out: &mut Encoder) {
    out.u32(u32::try_from(runs.len()).expect("a record holds fewer"));
    for run in runs {
        out.u64(run.first);
        out.u64(run.count);
    }
}

fn decode_runs(from: &mut Decoder<'_>) -> Result<Vec<Run>, Truncated> {
    let count = from.u32()?;
    (0..count).map(|_| Ok(Run { first: from.u64()?, count: from.u64()? })).collect()
}

fn encode_map(map: &Bitmap, out: &mut Encoder) {
    out.u32(u32::try_from(map.len()).expect("an extent has at most 2^18 blocks"));
    map.encode_words(0..map.word_count(), out);
}

fn decode_map(from: &mut Decoder<'_>) -> Result<Bitmap, Truncated> {
    let len = u64::from(from.u32()?);
    // What the length says must be there before memory is taken for it.
    if (from.rest().len() as u64) < len.div_ceil(64) * 8 {
        return Err(Truncated);
    }
    let mut map = Bitmap::new(len);
    map.decode_words(0, map.word_count(), from)?;
    Ok(map)
}

impl ReplicaRow {
    fn encode(&self, out: &mut Encoder) {
        out.uuid(self.uuid);
        out.text(&self.name);
        out.text(&self.entity_id);
        out.u64(self.layer.0);
        out.u64(self.len_bytes);
        out.u8(u8::from(self.is_thin));
        out.u8(u8::from(self.is_shared));
        out.u16(u16::try_from(self.allowed_hosts.len()).expect("bounded where they enter"));
        for host in &self.allowed_hosts {
            out.text(host);
        }
        out.u32(self.region_bytes);
        out.uuid(self.volume);
        out.u64(self.epoch.counter);
        out.uuid(self.epoch.raised_by);
        out.u16(u16::try_from(self.members.len()).expect("bounded where they enter"));
        for member in &self.members {
            out.uuid(*member);
        }
        out.u8(u8::from(self.has_lost_power));
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, Truncated> {
        Ok(Self {
            uuid: from.uuid()?,
            name: from.text()?,
            entity_id: from.text()?,
            layer: LayerId(from.u64()?),
            len_bytes: from.u64()?,
            is_thin: from.bool()?,
            is_shared: from.bool()?,
            allowed_hosts: {
                let count = from.u16()?;
                (0..count).map(|_| from.text()).collect::<Result<_, _>>()?
            },
            region_bytes: from
                .u32()
                .and_then(|bytes| if bytes.is_power_of_two() { Ok(bytes) } else { Err(Truncated) })?,
            volume: from.uuid()?,
            epoch: Epoch { counter: from.u64()?, raised_by: from.uuid()? },
            members: {
                let count = from.u16()?;
                (0..count).map(|_| from.uuid()).collect::<Result<_, _>>()?
            },
            has_lost_power: from.bool()?,
        })
    }

    /// Regions of the open-region map.
    pub fn regions(&self) -> u64 {
        self.len_bytes.div_ceil(u64::from(self.region_bytes))
    }

    /// How long the row is on disk.
    pub fn encoded_len(&self) -> u64 {
        let mut out = Encoder::new();
        self.encode(&mut out);
        out.len() as u64
    }
}

impl LayerRow {
    fn encode(&self, out: &mut Encoder) {
        out.u64(self.id.0);
        out.u64(self.parent.map_or(0, |parent| parent.0));
        out.u64(self.len_bytes);
        out.u8(u8::from(self.is_frozen));
        out.u8(u8::from(self.keeps_extents));
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, Truncated> {
        Ok(Self {
            id: LayerId(from.u64()?),
            parent: Some(LayerId(from.u64()?)).filter(|parent| parent.0 != 0),
            len_bytes: from
                .u64()
                .and_then(|len| if len.is_multiple_of(PAGE_BYTES) { Ok(len) } else { Err(Truncated) })?,
            is_frozen: from.bool()?,
            keeps_extents: from.bool()?,
        })
    }
}

impl AttributeKey {
    fn encode(&self, out: &mut Encoder) {
        out.uuid(self.owner);
        out.u16(self.purpose);
        out.uuid(self.item);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, Truncated> {
        Ok(Self { owner: from.uuid()?, purpose: from.u16()?, item: from.uuid()? })
    }
}

impl Change {
    /// Appends the change: a kind, a length, and its fields.
    pub fn encode(&self, out: &mut Encoder) {
        out.u8(self.kind());
        let length_at = out.len();
        out.u32(0);
        match self {
            Self::ReplicaPut(row) => row.encode(out),
            Self::ReplicaRemoved(uuid) => out.uuid(*uuid),
            Self::LayerPut(row) => row.encode(out),
            Self::LayerRemoved(layer) => out.u64(layer.0),
            Self::ExtentsAssigned(run) => {
                out.u64(run.layer.0);
                out.u32(run.logical);
                out.u32(run.physical);
                out.u32(run.count);
                out.u8(u8::from(run.is_held));
            }
            Self::ExtentsReleased { layer, logical, count } => {
                out.u64(layer.0);
                out.u32(*logical);
                out.u32(*count);
            }
            Self::BlocksWritten { layer, first, checksums } => {
                out.u64(layer.0);
                out.u64(*first);
                out.u32(u32::try_from(checksums.len()).expect("a record holds fewer"));
                for checksum in checksums {
                    out.u32(*checksum);
                }
            }
            Self::BlocksCleared { layer, blocks } => {
                out.u64(layer.0);
                out.u64(blocks.first);
                out.u64(blocks.count);
            }
            Self::RegionsOpened { replica, regions }
            | Self::RegionsClosed { replica, regions }
            | Self::RegionsNotMissed { replica, regions } => {
                out.uuid(*replica);
                encode_runs(regions, out);
            }
            Self::AttributePut { key, value } => {
                key.encode(out);
                out.blob(value);
            }
            Self::AttributeRemoved(key) => key.encode(out),
            Self::MissedPut { replica, member, since } => {
                out.uuid(*replica);
                out.uuid(*member);
                out.u64(since.counter);
                out.uuid(since.raised_by);
            }
            Self::RegionsMissed { replica, member, regions } => {
                out.uuid(*replica);
                out.uuid(*member);
                encode_runs(regions, out);
            }
            Self::MissedRemoved { replica, member } => {
                out.uuid(*replica);
                out.uuid(*member);
            }
            Self::HeldMap { layer, logical, held: map } | Self::ZeroedMap { layer, logical, zeroed: map } => {
                out.u64(layer.0);
                out.u32(*logical);
                encode_map(map, out);
            }
            Self::RegionMap { replica, first_word, words } => {
                out.uuid(*replica);
                out.u32(*first_word);
                out.blob(words);
            }
            Self::MissedMap { replica, member, first_word, words } => {
                out.uuid(*replica);
                out.uuid(*member);
                out.u32(*first_word);
                out.blob(words);
            }
        }
        let len = out.len() - length_at - 4;
        out.patch_u32(length_at, u32::try_from(len).expect("a record is bounded"));
    }

    /// Takes the next change. A kind of a later version is an error: a state without it would be wrong.
    pub fn decode(from: &mut Decoder<'_>) -> Result<Self, Truncated> {
        let kind = from.u8()?;
        let mut from = Decoder::new(from.blob()?);
        let from = &mut from;
        let change = match kind {
            kind::REPLICA_PUT => Self::ReplicaPut(ReplicaRow::decode(from)?),
            kind::REPLICA_REMOVED => Self::ReplicaRemoved(from.uuid()?),
            kind::LAYER_PUT => Self::LayerPut(LayerRow::decode(from)?),
            kind::LAYER_REMOVED => Self::LayerRemoved(LayerId(from.u64()?)),
            kind::EXTENTS_ASSIGNED => Self::ExtentsAssigned(ExtentRun {
                layer: LayerId(from.u64()?),
                logical: from.u32()?,
                physical: from.u32()?,
                count: from.u32()?,
                is_held: from.bool()?,
            }),
            kind::EXTENTS_RELEASED => Self::ExtentsReleased {
                layer: LayerId(from.u64()?),
                logical: from.u32()?,
                count: from.u32()?,
            },
            kind::BLOCKS_WRITTEN => {
                let (layer, first, count) = (LayerId(from.u64()?), from.u64()?, from.u32()?);
                let checksums = (0..count).map(|_| from.u32()).collect::<Result<_, _>>()?;
                Self::BlocksWritten { layer, first, checksums }
            }
            kind::BLOCKS_CLEARED => Self::BlocksCleared {
                layer: LayerId(from.u64()?),
                blocks: Run { first: from.u64()?, count: from.u64()? },
            },
            kind::REGIONS_OPENED => {
                Self::RegionsOpened { replica: from.uuid()?, regions: decode_runs(from)? }
            }
            kind::REGIONS_CLOSED => {
                Self::RegionsClosed { replica: from.uuid()?, regions: decode_runs(from)? }
            }
            kind::REGIONS_NOT_MISSED => {
                Self::RegionsNotMissed { replica: from.uuid()?, regions: decode_runs(from)? }
            }
            kind::ATTRIBUTE_PUT => {
                Self::AttributePut { key: AttributeKey::decode(from)?, value: from.blob()?.to_vec() }
            }
            kind::ATTRIBUTE_REMOVED => Self::AttributeRemoved(AttributeKey::decode(from)?),
            kind::HELD_MAP => {
                Self::HeldMap { layer: LayerId(from.u64()?), logical: from.u32()?, held: decode_map(from)? }
            }
            kind::ZEROED_MAP => Self::ZeroedMap {
                layer: LayerId(from.u64()?),
                logical: from.u32()?,
                zeroed: decode_map(from)?,
            },
            kind::REGION_MAP => Self::RegionMap {
                replica: from.uuid()?,
                first_word: from.u32()?,
                words: from.blob()?.to_vec(),
            },
            kind::MISSED_PUT => Self::MissedPut {
                replica: from.uuid()?,
                member: from.uuid()?,
                since: Epoch { counter: from.u64()?, raised_by: from.uuid()? },
            },
            kind::REGIONS_MISSED => Self::RegionsMissed {
                replica: from.uuid()?,
                member: from.uuid()?,
                regions: decode_runs(from)?,
            },
            kind::MISSED_REMOVED => Self::MissedRemoved { replica: from.uuid()?, member: from.uuid()? },
            kind::MISSED_MAP => Self::MissedMap {
                replica: from.uuid()?,
                member: from.uuid()?,
                first_word: from.u32()?,
                words: from.blob()?.to_vec(),
            },
            _ => return Err(Truncated),
        };
        if from.rest().is_empty() { Ok(change) } else { Err(Truncated) }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::ReplicaPut(_) => kind::REPLICA_PUT,
            Self::ReplicaRemoved(_) => kind::REPLICA_REMOVED,
            Self::LayerPut(_) => kind::LAYER_PUT,
            Self::LayerRemoved(_) => kind::LAYER_REMOVED,
            Self::ExtentsAssigned(_) => kind::EXTENTS_ASSIGNED,
            Self::ExtentsReleased { .. } => kind::EXTENTS_RELEASED,
            Self::BlocksWritten { .. } => kind::BLOCKS_WRITTEN,
            Self::BlocksCleared { .. } => kind::BLOCKS_CLEARED,
            Self::RegionsOpened { .. } => kind::REGIONS_OPENED,
            Self::RegionsClosed { .. } => kind::REGIONS_CLOSED,
            Self::RegionsNotMissed { .. } => kind::REGIONS_NOT_MISSED,
            Self::AttributePut { .. } => kind::ATTRIBUTE_PUT,
            Self::AttributeRemoved(_) => kind::ATTRIBUTE_REMOVED,
            Self::MissedPut { .. } => kind::MISSED_PUT,
            Self::RegionsMissed { .. } => kind::REGIONS_MISSED,
            Self::MissedRemoved { .. } => kind::MISSED_REMOVED,
            Self::MissedMap { .. } => kind::MISSED_MAP,
            Self::HeldMap { .. } => kind::HELD_MAP,
            Self::ZeroedMap { .. } => kind::ZEROED_MAP,
            Self::RegionMap { .. } => kind::REGION_MAP,
        }
    }

    /// All changes of a record or section.
    pub fn decode_all(bytes: &[u8]) -> Result<Vec<Self>, Truncated> {
        let mut from = Decoder::new(bytes);
        let mut changes = Vec::new();
        while !from.rest().is_empty() {
            changes.push(Self::decode(&mut from)?);
        }
        Ok(changes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pool::samples::samples;

    #[test]
    fn every_change_is_read_as_it_was_written() {
        let mut out = Encoder::new();
        for change in samples() {
            change.encode(&mut out);
        }
        assert_eq!(Change::decode_all(&out.into_bytes()), Ok(samples()));
    }

    #[test]
    fn a_cut_off_change_is_an_error() {
        for change in samples() {
            let mut out = Encoder::new();
            change.encode(&mut out);
            let bytes = out.into_bytes();
            for len in 1..bytes.len() {
                assert!(Change::decode_all(&bytes[..len]).is_err(), "{change:?} cut to {len}");
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_refused_or_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Change::decode_all(&bytes);
        }
    }
}
