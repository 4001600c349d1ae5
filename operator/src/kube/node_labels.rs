//! Labels of nodes, and with them zones, as Kubernetes has them: replicas are placed by them.
//!
//! The registry keeps what was seen last, so that placement goes on while the API server is away. A node that leaves
//! Kubernetes keeps its labels: its engine, and what it holds, may still be there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Node;
use kube::api::PartialObjectMeta;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use telemetry::chain;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::run::SteadyPause;
use crate::core::Core;
use crate::registry::{NodeSpec, ObjectKey};

type Labels = BTreeMap<String, String>;

/// Pause after the registry could not be written.
const RETRY: Duration = Duration::from_secs(2);
/// Nothing is due.
const IDLE: Duration = Duration::from_secs(3600);

/// Keeps the labels of the registry's nodes as those of Kubernetes' nodes of the same names, until `stop`.
pub async fn follow(client: Client, core: Arc<Core>, stop: CancellationToken) {
    let api: Api<PartialObjectMeta<Node>> = Api::all(client);
    let mut seen = watcher(api, watcher::Config::default()).backoff(SteadyPause).boxed();
    let mut changes = core.registry.changes();
    let mut labels: BTreeMap<String, Labels> = BTreeMap::new();
    // Nodes whose labels the registry may not have.
    let mut open: BTreeSet<String> = BTreeSet::new();
    let mut due = Instant::now() + IDLE;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            event = seen.try_next() => match event {
                Ok(Some(watcher::Event::Apply(node) | watcher::Event::InitApply(node))) => {
                    let name = node.name_any();
                    labels.insert(name.clone(), node.labels().clone());
                    open.insert(name);
                    due = Instant::now();
                }
                Ok(Some(watcher::Event::Delete(node))) => drop(labels.remove(&node.name_any())),
                Ok(Some(watcher::Event::Init | watcher::Event::InitDone)) => {}
                // A watcher does not end.
                Ok(None) => return,
                Err(error) => debug!(error = %chain(&error), "watch of nodes broke, trying again"),
            },
            change = changes.recv() => match change {
                // It may be new here and long known there.
                Ok(ObjectKey::Node(name)) => {
                    open.insert(name);
                    due = Instant::now();
                }
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => {
                    open.extend(labels.keys().cloned());
                    due = Instant::now();
                }
                Err(RecvError::Closed) => return,
            },
            () = tokio::time::sleep_until(due) => {
                let mut left = BTreeSet::new();
                for name in std::mem::take(&mut open) {
                    if !take_over(&core, &name, labels.get(&name)).await {
                        left.insert(name);
                    }
                }
                due = Instant::now() + if left.is_empty() { IDLE } else { RETRY };
                open = left;
            }
        }
    }
}

/// Whether the registry has these labels now, or has no such node.
async fn take_over(core: &Core, name: &str, labels: Option<&Labels>) -> bool {
    let (Some(labels), Some(spec)) = (labels, core.registry.get::<NodeSpec>(name)) else { return true };
    if spec.kubernetes_labels == *labels {
        return true;
    }
    match core.nodes().set_kubernetes_labels(name, labels.clone()).await {
        Ok(_) => {
            info!(node.name = name, "labels of the node taken over from Kubernetes");
            true
        }
        Err(error) => {
            warn!(node.name = name, error = %error.chain(), "labels of the node not taken over, trying again");
            false
        }
    }
}
