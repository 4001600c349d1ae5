//! What befalls replicas, their machines, and the store.

use std::rc::Rc;
use std::time::Duration;

use crate::block::ErrorKind;
use crate::block::fault::{Effect, Fault, FaultOp};
use crate::block::memory::Survival;
use crate::nexus::tests::oracle::Oracle;
use crate::nexus::tests::world::*;
use crate::record::memory::Fault as StoreFault;

pub(super) fn chance(one_in: u64) -> bool {
    runtime::random_u64().is_multiple_of(one_in)
}

/// Faults at random, within what a volume has to survive.
pub(super) struct Weather {
    pub(super) world: Rc<World>,
    pub(super) oracle: Rc<Oracle>,
}

impl Weather {
    /// Connections and store, at random; with `is_better` only towards calm.
    pub(super) fn change(&self, is_better: bool) {
        for replica in &self.world.replicas {
            if chance(2) {
                replica.set_reach(Reach::Up);
            } else if !is_better && chance(6) {
                replica.set_reach(if chance(2) { Reach::Refused } else { Reach::Black });
            }
        }
        if chance(2) {
            self.world.store.set_fault(StoreFault::None);
        } else if !is_better && chance(4) {
            let faults = [StoreFault::Unreachable, StoreFault::ReplyLost, StoreFault::RequestLost];
            self.world.store.set_fault(faults[usize::try_from(runtime::random_u64() % 3).unwrap()]);
        }
    }

    /// One thing.
    pub(super) fn strike(&self) {
        let replica = {
            let index = usize::try_from(runtime::random_u64() % 3).unwrap();
            Rc::clone(&self.world.replicas[index])
        };
        match runtime::random_u64() % 11 {
            0..=3 => self.change(false),
            4 | 5 => replica.restart_engine(),
            6 => replica.break_connections(),
            7 => self.lose_power(&replica),
            8 => {
                let op = if chance(2) { FaultOp::Write } else { FaultOp::Read };
                let kind = ErrorKind::Media;
                let effect = if chance(2) { Effect::Fail(kind) } else { Effect::FailAfter(kind) };
                replica.faults().add(Fault::new(op, effect).times(1));
            }
            9 => {
                // The disk stands still, at times for longer than its engine is waited for; the storm goes on.
                let faults = replica.faults();
                let hold = faults.add(Fault::new(FaultOp::Any, Effect::Hold));
                runtime::spawn(async move {
                    runtime::sleep(Duration::from_millis(runtime::random_u64() % 12_000)).await;
                    faults.remove(hold);
                });
            }
            _ if chance(2) => {
                for replica in &self.world.replicas {
                    replica.lose_power(Survival::Random(runtime::random_u64()));
                }
                self.oracle.all_power_was_lost();
            }
            _ => {}
        }
    }

    /// Never all one after the other: what was acknowledged and not flushed survives on another member.
    pub(super) fn lose_power(&self, replica: &Rc<Replica>) {
        let others_have_power = self
            .world
            .replicas
            .iter()
            .filter(|other| !Rc::ptr_eq(other, replica))
            .any(|other| self.world.record().is_healthy(other.id) && !other.has_lost_power());
        if others_have_power {
            replica.lose_power(Survival::Random(runtime::random_u64()));
        }
    }

    /// Everything works again.
    pub(super) fn clear(&self) {
        self.world.store.set_fault(StoreFault::None);
        for replica in &self.world.replicas {
            replica.set_reach(Reach::Up);
            replica.faults().clear();
        }
    }
}
