//! I/O commands, with data by every way it can travel.

use nvme::command::nvm::{self, BlockRange, NvmCommand};
use nvme::pdu::Digests;
use nvme::{Status, SubmissionEntry};
use runtime::IoBuf;

use super::super::testing::{Admin, FakeReplica, Host, NAMESPACE, bytes, everywhere, nqn, subsystem, target};
use crate::block::ErrorKind;
use crate::block::fault::{Effect, Fault, FaultOp};
use crate::initiator::queue::Data;

fn range(lba: u64, blocks: u32) -> BlockRange {
    BlockRange { lba, blocks }
}

fn write(lba: u64, blocks: u32) -> SubmissionEntry {
    NvmCommand::Write { range: range(lba, blocks), fua: false }.encode(NAMESPACE)
}

fn read(lba: u64, blocks: u32) -> SubmissionEntry {
    NvmCommand::Read { range: range(lba, blocks), fua: true }.encode(NAMESPACE)
}

fn pattern(blocks: u32, seed: u8) -> Vec<u8> {
    (0..blocks * 512).map(|at| u8::try_from(at % 251).expect("small").wrapping_add(seed)).collect()
}

async fn status(io: &Admin, entry: SubmissionEntry, data: Data) -> Status {
    io.run(entry, data).await.0.status
}

/// In the capsule, by R2T into the receive buffer, and long enough to be received in place; with and without digests.
#[test]
fn what_is_written_by_any_way_is_read_back() {
    for digests in [Digests::default(), Digests { header: true, data: true }] {
        everywhere(async |address| {
            let target = target(address).await;
            target.add(subsystem("v", &FakeReplica::new())).expect("new");
            let mut host = Host::new(target.address(), "host");
            host.digests = digests;
            let (_, io) = host.attach(&nqn("v")).await;
            io.queue.set_in_capsule_bytes(4096);
            for (seed, blocks) in [(1, 1), (2, 8), (3, 9), (4, 31), (5, 257), (6, 2048)] {
                let data = pattern(blocks, seed);
                assert_eq!(status(&io, write(10, blocks), bytes(&data)).await, Status::SUCCESS);
                assert_eq!(io.fetch(read(10, blocks), data.len()).await, data, "{blocks} blocks");
            }
        });
    }
}

#[test]
fn many_commands_run_at_once() {
    everywhere(async |address| {
        let target = target(address).await;
        let replica = FakeReplica::new();
        target.add(subsystem("v", &replica)).expect("new");
        let (_, io) = Host::new(target.address(), "host").attach(&nqn("v")).await;
        let held = replica.faults().add(Fault::new(FaultOp::Write, Effect::Hold));
        let writes: Vec<_> = (0..16_u8)
            .map(|index| {
                let io = io.clone();
                runtime::spawn(async move {
                    let lba = u64::from(index) * 64;
                    status(&io, write(lba, 64), bytes(&pattern(64, index))).await
                })
            })
            .collect();
        super::super::testing::until("all are being executed", || replica.faults().held() == 16).await;
        assert_eq!(io.fetch(read(8000, 1), 512).await, [0; 512], "a read overtakes them");
        replica.faults().remove(held);
        for write in writes {
            assert_eq!(write.await.expect("not aborted"), Status::SUCCESS);
        }
        for index in 0..16_u8 {
            assert_eq!(io.fetch(read(u64::from(index) * 64, 64), 32_768).await, pattern(64, index));
        }
    });
}

#[test]
fn zeroes_deallocation_comparison_and_flush_do_what_they_say() {
    everywhere(async |address| {
        let target = target(address).await;
        target.add(subsystem("v", &FakeReplica::new())).expect("new");
        let (_, io) = Host::new(target.address(), "host").attach(&nqn("v")).await;
        let data = pattern(32, 9);
        assert_eq!(status(&io, write(0, 32), bytes(&data)).await, Status::SUCCESS);
        let compare = NvmCommand::Compare { range: range(0, 32) }.encode(NAMESPACE);
        assert_eq!(status(&io, compare, bytes(&data)).await, Status::SUCCESS);
        assert_eq!(status(&io, compare, bytes(&pattern(32, 8))).await, Status::COMPARE_FAILURE.with_dnr());
        let zeroes = NvmCommand::WriteZeroes { range: range(0, 8), fua: true, deallocate: false };
        assert_eq!(status(&io, zeroes.encode(NAMESPACE), Data::None).await, Status::SUCCESS);
        let list = [range(8, 8), range(24, 8)].map(nvm::encode_dsm_range).concat();
        let deallocate = NvmCommand::DatasetManagement { ranges: 2, deallocate: true }.encode(NAMESPACE);
        assert_eq!(status(&io, deallocate, bytes(&list)).await, Status::SUCCESS);
        let flush = NvmCommand::Flush.encode(NAMESPACE);
        assert_eq!(status(&io, flush, Data::None).await, Status::SUCCESS);
        let found = io.fetch(read(0, 32), 16_384).await;
        assert!(found[..8192].iter().all(|byte| *byte == 0) && found[12_288..].iter().all(|byte| *byte == 0));
        assert_eq!(found[8192..12_288], data[8192..12_288]);
        let outside = [range(8, 8), range(8190, 8)].map(nvm::encode_dsm_range).concat();
        let refused = status(&io, deallocate, bytes(&outside)).await;
        assert_eq!(refused, Status::LBA_OUT_OF_RANGE.with_dnr());
    });
}

#[test]
fn errors_of_the_device_arrive_as_their_statuses() {
    everywhere(async |address| {
        let target = target(address).await;
        let replica = FakeReplica::new();
        target.add(subsystem("v", &replica)).expect("new");
        let (_, io) = Host::new(target.address(), "host").attach(&nqn("v")).await;
        for (kind, expected) in [
            (ErrorKind::Media, Status::WRITE_FAULT),
            (ErrorKind::CapacityExceeded, Status::CAPACITY_EXCEEDED),
            (ErrorKind::ReservationConflict, Status::RESERVATION_CONFLICT.with_dnr()),
            (ErrorKind::PathLost, Status::INTERNAL_PATH_ERROR),
        ] {
            replica.faults().add(Fault::new(FaultOp::Write, Effect::Fail(kind)).times(1));
            assert_eq!(status(&io, write(0, 1), bytes(&[1; 512])).await, expected);
        }
        replica.faults().add(Fault::new(FaultOp::Read, Effect::Fail(ErrorKind::Media)).times(1));
        let (completion, _) = io.run(read(0, 1), Data::Read(IoBuf::zeroed(512))).await;
        assert_eq!(completion.status, Status::UNRECOVERED_READ_ERROR);
        assert_eq!(status(&io, write(8192, 1), bytes(&[1; 512])).await, Status::LBA_OUT_OF_RANGE.with_dnr());
        assert_eq!(status(&io, write(0, 2), bytes(&[1; 512])).await, Status::SGL_LENGTH_INVALID.with_dnr());
    });
}
