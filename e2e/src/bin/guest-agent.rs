//! The harness's hand inside the virtual Linux host.
#![forbid(unsafe_code)]

use anyhow::Result;
use clap::{Parser, Subcommand};
use e2e::guest::{agent, fabrics, io_load, plugin};

/// Runs inside the virtual Linux host of the test laboratory.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the harness's scripts, as they come over virtio-serial
    Serve,
    /// Ask the kernel's initiator for a controller; prints its answer
    Connect {
        /// What to write to /dev/nvme-fabrics: transport=tcp,traddr=…
        line: String,
    },
    /// Ask csi-node for a connection to a volume; prints the device
    Attach {
        /// nvmf://address:port/nqn
        uri: String,
    },
    /// Have csi-node connect, format, mount and show a volume, as kubelet has it
    Mount(plugin::MountOptions),
    /// Read and write with checks, and measure every stall; prints a summary as JSON
    Io(io_load::IoOptions),
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Serve => agent::serve(),
        Command::Connect { line } => {
            println!("{}", fabrics::connect(&line)?.trim());
            Ok(())
        }
        Command::Attach { uri } => {
            println!("{}", fabrics::attach(&uri)?);
            Ok(())
        }
        Command::Mount(options) => plugin::mount(&options),
        Command::Io(options) => {
            println!("{}", serde_json::to_string(&io_load::run(&options)?)?);
            Ok(())
        }
    }
}
