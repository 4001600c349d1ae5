//! What Prometheus is told: taken from the shard when it asks, so that nothing is done for it in between.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine_api::{ChildState, Nexus, NexusState, Pool, PoolState, Replica};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::{Registry, Unit};
use telemetry::metrics::{Durations, Labels, counters, durations, gauges, number};

use crate::block::figures::{BOUNDS, Counts, Figures, Operation};
use crate::engine::EngineHandle;
use crate::engine::figures::EngineFigures;

/// A shard that is busy answers later; the figures before are shown again.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// The figures that were taken last. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    taken: Arc<Mutex<EngineFigures>>,
}

impl Metrics {
    /// Shows them in a registry, with names that begin with `io_engine_`.
    pub fn register(&self, registry: &mut Registry) {
        registry.sub_registry_with_prefix("io_engine").register_collector(Box::new(self.clone()));
    }

    /// Takes them.
    pub async fn look(&self, engine: EngineHandle) {
        match tokio::time::timeout(LOOK_LIMIT, engine.figures()).await {
            Ok(Ok(figures)) => *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = figures,
            Ok(Err(error)) => tracing::debug!(%error, "figures not taken"),
            Err(_) => tracing::debug!("figures not taken in time"),
        }
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone();
        encode_pools(&mut encoder, &taken.pools)?;
        encode_replicas(&mut encoder, &taken.replicas)?;
        encode_nexuses(&mut encoder, &taken.nexuses)
    }
}

fn label(name: &'static str, value: impl Into<String>) -> (&'static str, String) {
    (name, value.into())
}

fn encode_pools(encoder: &mut DescriptorEncoder<'_>, pools: &[Pool]) -> fmt::Result {
    let each = |figure: fn(&Pool) -> u64| {
        pools.iter().map(move |pool| (vec![label("pool", &pool.name)], number(figure(pool))))
    };
    let bytes = || Some(Unit::Bytes);
    let capacity = ("pool_capacity", "What replicas can have in all", bytes());
    gauges(encoder, capacity, each(|pool| pool.capacity_bytes))?;
    gauges(encoder, ("pool_used", "What replicas occupy", bytes()), each(|pool| pool.used_bytes))?;
    let committed = ("pool_committed", "What is promised to replicas", bytes());
    gauges(encoder, committed, each(|pool| pool.committed_bytes))?;
    let is_online = |pool: &Pool| u64::from(matches!(pool.state, PoolState::Online | PoolState::Degraded));
    gauges(encoder, ("pool_online", "1 where a pool serves, also degraded", None), each(is_online))
}

fn encode_replicas(encoder: &mut DescriptorEncoder<'_>, replicas: &[(Replica, Figures)]) -> fmt::Result {
    let labels = |replica: &Replica| {
        vec![
            label("replica", replica.uuid.to_string()),
            label("pool", &replica.pool_name),
            label("volume", replica.entity_id.clone().unwrap_or_default()),
        ]
    };
    let each = |figure: fn(&Replica) -> u64| {
        replicas.iter().map(move |(replica, _)| (labels(replica), number(figure(replica))))
    };
    let size = ("replica_size", "Size of a replica", Some(Unit::Bytes));
    gauges(encoder, size, each(|replica| replica.size_bytes))?;
    let allocated = ("replica_allocated", "Space that a replica takes", Some(Unit::Bytes));
    gauges(encoder, allocated, each(|replica| replica.usage.allocated_bytes))?;
    let devices: Vec<_> = replicas.iter().map(|(replica, figures)| (labels(replica), figures)).collect();
    encode_io(encoder, "replica", "of nexuses of all engines", &devices)
}

fn encode_nexuses(encoder: &mut DescriptorEncoder<'_>, nexuses: &[(Nexus, Figures)]) -> fmt::Result {
    let labels = |nexus: &Nexus| vec![label("nexus", nexus.uuid.to_string()), label("volume", &nexus.name)];
    let each = |figure: fn(&Nexus) -> u64| {
        nexuses.iter().map(move |(nexus, _)| (labels(nexus), number(figure(nexus))))
    };
    let size = ("nexus_size", "Size that hosts see", Some(Unit::Bytes));
    gauges(encoder, size, each(|nexus| nexus.size_bytes))?;
    let serves = |nexus: &Nexus| u64::from(matches!(nexus.state, NexusState::Online | NexusState::Degraded));
    let serving = ("nexus_serving", "1 where a nexus serves, also degraded; 0 where I/O waits", None);
    gauges(encoder, serving, each(serves))?;
    let children = ("nexus_children", "Children of a nexus", None);
    gauges(encoder, children, each(|nexus| nexus.children.len() as u64))?;
    let has_all = |nexus: &Nexus| {
        nexus.children.iter().filter(|child| child.state == ChildState::Online).count() as u64
    };
    gauges(encoder, ("nexus_children_online", "Children that have all data", None), each(has_all))?;
    gauges(encoder, ("nexus_rebuilds", "Rebuilds that run", None), each(|nexus| nexus.rebuilds.into()))?;
    let rebuilt = nexuses.iter().flat_map(|(nexus, _)| {
        nexus.children.iter().filter_map(move |child| {
            let mut labels = labels(nexus);
            labels.push(label("child", &child.uri));
            Some((labels, f64::from(child.rebuild_percent?) / 100.0))
        })
    });
    let progress = ("nexus_rebuild_progress", "How much of a child is rebuilt", Some(Unit::Ratios));
    gauges(encoder, progress, rebuilt)?;
    let devices: Vec<_> = nexuses.iter().map(|(nexus, figures)| (labels(nexus), figures)).collect();
    encode_io(encoder, "nexus", "of hosts, the time that I/O was held included", &devices)
}

/// I/O of many devices, by operation.
fn encode_io(
    encoder: &mut DescriptorEncoder<'_>,
    what: &str,
    whose: &str,
    devices: &[(Labels, &Figures)],
) -> fmt::Result {
    let each = || {
        devices.iter().flat_map(|(labels, figures)| {
            Operation::ALL.iter().zip(figures.iter()).map(move |(operation, counts)| {
                let mut labels = labels.clone();
                labels.push(label("operation", operation.name()));
                (labels, counts)
            })
        })
    };
    let (name, help) = (format!("{what}_io"), format!("Bytes of requests {whose} that succeeded"));
    let bytes = each().map(|(labels, counts)| (labels, number(counts.bytes)));
    counters(encoder, (&name, &help, Some(Unit::Bytes)), bytes)?;
    let (name, help) = (format!("{what}_io_errors"), format!("Requests {whose} that failed"));
    let errors = each().map(|(labels, counts)| (labels, number(counts.errors)));
    counters(encoder, (&name, &help, None), errors)?;
    let (name, help) = (format!("{what}_io_duration"), format!("How long requests {whose} took"));
    durations(encoder, (&name, &help), each().map(|(labels, counts)| (labels, of(counts))))
}

fn of(counts: &Counts) -> Durations {
    Durations {
        sum: counts.duration.as_secs_f64(),
        count: counts.requests,
        classes: BOUNDS.iter().map(Duration::as_secs_f64).zip(counts.within).collect(),
    }
}

#[cfg(test)]
mod tests {
    use engine_api::{AnaState, Child, ChildReason};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_nexus_is_told_with_its_children_rebuilds_and_requests() {
        let child = |uri: &str, state, rebuild_percent| Child {
            uri: uri.into(),
            state,
            reason: ChildReason::None,
            rebuild_percent,
            device_name: None,
            faulted_at: None,
            is_missed_known: false,
        };
        let nexus = Nexus {
            uuid: Uuid::from_u128(1),
            name: "volume-1".into(),
            size_bytes: 1 << 30,
            state: NexusState::Degraded,
            children: vec![
                child("bdev:///a", ChildState::Online, None),
                child("nvmf://b", ChildState::Degraded, Some(40)),
            ],
            device_uri: None,
            rebuilds: 1,
            ana_state: AnaState::Optimized,
            allowed_hosts: Vec::new(),
        };
        let mut figures = Figures::default();
        let counts = &mut figures[Operation::Write as usize];
        (counts.requests, counts.errors, counts.bytes) = (3, 1, 8192);
        counts.duration = Duration::from_millis(1500);
        counts.within[0] = 2;
        let metrics = Metrics::default();
        metrics.taken.lock().unwrap().nexuses.push((nexus, figures));
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        let labels = format!("nexus=\"{}\",volume=\"volume-1\"", Uuid::from_u128(1));
        for line in [
            format!("io_engine_nexus_serving{{{labels}}} 1.0"),
            format!("io_engine_nexus_children{{{labels}}} 2.0"),
            format!("io_engine_nexus_children_online{{{labels}}} 1.0"),
            format!("io_engine_nexus_rebuild_progress_ratios{{{labels},child=\"nvmf://b\"}} 0.4"),
            format!("io_engine_nexus_io_bytes_total{{{labels},operation=\"write\"}} 8192.0"),
            format!("io_engine_nexus_io_errors_total{{{labels},operation=\"write\"}} 1.0"),
            format!("io_engine_nexus_io_duration_seconds_sum{{{labels},operation=\"write\"}} 1.5"),
            format!("io_engine_nexus_io_duration_seconds_count{{{labels},operation=\"write\"}} 3"),
            format!(
                "io_engine_nexus_io_duration_seconds_bucket{{le=\"0.00005\",{labels},operation=\"write\"}} 2"
            ),
            format!(
                "io_engine_nexus_io_duration_seconds_bucket{{le=\"+Inf\",{labels},operation=\"write\"}} 3"
            ),
            format!("io_engine_nexus_io_bytes_total{{{labels},operation=\"read\"}} 0.0"),
        ] {
            assert!(page.contains(&line), "{line} is not in\n{page}");
        }
    }
}
