//! Volumes.

use crds::names::{CONDITION_ORPHANED, CONDITION_READY, VOLUME_FINALIZER};
use crds::volume::{
    ChildState, DeletionPolicy, Policy, Publish, ReplicaState, ReplicaStatus, TargetState, TargetStatus,
    Topology, VolumeState, VolumeStatus,
};
use crds::{Condition, Quantity, Volume, VolumeSpec};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use serde_json::Value;

use super::condition::{Say, clear, set, transition_conditions};
use super::plan::{Managed, Verb, View, Wish, ensure_current};
use super::pool::{common_conditions, counted, without_object};
use super::port::{ControlPlane, Key, Kind, Problem, Refusal, RefusalKind, Standing, VolumeObject};

/// One thing of a volume that shall change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It grows to so many bytes.
    Size(u64),
    /// So many copies.
    Replicas(u8),
    /// Where replicas may lie.
    Topology(Option<Topology>),
    /// How it heals.
    Policy(Policy),
    /// What becomes of the data with the CR.
    DeletionPolicy(DeletionPolicy),
    /// Most snapshots that may be kept.
    MaxSnapshots(Option<u32>),
    /// Published so, or not.
    Publish(Option<Publish>),
}

/// Volumes, as a kind.
#[derive(Debug)]
pub struct Volumes;

impl Managed for Volumes {
    type Cr = Volume;
    type Spec = VolumeSpec;
    type Status = VolumeStatus;
    type Object = VolumeObject;

    const KIND: Kind = Kind::Volume;
    const DEFINITION: &'static str = "volumes.openebs.io";
    const FINALIZER: Option<&'static str> = Some(VOLUME_FINALIZER);

    fn look(plane: &impl ControlPlane, name: &str) -> Standing<VolumeObject> {
        plane.volume(name)
    }

    fn spec_of(object: &VolumeObject, cr: Option<&VolumeSpec>) -> VolumeSpec {
        let mut spec = object.spec.clone();
        // A node that the user leaves to the operator stays left; the status shows it.
        let leaves_node =
            cr.is_none_or(|cr| cr.publish.as_ref().is_some_and(|publish| publish.node.is_none()));
        if let Some(publish) = spec.publish.as_mut().filter(|_| leaves_node) {
            publish.node = None;
        }
        spec
    }

    fn was_alive(status: &VolumeStatus) -> bool {
        status.uuid.is_some() || status.cluster_id.is_some()
    }

    fn cluster_id(status: &VolumeStatus) -> Option<&str> {
        status.cluster_id.as_deref()
    }

    fn takes_away(field: &str, from: &Value, to: &Value) -> bool {
        match field {
            "replicas" => to.as_u64() < from.as_u64(),
            "publish" => true,
            "deletionPolicy" => true,
            _ => false,
        }
    }

    fn may_change_while_deleting(field: &str) -> bool {
        matches!(field, "publish" | "deletionPolicy")
    }

    fn blocked_by(object: &VolumeObject) -> Option<Refusal> {
        let blocked = |reason: &str, message: String| {
            Some(Refusal { kind: RefusalKind::Precondition, reason: reason.to_owned(), message })
        };
        if let Some(publish) = &object.spec.publish {
            let place = publish.node.as_ref().map_or(String::new(), |node| format!(" on node {node}"));
            return blocked(
                "Published",
                format!("the volume is published{place}: disconnect its hosts, then remove spec.publish"),
            );
        }
        match object.persistent_volumes.as_slice() {
            [] if object.is_use_unknown => blocked(
                "UseUnknown",
                "PersistentVolumes have not been listed yet: one may refer to it. Where this stays, look at the \
                 operator's log"
                    .to_owned(),
            ),
            [] => None,
            [first, ..] => {
                blocked("InUse", format!("PersistentVolume {first} refers to it: delete its claim"))
            }
        }
    }

    fn owner(_: &VolumeObject) -> Option<Key> {
        None
    }

    fn status(view: &View<'_, Self>, refusals: &[Refusal], now: Timestamp) -> VolumeStatus {
        let old = view.status().cloned().unwrap_or_default();
        let mut status = match view.object() {
            Some(object) => of_object(object),
            None if view.is_unclaimed() => VolumeStatus { state: VolumeState::Unclaimed, ..old.clone() },
            None => VolumeStatus::default(),
        };
        status.observed_generation = view.generation();
        status.conditions = old.conditions;
        common_conditions(&mut status.conditions, view, refusals, now);
        let transitions = view.object().map(|object| &*object.transitions).unwrap_or_default();
        transition_conditions(&mut status.conditions, transitions, view.generation(), now);
        match view.object().and_then(|object| object.orphaned.as_ref()) {
            Some(Problem { reason, message }) => {
                let say = Say { type_: CONDITION_ORPHANED, is_true: Some(true), reason, message };
                set(&mut status.conditions, &say, view.generation(), now);
            }
            None => clear(&mut status.conditions, CONDITION_ORPHANED),
        }
        let ready = ready(view, refusals);
        let say = Say { type_: CONDITION_READY, is_true: ready.0, reason: &ready.1, message: &ready.2 };
        set(&mut status.conditions, &say, view.generation(), now);
        status
    }

    fn conditions(status: &VolumeStatus) -> &[Condition] {
        &status.conditions
    }

    fn without_usage(status: &VolumeStatus) -> VolumeStatus {
        let mut status = VolumeStatus { usage: None, ..status.clone() };
        for replica in &mut status.replicas {
            replica.allocated_bytes = None;
        }
        status
    }

    async fn perform(plane: &impl ControlPlane, name: &str, cr: &Volume, verb: &Verb) -> Result<(), Refusal> {
        match verb {
            Verb::Create => create(plane, name, cr).await,
            Verb::Change(wish) => {
                let change = judge(wish)?;
                ensure_current(wish)?;
                plane.change_volume(name, &change, wish.mirror.clone()).await
            }
            Verb::Destroy if cr.spec.deletion_policy == DeletionPolicy::Retain => {
                plane.release_volume(name).await
            }
            Verb::Destroy => plane.destroy_volume(name).await,
        }
    }
}

/// The identity of a new volume is that of its CR, so that a create that is repeated after a crash is the same one.
async fn create(plane: &impl ControlPlane, name: &str, cr: &Volume) -> Result<(), Refusal> {
    let mut spec = cr.spec.clone();
    if let Some(uuid) = &spec.uuid {
        if plane.link_volume(name, uuid).await? {
            return Ok(());
        }
    } else {
        let uid = cr.uid();
        spec.uuid = Some(uid.ok_or_else(|| Refusal::invalid("NoUid", "the API server gave it no uid"))?);
    }
    let mirror = serde_json::to_value(&cr.spec).expect("a spec is plain data");
    plane.create_volume(name, &spec, mirror).await
}

/// What older API servers cannot refuse is refused here.
fn judge(wish: &Wish) -> Result<Change, Refusal> {
    let immutable =
        |why: &str| Err(Refusal::invalid("Immutable", format!("{why}: set it back to {}", wish.from)));
    let typed = match wish.field.as_str() {
        "size" => {
            let size = |value: &Value| serde_json::from_value::<Quantity>(value.clone()).unwrap_or_default();
            let (from, to) = (size(&wish.from), size(&wish.to));
            if to < from {
                return Err(Refusal::invalid(
                    "CannotShrink",
                    format!(
                        "a volume cannot shrink from {} to {}: set spec.size to {from}",
                        from.human(),
                        to.human()
                    ),
                ));
            }
            Ok(Change::Size(to.bytes()))
        }
        "uuid" => return immutable("the identity of a volume cannot be changed"),
        "thin" => return immutable("thin or thick is decided when a volume is made"),
        "affinityGroup" => return immutable("the affinity group of a volume is decided when it is made"),
        "replicas" => serde_json::from_value(wish.to.clone()).map(Change::Replicas),
        "topology" => serde_json::from_value(wish.to.clone()).map(Change::Topology),
        "policy" => serde_json::from_value(wish.to.clone()).map(Change::Policy),
        "deletionPolicy" => serde_json::from_value(wish.to.clone()).map(Change::DeletionPolicy),
        "maxSnapshots" => serde_json::from_value(wish.to.clone()).map(Change::MaxSnapshots),
        "publish" => serde_json::from_value(wish.to.clone()).map(Change::Publish),
        _ => return Err(Refusal::invalid("Unsupported", format!("spec.{} cannot be changed", wish.field))),
    };
    typed.map_err(|error| Refusal::invalid("Invalid", format!("spec.{}: {error}", wish.field)))
}

fn of_object(object: &VolumeObject) -> VolumeStatus {
    let rebuilds = object.replicas.iter().filter_map(|replica| replica.rebuild_progress);
    VolumeStatus {
        state: if object.is_deleting { VolumeState::Deleting } else { object.state },
        // Until it was made nothing here says that it was, as with pools.
        uuid: object.spec.uuid.clone().filter(|_| object.is_created),
        observed_generation: None,
        cluster_id: object.cluster_id.clone().filter(|_| object.is_created),
        size: Some(object.growing_from.map_or(object.spec.size, Quantity::from_bytes).human()),
        size_bytes: Some(object.growing_from.unwrap_or(object.spec.size.bytes())),
        replicas_ready: Some(format!("{}/{}", up_to_date(object), object.spec.replicas)),
        rebuild: rebuilds.min().map(|percent| format!("{percent}%")),
        target: object.target.clone().map(with_connect_line),
        replicas: object.replicas.clone(),
        usage: object.usage.clone(),
        snapshots: None,
        conditions: Vec::new(),
    }
}

fn up_to_date(object: &VolumeObject) -> usize {
    object.replicas.iter().filter(|replica| is_up_to_date(replica)).count()
}

fn is_up_to_date(replica: &ReplicaStatus) -> bool {
    replica.state == ReplicaState::Online
        && replica.child_state.is_none_or(|state| state == ChildState::Online)
        && replica.rebuild_progress.is_none()
}

fn with_connect_line(mut target: TargetStatus) -> TargetStatus {
    if let (Some(address), Some(port), Some(nqn)) = (&target.address, target.port, &target.nqn) {
        // Without a limit on reconnects the host outlives the longest outage instead of losing its device for good;
        // one second between them bounds the pause that an application sees.
        target.connect = Some(format!(
            "nvme connect --transport=tcp --traddr={address} --trsvcid={port} --nqn={nqn} --reconnect-delay=1 \
             --ctrl-loss-tmo=-1"
        ));
        target.device_uri.get_or_insert_with(|| format!("nvmf://{address}:{port}/{nqn}"));
    }
    target
}

/// Ready is "as asked for": all copies, and served if that was asked.
fn ready(view: &View<'_, Volumes>, refusals: &[Refusal]) -> (Option<bool>, String, String) {
    let Some(object) = view.object() else { return without_object(view, refusals) };
    if object.is_deleting {
        return (Some(false), "Deleting".into(), "the volume is being destroyed".into());
    }
    if let Some(problem) = &object.problem {
        return (Some(false), problem.reason.clone(), problem.message.clone());
    }
    if let Some(from) = object.growing_from {
        let (from, to) = (Quantity::from_bytes(from).human(), object.spec.size.human());
        return (Some(false), "Growing".into(), format!("it grows from {from} to {to}"));
    }
    let wants_target = view.cr.is_some_and(|cr| cr.spec.publish.is_some());
    let serves = object.target.as_ref().is_some_and(|target| {
        matches!(target.state, TargetState::Online | TargetState::Degraded) && target.address.is_some()
    });
    let missing = usize::from(object.spec.replicas).saturating_sub(up_to_date(object));
    match object.state {
        VolumeState::Online if wants_target && !serves => {
            (Some(false), "Publishing".into(), "its target does not serve yet".into())
        }
        VolumeState::Online => (Some(true), "Online".into(), String::new()),
        VolumeState::Unknown => (None, "Unknown".into(), "too little was heard of its engines to say".into()),
        VolumeState::Pending => (Some(false), "Creating".into(), "its replicas are being made".into()),
        VolumeState::Degraded | VolumeState::Faulted => {
            let which: Vec<_> =
                object.replicas.iter().filter(|replica| !is_up_to_date(replica)).map(tell).collect();
            let count = counted(missing, "copy").replace("copys", "copies");
            let message = format!("{count} of {} not up to date: {}", object.spec.replicas, which.join("; "));
            (Some(false), format!("{:?}", object.state), message)
        }
        VolumeState::Deleting | VolumeState::Unclaimed => {
            (Some(false), format!("{:?}", object.state), String::new())
        }
    }
}

fn tell(replica: &ReplicaStatus) -> String {
    let place = format!("pool {} on node {}", replica.pool, replica.node);
    let what = match (replica.rebuild_progress, &replica.reason, replica.child_state) {
        (Some(percent), _, _) => format!("rebuilding, {percent} %"),
        (None, Some(reason), _) => reason.clone(),
        (None, None, Some(child)) if replica.state == ReplicaState::Online => format!("child {child:?}"),
        (None, None, _) => format!("{:?}", replica.state),
    };
    format!("{place}: {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A creation that failed is taken back when the engine that was silent answers again, which may be another leader's
    /// work: the resource is not held for a volume that the registry has lost.
    #[test]
    fn c1_a_volume_that_was_never_made_is_not_one_that_was_lost() {
        let spec = VolumeSpec { uuid: Some("u".to_owned()), ..VolumeSpec::default() };
        let begun = VolumeObject { spec, cluster_id: Some("c".to_owned()), ..VolumeObject::default() };
        let taken_back = VolumeObject { is_deleting: true, ..begun.clone() };
        let made = VolumeObject { is_created: true, ..begun.clone() };
        for (object, was_alive) in [(begun, false), (taken_back, false), (made, true)] {
            assert_eq!(Volumes::was_alive(&of_object(&object)), was_alive, "{object:?}");
        }
    }
}
