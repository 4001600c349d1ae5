//! What befalls engines that have nexuses, and disks that nobody counts on.

use std::rc::Rc;
use std::time::Duration;

use runtime::JoinHandle;

use super::{ENGINES, Failovers, OTHER, Path, random, up_to};
use crate::block::memory::Survival;
use crate::nexus::child_state::ChildState;
use crate::nexus::tests::stories::Story;
use crate::nexus::tests::weather::chance;
use crate::nexus::tests::world::*;

impl Failovers {
    /// The engine dies at some moment of what is done now.
    pub(super) fn engine_may_die(&self, engine: usize, one_in: u64) {
        if !self.is_calm && chance(one_in) {
            self.dies(engine, up_to(1200));
        }
    }

    fn dies(&self, engine: usize, after: Duration) {
        let (sim, node, deaths) = (self.sim.clone(), self.nodes[engine], Rc::clone(&self.deaths));
        runtime::spawn(async move {
            runtime::sleep(after).await;
            tracing::info!(engine, "the world: an engine dies");
            deaths[engine].set(deaths[engine].get() + 1);
            sim.kill(node);
        });
    }

    pub(super) fn freeze(&self, engine: usize, after: Duration) {
        let (sim, node, length) = (self.sim.clone(), self.nodes[engine], up_to(15_000));
        // Its own replica stands still with it.
        let local = (engine == 0 && chance(2)).then(|| Rc::clone(&self.world.replicas[0]));
        runtime::spawn(async move {
            runtime::sleep(after).await;
            tracing::info!(engine, ?length, "the world: an engine freezes");
            sim.freeze(node);
            if let Some(local) = &local {
                local.cut_off.borrow_mut().insert(OTHER);
            }
            runtime::sleep(length).await;
            sim.thaw(node);
            if let Some(local) = &local {
                local.cut_off.borrow_mut().remove(&OTHER);
            }
        });
    }

    /// The engine loses the way to the store, to some replicas, or both, for a while.
    fn cut_off(&self, engine: usize) {
        let (host, world, length) = (ENGINES[engine], Rc::clone(&self.world), up_to(20_000));
        let store = chance(2).then(|| self.store_of(engine).clone());
        let lost: Vec<usize> = (0..3).filter(|_| !chance(3)).collect();
        tracing::info!(engine, ?lost, store = store.is_some(), ?length, "the world: an engine is cut off");
        for index in &lost {
            world.replicas[*index].cut_off.borrow_mut().insert(host);
        }
        if let Some(store) = &store {
            store.set_cut(true);
        }
        runtime::spawn(async move {
            runtime::sleep(length).await;
            for index in lost {
                world.replicas[index].cut_off.borrow_mut().remove(&host);
            }
            if let Some(store) = store {
                store.set_cut(false);
            }
        });
    }

    /// Its commands take long, on their way there or back.
    fn slow_down(&self, engine: usize) {
        let (host, world) = (ENGINES[engine], Rc::clone(&self.world));
        let (delay, length) = (random(1200), up_to(12_000));
        tracing::info!(engine, delay, ?length, "the world: an engine is slow");
        for replica in &world.replicas {
            replica.slow_to.borrow_mut().insert(host, delay);
        }
        runtime::spawn(async move {
            runtime::sleep(length).await;
            for replica in &world.replicas {
                replica.slow_to.borrow_mut().remove(&host);
            }
        });
    }

    /// A disk that nobody counts on becomes what it was some time ago, at another epoch.
    fn roll_back(&mut self) {
        let index = usize::try_from(random(3)).unwrap();
        let replica = &self.world.replicas[index];
        let is_away =
            |path: &Path| {
                path.nexus.inner.is_stopped()
                    || !self.is_alive(path)
                    || path.nexus.inner.child(replica.id).is_none_or(|child| {
                        matches!(child.state(), ChildState::Faulted(_) | ChildState::Closed)
                    })
            };
        let is_free = !self.world.is_healthy(index) && self.paths.iter().all(is_away);
        match &self.backups[index] {
            Some(backup) if is_free && self.abandoned.is_empty() && backup.epoch() != replica.epoch() => {
                tracing::info!(index, "the world: a disk is rolled back");
                replica.restore(backup);
                replica.lose_power(Survival::Random(runtime::random_u64()));
            }
            Some(_) if !chance(4) => {}
            _ => self.backups[index] = Some(replica.backup()),
        }
    }

    pub(super) fn befall(&mut self) {
        self.note_record();
        let engine = self.current().engine;
        match random(14) {
            0 | 1 => self.weather.strike(),
            2 | 3 => self.freeze(engine, Duration::ZERO),
            4 | 5 => self.cut_off(engine),
            6 => self.slow_down(engine),
            7 => self.dies(engine, Duration::ZERO),
            8 => self.dies(1 - engine, Duration::ZERO),
            9 | 10 => self.roll_back(),
            11 => self.weather.change(false),
            _ => self.online(),
        }
    }

    /// Members that are to leave while their nexus has no way to the store.
    pub(super) fn watch_leaving(&self) -> JoinHandle<()> {
        let paths: Vec<_> = self.paths.iter().filter(|path| self.is_alive(path)).collect();
        let nexuses: Vec<_> =
            paths.iter().map(|path| (self.store_of(path.engine).clone(), path.nexus.clone())).collect();
        let world = Rc::clone(&self.world);
        runtime::spawn(async move {
            for _ in 0..20 {
                runtime::sleep(Duration::from_millis(150)).await;
                let is_leaving = |nexus: &TestNexus| {
                    !nexus.inner.is_stopped()
                        && nexus.view().children.iter().any(|it| matches!(it.state, ChildState::Faulting(_)))
                };
                if nexuses.iter().any(|(store, nexus)| !store.is_reached() && is_leaving(nexus)) {
                    world.stories.tell(Story::D5StoreAway);
                    return;
                }
            }
        })
    }
}
