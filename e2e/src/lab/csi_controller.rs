//! The controller plugin, and a client of its socket.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use csi::proto::csi::ProbeRequest;
use csi::proto::csi::controller_client::ControllerClient;
use csi::proto::csi::identity_client::IdentityClient;
use tonic::transport::{Channel, Endpoint};

use crate::process::{Process, Processes};
use crate::programs::program;
use crate::wait::wait_until;

const START_LIMIT: Duration = Duration::from_secs(20);

/// A csi-controller in the hub.
pub struct CsiController {
    process: Process,
    socket: PathBuf,
}

impl CsiController {
    /// Starts one for the operators at `rest`, with its socket in `folder`; returns when it serves.
    pub async fn start(processes: &Processes, folder: &Path, rest: &str) -> Result<Self> {
        let socket = folder.join("csi.sock");
        let mut command = Command::new(program("csi-controller")?);
        command.arg("--csi-socket").arg(&socket).args(["--rest-endpoint", rest]);
        let process = processes.spawn("csi-controller", command)?;
        let controller = Self { process, socket };
        wait_until(START_LIMIT, "csi-controller to serve", || async {
            Ok(controller.identity()?.probe(ProbeRequest {}).await?)
        })
        .await?;
        Ok(controller)
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// A client of its Identity service.
    pub fn identity(&self) -> Result<IdentityClient<Channel>> {
        Ok(IdentityClient::new(self.channel()?))
    }

    /// A client of its Controller service.
    pub fn client(&self) -> Result<ControllerClient<Channel>> {
        Ok(ControllerClient::new(self.channel()?))
    }

    /// A connection to its socket.
    pub fn channel(&self) -> Result<Channel> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket.display()))
            .with_context(|| format!("{} as a socket", self.socket.display()))?;
        Ok(endpoint.connect_lazy())
    }
}
