//! Asking the kernel for a controller. A program, because a shell's `printf` loses the kernel's error. And asking our own
//! node plugin, as an agent beside it does.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use csi::node::NvmeClient;

const FABRICS: &str = "/dev/nvme-fabrics";
/// Where csi-node listens unless told otherwise.
const CSI_SOCKET: &str = "/var/run/mayastor/nvme.sock";
const ATTACH_LIMIT: Duration = Duration::from_secs(30);

/// Writes `line` (`transport=tcp,traddr=…`) and returns the kernel's answer, `instance=0,cntlid=1`.
pub fn connect(line: &str) -> Result<String> {
    let mut fabrics =
        OpenOptions::new().read(true).write(true).open(FABRICS).with_context(|| format!("open {FABRICS}"))?;
    // One write: the kernel takes each as a request of its own, and answers on the descriptor that asked.
    let written = fabrics.write(line.as_bytes());
    written.with_context(|| format!("ask {FABRICS} for {line}"))?;
    let mut answer = [0; 256];
    let length = fabrics.read(&mut answer).with_context(|| format!("read the answer of {FABRICS}"))?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Connects to a volume by csi-node, and returns its device.
pub fn attach(uri: &str) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = NvmeClient::new(Path::new(CSI_SOCKET))?;
        let attached = client.connect(uri, std::collections::HashMap::new(), ATTACH_LIMIT).await;
        let attached = attached.map_err(|status| anyhow::anyhow!("csi-node: {}", status.message()))?;
        let paths = attached.controller.context("csi-node names no controller")?.paths;
        Ok(format!("/dev/{}", paths.first().context("csi-node names no namespace")?.head))
    })
}
