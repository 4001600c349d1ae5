//! The suite on the simulated engine, called directly and over gRPC.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use engine_api::{
    Call, CreatePool, Engine, ErrorKind, GrpcEngine,
    client::Deadlines,
    server,
    sim::{DiskContent, Rebuilds, SimCluster, SimEngine, When},
    suite::{self, Subject},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

fn sim() -> SimEngine {
    let cluster = SimCluster::new();
    cluster.set_rebuilds(Rebuilds::AtOnce);
    let engine = cluster.add_node("n1", Ipv4Addr::new(10, 0, 0, 1).into());
    engine.add_disk("/dev/a", 256 << 20, DiskContent::Blank);
    engine.add_disk("/dev/b", 256 << 20, DiskContent::Blank);
    engine.add_disk("/dev/c", 256 << 20, DiskContent::Foreign("ext4".into()));
    engine
}

fn subject(engine: Arc<dyn Engine>) -> Subject {
    Subject {
        engine,
        disks: ["/dev/a".into(), "/dev/b".into()],
        foreign_disk: "/dev/c".into(),
        missing_disk: "/dev/none".into(),
    }
}

/// The engine behind a gRPC server of its own, as a client sees it.
async fn over_grpc(engine: SimEngine, deadlines: Deadlines) -> GrpcEngine {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let server = Server::builder().add_routes(server::routes(Arc::new(engine)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    GrpcEngine::new(&address.to_string(), deadlines).expect("an address")
}

#[tokio::test]
async fn the_simulated_engine_passes_the_suite() {
    let subject = subject(Arc::new(sim()));
    for story in suite::stories() {
        println!("{}", story.name);
        story.run(&subject).await;
    }
}

#[tokio::test]
async fn the_simulated_engine_passes_the_suite_over_grpc() {
    let engine = over_grpc(sim(), Deadlines::default()).await;
    let subject = subject(Arc::new(engine));
    for story in suite::stories() {
        println!("{}", story.name);
        story.run(&subject).await;
    }
}

#[tokio::test]
async fn what_is_told_over_grpc_is_what_the_engine_says() {
    let sim = sim();
    let engine = over_grpc(sim.clone(), Deadlines::default()).await;
    assert_eq!(engine.info().await, Ok(sim.node_info()));
    assert_eq!(engine.list_block_devices(true).await, sim.list_block_devices(true).await);
    assert_eq!(engine.list_block_devices(false).await.map(|disks| disks.len()), Ok(2));
}

/// The caller gives up, the engine does not: a change that was begun is finished.
#[tokio::test]
async fn a_call_ends_at_its_deadline_and_its_effect_does_not() {
    let sim = sim();
    let engine = over_grpc(sim.clone(), Deadlines::default()).await;
    sim.set_delay(Duration::from_millis(600));
    let request = CreatePool {
        name: "p1".into(),
        uuid: None,
        disk: "/dev/a".into(),
        cluster_bytes: None,
        cluster: None,
    };
    let call = Call::plain().within(Duration::from_millis(400));
    let late = engine.create_pool(call, request).await.expect_err("too slow");
    assert_eq!(late.kind(), ErrorKind::DeadlineExceeded, "{late}");
    sim.set_delay(Duration::ZERO);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while sim.list_pools().await.expect("listed").is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "the pool was made after all");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_named() {
    let nobody = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = nobody.local_addr().expect("bound").to_string();
    drop(nobody);
    let engine = GrpcEngine::new(&address, Deadlines::default()).expect("an address");
    let error = engine.list_pools().await.expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.context().contains(&address) && error.context().contains("refused"), "{error}");
}

/// A caller that repeats a call whose answer was lost finds the effect.
#[tokio::test]
async fn an_answer_can_be_lost_before_or_after_its_effect() {
    let sim = sim();
    let request = CreatePool {
        name: "p1".into(),
        uuid: None,
        disk: "/dev/a".into(),
        cluster_bytes: None,
        cluster: None,
    };
    let lost = || engine_api::ApiError::new(ErrorKind::Unavailable, "lost");
    sim.fail_next("create_pool", When::BeforeEffect, lost());
    sim.fail_next("create_pool", When::AfterEffect, lost());
    assert_eq!(sim.create_pool(Call::plain(), request.clone()).await, Err(lost()));
    assert_eq!(sim.list_pools().await, Ok(vec![]));
    assert_eq!(sim.create_pool(Call::plain(), request.clone()).await, Err(lost()));
    assert_eq!(sim.list_pools().await.map(|pools| pools.len()), Ok(1));
    let again = sim.create_pool(Call::plain(), request).await.expect_err("it is there");
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    assert_eq!(sim.take_calls(), ["create_pool"; 3]);
}
