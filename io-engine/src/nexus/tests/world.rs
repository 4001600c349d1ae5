//! A small world: replicas in memory behind connections that can break, and their engines and machines that can die.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use runtime::sim::{NodeId, SimHandle};
use uuid::Uuid;

use crate::block::BlockError;
use crate::nexus::child::Parts;
use crate::nexus::tests::stories::{Stories, Story};
use crate::nexus::{ChildSpec, Nexus, NexusError, NexusSpec};
use crate::record::RecordValue;
use crate::record::memory::MemoryStore;
use crate::watch;

mod connection;
mod replica;
mod story;

pub(super) use connection::Connection;
use connection::path_lost;
pub(super) use replica::{Backup, HOST, HostId, Reach, Replica};
pub(super) use story::*;

pub(super) const MIB: u64 = 1 << 20;
pub(super) const REGION: u64 = 64 << 10;
pub(super) const SIZE: u64 = 2 * MIB;
/// What replicas can grow to.
pub(super) const SIZE_MAX: u64 = 6 * MIB;
pub(super) const KEY: &str = "/volume/info";
const VOLUME: Uuid = Uuid::from_u128(0xF0);

/// The replicas of one volume, and the store.
pub(super) struct World {
    pub(super) stories: Stories,
    /// Where the newest nexus keeps its record.
    pub(super) record_key: RefCell<String>,
    /// What the volume is to have.
    pub(super) size: Cell<u64>,
    pub(super) replicas: Vec<Rc<Replica>>,
    pub(super) store: MemoryStore,
    /// The way to the same store of every engine but [`HOST`].
    pub(super) store_of_others: MemoryStore,
}

/// What a nexus in this world is built from.
#[derive(Clone)]
pub(super) struct TestParts {
    pub(super) world: Rc<World>,
    /// The engine it runs on.
    pub(super) host: HostId,
}

impl Parts for TestParts {
    type Device = Connection;
    type Store = MemoryStore;

    async fn open(&self, uri: &str) -> Result<Connection, BlockError> {
        runtime::sleep(Duration::from_millis(1)).await;
        let replica = self.world.replicas.iter().find(|replica| replica.uri() == uri);
        let Some(replica) = replica else { return Err(path_lost()) };
        match replica.reach.get() {
            Reach::Refused => return Err(path_lost()),
            Reach::Up if replica.is_black_to(self.host) => std::future::pending::<()>().await,
            Reach::Black => std::future::pending::<()>().await,
            Reach::Up => {}
        }
        // An older association is closed, and what it had begun is drained (SAFETY D7).
        let host = self.host;
        if replica.begun.borrow().get(&host).is_some_and(|begun| *begun > 0) {
            self.world.stories.tell(Story::D7Drained);
        }
        replica.break_connections_of(host);
        let _ = replica.begun.subscribe().wait_for(|begun| begun.get(&host).is_none_or(|it| *it == 0)).await;
        let fence = replica.fence();
        let geometry = Cell::new(replica.geometry());
        Ok(Connection {
            geometry,
            replica: Rc::clone(replica),
            host,
            world: Rc::clone(&self.world),
            caller: if replica.is_local && host == HOST { fence.opener(host) } else { fence.host(host) },
            generation: replica.connections.borrow().now(host),
            is_closed: watch::Sender::new(false),
        })
    }

    fn store(&self) -> &MemoryStore {
        if self.host == HOST { &self.world.store } else { &self.world.store_of_others }
    }
}

pub(super) type TestNexus = Nexus<TestParts>;

impl World {
    /// `count` fresh replicas, the first one local.
    pub(super) fn new(count: u128) -> Rc<Self> {
        Self::with_home(count, None)
    }

    /// The same; the replicas' own work is done on this node, not on that of the nexus which asks for it.
    fn with_home(count: u128, home: Option<(SimHandle, NodeId)>) -> Rc<Self> {
        let replicas = (1..=count).map(|number| Replica::new(number, number == 1, home.clone())).collect();
        let store = MemoryStore::with_identity("cluster");
        Rc::new(Self {
            stories: Stories::default(),
            record_key: RefCell::new(KEY.into()),
            size: Cell::new(SIZE),
            replicas,
            store_of_others: store.client(),
            store,
        })
    }

    pub(super) fn spec(&self, replicas: &[usize]) -> NexusSpec {
        NexusSpec {
            uuid: Uuid::from_u128(0xA0),
            name: "nexus".into(),
            volume: VOLUME,
            size_bytes: self.size.get(),
            children: replicas.iter().map(|index| self.child(*index)).collect(),
            record_key: KEY.into(),
            given_up: Vec::new(),
            rebuild_bytes_per_second: None,
            reservation: None,
        }
    }

    pub(super) fn child(&self, index: usize) -> ChildSpec {
        let replica = &self.replicas[index];
        ChildSpec { uri: replica.uri(), replica: replica.id }
    }

    pub(super) async fn try_nexus(self: &Rc<Self>, replicas: &[usize]) -> Result<TestNexus, NexusError> {
        Nexus::create(self.spec(replicas), TestParts { world: Rc::clone(self), host: HOST }).await
    }

    pub(super) async fn create(self: &Rc<Self>, spec: NexusSpec) -> Result<TestNexus, NexusError> {
        Nexus::create(spec, TestParts { world: Rc::clone(self), host: HOST }).await
    }

    /// The same on another engine.
    pub(super) async fn create_on(
        self: &Rc<Self>,
        host: HostId,
        spec: NexusSpec,
    ) -> Result<TestNexus, NexusError> {
        Nexus::create(spec, TestParts { world: Rc::clone(self), host }).await
    }

    /// A nexus over these replicas.
    pub(super) async fn nexus(self: &Rc<Self>, replicas: &[usize]) -> TestNexus {
        self.try_nexus(replicas).await.expect("the nexus opens")
    }

    pub(super) fn record(&self) -> RecordValue {
        self.store.peek(&self.record_key.borrow()).expect("there is a record")
    }

    /// A control plane tells the nexus of a record to stop, be it made later: what the record says is final.
    pub(super) fn tell_to_stop(&self, key: &str) {
        let info = match self.store.peek(key) {
            Some(mut record) => {
                record.info.do_self_shutdown = true;
                record.encode().0
            }
            None => r#"{"clean_shutdown":false,"do_self_shutdown":true,"children":[]}"#.into(),
        };
        self.store.put_info(key, &info);
    }

    /// A nexus with a record of its own is to go on where another ended: it finds what that one recorded last.
    pub(super) fn hand_over(&self, from: &str, to: &str) {
        let mut record = self.store.peek(from).expect("there is a record");
        record.info.do_self_shutdown = false;
        self.store.put(to, &record);
    }

    pub(super) fn is_healthy(&self, index: usize) -> bool {
        self.record().is_healthy(self.replicas[index].id)
    }

    /// Asserts that no replica notes another as absent.
    pub(super) fn assert_nobody_is_missed(&self) {
        for replica in &self.replicas {
            assert_eq!(replica.absent(), [], "replica {}", replica.id);
        }
    }

    /// Asserts that these replicas hold the same bytes.
    pub(super) fn assert_equal(&self, replicas: &[usize]) {
        let first = self.replicas[replicas[0]].peek(0..self.size.get());
        for index in &replicas[1..] {
            let other = self.replicas[*index].peek(0..self.size.get());
            let differs = first.iter().zip(&other).position(|(a, b)| a != b);
            assert_eq!(differs, None, "replicas {} and {index} differ at this byte", replicas[0]);
        }
    }
}
