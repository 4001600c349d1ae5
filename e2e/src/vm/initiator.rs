//! The host's kernel NVMe/TCP initiator: connect, disconnect, and what the kernel says of its controllers.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::wait::wait_until;

use super::LinuxHost;

/// After the connection is made the kernel scans for namespaces in the background: 0.1 s where it is quiet.
const SCAN_DEADLINE: Duration = Duration::from_secs(15);

/// The kernel takes a controller apart in the background, after what is in flight.
const GONE_DEADLINE: Duration = Duration::from_secs(90);

/// How to connect. The defaults are those our own agents choose.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    pub nqn: String,
    pub address: Ipv4Addr,
    pub port: u16,
    pub io_queues: u32,
    pub reconnect_delay_s: u32,
    /// -1: never give up.
    pub ctrl_loss_timeout_s: i32,
    pub keep_alive_s: u32,
    pub header_digest: bool,
    pub data_digest: bool,
}

impl ConnectOptions {
    pub fn new(nqn: impl Into<String>, address: Ipv4Addr, port: u16) -> Self {
        Self {
            nqn: nqn.into(),
            address,
            port,
            io_queues: 2,
            reconnect_delay_s: 1,
            ctrl_loss_timeout_s: -1,
            keep_alive_s: 5,
            header_digest: false,
            data_digest: false,
        }
    }

    /// The line for /dev/nvme-fabrics.
    fn line(&self, host: &LinuxHost) -> String {
        let Self {
            nqn, address, port, io_queues, reconnect_delay_s, ctrl_loss_timeout_s, keep_alive_s, ..
        } = self;
        // One host, one id: the kernel refuses one NQN under two.
        let host_id = format!("00000000-0000-4000-8000-0000000000{:02x}", host.options.number);
        let mut line = format!(
            "transport=tcp,traddr={address},trsvcid={port},nqn={nqn},hostnqn={},hostid={host_id},\
             nr_io_queues={io_queues},reconnect_delay={reconnect_delay_s},ctrl_loss_tmo={ctrl_loss_timeout_s},\
             keep_alive_tmo={keep_alive_s}",
            host.host_nqn()
        );
        if self.header_digest {
            line.push_str(",hdr_digest");
        }
        if self.data_digest {
            line.push_str(",data_digest");
        }
        line
    }
}

/// A controller as the kernel shows it in sysfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// `nvme0`
    pub name: String,
    /// `live`, `connecting`, `resetting`, …
    pub state: String,
    pub nqn: String,
    /// `traddr=10.77.0.1,trsvcid=8420,src_addr=…`
    pub address: String,
    pub cntlid: u16,
    /// One per namespace.
    pub paths: Vec<NamespacePath>,
}

/// A namespace as seen through one controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespacePath {
    /// `nvme0c0n1`
    pub name: String,
    /// `optimized`, `inaccessible`, …
    pub ana_state: String,
}

impl LinuxHost {
    /// Connects by the kernel's initiator and returns the block device, `/dev/nvmeXnY`: for a further path of a
    /// subsystem, the device that is there already.
    pub async fn connect(&self, options: &ConnectOptions) -> Result<String> {
        self.connect_path(options).await?;
        wait_until(SCAN_DEADLINE, &format!("a namespace of {}", options.nqn), || async {
            let device = self.device(&options.nqn).await?;
            let Some(device) = device else {
                bail!("none among {:?}; kernel log:\n{}", self.controllers().await?, self.log_end().await);
            };
            Ok(device)
        })
        .await
    }

    /// Connects a controller and does not wait for namespaces. Returns what the kernel answered,
    /// `instance=0,cntlid=1`.
    pub async fn connect_path(&self, options: &ConnectOptions) -> Result<String> {
        let line = options.line(self);
        match self.sh(&format!("guest-agent connect '{line}'")).await {
            Ok(answer) => Ok(answer.trim().to_owned()),
            Err(error) => Err(error)
                .with_context(|| {
                    format!(
                        "connect {} to {} at {}:{}",
                        self.name, options.nqn, options.address, options.port
                    )
                })
                .context(format!("kernel log:\n{}", self.log_end().await)),
        }
    }

    /// Takes one controller away, and does not wait for its end.
    pub async fn delete_controller(&self, name: &str) -> Result<()> {
        self.sh(&format!("echo 1 >/sys/class/nvme/{name}/delete_controller")).await.map(drop)
    }

    /// Disconnects every controller of a subsystem.
    pub async fn disconnect(&self, nqn: &str) -> Result<()> {
        let script = format!(
            "for c in /sys/class/nvme/nvme*; do [ -e $c ] || continue; \
             [ \"$(cat $c/subsysnqn)\" != '{nqn}' ] || echo 1 >$c/delete_controller; done"
        );
        self.sh(&script).await.with_context(|| format!("disconnect {} from {nqn}", self.name)).map(drop)
    }

    /// Disconnects every controller of a subsystem, and waits until they are gone.
    pub async fn disconnect_fully(&self, nqn: &str) -> Result<()> {
        self.disconnect(nqn).await?;
        wait_until(GONE_DEADLINE, &format!("the controllers of {nqn} to be gone"), || async {
            let controllers = self.controllers().await?;
            ensure!(controllers.iter().all(|seen| seen.nqn != nqn), "{controllers:?}");
            Ok(())
        })
        .await
    }

    /// The block device of a subsystem's first namespace, when there is one.
    pub async fn device(&self, nqn: &str) -> Result<Option<String>> {
        // `nvme0n1` is the head over all paths, `nvme0c1n1` one path.
        let script = format!(
            "for s in /sys/class/nvme-subsystem/*; do [ -e $s ] || continue; \
             [ \"$(cat $s/subsysnqn)\" = '{nqn}' ] || continue; \
             for d in $s/nvme*n*; do d=${{d##*/}}; case $d in *c*|*'*'*) ;; *) [ ! -b /dev/$d ] || echo /dev/$d ;; esac; \
             done; done | head -n 1"
        );
        let device = self.sh(&script).await?;
        let device = device.trim();
        Ok((!device.is_empty()).then(|| device.to_owned()))
    }

    /// Every fabrics controller of the host, by name.
    pub async fn controllers(&self) -> Result<Vec<Controller>> {
        // A controller may go away between two reads: its line is then left out by the parser.
        let script = "for c in /sys/class/nvme/nvme*; do [ -e $c ] || continue; \
            echo \"C ${c##*/} $(cat $c/state) $(cat $c/subsysnqn) $(cat $c/address) $(cat $c/cntlid)\"; \
            for p in $c/nvme*c*n*; do [ -e $p ] || continue; echo \"P ${p##*/} $(cat $p/ana_state)\"; done; \
            done 2>/dev/null";
        parse_controllers(&self.sh(script).await?)
    }

    async fn log_end(&self) -> String {
        match self.sh("dmesg | tail -n 12").await {
            Ok(text) => text,
            Err(error) => format!("(cannot be read: {error})"),
        }
    }
}

fn parse_controllers(text: &str) -> Result<Vec<Controller>> {
    let mut controllers: Vec<Controller> = Vec::new();
    let mut is_whole = false;
    for line in text.lines() {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["C", name, state, nqn, address, cntlid] if !cntlid.is_empty() => {
                is_whole = true;
                controllers.push(Controller {
                    name: name.to_owned(),
                    state: state.to_owned(),
                    nqn: nqn.to_owned(),
                    address: address.to_owned(),
                    cntlid: cntlid.parse().with_context(|| format!("a controller id in {line:?}"))?,
                    paths: Vec::new(),
                });
            }
            // It vanished while it was read, and what follows of it is nobody's.
            ["C", ..] => is_whole = false,
            ["P", name, ana_state] => {
                if let Some(controller) = controllers.last_mut().filter(|_| is_whole) {
                    let path = NamespacePath { name: name.to_owned(), ana_state: ana_state.to_owned() };
                    controller.paths.push(path);
                }
            }
            _ => bail!("not a controller's line: {line:?}"),
        }
    }
    Ok(controllers)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A controller that vanished while sysfs was read leaves half a line; the others still count.
    #[test]
    fn half_a_line_of_a_vanished_controller_is_left_out() {
        let text = "C nvme0 live nqn.a traddr=10.77.0.1,trsvcid=8420 7\nP nvme0c0n1 optimized\nC nvme1    \nP nvme1c1n1 \n";
        let expected = Controller {
            name: "nvme0".into(),
            state: "live".into(),
            nqn: "nqn.a".into(),
            address: "traddr=10.77.0.1,trsvcid=8420".into(),
            cntlid: 7,
            paths: vec![NamespacePath { name: "nvme0c0n1".into(), ana_state: "optimized".into() }],
        };
        assert_eq!(parse_controllers(text).unwrap(), [expected]);
    }
}
