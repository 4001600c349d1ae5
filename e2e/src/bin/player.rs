//! Plays one of csi-controller's sidecars: provisioner, attacher or resizer.
//!
//! In the laboratory it runs in the chart's Deployment, by the options and under the image name of the real one, which
//! cannot be had offline.
#![forbid(unsafe_code)]

use std::io::stderr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{ArgAction, Parser};
use csi::proto::csi::ProbeRequest;
use csi::proto::csi::identity_client::IdentityClient;
use e2e::player::{Part, Player};
use e2e::wait::wait_until;
use kube::Client;
use tonic::transport::Endpoint;

/// The driver's container may start after this one; whoever gives up is started again by kubelet.
const DRIVER_LIMIT: Duration = Duration::from_secs(120);

/// Plays a sidecar of a CSI controller.
#[derive(Debug, Parser)]
struct Arguments {
    /// Whom
    part: Part,
    /// The driver's socket
    #[arg(long)]
    csi_address: PathBuf,
    #[command(flatten)]
    ignored: Ignored,
}

/// What the chart says to the real ones. They refuse other options; so does this.
#[derive(Debug, clap::Args)]
struct Ignored {
    #[arg(long)]
    leader_election: bool,
    #[arg(long)]
    leader_election_namespace: Option<String>,
    #[arg(long)]
    timeout: Option<String>,
    #[arg(long)]
    feature_gates: Option<String>,
    #[arg(long, action = ArgAction::Set)]
    strict_topology: Option<bool>,
    #[arg(long)]
    default_fstype: Option<String>,
    #[arg(long)]
    extra_create_metadata: bool,
    #[arg(long, visible_alias = "workers")]
    worker_threads: Option<u16>,
    #[arg(long, action = ArgAction::Set)]
    handle_volume_inuse_error: Option<bool>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let driver = Endpoint::from_shared(format!("unix://{}", arguments.csi_address.display()))?;
    let socket = wait_until(DRIVER_LIMIT, "the driver to answer", || async {
        let socket = driver.connect().await?;
        IdentityClient::new(socket.clone()).probe(ProbeRequest {}).await?;
        Ok(socket)
    })
    .await?;
    let client = Client::try_default().await.context("use the cluster this runs in")?;
    let player = Player::start(client, socket, &[arguments.part], Box::new(stderr())).await?;
    println!("{:?} plays", arguments.part);
    player.ended().await
}
