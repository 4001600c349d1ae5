//! Pools and volumes over REST, as an admin or a node plugin asks for them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use control_api::{
    Client, CreatePoolBody, CreateVolumeBody, NodeStatus, PoolStatus, Volume, VolumePolicy, VolumeStatus,
};
use uuid::Uuid;

use super::Lab;
use crate::wait::wait_until;

const MIB: u64 = 1 << 20;
/// Small pools have small units.
const CLUSTER_BYTES: u32 = 1 << 20;
/// Healing goes in steps of seconds, on a machine that may be slow.
const PATIENCE: Duration = Duration::from_secs(120);

impl Lab {
    /// Waits until all engines are registered with the operator that leads, and online.
    pub async fn wait_nodes(&self) -> Result<()> {
        let rest = self.rest().await?;
        wait_until(PATIENCE, "all engines to be online", || async {
            let nodes = rest.nodes().await?;
            let states = nodes.iter().filter_map(|node| node.state.as_ref());
            let online = states.filter(|state| state.status == NodeStatus::Online).count();
            ensure!(online == self.engines.len(), "{online} online: {nodes:?}");
            Ok(())
        })
        .await
    }

    /// A pool on each node, named after it. Returns a client of the leader when all are online.
    pub async fn create_pools(&self) -> Result<Client> {
        let rest = self.rest().await?;
        for engine in &self.engines {
            let body = CreatePoolBody {
                disks: vec![engine.disk().display().to_string()],
                cluster_size: Some(CLUSTER_BYTES),
                ..CreatePoolBody::default()
            };
            let name = format!("pool-{}", engine.name());
            rest.create_pool(&engine.name(), &name, &body).await?;
        }
        self.all_pools_online().await
    }

    /// A leader that has heard of every node and its pool.
    pub async fn all_pools_online(&self) -> Result<Client> {
        let rest = self.rest().await?;
        wait_until(PATIENCE, "all pools to be online", || async {
            let pools = rest.pools().await?;
            let states = pools.iter().filter_map(|pool| pool.state.as_ref());
            let online = states.filter(|state| state.status == PoolStatus::Online).count();
            ensure!(online == self.engines.len(), "{pools:?}");
            Ok(())
        })
        .await?;
        Ok(rest)
    }
}

/// A thin volume that heals itself.
pub fn volume_body(replicas: u8, size_mib: u64) -> CreateVolumeBody {
    CreateVolumeBody {
        policy: VolumePolicy { self_heal: true },
        replicas,
        size: size_mib * MIB,
        thin: true,
        topology: None,
        affinity_group: None,
        labels: None,
    }
}

/// Waits until a volume is so well.
pub async fn wait_status(rest: &Client, volume: Uuid, status: VolumeStatus) -> Result<Volume> {
    wait_until(PATIENCE, &format!("the volume to be {status:?}"), || async {
        let volume = rest.volume(volume).await?;
        ensure!(volume.state.status == status, "{:?}", volume.state);
        Ok(volume)
    })
    .await
}

/// The number of the node that shall serve a volume, and the nexus.
pub fn target_of(volume: &Volume) -> Result<(u8, Uuid)> {
    let target = volume.spec.target.as_ref().with_context(|| format!("not published: {volume:?}"))?;
    Ok((node_number(&target.node)?, target.uuid.context("no nexus is named")?))
}

/// 2 for `node-2`.
pub fn node_number(node: &str) -> Result<u8> {
    let number = node.strip_prefix("node-").and_then(|number| number.parse().ok());
    number.with_context(|| format!("{node} is no node of this lab"))
}
