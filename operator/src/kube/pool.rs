//! DiskPools.

use crds::disk_pool::{CrState, DiskPoolStatus, PoolStatus};
use crds::names::{CONDITION_ACCEPTED, CONDITION_DELETION_BLOCKED, CONDITION_READY, DISK_POOL_FINALIZER};
use crds::{Condition, DiskPool, DiskPoolSpec, Quantity};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::condition::{Say, clear, set};
use super::plan::{Managed, Verb, View, ensure_current};
use super::port::{ControlPlane, Key, Kind, PoolObject, Refusal, RefusalKind, Standing};

/// DiskPools, as a kind.
#[derive(Debug)]
pub struct Pools;

impl Managed for Pools {
    type Cr = DiskPool;
    type Spec = DiskPoolSpec;
    type Status = DiskPoolStatus;
    type Object = PoolObject;

    const KIND: Kind = Kind::DiskPool;
    const DEFINITION: &'static str = "diskpools.openebs.io";
    const FINALIZER: Option<&'static str> = Some(DISK_POOL_FINALIZER);

    fn look(plane: &impl ControlPlane, name: &str) -> Standing<PoolObject> {
        plane.pool(name)
    }

    fn spec_of(object: &PoolObject, cr: Option<&DiskPoolSpec>) -> DiskPoolSpec {
        let mut spec = object.spec.clone();
        if let Some(cr) = cr {
            // Sizes that the user leaves to the engine, or writes in another way, are shown in the status.
            spec.cluster_size.clone_from(&cr.cluster_size);
            spec.max_expansion.clone_from(&cr.max_expansion);
            spec.encryption_config.clone_from(&cr.encryption_config);
            let is_bare = |spec: &DiskPoolSpec| spec.topology.as_ref().is_none_or(|t| t.labelled.is_empty());
            if is_bare(&spec) && is_bare(cr) {
                spec.topology.clone_from(&cr.topology);
            }
        }
        spec
    }

    fn was_alive(status: &DiskPoolStatus) -> bool {
        status.cr_state != CrState::Creating || status.cluster_id.is_some()
    }

    fn cluster_id(status: &DiskPoolStatus) -> Option<&str> {
        status.cluster_id.as_deref()
    }

    fn takes_away(field: &str, _: &Value, _: &Value) -> bool {
        matches!(field, "node" | "disks")
    }

    fn may_change_while_deleting(_: &str) -> bool {
        false
    }

    fn blocked_by(object: &PoolObject) -> Option<Refusal> {
        if object.replicas.is_empty() {
            return None;
        }
        Some(Refusal {
            kind: RefusalKind::Precondition,
            reason: "HasReplicas".to_owned(),
            message: format!(
                "the pool holds {}: move or delete their volumes first",
                counted(object.replicas.len(), "replica")
            ),
        })
    }

    fn owner(_: &PoolObject) -> Option<Key> {
        None
    }

    fn status(view: &View<'_, Self>, refusals: &[Refusal], now: Timestamp) -> DiskPoolStatus {
        let old = view.status().cloned().unwrap_or_default();
        let mut status = match view.object() {
            Some(object) => of_object(object),
            // What was known of an unclaimed pool stays: it names the cluster, and recovery looks for it.
            None => DiskPoolStatus { pool_status: Some(PoolStatus::Unknown), ..old.clone() },
        };
        if view.is_deleting() {
            status.cr_state = CrState::Terminating;
        }
        status.observed_generation = view.generation();
        status.conditions = old.conditions;
        common_conditions(&mut status.conditions, view, refusals, now);
        let ready = ready(view, refusals);
        let say = Say { type_: CONDITION_READY, is_true: ready.0, reason: &ready.1, message: &ready.2 };
        set(&mut status.conditions, &say, view.generation(), now);
        status
    }

    fn conditions(status: &DiskPoolStatus) -> &[Condition] {
        &status.conditions
    }

    fn without_usage(status: &DiskPoolStatus) -> DiskPoolStatus {
        DiskPoolStatus { used: 0, available: 0, used_q: None, available_q: None, ..status.clone() }
    }

    async fn perform(
        plane: &impl ControlPlane,
        name: &str,
        cr: &DiskPool,
        verb: &Verb,
    ) -> Result<(), Refusal> {
        match verb {
            Verb::Create => {
                let mirror = serde_json::to_value(&cr.spec).expect("a spec is plain data");
                plane.create_pool(name, &cr.spec, mirror).await
            }
            Verb::Change(wish) => {
                if wish.field != "topology" {
                    return Err(Refusal::invalid(
                        "Immutable",
                        format!(
                            "spec.{} of a pool cannot be changed: set it back to {}, or delete the pool and make \
                             another",
                            wish.field, wish.from
                        ),
                    ));
                }
                ensure_current(wish)?;
                plane.label_pool(name, &cr.spec, wish.mirror.clone()).await
            }
            Verb::Destroy => plane.destroy_pool(name).await,
        }
    }
}

fn of_object(object: &PoolObject) -> DiskPoolStatus {
    let human = |bytes| Some(Quantity::from_bytes(bytes).human());
    let available = object.capacity.saturating_sub(object.used);
    let is_known = object.capacity > 0;
    DiskPoolStatus {
        // Until it was made nothing here says that it was: one that was taken back by another leader is made anew, and
        // is not taken for one that the registry has lost.
        cr_state: match (object.is_deleting, object.is_created) {
            (_, false) => CrState::Creating,
            (true, true) => CrState::Terminating,
            (false, true) => CrState::Created,
        },
        pool_status: object.is_created.then_some(object.status),
        cluster_id: object.cluster_id.clone().filter(|_| object.is_created),
        capacity: object.capacity,
        used: object.used,
        available,
        capacity_q: human(object.capacity).filter(|_| is_known),
        used_q: human(object.used).filter(|_| is_known),
        available_q: human(available).filter(|_| is_known),
        encrypted: Some(object.spec.encryption_config.is_some()),
        cluster_size: object.cluster_size.and_then(human),
        disk_capacity: object.disk_capacity.and_then(human),
        max_expandable_size: None,
        observed_generation: None,
        conditions: Vec::new(),
    }
}

fn ready(view: &View<'_, Pools>, refusals: &[Refusal]) -> (Option<bool>, String, String) {
    let Some(object) = view.object() else { return without_object(view, refusals) };
    if let Some(problem) = &object.problem {
        return (Some(false), problem.reason.clone(), problem.message.clone());
    }
    let node = &object.spec.node;
    let (is_ready, message) = match object.status {
        _ if !object.is_created => {
            return (Some(false), "Creating".into(), format!("node {node} makes the pool"));
        }
        PoolStatus::Online => (Some(true), String::new()),
        PoolStatus::Unknown => (None, format!("node {node} has not been heard of long enough")),
        PoolStatus::Offline => (Some(false), format!("the engine of node {node} is down")),
        PoolStatus::Degraded | PoolStatus::Suspected | PoolStatus::Faulted => {
            (Some(false), format!("node {node} reports trouble with the disk"))
        }
    };
    (is_ready, format!("{:?}", object.status), message)
}

/// Conditions that mean the same for every kind.
pub(crate) fn common_conditions<M: Managed>(
    conditions: &mut Vec<Condition>,
    view: &View<'_, M>,
    refusals: &[Refusal],
    now: Timestamp,
) {
    let generation = view.generation();
    let accepted = match refusals.first() {
        Some(refusal) if !view.is_deleting() => Say {
            type_: CONDITION_ACCEPTED,
            is_true: Some(false),
            reason: &refusal.reason,
            message: &refusal.message,
        },
        _ => Say { type_: CONDITION_ACCEPTED, is_true: Some(true), reason: "Accepted", message: "" },
    };
    if view.object().is_some() || !refusals.is_empty() {
        set(conditions, &accepted, generation, now);
    }
    let unclaimed = Refusal {
        kind: RefusalKind::Precondition,
        reason: "Unclaimed".to_owned(),
        message: unclaimed_message(),
    };
    let blocked = match view.object() {
        _ if !view.is_deleting() => None,
        Some(object) => M::blocked_by(object).or_else(|| refusals.first().cloned()),
        None => view.is_unclaimed().then_some(unclaimed),
    };
    match blocked {
        None => clear(conditions, CONDITION_DELETION_BLOCKED),
        Some(refusal) => {
            let say = Say {
                type_: CONDITION_DELETION_BLOCKED,
                is_true: Some(true),
                reason: &refusal.reason,
                message: &refusal.message,
            };
            set(conditions, &say, generation, now);
        }
    }
}

/// What Ready says while there is no object.
pub(crate) fn without_object<M: Managed>(
    view: &View<'_, M>,
    refusals: &[Refusal],
) -> (Option<bool>, String, String) {
    if view.is_unclaimed() {
        return (Some(false), "Unclaimed".into(), unclaimed_message());
    }
    match refusals.first() {
        Some(refusal) => (Some(false), refusal.reason.clone(), refusal.message.clone()),
        None => (Some(false), "Pending".into(), "it is about to be made".into()),
    }
}

fn unclaimed_message() -> String {
    "the registry does not know it, though it was made before: the registry was lost or is another cluster's. Nothing \
     is touched; restore etcd from a backup"
        .to_owned()
}

/// `1 replica`, `2 replicas`.
pub(crate) fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A leader dies while it makes a pool, the next takes back what was begun: the registry has forgotten it then, and
    /// the resource has to be made anew. One that was made and is not known any more stays untouched.
    #[test]
    fn c1_a_pool_that_was_never_made_is_not_one_that_was_lost() {
        let cluster_id = Some("c".to_owned());
        let begun = PoolObject { cluster_id: cluster_id.clone(), ..PoolObject::default() };
        let taken_back = PoolObject { is_deleting: true, ..begun.clone() };
        let made = PoolObject { is_created: true, ..begun.clone() };
        let going = PoolObject { is_deleting: true, ..made.clone() };
        for (object, was_alive) in [(begun, false), (taken_back, false), (made, true), (going, true)] {
            let status = of_object(&object);
            assert_eq!(Pools::was_alive(&status), was_alive, "{object:?}: {status:?}");
            assert_eq!(status.cluster_id, cluster_id.clone().filter(|_| was_alive));
        }
    }
}
