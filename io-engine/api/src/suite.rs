//! What every engine must do, whatever it is made of: run on [`SimEngine`](crate::sim::SimEngine), on the same over
//! gRPC, and on the real process.
//!
//! Each story begins and ends with an engine that has no pools, and panics with what it saw. Stories run one after
//! another on one engine; those about the leader's fence come last, because an engine never forgets a leader.

mod fences;
mod nexuses;
mod pools;
mod replicas;

use std::{future::Future, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use uuid::Uuid;

use crate::{
    engine::{Call, Engine},
    error::{ApiError, ErrorKind},
    types::{CreatePool, CreateReplica, Pool, PoolRef, Replica},
};

pub(crate) const MIB: u64 = 1 << 20;

/// The engine under test and what it may use.
pub struct Subject {
    /// The engine: nothing is loaded and no leader was seen.
    pub engine: Arc<dyn Engine>,
    /// Two blank disks of at least 256 MiB, as an engine takes them.
    pub disks: [String; 2],
    /// A disk with somebody else's data.
    pub foreign_disk: String,
    /// A path where no disk is.
    pub missing_disk: String,
}

/// A behaviour, by name.
pub struct Story {
    /// The claim.
    pub name: &'static str,
    tell: for<'a> fn(&'a Subject) -> BoxFuture<'a, ()>,
}

impl Story {
    /// Runs it; panics where the engine does otherwise.
    pub async fn run(&self, subject: &Subject) {
        (self.tell)(subject).await;
        let pools = subject.engine.list_pools().await.expect("pools are listed");
        assert_eq!(pools, [], "{} leaves nothing behind", self.name);
    }
}

macro_rules! stories {
    ($($room:ident: $($name:ident),+ $(,)?;)+) => {
        /// All stories, in the order they are to be run.
        pub fn stories() -> Vec<Story> {
            vec![$($(Story {
                name: stringify!($name),
                tell: |subject| Box::pin($room::$name(subject)),
            }),+),+]
        }
    };
}

stories! {
    pools:
        a_pool_is_created_listed_and_destroyed,
        a_pool_is_created_once,
        a_disk_holds_one_pool,
        a_disk_that_is_missing_or_foreign_is_refused_untouched,
        an_exported_pool_is_imported_with_its_replicas,
        a_pool_is_imported_only_as_what_it_is,
        an_unknown_pool_is_not_found,
        a_disk_named_by_uri_is_the_same_disk;
    replicas:
        a_replica_is_created_listed_and_destroyed,
        a_replica_name_or_id_is_taken_once,
        a_replica_must_fit_its_pool,
        a_replica_needs_a_loaded_pool,
        a_replica_is_shared_and_unshared,
        a_replica_grows,
        a_destroy_names_the_right_pool_or_none;
    nexuses:
        a_nexus_is_created_published_and_destroyed,
        a_nexus_needs_children_that_open,
        a_nexus_name_or_id_is_taken_once,
        c3_a_replica_in_use_is_not_destroyed,
        c3_a_reserved_replica_is_destroyed_only_when_the_call_says_so,
        a_child_is_added_and_rebuilt,
        the_last_healthy_child_stays,
        a_child_goes_offline_and_comes_back,
        a_nexus_that_was_shut_down_changes_no_more,
        hosts_are_told_the_access_state_of_their_path,
        a_nexus_grows_after_its_children,
        a_nexus_on_standby_serves_once_it_is_optimized;
    fences:
        c3_a_deposed_leader_changes_nothing;
}

/// Call of a tool, before any leader was seen.
const PLAIN: Call = Call { fence: crate::Fence::Absent, timeout: None };

fn pool_ref(name: &str) -> PoolRef {
    PoolRef { name: name.into(), uuid: None }
}

fn create_pool(name: &str, disk: &str) -> CreatePool {
    CreatePool { name: name.into(), uuid: None, disk: disk.into(), cluster_bytes: None, cluster: None }
}

impl Subject {
    async fn make_pool(&self, name: &str, disk: &str) -> Pool {
        let answer = self.engine.create_pool(PLAIN, create_pool(name, disk)).await;
        answer.unwrap_or_else(|error| panic!("create pool {name} on {disk}: {error}"))
    }

    async fn destroy_pool(&self, name: &str) {
        let answer = self.engine.destroy_pool(PLAIN, pool_ref(name)).await;
        answer.unwrap_or_else(|error| panic!("destroy pool {name}: {error}"));
    }

    async fn make_replica(&self, request: CreateReplica) -> Replica {
        let name = request.name.clone();
        let answer = self.engine.create_replica(PLAIN, request).await;
        answer.unwrap_or_else(|error| panic!("create replica {name}: {error}"))
    }

    async fn replica(&self, uuid: Uuid) -> Option<Replica> {
        let replicas = self.engine.list_replicas().await.expect("replicas are listed");
        replicas.into_iter().find(|replica| replica.uuid == uuid)
    }
}

fn create_replica(id: u128, pool: &str, size_bytes: u64) -> CreateReplica {
    let uuid = Uuid::from_u128(0x1234_0000_0000_4000_8000_0000_0000_0000 + id);
    CreateReplica {
        name: uuid.to_string(),
        uuid,
        pool: pool.into(),
        size_bytes,
        thin: true,
        share: None,
        entity_id: None,
    }
}

/// The kind of failure, or a panic that shows the success.
#[track_caller]
fn kind<T: std::fmt::Debug>(answer: Result<T, ApiError>) -> ErrorKind {
    match answer {
        Ok(answer) => panic!("refused calls succeed: {answer:?}"),
        Err(error) => error.kind(),
    }
}

/// Asks again until the answer suits, and gives it; panics with the last one after ten seconds.
async fn eventually<T, F>(what: &str, is_right: impl Fn(&T) -> bool, ask: impl Fn() -> F) -> T
where
    T: std::fmt::Debug,
    F: Future<Output = T>,
{
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let answer = ask().await;
        if is_right(&answer) {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what}; last seen: {answer:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
