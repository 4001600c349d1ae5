//! What Prometheus is told of the cluster, by the operator that leads; from memory, when it asks.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::{Registry, Unit};
use telemetry::metrics::{Labels, gauges, number};

use crate::core::Core;
use crate::engines::watchdog::NodeStatus;
use crate::leader::Terms;
use crate::registry::{AppNodeSpec, NodeSpec, PoolSpec, VolumeSpec};
use crate::volume::status::{VolumeStatus, status};
use crate::volume::view::Presence;

/// The figures of whatever term is on. A follower has one: that it does not lead.
#[derive(Debug)]
pub struct Metrics {
    terms: Terms,
}

impl Metrics {
    /// Shows them in a registry, with names that begin with `operator_`.
    pub fn register(terms: Terms, registry: &mut Registry) {
        registry.sub_registry_with_prefix("operator").register_collector(Box::new(Self { terms }));
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let core = self.terms.borrow().clone();
        let leads = [(Labels::new(), number(core.is_some().into()))];
        gauges(&mut encoder, ("leading", "1 where this process leads", None), leads)?;
        let Some(core) = core else { return Ok(()) };
        encode_nodes(&mut encoder, &core)?;
        encode_pools(&mut encoder, &core)?;
        encode_volumes(&mut encoder, &core)
    }
}

fn label(name: &'static str, value: impl Into<String>) -> (&'static str, String) {
    (name, value.into())
}

fn encode_nodes(encoder: &mut DescriptorEncoder<'_>, core: &Core) -> fmt::Result {
    let nodes = core.nodes().list();
    let is_online = |status: Option<NodeStatus>| number((status == Some(NodeStatus::Online)).into());
    let online = nodes.iter().map(|node| {
        (vec![label("node", &node.spec.id)], is_online(node.state.as_ref().map(|state| state.status)))
    });
    gauges(encoder, ("node_online", "1 where the engine of a node answers", None), online)?;
    let of = |node: &NodeSpec| (vec![label("node", &node.id)], number(node.is_cordoned().into()));
    let cordoned = nodes.iter().map(|node| of(&node.spec));
    gauges(encoder, ("node_cordoned", "1 where nothing new is placed on a node", None), cordoned)?;
    let count = core.registry.all::<AppNodeSpec>().len();
    let help = "Nodes whose node plugin has registered";
    gauges(encoder, ("app_nodes", help, None), [(Labels::new(), number(count as u64))])
}

fn encode_pools(encoder: &mut DescriptorEncoder<'_>, core: &Core) -> fmt::Result {
    let shown: Vec<(PoolSpec, Presence<engine_api::Pool>)> = core
        .pools()
        .list()
        .into_iter()
        .map(|spec| {
            let presence = core.pools().presence(&spec);
            (spec, presence)
        })
        .collect();
    let labels = |spec: &PoolSpec| vec![label("pool", &spec.id), label("node", &spec.node)];
    let serves = |presence: &Presence<engine_api::Pool>| {
        presence.here().is_some_and(|pool| {
            matches!(pool.state, engine_api::PoolState::Online | engine_api::PoolState::Degraded)
        })
    };
    let online = shown.iter().map(|(spec, presence)| (labels(spec), number(serves(presence).into())));
    gauges(encoder, ("pool_online", "1 where a pool serves, also degraded", None), online)?;
    let each = |figure: fn(&engine_api::Pool) -> u64| {
        shown
            .iter()
            .filter_map(move |(spec, presence)| Some((labels(spec), number(figure(presence.here()?)))))
    };
    let bytes = Some(Unit::Bytes);
    let capacity = ("pool_capacity", "What replicas can have in all", bytes.clone());
    gauges(encoder, capacity, each(|pool| pool.capacity_bytes))?;
    gauges(encoder, ("pool_used", "What replicas occupy", bytes.clone()), each(|pool| pool.used_bytes))?;
    let committed = ("pool_committed", "What is promised to replicas", bytes);
    gauges(encoder, committed, each(|pool| pool.committed_bytes))
}

fn encode_volumes(encoder: &mut DescriptorEncoder<'_>, core: &Core) -> fmt::Result {
    const STATUSES: [(VolumeStatus, &str); 4] = [
        (VolumeStatus::Online, "online"),
        (VolumeStatus::Degraded, "degraded"),
        (VolumeStatus::Faulted, "faulted"),
        (VolumeStatus::Unknown, "unknown"),
    ];
    let volumes: Vec<(VolumeSpec, VolumeStatus)> = core
        .volumes()
        .list()
        .into_iter()
        .map(|spec| {
            let status = status(&core.volumes().view(spec.uuid));
            (spec, status)
        })
        .collect();
    let mut by_status: BTreeMap<&str, u64> = STATUSES.iter().map(|(_, name)| (*name, 0)).collect();
    for (_, found) in &volumes {
        let name = STATUSES.iter().find(|(status, _)| status == found).map(|(_, name)| *name);
        *by_status.entry(name.unwrap_or("unknown")).or_default() += 1;
    }
    let counts = by_status.into_iter().map(|(name, count)| (vec![label("status", name)], number(count)));
    gauges(encoder, ("volumes", "Volumes by status", None), counts)?;
    let each = |figure: fn(&VolumeSpec, VolumeStatus) -> u64| {
        volumes.iter().map(move |(spec, status)| {
            (vec![label("volume", spec.uuid.to_string())], number(figure(spec, *status)))
        })
    };
    let size = ("volume_size", "Size that hosts see", Some(Unit::Bytes));
    gauges(encoder, size, each(|spec, _| spec.size))?;
    let wanted = ("volume_replicas_wanted", "Replicas that a volume shall have", None);
    gauges(encoder, wanted, each(|spec, _| spec.num_replicas.into()))?;
    let is_online = |_: &VolumeSpec, status| u64::from(status == VolumeStatus::Online);
    gauges(encoder, ("volume_online", "1 where all replicas have all data", None), each(is_online))?;
    let published = ("volume_published", "1 where a volume is served", None);
    gauges(encoder, published, each(|spec, _| spec.target.is_some().into()))?;
    let count = number(core.persistent.orphans() as u64);
    let help = "Volumes of claims that nothing refers to and that are kept";
    gauges(encoder, ("volumes_orphaned", help, None), [(Labels::new(), count)])
}
