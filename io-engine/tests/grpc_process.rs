//! The real engine as a process: the suite over gRPC, restarts by SIGKILL and SIGTERM, disks that move or are missing,
//! and what it does not offer.
//!
//! Each engine has an address of its own in 127.0.0.0/8, so that all can serve on the port hosts expect.

#[path = "process/engine.rs"]
mod engine;

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use engine::{Process, eventually};
use engine_api::suite::{self, Subject};
use engine_api::{
    AnaState, Call, CreateNexus, CreatePool, CreateReplica, ErrorKind, ImportPool, NexusState, PoolRef, Share,
};
use tokio::net::TcpListener;
use uuid::Uuid;

const MIB: u64 = 1 << 20;

fn pool(name: &str, disk: &str) -> CreatePool {
    CreatePool { name: name.into(), uuid: None, disk: disk.into(), cluster_bytes: None, cluster: None }
}

fn replica(id: u128, pool: &str, share: Option<Share>) -> CreateReplica {
    CreateReplica {
        name: format!("replica-{id}"),
        uuid: Uuid::from_u128(id),
        pool: pool.into(),
        size_bytes: 32 * MIB,
        thin: true,
        share,
        entity_id: None,
    }
}

/// A disk with an ext4 file system, as far as its signature goes.
fn foreign_disk(engine: &Process) -> String {
    let path = engine.disk("foreign", 64 * MIB);
    let mut file = fs::OpenOptions::new().write(true).open(&path).expect("opened");
    file.seek(SeekFrom::Start(0x438)).expect("sought");
    file.write_all(&[0x53, 0xef]).expect("written");
    path
}

fn content(path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    fs::File::open(path).expect("opened").read_to_end(&mut bytes).expect("read");
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_real_engine_passes_the_suite() {
    let engine = Process::start().await;
    let subject = Subject {
        engine: engine.api(),
        disks: [engine.disk("a", 256 * MIB), engine.disk("b", 256 * MIB)],
        foreign_disk: foreign_disk(&engine),
        missing_disk: engine.path("missing"),
    };
    let before = content(&subject.foreign_disk);
    for story in suite::stories() {
        println!("{}", story.name);
        story.run(&subject).await;
    }
    assert_eq!(content(&subject.foreign_disk), before, "a foreign disk is left untouched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn pools_and_shares_are_back_after_a_kill() {
    let mut engine = Process::start().await;
    let disk = engine.disk("a", 128 * MIB);
    let api = engine.api();
    let made = api.create_pool(Call::plain(), pool("p", &disk)).await.expect("made");
    let hosts = vec!["nqn.2019-05.io.openebs:node-name:n2".to_owned()];
    let shared = Some(Share { allowed_hosts: hosts });
    api.create_replica(Call::plain(), replica(1, "p", shared)).await.expect("made");
    api.create_replica(Call::plain(), replica(2, "p", None)).await.expect("made");
    let replicas = api.list_replicas().await.expect("listed");
    let instance = api.info().await.expect("answers").instance;
    for is_kill in [true, false, true] {
        if is_kill {
            engine.kill();
        } else {
            engine.terminate().await;
        }
        engine.start_again().await;
        let api = engine.api();
        assert_ne!(api.info().await.expect("answers").instance, instance);
        let are_back = || async {
            let pools = api.list_pools().await.expect("listed");
            pools.iter().map(|pool| pool.uuid).collect::<Vec<_>>() == [made.uuid]
        };
        eventually("the pool is back", are_back).await;
        assert_eq!(api.list_replicas().await.expect("listed"), replicas);
        assert!(engine.serves_nvme().await, "a shared replica can be reached");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_pool_whose_disk_is_missing_comes_back_with_it() {
    let mut engine = Process::start().await;
    let disk = engine.disk("a", 128 * MIB);
    let other = engine.disk("b", 128 * MIB);
    let api = engine.api();
    api.create_pool(Call::plain(), pool("p", &disk)).await.expect("made");
    api.create_pool(Call::plain(), pool("q", &other)).await.expect("made");
    engine.kill();
    let away = engine.path("away");
    fs::rename(&disk, &away).expect("moved");
    engine.start_again().await;
    let api = engine.api();
    let names = || async {
        let pools = api.list_pools().await.expect("listed");
        pools.into_iter().map(|pool| pool.name).collect::<Vec<_>>()
    };
    eventually("one missing disk keeps nothing else from starting", || async { names().await == ["q"] })
        .await;
    fs::rename(&away, &disk).expect("moved back");
    eventually("both pools are back", || async { names().await == ["p", "q"] }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_missing_pool_that_is_given_up_does_not_come_back() {
    let mut engine = Process::start().await;
    let disk = engine.disk("a", 128 * MIB);
    engine.api().create_pool(Call::plain(), pool("p", &disk)).await.expect("made");
    engine.kill();
    let away = engine.path("away");
    fs::rename(&disk, &away).expect("moved");
    engine.start_again().await;
    let which = PoolRef { name: "p".into(), uuid: None };
    let gone = engine.api().destroy_pool(Call::plain(), which).await.expect_err("it is not loaded");
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    fs::rename(&away, &disk).expect("moved back");
    engine.kill();
    engine.start_again().await;
    // The disk is free: nobody has taken it again.
    let import = ImportPool { name: "p".into(), uuid: None, disk };
    engine.api().import_pool(Call::plain(), import).await.expect("its data was left alone");
}

/// Two engines, one disk: the second is told, and the first goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_disk_that_another_engine_has_open_is_refused() {
    let first = Process::start().await;
    let second = Process::start().await;
    let disk = first.disk("a", 128 * MIB);
    first.api().create_pool(Call::plain(), pool("p", &disk)).await.expect("made");
    let refused = second.api().create_pool(Call::plain(), pool("p", &disk)).await.expect_err("in use");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    assert!(refused.context().contains("somebody else has it open"), "{refused}");
    let made = first.api().create_replica(Call::plain(), replica(1, "p", None)).await;
    made.expect("the first goes on");
}

/// SAFETY C1: a pool stamped by one cluster is not taken by another.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn c1_a_pool_of_another_cluster_is_refused() {
    let engine = Process::start().await;
    let api = engine.api();
    let disk = engine.disk("a", 128 * MIB);
    let stamped = |cluster| CreatePool { cluster: Some(Uuid::from_u128(cluster)), ..pool("p", &disk) };
    api.create_pool(Call::plain(), stamped(1)).await.expect("made");
    let which = PoolRef { name: "p".into(), uuid: None };
    api.export_pool(Call::plain(), which).await.expect("exported");
    let refused = api.create_pool(Call::plain(), stamped(2)).await.expect_err("another cluster's");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    api.create_pool(Call::plain(), stamped(1)).await.expect("ours");
}

/// SAFETY C3 over a real restart: the leader that was deposed before stays deposed after.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn c3_the_newest_leader_outlives_the_engine() {
    let mut engine = Process::start().await;
    let disk = engine.disk("a", 128 * MIB);
    let registry = Uuid::from_u128(1);
    let leader = |revision| Call::leader(registry, revision);
    engine.api().create_pool(leader(7), pool("p", &disk)).await.expect("made");
    engine.kill();
    engine.start_again().await;
    let api = engine.api();
    eventually("the pool is back", || async { api.list_pools().await.expect("listed").len() == 1 }).await;
    let which = PoolRef { name: "p".into(), uuid: None };
    for call in [leader(6), Call::plain()] {
        let refused = engine.api().destroy_pool(call, which.clone()).await.expect_err("deposed");
        assert_eq!(refused.kind(), ErrorKind::Fenced, "{refused}");
    }
    engine.api().destroy_pool(leader(7), which).await.expect("still the leader");
}

/// A nexus over replicas of two engines, one of which is killed and comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_nexus_mirrors_over_engines() {
    let engines = [Process::start().await, Process::start().await];
    let mut uris = Vec::new();
    for (engine, id) in engines.iter().zip(1..) {
        let disk = engine.disk("a", 128 * MIB);
        engine.api().create_pool(Call::plain(), pool("p", &disk)).await.expect("made");
        let share = (id == 2).then(|| Share { allowed_hosts: vec![engines[0].host_nqn()] });
        uris.push(
            engine.api().create_replica(Call::plain(), replica(id, "p", share)).await.expect("made").uri,
        );
    }
    let [first, mut second] = engines;
    let uuid = Uuid::from_u128(9);
    let request = CreateNexus {
        name: Uuid::from_u128(8).to_string(),
        uuid,
        size_bytes: 16 * MIB,
        cntlids: 1..=2,
        reservation: None,
        standby: false,
        given_up: Vec::new(),
        children: uris.clone(),
        info_key: None,
    };
    let api = first.api();
    let nexus = api.create_nexus(Call::plain(), request).await.expect("both are reached");
    assert_eq!((nexus.state, nexus.size_bytes), (NexusState::Online, 16 * MIB));
    api.publish_nexus(Call::plain(), uuid, Share::default()).await.expect("published");

    // A replica that a nexus elsewhere has open is not destroyed (SAFETY C3).
    let destroy =
        engine_api::DestroyReplica { uuid: Uuid::from_u128(2), pool: None, despite_reservation: false };
    let refused = second.api().destroy_replica(Call::plain(), destroy.clone()).await.expect_err("in use");
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");

    second.kill();
    second.start_again().await;
    let state = || async { api.list_nexuses().await.expect("listed")[0].state };
    eventually("the nexus is whole or knows what is missing", || async {
        matches!(state().await, NexusState::Online | NexusState::Degraded)
    })
    .await;
    api.destroy_nexus(Call::plain(), uuid).await.expect("destroyed");
    let api = second.api();
    eventually("nobody uses the replica", || async {
        api.destroy_replica(Call::plain(), destroy.clone()).await.is_ok()
    })
    .await;
}

/// A nexus on standby uses nothing; one that is being let serve uses what it is about to open.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn c3_a_replica_that_a_standby_is_opening_is_not_destroyed() {
    let engine = Process::start().await;
    let (api, disk) = (engine.api(), engine.disk("a", 128 * MIB));
    api.create_pool(Call::plain(), pool("p", &disk)).await.expect("made");
    let made = api.create_replica(Call::plain(), replica(1, "p", None)).await.expect("made");
    // It accepts connections and says nothing: the nexus waits for it.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = silent.local_addr().expect("bound");
    let remote = format!("nvmf+tcp://{address}/nqn.2019-05.io.openebs:x?uuid={}", Uuid::from_u128(2));
    let uuid = Uuid::from_u128(9);
    let request = CreateNexus {
        name: Uuid::from_u128(8).to_string(),
        uuid,
        size_bytes: 16 * MIB,
        cntlids: 1..=2,
        reservation: None,
        standby: true,
        given_up: Vec::new(),
        children: vec![made.uri, remote],
        info_key: None,
    };
    api.create_nexus(Call::plain(), request).await.expect("it touches nothing");
    api.publish_nexus(Call::plain(), uuid, Share::default()).await.expect("published");
    let other = engine.api();
    let beginning =
        tokio::spawn(async move { other.set_ana_state(Call::plain(), uuid, AnaState::Optimized).await });
    let (_connection, _) = silent.accept().await.expect("the nexus opens its children");
    let destroy = engine_api::DestroyReplica { uuid: made.uuid, pool: None, despite_reservation: false };
    let refused = api.destroy_replica(Call::plain(), destroy.clone()).await.expect_err("about to be used");
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
    beginning.await.expect("no panic").expect_err("a volume that was never opened needs all its children");
    assert_eq!(api.get_ana_state(uuid).await, Ok(AnaState::Inaccessible), "it stands by as before");
    api.destroy_replica(Call::plain(), destroy).await.expect("nobody uses it");
    api.destroy_nexus(Call::plain(), uuid).await.expect("destroyed");
}

/// Without a word about them all children of a new volume have to be there.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn d3_a_replica_that_is_given_up_is_not_waited_for() {
    let engine = Process::start().await;
    let (api, disk) = (engine.api(), engine.disk("a", 128 * MIB));
    api.create_pool(Call::plain(), pool("p", &disk)).await.expect("made");
    let made = api.create_replica(Call::plain(), replica(1, "p", None)).await.expect("made");
    let away = Uuid::from_u128(2);
    let remote = format!("nvmf+tcp://127.0.0.1:1/nqn.2019-05.io.openebs:x?uuid={away}");
    let waits = CreateNexus {
        name: Uuid::from_u128(8).to_string(),
        uuid: Uuid::from_u128(9),
        size_bytes: 16 * MIB,
        cntlids: 1..=2,
        reservation: None,
        standby: false,
        children: vec![made.uri, remote],
        info_key: None,
        given_up: Vec::new(),
    };
    let refused = api.create_nexus(Call::plain(), waits.clone()).await.expect_err("a child is away");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    let gives_up = CreateNexus { given_up: vec![away], ..waits };
    let nexus = api.create_nexus(Call::plain(), gives_up).await.expect("nobody waits for it");
    assert_eq!(nexus.state, NexusState::Degraded);
    api.destroy_nexus(Call::plain(), nexus.uuid).await.expect("destroyed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_not_offered_says_so() {
    use engine_api::proto;
    let engine = Process::start().await;
    let channel = engine.channel().await;
    let mut stats = proto::stats_rpc_client::StatsRpcClient::new(channel.clone());
    let whole_service = stats.reset_io_stats(()).await.expect_err("not offered");
    let mut pools = proto::pool_rpc_client::PoolRpcClient::new(channel);
    let one_call = pools.grow_pool(proto::GrowPoolRequest::default()).await.expect_err("not offered");
    for (status, name) in [(whole_service, "StatsRpc/ResetIoStats"), (one_call, "PoolRpc/GrowPool")] {
        assert_eq!(status.code(), tonic::Code::Unimplemented);
        assert!(status.message().contains(name), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_machine_is_described() {
    let engine = Process::start().await;
    let api = engine.api();
    let info = api.info().await.expect("answers");
    assert_eq!(info.host_nqn.as_deref(), Some(engine.host_nqn().as_str()));
    assert!(info.features.ana && info.instance.is_some(), "{info:?}");
    api.list_block_devices(true).await.expect("listed");
    let usage = api.resource_usage().await.expect("counted");
    assert!(usage.soft_faults > 0, "{usage:?}");
}

/// The engine announces itself, again and again, and takes its leave.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_engine_registers_and_takes_its_leave() {
    let registrar = engine::Registrar::start().await;
    let mut engine = Process::start_with(&["-R", &registrar.address(), "--heartbeat-interval", "1"]).await;
    eventually("two heartbeats", || async { registrar.heartbeats() >= 2 }).await;
    let node = registrar.last().expect("registered");
    assert_eq!(
        (node.node.as_str(), node.grpc_endpoint.as_str()),
        (engine.name(), engine.endpoint().as_str())
    );
    assert_eq!(registrar.departed(), Vec::<String>::new());
    engine.terminate().await;
    assert_eq!(registrar.departed(), [engine.name()]);
}

/// A state directory that cannot be used, or a damaged file in it, stops the start with a reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_start_that_cannot_succeed_says_why() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("pools.json"), "{").expect("written");
    let said = engine::failing_start(dir.path());
    assert!(said.contains("pools.json is damaged"), "{said}");
    assert!(Path::new(&dir.path().join("pools.json")).exists());
}
