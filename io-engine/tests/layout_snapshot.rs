//! The disk format as frozen text: a change of any byte shows here first.
//!
//! Pools that users have are of this format. A change that this test catches is either a mistake or a new format
//! version with a way from the old one; only then `UPDATE_LAYOUT=1 cargo test` writes the text anew.

#[path = "pool/support.rs"]
mod support;

use std::fmt::Write;

use io_engine::block::{Blocks, Lba, LbaRange};
use io_engine::member::{Epoch, Member};
use io_engine::pool::checkpoint;
use io_engine::pool::codec::Encoder;
use io_engine::pool::journal::{self, Header};
use io_engine::pool::label::{self, ClusterId, Label};
use io_engine::pool::layout::Layout;
use io_engine::pool::samples::samples;
use io_engine::pool::superblock::{CheckpointPlace, Session, Superblock};
use support::*;
use uuid::Uuid;

/// Sixteen bytes a line, without lines of zeroes.
fn dump(text: &mut String, title: &str, bytes: &[u8]) {
    writeln!(text, "{title} ({} bytes)", bytes.len()).expect("text grows");
    for (at, line) in (0..).step_by(16).zip(bytes.chunks(16)) {
        if line.iter().any(|byte| *byte != 0) {
            let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(text, "  {at:06x}  {}", hex.join(" ")).expect("text grows");
        }
    }
}

fn superblock() -> Superblock {
    Superblock {
        incarnation: Uuid::from_u128(3),
        sequence: 7,
        layout: Layout::plan(1 << 30, 4 << 20, None).expect("a layout"),
        block_bytes: 512,
        checkpoint: CheckpointPlace {
            slot: 1,
            len_bytes: 8292,
            directory_offset: 8192,
            directory_crc: 0xabcd,
        },
        generation: 9,
        first_record: 100,
        session: Session::Open { boot_id: Uuid::from_u128(4), engine: Uuid::from_u128(5) },
    }
}

/// A checkpoint with every subject, as a pool writes it. Nothing in it is random.
fn checkpoint_bytes() -> Vec<u8> {
    run(1, async {
        let device = memory(16 * MIB);
        let pool = create(&device).await;
        let thin = add(&pool, 1, 2 * MIB, true).await;
        add(&pool, 2, MIB, false).await;
        write(&thin, 4096, &[1; 8192]).await.expect("a healthy disk");
        write(&thin, MIB, &vec![2; 1 << 20]).await.expect("a healthy disk");
        let hole = LbaRange::new(Lba(MIB / 512 + 8), Blocks(8)).expect("a range");
        io_engine::block::BlockDevice::unmap(&thin, hole).await.expect("a healthy disk");
        thin.set_share(true, vec!["nqn.a:b".into()]).await.expect("a healthy disk");
        let since = Epoch { counter: 2, raised_by: Uuid::from_u128(9) };
        thin.join(Uuid::from_u128(8), since, true).await.expect("a first membership");
        thin.note_absent(Uuid::from_u128(10), since, &[5], false).await.expect("a healthy disk");
        thin.set_attribute(1, Uuid::nil(), Some(vec![1, 2, 3])).await.expect("a healthy disk");
        pool.checkpoint().await.expect("a healthy disk");
        let found = io_engine::pool::UnverifiedPool::read(base(&device)).await.expect("a pool");
        let superblock = found.superblock().expect("a superblock");
        let place = superblock.checkpoint;
        let offset = superblock.layout.checkpoint_offset(place.slot);
        device.peek(offset, usize::try_from(place.len_bytes).expect("a short checkpoint"))
    })
}

fn layout() -> String {
    let mut text = String::new();
    for (disk, extent) in [(64 << 20, 1 << 20), (1 << 30, 4 << 20), (1 << 40, 4 << 20), (16 << 40, 1 << 30)] {
        let layout = Layout::plan(disk, extent, None).expect("a layout");
        writeln!(text, "{layout:#?}").expect("text grows");
    }
    let label = Label {
        cluster: ClusterId(Uuid::from_u128(1)),
        uuid: Uuid::from_u128(2),
        incarnation: Uuid::from_u128(3),
        name: "pool-1".into(),
    };
    dump(&mut text, "label", &label.encode(4096));
    dump(&mut text, "ready mark", &label::encode_ready(label.incarnation, 4096));
    dump(&mut text, "superblock, open", &superblock().encode());
    let exported = Superblock { session: Session::Exported, ..superblock() };
    dump(&mut text, "superblock, exported", &exported.encode());
    for change in samples() {
        let mut out = Encoder::new();
        change.encode(&mut out);
        dump(&mut text, &format!("{change:?}"), &out.into_bytes());
    }
    let header = Header { incarnation: label.incarnation, generation: 9, sequence: 100, flushed_through: 98 };
    dump(&mut text, "journal record", &journal::encode(&header, &[1, 2, 3]));
    dump(&mut text, "checkpoint", &checkpoint_bytes());
    writeln!(text, "section bytes {}", checkpoint::SECTION_BYTES).expect("text grows");
    text
}

#[test]
fn the_disk_layout_is_frozen() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pool/layout.txt");
    let now = layout();
    if std::env::var_os("UPDATE_LAYOUT").is_some() {
        std::fs::write(path, &now).expect("write the frozen layout");
    }
    let frozen = std::fs::read_to_string(path).expect("read the frozen layout");
    for (number, (now, frozen)) in (1..).zip(now.lines().zip(frozen.lines())) {
        assert_eq!(now, frozen, "line {number} of {path}");
    }
    assert_eq!(now.lines().count(), frozen.lines().count());
}

#[test]
fn what_is_frozen_can_be_read() {
    let superblock = superblock();
    assert_eq!(Superblock::decode(&superblock.encode(), superblock.incarnation), Some(superblock));
    assert_eq!(Superblock::decode(&superblock.encode(), Uuid::from_u128(77)), None, "another pool's");
    let mut torn = superblock.encode();
    torn[200] ^= 1;
    assert_eq!(Superblock::decode(&torn, superblock.incarnation), None);
}
