//! The commands about absent members, as the initiator sends them.

use nvme::command::vendor::{AbsentData, MISSED_HEADER_BYTES, MissedData, NoteAbsentData, VendorCommand};
use runtime::{IoBuf, IoBytes};
use uuid::Uuid;

use super::queue::Data;
use super::{ANSWER_BYTES, NSID, RemoteDevice};
use crate::block::{BlockError, ErrorKind};
use crate::member::{Absence, Epoch, Missed};

/// Room for the absent members that a replica may keep, and more.
const ABSENT_BYTES: usize = 4 << 10;
/// Regions in one command: its data is well below what any target takes in one transfer.
const REGIONS_PER_NOTE: usize = 4096;

fn epoch(counter: u64, raised_by: [u8; 16]) -> Epoch {
    Epoch { counter, raised_by: Uuid::from_bytes(raised_by) }
}

impl RemoteDevice {
    fn unreadable(&self, what: &str) -> BlockError {
        BlockError::new(ErrorKind::Internal, format!("{}: {what} cannot be read", self.remote.uri))
    }

    pub(super) async fn note_absent_there(
        &self,
        member: Uuid,
        left_at: Epoch,
        regions: &[u64],
        more_follow: bool,
    ) -> Result<(), BlockError> {
        let mut rest = regions;
        loop {
            let (part, later) = rest.split_at(rest.len().min(REGIONS_PER_NOTE));
            rest = later;
            let note = NoteAbsentData {
                member: member.into_bytes(),
                left_at_counter: left_at.counter,
                left_at_raised_by: left_at.raised_by.into_bytes(),
                more_follow: more_follow || !rest.is_empty(),
                regions: part.to_vec(),
            };
            let data = Data::Write(IoBytes::from_slice(&note.encode()));
            self.run(VendorCommand::NoteAbsent.encode(NSID), data, "note an absent member").await?;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    pub(super) async fn absent_there(&self) -> Result<Vec<Absence>, BlockError> {
        let data = Data::Read(IoBuf::zeroed(ABSENT_BYTES));
        let finished = self.run(VendorCommand::Absent.encode(NSID), data, "list absent members").await?;
        let answer = finished.buffer.and_then(|buffer| AbsentData::decode(&buffer));
        let members = answer.ok_or_else(|| self.unreadable("the list of absent members"))?.members;
        let absences = members.into_iter().map(|entry| Absence {
            member: Uuid::from_bytes(entry.member),
            left_at: epoch(entry.left_at_counter, entry.left_at_raised_by),
        });
        Ok(absences.collect())
    }

    pub(super) async fn missed_there(
        &self,
        member: Uuid,
        first_region: u64,
        regions_max: usize,
    ) -> Result<Option<Missed>, BlockError> {
        let regions = regions_max.clamp(1, MissedData::regions_max(ANSWER_BYTES));
        let room = MISSED_HEADER_BYTES + 8 * regions;
        let command = VendorCommand::Missed { member: member.into_bytes(), first_region };
        let data = Data::Read(IoBuf::zeroed(room));
        let finished = self.run(command.encode(NSID), data, "list what a member missed").await?;
        let answer = finished.buffer.and_then(|buffer| MissedData::decode(&buffer));
        let answer = answer.ok_or_else(|| self.unreadable("what a member missed"))?;
        Ok(answer.is_noted.then(|| Missed {
            left_at: epoch(answer.left_at_counter, answer.left_at_raised_by),
            regions: answer.regions,
            has_more: answer.has_more,
        }))
    }

    pub(super) async fn forget_absent_there(&self, member: Uuid) -> Result<(), BlockError> {
        let command = VendorCommand::ForgetAbsent { member: member.into_bytes() };
        self.run(command.encode(NSID), Data::None, "forget an absent member").await.map(drop)
    }
}
