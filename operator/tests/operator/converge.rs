//! From any state, plan and apply reach what is wanted, and stay there.

use std::time::Duration;

use engine_api::sim::{Rebuilds, When};
use engine_api::{ApiError, ChildReason, Engine, ErrorKind};
use operator::volume::status::VolumeStatus;
use proptest::prelude::*;
use store::Fault;
use uuid::Uuid;

use super::lab::{DISK, GIB, Lab, Operator, anywhere, volume};

const NODES: [&str; 4] = ["a", "b", "c", "d"];
const VOLUMES: u128 = 3;

/// Something a user or the world does.
#[derive(Clone, Debug)]
enum Event {
    Create { volume: u128, replicas: u8 },
    Publish { volume: u128 },
    Unpublish { volume: u128, force: bool },
    Resize { volume: u128, more: u64 },
    SetCount { volume: u128, count: u8 },
    Destroy { volume: u128 },
    Kill { node: usize },
    Start { node: usize },
    Cut { node: usize },
    Join { node: usize },
    Unplug { node: usize },
    Plug { node: usize },
    FaultChild { volume: u128, child: usize, reason: ChildReason },
    FailCall { node: usize, method: &'static str, when: When, kind: ErrorKind },
    FailStore { fault: Fault },
    NewLeader,
    Reconcile { seconds: u64 },
}

fn event() -> impl Strategy<Value = Event> {
    let volume = 1..=VOLUMES;
    let node = 0..NODES.len();
    let method = prop::sample::select(vec![
        "create_replica",
        "destroy_replica",
        "share_replica",
        "resize_replica",
        "create_nexus",
        "resize_nexus",
        "publish_nexus",
        "destroy_nexus",
        "add_child",
        "remove_child",
        "child_operation",
        "import_pool",
    ]);
    let when = prop::sample::select(vec![When::BeforeEffect, When::AfterEffect]);
    let kind = prop::sample::select(vec![
        ErrorKind::Internal,
        ErrorKind::DeadlineExceeded,
        ErrorKind::ResourceExhausted,
    ]);
    let reason = prop::sample::select(vec![
        ChildReason::IoFailure,
        ChildReason::CannotOpen,
        ChildReason::TimedOut,
        ChildReason::NoSpace,
    ]);
    let fault = prop::sample::select(vec![Fault::FailBefore, Fault::LoseRequest, Fault::LoseReply]);
    prop_oneof![
        3 => (volume.clone(), 1..=3_u8).prop_map(|(volume, replicas)| Event::Create { volume, replicas }),
        3 => volume.clone().prop_map(|volume| Event::Publish { volume }),
        2 => (volume.clone(), any::<bool>()).prop_map(|(volume, force)| Event::Unpublish { volume, force }),
        2 => (volume.clone(), 1..=3_u8).prop_map(|(volume, count)| Event::SetCount { volume, count }),
        2 => (volume.clone(), 0..GIB).prop_map(|(volume, more)| Event::Resize { volume, more }),
        1 => volume.clone().prop_map(|volume| Event::Destroy { volume }),
        2 => node.clone().prop_map(|node| Event::Kill { node }),
        2 => node.clone().prop_map(|node| Event::Start { node }),
        1 => node.clone().prop_map(|node| Event::Cut { node }),
        1 => node.clone().prop_map(|node| Event::Join { node }),
        1 => node.clone().prop_map(|node| Event::Unplug { node }),
        1 => node.clone().prop_map(|node| Event::Plug { node }),
        2 => (volume, 0..3_usize, reason)
            .prop_map(|(volume, child, reason)| Event::FaultChild { volume, child, reason }),
        3 => (node, method, when, kind).prop_map(|(node, method, when, kind)| Event::FailCall {
            node,
            method,
            when,
            kind
        }),
        2 => fault.prop_map(|fault| Event::FailStore { fault }),
        1 => Just(Event::NewLeader),
        4 => prop::sample::select(vec![1_u64, 5, 30, 200]).prop_map(|seconds| Event::Reconcile { seconds }),
    ]
}

struct World {
    lab: Lab,
    operator: Operator,
}

impl World {
    async fn new() -> Self {
        let lab = Lab::new(&NODES);
        let operator = lab.with_pools().await;
        Self { lab, operator }
    }

    /// Verbs may be refused, in any state: what matters is what is left behind.
    async fn happen(&mut self, event: &Event) {
        let core = self.operator.core.clone();
        let id = Uuid::from_u128;
        match event {
            Event::Create { volume: v, replicas } => drop(core.volumes().create(volume(*v, *replicas)).await),
            Event::Publish { volume } => drop(core.volumes().publish(id(*volume), anywhere()).await),
            Event::Unpublish { volume, force } => drop(core.volumes().unpublish(id(*volume), *force).await),
            Event::SetCount { volume, count } => {
                drop(core.volumes().set_replica_count(id(*volume), *count).await);
            }
            Event::Resize { volume, more } => {
                let size = core.volumes().get(id(*volume)).map_or(GIB, |found| found.size) + more;
                drop(core.volumes().resize(id(*volume), size).await);
            }
            Event::Destroy { volume } => drop(core.volumes().destroy(id(*volume)).await),
            Event::Kill { node } => self.lab.engine(NODES[*node]).kill(),
            Event::Start { node } => {
                if !self.lab.engine(NODES[*node]).is_running() {
                    self.lab.engine(NODES[*node]).start();
                }
                self.lab.register_all(&self.operator).await;
            }
            Event::Cut { node } => self.lab.engine(NODES[*node]).set_reachable(false),
            Event::Join { node } => self.lab.engine(NODES[*node]).set_reachable(true),
            Event::Unplug { node } => self.lab.engine(NODES[*node]).unplug(DISK),
            Event::Plug { node } => self.lab.engine(NODES[*node]).plug(DISK),
            Event::FaultChild { volume, child, reason } => {
                self.fault_child(id(*volume), *child, *reason).await;
            }
            Event::FailCall { node, method, when, kind } => {
                self.lab.engine(NODES[*node]).fail_next(method, *when, ApiError::new(*kind, "injected"));
            }
            Event::FailStore { fault } => self.lab.store.inject([*fault]),
            Event::NewLeader => {
                self.operator = self.lab.operator().await;
            }
            Event::Reconcile { seconds } => self.operator.pass_for(Duration::from_secs(*seconds)).await,
        }
    }

    async fn fault_child(&self, volume: Uuid, child: usize, reason: ChildReason) {
        for node in NODES.iter().filter(|node| self.lab.engine(node).is_running()) {
            let Ok(nexuses) = self.lab.engine(node).list_nexuses().await else { continue };
            for nexus in nexuses.iter().filter(|nexus| nexus.name == volume.to_string()) {
                // The last child with all data does not fail here: that it may is a story of its own.
                let online =
                    nexus.children.iter().filter(|c| c.state == engine_api::ChildState::Online).count();
                if let Some(child) = nexus.children.get(child)
                    && (online > 1 || child.state != engine_api::ChildState::Online)
                {
                    let _ = self.lab.cluster.fault_child(nexus.uuid, &child.uri, reason);
                }
            }
        }
    }

    /// Publishes a volume; failures of calls that are still in line are used up.
    async fn publish(&self, volume: Uuid, story: &str) {
        for _ in 0..60 {
            match self.operator.core.volumes().publish(volume, anywhere()).await {
                Ok(_) => return,
                Err(error) => println!("not published: {}", error.chain()),
            }
            self.operator.pass_for(Duration::from_secs(5)).await;
        }
        panic!("not published: {story}");
    }

    /// Everything works again, but for failures of calls that are still in line.
    async fn calm(&mut self) {
        self.lab.store.calm();
        self.lab.cluster.set_rebuilds(Rebuilds::AtOnce);
        for node in NODES {
            let engine = self.lab.engine(node);
            engine.set_reachable(true);
            engine.plug(DISK);
            if !engine.is_running() {
                engine.start();
            }
        }
        self.lab.register_all(&self.operator).await;
        self.operator.pass_for(Duration::from_secs(300)).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn from_any_state_plan_and_apply_reach_the_wish_and_stay(events in prop::collection::vec(event(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for event in &events {
                world.happen(event).await;
            }
            world.calm().await;
            let story = format!("{events:?}");
            world.operator.settle(&story).await;
            world.lab.ensure_nothing_leaked(&world.operator, &story).await;
            // What came while nobody served the volume is filled when somebody does.
            for volume in world.operator.core.volumes().list().iter().filter(|volume| volume.target.is_none()) {
                world.publish(volume.uuid, &story).await;
            }
            world.operator.settle(&story).await;
            world.lab.ensure_nothing_leaked(&world.operator, &story).await;
            for volume in world.operator.core.volumes().list() {
                assert_eq!(world.operator.status(volume.uuid), VolumeStatus::Online, "{story}");
            }
            world.lab.take_calls();
            let before = world.lab.store.dump();
            world.operator.pass_for(Duration::from_secs(120)).await;
            assert_eq!(world.lab.take_calls(), [], "it stays: {story}");
            assert_eq!(world.lab.store.dump(), before, "it stays: {story}");
        });
    }
}
