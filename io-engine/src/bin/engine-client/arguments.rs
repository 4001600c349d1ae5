//! The command line, and the help that teaches it.

use std::net::IpAddr;
use std::num::NonZeroU64;

use clap::{Args, Parser, Subcommand, ValueEnum};
use uuid::Uuid;

use crate::size::Size;

/// Port of an engine's gRPC listener where an address names none.
const PORT: u16 = 10124;

/// Shown beneath `--help`.
const EXAMPLES: &str = "\
Examples:
  A pool on a disk, a replica in it that other engines can reach:
    engine-client host block-devices
    engine-client pool create p1 /dev/sdb
    engine-client replica create r1 p1 10Gi --thin --share

  A mirror of a replica here and one on 10.0.0.2, for a Linux host to connect to:
    engine-client replica list                      (prints the URIs that a nexus takes as children)
    engine-client nexus create v1 10Gi 'bdev:///r1?uuid=...' 'nvmf+tcp://10.0.0.2:8420/nqn...?uuid=...'
    engine-client nexus publish v1                  (prints the `nvme connect` line)

  What is wrong with a mirror, and a lost child brought back:
    engine-client nexus list
    engine-client child online v1 10.0.0.2
    engine-client rebuild list

  Another engine, for a script:
    engine-client -b 10.0.0.2 -o json replica list

Sizes are bytes or a number with Ki, Mi, Gi, Ti, k, M, G or T. Where a replica or a nexus is asked for, its name and its
uuid both do. An engine that a control plane drives refuses changes beside it; --unfenced says that you mean it.";

/// Drives one io-engine: its pools, replicas, nexuses and rebuilds.
#[derive(Debug, Parser)]
#[command(name = "engine-client", version, after_help = EXAMPLES, max_term_width = 120)]
pub(crate) struct Arguments {
    /// Address of the engine's gRPC listener; port 10124 where it names none
    #[arg(
        short,
        long,
        global = true,
        env = "ENGINE_CLIENT_BIND",
        default_value = "127.0.0.1:10124",
        value_name = "ADDRESS[:PORT]"
    )]
    pub(crate) bind: String,
    /// How answers are printed
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// Make the change although a control plane drives this engine, and may undo it
    #[arg(long, global = true)]
    pub(crate) unfenced: bool,
    /// Seconds to wait for an answer [default: 5, and 15 for a change]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) timeout: Option<u64>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Arguments {
    /// `address:port` of the engine.
    pub(crate) fn endpoint(&self) -> String {
        with_port(&self.bind)
    }
}

fn with_port(bind: &str) -> String {
    let bare = bind.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:{PORT}"),
        Ok(IpAddr::V4(address)) => format!("{address}:{PORT}"),
        Err(_) if bind.contains(':') => bind.to_owned(),
        Err(_) => format!("{bind}:{PORT}"),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs: the whole objects, sizes in bytes
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Pools: the disks that replicas are made on
    #[command(subcommand, visible_alias = "pools")]
    Pool(PoolCommand),
    /// Replicas: copies of a volume's data, in a pool
    #[command(subcommand, visible_alias = "replicas")]
    Replica(ReplicaCommand),
    /// Nexuses: mirrors over replicas, which hosts connect to
    #[command(subcommand, visible_alias = "nexuses")]
    Nexus(NexusCommand),
    /// Children of a nexus
    #[command(subcommand, visible_alias = "children")]
    Child(ChildCommand),
    /// Rebuilds of children that lack data
    #[command(subcommand, visible_alias = "rebuilds")]
    Rebuild(RebuildCommand),
    /// The engine itself and its machine
    #[command(subcommand)]
    Host(HostCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// List the loaded pools
    List,
    /// Make a pool on an empty disk, or load the one of that name from it
    Create {
        /// Name of the pool
        name: String,
        /// Device path such as /dev/sdb, or a URI such as aio:///var/tmp/disk.img
        disk: String,
        /// Its id [default: made up by the engine]
        #[arg(long)]
        uuid: Option<Uuid>,
        /// Unit of space: a multiple of 1Mi up to 1Gi [default: 4Mi]
        #[arg(long, value_name = "SIZE")]
        cluster_size: Option<Size>,
        /// Identity of the Kubernetes cluster to stamp it with
        #[arg(long, value_name = "UUID")]
        cluster: Option<Uuid>,
    },
    /// Load a pool from the disk that holds it
    Import {
        /// Name it must have
        name: String,
        /// Device path or URI
        disk: String,
        /// Id it must have
        #[arg(long)]
        uuid: Option<Uuid>,
    },
    /// Let a pool go; its data stays on the disk
    Export(PoolName),
    /// Remove a pool with all its replicas and their data
    Destroy(PoolName),
}

#[derive(Debug, Args)]
pub(crate) struct PoolName {
    /// Name of the pool
    pub(crate) name: String,
    /// Refuse unless the pool has this id
    #[arg(long)]
    pub(crate) uuid: Option<Uuid>,
}

#[derive(Debug, Args)]
pub(crate) struct Hosts {
    /// NVMe host name that may connect; repeat for several [default: any]
    #[arg(long = "allow-host", value_name = "NQN")]
    pub(crate) allowed: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReplicaCommand {
    /// List the replicas of all loaded pools, with the URIs a nexus finds them at
    List,
    /// Make a replica
    Create {
        /// Name of the replica
        name: String,
        /// Name or uuid of its pool
        pool: String,
        /// Size, rounded up to the pool's unit of space
        size: Size,
        /// Its id [default: made up]
        #[arg(long)]
        uuid: Option<Uuid>,
        /// Take space at first write
        #[arg(long)]
        thin: bool,
        /// Export it over NVMe/TCP at once
        #[arg(long)]
        share: bool,
        #[command(flatten)]
        hosts: Hosts,
    },
    /// Remove a replica and its data
    Destroy {
        /// Name or uuid
        replica: String,
        /// Refuse unless it is in this pool
        #[arg(long)]
        pool: Option<String>,
        /// Also when a nexus has it reserved, which is known to be gone or replaced
        #[arg(long)]
        despite_reservation: bool,
    },
    /// Export a replica over NVMe/TCP; repeated, replaces the hosts that may connect
    Share {
        /// Name or uuid
        replica: String,
        #[command(flatten)]
        hosts: Hosts,
    },
    /// Grow a replica; a nexus over it is grown afterwards
    Resize {
        /// Name or uuid
        replica: String,
        /// New size, such as 20GiB; rounded up to the pool's unit of space
        #[arg(long)]
        size: Size,
    },
    /// Withdraw the export
    Unshare {
        /// Name or uuid
        replica: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NexusCommand {
    /// List the nexuses and their children
    List,
    /// Make a nexus over children that all exist
    Create {
        /// Its name; a uuid becomes the identity that hosts see
        name: String,
        /// Size that hosts shall see; less where a child holds less
        size: Size,
        /// URIs of its children, as `replica list` prints them
        #[arg(required = true, value_name = "CHILD")]
        children: Vec<String>,
        /// Id of this incarnation [default: made up]
        #[arg(long)]
        uuid: Option<Uuid>,
        /// Key of its record in the store [default: its uuid]
        #[arg(long, value_name = "KEY")]
        info_key: Option<String>,
        /// Do not wait for this replica, and lose what only it has; repeat for several
        #[arg(long = "give-up", value_name = "UUID")]
        given_up: Vec<Uuid>,
    },
    /// Remove a nexus; its children keep their data
    Destroy(NexusName),
    /// Stop a nexus and keep its record: what a host sends waits
    Shutdown(NexusName),
    /// Export a nexus for hosts and print how to connect; repeated, replaces the hosts that may connect
    Publish {
        #[command(flatten)]
        nexus: NexusName,
        #[command(flatten)]
        hosts: Hosts,
    },
    /// Grow a nexus while it serves; its replicas are grown first
    Resize {
        #[command(flatten)]
        nexus: NexusName,
        /// New size that hosts see, such as 20GiB
        #[arg(long)]
        size: Size,
    },
    /// Withdraw the export
    Unpublish(NexusName),
}

#[derive(Debug, Args)]
pub(crate) struct NexusName {
    /// Name or uuid of the nexus
    pub(crate) nexus: String,
}

#[derive(Debug, Args)]
pub(crate) struct ChildName {
    /// Name or uuid of the nexus
    pub(crate) nexus: String,
    /// The child's URI, or a part of it that no other child has
    pub(crate) child: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ChildCommand {
    /// Add a child and rebuild it
    Add {
        /// Name or uuid of the nexus
        nexus: String,
        /// Its URI, as `replica list` prints it
        uri: String,
        /// Leave it without data for now
        #[arg(long)]
        no_rebuild: bool,
    },
    /// Remove a child
    Remove(ChildName),
    /// Take a child out for good
    Fault(ChildName),
    /// Open a child again and rebuild it
    Online(ChildName),
    /// Take a child out; it may come back
    Offline(ChildName),
}

#[derive(Debug, Subcommand)]
pub(crate) enum RebuildCommand {
    /// List the rebuilds that run now
    List,
    /// Show the figures of one running rebuild
    Stats(ChildName),
    /// List the finished rebuilds, oldest first
    History {
        /// Only the newest so many
        #[arg(long, value_name = "NUMBER")]
        last: Option<NonZeroU64>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// Show who the engine is and what it can do
    Info,
    /// List the disks that a pool could be made on
    BlockDevices {
        /// List those in use, too
        #[arg(long)]
        all: bool,
    },
    /// Show what the engine's process has used
    Usage,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn an_address_without_a_port_gets_the_engines() {
        for (given, expected) in [
            ("10.0.0.1", "10.0.0.1:10124"),
            ("10.0.0.1:7", "10.0.0.1:7"),
            ("node-1", "node-1:10124"),
            ("node-1:7", "node-1:7"),
            ("::1", "[::1]:10124"),
            ("[::1]", "[::1]:10124"),
            ("[::1]:7", "[::1]:7"),
        ] {
            assert_eq!(with_port(given), expected);
        }
    }
}
