//! What Prometheus is told of the volumes that are used on this node. Taken when it asks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::{Registry, Unit};
use telemetry::metrics::{gauges, number};
use uuid::Uuid;

use super::initiator::Initiator;
use super::volume::{device_of, places_of, shows_node};
use crate::host::identity::volume_of;
use crate::host::mount::{Mounts, Usage};
use crate::host::{Controller, HostError};

/// A file system on a lost volume answers when the volume is back: what was known before is shown until then.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// The figures. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    seen: Arc<Mutex<BTreeMap<Uuid, Figures>>>,
    /// Held while somebody looks: one thread at most waits for a lost volume.
    looking: Arc<tokio::sync::Mutex<()>>,
}

/// Of one volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Figures {
    paths: usize,
    usable_paths: usize,
    usage: Option<Usage>,
}

impl Metrics {
    /// Shows them in a registry, with names that begin with `csi_node_`.
    pub fn register(&self, registry: &mut Registry) {
        registry.sub_registry_with_prefix("csi_node").register_collector(Box::new(self.clone()));
    }

    /// Looks at the machine, for some seconds at most.
    pub async fn look(&self, initiator: Initiator, mounts: Arc<dyn Mounts>) {
        let Ok(alone) = self.looking.clone().try_lock_owned() else { return };
        let seen = self.seen.clone();
        let looking = tokio::task::spawn_blocking(move || {
            let found = look(&initiator, &*mounts);
            if let Ok(found) = found {
                *seen.lock().unwrap_or_else(PoisonError::into_inner) = found;
            }
            drop(alone);
        });
        // Late is as good as never.
        let _ = tokio::time::timeout(LOOK_LIMIT, looking).await;
    }
}

fn look(initiator: &Initiator, mounts: &dyn Mounts) -> Result<BTreeMap<Uuid, Figures>, HostError> {
    let mut controllers: BTreeMap<Uuid, Vec<Controller>> = BTreeMap::new();
    for controller in initiator.list(None)? {
        if let Some(volume) = volume_of(&controller.nqn) {
            controllers.entry(volume).or_default().push(controller);
        }
    }
    let table = mounts.mounts()?;
    let figures = |(volume, controllers): (Uuid, Vec<Controller>)| {
        let usable_paths = controllers.iter().filter(|controller| controller.is_usable()).count();
        let device = device_of(volume, &controllers).filter(|_| usable_paths > 0);
        let place = device.and_then(|device| {
            let places = places_of(&table, &device);
            places.into_iter().find(|mount| !shows_node(mount, &device)).map(|mount| &mount.target)
        });
        let usage = place.and_then(|place| mounts.usage(place).ok());
        (volume, Figures { paths: controllers.len(), usable_paths, usage })
    };
    Ok(controllers.into_iter().map(figures).collect())
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let seen: Vec<(String, Figures)> =
            seen.into_iter().map(|(volume, figures)| (volume.to_string(), figures)).collect();
        let encoder = &mut encoder;
        type Figure = fn(&Figures) -> Option<f64>;
        let all: [(&str, &str, Option<Unit>, Figure); 7] = [
            ("volume_paths", "Paths of a connected volume", None, |it| Some(number(it.paths as u64))),
            ("volume_usable_paths", "Paths of a connected volume that carry I/O", None, |it| {
                Some(number(it.usable_paths as u64))
            }),
            ("volume_capacity", "Size of a mounted file system", Some(Unit::Bytes), |it| {
                it.usage.map(|usage| number(usage.bytes))
            }),
            ("volume_used", "Space that is taken in it", Some(Unit::Bytes), |it| {
                it.usage.map(|usage| number(usage.bytes_used))
            }),
            ("volume_available", "Space that applications can take yet", Some(Unit::Bytes), |it| {
                it.usage.map(|usage| number(usage.bytes_free))
            }),
            ("volume_inodes", "Inodes of a mounted file system; none where it counts none", None, |it| {
                it.usage.filter(|usage| usage.inodes > 0).map(|usage| number(usage.inodes))
            }),
            ("volume_inodes_free", "Inodes that can be made yet", None, |it| {
                it.usage.filter(|usage| usage.inodes > 0).map(|usage| number(usage.inodes_free))
            }),
        ];
        for (name, help, unit, figure) in all {
            let points =
                seen.iter().filter_map(|(volume, it)| Some((vec![("volume", volume.clone())], figure(it)?)));
            gauges(encoder, (name, help, unit), points)?;
        }
        Ok(())
    }
}
