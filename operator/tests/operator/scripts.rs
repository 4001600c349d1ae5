//! What each verb does, effect by effect, as frozen text: every intent stands before its act, every result after it.

use std::sync::{Arc, Mutex};

use engine_api::{
    AddChild, AnaState, Answer, ApiError, BlockDevice, Call, ChildAction, ChildRef, Connect, CreateNexus,
    CreatePool, CreateReplica, DestroyReplica, Engine, ImportPool, Nexus, NodeInfo, Pool, PoolRef,
    RebuildRecord, RebuildStats, Replica, ResourceUsage, Share,
};
use store::{Moment, Operation, Verdict};
use uuid::Uuid;

use super::lab::{GIB, Lab, on, pool, volume};

const V: Uuid = Uuid::from_u128(7);

type Script = Arc<Mutex<Vec<String>>>;

struct Recorded {
    inner: Arc<dyn Connect>,
    script: Script,
}

impl Connect for Recorded {
    fn connect(&self, grpc_endpoint: &str) -> Result<Arc<dyn Engine>, ApiError> {
        let inner = self.inner.connect(grpc_endpoint)?;
        // 10.0.0.<n>: the lab's nodes are named in that order.
        let node =
            grpc_endpoint.trim_start_matches("10.0.0.").split(':').next().unwrap_or_default().to_owned();
        Ok(Arc::new(RecordedEngine { inner, node, script: self.script.clone() }))
    }
}

struct RecordedEngine {
    inner: Arc<dyn Engine>,
    node: String,
    script: Script,
}

macro_rules! looks {
    ($($method:ident($($arg:ident: $type:ty),*) -> $answer:ty;)*) => {$(
        fn $method(&self, $($arg: $type),*) -> Answer<'_, $answer> {
            self.inner.$method($($arg),*)
        }
    )*};
}

macro_rules! changes {
    ($($method:ident($($arg:ident: $type:ty),*) -> $answer:ty;)*) => {$(
        fn $method(&self, call: Call, $($arg: $type),*) -> Answer<'_, $answer> {
            self.script.lock().unwrap().push(format!("engine {}: {}", self.node, stringify!($method)));
            self.inner.$method(call, $($arg),*)
        }
    )*};
}

impl Engine for RecordedEngine {
    looks! {
        info() -> NodeInfo;
        list_block_devices(all: bool) -> Vec<BlockDevice>;
        resource_usage() -> ResourceUsage;
        list_pools() -> Vec<Pool>;
        list_replicas() -> Vec<Replica>;
        list_nexuses() -> Vec<Nexus>;
        get_ana_state(nexus: Uuid) -> AnaState;
        rebuild_stats(child: ChildRef) -> RebuildStats;
        rebuild_history() -> Vec<RebuildRecord>;
    }

    changes! {
        create_pool(request: CreatePool) -> Pool;
        import_pool(request: ImportPool) -> Pool;
        export_pool(pool: PoolRef) -> ();
        destroy_pool(pool: PoolRef) -> ();
        create_replica(request: CreateReplica) -> Replica;
        destroy_replica(request: DestroyReplica) -> ();
        share_replica(replica: Uuid, share: Share) -> Replica;
        unshare_replica(replica: Uuid) -> Replica;
        resize_replica(replica: Uuid, size_bytes: u64) -> Replica;
        create_nexus(request: CreateNexus) -> Nexus;
        destroy_nexus(nexus: Uuid) -> ();
        shutdown_nexus(nexus: Uuid) -> Nexus;
        publish_nexus(nexus: Uuid, share: Share) -> Nexus;
        unpublish_nexus(nexus: Uuid) -> Nexus;
        set_ana_state(nexus: Uuid, state: AnaState) -> Nexus;
        resize_nexus(nexus: Uuid, size_bytes: u64) -> Nexus;
        add_child(request: AddChild) -> Nexus;
        remove_child(child: ChildRef) -> Nexus;
        fault_child(child: ChildRef) -> Nexus;
        child_operation(child: ChildRef, action: ChildAction) -> Nexus;
    }
}

/// `PoolSpec Creating`, `VolumeSpec Created publish`, `NexusSpec gone`.
fn told(operation: &Operation) -> String {
    let kind = |key: &str| key.rsplit('/').nth(1).unwrap_or_default().to_owned();
    match operation {
        Operation::Delete { key } => format!("store: {} gone", kind(key)),
        Operation::Put { key, value, .. } => {
            let value: serde_json::Value = serde_json::from_slice(value).unwrap();
            let word = |field: &str| value[field].as_str().map(|text| format!(" {text}")).unwrap_or_default();
            format!("store: {}{}{}", kind(key), word("status"), word("operation"))
        }
    }
}

#[tokio::test(start_paused = true)]
async fn c5_every_intent_stands_before_its_act_and_every_result_after_it() {
    let lab = Lab::new(&["1", "2"]);
    let script = Script::default();
    let connector = Recorded { inner: Arc::new(lab.cluster.clone()), script: script.clone() };
    let operator = lab.operator_through(Arc::new(connector)).await;
    let writes = script.clone();
    lab.store.set_hook(move |moment| {
        if let Moment::Before(transaction) = moment {
            writes.lock().unwrap().extend(transaction.then.iter().map(told));
        }
        Verdict::Proceed
    });
    let say = |title: &str| script.lock().unwrap().push(format!("-- {title}"));
    let core = &operator.core;
    say("create two pools");
    core.pools().create(pool("1")).await.unwrap();
    core.pools().create(pool("2")).await.unwrap();
    say("create a volume of two replicas");
    core.volumes().create(volume(7, 2)).await.unwrap();
    say("publish it on node 1");
    core.volumes().publish(V, on("1")).await.unwrap();
    say("engine 1 starts anew");
    lab.engine("1").restart();
    core.engines.registered(lab.engine("1").node_info()).await.unwrap();
    operator.settle("restarted").await;
    say("grow it");
    core.volumes().resize(V, 2 * GIB).await.unwrap();
    say("unpublish it");
    core.volumes().unpublish(V, false).await.unwrap();
    operator.settle("unpublished").await;
    say("destroy it");
    core.volumes().destroy(V).await.unwrap();
    say("destroy a pool");
    core.pools().destroy("pool-1").await.unwrap();
    // Replicas go in the order of their ids, which are random.
    let found = script.lock().unwrap().join("\n").replace("engine 1: destroy_r", "engine _: destroy_r");
    let found = found.replace("engine 2: destroy_r", "engine _: destroy_r");
    let found = found.replace("engine 1: resize_r", "engine _: resize_r");
    let found = found.replace("engine 2: resize_r", "engine _: resize_r");
    assert_eq!(found, FROZEN.trim(), "\n{found}\n");
}

const FROZEN: &str = "
-- create two pools
store: RegistryIdentity
store: PoolSpec Creating
engine 1: create_pool
store: PoolSpec Created
store: PoolSpec Creating
engine 2: create_pool
store: PoolSpec Created
-- create a volume of two replicas
store: VolumeSpec Creating
store: ReplicaSpec Creating
engine 1: create_replica
store: ReplicaSpec Created
store: ReplicaSpec Creating
engine 2: create_replica
store: ReplicaSpec Created
store: VolumeSpec Created
-- publish it on node 1
store: VolumeSpec Created publish
store: NexusSpec Creating
engine 2: share_replica
engine 1: create_nexus
engine 1: publish_nexus
store: NexusSpec Created
store: VolumeSpec Created
-- engine 1 starts anew
engine 1: create_nexus
engine 1: publish_nexus
-- grow it
store: VolumeSpec Created
engine _: resize_replica
store: ReplicaSpec Created
engine _: resize_replica
store: ReplicaSpec Created
store: NexusSpec Created
engine 1: resize_nexus
store: VolumeSpec Created
-- unpublish it
store: VolumeSpec Created unpublish
store: NexusSpec Deleting
engine 1: destroy_nexus
store: NexusSpec gone
engine 2: unshare_replica
store: VolumeSpec Created
-- destroy it
store: VolumeSpec Deleting
store: ReplicaSpec Deleting
engine _: destroy_replica
store: ReplicaSpec gone
store: ReplicaSpec Deleting
engine _: destroy_replica
store: ReplicaSpec gone
store: VolumeSpec gone
-- destroy a pool
store: PoolSpec Deleting
engine 1: destroy_pool
engine 1: import_pool
store: PoolSpec gone
";
