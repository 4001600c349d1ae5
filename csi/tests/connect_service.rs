//! The NvmeConnect service over its unix socket, on a kernel in memory; targets are real listeners, since they are
//! probed first.

// A test that cannot set up has failed.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use csi::host::kernel::Served;
use csi::host::memory::MemoryNvme;
use csi::host::target::answering;
use csi::host::{ControllerState, HostIdentity, Nvme as _, Unfit};
use csi::node::{Initiator, NvmeClient, NvmeService, Settings};
use nvme::ana::AnaState;
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Code;
use uuid::Uuid;

const NQN: &str = "nqn.2019-05.io.openebs:0f1c3a52-9a9e-4b0c-8a37-6c2b8f0f6b11";
const LIMIT: Duration = Duration::from_secs(20);

struct Lab {
    host: MemoryNvme,
    client: NvmeClient,
    _folder: TempDir,
}

impl Lab {
    fn new() -> Self {
        let host = MemoryNvme::default();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("nvme.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let attach_limit = Duration::from_millis(300);
        let settings =
            Settings { attach_limit, ..Settings::new(HostIdentity::of_node("node-1").expect("a name")) };
        let initiator = Initiator::new(Arc::new(host.clone()), settings);
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(NvmeService::server(initiator))
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        Self { host, client: NvmeClient::new(&socket).unwrap(), _folder: folder }
    }

    async fn connect(&self, address: SocketAddr) -> Result<csi::proto::ConnectReply, tonic::Status> {
        self.client.connect(&format!("nvmf://{address}/{NQN}"), HashMap::new(), LIMIT).await
    }
}

fn served() -> Served {
    Served { uuid: Uuid::from_u128(7), ana: AnaState::Optimized, cntlid: 1 }
}

#[tokio::test]
async fn a_connect_sets_the_time_out_of_its_path_and_can_be_repeated() {
    let lab = Lab::new();
    let address = answering().await;
    lab.host.kernel().serve(address, NQN, served());
    let reply = lab.connect(address).await.unwrap();
    let controller = reply.controller.unwrap();
    assert!(!reply.existed);
    assert_eq!((controller.state.as_str(), controller.address), ("live", address.to_string()));
    let shown = &lab.host.controllers().unwrap()[0];
    assert_eq!(shown.paths[0].io_timeout, Some(Duration::from_secs(2)));

    let again = lab.connect(address).await.unwrap();
    assert!(again.existed);
    assert_eq!(lab.host.controllers().unwrap().len(), 1);
    assert_eq!(lab.client.list(NQN, LIMIT).await.unwrap().len(), 1);
    assert_eq!(lab.client.list("nqn.other", LIMIT).await.unwrap().len(), 0);

    assert_eq!(lab.client.disconnect(NQN, Some("127.0.0.1:1".parse().unwrap()), LIMIT).await.unwrap(), 0);
    assert_eq!(lab.client.disconnect(NQN, None, LIMIT).await.unwrap(), 1);
    assert_eq!(lab.client.disconnect(NQN, None, LIMIT).await.unwrap(), 0);
}

/// The kernel connects one at a time: what is not there must not be asked for.
#[tokio::test]
async fn an_absent_target_is_not_asked_for_through_the_kernel() {
    let lab = Lab::new();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert_eq!(lab.connect(gone).await.unwrap_err().code(), Code::NotFound);
    let frozen = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let status = lab.connect(frozen.local_addr().unwrap()).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(lab.host.kernel().connects(), 0);
}

#[tokio::test]
async fn a_target_that_does_not_serve_the_volume_is_not_found() {
    let lab = Lab::new();
    let address = answering().await;
    lab.host.kernel().serve(address, "nqn.2019-05.io.openebs:other", served());
    assert_eq!(lab.connect(address).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(lab.host.controllers().unwrap(), []);
}

#[tokio::test]
async fn a_machine_that_cannot_connect_says_what_to_do() {
    let lab = Lab::new();
    lab.host.set_unfit(Some(Unfit::Transport));
    let status = lab.connect(answering().await).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("modprobe nvme_tcp"), "{status}");
    let status = lab.client.connect("nvmf://nowhere", HashMap::new(), LIMIT).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

/// A controller without a namespace is of no use to anybody: it goes, and the error says what was seen.
#[tokio::test]
async fn a_controller_whose_namespace_never_comes_is_taken_back() {
    let lab = Lab::new();
    let address = answering().await;
    lab.host.kernel().serve(address, NQN, served());
    lab.host.kernel().hold_scan(address, true);
    let status = lab.connect(address).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("live, 0 namespaces"), "{status}");
    wait_until_empty(&lab.host).await;
    // One that was there before stays, whatever becomes of it.
    lab.host.kernel().hold_scan(address, false);
    lab.connect(address).await.unwrap();
    lab.host.kernel().set_state(address, ControllerState::Connecting);
    assert_eq!(lab.connect(address).await.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(lab.host.controllers().unwrap().len(), 1);
}

/// Two calls for one subsystem would undo each other's work.
#[tokio::test]
async fn one_call_at_a_time_is_at_work_on_a_subsystem() {
    let lab = Lab::new();
    let address = answering().await;
    lab.host.kernel().serve(address, NQN, served());
    lab.host.kernel().hold_connects(true);
    let (client, uri) = (lab.client.clone(), format!("nvmf://{address}/{NQN}"));
    let first = tokio::spawn(async move { client.connect(&uri, HashMap::new(), LIMIT).await });
    let deadline = tokio::time::Instant::now() + LIMIT;
    while lab.host.kernel().connects() == 0 {
        assert!(tokio::time::Instant::now() < deadline, "the first connect does not come to the kernel");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(lab.connect(address).await.unwrap_err().code(), Code::Aborted);
    lab.host.kernel().hold_connects(false);
    assert!(!first.await.unwrap().unwrap().existed);
}

async fn wait_until_empty(host: &MemoryNvme) {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        let left = host.controllers().unwrap();
        if left.is_empty() {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{left:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
