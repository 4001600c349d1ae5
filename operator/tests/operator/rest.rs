//! A running operator with its servers, called by the typed client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use control_api::{
    AffinityGroup, CapacityBody, Client, CreatePoolBody, CreateVolumeBody, ErrorKind, ExplicitNodeTopology,
    LabelledTopology, NodeStatus, NodeTopology, PoolTopology, PublishVolumeBody, RegisterAppNode, Republish,
    SpecStatus, Topology, VolumePolicy, VolumeStatus,
};
use operator::grpc::registration::Front;
use operator::leader::{TermParts, lead};
use operator::reconcile::ReconcileSettings;
use operator::rest;
use store::Store;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::lab::{DISK, GIB, Lab, keys, settings};

const V: Uuid = Uuid::from_u128(7);

/// An operator that leads, registration over real gRPC, REST over real HTTP.
struct Running {
    lab: Lab,
    client: Client,
    address: SocketAddr,
    registration: String,
    _stop: DropGuard,
}

impl Running {
    async fn start(nodes: &[&'static str]) -> Self {
        let lab = Lab::new(nodes);
        let stop = CancellationToken::new();
        let (sender, terms) = watch::channel(None);
        let parts = TermParts {
            store: Arc::new(lab.store.clone()) as Arc<dyn Store>,
            keys: keys(),
            connector: Arc::new(lab.cluster.clone()),
            instance_name: "rest".into(),
            lease_ttl: Duration::from_secs(30),
            page_limit: 100,
            companions: Vec::new(),
            core: settings(),
            reconcile: ReconcileSettings {
                refresh: Duration::from_millis(200),
                ..ReconcileSettings::default()
            },
        };
        tokio::spawn(lead(parts, sender, stop.clone()));
        let rest = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = rest.local_addr().unwrap();
        let shutdown = stop.clone();
        let router = rest::router(terms.clone());
        tokio::spawn(async move {
            axum::serve(rest, router).with_graceful_shutdown(shutdown.cancelled_owned()).await.unwrap();
        });
        let grpc = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registration = grpc.local_addr().unwrap().to_string();
        let told = registration.clone();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(grpc);
        let service = engine_api::registration::service(Arc::new(Front::new(terms)));
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
        let beats = lab.nodes.iter().map(|node| lab.engine(node)).collect::<Vec<_>>();
        tokio::spawn(async move {
            let timeout = Duration::from_secs(5);
            let client = engine_api::registration::RegistrationClient::new(&registration, timeout).unwrap();
            let mut ticks = tokio::time::interval(Duration::from_millis(100));
            loop {
                ticks.tick().await;
                for engine in beats.iter().filter(|engine| engine.is_running()) {
                    let _ = client.register(engine.node_info()).await;
                }
            }
        });
        let client = Client::new(format!("http://{address}"), Duration::from_secs(20)).unwrap();
        let running = Self { lab, client, address, registration: told, _stop: stop.drop_guard() };
        let count = nodes.len();
        running
            .until("all nodes online", async |client| {
                let Ok(nodes) = client.nodes().await else { return false };
                let online = |node: &control_api::Node| {
                    node.state.as_ref().is_some_and(|state| state.status == NodeStatus::Online)
                };
                nodes.iter().filter(|node| online(node)).count() == count
            })
            .await;
        running
    }

    async fn until(&self, what: &str, holds: impl AsyncFn(&Client) -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while !holds(&self.client).await {
            assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn two_replicas() -> CreateVolumeBody {
    CreateVolumeBody {
        policy: VolumePolicy { self_heal: true },
        replicas: 2,
        size: GIB,
        thin: true,
        topology: None,
        affinity_group: None,
        labels: None,
    }
}

fn disk() -> CreatePoolBody {
    CreatePoolBody { disks: vec![DISK.into()], ..CreatePoolBody::default() }
}

#[tokio::test]
async fn a_volume_lives_its_whole_life_over_rest() {
    let running = Running::start(&["a", "b"]).await;
    let client = &running.client;
    let devices = client.block_devices("a", false).await.unwrap();
    assert_eq!(devices.iter().map(|device| device.devname.as_str()).collect::<Vec<_>>(), [DISK]);
    for (node, id) in [("a", "pool-a"), ("b", "pool-b")] {
        let pool = client.create_pool(node, id, &disk()).await.unwrap();
        assert_eq!(pool.spec.unwrap().status, SpecStatus::Created);
    }
    assert_eq!(client.block_devices("a", false).await.unwrap(), [], "it is taken now");

    let kind = CapacityBody {
        replicas: 2,
        thin: false,
        topology: None,
        node: None,
        node_labels: Default::default(),
    };
    let room = client.capacity(&kind).await.unwrap();
    let body = two_replicas();
    let volume = client.create_volume(V, &body).await.unwrap();
    assert_eq!((volume.spec.status, volume.state.status), (SpecStatus::Created, VolumeStatus::Online));
    assert_eq!(volume.state.replica_topology.len(), 2);
    let largest = CreateVolumeBody { size: room.maximum_volume_size, thin: false, ..body.clone() };
    client.destroy_volume(V).await.unwrap();
    client.create_volume(V, &largest).await.unwrap();
    let left = client.capacity(&kind).await.unwrap();
    assert_eq!(left.maximum_volume_size, 0, "at once, not when the pools are listed again");
    let is_left = async |bytes: u64| {
        let is_seen =
            async |client: &Client| client.capacity(&kind).await.unwrap().maximum_volume_size == bytes;
        running.until("the pools to say so", is_seen).await;
    };
    client.destroy_volume(V).await.unwrap();
    is_left(room.maximum_volume_size).await;
    let too_large = CreateVolumeBody { size: largest.size + (1 << 20), ..largest };
    let error = client.create_volume(V, &too_large).await.unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::ResourceExhausted), "{error}");
    client.cordon_node("b", "full").await.unwrap();
    let half = client.capacity(&kind).await.unwrap();
    assert_eq!((half.available * 2, half.maximum_volume_size), (room.available, 0), "b takes nothing now");
    client.uncordon_node("b", "full").await.unwrap();
    client.create_volume(V, &body).await.unwrap();
    let publish = PublishVolumeBody { frontend_node: Some("host".into()), ..PublishVolumeBody::default() };
    let published = client.publish_volume(V, &publish).await.unwrap();
    let target = published.spec.target.unwrap();
    assert_eq!(target.allowed_hosts.clone().unwrap(), ["nqn.2019-05.io.openebs:node-name:host"]);
    let served = published.state.target.unwrap();
    assert!(served.device_uri.contains(&V.to_string()), "{}", served.device_uri);
    assert_eq!(client.nexuses().await.unwrap().len(), 1);
    assert_eq!(client.replicas().await.unwrap().len(), 2);
    let specs = client.specs().await.unwrap();
    assert_eq!(
        (specs.pools.len(), specs.replicas.len(), specs.nexuses.len(), specs.volumes.len()),
        (2, 2, 1, 1)
    );

    let grown = client.resize_volume(V, body.size + (1 << 20)).await.unwrap();
    assert_eq!((grown.spec.size, grown.state.size), (body.size + (1 << 20), body.size + (1 << 20)));
    assert_eq!(grown.state.target.map(|nexus| nexus.size), Some(body.size + (1 << 20)));
    client.resize_volume(V, body.size + (1 << 20)).await.unwrap();
    let shrunk = client.resize_volume(V, body.size).await.unwrap_err();
    assert_eq!(shrunk.kind(), Some(ErrorKind::InvalidArgument), "{shrunk}");
    let too_large = client.resize_volume(V, 1 << 50).await.unwrap_err();
    assert_eq!(too_large.kind(), Some(ErrorKind::ResourceExhausted), "{too_large}");

    running.lab.engine("b").kill();
    running
        .until("degraded, with the reason", async |client| {
            let state = client.volume(V).await.unwrap().state;
            state.status == VolumeStatus::Degraded
                && state.reasons.iter().any(|reason| reason.contains("replica"))
        })
        .await;
    running.lab.engine("b").start();
    running
        .until("healed", async |client| client.volume(V).await.unwrap().state.status == VolumeStatus::Online)
        .await;

    let asked = |host: &str| Republish {
        frontend_host: host.into(),
        target_node: None,
        replaces: target.uuid,
        reuse_existing: false,
        reuse_existing_fallback: false,
    };
    let stranger = client.republish_volume(V, &asked("stranger")).await.unwrap_err();
    assert_eq!(stranger.kind(), Some(ErrorKind::PermissionDenied), "{stranger}");
    let first = client.republish_volume(V, &asked("host")).await.unwrap();
    let moved = first.spec.target.clone().unwrap();
    assert!(moved.node != target.node && moved.uuid != target.uuid);
    assert_eq!(first.state.target.as_ref().map(|nexus| nexus.uuid), moved.uuid, "it serves");
    let again = client.republish_volume(V, &asked("host")).await.unwrap();
    assert_eq!(again.spec.target, Some(moved.clone()), "already replaced");
    client.destroy_shutdown_targets(V, &[]).await.unwrap();
    client.destroy_shutdown_targets(V, &["[::1]:8420".into(), "10.0.0.9:8420".into()]).await.unwrap();
    running.until("one target", async |client| client.nexuses().await.unwrap().len() == 1).await;
    let back = PublishVolumeBody { node: Some(target.node.clone()), ..publish.clone() };
    let moving = client.publish_volume(V, &back).await.unwrap().spec;
    assert_eq!(moving.operation.as_deref(), Some("Move"));
    let standby = moving.moving.unwrap();
    assert!(standby.node == target.node && standby.device_uri.is_some(), "{standby:?}");
    client.report_path(V, standby.uuid, "host").await.unwrap();
    let here = Some(standby.uuid);
    running
        .until("moved", async |client| {
            let spec = client.volume(V).await.unwrap().spec;
            spec.operation.is_none() && spec.target.is_some_and(|target| target.uuid == here)
        })
        .await;

    client.unpublish_volume(V, false).await.unwrap();
    client.set_replica_count(V, 1).await.unwrap();
    client.destroy_volume(V).await.unwrap();
    client.destroy_pool("pool-a").await.unwrap();
    assert_eq!(client.volumes().await.unwrap().entries, []);
}

#[tokio::test]
async fn refusals_carry_their_kind_their_status_and_the_reason() {
    let running = Running::start(&["a"]).await;
    let client = &running.client;
    client.create_pool("a", "pool-a", &disk()).await.unwrap();
    let unknown = Uuid::from_u128(99);
    let table = [
        (client.volume(unknown).await.map(drop), 404, ErrorKind::NotFound, "volume"),
        (client.create_pool("a", "pool-a", &disk()).await.map(drop), 422, ErrorKind::AlreadyExists, "exists"),
        (client.create_pool("x", "p", &disk()).await.map(drop), 404, ErrorKind::NotFound, "node x"),
        (
            client.create_volume(V, &two_replicas()).await.map(drop),
            507,
            ErrorKind::ResourceExhausted,
            "node_unused",
        ),
        (client.unpublish_volume(unknown, false).await.map(drop), 404, ErrorKind::NotFound, "does not exist"),
        (client.uncordon_node("a", "l").await.map(drop), 412, ErrorKind::FailedPrecondition, "not cordoned"),
    ];
    for (outcome, status, kind, text) in table {
        let Err(control_api::ClientError::Refused { status: found, error }) = outcome else {
            panic!("{outcome:?} should be {kind:?}");
        };
        assert_eq!((found, error.kind), (status, kind), "{error:?}");
        assert!(error.message.contains(text) || error.details.contains(text), "{error:?}");
    }
    client.cordon_node("a", "upgrade").await.unwrap();
    let mut one = two_replicas();
    one.replicas = 1;
    let error = client.create_volume(V, &one).await.unwrap_err();
    assert!(error.to_string().contains("cordoned by upgrade"), "{error}");
    client.uncordon_node("a", "upgrade").await.unwrap();
    let elsewhere = ExplicitNodeTopology { allowed_nodes: vec!["b".into()], preferred_nodes: vec![] };
    one.topology =
        Some(Topology { node_topology: Some(NodeTopology::Explicit(elsewhere)), pool_topology: None });
    let error = client.create_volume(V, &one).await.unwrap_err();
    assert!(error.to_string().contains("node_allowed"), "{error}");
}

/// Without Kubernetes a node has the zone that somebody gives it.
#[tokio::test]
async fn replicas_are_spread_over_zones_that_were_given_over_rest() {
    const ZONE: &str = "topology.kubernetes.io/zone";
    let running = Running::start(&["a", "b", "c"]).await;
    let client = &running.client;
    for (node, zone) in [("a", "1"), ("b", "1"), ("c", "2")] {
        client.create_pool(node, &format!("pool-{node}"), &disk()).await.unwrap();
        let labelled = client.label_node(node, ZONE, zone, false).await.unwrap();
        assert_eq!(labelled.spec.unwrap().labels[ZONE], zone);
    }
    let other = client.label_node("a", ZONE, "3", false).await.unwrap_err();
    assert_eq!(other.kind(), Some(ErrorKind::FailedPrecondition), "{other}");
    let spread = LabelledTopology {
        exclusion: [(ZONE.to_owned(), String::new())].into(),
        ..LabelledTopology::default()
    };
    let topology = Topology { node_topology: Some(NodeTopology::Labelled(spread)), pool_topology: None };
    let body = CreateVolumeBody { topology: Some(topology), ..two_replicas() };
    let volume = client.create_volume(V, &body).await.unwrap();
    let nodes: Vec<_> =
        volume.state.replica_topology.values().filter_map(|replica| replica.node.as_deref()).collect();
    assert!(nodes.contains(&"c"), "{nodes:?}");
    let error = client.set_replica_count(V, 3).await.unwrap_err();
    assert!(error.to_string().contains("node_spread"), "{error}");
    client.label_node("a", ZONE, "3", true).await.unwrap();
    client.label_node("b", ZONE, "4", true).await.unwrap();
    client.set_replica_count(V, 3).await.unwrap();
    assert_eq!(client.unlabel_node("a", ZONE).await.unwrap().spec.unwrap().labels, [].into());
    let twice = client.unlabel_node("a", ZONE).await.unwrap_err();
    assert_eq!(twice.kind(), Some(ErrorKind::FailedPrecondition), "{twice}");
}

#[tokio::test]
async fn replicas_keep_to_pools_with_one_value_of_a_label_or_to_different_ones() {
    let running = Running::start(&["a", "b", "c"]).await;
    let client = &running.client;
    for (node, rack) in [("a", "1"), ("b", "2"), ("c", "1")] {
        let labels = Some([("rack".to_owned(), rack.to_owned())].into());
        let body = CreatePoolBody { labels, ..disk() };
        client.create_pool(node, &format!("pool-{node}"), &body).await.unwrap();
    }
    let rack = || vec!["rack".to_owned()];
    let gathered = LabelledTopology { affinitykey: rack(), ..LabelledTopology::default() };
    let spread = LabelledTopology {
        exclusion: rack().into_iter().map(|key| (key, String::new())).collect(),
        ..LabelledTopology::default()
    };
    for (pools, allowed, rule) in [
        (gathered, [["a", "c"], ["a", "c"]], "pool_affinity"),
        (spread, [["a", "b"], ["b", "c"]], "pool_spread"),
    ] {
        let topology = Topology { node_topology: None, pool_topology: Some(PoolTopology::Labelled(pools)) };
        let body = CreateVolumeBody { topology: Some(topology.clone()), ..two_replicas() };
        let volume = client.create_volume(V, &body).await.unwrap();
        let replicas = volume.state.replica_topology.values();
        let mut nodes: Vec<_> = replicas.filter_map(|replica| replica.node.as_deref()).collect();
        nodes.sort_unstable();
        assert!(allowed.iter().any(|pair| nodes == pair), "{rule}: {nodes:?}");
        assert_eq!(volume.spec.topology, Some(topology), "shown as it was asked for");
        let error = client.set_replica_count(V, 3).await.unwrap_err();
        assert!(error.to_string().contains(rule), "{error}");
        client.destroy_volume(V).await.unwrap();
    }
}

#[tokio::test]
async fn volumes_of_a_group_are_apart_and_show_it() {
    let running = Running::start(&["a", "b"]).await;
    let client = &running.client;
    for node in ["a", "b"] {
        client.create_pool(node, &format!("pool-{node}"), &disk()).await.unwrap();
    }
    let group = Some(AffinityGroup { id: "shop/db".into() });
    let body = CreateVolumeBody { replicas: 1, affinity_group: group.clone(), ..two_replicas() };
    for n in 1..=2 {
        let volume = client.create_volume(Uuid::from_u128(n), &body).await.unwrap();
        assert_eq!(volume.spec.affinity_group, group);
    }
    let third = client.create_volume(Uuid::from_u128(3), &body).await.unwrap_err();
    assert_eq!(third.kind(), Some(ErrorKind::ResourceExhausted), "{third}");
    assert!(third.to_string().contains("affinity group shop/db"), "{third}");
    let unnamed = CreateVolumeBody { affinity_group: Some(AffinityGroup { id: String::new() }), ..body };
    let unnamed = client.create_volume(Uuid::from_u128(3), &unnamed).await.unwrap_err();
    assert_eq!(unnamed.kind(), Some(ErrorKind::InvalidArgument), "{unnamed}");
}

#[tokio::test]
async fn what_cannot_be_read_is_told_in_the_same_form() {
    let running = Running::start(&["a"]).await;
    let http = reqwest::Client::new();
    let base = format!("http://{}", running.address);
    for (request, status) in [
        (http.get(format!("{base}/v0/volumes/nonsense")), 400),
        (
            http.put(format!("{base}/v0/volumes/{V}")).header("content-type", "application/json").body("{"),
            400,
        ),
        (http.put(format!("{base}/v0/volumes/{V}")).body("size=1"), 400),
        (http.get(format!("{base}/v0/nothing")), 404),
    ] {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status);
        let error: control_api::RestJsonError = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert!(!error.message.is_empty());
    }
}

#[tokio::test]
async fn a_follower_answers_that_it_does_not_lead() {
    let (_sender, terms) = watch::channel(None);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, rest::router(terms)).await.unwrap() });
    let client = Client::new(format!("http://{address}"), Duration::from_secs(5)).unwrap();
    let error = client.nodes().await.unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::Unavailable), "{error}");
    // Behind a Service, the next connection finds the leader; this one never would.
    let refused = reqwest::get(format!("http://{address}/v0/nodes")).await.unwrap();
    assert_eq!(refused.headers()["connection"], "close");
    let ready = reqwest::get(format!("http://{address}/ready")).await.unwrap();
    assert_eq!(ready.status().as_u16(), 503);
    assert_eq!(reqwest::get(format!("http://{address}/live")).await.unwrap().status().as_u16(), 200);
}

/// Every path the client calls is in the document, and the document is an OpenAPI v3 one.
#[tokio::test]
async fn the_openapi_document_is_made_from_the_handlers_and_served() {
    let running = Running::start(&[]).await;
    let served =
        reqwest::get(format!("http://{}/v0/api/spec", running.address)).await.unwrap().text().await.unwrap();
    let document: serde_json::Value = serde_json::from_str(&served).unwrap();
    assert_eq!(document, rest::document());
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.")));
    for path in [
        "/v0/nodes/{id}/block_devices",
        "/v0/volumes/{id}/target",
        "/v0/volumes/{id}/shutdown_targets",
        "/v0/volumes/{id}/paths/{nexus}",
        "/v0/pools/{id}",
        "/v0/specs",
    ] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
    assert!(document["components"]["schemas"]["Volume"].is_object());
    // Whoever reads a list knows how long it may be.
    for path in ["/v0/nodes", "/v0/pools", "/v0/nexuses", "/v0/replicas", "/v0/volumes"] {
        let limit = &document["paths"][path]["get"]["parameters"][0];
        assert!(limit["name"] == "max_entries" && limit["description"].is_string(), "{path}: {limit}");
    }
}

#[tokio::test]
async fn application_nodes_register_are_listed_page_by_page_and_outlive_the_leader() {
    let running = Running::start(&[]).await;
    let client = &running.client;
    let spec = |endpoint: &str| RegisterAppNode { endpoint: endpoint.into(), labels: None };
    for node in ["a", "b", "c"] {
        client.register_app_node(node, &spec("10.0.0.1:10199")).await.unwrap();
        client.register_app_node(node, &spec("10.0.0.2:10199")).await.unwrap();
    }
    assert_eq!(client.app_node("b").await.unwrap().spec.endpoint, "10.0.0.2:10199");
    let page = client.app_nodes_page(2, 0).await.unwrap();
    let ids =
        |page: &control_api::AppNodes| page.entries.iter().map(|node| node.id.clone()).collect::<Vec<_>>();
    assert_eq!((ids(&page), page.next_token), (vec!["a".to_owned(), "b".to_owned()], Some(2)));
    let page = client.app_nodes_page(2, 2).await.unwrap();
    assert_eq!((ids(&page), page.next_token), (vec!["c".to_owned()], None));
    client.deregister_app_node("b").await.unwrap();
    client.deregister_app_node("b").await.unwrap();
    let gone = client.app_node("b").await.unwrap_err();
    assert_eq!(gone.kind(), Some(ErrorKind::NotFound), "{gone}");
    let nameless = client.register_app_node("d", &spec("")).await.unwrap_err();
    assert_eq!(nameless.kind(), Some(ErrorKind::InvalidArgument), "{nameless}");
    let next = running.lab.operator().await;
    assert_eq!(next.core.app_nodes().list().len(), 2);
}

/// Kubernetes allows names that NVMe has no room for: who comes with one is told so, before a volume fails by it.
#[tokio::test]
async fn a_node_whose_name_no_nqn_has_room_for_is_refused_wherever_it_is_named() {
    let running = Running::start(&["a"]).await;
    let client = &running.client;
    let (longest, longer) = ("n".repeat(190), "n".repeat(191));
    let says_so = |text: String| assert!(text.contains("190 bytes at most and this one has 191"), "{text}");

    let timeout = Duration::from_secs(5);
    let engines = engine_api::registration::RegistrationClient::new(&running.registration, timeout).unwrap();
    let info = |node: &str, host_nqn: Option<&str>| engine_api::NodeInfo {
        node: node.into(),
        host_nqn: host_nqn.map(str::to_owned),
        ..running.lab.engine("a").node_info()
    };
    let refused = engines.register(info(&longer, None)).await.unwrap_err();
    assert_eq!(refused.kind(), engine_api::ErrorKind::InvalidArgument, "{refused}");
    says_so(refused.to_string());
    engines.register(info(&longest, None)).await.unwrap();
    engines.register(info(&longer, Some("nqn.2019-05.io.openebs:node-name:short"))).await.unwrap();
    let too_long = format!("nqn.2019-05.io.openebs:node-name:{longer}");
    let refused = engines.register(info("b", Some(&too_long))).await.unwrap_err();
    assert!(refused.to_string().contains("an NQN has at most 223 bytes"), "{refused}");

    let spec = RegisterAppNode { endpoint: "10.0.0.1:10199".into(), labels: None };
    let refused = client.register_app_node(&longer, &spec).await.unwrap_err();
    assert_eq!(refused.kind(), Some(ErrorKind::InvalidArgument), "{refused}");
    says_so(refused.to_string());
    client.register_app_node(&longest, &spec).await.unwrap();

    let publish = PublishVolumeBody { frontend_node: Some(longer), ..PublishVolumeBody::default() };
    let refused = client.publish_volume(V, &publish).await.unwrap_err();
    assert_eq!(refused.kind(), Some(ErrorKind::InvalidArgument), "{refused}");
    says_so(refused.to_string());
}

/// A token that is a place in the list would miss one whenever one before it goes.
#[tokio::test]
async fn xc_19_pages_after_a_volume_miss_none_although_it_goes_meanwhile() {
    let running = Running::start(&["a"]).await;
    let client = &running.client;
    client.create_pool("a", "pool-a", &disk()).await.unwrap();
    let body = CreateVolumeBody { replicas: 1, size: 1 << 20, ..two_replicas() };
    let ids: Vec<Uuid> = (1..=5).map(Uuid::from_u128).collect();
    for id in &ids {
        client.create_volume(*id, &body).await.unwrap();
    }
    let first = client.volumes_after(2, None).await.unwrap();
    let last = first.entries.last().unwrap().spec.uuid;
    assert_eq!((last, first.next_token.is_some()), (ids[1], true));
    for id in &ids[..2] {
        client.destroy_volume(*id).await.unwrap();
    }
    let second = client.volumes_after(2, Some(last)).await.unwrap();
    let found: Vec<Uuid> = second.entries.iter().map(|volume| volume.spec.uuid).collect();
    assert_eq!(found, ids[2..4]);
    let third = client.volumes_after(2, Some(ids[3])).await.unwrap();
    assert_eq!((third.entries.len(), third.next_token), (1, None));
    assert_eq!(client.volumes().await.unwrap().entries.len(), 3);
    let by_token = client.volumes_page(2, 2).await.unwrap();
    assert_eq!((by_token.entries.len(), by_token.next_token), (1, None));
}
