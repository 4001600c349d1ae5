//! NVM and vendor commands of an I/O queue: checked and planned before their data moves, then executed on the export.

use nvme::command::nvm::{self, BlockRange, NvmCommand};
use nvme::command::reservation::{RegistrantData, ReportCommand, ReservationCommand, ReservationStatus};
use nvme::command::vendor::{
    self, AbsentData, AbsentEntry, AllocatedData, JoinData, MissedData, NoteAbsentData, ReportData,
    VendorCommand,
};
use nvme::session::target::Transfer;
use nvme::{Nsid, Status, SubmissionEntry};
use runtime::{IoBuf, IoBytes};
use uuid::Uuid;

use super::export::Export;
use super::status::{Answer, answer};
use crate::block::{BlockError, Blocks, Geometry, Lba, LbaRange, WriteOptions, to_usize};
use crate::member::{Absence, Epoch, MemberReport, Missed, Registrant};
use crate::reservation::state::Host;
use crate::reservation::{Refusal, Reservations, Reserving};

/// The one namespace of a subsystem.
pub(super) const NSID: Nsid = Nsid(1);

/// A command that was found to be in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    Flush,
    Read {
        lba: Lba,
        len: u32,
        fua: bool,
    },
    Write {
        lba: Lba,
        fua: bool,
    },
    Compare {
        lba: Lba,
        len: u32,
    },
    WriteZeroes {
        range: LbaRange,
        fua: bool,
    },
    /// Ranges in the data; without effect unless they are to be deallocated.
    DatasetManagement {
        ranges: u16,
        deallocate: bool,
    },
    Vendor {
        command: VendorCommand,
        len: u32,
    },
    Reserve(ReservationCommand),
    /// So many bytes of the report.
    Reservations {
        len: u32,
    },
}

/// How a command ended.
#[derive(Debug)]
pub(super) enum Outcome {
    Done,
    /// Done, and this is the data.
    Data(IoBytes),
    Failed(Status),
    /// Not to be answered: the connections are to be closed.
    Close,
}

/// Checks a command against its data and the namespace, before the data is asked for.
pub(super) fn plan(
    entry: &SubmissionEntry,
    transfer: Transfer,
    geometry: Geometry,
    has_reservations: bool,
) -> Result<Plan, Status> {
    let is_flush = entry.opcode == nvm::opcode::FLUSH;
    if entry.nsid != NSID && !(is_flush && entry.nsid == Nsid::ALL) {
        return Err(Status::INVALID_NAMESPACE.with_dnr());
    }
    if let Some(command) = VendorCommand::decode(entry) {
        return Ok(Plan::Vendor { command, len: transfer.len() });
    }
    if has_reservations {
        if let Some(command) = ReservationCommand::decode(entry) {
            let command = command?;
            if to_usize(transfer.len().into()) != command.data_bytes() {
                return Err(Status::SGL_LENGTH_INVALID.with_dnr());
            }
            return Ok(Plan::Reserve(command));
        }
        if let Some(report) = ReportCommand::decode(entry) {
            if !report.is_extended {
                return Err(Status::HOST_ID_INCONSISTENT.with_dnr());
            }
            if u64::from(transfer.len()) < report.len {
                return Err(Status::SGL_LENGTH_INVALID.with_dnr());
            }
            return Ok(Plan::Reservations { len: transfer.len() });
        }
    }
    let within = |range: BlockRange| {
        LbaRange::new(Lba(range.lba), Blocks(range.blocks.into()))
            .filter(|range| range.end() <= Lba(geometry.blocks.0))
            .ok_or(Status::LBA_OUT_OF_RANGE.with_dnr())
    };
    let with_data = |range: BlockRange| {
        let checked = within(range)?;
        let len = u64::from(range.blocks) * u64::from(geometry.block_bytes);
        if u64::from(transfer.len()) == len {
            Ok((checked.start(), transfer.len()))
        } else {
            Err(Status::SGL_LENGTH_INVALID.with_dnr())
        }
    };
    Ok(match NvmCommand::decode(entry)? {
        NvmCommand::Flush => Plan::Flush,
        NvmCommand::Read { range, fua } => {
            let (lba, len) = with_data(range)?;
            Plan::Read { lba, len, fua }
        }
        NvmCommand::Write { range, fua } => {
            let (lba, _) = with_data(range)?;
            Plan::Write { lba, fua }
        }
        NvmCommand::Compare { range } => {
            let (lba, len) = with_data(range)?;
            Plan::Compare { lba, len }
        }
        NvmCommand::WriteZeroes { range, fua, .. } => Plan::WriteZeroes { range: within(range)?, fua },
        NvmCommand::DatasetManagement { ranges, deallocate } => {
            if to_usize(transfer.len().into()) < usize::from(ranges) * nvm::DSM_RANGE_BYTES {
                return Err(Status::SGL_LENGTH_INVALID.with_dnr());
            }
            Plan::DatasetManagement { ranges, deallocate }
        }
    })
}

/// Executes a plan. `data` is what came from the host; `is_write_through` is true while the host has switched the
/// write cache off.
pub(super) async fn execute<E: Export>(
    export: &E,
    plan: Plan,
    data: Option<IoBytes>,
    is_write_through: bool,
    cntlid_of: impl Fn(Host) -> u16,
) -> Outcome {
    let is_write = !matches!(plan, Plan::Read { .. } | Plan::Compare { .. });
    let options = |fua: bool| WriteOptions { fua: fua || is_write_through };
    let done = match plan {
        Plan::Flush => export.flush().await,
        Plan::Read { lba, len, fua } => match read(export, lba, len, fua).await {
            Ok(buf) => return Outcome::Data(buf.freeze()),
            Err(error) => Err(error),
        },
        Plan::Write { lba, fua } => match data {
            Some(data) => export.write(lba, data, options(fua)).await,
            None => return Outcome::Failed(Status::SGL_LENGTH_INVALID.with_dnr()),
        },
        Plan::Compare { lba, len } => match read(export, lba, len, false).await {
            Ok(found) if data.is_some_and(|data| *data == *found) => Ok(()),
            Ok(_) => return Outcome::Failed(Status::COMPARE_FAILURE.with_dnr()),
            Err(error) => Err(error),
        },
        Plan::WriteZeroes { range, fua } => export.write_zeroes(range, options(fua)).await,
        Plan::DatasetManagement { ranges, deallocate } => {
            return manage(export, data.as_deref().unwrap_or_default(), ranges, deallocate).await;
        }
        Plan::Vendor { command, len } => {
            return vendor(export, command, data.as_deref().unwrap_or_default(), len).await;
        }
        Plan::Reserve(command) => {
            return match command.with_keys(data.as_deref().unwrap_or_default()) {
                Some(command) => reserve(export, command).await,
                None => Outcome::Failed(Status::SGL_LENGTH_INVALID.with_dnr()),
            };
        }
        Plan::Reservations { len } => {
            let mut found = export.reservations().map(|it| status_data(&it, cntlid_of)).unwrap_or_default();
            found.resize(to_usize(len.into()), 0);
            return Outcome::Data(IoBytes::from_slice(&found));
        }
    };
    match done {
        Ok(()) => Outcome::Done,
        Err(error) => failed(&error, is_write),
    }
}

fn failed(error: &BlockError, is_write: bool) -> Outcome {
    match answer(error.kind(), is_write) {
        Answer::Status(status) => Outcome::Failed(status),
        Answer::Close => Outcome::Close,
    }
}

async fn reserve<E: Export>(export: &E, command: ReservationCommand) -> Outcome {
    match export.reserve(command).await {
        Ok(()) => Outcome::Done,
        Err(Reserving::Refused(refusal)) => Outcome::Failed(match refusal {
            Refusal::Conflict => Status::RESERVATION_CONFLICT.with_dnr(),
            Refusal::InvalidField => Status::INVALID_FIELD.with_dnr(),
            Refusal::Full => Status::CAPACITY_EXCEEDED.with_dnr(),
        }),
        Err(Reserving::Failed(error)) => failed(&error, true),
    }
}

fn status_data(state: &Reservations, cntlid_of: impl Fn(Host) -> u16) -> Vec<u8> {
    let report = state.report();
    let registrant = |it: &Registrant| RegistrantData {
        cntlid: cntlid_of(it.host),
        is_holder: it.is_holder,
        key: it.key,
        host: it.host,
    };
    let data = ReservationStatus {
        generation: report.generation,
        kind: report.kind,
        is_persistent: report.is_persistent,
        registrants: report.registrants.iter().map(registrant).collect(),
    };
    data.encode()
}

async fn read<E: Export>(export: &E, lba: Lba, len: u32, fua: bool) -> Result<IoBuf, BlockError> {
    // nvm 3.2.4, FUA: what is read has to be on the medium.
    if fua {
        export.flush().await?;
    }
    export.read(lba, IoBuf::zeroed(to_usize(len.into()))).await
}

/// nvm 3.2.3: ranges are checked before the first is acted on, so that a wrong list changes nothing.
async fn manage<E: Export>(export: &E, data: &[u8], ranges: u16, deallocate: bool) -> Outcome {
    let Some(list) = nvm::decode_dsm_ranges(data, ranges) else {
        return Outcome::Failed(Status::SGL_LENGTH_INVALID.with_dnr());
    };
    let end = Lba(export.geometry().blocks.0);
    let mut checked = Vec::with_capacity(usize::from(ranges));
    for range in list {
        match LbaRange::new(Lba(range.lba), Blocks(range.blocks.into())) {
            Some(range) if range.end() <= end => checked.push(range),
            _ => return Outcome::Failed(Status::LBA_OUT_OF_RANGE.with_dnr()),
        }
    }
    if !deallocate {
        return Outcome::Done;
    }
    for range in checked.into_iter().filter(|range| range.blocks().0 > 0) {
        if let Err(error) = export.unmap(range).await {
            return failed(&error, true);
        }
    }
    Outcome::Done
}

async fn vendor<E: Export>(export: &E, command: VendorCommand, data: &[u8], len: u32) -> Outcome {
    let room = to_usize(len.into());
    let done = match command {
        VendorCommand::Join => match JoinData::decode(data) {
            Ok(join) => {
                let epoch =
                    Epoch { counter: join.epoch_counter, raised_by: Uuid::from_bytes(join.epoch_raised_by) };
                export.join(Uuid::from_bytes(join.volume), epoch, join.is_caught_up).await
            }
            Err(status) => return Outcome::Failed(status),
        },
        VendorCommand::CloseRegions { count } => match vendor::decode_regions(data, count) {
            Some(regions) => export.close_regions(&regions).await,
            None => return Outcome::Failed(Status::SGL_LENGTH_INVALID.with_dnr()),
        },
        VendorCommand::Report { first_region } => {
            if room < vendor::REPORT_HEADER_BYTES {
                return Outcome::Failed(Status::SGL_LENGTH_INVALID.with_dnr());
            }
            match export.report().await {
                Ok(report) => {
                    let mut buf = IoBuf::zeroed(room);
                    report_data(report, first_region, ReportData::regions_max(room)).encode(&mut buf);
                    return Outcome::Data(buf.freeze());
                }
                Err(error) => Err(error),
            }
        }
        VendorCommand::Allocated { offset, len } => {
            let runs_max = AllocatedData::runs_max(room);
            let Some(end) = offset.checked_add(len).filter(|_| runs_max > 0) else {
                return Outcome::Failed(Status::INVALID_FIELD.with_dnr());
            };
            match export.allocated(offset..end, runs_max).await {
                Ok((runs, complete_to)) => {
                    let mut buf = IoBuf::zeroed(room);
                    AllocatedData { complete_to, runs }.encode(&mut buf);
                    return Outcome::Data(buf.freeze());
                }
                Err(error) => Err(error),
            }
        }
        VendorCommand::NoteAbsent => match NoteAbsentData::decode(data) {
            Ok(note) => {
                let raised_by = Uuid::from_bytes(note.left_at_raised_by);
                let left_at = Epoch { counter: note.left_at_counter, raised_by };
                let member = Uuid::from_bytes(note.member);
                export.note_absent(member, left_at, &note.regions, note.more_follow).await
            }
            Err(status) => return Outcome::Failed(status),
        },
        VendorCommand::ForgetAbsent { member } => export.forget_absent(Uuid::from_bytes(member)).await,
        VendorCommand::Missed { member, first_region } => {
            let regions_max = MissedData::regions_max(room);
            if regions_max == 0 {
                return Outcome::Failed(Status::SGL_LENGTH_INVALID.with_dnr());
            }
            match export.missed(Uuid::from_bytes(member), first_region, regions_max).await {
                Ok(missed) => {
                    let mut buf = IoBuf::zeroed(room);
                    missed_data(missed).encode(&mut buf);
                    return Outcome::Data(buf.freeze());
                }
                Err(error) => Err(error),
            }
        }
        VendorCommand::Absent => match export.absent().await {
            Ok(absent)
                if room >= vendor::ABSENT_HEADER_BYTES && absent.len() <= AbsentData::members_max(room) =>
            {
                let mut buf = IoBuf::zeroed(room);
                absent_data(&absent).encode(&mut buf);
                return Outcome::Data(buf.freeze());
            }
            Ok(_) => return Outcome::Failed(Status::SGL_LENGTH_INVALID.with_dnr()),
            Err(error) => Err(error),
        },
    };
    match done {
        Ok(()) => Outcome::Done,
        Err(error) => failed(&error, true),
    }
}

fn report_data(report: MemberReport, first_region: u64, regions_max: usize) -> ReportData {
    let mut regions = report.open_regions.into_iter().filter(|region| *region >= first_region);
    let open_regions: Vec<u64> = regions.by_ref().take(regions_max).collect();
    ReportData {
        replica: report.replica.into_bytes(),
        volume: report.volume.into_bytes(),
        epoch_counter: report.epoch.counter,
        epoch_raised_by: report.epoch.raised_by.into_bytes(),
        boot_id: report.boot_id.into_bytes(),
        engine_incarnation: report.engine_incarnation.into_bytes(),
        has_lost_power: report.lost_power,
        ran_without_break: report.ran_without_break,
        region_bytes: report.region_bytes,
        open_regions,
        has_more: regions.next().is_some(),
    }
}

fn missed_data(missed: Option<Missed>) -> MissedData {
    missed.map_or_else(MissedData::default, |missed| MissedData {
        is_noted: true,
        left_at_counter: missed.left_at.counter,
        left_at_raised_by: missed.left_at.raised_by.into_bytes(),
        regions: missed.regions,
        has_more: missed.has_more,
    })
}

fn absent_data(absent: &[Absence]) -> AbsentData {
    let members = absent.iter().map(|absence| AbsentEntry {
        member: absence.member.into_bytes(),
        left_at_counter: absence.left_at.counter,
        left_at_raised_by: absence.left_at.raised_by.into_bytes(),
    });
    AbsentData { members: members.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry { block_bytes: 512, blocks: Blocks(100) };

    fn range(lba: u64, blocks: u32) -> BlockRange {
        BlockRange { lba, blocks }
    }

    #[test]
    fn commands_are_refused_before_their_data_moves() {
        let read = |lba, blocks| NvmCommand::Read { range: range(lba, blocks), fua: false };
        let write = |lba, blocks| NvmCommand::Write { range: range(lba, blocks), fua: false };
        let dsm = NvmCommand::DatasetManagement { ranges: 2, deallocate: true };
        let to_host = |len| Transfer::ToHost { len };
        let from_host = |len| Transfer::FromHost { len };
        let out_of_range = Status::LBA_OUT_OF_RANGE.with_dnr();
        let wrong_length = Status::SGL_LENGTH_INVALID.with_dnr();
        for (command, transfer, expected) in [
            (read(0, 100), to_host(51_200), Ok(Plan::Read { lba: Lba(0), len: 51_200, fua: false })),
            (read(1, 100), to_host(51_200), Err(out_of_range)),
            (read(u64::MAX, 1), to_host(512), Err(out_of_range)),
            (read(0, 2), to_host(512), Err(wrong_length)),
            (read(0, 2), Transfer::None, Err(wrong_length)),
            (write(99, 1), from_host(512), Ok(Plan::Write { lba: Lba(99), fua: false })),
            (write(100, 1), from_host(512), Err(out_of_range)),
            (write(0, 1), from_host(1024), Err(wrong_length)),
            (dsm, from_host(16), Err(wrong_length)),
            (dsm, from_host(32), Ok(Plan::DatasetManagement { ranges: 2, deallocate: true })),
            (NvmCommand::Flush, Transfer::None, Ok(Plan::Flush)),
        ] {
            assert_eq!(
                plan(&command.encode(NSID), transfer, GEOMETRY, true),
                expected,
                "{command:?} {transfer:?}"
            );
        }
    }

    #[test]
    fn there_is_one_namespace_and_flush_takes_all() {
        let refused = Err(Status::INVALID_NAMESPACE.with_dnr());
        let read = NvmCommand::Read { range: range(0, 1), fua: false };
        let transfer = Transfer::ToHost { len: 512 };
        for nsid in [Nsid(0), Nsid(2), Nsid::ALL] {
            assert_eq!(plan(&read.encode(nsid), transfer, GEOMETRY, true), refused);
        }
        assert_eq!(
            plan(&NvmCommand::Flush.encode(Nsid::ALL), Transfer::None, GEOMETRY, true),
            Ok(Plan::Flush)
        );
        assert_eq!(plan(&NvmCommand::Flush.encode(Nsid(2)), Transfer::None, GEOMETRY, true), refused);
    }
}
