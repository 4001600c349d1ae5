//! Answers as people and programs read them.

use engine_api::{
    AnaState, BlockDevice, ChildReason, Nexus, NodeInfo, Pool, RebuildRecord, RebuildStats, Replica,
    ResourceUsage,
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use crate::arguments::Format;
use crate::size::Size;
use crate::table::{Table, facts};

/// A rebuild that runs.
#[derive(Debug, Serialize)]
pub(crate) struct Rebuild {
    /// Name of the nexus.
    pub(crate) nexus: String,
    pub(crate) nexus_uuid: Uuid,
    /// The child that is rebuilt.
    pub(crate) child_uri: String,
    #[serde(flatten)]
    pub(crate) stats: RebuildStats,
}

/// What a command answers.
pub(crate) enum View {
    Pool(Pool),
    Pools(Vec<Pool>),
    Replica(Replica),
    Replicas(Vec<Replica>),
    Nexus(Nexus),
    Nexuses(Vec<Nexus>),
    Rebuilds(Vec<Rebuild>),
    RebuildStats(RebuildStats),
    History(Vec<RebuildRecord>),
    Info(NodeInfo),
    BlockDevices(Vec<BlockDevice>),
    Usage(ResourceUsage),
    Done { kind: &'static str, name: String, what: &'static str },
}

impl View {
    pub(crate) fn render(&self, format: Format) -> String {
        match format {
            Format::Table => self.table(),
            Format::Json => format!("{:#}\n", self.json()),
        }
    }

    fn json(&self) -> serde_json::Value {
        match self {
            Self::Pool(pool) => json!(pool),
            Self::Pools(pools) => json!(pools),
            Self::Replica(replica) => json!(replica),
            Self::Replicas(replicas) => json!(replicas),
            Self::Nexus(nexus) => json!(nexus),
            Self::Nexuses(nexuses) => json!(nexuses),
            Self::Rebuilds(rebuilds) => json!(rebuilds),
            Self::RebuildStats(stats) => json!(stats),
            Self::History(records) => json!(records),
            Self::Info(info) => json!(info),
            Self::BlockDevices(devices) => json!(devices),
            Self::Usage(usage) => json!(usage),
            Self::Done { kind, name, what } => json!({ *kind: name, "result": what }),
        }
    }

    fn table(&self) -> String {
        match self {
            Self::Pool(pool) => pools(std::slice::from_ref(pool)),
            Self::Pools(all) if all.is_empty() => {
                "No pools are loaded. `host block-devices` lists disks, `pool create NAME DISK` makes one.\n"
                    .into()
            }
            Self::Pools(all) => pools(all),
            Self::Replica(replica) => replicas(std::slice::from_ref(replica)),
            Self::Replicas(all) if all.is_empty() => {
                "No replicas. `replica create NAME POOL SIZE` makes one.\n".into()
            }
            Self::Replicas(all) => replicas(all),
            Self::Nexus(nexus) => {
                let hint = nexus.device_uri.as_deref().and_then(connect_line);
                let hint =
                    hint.map_or_else(String::new, |line| format!("\nConnect a Linux host with:\n  {line}\n"));
                nexuses(std::slice::from_ref(nexus)) + &hint
            }
            Self::Nexuses(all) if all.is_empty() => {
                "No nexuses. `nexus create NAME SIZE CHILD...` makes one.\n".into()
            }
            Self::Nexuses(all) => nexuses(all),
            Self::Rebuilds(all) if all.is_empty() => {
                "No rebuilds run. `rebuild history` lists the finished ones.\n".into()
            }
            Self::Rebuilds(all) => rebuilds(all),
            Self::RebuildStats(stats) => rebuild_stats(stats),
            Self::History(all) if all.is_empty() => {
                "No rebuilds have finished since the engine started.\n".into()
            }
            Self::History(all) => history(all),
            Self::Info(info) => node(info),
            Self::BlockDevices(all) if all.is_empty() => {
                "No disk is free. `host block-devices --all` says what the others are used for.\n".into()
            }
            Self::BlockDevices(all) => block_devices(all),
            Self::Usage(usage) => resource_usage(usage),
            Self::Done { kind, name, what } => format!("{kind} {name} {what}\n"),
        }
    }
}

/// The word that JSON has for a state, with blanks.
fn word(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word.replace('_', " "),
        _ => String::new(),
    }
}

fn yes_or_no(is: bool) -> String {
    if is { "yes" } else { "no" }.into()
}

fn size(bytes: u64) -> String {
    Size(bytes).to_string()
}

/// To the second: finer is noise to people.
fn time(at: Option<Timestamp>) -> String {
    at.map_or_else(String::new, |at| at.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
}

fn pools(pools: &[Pool]) -> String {
    let mut table = Table::new(["NAME", "STATE", "CAPACITY", "USED", "COMMITTED", "DISK", "UUID"]);
    for pool in pools {
        table.row([
            pool.name.clone(),
            word(pool.state),
            size(pool.capacity_bytes),
            size(pool.used_bytes),
            size(pool.committed_bytes),
            pool.disks.join(","),
            pool.uuid.to_string(),
        ]);
    }
    table.render()
}

fn replicas(replicas: &[Replica]) -> String {
    let mut table = Table::new(["NAME", "POOL", "SIZE", "USED", "THIN", "SHARED", "URI"]);
    for replica in replicas {
        table.row([
            replica.name.clone(),
            replica.pool_name.clone(),
            size(replica.size_bytes),
            size(replica.usage.allocated_bytes),
            yes_or_no(replica.thin),
            yes_or_no(replica.shared),
            replica.uri.clone(),
        ]);
    }
    table.render()
}

fn nexuses(nexuses: &[Nexus]) -> String {
    let mut table = Table::new(["NAME", "STATE", "SIZE", "PATH", "TARGET", "UUID"]);
    let mut children = Table::new(["NEXUS", "CHILD", "STATE", "REASON", "REBUILD", "SINCE"]);
    for nexus in nexuses {
        let path = match nexus.ana_state {
            AnaState::Invalid => String::new(),
            state => word(state),
        };
        table.row([
            nexus.name.clone(),
            word(nexus.state),
            size(nexus.size_bytes),
            path,
            nexus.device_uri.clone().unwrap_or_else(|| "unpublished".into()),
            nexus.uuid.to_string(),
        ]);
        for child in &nexus.children {
            children.row([
                nexus.name.clone(),
                child.uri.clone(),
                word(child.state),
                if child.reason == ChildReason::None { String::new() } else { word(child.reason) },
                child.rebuild_percent.map_or_else(String::new, |percent| format!("{percent} %")),
                time(child.faulted_at),
            ]);
        }
    }
    format!("{}\n{}", table.render(), children.render())
}

/// What to type on a host, from `nvmf+tcp://address:port/nqn?…`. Without a limit on reconnects the host outlives the
/// longest outage instead of losing its device for good; one second between them bounds the pause that it sees.
fn connect_line(uri: &str) -> Option<String> {
    let rest = uri.strip_prefix("nvmf+tcp://")?;
    let (endpoint, name) = rest.split_once('/')?;
    let (address, port) = endpoint.rsplit_once(':')?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let nqn = name.split_once('?').map_or(name, |(nqn, _)| nqn);
    Some(format!(
        "nvme connect -t tcp -a {address} -s {port} -n {nqn} --reconnect-delay=1 --ctrl-loss-tmo=-1"
    ))
}

fn kind(stats: &RebuildStats) -> String {
    if stats.is_partial { "what it misses" } else { "whole" }.into()
}

/// Blocks as bytes; what an engine says is not trusted to fit.
fn blocks(stats: &RebuildStats, count: u64) -> String {
    size(count.saturating_mul(stats.block_bytes))
}

fn rebuilds(rebuilds: &[Rebuild]) -> String {
    let mut table = Table::new(["NEXUS", "CHILD", "DONE", "COPIES", "COPIED", "REMAINING", "STARTED"]);
    for Rebuild { nexus, child_uri, stats, .. } in rebuilds {
        table.row([
            nexus.clone(),
            child_uri.clone(),
            format!("{} %", stats.percent),
            kind(stats),
            blocks(stats, stats.blocks_transferred),
            blocks(stats, stats.blocks_remaining),
            time(stats.started_at),
        ]);
    }
    table.render()
}

fn rebuild_stats(stats: &RebuildStats) -> String {
    let blocks = |count| blocks(stats, count);
    facts([
        ("Done", format!("{} %", stats.percent)),
        ("Copies", kind(stats)),
        ("To go through", blocks(stats.blocks_total)),
        ("Gone through", blocks(stats.blocks_recovered)),
        ("Copied", blocks(stats.blocks_transferred)),
        ("Remaining", blocks(stats.blocks_remaining)),
        (
            "Steps",
            format!(
                "{} of {} running, {} each",
                stats.tasks_active,
                stats.tasks_total,
                blocks(stats.blocks_per_task)
            ),
        ),
        ("Block size", size(stats.block_bytes)),
        ("Started", time(stats.started_at)),
    ])
}

fn history(records: &[RebuildRecord]) -> String {
    let mut table = Table::new(["NEXUS", "CHILD", "FROM", "RESULT", "COPIES", "COPIED", "ENDED"]);
    for record in records {
        table.row([
            record.nexus.to_string(),
            record.child_uri.clone(),
            record.source_uri.clone(),
            word(record.state),
            kind(&record.stats),
            blocks(&record.stats, record.stats.blocks_transferred),
            time(record.ended_at),
        ]);
    }
    table.render()
}

fn node(info: &NodeInfo) -> String {
    let features = [
        ("ANA", info.features.ana),
        ("LVM", info.features.lvm),
        ("snapshot rebuild", info.features.snapshot_rebuild),
        ("RDMA", info.features.rdma),
        ("rebuild copies ancestors", info.features.rebuild_copies_ancestors),
    ];
    let features: Vec<&str> = features.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
    facts([
        ("Node", info.node.clone()),
        ("Version", info.version.clone()),
        ("gRPC", info.grpc_endpoint.clone()),
        ("Instance", info.instance.map_or_else(String::new, |id| id.to_string())),
        ("Host NQN", info.host_nqn.clone().unwrap_or_default()),
        ("Features", features.join(", ")),
    ])
}

fn block_devices(devices: &[BlockDevice]) -> String {
    let mut table = Table::new(["DEVICE", "TYPE", "SIZE", "FREE", "HOLDS", "MOUNTED AT", "MODEL"]);
    for device in devices {
        let filesystem = device.filesystem.clone().unwrap_or_default();
        table.row([
            device.name.clone(),
            device.kind.clone(),
            size(device.size_bytes),
            yes_or_no(device.is_available),
            filesystem.kind,
            filesystem.mountpoints.join(","),
            device.model.clone(),
        ]);
    }
    table.render()
}

fn resource_usage(usage: &ResourceUsage) -> String {
    facts([
        ("Page faults without I/O", usage.soft_faults.to_string()),
        ("Page faults with I/O", usage.hard_faults.to_string()),
        ("Times swapped out", usage.swaps.to_string()),
        ("File reads", usage.in_block_ops.to_string()),
        ("File writes", usage.out_block_ops.to_string()),
        ("Messages sent", usage.ipc_sent.to_string()),
        ("Messages received", usage.ipc_received.to_string()),
        ("Signals", usage.signals.to_string()),
        ("Voluntary switches", usage.voluntary_switches.to_string()),
        ("Involuntary switches", usage.involuntary_switches.to_string()),
    ])
}
