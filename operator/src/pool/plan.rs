//! What to do next for a pool: one pure function.
//!
//! ```text
//!   Creating: missing -> create;  here -> confirm            (its disk must not hold anything the registry does not know)
//!   Created:  missing -> import;  here -> settled
//!   Deleting: here -> destroy;    missing -> import once more, and if there is nothing to import, forget
//! ```

use std::collections::BTreeMap;

use engine_api::Pool;
use uuid::Uuid;

use crate::registry::{PoolSpec, SpecStatus};
use crate::volume::view::Presence;

/// A pool and what it looks like on its engine.
#[derive(Clone, Debug)]
pub struct PoolView {
    /// What the registry wants.
    pub spec: PoolSpec,
    /// The loaded pool of that name.
    pub presence: Presence<Pool>,
    /// The cluster's identity.
    pub cluster: Option<Uuid>,
    /// Steps that failed lately and are not tried again yet.
    pub barred: BTreeMap<PoolStep, Barred>,
}

/// Why a step is not tried again yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Barred {
    /// What the engine said.
    pub why: String,
    /// It was a verdict on the disk, not a failure on the way.
    pub is_final: bool,
}

/// One write to the store, or one call to the engine. Each can be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PoolStep {
    /// Make it, stamped with the cluster's identity.
    Create,
    /// Load it from its disk.
    Import,
    /// Write that it is made.
    Confirm,
    /// Destroy it.
    Destroy,
    /// Write that it is gone.
    Forget,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolPlan {
    /// This.
    Act(PoolStep),
    /// Nothing now, for this reason.
    Wait(String),
    /// Nothing: the world is as the registry wants it.
    Settled,
}

/// The next step for the pool, or why there is none.
pub fn plan(view: &PoolView) -> PoolPlan {
    let id = &view.spec.id;
    let shown = match &view.presence {
        Presence::Unknown => return PoolPlan::Wait(format!("node {} does not answer", view.spec.node)),
        Presence::Here(pool) if pool.uuid != view.spec.uuid => {
            return match view.spec.status {
                // Ours was never made: the name was taken by another.
                SpecStatus::Deleting => PoolPlan::Act(PoolStep::Forget),
                _ => PoolPlan::Wait(format!(
                    "node {} has a pool {id} that this registry did not make (its id is {}): it is left alone",
                    view.spec.node, pool.uuid
                )),
            };
        }
        Presence::Here(_) => true,
        Presence::Missing => false,
    };
    let step = match (view.spec.status, shown) {
        (SpecStatus::Creating, true) => PoolStep::Confirm,
        (SpecStatus::Creating, false) => PoolStep::Create,
        (SpecStatus::Created, true) => return PoolPlan::Settled,
        (SpecStatus::Created, false) => PoolStep::Import,
        (SpecStatus::Deleting, true) => PoolStep::Destroy,
        // It may be on its disk and not loaded: forgetting it then would leave a disk that nobody may use again.
        (SpecStatus::Deleting, false) => match view.barred.get(&PoolStep::Import) {
            Some(barred) if barred.is_final => PoolStep::Forget,
            _ => PoolStep::Import,
        },
    };
    match view.barred.get(&step) {
        Some(barred) => PoolPlan::Wait(barred.why.clone()),
        None => PoolPlan::Act(step),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(uuid: u128) -> Presence<Pool> {
        Presence::Here(Pool {
            uuid: Uuid::from_u128(uuid),
            name: "p".into(),
            disks: vec!["/dev/x".into()],
            state: engine_api::PoolState::Online,
            capacity_bytes: 1 << 30,
            used_bytes: 0,
            committed_bytes: 0,
            cluster_bytes: 4 << 20,
            disk_bytes: 1 << 30,
            cluster: None,
        })
    }

    fn view(status: SpecStatus, presence: Presence<Pool>, barred: &[(PoolStep, bool)]) -> PoolView {
        let why = "the disk said no".to_owned();
        PoolView {
            spec: PoolSpec {
                id: "p".into(),
                uuid: Uuid::from_u128(1),
                node: "n".into(),
                disks: vec!["/dev/x".into()],
                labels: BTreeMap::new(),
                cluster_bytes: None,
                mirror: None,
                is_discarded: false,
                status,
            },
            presence,
            cluster: None,
            barred: barred
                .iter()
                .map(|(step, is_final)| (*step, Barred { why: why.clone(), is_final: *is_final }))
                .collect(),
        }
    }

    #[test]
    fn every_state_of_a_pool_has_its_next_step() {
        use PoolStep::{Confirm, Create, Destroy, Forget, Import};
        use Presence::{Missing, Unknown};
        use SpecStatus::{Created, Creating, Deleting};
        let table = [
            (view(Creating, Missing, &[]), Some(Create)),
            (view(Creating, shown(1), &[]), Some(Confirm)),
            (view(Creating, shown(2), &[]), None),
            (view(Creating, Unknown, &[]), None),
            (view(Creating, Missing, &[(Create, false)]), None),
            (view(Created, Missing, &[]), Some(Import)),
            (view(Created, Missing, &[(Import, true)]), None),
            (view(Created, shown(1), &[]), None),
            (view(Deleting, shown(1), &[]), Some(Destroy)),
            (view(Deleting, shown(2), &[]), Some(Forget)),
            (view(Deleting, Missing, &[]), Some(Import)),
            (view(Deleting, Missing, &[(Import, false)]), None),
            (view(Deleting, Missing, &[(Import, true)]), Some(Forget)),
            (view(Deleting, Unknown, &[]), None),
        ];
        for (view, expected) in table {
            let found = match plan(&view) {
                PoolPlan::Act(step) => Some(step),
                PoolPlan::Wait(_) | PoolPlan::Settled => None,
            };
            assert_eq!(found, expected, "{view:?}");
        }
    }
}
