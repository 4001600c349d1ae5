//! Nexuses, children, rebuilds.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

use super::{FieldError, name, timestamp, timestamp_to_proto, uuid};
use crate::{
    proto,
    types::{
        AddChild, AnaState, CNTLID_RANGE, Child, ChildAction, ChildReason, ChildState, CreateNexus, Nexus,
        NexusState, Preempt, RebuildRecord, RebuildState, RebuildStats, Reservation, ReservationKind,
    },
};

/// Both directions of an enum whose values correspond one to one.
macro_rules! same_enum {
    ($wire:ty, $ours:ty, $($wire_value:ident = $our_value:ident),+ $(,)?) => {
        impl From<$ours> for $wire {
            fn from(value: $ours) -> Self {
                match value { $(<$ours>::$our_value => Self::$wire_value),+ }
            }
        }
        impl From<$wire> for $ours {
            fn from(value: $wire) -> Self {
                match value { $(<$wire>::$wire_value => Self::$our_value),+ }
            }
        }
    };
}

same_enum!(
    proto::NexusState,
    NexusState,
    NexusUnknown = Unknown,
    NexusOnline = Online,
    NexusDegraded = Degraded,
    NexusFaulted = Faulted,
    NexusShuttingDown = ShuttingDown,
    NexusShutdown = Shutdown,
);
same_enum!(
    proto::ChildState,
    ChildState,
    Unknown = Unknown,
    Online = Online,
    Degraded = Degraded,
    Faulted = Faulted,
);
same_enum!(
    proto::ChildStateReason,
    ChildReason,
    None = None,
    Init = Init,
    Closed = Closed,
    CannotOpen = CannotOpen,
    ConfigInvalid = ConfigInvalid,
    RebuildFailed = RebuildFailed,
    IoFailure = IoFailure,
    ByClient = ByClient,
    OutOfSync = OutOfSync,
    NoSpace = NoSpace,
    TimedOut = TimedOut,
    AdminFailed = AdminFailed,
);
same_enum!(
    proto::NvmeAnaState,
    AnaState,
    NvmeAnaInvalidState = Invalid,
    NvmeAnaOptimizedState = Optimized,
    NvmeAnaNonOptimizedState = NonOptimized,
    NvmeAnaInaccessibleState = Inaccessible,
    NvmeAnaPersistentLossState = PersistentLoss,
    NvmeAnaChangeState = Change,
);
same_enum!(
    proto::ChildAction,
    ChildAction,
    Offline = Offline,
    Online = Online,
    FaultIoError = FaultIoError,
    OfflinePermanent = OfflinePermanent,
);
same_enum!(
    proto::RebuildJobState,
    RebuildState,
    Init = Init,
    Rebuilding = Running,
    Stopped = Stopped,
    Paused = Paused,
    Failed = Failed,
    Completed = Completed,
);

/// The reservation of a create request, by the rules of the call: one is wanted when a key or a policy says so.
fn reservation(request: &proto::CreateNexusRequest) -> Result<Option<Reservation>, FieldError> {
    use proto::{NexusNvmePreemption as Policy, NvmeReservation as Wire};
    let policy = Policy::try_from(request.preempt_policy).map_err(|_| {
        FieldError::new(
            "CreateNexusRequest.preemptPolicy",
            format!("{} is no policy", request.preempt_policy),
        )
    })?;
    if request.resv_key == 0 && request.preempt_key == 0 && policy == Policy::ArgKey {
        return Ok(None);
    }
    if request.resv_key == 0 {
        return Err(FieldError::new("CreateNexusRequest.resvKey", "a reservation needs a key other than 0"));
    }
    let preempt = match (policy, request.preempt_key) {
        (Policy::Holder, 0) => Preempt::Holder,
        (Policy::Holder, _) => {
            return Err(FieldError::new(
                "CreateNexusRequest.preemptKey",
                "must be 0 when the holder is replaced, whoever it is",
            ));
        }
        (Policy::ArgKey, 0) => Preempt::Nobody,
        (Policy::ArgKey, key) => Preempt::Key(key),
    };
    let number = request.resv_type.unwrap_or(Wire::WriteExclusiveAllRegs.into());
    let kind = match Wire::try_from(number) {
        Ok(Wire::WriteExclusive) => ReservationKind::WriteExclusive,
        Ok(Wire::ExclusiveAccess) => ReservationKind::ExclusiveAccess,
        Ok(Wire::WriteExclusiveRegsOnly) => ReservationKind::WriteExclusiveRegistrants,
        Ok(Wire::ExclusiveAccessRegsOnly) => ReservationKind::ExclusiveAccessRegistrants,
        Ok(Wire::WriteExclusiveAllRegs) => ReservationKind::WriteExclusiveAllRegistrants,
        Ok(Wire::ExclusiveAccessAllRegs) => ReservationKind::ExclusiveAccessAllRegistrants,
        Ok(Wire::Reserved) | Err(_) => {
            return Err(FieldError::new(
                "CreateNexusRequest.resvType",
                format!("{number} is no kind of reservation"),
            ));
        }
    };
    Ok(Some(Reservation { key: request.resv_key, kind, preempt }))
}

impl TryFrom<proto::CreateNexusRequest> for CreateNexus {
    type Error = FieldError;

    fn try_from(request: proto::CreateNexusRequest) -> Result<Self, FieldError> {
        let cntlid = |path, value: u32| {
            u16::try_from(value).ok().filter(|id| CNTLID_RANGE.contains(id)).ok_or_else(|| {
                FieldError::new(path, format!("{value} is outside 1 to {:#x}", CNTLID_RANGE.end()))
            })
        };
        let lowest = cntlid("CreateNexusRequest.minCntlId", request.min_cntl_id)?;
        let highest = cntlid("CreateNexusRequest.maxCntlId", request.max_cntl_id)?;
        if lowest > highest {
            return Err(FieldError::new(
                "CreateNexusRequest.maxCntlId",
                format!("{highest} is below minCntlId, {lowest}"),
            ));
        }
        Ok(Self {
            reservation: reservation(&request)?,
            uuid: uuid("CreateNexusRequest.uuid", &request.uuid)?,
            name: name("CreateNexusRequest.name", request.name)?,
            size_bytes: request.size,
            cntlids: lowest..=highest,
            children: request.children,
            info_key: Some(request.nexus_info_key).filter(|key| !key.is_empty()),
            standby: request.standby,
            given_up: {
                let replicas = request.given_up.iter();
                replicas.map(|id| uuid("CreateNexusRequest.given_up", id)).collect::<Result<_, _>>()?
            },
        })
    }
}

impl From<CreateNexus> for proto::CreateNexusRequest {
    fn from(request: CreateNexus) -> Self {
        use proto::{NexusNvmePreemption as Policy, NvmeReservation as Wire};
        let (preempt_key, policy) = match request.reservation.map(|reservation| reservation.preempt) {
            None | Some(Preempt::Nobody) => (0, Policy::ArgKey),
            Some(Preempt::Key(key)) => (key, Policy::ArgKey),
            Some(Preempt::Holder) => (0, Policy::Holder),
        };
        let kind = request.reservation.map(|reservation| match reservation.kind {
            ReservationKind::WriteExclusive => Wire::WriteExclusive,
            ReservationKind::ExclusiveAccess => Wire::ExclusiveAccess,
            ReservationKind::WriteExclusiveRegistrants => Wire::WriteExclusiveRegsOnly,
            ReservationKind::ExclusiveAccessRegistrants => Wire::ExclusiveAccessRegsOnly,
            ReservationKind::WriteExclusiveAllRegistrants => Wire::WriteExclusiveAllRegs,
            ReservationKind::ExclusiveAccessAllRegistrants => Wire::ExclusiveAccessAllRegs,
        });
        Self {
            name: request.name,
            uuid: request.uuid.to_string(),
            size: request.size_bytes,
            min_cntl_id: (*request.cntlids.start()).into(),
            max_cntl_id: (*request.cntlids.end()).into(),
            resv_key: request.reservation.map_or(0, |reservation| reservation.key),
            preempt_key,
            children: request.children,
            nexus_info_key: request.info_key.unwrap_or_default(),
            resv_type: kind.map(Into::into),
            preempt_policy: policy.into(),
            standby: request.standby,
            given_up: request.given_up.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<proto::AddChildNexusRequest> for AddChild {
    type Error = FieldError;

    fn try_from(request: proto::AddChildNexusRequest) -> Result<Self, FieldError> {
        Ok(Self {
            nexus: uuid("AddChildNexusRequest.uuid", &request.uuid)?,
            uri: request.uri,
            rebuild: !request.norebuild,
        })
    }
}

impl From<AddChild> for proto::AddChildNexusRequest {
    fn from(request: AddChild) -> Self {
        Self { uuid: request.nexus.to_string(), uri: request.uri, norebuild: !request.rebuild }
    }
}

impl From<Child> for proto::Child {
    fn from(child: Child) -> Self {
        Self {
            uri: child.uri,
            state: proto::ChildState::from(child.state).into(),
            state_reason: proto::ChildStateReason::from(child.reason).into(),
            rebuild_progress: child.rebuild_percent.map_or(-1, i32::from),
            device_name: child.device_name,
            fault_timestamp: child.faulted_at.map(timestamp_to_proto),
            has_io_log: child.is_missed_known,
        }
    }
}

impl TryFrom<proto::Child> for Child {
    type Error = FieldError;

    fn try_from(child: proto::Child) -> Result<Self, FieldError> {
        Ok(Self {
            state: child.state().into(),
            reason: child.state_reason().into(),
            uri: child.uri,
            rebuild_percent: u8::try_from(child.rebuild_progress).ok().map(|percent| percent.min(100)),
            device_name: child.device_name,
            faulted_at: child
                .fault_timestamp
                .map(|time| timestamp("Child.fault_timestamp", time))
                .transpose()?,
            is_missed_known: child.has_io_log,
        })
    }
}

impl From<Nexus> for proto::Nexus {
    fn from(nexus: Nexus) -> Self {
        Self {
            name: nexus.name,
            uuid: nexus.uuid.to_string(),
            size: nexus.size_bytes,
            state: proto::NexusState::from(nexus.state).into(),
            children: nexus.children.into_iter().map(Into::into).collect(),
            device_uri: nexus.device_uri.unwrap_or_default(),
            rebuilds: nexus.rebuilds,
            ana_state: proto::NvmeAnaState::from(nexus.ana_state).into(),
            allowed_hosts: nexus.allowed_hosts,
        }
    }
}

impl TryFrom<proto::Nexus> for Nexus {
    type Error = FieldError;

    fn try_from(nexus: proto::Nexus) -> Result<Self, FieldError> {
        Ok(Self {
            uuid: uuid("Nexus.uuid", &nexus.uuid)?,
            state: nexus.state().into(),
            ana_state: nexus.ana_state().into(),
            name: nexus.name,
            size_bytes: nexus.size,
            children: nexus.children.into_iter().map(Child::try_from).collect::<Result<_, _>>()?,
            device_uri: Some(nexus.device_uri).filter(|uri| !uri.is_empty()),
            rebuilds: nexus.rebuilds,
            allowed_hosts: nexus.allowed_hosts,
        })
    }
}

impl From<RebuildStats> for proto::RebuildStatsResponse {
    fn from(stats: RebuildStats) -> Self {
        Self {
            blocks_total: stats.blocks_total,
            blocks_recovered: stats.blocks_recovered,
            blocks_transferred: stats.blocks_transferred,
            blocks_remaining: stats.blocks_remaining,
            progress: stats.percent,
            blocks_per_task: stats.blocks_per_task,
            block_size: stats.block_bytes,
            tasks_total: stats.tasks_total,
            tasks_active: stats.tasks_active,
            is_partial: stats.is_partial,
            start_time: stats.started_at.map(timestamp_to_proto),
        }
    }
}

impl From<proto::RebuildStatsResponse> for RebuildStats {
    fn from(stats: proto::RebuildStatsResponse) -> Self {
        Self {
            blocks_total: stats.blocks_total,
            blocks_recovered: stats.blocks_recovered,
            blocks_transferred: stats.blocks_transferred,
            blocks_remaining: stats.blocks_remaining,
            percent: stats.progress,
            blocks_per_task: stats.blocks_per_task,
            block_bytes: stats.block_size,
            tasks_total: stats.tasks_total,
            tasks_active: stats.tasks_active,
            is_partial: stats.is_partial,
            started_at: stats
                .start_time
                .and_then(|time| timestamp("RebuildStatsResponse.start_time", time).ok()),
        }
    }
}

fn record_to_proto(record: RebuildRecord) -> proto::RebuildHistoryRecord {
    proto::RebuildHistoryRecord {
        child_uri: record.child_uri,
        src_uri: record.source_uri,
        state: proto::RebuildJobState::from(record.state).into(),
        blocks_total: record.stats.blocks_total,
        blocks_recovered: record.stats.blocks_recovered,
        blocks_transferred: record.stats.blocks_transferred,
        blocks_remaining: record.stats.blocks_remaining,
        blocks_per_task: record.stats.blocks_per_task,
        block_size: record.stats.block_bytes,
        is_partial: record.stats.is_partial,
        start_time: record.stats.started_at.map(timestamp_to_proto),
        end_time: record.ended_at.map(timestamp_to_proto),
    }
}

/// The answer to a list request: the newest `count` records of each nexus that ended after `since`, and the end of
/// the newest of them, or `now` where there is none.
pub fn rebuild_history_answer(
    records: Vec<RebuildRecord>,
    names: &BTreeMap<uuid::Uuid, String>,
    request: &proto::ListRebuildHistoryRequest,
    now: Timestamp,
) -> Result<proto::ListRebuildHistoryResponse, FieldError> {
    let since = request
        .since_end_time
        .map(|time| timestamp("ListRebuildHistoryRequest.since_end_time", time))
        .transpose()?;
    let mut newest = None;
    let mut histories: HashMap<String, proto::RebuildHistoryResponse> = HashMap::new();
    for record in records {
        if since.is_some_and(|since| record.ended_at.is_none_or(|end| end <= since)) {
            continue;
        }
        newest = newest.max(record.ended_at);
        let history =
            histories.entry(record.nexus.to_string()).or_insert_with(|| proto::RebuildHistoryResponse {
                uuid: record.nexus.to_string(),
                name: names.get(&record.nexus).cloned().unwrap_or_default(),
                records: Vec::new(),
            });
        history.records.push(record_to_proto(record));
    }
    for history in histories.values_mut() {
        history
            .records
            .sort_by_key(|record| record.end_time.map_or((0, 0), |time| (time.seconds, time.nanos)));
        if let Some(count) = request.count {
            let surplus = history.records.len().saturating_sub(count as usize);
            history.records.drain(..surplus);
            history.records.reverse();
        }
    }
    Ok(proto::ListRebuildHistoryResponse {
        histories,
        end_time: Some(timestamp_to_proto(newest.unwrap_or(now))),
    })
}

/// The records of a list answer, oldest end first.
pub fn rebuild_records(answer: proto::ListRebuildHistoryResponse) -> Result<Vec<RebuildRecord>, FieldError> {
    let mut records = Vec::new();
    for (id, history) in answer.histories {
        let nexus = uuid("ListRebuildHistoryResponse.histories", &id)?;
        for record in history.records {
            let time = |path, time: Option<prost_types::Timestamp>| {
                time.map(|time| timestamp(path, time)).transpose()
            };
            records.push(RebuildRecord {
                nexus,
                state: record.state().into(),
                stats: RebuildStats {
                    blocks_total: record.blocks_total,
                    blocks_recovered: record.blocks_recovered,
                    blocks_transferred: record.blocks_transferred,
                    blocks_remaining: record.blocks_remaining,
                    percent: (record.blocks_recovered * 100).checked_div(record.blocks_total).unwrap_or(0),
                    blocks_per_task: record.blocks_per_task,
                    block_bytes: record.block_size,
                    tasks_total: 0,
                    tasks_active: 0,
                    is_partial: record.is_partial,
                    started_at: time("RebuildHistoryRecord.start_time", record.start_time)?,
                },
                ended_at: time("RebuildHistoryRecord.end_time", record.end_time)?,
                child_uri: record.child_uri,
                source_uri: record.src_uri,
            });
        }
    }
    records.sort_by_key(|record| record.ended_at);
    Ok(records)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn request() -> proto::CreateNexusRequest {
        proto::CreateNexusRequest {
            name: "n".into(),
            uuid: Uuid::from_u128(1).to_string(),
            size: 1 << 20,
            min_cntl_id: 1,
            max_cntl_id: 2,
            children: vec!["bdev:///r".into()],
            ..Default::default()
        }
    }

    #[test]
    fn controller_ids_must_be_a_range_nvme_allows() {
        for (lowest, highest) in [(0, 1), (3, 2), (1, 0xFFF0), (70_000, 70_001)] {
            let bad = proto::CreateNexusRequest { min_cntl_id: lowest, max_cntl_id: highest, ..request() };
            assert!(CreateNexus::try_from(bad).is_err(), "{lowest}..={highest}");
        }
        assert_eq!(CreateNexus::try_from(request()).expect("fine").cntlids, 1..=2);
    }

    #[test]
    fn a_reservation_is_wanted_when_a_key_or_the_policy_says_so() {
        let holder = proto::NexusNvmePreemption::Holder.into();
        let table = [
            (0, 0, 0, Ok(None)),
            (7, 0, 0, Ok(Some(Preempt::Nobody))),
            (7, 9, 0, Ok(Some(Preempt::Key(9)))),
            (7, 0, holder, Ok(Some(Preempt::Holder))),
            (7, 9, holder, Err(())),
            (0, 9, 0, Err(())),
            (0, 0, holder, Err(())),
        ];
        for (resv_key, preempt_key, preempt_policy, expected) in table {
            let wire = proto::CreateNexusRequest { resv_key, preempt_key, preempt_policy, ..request() };
            let got = CreateNexus::try_from(wire);
            let got = got.map(|nexus| nexus.reservation.map(|reservation| reservation.preempt));
            assert_eq!(got.map_err(|_| ()), expected, "{resv_key} {preempt_key} {preempt_policy}");
        }
    }

    #[test]
    fn a_create_request_survives_the_way_over_the_wire() {
        let ours = CreateNexus {
            reservation: Some(Reservation {
                key: 5,
                kind: ReservationKind::ExclusiveAccess,
                preempt: Preempt::Holder,
            }),
            info_key: Some("/key".into()),
            standby: true,
            given_up: vec![Uuid::from_u128(6)],
            ..CreateNexus::try_from(request()).expect("fine")
        };
        let wire = proto::CreateNexusRequest::from(ours.clone());
        assert_eq!(CreateNexus::try_from(wire), Ok(ours));
    }

    #[test]
    fn history_gives_the_newest_of_each_nexus_after_the_moment_asked_for() {
        let record = |nexus: u128, end: i64| RebuildRecord {
            nexus: Uuid::from_u128(nexus),
            child_uri: format!("child-{end}"),
            source_uri: "source".into(),
            state: RebuildState::Completed,
            stats: RebuildStats::default(),
            ended_at: Timestamp::from_second(end).ok(),
        };
        let records = vec![record(1, 10), record(1, 20), record(1, 30), record(2, 5)];
        let wanted = proto::ListRebuildHistoryRequest {
            count: Some(1),
            since_end_time: Some(prost_types::Timestamp { seconds: 5, nanos: 0 }),
        };
        let answer = rebuild_history_answer(records, &BTreeMap::new(), &wanted, Timestamp::UNIX_EPOCH)
            .expect("valid request");
        assert_eq!(answer.end_time.map(|time| time.seconds), Some(30));
        let got = rebuild_records(answer).expect("valid answer");
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].child_uri, "child-30");
    }
}
