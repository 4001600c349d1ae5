//! The program `engine-client` against an engine in memory: what a person reads and what a script does.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;

use engine_api::sim::{DiskContent, SimCluster, SimEngine};
use engine_api::{Call, Engine as _, server};
use tokio_stream::wrappers::TcpListenerStream;
use uuid::Uuid;

const P1: &str = "11111111-1111-4111-8111-111111111111";
const R1: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const R2: &str = "aaaaaaaa-0000-4000-8000-000000000002";
const V1: &str = "bbbbbbbb-0000-4000-8000-000000000001";

/// An engine behind a gRPC server, and the program pointed at it.
struct Shell {
    cluster: SimCluster,
    engine: SimEngine,
    address: SocketAddr,
}

impl Shell {
    async fn start() -> Self {
        let cluster = SimCluster::new();
        let engine = cluster.add_node("n1", Ipv4Addr::new(10, 0, 0, 1).into());
        engine.add_disk("/dev/sdb", 256 << 20, DiskContent::Blank);
        engine.add_disk("/dev/sdc", 1 << 40, DiskContent::Foreign("ext4".into()));
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let routes = server::routes(Arc::new(engine.clone()));
        let server = tonic::transport::Server::builder().add_routes(routes);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { cluster, engine, address }
    }

    /// Runs the program; exit code, standard output, standard error with the engine's address replaced.
    fn run(&self, line: &str) -> (i32, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_engine-client"))
            .env("ENGINE_CLIENT_BIND", self.address.to_string())
            .args(line.split(' '))
            .output()
            .expect("the program was built");
        let text =
            |bytes| String::from_utf8(bytes).expect("text").replace(&self.address.to_string(), "ADDRESS");
        (output.status.code().expect("it ended by itself"), text(output.stdout), text(output.stderr))
    }

    #[track_caller]
    fn prints(&self, line: &str, expected: &str) {
        let (code, out, error) = self.run(line);
        assert_eq!((code, error.as_str()), (0, ""), "engine-client {line}");
        assert_eq!(out, expected.trim_start_matches('\n'), "engine-client {line} printed\n{out}");
    }

    #[track_caller]
    fn succeeds(&self, line: &str) -> String {
        let (code, out, error) = self.run(line);
        assert_eq!((code, error.as_str()), (0, ""), "engine-client {line}");
        out
    }

    #[track_caller]
    fn fails(&self, line: &str, expected: &str) {
        let (code, out, error) = self.run(line);
        assert_eq!((code, out.as_str()), (1, ""), "engine-client {line}");
        assert_eq!(error, expected.trim_start_matches('\n'), "engine-client {line} said\n{error}");
    }

    /// Two replicas under a nexus.
    fn mirror(&self) {
        self.succeeds(&format!("pool create p1 /dev/sdb --uuid {P1}"));
        self.succeeds(&format!("replica create r1 p1 64Mi --uuid {R1}"));
        self.succeeds(&format!("replica create r2 p1 64Mi --uuid {R2} --thin --share"));
        self.succeeds(&format!(
            "nexus create v1 50Mi bdev:///r1?uuid={R1} \
             nvmf+tcp://10.0.0.1:8420/nqn.2019-05.io.openebs:r2?uuid={R2} --uuid {V1}"
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_engine_says_what_to_do_first() {
    let shell = Shell::start().await;
    shell.prints(
        "pool list",
        "No pools are loaded. `host block-devices` lists disks, `pool create NAME DISK` makes one.\n",
    );
    shell.prints("replica list", "No replicas. `replica create NAME POOL SIZE` makes one.\n");
    shell.prints("nexus list", "No nexuses. `nexus create NAME SIZE CHILD...` makes one.\n");
    shell.prints("rebuild list", "No rebuilds run. `rebuild history` lists the finished ones.\n");
    shell.prints("-o json pool list", "[]\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_are_made_listed_and_removed() {
    let shell = Shell::start().await;
    let table = format!(
        "\
NAME  STATE   CAPACITY  USED  COMMITTED  DISK                                                      UUID
p1    online  248 MiB   0 B   0 B        aio:///dev/sdb?uuid={P1}  {P1}
"
    );
    shell.prints(&format!("pool create p1 /dev/sdb --uuid {P1} --cluster-size 4MiB"), &table);
    shell.prints("pool list", &table);
    let json: serde_json::Value =
        serde_json::from_str(&shell.succeeds("pool list -o json")).expect("a list as JSON");
    assert_eq!(json[0]["capacity_bytes"], 248 << 20);
    assert_eq!(json[0]["state"], "online");
    shell.prints("pool export p1", "pool p1 exported\n");
    shell.prints("pool import p1 /dev/sdb", &table);
    shell.prints("pool destroy p1 -o json", "{\n  \"pool\": \"p1\",\n  \"result\": \"destroyed\"\n}\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_made_shared_and_removed_by_name() {
    let shell = Shell::start().await;
    shell.succeeds(&format!("pool create p1 /dev/sdb --uuid {P1}"));
    shell.prints(
        &format!("replica create r1 p1 61Mi --thin --uuid {R1}"),
        &format!(
            "\
NAME  POOL  SIZE    USED  THIN  SHARED  URI
r1    p1    64 MiB  0 B   yes   no      bdev:///r1?uuid={R1}
"
        ),
    );
    shell.prints(
        "replica share r1 --allow-host nqn.2014-08.org.nvmexpress:h1",
        &format!(
            "\
NAME  POOL  SIZE    USED  THIN  SHARED  URI
r1    p1    64 MiB  0 B   yes   yes     nvmf+tcp://10.0.0.1:8420/nqn.2019-05.io.openebs:r1?uuid={R1}
"
        ),
    );
    let json: serde_json::Value =
        serde_json::from_str(&shell.succeeds("-o json replica unshare r1")).expect("an object as JSON");
    assert_eq!((&json["shared"], &json["size_bytes"]), (&false.into(), &(64 << 20).into()));
    shell.prints(&format!("replica destroy {R1} --pool p1"), &format!("replica {R1} destroyed\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_nexus_tells_how_to_connect() {
    let shell = Shell::start().await;
    shell.mirror();
    shell.prints(
        "nexus publish v1",
        &format!(
            "\
NAME  STATE   SIZE    PATH       TARGET                                                                                        UUID
v1    online  50 MiB  optimized  nvmf+tcp://10.0.0.1:8420/nqn.2019-05.io.openebs:v1?uuid={V1}  {V1}

NEXUS  CHILD                                                                                         STATE   REASON  REBUILD  SINCE
v1     bdev:///r1?uuid={R1}                                          online  -       -        -
v1     nvmf+tcp://10.0.0.1:8420/nqn.2019-05.io.openebs:r2?uuid={R2}  online  -       -        -

Connect a Linux host with:
  nvme connect -t tcp -a 10.0.0.1 -s 8420 -n nqn.2019-05.io.openebs:v1 --reconnect-delay=1 --ctrl-loss-tmo=-1
"
        ),
    );
    assert!(shell.succeeds("nexus unpublish v1").contains("unpublished"));
    assert!(shell.succeeds("nexus shutdown v1").contains("shutdown"));
    shell.prints(&format!("nexus destroy {V1}"), &format!("nexus {V1} destroyed\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_is_taken_out_brought_back_and_its_rebuild_watched() {
    let shell = Shell::start().await;
    shell.mirror();
    assert!(shell.succeeds("child offline v1 10.0.0.1").contains("degraded"));
    assert!(shell.succeeds("child online v1 r2?").contains("0 %"));
    let uri = format!("nvmf+tcp://10.0.0.1:8420/nqn.2019-05.io.openebs:r2?uuid={R2}");
    let nexus = V1.parse().expect("a uuid");
    shell.cluster.set_rebuild_percent(nexus, &uri, 40).expect("a rebuild runs");
    shell.prints(
        "rebuild list",
        &format!(
            "\
NEXUS  CHILD                                                                                         DONE  COPIES  COPIED  REMAINING  STARTED
v1     {uri}  40 %  whole   20 MiB  30 MiB     1970-01-01 00:00:00Z
"
        ),
    );
    shell.prints(
        &format!("rebuild stats v1 {R2}"),
        "
Done:           40 %
Copies:         whole
To go through:  50 MiB
Gone through:   20 MiB
Copied:         20 MiB
Remaining:      30 MiB
Steps:          1 of 16 running, 64 KiB each
Block size:     512 B
Started:        1970-01-01 00:00:00Z
",
    );
    shell.cluster.set_rebuild_percent(nexus, &uri, 100).expect("a rebuild runs");
    let history: serde_json::Value =
        serde_json::from_str(&shell.succeeds("-o json rebuild history --last 1")).expect("JSON");
    assert_eq!(history[0]["state"], "completed");
    assert!(shell.succeeds("rebuild history").contains("completed"));
    assert!(!shell.succeeds("child remove v1 r2?").contains(R2));
    assert!(shell.succeeds(&format!("child add v1 {uri} --no-rebuild")).contains(R2));
    assert!(shell.succeeds("child fault v1 r2?").contains("faulted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_is_shown() {
    let shell = Shell::start().await;
    shell.prints(
        "host block-devices --all",
        "\
DEVICE    TYPE  SIZE     FREE  HOLDS  MOUNTED AT  MODEL
/dev/sdb  disk  256 MiB  yes   -      -           -
/dev/sdc  disk  1 TiB    no    ext4   -           -
",
    );
    assert!(shell.succeeds("host info").starts_with("Node:"));
    assert!(shell.succeeds("host usage").starts_with("Page faults"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_names_cause_and_next_step() {
    let shell = Shell::start().await;
    shell.fails(
        "pool create p2 /dev/sdc",
        "
error: cannot create pool p2 on /dev/sdc: disk /dev/sdc is in use: it holds ext4
next:  `host block-devices` lists the disks that a pool can be made on; --all says what the others hold
",
    );
    shell.fails(
        "replica destroy r9",
        "
error: cannot find replica r9: no loaded pool has a replica of that name
next:  `replica list` shows names and uuids; `pool list` whether its pool is loaded
",
    );
    shell.mirror();
    shell.fails(
        "child remove v1 uuid",
        &format!(
            "
error: cannot find child uuid: 2 children of nexus v1 match
next:  name one of them: bdev:///r1?uuid={R1}, nvmf+tcp://10.0.0.1:8420/nqn.2019-05.io.openebs:r2?uuid={R2}
"
        ),
    );
    let (code, out, error) = shell.run("-o json nexus destroy v9");
    let json: serde_json::Value = serde_json::from_str(&error).expect("an error as JSON");
    assert_eq!((code, out.as_str(), &json["error"]["kind"]), (1, "", &"not_found".into()));
    let (code, _, error) = shell.run("replica create r3 p1 ten");
    assert!(code == 2 && error.contains("such as 10Gi"), "{error}");
}

/// Beside a control plane a change must be meant.
#[tokio::test(flavor = "multi_thread")]
async fn c3_a_driven_engine_is_changed_only_when_it_is_meant() {
    let shell = Shell::start().await;
    shell.mirror();
    let leader = Call::leader(Uuid::from_u128(7), 3);
    shell.engine.unpublish_nexus(leader, V1.parse().expect("a uuid")).await.expect("the leader is obeyed");
    let (code, _, error) = shell.run("nexus destroy v1");
    assert_eq!(code, 1);
    assert!(error.contains("revision 3") && error.contains("repeat with --unfenced"), "{error}");
    shell.prints("nexus destroy v1 --unfenced", "nexus v1 destroyed\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_not_there_is_named_with_its_address() {
    // An address of its own: on the usual one another test may get the port meanwhile.
    let nobody = std::net::TcpListener::bind((Ipv4Addr::new(127, 0, 0, 9), 0)).expect("a free port");
    let address = nobody.local_addr().expect("bound").to_string();
    drop(nobody);
    let shell = Shell::start().await;
    let (code, _, error) = shell.run(&format!("-b {address} pool list"));
    assert_eq!(code, 1);
    assert!(error.contains(&address) && error.contains("refused") && error.contains("--bind"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn help_teaches_with_examples() {
    let shell = Shell::start().await;
    let help = shell.succeeds("--help");
    for part in ["Examples:", "pool create p1 /dev/sdb", "ENGINE_CLIENT_BIND", "--unfenced"] {
        assert!(help.contains(part), "{part} in {help}");
    }
}
