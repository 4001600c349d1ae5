//! The node plugin: volumes for kubelet, and connections for the HA agent beside it.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use csi::host::identity::is_volume;
use csi::host::mount::linux::LinuxMounts;
use csi::host::{HostIdentity, Nvme as _, SysfsNvme};
use csi::identity::IdentityService;
use csi::node::{Initiator, NodePlugin, NvmeService, Settings};
use csi::server::listen;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

/// What the kernel waits for a command unless told otherwise, and for an admin command.
const KERNEL_IO_TIMEOUT: Duration = Duration::from_secs(30);
/// More than this, and a reset of a silent controller keeps a failover's cleaning up waiting.
const ADMIN_TIMEOUT_MAX: Duration = Duration::from_secs(10);

/// The CSI node plugin of Mayastor.
///
/// Connects this host's kernel to volumes over NVMe/TCP, makes their file systems and mounts them.
#[derive(Debug, Parser)]
#[command(version)]
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
    #[command(flatten)]
    log: telemetry::LogOptions,
}

impl Args {
    fn settings(&self) -> Settings {
        let host = HostIdentity::of_node(&self.node_name).with_id(self.host_id);
        let mut settings = Settings::new(host);
        if let Some(queues) = self.nvme_nr_io_queues {
            settings.connect.io_queues = queues.max(1);
        }
        // What is below zero is for ever.
        settings.connect.controller_loss =
            u64::try_from(self.nvme_ctrl_loss_tmo).ok().map(Duration::from_secs);
        settings.connect.keep_alive = Duration::from_secs(self.nvme_keep_alive_tmo);
        settings.io_timeout = Duration::from_millis(self.nvme_io_timeout_ms);
        settings
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let _telemetry = telemetry::init(&telemetry::TelemetryOptions::new("csi-node", &args.log))?;
    let signal = telemetry::shutdown_requested()?;
    let host = SysfsNvme::new("/");
    host.preflight().context("this machine cannot use volumes")?;
    if let Some(limit) = host.admin_timeout().filter(|limit| *limit > ADMIN_TIMEOUT_MAX) {
        warn!(
            "nvme_core.admin_timeout is {limit:?}: a silent controller takes as long to go away. Suggested: \
             `echo 10 >/sys/module/nvme_core/parameters/admin_timeout`, and nvme_core.admin_timeout=10 on the kernel's \
             command line"
        );
    }
    let settings = args.settings();
    info!(
        host.nqn = settings.connect.host.nqn, host.id = %settings.connect.host.id, ?settings.io_timeout,
        "csi-node started"
    );
    let initiator = Initiator::new(Arc::new(host), settings);
    let tended = initiator.tend(is_volume, KERNEL_IO_TIMEOUT).context("look at the connected volumes")?;
    if tended > 0 {
        info!(controllers = tended, "set the I/O time-out that an earlier process did not come to");
    }
    let open = |socket: &Path| listen(socket).with_context(|| format!("listen on {}", socket.display()));
    let (for_kubelet, for_agent) =
        (open(Path::new(args.csi_socket.trim_start_matches("unix://")))?, open(&args.nvme_socket)?);
    let shutdown = CancellationToken::new();
    let _ends = shutdown.clone().drop_guard();
    let plugin = tonic::transport::Server::builder()
        .add_service(IdentityService::server(Arc::new(|| Box::pin(std::future::ready(true)))))
        .add_service(NodePlugin::server(args.node_name, initiator.clone(), Arc::new(LinuxMounts)))
        .serve_with_incoming_shutdown(for_kubelet, shutdown.clone().cancelled_owned());
    let agent = tonic::transport::Server::builder()
        .add_service(NvmeService::server(initiator))
        .serve_with_incoming_shutdown(for_agent, shutdown.clone().cancelled_owned());
    let ended = async {
        let signal = signal.await;
        info!(signal, "shutting down");
        shutdown.cancel();
        Ok(())
    };
    tokio::try_join!(plugin, agent, ended).context("serve")?;
    Ok(())
}
