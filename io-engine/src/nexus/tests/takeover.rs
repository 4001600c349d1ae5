//! One nexus after another over real replicas, one local and one remote to each: the older one is out (F1).

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use nvme::ana::AnaState;
use runtime::sim::{NodeId, Sim};
use runtime::{IoBuf, IoBytes};
use uuid::Uuid;

use super::engines::{KEY, MIB, SIZE, address, nqn, replica_id, serve_replica};
use crate::block::{BlockDevice, BlockError, Lba, WriteOptions};
use crate::initiator::{InitiatorOptions, NvmfUri, RemoteDevice, host_id};
use crate::member::{Registrant, ReservationType};
use crate::nexus::reserve::{Preempt, Reservation};
use crate::nexus::state::NexusState;
use crate::nexus::{ChildSpec, EngineNexus, EngineParts, Nexus, NexusSpec};
use crate::record::Store;
use crate::record::memory::MemoryStore;
use crate::replica::Replica;
use crate::reservation::Reservable;
use crate::target::{AllowedHosts, OlderCommands, PORT, Plain, Subsystem, Target, TargetOptions};

const ENGINES: usize = 2;
const HOST: usize = 2;
const KIND: ReservationType = ReservationType::ExclusiveAccess;

struct Engines {
    sim: Sim,
    nodes: Vec<NodeId>,
    replicas: Rc<RefCell<[Option<Replica>; ENGINES]>>,
    store: MemoryStore,
}

impl Engines {
    fn new(seed: u64) -> Self {
        let sim = Sim::new(seed);
        let names = ["engine-0", "engine-1", "host"];
        let nodes: Vec<_> =
            names.iter().enumerate().map(|(index, name)| sim.add_node(name, address(index))).collect();
        let this = Self { sim, nodes, replicas: Rc::default(), store: MemoryStore::with_identity("cluster") };
        for index in 0..ENGINES {
            this.sim.add_disk(this.nodes[index], "/disk0", 64 * MIB);
            this.start(index);
        }
        this
    }

    fn start(&self, index: usize) {
        let replicas = Rc::clone(&self.replicas);
        self.sim.spawn(self.nodes[index], async move {
            let (_pool, replica, _target) = Box::pin(serve_replica(index, SIZE)).await;
            replicas.borrow_mut()[index] = Some(replica);
            std::future::pending::<()>().await;
        });
        self.sim.run_for(Duration::from_secs(5));
        assert!(self.replicas.borrow()[index].is_some(), "the engine serves its replica");
    }

    fn kill(&self, index: usize) {
        self.replicas.borrow_mut()[index] = None;
        self.sim.kill(self.nodes[index]);
    }

    /// What `future` comes to on this node; `None` if that takes longer than a minute.
    fn within_a_minute<T: 'static>(
        &self,
        node: usize,
        future: impl Future<Output = T> + 'static,
    ) -> Option<T> {
        let result = Rc::new(RefCell::new(None));
        let shared = Rc::clone(&result);
        let task = self.sim.spawn(self.nodes[node], async move {
            let value = future.await;
            shared.replace(Some(value));
        });
        for _ in 0..6000 {
            if task.is_finished() {
                break;
            }
            self.sim.run_for(Duration::from_millis(10));
        }
        result.take()
    }

    /// A nexus on this engine that replaces whoever holds the replicas. It is a client of the store of its own.
    fn nexus(&self, on: usize, key: u64) -> (EngineNexus, MemoryStore) {
        let uri = |index| match index == on {
            true => format!("bdev:///{}", replica_id(index)),
            false => format!("nvmf+tcp://{}:{PORT}/{}", address(index), nqn(replica_id(index))),
        };
        let children =
            (0..ENGINES).map(|index| ChildSpec { uri: uri(index), replica: replica_id(index) }).collect();
        let spec = NexusSpec {
            uuid: Uuid::from_u128(0xA0 + u128::from(key)),
            name: format!("nexus-{key}"),
            volume: Uuid::from_u128(0xF0),
            size_bytes: SIZE,
            children,
            record_key: KEY.into(),
            given_up: Vec::new(),
            rebuild_bytes_per_second: None,
            reservation: Some(Reservation { key, kind: KIND, preempt: Preempt::Holder }),
        };
        let replicas = Rc::clone(&self.replicas);
        let store = self.store.client();
        let parts = EngineParts {
            host: nqn(format!("node-name:engine-{on}")),
            initiator: InitiatorOptions::default(),
            find_local: Rc::new(move |_: &str| replicas.borrow()[on].clone()),
            store: Store::Memory(store.clone()),
        };
        let made = self.within_a_minute(on, Box::pin(Nexus::create(spec, parts))).expect("made in time");
        (made.expect("it may replace the other"), store)
    }

    /// A host that is connected to this nexus.
    fn host(&self, on: usize, nexus: &EngineNexus) -> RemoteDevice {
        let at = SocketAddr::new(address(on), PORT + 1);
        let subsystem = Subsystem {
            nqn: nqn("volume"),
            uuid: nexus.volume(),
            export: Plain(nexus.clone()),
            allowed_hosts: AllowedHosts::Any,
            cntlids: 1..=100,
            ana_state: AnaState::Optimized,
            is_thin: true,
            older_commands: OlderCommands::Detach,
            retry_delays: [0; 3],
        };
        self.sim.spawn(self.nodes[on], async move {
            let target = Target::bind(at, TargetOptions::default()).await.expect("the port is free");
            target.add(subsystem).expect("new");
            std::future::pending::<()>().await;
        });
        self.sim.run_for(Duration::from_secs(1));
        let host = nqn("host");
        let uri = NvmfUri { address: at, subsystem: nqn("volume"), host_id: host_id(&host), host };
        let connecting = RemoteDevice::connect(uri, InitiatorOptions::default());
        self.within_a_minute(HOST, Box::pin(connecting)).expect("in time").expect("it is served")
    }

    fn write<D: BlockDevice + Clone + 'static>(
        &self,
        node: usize,
        device: &D,
        byte: u8,
    ) -> Option<Result<(), BlockError>> {
        let device = device.clone();
        let data = IoBytes::from_slice(&[byte; 4096]);
        self.within_a_minute(node, async move { device.write(Lba(0), data, WriteOptions::default()).await })
    }

    fn read<D: BlockDevice + Clone + 'static>(
        &self,
        node: usize,
        device: &D,
    ) -> Option<Result<u8, BlockError>> {
        let device = device.clone();
        self.within_a_minute(node, async move {
            device.read(Lba(0), IoBuf::zeroed(4096)).await.map(|block| block[0])
        })
    }

    /// Only this nexus is registered anywhere, and it serves what was written before it.
    fn assert_serves(&self, on: usize, nexus: &EngineNexus, key: u64, written: u8) {
        let host = host_id(&nqn(format!("node-name:engine-{on}"))).0;
        for replica in self.replicas.borrow().iter().flatten() {
            let report = replica.reservations().expect("a replica has them").report();
            assert_eq!(report.registrants, [Registrant { host, key, is_holder: true }]);
            assert_eq!(report.kind, Some(KIND));
        }
        assert_eq!(nexus.view().state, NexusState::Open);
        assert_eq!(self.read(on, nexus).expect("in time").expect("read"), written);
        self.write(on, nexus, written + 1).expect("in time").expect("written");
        assert_eq!(self.read(on, nexus).expect("in time").expect("read"), written + 1);
    }
}

fn is_done<T>(outcome: Option<Result<T, BlockError>>) -> bool {
    matches!(outcome, Some(Ok(_)))
}

/// The older nexus hears nothing of the store: only its replicas can stop it.
fn replaced(seed: u64, successor_on: usize) {
    let engines = Engines::new(seed);
    let (first, store) = engines.nexus(0, 1);
    let host = engines.host(0, &first);
    engines.write(HOST, &host, 1).expect("in time").expect("written");
    assert_eq!(engines.read(HOST, &host).expect("in time").expect("read"), 1);
    store.set_cut(true);
    let (second, _) = engines.nexus(successor_on, 2);
    assert!(!is_done(engines.read(HOST, &host)), "seed {seed}: a host was answered");
    assert!(!is_done(engines.write(HOST, &host, 9)), "seed {seed}: a host was answered");
    assert!(engines.read(0, &first).is_none(), "seed {seed}: read, or failed");
    assert!(engines.write(0, &first, 9).is_none(), "seed {seed}: written, or failed");
    assert_eq!(first.view().state, NexusState::Fenced, "seed {seed}");
    engines.assert_serves(successor_on, &second, 2, 1);
}

#[test]
fn f1_a_nexus_on_another_engine_shuts_the_older_out_of_local_and_remote_replicas() {
    (0..5).for_each(|seed| replaced(seed, 1));
}

#[test]
fn f1_a_nexus_on_the_same_engine_shuts_the_older_out_of_local_and_remote_replicas() {
    (0..5).for_each(|seed| replaced(seed, 0));
}

/// The replicas kept the reservation, of this host and an older key: the new nexus gets in nevertheless.
#[test]
fn f1_a_nexus_made_again_after_its_engine_was_killed_gets_in_under_a_new_key() {
    for seed in 0..5 {
        let engines = Engines::new(seed);
        let (first, _) = engines.nexus(0, 1);
        engines.write(0, &first, 1).expect("in time").expect("written");
        drop(first);
        engines.kill(0);
        engines.start(0);
        let kept = engines.replicas.borrow()[0].as_ref().and_then(Reservable::reservations).expect("kept");
        assert_eq!(kept.report().registrants.first().map(|it| it.key), Some(1), "kept over the restart");
        let (again, _) = engines.nexus(0, 3);
        engines.assert_serves(0, &again, 3, 1);
    }
}
