//! Opening a volume: record, children, reports; decide; record; join; then, and only then, I/O.

use std::collections::BTreeSet;
use std::rc::Rc;

use futures::future::join_all;
use runtime::Instant;
use uuid::Uuid;

use crate::block::{BlockDevice, BlockError, ErrorKind, Geometry};
use crate::member::{Epoch, Member, MemberReport};
use crate::nexus::absence::{self, Noted};
use crate::nexus::child::{Child, Device, Parts};
use crate::nexus::child_state::{ChildEvent, FaultReason};
use crate::nexus::error::NexusError;
use crate::nexus::layout::{data_area, nexus_geometry};
use crate::nexus::limits;
use crate::nexus::reconcile::{self, Account, Candidate, Decision, Plan, Situation};
use crate::nexus::reserve::{self, Taken};
use crate::nexus::retire::{self, RecordState, Recorded};
use crate::nexus::state::NexusEvent;
use crate::nexus::{Inner, Nexus, NexusSpec};
use crate::record::resolve::{Attempt, FencedBy};
use crate::record::value::{ChildInfo, EpochNote, Membership, NexusInfo};
use crate::record::{Loaded, RecordStore, RecordValue, Revision, StoreError};

/// A child as it was found.
struct Found<D> {
    uri: String,
    replica: Uuid,
    device: Result<Rc<D>, BlockError>,
    report: Option<MemberReport>,
    account: Account,
    taken: Option<Taken>,
}

/// Opens the volume that `spec` describes.
pub(super) async fn create<P: Parts>(spec: NexusSpec, parts: P) -> Result<Nexus<P>, NexusError> {
    check(&spec)?;
    // Random for each create: an older process that serves the same nexus must not pass for this one.
    let incarnation = Uuid::from_bytes(runtime::random_uuid_bytes());
    let mut unfit: BTreeSet<Uuid> = BTreeSet::new();
    // Before anything is taken: a create that arrives late must not throw its successor out.
    refuse_told_to_stop(&load(parts.store(), &spec.record_key).await?)?;
    // Reserved first and read afterwards: an older nexus that changes the record later than that has lost its race, and
    // is stopped by the reservation or by the compare-and-swap.
    let mut found = Box::pin(find_children(&spec, &parts, &unfit)).await;
    refuse_reserved(&found)?;
    let mut fenced_at = replaced_at(&found);
    let loaded = load(parts.store(), &spec.record_key).await?;
    refuse_told_to_stop(&loaded)?;
    let mut base = loaded.record.as_ref().map(|(value, revision)| (value.clone(), *revision));
    let mut sequence = 0;
    let mut left_at = None;
    // Each turn loses a member that answered and then could not join: there are no more turns than children.
    for _ in 0..=spec.children.len() {
        if !unfit.is_empty() {
            found = Box::pin(find_children(&spec, &parts, &unfit)).await;
            refuse_reserved(&found)?;
            fenced_at = fenced_at.max(replaced_at(&found));
        }
        let original = loaded.record.as_ref().map(|(value, _)| value);
        let plan = decide(&spec, original, &found)?;
        refuse_unopened_first(&spec, original, &found)?;
        let geometry = geometry(&spec, &plan, &found)?;
        let lost = flush_members(&plan, &found).await;
        if !lost.is_empty() {
            unfit.extend(lost);
            continue;
        }
        sequence += 1;
        let value = record_value(&spec, incarnation, original, &plan, sequence);
        let expected = base.as_ref().map_or(Revision::ABSENT, |(_, revision)| *revision);
        let attempt = Attempt { expected, value, identity: loaded.identity.clone() };
        let swapped = retire::swap(parts.store(), &spec.record_key, &attempt);
        let revision = runtime::timeout(limits::CREATE_STORE_DEADLINE, swapped)
            .await
            .map_err(|_| NexusError::StoreUnavailable { why: "no answer to the first record".into() })?
            .map_err(|by| NexusError::Fenced { by })?;
        base = Some((attempt.value.clone(), revision));
        let record = RecordState {
            key: spec.record_key.clone(),
            value: attempt.value,
            revision,
            identity: loaded.identity.clone(),
        };
        let epoch = record.epoch();
        // Where members are that cannot be reached: where the others were before this create.
        let left_at = *left_at.get_or_insert_with(|| latest_epoch(&plan, &found));
        let lost = note_absent(original, &plan, &found, left_at).await;
        if !lost.is_empty() {
            unfit.extend(lost);
            continue;
        }
        let lost = join_members(spec.volume, epoch, &plan, &found).await?;
        if !lost.is_empty() {
            tracing::warn!(nexus.id = %spec.uuid, ?lost, "members were lost while joining");
            unfit.extend(lost);
            continue;
        }
        let nexus = assemble(spec, parts, geometry, record, &plan, found);
        nexus.inner.begin_after_lease(fenced_at);
        return Ok(nexus);
    }
    Err(NexusError::Refused { refusal: reconcile::Refusal::NoMember })
}

fn check(spec: &NexusSpec) -> Result<(), NexusError> {
    if spec.children.is_empty() {
        return Err(NexusError::NoChildren);
    }
    if spec.children.len() > limits::CHILDREN_MAX {
        return Err(NexusError::TooManyChildren { max: limits::CHILDREN_MAX });
    }
    for (index, child) in spec.children.iter().enumerate() {
        let earlier = &spec.children[..index];
        if earlier.iter().any(|other| other.uri == child.uri || other.replica == child.replica) {
            return Err(NexusError::ChildExists { uri: child.uri.clone() });
        }
    }
    Ok(())
}

async fn load<S: RecordStore>(store: &S, key: &str) -> Result<Loaded, NexusError> {
    let attempt = async {
        loop {
            match store.load(key).await {
                Ok(loaded) => return Ok(loaded),
                Err(StoreError::Garbled(source)) => return Err(NexusError::RecordGarbled { source }),
                Err(error) => tracing::debug!(key, %error, "store unreachable"),
            }
            runtime::sleep(limits::STORE_PAUSE).await;
        }
    };
    runtime::timeout(limits::CREATE_STORE_DEADLINE, attempt)
        .await
        .map_err(|_| NexusError::StoreUnavailable { why: "the record could not be read".into() })?
}

/// The control plane gave this nexus up before it was made, or made again (SAFETY F2).
fn refuse_told_to_stop(loaded: &Loaded) -> Result<(), NexusError> {
    match &loaded.record {
        Some((value, _)) if value.info.do_self_shutdown => {
            Err(NexusError::Fenced { by: FencedBy::ControlPlane })
        }
        _ => Ok(()),
    }
}

/// Another nexus holds a child, and this one is not to replace it.
fn refuse_reserved<D>(found: &[Found<D>]) -> Result<(), NexusError> {
    let is_reserved = |found: &&Found<D>| matches!(&found.device, Err(error) if error.kind() == ErrorKind::ReservationConflict);
    match found.iter().find(is_reserved) {
        Some(found) => Err(NexusError::Reserved { uri: found.uri.clone() }),
        None => Ok(()),
    }
}

/// The moment from which the lease of the nexus before this one has to be waited for, where there was one.
fn replaced_at<D>(found: &[Found<D>]) -> Option<Instant> {
    found.iter().any(|found| found.taken == Some(Taken::Replaced)).then(runtime::now)
}

/// A replica that holds another volume's data: neither a member nor a place to write to.
fn is_anothers(report: &MemberReport, volume: Uuid) -> bool {
    !report.volume.is_nil() && report.volume != volume
}

fn anothers(report: &MemberReport) -> BlockError {
    BlockError::new(
        ErrorKind::Internal,
        format!("replica {} belongs to volume {}", report.replica, report.volume),
    )
}

async fn find_children<P: Parts>(
    spec: &NexusSpec,
    parts: &P,
    unfit: &BTreeSet<Uuid>,
) -> Vec<Found<P::Device>> {
    join_all(spec.children.iter().map(|child| async {
        let attempt = async {
            if unfit.contains(&child.replica) {
                return Err(BlockError::new(ErrorKind::PathLost, "could not join the epoch"));
            }
            let device = Rc::new(parts.open(&child.uri).await?);
            // Before its report: from here on no older nexus changes what it tells.
            let taken = match &spec.reservation {
                Some(wanted) => Some(Box::pin(reserve::take(&*device, wanted)).await?),
                None => None,
            };
            let report = match device.report().await {
                Ok(report) if report.replica != child.replica => {
                    let text = format!("holds replica {}, not {}", report.replica, child.replica);
                    return Err(BlockError::new(ErrorKind::Internal, text));
                }
                Ok(report) if is_anothers(&report, spec.volume) => return Err(anothers(&report)),
                Ok(report) => Some(report),
                Err(error) if error.kind() == ErrorKind::Unsupported => None,
                Err(error) => return Err(error),
            };
            Ok((device, report, taken))
        };
        let outcome = runtime::timeout(limits::OPEN_DEADLINE, attempt)
            .await
            .unwrap_or_else(|_| Err(BlockError::new(ErrorKind::TimedOut, "did not open in time")));
        let (uri, replica) = (child.uri.clone(), child.replica);
        match outcome {
            Ok((device, report, taken)) => {
                if taken == Some(Taken::Unsupported) {
                    tracing::warn!(nexus.id = %spec.uuid, child.uri = %uri, "used without a reservation");
                }
                let account = report.clone().map_or(Account::Mute, Account::Report);
                Found { uri, replica, device: Ok(device), report, account, taken }
            }
            Err(error) => {
                tracing::warn!(nexus.id = %spec.uuid, child.uri = %uri, %error, "child not opened");
                Found {
                    uri,
                    replica,
                    device: Err(error),
                    report: None,
                    account: Account::Unreachable,
                    taken: None,
                }
            }
        }
    }))
    .await
}

fn candidates<D: Device>(found: &[Found<D>]) -> Vec<Candidate> {
    let candidates = found.iter().map(|found| Candidate {
        replica: found.replica,
        is_local: found.device.as_ref().is_ok_and(|device| device.is_local()),
        account: found.account.clone(),
    });
    candidates.collect()
}

fn decide<D: Device>(
    spec: &NexusSpec,
    record: Option<&RecordValue>,
    found: &[Found<D>],
) -> Result<Plan, NexusError> {
    let candidates = candidates(found);
    let situation =
        Situation { volume: spec.volume, record, candidates: &candidates, given_up: &spec.given_up };
    match reconcile::decide(situation) {
        Decision::Open(plan) => Ok(plan),
        Decision::Wait { missing } => Err(NexusError::Waiting { missing }),
        Decision::Refuse(refusal) => Err(NexusError::Refused { refusal }),
    }
}

/// A volume that nobody opened before starts with all its children or not at all: there is nothing to save by
/// starting degraded, and a mistyped URI is better told at once.
fn refuse_unopened_first<D>(
    spec: &NexusSpec,
    record: Option<&RecordValue>,
    found: &[Found<D>],
) -> Result<(), NexusError> {
    let is_new = record.is_none()
        && found.iter().all(|found| found.report.as_ref().is_none_or(|report| report.epoch.counter == 0));
    if !is_new || !spec.given_up.is_empty() {
        return Ok(());
    }
    match found.iter().find_map(|found| found.device.as_ref().err().map(|error| (found, error))) {
        Some((found, error)) => {
            Err(NexusError::ChildNotOpened { uri: found.uri.clone(), why: error.to_string() })
        }
        None => Ok(()),
    }
}

fn geometry<D: Device>(spec: &NexusSpec, plan: &Plan, found: &[Found<D>]) -> Result<Geometry, NexusError> {
    let shapes: Vec<_> = found
        .iter()
        .filter(|found| plan.members.contains(&found.replica))
        .filter_map(|found| found.device.as_ref().ok().map(|device| device.geometry()))
        .collect();
    nexus_geometry(spec.size_bytes, &shapes).ok_or(NexusError::ChildrenDoNotFit)
}

fn record_value(
    spec: &NexusSpec,
    incarnation: Uuid,
    before: Option<&RecordValue>,
    plan: &Plan,
    sequence: u64,
) -> RecordValue {
    let mut children: Vec<_> = spec
        .children
        .iter()
        .map(|child| ChildInfo { uuid: child.replica, healthy: plan.members.contains(&child.replica) })
        .collect();
    // Members that the caller did not name stay known as stale.
    let forgotten = before.into_iter().flat_map(RecordValue::healthy);
    for replica in forgotten {
        if !children.iter().any(|child| child.uuid == replica) {
            children.push(ChildInfo { uuid: replica, healthy: false });
        }
    }
    RecordValue {
        info: NexusInfo { clean_shutdown: false, do_self_shutdown: false, children },
        membership: Some(Membership {
            volume: spec.volume,
            writer: incarnation,
            sequence,
            epoch: EpochNote { counter: plan.epoch_counter, raised_by: incarnation },
            confirmed_counter: plan.confirmed_counter,
        }),
    }
}

/// Before members are lost for good, what was acknowledged is made durable on those that stay: they may soon be the
/// only ones to have it. Returns those that failed.
async fn flush_members<D: Device>(plan: &Plan, found: &[Found<D>]) -> Vec<Uuid> {
    if plan.retired.is_empty() {
        return Vec::new();
    }
    let members = found.iter().filter(|found| plan.members.contains(&found.replica));
    let flushes = join_all(members.map(|found| async {
        let Ok(device) = &found.device else { return Some(found.replica) };
        let flushed = runtime::timeout(limits::COMMAND_DEADLINE, device.flush()).await;
        (!matches!(flushed, Ok(Ok(())))).then_some(found.replica)
    }))
    .await;
    flushes.into_iter().flatten().collect()
}

/// The latest membership that a member of the plan is in.
fn latest_epoch<D>(plan: &Plan, found: &[Found<D>]) -> Epoch {
    let members = found.iter().filter(|found| plan.members.contains(&found.replica));
    let epochs = members.filter_map(|found| found.report.as_ref().map(|report| report.epoch));
    epochs.max_by_key(|epoch| epoch.counter).unwrap_or_default()
}

/// The members note who will not be there, before they join; returns those that were lost.
async fn note_absent<D: Device>(
    record: Option<&RecordValue>,
    plan: &Plan,
    found: &[Found<D>],
    left_at: Epoch,
) -> Vec<Uuid> {
    let members: Vec<_> = (found.iter())
        .filter(|found| plan.members.contains(&found.replica))
        .filter_map(|found| Some((found.report.as_ref()?, found.device.as_ref().ok()?)))
        .collect();
    let asked = join_all(members.iter().map(|(report, device)| async {
        let absent = match runtime::timeout(limits::COMMAND_DEADLINE, device.absent()).await {
            Ok(Ok(absent)) => absent,
            Ok(Err(error)) if error.kind() == ErrorKind::Unsupported => Vec::new(),
            Ok(Err(_)) | Err(_) => return Err(report.replica),
        };
        Ok(Noted { replica: report.replica, epoch: report.epoch, absent })
    }))
    .await;
    let lost: Vec<Uuid> = asked.iter().filter_map(|asked| asked.as_ref().err().copied()).collect();
    if !lost.is_empty() {
        return lost;
    }
    let noted: Vec<Noted> = asked.into_iter().flatten().collect();
    let words = absence::at_create(record, plan, &candidates(found), &noted, left_at);
    let told = join_all(words.into_iter().map(|(replica, words)| async move {
        let member = found.iter().find(|found| found.replica == replica)?;
        let device = member.device.as_ref().ok()?;
        for word in words {
            let said = runtime::timeout(limits::COMMAND_DEADLINE, word.say(&**device)).await;
            if !matches!(said, Ok(Ok(()))) {
                return Some(replica);
            }
        }
        None
    }))
    .await;
    told.into_iter().flatten().collect()
}

/// Joins the members to the epoch; returns those that could not.
async fn join_members<D: Device>(
    volume: Uuid,
    epoch: Epoch,
    plan: &Plan,
    found: &[Found<D>],
) -> Result<Vec<Uuid>, NexusError> {
    let members = found.iter().filter(|found| plan.members.contains(&found.replica));
    let joins = join_all(members.map(|found| async {
        let Ok(device) = &found.device else { return Ok(Some(found.replica)) };
        let joined = runtime::timeout(limits::COMMAND_DEADLINE, device.join(volume, epoch, false)).await;
        match joined {
            Ok(Ok(())) => Ok(None),
            Ok(Err(error)) if error.kind() == ErrorKind::Unsupported => Ok(None),
            Ok(Err(error)) if error.kind() == ErrorKind::ReservationConflict => {
                Err(NexusError::Fenced { by: FencedBy::Replica })
            }
            Ok(Err(_)) | Err(_) => Ok(Some(found.replica)),
        }
    }))
    .await;
    joins.into_iter().filter_map(Result::transpose).collect()
}

fn assemble<P: Parts>(
    spec: NexusSpec,
    parts: P,
    geometry: Geometry,
    record: RecordState,
    plan: &Plan,
    found: Vec<Found<P::Device>>,
) -> Nexus<P> {
    let epoch = record.epoch();
    let mut returning = Vec::new();
    let children: Vec<_> = found
        .into_iter()
        .map(|found| {
            let child = Child::new(found.uri, found.replica);
            if let Some(taken) = found.taken {
                child.standing.taken(taken);
            }
            if plan.members.contains(&found.replica) {
                let device = found.device.unwrap_or_else(|_| unreachable!("members were reached"));
                child.has_lost_power.set(found.report.as_ref().is_some_and(|report| report.lost_power));
                child.adopt(device, found.report.as_ref());
                child.joined.set(epoch.counter);
                child.at.set(epoch);
                child.apply(ChildEvent::Admitted);
                return child;
            }
            let reason = plan
                .retired
                .iter()
                .find(|(retired, _)| *retired == found.replica)
                .map_or(FaultReason::OutOfSync, |(_, reason)| *reason);
            let proof = Recorded::by_create(&record, found.replica).expect("only members are healthy");
            child.fault_time.set(Some(parts.wall_clock()));
            let fits = |device: &P::Device| {
                device.geometry().block_bytes == geometry.block_bytes
                    && data_area(device.geometry()).is_some_and(|area| area.blocks >= geometry.blocks)
            };
            match found.device {
                Ok(device) if fits(&device) => {
                    child.set_recorded(proof);
                    child.adopt(device, found.report.as_ref());
                    returning.push(Rc::clone(&child));
                }
                // A replica that was away while the volume grew may still grow.
                Ok(device) if device.geometry().block_bytes == geometry.block_bytes => {
                    child.never_was_member(proof, FaultReason::CannotOpen);
                }
                Ok(_) => child.never_was_member(proof, FaultReason::ConfigInvalid),
                Err(_) => child.never_was_member(proof, reason),
            }
            child
        })
        .collect();
    let nexus = Inner::new(spec, parts, geometry, record, children);
    nexus.open_regions_found(plan);
    nexus.apply(NexusEvent::Opened);
    for child in returning {
        nexus.start_rebuild(&child);
    }
    tracing::info!(nexus.id = %nexus.uuid, volume.id = %nexus.volume, members = plan.members.len(), "nexus opened");
    Nexus { inner: nexus }
}

/// Opens one child at an administrator's request: it must fit, and must not be another volume's member.
pub(super) async fn open_child<P: Parts>(
    nexus: &Rc<Inner<P>>,
    child: &Rc<Child<P::Device>>,
) -> Result<(), NexusError> {
    let attempt = async {
        let device = Rc::new(nexus.parts.open(&child.uri).await?);
        // Commands of an earlier connection must not land after those of this one.
        child.idle().await;
        Box::pin(nexus.hold(child, &device)).await?;
        let report = match device.report().await {
            Ok(report) if is_anothers(&report, nexus.volume) => return Err(anothers(&report)),
            Ok(report) => Some(report),
            Err(error) if error.kind() == ErrorKind::Unsupported => None,
            Err(error) => return Err(error),
        };
        Ok((device, report))
    };
    let not_opened = |why: String| NexusError::ChildNotOpened { uri: child.uri.clone(), why };
    let (device, report) = runtime::timeout(limits::OPEN_DEADLINE, attempt)
        .await
        .map_err(|_| not_opened("did not open in time".into()))?
        .map_err(|error| not_opened(error.to_string()))?;
    if let Some(report) = &report
        && report.replica != child.replica
    {
        return Err(not_opened(format!("holds replica {}", report.replica)));
    }
    if !nexus.fits(device.geometry()) {
        return Err(NexusError::ChildDoesNotFit { uri: child.uri.clone() });
    }
    if let Some(report) = &report {
        // Larger than those of the first children where the volume has grown since.
        nexus.regions.borrow_mut().close_together(u64::from(report.region_bytes));
    }
    child.adopt(device, report.as_ref());
    Ok(())
}
