//! Plays the node-driver-registrar: stands in kubelet's folder for plugins and answers for the plugin beside it.
//!
//! In the laboratory it runs in the chart's DaemonSet, by the options and under the image name of the real one, which
//! cannot be had offline.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use csi::proto::csi::GetPluginInfoRequest;
use csi::proto::csi::identity_client::IdentityClient;
use csi::server::listen;
use e2e::player::registration::Registration;
use e2e::wait::wait_until;
use tonic::transport::{Endpoint, Server};

/// The plugin's container may start after this one; whoever gives up is started again by kubelet.
const PLUGIN_LIMIT: Duration = Duration::from_secs(120);

/// Registers a CSI plugin with kubelet.
#[derive(Debug, Parser)]
struct Arguments {
    /// The plugin's socket, as seen from here.
    #[arg(long)]
    csi_address: PathBuf,
    /// The plugin's socket, as seen by kubelet.
    #[arg(long)]
    kubelet_registration_path: String,
    /// Kubelet's folder plugins_registry, as seen from here.
    #[arg(long, default_value = "/registration")]
    plugin_registration_path: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let plugin = Endpoint::from_shared(format!("unix://{}", arguments.csi_address.display()))?;
    let name = wait_until(PLUGIN_LIMIT, "the plugin to answer", || async {
        let mut identity = IdentityClient::new(plugin.connect().await?);
        Ok(identity.get_plugin_info(GetPluginInfoRequest {}).await?.into_inner().name)
    })
    .await?;
    let socket = arguments.plugin_registration_path.join(format!("{name}-reg.sock"));
    // One that is there is a predecessor's: kubelet sees it go and the new one come.
    let connections = listen(&socket).with_context(|| format!("listen on {}", socket.display()))?;
    println!("{name} stands in {}", socket.display());
    Server::builder()
        .add_service(Registration::server(name, arguments.kubelet_registration_path))
        .serve_with_incoming(connections)
        .await
        .context("serve")
}
