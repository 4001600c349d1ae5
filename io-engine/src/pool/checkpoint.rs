//! The tables as a checkpoint: the fewest changes that lead to them, in sections with a checksum each.
//!
//! A section holds changes of one subject, so that a damaged open-region map costs its replica's map only (all dirty)
//! and nothing else. The directory at the end names each section; the superblock names the directory.

use std::ops::Range;

use runtime::{IoBuf, IoBytes};
use uuid::Uuid;

use super::bitmap::{Bitmap, Held};
use super::codec::{Decoder, Encoder, Truncated};
use super::error::{Kind, PoolError};
use super::layout::{Layout, PAGE_BYTES};
use super::record::{Change, ExtentRun, LayerId};
use super::state::State;
use super::superblock::CheckpointPlace;
use crate::block::{BaseDevice, BlockDevice, Lba, WriteOptions, to_usize};

/// Sections are cut at about this size: large enough to be written and read in sequence, small enough to be buffered.
pub const SECTION_BYTES: u64 = 256 << 10;

/// What a section is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// Rows of layers, parents first.
    Layers,
    /// Rows of replicas.
    Replicas,
    /// Attributes.
    Attributes,
    /// Extents of a layer.
    Extents(LayerId),
    /// The open-region map of a replica.
    Regions(Uuid),
    /// What absent members missed of a replica.
    Missed(Uuid),
}

/// An entry of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) subject: Subject,
    /// Within the slot.
    pub(super) bytes: Range<u64>,
    pub(super) crc: u32,
}

impl Section {
    fn encode(&self, out: &mut Encoder) {
        let (subject, owner) = match self.subject {
            Subject::Layers => (1, Uuid::nil()),
            Subject::Replicas => (2, Uuid::nil()),
            Subject::Attributes => (3, Uuid::nil()),
            Subject::Extents(layer) => (4, Uuid::from_u64_pair(0, layer.0)),
            Subject::Regions(replica) => (5, replica),
            Subject::Missed(replica) => (6, replica),
        };
        out.u8(subject);
        out.uuid(owner);
        out.u64(self.bytes.start);
        out.u64(self.bytes.end - self.bytes.start);
        out.u32(self.crc);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, Truncated> {
        let (subject, owner) = (from.u8()?, from.uuid()?);
        let subject = match subject {
            1 => Subject::Layers,
            2 => Subject::Replicas,
            3 => Subject::Attributes,
            4 => Subject::Extents(LayerId(owner.as_u64_pair().1)),
            5 => Subject::Regions(owner),
            6 => Subject::Missed(owner),
            _ => return Err(Truncated),
        };
        let (start, len, crc) = (from.u64()?, from.u64()?, from.u32()?);
        let end = start.checked_add(len).ok_or(Truncated)?;
        Ok(Self { subject, bytes: start..end, crc })
    }

    fn decode_all(bytes: &[u8]) -> Result<Vec<Self>, Truncated> {
        let mut from = Decoder::new(bytes);
        let mut sections = Vec::new();
        while !from.rest().is_empty() {
            sections.push(Self::decode(&mut from)?);
        }
        Ok(sections)
    }
}

/// What is to be written next. A place in the tables, so that they are encoded a section at a time.
enum Next {
    Layers,
    Extents {
        layers: Vec<LayerId>,
        logical: usize,
    },
    Replicas,
    Regions {
        replicas: Vec<Uuid>,
        word: usize,
    },
    /// Pairs of a replica and an absent member.
    Missed {
        maps: Vec<(Uuid, Uuid)>,
        word: usize,
    },
    Attributes,
    Done,
}

/// Cuts the tables into sections. The caller keeps the tables unchanged until the last one.
pub(super) struct Sections {
    next: Next,
}

impl Sections {
    pub(super) fn new() -> Self {
        Self { next: Next::Layers }
    }

    /// The next section's subject and bytes.
    pub(super) fn next(&mut self, state: &State) -> Option<(Subject, Vec<u8>)> {
        loop {
            let mut out = Encoder::new();
            let subject = match &mut self.next {
                Next::Layers => {
                    for layer in state.layers.values() {
                        Change::LayerPut(layer.row).encode(&mut out);
                    }
                    let layers = state.layers.keys().rev().copied().collect();
                    self.next = Next::Extents { layers, logical: 0 };
                    Subject::Layers
                }
                Next::Extents { layers, logical } => {
                    let Some(id) = layers.last().copied() else {
                        self.next = Next::Replicas;
                        continue;
                    };
                    *logical = encode_extents(state, id, *logical, &mut out);
                    if *logical == state.layers[&id].extents.len() {
                        layers.pop();
                        *logical = 0;
                    }
                    Subject::Extents(id)
                }
                Next::Replicas => {
                    for replica in state.replicas.values() {
                        Change::ReplicaPut(replica.row.clone()).encode(&mut out);
                        for (member, missed) in &replica.missed {
                            let (replica, member, since) = (replica.row.uuid, *member, missed.since);
                            Change::MissedPut { replica, member, since }.encode(&mut out);
                        }
                    }
                    self.next = Next::Regions { replicas: state.replicas.keys().copied().collect(), word: 0 };
                    Subject::Replicas
                }
                Next::Regions { replicas, word } => {
                    let Some(replica) = replicas.last().copied() else {
                        let maps = state.replicas.iter();
                        let maps = maps
                            .flat_map(|(uuid, replica)| replica.missed.keys().map(|member| (*uuid, *member)));
                        self.next = Next::Missed { maps: maps.collect(), word: 0 };
                        continue;
                    };
                    let (first_word, words) = some_words(&state.replicas[&replica].open, word);
                    Change::RegionMap { replica, first_word, words }.encode(&mut out);
                    if *word == 0 {
                        replicas.pop();
                    }
                    Subject::Regions(replica)
                }
                Next::Missed { maps, word } => {
                    let Some((replica, member)) = maps.last().copied() else {
                        self.next = Next::Attributes;
                        continue;
                    };
                    let (first_word, words) =
                        some_words(&state.replicas[&replica].missed[&member].regions, word);
                    Change::MissedMap { replica, member, first_word, words }.encode(&mut out);
                    if *word == 0 {
                        maps.pop();
                    }
                    Subject::Missed(replica)
                }
                Next::Attributes => {
                    for (key, value) in &state.attributes {
                        Change::AttributePut { key: *key, value: value.clone() }.encode(&mut out);
                    }
                    self.next = Next::Done;
                    Subject::Attributes
                }
                Next::Done => return None,
            };
            if !out.is_empty() {
                return Some((subject, out.into_bytes()));
            }
        }
    }
}

fn is_full(out: &Encoder) -> bool {
    out.len() as u64 >= SECTION_BYTES / 2
}

/// Encodes extents of a layer from `logical` on until the section is full; returns where to go on.
fn encode_extents(state: &State, id: LayerId, logical: usize, out: &mut Encoder) -> usize {
    let layer = &state.layers[&id];
    let number = |index: usize| u32::try_from(index).expect("a layer has fewer extents");
    let mut at = logical;
    while at < layer.extents.len() && !is_full(out) {
        if let Some(zeroed) = layer.zeroed.get(&number(at)) {
            let zeroed = to_bitmap(zeroed, state.layout.extent_pages());
            Change::ZeroedMap { layer: id, logical: number(at), zeroed }.encode(out);
        }
        let extent = &layer.extents[at];
        let Some(physical) = extent.physical() else {
            at += 1;
            continue;
        };
        let is_held = *extent.held() == Held::All;
        // The maps of a run follow it in the same section, so they bound its length.
        let maps_max = to_usize((SECTION_BYTES / 2 / (state.layout.extent_pages() / 8)).max(1));
        let mut maps = Vec::new();
        let mut count = 0;
        while let Some(other) = layer.extents.get(at + count as usize)
            && other.physical() == physical.checked_add(count)
            && (*other.held() == Held::All) == is_held
            && (count == 0 || !layer.zeroed.contains_key(&number(at + count as usize)))
            && maps.len() < maps_max
        {
            if matches!(other.held(), Held::Some(_)) {
                maps.push(at + count as usize);
            }
            count += 1;
        }
        let run = ExtentRun { layer: id, logical: number(at), physical, count, is_held };
        Change::ExtentsAssigned(run).encode(out);
        for index in maps {
            if let Held::Some(held) = layer.extents[index].held() {
                Change::HeldMap { layer: id, logical: number(index), held: held.as_ref().clone() }
                    .encode(out);
            }
        }
        at += count as usize;
    }
    at
}

fn to_bitmap(held: &Held, pages: u64) -> Bitmap {
    match held {
        Held::Nothing => Bitmap::new(pages),
        Held::All => Bitmap::full(pages),
        Held::Some(bitmap) => bitmap.as_ref().clone(),
    }
}

/// As many words of a map from `word` on as fit a section; moves `word` on, to 0 at the end of the map.
fn some_words(map: &Bitmap, word: &mut usize) -> (u32, Vec<u8>) {
    let first = *word;
    let end = map.word_count().min(first + to_usize(SECTION_BYTES / 2 / 8));
    let mut words = Encoder::new();
    map.encode_words(first..end, &mut words);
    *word = if end == map.word_count() { 0 } else { end };
    (u32::try_from(first).expect("a map has fewer words"), words.into_bytes())
}

/// Writes sections into a slot, one after the other; nothing is durable before the caller's flush.
pub(super) struct SlotWriter<'a> {
    device: &'a BaseDevice,
    layout: Layout,
    slot: u8,
    at: u64,
    directory: Vec<Section>,
}

impl<'a> SlotWriter<'a> {
    pub(super) fn new(device: &'a BaseDevice, layout: Layout, slot: u8) -> Self {
        Self { device, layout, slot, at: 0, directory: Vec::new() }
    }

    pub(super) async fn section(&mut self, subject: Subject, bytes: Vec<u8>) -> Result<(), PoolError> {
        let section =
            Section { subject, bytes: self.at..self.at + bytes.len() as u64, crc: crc32c::crc32c(&bytes) };
        self.directory.push(section);
        self.write(bytes).await
    }

    async fn write(&mut self, mut bytes: Vec<u8>) -> Result<(), PoolError> {
        let len = (bytes.len() as u64).next_multiple_of(PAGE_BYTES);
        // Room is kept back for every section there can be, so this is a broken invariant, not a full pool.
        assert!(self.at + len <= self.layout.checkpoint_bytes, "a checkpoint outgrows its slot");
        bytes.resize(to_usize(len), 0);
        let offset = self.layout.checkpoint_offset(self.slot) + self.at;
        let lba = Lba(offset / u64::from(self.device.geometry().block_bytes));
        self.device
            .write(lba, IoBytes::from_slice(&bytes), WriteOptions::default())
            .await
            .map_err(|error| PoolError::io("write a checkpoint", error))?;
        self.at += len;
        Ok(())
    }

    /// Writes the directory.
    pub(super) async fn finish(mut self) -> Result<CheckpointPlace, PoolError> {
        let mut out = Encoder::new();
        for section in &self.directory {
            section.encode(&mut out);
        }
        let directory = out.into_bytes();
        let directory_crc = crc32c::crc32c(&directory);
        let directory_offset = self.at;
        let len_bytes = directory_offset + directory.len() as u64;
        if !directory.is_empty() {
            self.write(directory).await?;
        }
        Ok(CheckpointPlace { slot: self.slot, len_bytes, directory_offset, directory_crc })
    }
}

fn corrupt(what: impl Into<String>) -> PoolError {
    PoolError::new(Kind::Corrupt, what)
}

async fn read(device: &BaseDevice, offset: u64, len: u64) -> Result<IoBuf, PoolError> {
    let padded = to_usize(len.next_multiple_of(PAGE_BYTES));
    let lba = Lba(offset / u64::from(device.geometry().block_bytes));
    let buf = device.read(lba, IoBuf::zeroed(padded)).await;
    let mut buf = buf.map_err(|error| PoolError::io("read a checkpoint", error))?;
    buf.truncate(to_usize(len));
    Ok(buf)
}

/// The sections of a checkpoint, as its directory names them.
pub(super) async fn read_directory(
    device: &BaseDevice,
    layout: &Layout,
    place: &CheckpointPlace,
) -> Result<Vec<Section>, PoolError> {
    let len = place.len_bytes.checked_sub(place.directory_offset);
    let Some(len) = len.filter(|_| place.len_bytes <= layout.checkpoint_bytes) else {
        return Err(corrupt("the superblock names an impossible checkpoint"));
    };
    let offset = layout.checkpoint_offset(place.slot) + place.directory_offset;
    let bytes = read(device, offset, len).await?;
    let directory = Section::decode_all(&bytes);
    match directory {
        Ok(directory) if crc32c::crc32c(&bytes) == place.directory_crc => Ok(directory),
        _ => Err(corrupt("the checkpoint's directory is damaged")),
    }
}

/// Reads one section; `None` where its checksum is wrong.
pub(super) async fn read_section(
    device: &BaseDevice,
    layout: &Layout,
    slot: u8,
    section: &Section,
) -> Result<Option<Vec<Change>>, PoolError> {
    if section.bytes.end > layout.checkpoint_bytes {
        return Err(corrupt("the checkpoint's directory points past its slot"));
    }
    let offset = layout.checkpoint_offset(slot) + section.bytes.start;
    let bytes = read(device, offset, section.bytes.end - section.bytes.start).await?;
    if crc32c::crc32c(&bytes) != section.crc {
        return Ok(None);
    }
    Change::decode_all(&bytes).map(Some).map_err(|_| corrupt("a section of the checkpoint makes no sense"))
}

/// Loads the tables. A replica whose open-region map is damaged has all regions open.
pub(super) async fn load(
    device: &BaseDevice,
    layout: Layout,
    place: &CheckpointPlace,
) -> Result<State, PoolError> {
    let mut state = State::new(layout);
    let mut damaged_maps = Vec::new();
    for section in read_directory(device, &layout, place).await? {
        let Some(changes) = read_section(device, &layout, place.slot, &section).await? else {
            if matches!(section.subject, Subject::Regions(_) | Subject::Missed(_)) {
                damaged_maps.push(section.subject);
                continue;
            }
            return Err(corrupt(format!(
                "the section of {:?} in the checkpoint is damaged",
                section.subject
            )));
        };
        for change in &changes {
            state
                .apply(change)
                .map_err(|what| corrupt(format!("the checkpoint contradicts itself: {}", what.0)))?;
        }
    }
    for subject in damaged_maps {
        let (Subject::Regions(uuid) | Subject::Missed(uuid)) = subject else { continue };
        let Some(replica) = state.replicas.get_mut(&uuid) else { continue };
        tracing::warn!(replica.uuid = %uuid, ?subject, "region map damaged, all regions count");
        let all = Bitmap::full(replica.open.len());
        if let Subject::Regions(_) = subject {
            replica.open = all.clone();
        }
        // An open region is not noted again when it is written: absent members miss all that may be open.
        replica.missed.values_mut().for_each(|missed| missed.regions = all.clone());
    }
    Ok(state)
}
