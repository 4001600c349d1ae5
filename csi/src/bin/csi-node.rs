//! The node plugin: volumes for kubelet, and connections for the HA agent beside it.

#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use control_api::{Client, RegisterAppNode};
use csi::host::mount::linux::LinuxMounts;
use csi::host::{HostIdentity, Mounts, Nvme as _, SysfsNvme};
use csi::identity::IdentityService;
use csi::node::leftovers::tidy_up;
use csi::node::metrics::Metrics;
use csi::node::registration::keep_registered;
use csi::node::shutdown::{Patience, goes_down, release_volumes};
use csi::node::{FreezeService, Initiator, NodePlugin, NvmeService, Settings};
use csi::server::listen;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

/// More than this, and a reset of a silent controller keeps a failover's cleaning up waiting.
const ADMIN_TIMEOUT_MAX: Duration = Duration::from_secs(10);
/// Limit on a call of the control plane.
const REST_LIMIT: Duration = Duration::from_secs(4);
/// Kubernetes gives a pod 30 s to end; more than this for volumes, and the rest is cut off. A target that dies has moved
/// within ten.
const PATIENCE: Patience = Patience { in_use: Duration::from_secs(20), lost: Duration::from_secs(10) };

/// The CSI node plugin of Mayastor.
///
/// Connects this host's kernel to volumes over NVMe/TCP, makes their file systems and mounts them.
#[derive(Debug, Parser)]
#[command(name = "csi-node", version)]
struct Args {
    /// Name of this node, as the control plane knows it.
    #[arg(long, env = "MY_NODE_NAME")]
    node_name: String,
    /// Host identifier, where another than the one derived from the node's name is wanted. Keep it for ever: it is the
    /// host's identity to reservations.
    #[arg(long)]
    host_id: Option<Uuid>,
    /// Unix socket to serve CSI on, for kubelet.
    #[arg(long, env = "CSI_ENDPOINT", default_value = "/csi/csi.sock")]
    csi_socket: String,
    /// Unix socket of the NvmeConnect service.
    #[arg(long, default_value = "/var/run/mayastor/nvme.sock")]
    nvme_socket: PathBuf,
    /// I/O queues of a volume, a TCP connection each; by default as many as processors, four at most.
    #[arg(long)]
    nvme_nr_io_queues: Option<u32>,
    /// How long the kernel tries to reach a lost target, in seconds; -1: for ever. When it gives up, a mounted file
    /// system is dead for good.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    nvme_ctrl_loss_tmo: i64,
    /// Keep-alive time-out, in seconds.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    nvme_keep_alive_tmo: u64,
    /// How long the kernel waits for a command before it takes the path for broken, in milliseconds.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(100..))]
    nvme_io_timeout_ms: u64,
    /// Where the operator serves REST, for --enable-registration.
    #[arg(long, default_value = "http://127.0.0.1:8081")]
    rest_endpoint: String,
    /// Serve NodePlugin (freezing of file systems) on --grpc-ip and --grpc-port, and register there with the control
    /// plane as a node that uses volumes.
    #[arg(long)]
    enable_registration: bool,
    /// Address to serve NodePlugin on, and the one that the control plane is told.
    #[arg(long, env = "MY_POD_IP", default_value = "127.0.0.1")]
    grpc_ip: IpAddr,
    /// Port to serve NodePlugin on.
    #[arg(long, default_value_t = 10199)]
    grpc_port: u16,
    /// Socket of the machine's system bus: systemd is asked there whether the machine goes down. When it does, volumes
    /// are unmounted and disconnected, so that it reboots in seconds; where it cannot be asked nothing is done.
    #[arg(long, default_value = "/run/dbus/system_bus_socket")]
    system_bus: PathBuf,
    #[command(flatten)]
    metrics: telemetry::metrics::MetricsOptions,
    #[command(flatten)]
    log: telemetry::LogOptions,
}

impl Args {
    fn settings(&self) -> Result<Settings> {
        let host = HostIdentity::of_node(&self.node_name)
            .context("make an NVMe host name of --node-name")?
            .with_id(self.host_id);
        let mut settings = Settings::new(host);
        if let Some(queues) = self.nvme_nr_io_queues {
            settings.connect.io_queues = queues.max(1);
        }
        // What is below zero is for ever.
        settings.connect.controller_loss =
            u64::try_from(self.nvme_ctrl_loss_tmo).ok().map(Duration::from_secs);
        settings.connect.keep_alive = Duration::from_secs(self.nvme_keep_alive_tmo);
        settings.io_timeout = Duration::from_millis(self.nvme_io_timeout_ms);
        Ok(settings)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let _telemetry = telemetry::init(&telemetry::TelemetryOptions::new("csi-node", &args.log))?;
    let signal = telemetry::shutdown_requested()?;
    let settings = args.settings()?;
    let host = SysfsNvme::new("/");
    host.preflight().context("this machine cannot use volumes")?;
    if let Some(limit) = host.admin_timeout().filter(|limit| *limit > ADMIN_TIMEOUT_MAX) {
        warn!(
            "nvme_core.admin_timeout is {limit:?}: a silent controller takes as long to go away. Suggested: \
             `echo 10 >/sys/module/nvme_core/parameters/admin_timeout`, and nvme_core.admin_timeout=10 on the kernel's \
             command line"
        );
    }
    info!(
        host.nqn = settings.connect.host.nqn, host.id = %settings.connect.host.id, ?settings.io_timeout,
        "csi-node started"
    );
    let initiator = Initiator::new(Arc::new(host), settings);
    let mounts: Arc<dyn Mounts> = Arc::new(LinuxMounts);
    let freezer = FreezeService::new(initiator.clone(), mounts.clone());
    tidy_up(&initiator, &mounts, &freezer).await.context("look at the connected volumes")?;
    serve_metrics(&args, &initiator, &mounts).await?;
    let open = |socket: &Path| listen(socket).with_context(|| format!("listen on {}", socket.display()));
    let (for_kubelet, for_agent) =
        (open(Path::new(args.csi_socket.trim_start_matches("unix://")))?, open(&args.nvme_socket)?);
    let shutdown = CancellationToken::new();
    let _ends = shutdown.clone().drop_guard();
    let plugin = tonic::transport::Server::builder()
        .add_service(IdentityService::server(Arc::new(|| Box::pin(std::future::ready(true)))))
        .add_service(NodePlugin::server(args.node_name.clone(), initiator.clone(), mounts.clone()))
        .serve_with_incoming_shutdown(for_kubelet, shutdown.clone().cancelled_owned());
    let agent = tonic::transport::Server::builder()
        .add_service(NvmeService::server(initiator.clone()))
        .serve_with_incoming_shutdown(for_agent, shutdown.clone().cancelled_owned());
    let ended = async {
        let signal = signal.await;
        info!(signal, "shutting down");
        freezer.thaw_all().await;
        // Kubelet is served meanwhile: it may be ending pods.
        if goes_down(args.system_bus.clone()).await {
            release_volumes(&initiator, &mounts, PATIENCE).await;
        }
        shutdown.cancel();
        Ok(())
    };
    let registered = serve_control_plane(&args, &freezer, shutdown.clone());
    tokio::try_join!(
        async { plugin.await.context("serve kubelet") },
        async { agent.await.context("serve the agent") },
        registered,
        ended
    )?;
    Ok(())
}

async fn serve_metrics(args: &Args, initiator: &Initiator, mounts: &Arc<dyn Mounts>) -> Result<()> {
    let metrics = Metrics::default();
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let (initiator, mounts) = (initiator.clone(), mounts.clone());
    let look = move || {
        let (metrics, initiator, mounts) = (metrics.clone(), initiator.clone(), mounts.clone());
        async move { metrics.look(initiator, mounts).await }
    };
    let shown = args.metrics.serve_with(registry, look).await.context("serve the metrics")?;
    if let Some(address) = shown {
        info!(metrics.address = %address, "metrics served");
    }
    Ok(())
}

/// Serves NodePlugin and tells the control plane where, until `shutdown`; nothing of it unless asked for.
async fn serve_control_plane(
    args: &Args,
    freezer: &FreezeService,
    shutdown: CancellationToken,
) -> Result<()> {
    if !args.enable_registration {
        return Ok(());
    }
    let address = SocketAddr::new(args.grpc_ip, args.grpc_port);
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("serve NodePlugin on {address}"))?;
    let address = listener.local_addr().context("read the address that is served")?;
    let client = Client::new(args.rest_endpoint.as_str(), REST_LIMIT).context("set up the client of REST")?;
    let spec = RegisterAppNode {
        endpoint: address.to_string(),
        labels: Some([("openebs.io/csi-node".to_owned(), "mayastor".to_owned())].into()),
    };
    let server = tonic::transport::Server::builder()
        .add_service(freezer.server())
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown.clone().cancelled_owned());
    let registered = keep_registered(client, args.node_name.clone(), spec, shutdown);
    let (served, ()) = tokio::join!(server, registered);
    served.context("serve NodePlugin")
}
