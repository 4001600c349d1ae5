//! Serves a namespace in memory over NVMe/TCP, for a Linux host to connect to.
//!
//! ```text
//! cargo run -p io-engine --example serve_memory -- 10.77.0.1:8420 nqn.2019-05.io.openebs:<uuid> 256
//! ```
//!
//! Arguments: address, subsystem, size in MiB, and optionally the block size (512 or 4096). The namespace's UUID is
//! the one at the end of the subsystem's name, else a fixed one. Any host may connect. Ends with the process; logs by
//! `RUST_LOG`.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use io_engine::block::{Blocks, Geometry, RamDevice};
use io_engine::target::{AllowedHosts, OlderCommands, Plain, Subsystem, Target, TargetOptions};
use nvme::Nqn;
use nvme::ana::AnaState;
use uuid::Uuid;

fn main() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (address, name, size, block) = match &arguments[..] {
        [address, name, size] => (address, name, size, "512"),
        [address, name, size, block] => (address, name, size, block.as_str()),
        _ => bail!("arguments: <address:port> <subsystem NQN> <size in MiB> [block size]"),
    };
    let address: SocketAddr = address.parse().with_context(|| format!("{address} is no address and port"))?;
    let nqn = Nqn::new(name.as_str()).with_context(|| name.clone())?;
    let mebibytes: u64 = size.parse().with_context(|| format!("{size} is no size"))?;
    let block_bytes: u32 = block.parse().with_context(|| format!("{block} is no block size"))?;
    if !matches!(block_bytes, 512 | 4096) {
        bail!("blocks have 512 or 4096 bytes");
    }
    let uuid = name.rsplit(':').next().and_then(|text| Uuid::parse_str(text).ok());
    runtime::block_on(async {
        let target = Target::bind(address, TargetOptions::default()).await.context("listen")?;
        let blocks = Blocks((mebibytes << 20) / u64::from(block_bytes));
        let device = RamDevice::new(Geometry { block_bytes, blocks });
        target.add(Subsystem {
            nqn,
            uuid: uuid.unwrap_or(Uuid::from_u128(0x5e17_e000_0000_4000_8000_0000_0000_0001)),
            export: Plain(device),
            allowed_hosts: AllowedHosts::Any,
            cntlids: 1..=0xFFEF,
            ana_state: AnaState::Optimized,
            is_thin: false,
            older_commands: OlderCommands::Drain,
            retry_delays: [0; 3],
        })?;
        println!("serving {name} at {}", target.address());
        std::future::pending::<()>().await;
        Ok(())
    })
}
