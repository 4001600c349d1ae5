//! Asking the kernel for a controller. A program, because a shell's `printf` loses the kernel's error.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};

use anyhow::{Context as _, Result};

const FABRICS: &str = "/dev/nvme-fabrics";

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
