//! Reservations of a remote replica: the commands of the specification, under the host identifier of this engine
//! (SAFETY F6).

use nvme::SubmissionEntry;
use nvme::command::reservation::{
    REPORT_HEADER_BYTES, REPORT_REGISTRANT_BYTES, ReportCommand, ReservationCommand, ReservationStatus,
};
use runtime::{IoBuf, IoBytes};

use super::connect::Association;
use super::queue::{Data, Finished};
use super::{InitiatorOptions, NSID, RemoteDevice};
use crate::block::{BlockError, ErrorKind};
use crate::member::{Registrant, ReservationReport, ReservationType, Reserve};
use crate::reservation::fence::calls;
use crate::reservation::state::REGISTRANTS_MAX;
use crate::target::status;

/// Room for a report of as many registrants as there may be.
const REPORT_BYTES: usize = REPORT_HEADER_BYTES + REGISTRANTS_MAX * REPORT_REGISTRANT_BYTES;

async fn send(
    association: &Association,
    options: &InitiatorOptions,
    entry: SubmissionEntry,
    data: Data,
) -> Result<Finished, BlockError> {
    if !association.controller.has_reservations {
        return Err(BlockError::new(ErrorKind::Unsupported, "the target has no reservations"));
    }
    let finished = association.io.submit(entry, data, options.io_timeout).await?;
    let status = finished.completion.status;
    if status.is_success() {
        return Ok(finished);
    }
    let kind = match status.code() {
        // Of these commands a wrong field is a wrong command, not an unknown one.
        nvme::Status::INVALID_FIELD => ErrorKind::Internal,
        _ => status::kind(status),
    };
    Err(BlockError::new(kind, format!("reservation: {status}")))
}

/// Asks who has registered.
pub(super) async fn report(
    association: &Association,
    options: &InitiatorOptions,
) -> Result<ReservationReport, BlockError> {
    let entry = ReportCommand { len: REPORT_BYTES as u64, is_extended: true }.encode(NSID);
    let finished = send(association, options, entry, Data::Read(IoBuf::zeroed(REPORT_BYTES))).await?;
    let found = finished.buffer.and_then(|buffer| ReservationStatus::decode(&buffer));
    let found =
        found.ok_or_else(|| BlockError::new(ErrorKind::Internal, "reservation report cannot be read"))?;
    let mut registrants: Vec<Registrant> = found
        .registrants
        .iter()
        .map(|it| Registrant { host: it.host, key: it.key, is_holder: it.is_holder })
        .collect();
    // A target lists controllers, and a host may have several.
    registrants.sort_unstable();
    registrants.dedup();
    Ok(ReservationReport {
        generation: found.generation,
        kind: found.kind,
        is_persistent: found.is_persistent,
        registrants,
    })
}

impl RemoteDevice {
    async fn reserve(&self, command: ReservationCommand) -> Result<(), BlockError> {
        let association = self.remote.association().await?;
        let (entry, data) = command.encode(NSID);
        let data = Data::Write(IoBytes::from_slice(&data));
        send(&association, &self.remote.options, entry, data).await.map(drop)
    }
}

impl Reserve for RemoteDevice {
    async fn register(&self, key: u64) -> Result<(), BlockError> {
        self.reserve(calls::register(key)).await?;
        self.remote.registered(key);
        Ok(())
    }

    async fn unregister(&self) -> Result<(), BlockError> {
        let Some(key) = self.remote.key.get() else { return Ok(()) };
        calls::given_up(self.reserve(calls::unregister(key)).await)?;
        self.remote.key.set(None);
        Ok(())
    }

    async fn acquire(&self, kind: ReservationType, key: u64) -> Result<(), BlockError> {
        self.reserve(calls::acquire(kind, key)).await?;
        self.remote.key.set(Some(key));
        Ok(())
    }

    async fn preempt(&self, kind: ReservationType, key: u64, preempted: u64) -> Result<(), BlockError> {
        self.reserve(calls::preempt(kind, key, preempted)).await?;
        self.remote.key.set(Some(key));
        Ok(())
    }

    async fn release(&self, kind: ReservationType, key: u64) -> Result<(), BlockError> {
        calls::given_up(self.reserve(calls::release(kind, key)).await)
    }

    async fn reservation(&self) -> Result<ReservationReport, BlockError> {
        report(&*self.remote.association().await?, &self.remote.options).await
    }

    async fn confirm(&self) -> Result<(), BlockError> {
        let report = self.reservation().await?;
        calls::confirmed(&report, self.remote.uri.host_id.0, self.remote.key.get())
    }
}
