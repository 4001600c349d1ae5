//! The operator dies after every single effect: each write to the store and each call to an engine. Whoever leads next
//! finishes or takes back what was begun; nothing is leaked and nothing stays half-made (SAFETY C5).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use engine_api::{
    AddChild, AnaState, Answer, ApiError, BlockDevice, Call, ChildAction, ChildRef, Connect, CreateNexus,
    CreatePool, CreateReplica, DestroyReplica, Engine, ImportPool, Nexus, NodeInfo, Pool, PoolRef,
    RebuildRecord, RebuildStats, Replica, ResourceUsage, Share,
};
use operator::core::Core;
use operator::volume::republish::Republish;
use operator::volume::status::VolumeStatus;
use store::{Moment, Verdict};
use tokio::sync::Notify;
use uuid::Uuid;

use super::lab::{GIB, Lab, Operator, host, on, pool, volume};

const V: Uuid = Uuid::from_u128(7);

/// Counts effects and halts the process after one of them.
#[derive(Default)]
struct Tripwire {
    effects: AtomicUsize,
    /// 0 halts nothing.
    at: usize,
    tripped: Notify,
}

impl Tripwire {
    fn new(at: usize) -> Arc<Self> {
        Arc::new(Self { at, ..Self::default() })
    }

    /// An effect was done; `true` means that the process dies now.
    fn pass(&self) -> bool {
        let dies = self.effects.fetch_add(1, Ordering::SeqCst) + 1 == self.at;
        if dies {
            self.tripped.notify_one();
        }
        dies
    }
}

/// Engines seen through the tripwire.
struct Wired {
    inner: Arc<dyn Connect>,
    wire: Arc<Tripwire>,
}

impl Connect for Wired {
    fn connect(&self, grpc_endpoint: &str) -> Result<Arc<dyn Engine>, ApiError> {
        let inner = self.inner.connect(grpc_endpoint)?;
        Ok(Arc::new(WiredEngine { inner, wire: self.wire.clone() }))
    }
}

struct WiredEngine {
    inner: Arc<dyn Engine>,
    wire: Arc<Tripwire>,
}

impl WiredEngine {
    fn after<'a, T: Send + 'a>(&'a self, answer: Answer<'a, T>) -> Answer<'a, T> {
        Box::pin(async move {
            let answer = answer.await;
            if self.wire.pass() {
                return std::future::pending().await;
            }
            answer
        })
    }
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
            self.after(self.inner.$method(call, $($arg),*))
        }
    )*};
}

impl Engine for WiredEngine {
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

/// Leads through a tripwire that dies after effect `at`, counted from when it is asked to do something.
async fn wired(lab: &Lab, at: usize) -> (Operator, Arc<Tripwire>) {
    let wire = Tripwire::new(at);
    let connector = Arc::new(Wired { inner: Arc::new(lab.cluster.clone()), wire: wire.clone() });
    let operator = lab.operator_through(connector).await;
    wire.effects.store(0, Ordering::SeqCst);
    let on_write = wire.clone();
    lab.store.set_hook(move |moment| match moment {
        Moment::After(_) if on_write.pass() => Verdict::Halt,
        _ => Verdict::Proceed,
    });
    (operator, wire)
}

/// Runs `work` until it is done or the process dies of it; returns whether it was done.
async fn until_death<F>(lab: &Lab, wire: &Tripwire, work: F) -> bool
where
    F: Future<Output = ()> + Send + 'static,
{
    let task = tokio::spawn(work);
    let abort = task.abort_handle();
    let done = tokio::select! {
        ended = task => {
            ended.unwrap();
            true
        }
        () = wire.tripped.notified() => false,
    };
    abort.abort();
    lab.store.clear_hook();
    done
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    CreatePool,
    DestroyPool,
    Create,
    Publish,
    Unpublish,
    Destroy,
    DestroyPublished,
    Republish,
    RepublishUnanswered,
    Move,
    DestroyShutdownTargets,
    Grow,
    GrowPublished,
}

impl Verb {
    const ALL: [Self; 13] = [
        Self::CreatePool,
        Self::DestroyPool,
        Self::Create,
        Self::Publish,
        Self::Unpublish,
        Self::Destroy,
        Self::DestroyPublished,
        Self::Republish,
        Self::RepublishUnanswered,
        Self::Move,
        Self::DestroyShutdownTargets,
        Self::Grow,
        Self::GrowPublished,
    ];

    /// The volume is published before.
    fn begins_published(self) -> bool {
        self.replaces_target()
            || matches!(
                self,
                Self::Unpublish | Self::DestroyPublished | Self::DestroyShutdownTargets | Self::GrowPublished
            )
    }

    fn replaces_target(self) -> bool {
        matches!(self, Self::Republish | Self::RepublishUnanswered | Self::Move)
    }

    /// The world before the verb.
    async fn prepare(self, lab: &Lab) {
        let operator = lab.operator().await;
        let core = &operator.core;
        let pools: &[&str] = if matches!(self, Self::CreatePool) { &["b"] } else { &["a", "b"] };
        for node in pools {
            core.pools().create(pool(node)).await.unwrap();
        }
        if self.begins_published() || matches!(self, Self::Publish | Self::Destroy | Self::Grow) {
            core.volumes().create(volume(7, 2)).await.unwrap();
        }
        if self.begins_published() {
            core.volumes().publish(V, on("a")).await.unwrap();
        }
        if self == Self::DestroyShutdownTargets {
            core.volumes().republish(V, elsewhere()).await.unwrap();
        }
    }

    async fn act(self, core: Arc<Core>) {
        match self {
            Self::CreatePool => drop(core.pools().create(pool("a")).await.unwrap()),
            Self::DestroyPool => core.pools().destroy("pool-a").await.unwrap(),
            Self::Create => drop(core.volumes().create(volume(7, 2)).await.unwrap()),
            Self::Publish => drop(core.volumes().publish(V, on("a")).await.unwrap()),
            Self::Unpublish => drop(core.volumes().unpublish(V, false).await.unwrap()),
            Self::Destroy | Self::DestroyPublished => core.volumes().destroy(V).await.unwrap(),
            Self::Republish | Self::RepublishUnanswered => {
                drop(core.volumes().republish(V, elsewhere()).await.unwrap());
            }
            Self::Move => move_to_b(&core).await,
            Self::DestroyShutdownTargets => core.volumes().destroy_shutdown_targets(V, &[]).await.unwrap(),
            Self::Grow | Self::GrowPublished => drop(core.volumes().resize(V, 3 * GIB).await.unwrap()),
        }
    }

    /// While the verb is at work the node of the old target does not answer the operator.
    fn set_answering(self, lab: &Lab, answers: bool) {
        if self == Self::RepublishUnanswered {
            lab.engine("a").set_reachable(answers);
        }
    }

    /// What must hold when everything has come to rest, beside that nothing is leaked.
    fn check(self, operator: &Operator, story: &str) {
        let volume = operator.volume(V);
        match self {
            Self::Destroy | Self::DestroyPublished => {
                // Once the intent is written it is carried out; before, nothing has happened.
                assert!(volume.is_none_or(|volume| volume.operation.is_none()), "{story}");
            }
            Self::Republish | Self::RepublishUnanswered | Self::Move | Self::DestroyShutdownTargets => {
                let volume = volume.expect("it was there");
                assert_eq!((volume.replaced, volume.moving), (Vec::new(), None), "{story}");
                assert!(volume.target.is_some(), "{story}: it stays published");
                assert_eq!(operator.status(V), VolumeStatus::Online, "{story}");
            }
            Self::Grow | Self::GrowPublished => {
                // Nothing but the growth wrote before it died, and its first write is the intent.
                let volume = volume.expect("it was there");
                assert_eq!(volume.size, 3 * GIB, "{story}");
                assert_eq!(operator.status(V), VolumeStatus::Online, "{story}");
            }
            Self::Unpublish | Self::Publish => assert!(volume.is_some(), "{story}"),
            Self::CreatePool | Self::DestroyPool | Self::Create => {}
        }
    }
}

fn elsewhere() -> Republish {
    Republish { host: host("host"), ..Republish::default() }
}

/// The whole move: the hosts come as soon as the new target stands by.
async fn move_to_b(core: &Arc<Core>) {
    let moving = core.volumes().move_target(V, "b").await.unwrap().moving;
    if let Some(standby) = moving {
        core.volumes().report_path(V, standby.nexus, &host("host")).unwrap();
    }
    while core.volumes().get(V).unwrap().operation.is_some() {
        core.volumes().reconcile(V).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn dies_once_and_twice(verb: Verb) {
    // How many effects the verb has when nothing goes wrong.
    let lab = Lab::new(&["a", "b"]);
    verb.prepare(&lab).await;
    let (operator, wire) = wired(&lab, 0).await;
    verb.set_answering(&lab, false);
    let core = operator.core.clone();
    assert!(until_death(&lab, &wire, async move { verb.act(core).await }).await);
    let effects = wire.effects.load(Ordering::SeqCst);
    assert!(effects >= 3, "{verb:?} writes an intent, acts and writes the result: {effects}");

    for first in 1..=effects {
        // 0: the second process lives. Else it dies after that many effects of its own, until it has fewer.
        for second in 0.. {
            let story = format!("{verb:?} dies after effect {first}, then after effect {second}");
            let lab = Lab::new(&["a", "b"]);
            verb.prepare(&lab).await;
            let (operator, wire) = wired(&lab, first).await;
            verb.set_answering(&lab, false);
            let core = operator.core.clone();
            let done = until_death(&lab, &wire, async move { verb.act(core).await }).await;
            assert!(!done, "{story}: it should have died");
            drop(operator);
            verb.set_answering(&lab, true);
            let serving = lab.serving().await;
            assert!(serving.len() <= 1, "f1: {story}: {serving:?} serve at once");
            if verb == Verb::GrowPublished {
                // The engine dies as well: what hosts may have been told of must not become smaller.
                let told = lab.shown_sizes().await;
                lab.engine("a").restart();
                let operator = lab.operator().await;
                operator.settle(&story).await;
                let again = lab.shown_sizes().await;
                assert!(again.len() == 1 && again >= told, "{story}: {told:?} was told, and then {again:?}");
            }
            if second > 0 {
                let (operator, wire) = wired(&lab, second).await;
                let core = operator.core.clone();
                let recovery = async move {
                    let operator = Passing { core };
                    operator.settle().await;
                };
                if until_death(&lab, &wire, recovery).await {
                    break;
                }
                drop(operator);
            }
            let operator = lab.operator().await;
            operator.settle(&story).await;
            if verb.replaces_target() || verb == Verb::DestroyShutdownTargets {
                operator.core.volumes().destroy_shutdown_targets(V, &[]).await.unwrap();
                operator.settle(&story).await;
            }
            lab.ensure_nothing_leaked(&operator, &story).await;
            verb.check(&operator, &story);
        }
    }
}

/// What a reconciler does, for a process that may die of it.
struct Passing {
    core: Arc<Core>,
}

impl Passing {
    async fn settle(&self) {
        for _ in 0..60 {
            let mut settled = true;
            self.core.engines.refresh().await;
            for pool in self.core.pools().list() {
                settled &= self.core.pools().reconcile(&pool.id).await.is_ok_and(|settled| settled);
            }
            for volume in self.core.volumes().ids() {
                settled &= self.core.volumes().reconcile(volume).await.is_ok_and(|settled| settled);
            }
            if settled {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        panic!("the recovering process does not come to rest");
    }
}

macro_rules! dies {
    ($($claim:ident: $verb:ident,)*) => {
        $(#[tokio::test(start_paused = true)]
        async fn $claim() {
            dies_once_and_twice(Verb::$verb).await;
        })*

        /// No verb is left out.
        #[test]
        fn every_verb_is_killed() {
            assert_eq!(Verb::ALL.len(), [$(stringify!($claim)),*].len());
        }
    };
}

dies! {
    c5_an_operator_killed_while_it_makes_a_pool_leaves_nothing_half_made: CreatePool,
    c5_an_operator_killed_while_it_destroys_a_pool_leaves_nothing_half_made: DestroyPool,
    c5_an_operator_killed_while_it_makes_a_volume_leaves_nothing_half_made: Create,
    c5_an_operator_killed_while_it_publishes_leaves_nothing_half_made: Publish,
    c5_an_operator_killed_while_it_unpublishes_leaves_nothing_half_made: Unpublish,
    c5_an_operator_killed_while_it_destroys_a_volume_leaves_nothing_half_made: Destroy,
    c5_an_operator_killed_while_it_destroys_a_published_volume_leaves_nothing_half_made: DestroyPublished,
    c5_an_operator_killed_while_it_republishes_leaves_one_target: Republish,
    c5_an_operator_killed_while_it_fences_an_unanswering_target_leaves_one_target: RepublishUnanswered,
    c5_an_operator_killed_while_it_moves_a_target_leaves_one_target: Move,
    c5_an_operator_killed_while_it_grows_a_volume_grows_it_later: Grow,
    c5_an_operator_killed_while_it_grows_a_published_volume_shows_hosts_no_smaller_one: GrowPublished,
    c5_an_operator_killed_while_it_destroys_old_targets_leaves_one_target: DestroyShutdownTargets,
}
