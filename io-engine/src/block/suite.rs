//! The conformance suite of the block device contract: every device, doubles included, passes it in its tests.
//!
//! What needs a power loss or a second process is beyond a single device handle and is tested where the device is.

use runtime::{IoBuf, IoBytes};

use super::{BlockDevice, Blocks, ErrorKind, Lba, LbaRange, WriteOptions, to_usize};

/// Runs every check on a fresh device of at least 64 KiB, of which nothing is kept.
///
/// # Panics
/// Where the device breaks the contract; the message says how.
pub async fn check(device: &impl BlockDevice) {
    let geometry = device.geometry();
    assert!(matches!(geometry.block_bytes, 512 | 4096), "block size {}", geometry.block_bytes);
    assert!(geometry.len_bytes() >= 64 << 10, "the suite needs 64 KiB");
    fresh_blocks_read_as_zeroes(device).await;
    requests_outside_are_refused_whole(device).await;
    what_was_written_is_read(device).await;
    neighbours_are_left_alone(device).await;
    zeroed_and_unmapped_blocks_read_as_zeroes(device).await;
    overlapping_halves_do_not_lose_each_other(device).await;
    empty_requests_do_nothing(device).await;
    device.flush().await.expect("a flush of a healthy device");
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..=250_u8).cycle().take(len).map(|at| seed.wrapping_add(at) | 1).collect()
}

async fn read(device: &impl BlockDevice, lba: u64, blocks: u64) -> Vec<u8> {
    let len = to_usize(blocks * u64::from(device.geometry().block_bytes));
    // A buffer with old contents: a device must fill holes too.
    let mut buf = IoBuf::zeroed(len);
    buf.fill(0xEE);
    device.read(Lba(lba), buf).await.expect("a read within the device").to_vec()
}

async fn write(device: &impl BlockDevice, lba: u64, bytes: &[u8], fua: bool) {
    let data = IoBytes::from_slice(bytes);
    device.write(Lba(lba), data, WriteOptions { fua }).await.expect("a write within the device");
}

fn range(lba: u64, blocks: u64) -> LbaRange {
    LbaRange::new(Lba(lba), Blocks(blocks)).expect("a range of the suite")
}

async fn fresh_blocks_read_as_zeroes(device: &impl BlockDevice) {
    let last = device.geometry().blocks.0 - 1;
    assert!(read(device, 0, 8).await.iter().all(|byte| *byte == 0), "never written, so zero");
    assert!(read(device, last, 1).await.iter().all(|byte| *byte == 0), "the last block too");
}

async fn requests_outside_are_refused_whole(device: &impl BlockDevice) {
    let geometry = device.geometry();
    let (end, block) = (geometry.blocks.0, to_usize(u64::from(geometry.block_bytes)));
    for (lba, len) in [(end, block), (end - 1, 2 * block), (u64::MAX, block), (0, block - 1), (0, block + 1)]
    {
        let error = device.read(Lba(lba), IoBuf::zeroed(len)).await.expect_err("a read outside");
        assert_eq!(error.kind(), ErrorKind::OutOfRange, "read of {len} bytes at {lba}");
        let data = IoBytes::from_slice(&pattern(1, len));
        let error = device.write(Lba(lba), data, WriteOptions::default()).await.expect_err("a write outside");
        assert_eq!(error.kind(), ErrorKind::OutOfRange, "write of {len} bytes at {lba}");
    }
    let error = device.unmap(range(end - 1, 2)).await.expect_err("an unmap outside");
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
    let zeroes = device.write_zeroes(range(end, 1), WriteOptions::default()).await;
    assert_eq!(zeroes.expect_err("zeroes outside").kind(), ErrorKind::OutOfRange);
    assert!(read(device, end - 1, 1).await.iter().all(|byte| *byte == 0), "a refused request does nothing");
}

async fn what_was_written_is_read(device: &impl BlockDevice) {
    let geometry = device.geometry();
    let block = to_usize(u64::from(geometry.block_bytes));
    let last = geometry.blocks.0 - 1;
    for (seed, lba, blocks, fua) in [(3, 0, 1, false), (5, 1, 7, true), (7, 3, 11, false), (9, last, 1, true)]
    {
        let bytes = pattern(seed, to_usize(blocks) * block);
        write(device, lba, &bytes, fua).await;
        assert_eq!(read(device, lba, blocks).await, bytes, "{blocks} blocks at {lba}");
    }
}

async fn neighbours_are_left_alone(device: &impl BlockDevice) {
    let block = to_usize(u64::from(device.geometry().block_bytes));
    write(device, 0, &pattern(10, 4 * block), false).await;
    write(device, 1, &pattern(20, block), false).await;
    let mut expected = pattern(10, 4 * block);
    expected[block..2 * block].copy_from_slice(&pattern(20, block));
    assert_eq!(read(device, 0, 4).await, expected);
}

async fn zeroed_and_unmapped_blocks_read_as_zeroes(device: &impl BlockDevice) {
    let geometry = device.geometry();
    let block = to_usize(u64::from(geometry.block_bytes));
    let per_4k = 4096 / u64::from(geometry.block_bytes);
    let all = to_usize(8 * per_4k) * block;
    let before = pattern(30, all);

    write(device, 0, &before, false).await;
    device.write_zeroes(range(1, 2 * per_4k), WriteOptions::default()).await.expect("zeroes");
    let mut expected = before.clone();
    expected[block..block + to_usize(2 * per_4k) * block].fill(0);
    assert_eq!(read(device, 0, 8 * per_4k).await, expected, "exactly the zeroed blocks are zero");

    write(device, 0, &before, false).await;
    // From the middle of a 4 KiB block to the middle of another: at least the whole ones between are zero, and the
    // others are zero or as before, block by block.
    let start = 1.max(per_4k / 2);
    device.unmap(range(start, 4 * per_4k)).await.expect("an unmap");
    let after = read(device, 0, 8 * per_4k).await;
    for (index, (now, was)) in after.chunks(block).zip(before.chunks(block)).enumerate() {
        let (at, end) = (index as u64, start + 4 * per_4k);
        let whole = at / per_4k * per_4k >= start && (at / per_4k + 1) * per_4k <= end;
        let is_zero = now.iter().all(|byte| *byte == 0);
        if whole {
            assert!(is_zero, "block {at} was unmapped");
        } else if at >= start && at < end {
            assert!(is_zero || now == was, "block {at} is neither old nor zero");
        } else {
            assert_eq!(now, was, "block {at} was not named");
        }
    }
    write(device, 0, &before, true).await;
    assert_eq!(read(device, 0, 8 * per_4k).await, before, "a hole can be written again");
}

/// Two writes at once to the two halves of a hole of 4 KiB: both must be there afterwards.
async fn overlapping_halves_do_not_lose_each_other(device: &impl BlockDevice) {
    let geometry = device.geometry();
    if geometry.block_bytes == 4096 {
        return;
    }
    device.unmap(range(0, 16)).await.expect("an unmap");
    let (first, second) = (pattern(40, 2048), pattern(50, 2048));
    let third = pattern(60, 2048);
    futures::join!(
        write(device, 0, &first, false),
        write(device, 4, &second, false),
        write(device, 10, &third, false)
    );
    assert_eq!(read(device, 0, 8).await, [first, second].concat());
    assert_eq!(read(device, 10, 4).await, third);
}

async fn empty_requests_do_nothing(device: &impl BlockDevice) {
    let options = WriteOptions::default();
    assert!(read(device, 0, 0).await.is_empty());
    write(device, 0, &[], false).await;
    device.write_zeroes(range(0, 0), options).await.expect("no zeroes");
    device.unmap(range(0, 0)).await.expect("an empty unmap");
}
