//! The trait on a simulated engine: delay, cut, fault, fence, then the effect.

use std::collections::VecDeque;

use uuid::Uuid;

use super::{
    SimEngine, When,
    world::{Fault, World},
};
use crate::{
    engine::{Answer, Call, Engine},
    error::{ApiError, ErrorKind},
    types::{
        AddChild, AnaState, BlockDevice, ChildAction, ChildRef, CreateNexus, CreatePool, CreateReplica,
        DestroyReplica, ImportPool, Nexus, NodeInfo, Pool, PoolRef, RebuildRecord, RebuildStats, Replica,
        ResourceUsage, Share,
    },
};

/// The injected failure that a call meets, if any, taken from the line.
fn take_fault(faults: &mut VecDeque<Fault>, method: &str) -> Option<Fault> {
    let at = faults.iter().position(|fault| fault.method == method)?;
    faults.remove(at)
}

impl SimEngine {
    /// Runs a call with everything that can go wrong around it.
    fn run<'a, T: Send + 'a>(
        &'a self,
        method: &'static str,
        change: Option<Call>,
        effect: impl FnOnce(&mut World, &str) -> Result<T, ApiError> + Send + 'a,
    ) -> Answer<'a, T> {
        Box::pin(async move {
            let delay = self.with(|world, node| world.find(node).map_or_else(Default::default, |n| n.delay));
            if !delay.is_zero() {
                tokio::time::sleep(delay / 2).await;
            }
            let timeout = change.and_then(|call| call.timeout);
            if timeout.is_some_and(|timeout| timeout < delay / 2) {
                let why = format!("{}: the caller's time is over", self.node());
                return Err(ApiError::new(ErrorKind::DeadlineExceeded, why));
            }
            let answer = self.with(|world, node| {
                let unavailable =
                    || ApiError::new(ErrorKind::Unavailable, format!("engine {node} cannot be reached"));
                let here = world.find_mut(node).ok_or_else(unavailable)?;
                if !here.is_running || !here.is_reachable {
                    return Err(unavailable());
                }
                if let Some(call) = change {
                    here.calls.push(method);
                    if let Some(newer) = here.fence.admit(call.fence)? {
                        here.fence = newer;
                    }
                }
                match take_fault(&mut here.faults, method) {
                    Some(Fault { when: When::BeforeEffect, error, .. }) => Err(error),
                    Some(Fault { when: When::AfterEffect, error, .. }) => {
                        effect(world, node)?;
                        Err(error)
                    }
                    None => effect(world, node),
                }
            });
            if !delay.is_zero() {
                tokio::time::sleep(delay / 2).await;
            }
            answer
        })
    }
}

impl Engine for SimEngine {
    fn info(&self) -> Answer<'_, NodeInfo> {
        self.run("info", None, |world, node| Ok(world.node(node).info.clone()))
    }

    fn list_block_devices(&self, all: bool) -> Answer<'_, Vec<BlockDevice>> {
        self.run("list_block_devices", None, move |world, node| Ok(world.node(node).block_devices(all)))
    }

    fn resource_usage(&self) -> Answer<'_, ResourceUsage> {
        self.run("resource_usage", None, |_, _| Ok(ResourceUsage::default()))
    }

    fn list_pools(&self) -> Answer<'_, Vec<Pool>> {
        self.run("list_pools", None, |world, node| Ok(world.node(node).pools()))
    }

    fn create_pool(&self, call: Call, request: CreatePool) -> Answer<'_, Pool> {
        self.run("create_pool", Some(call), |world, node| world.create_pool(node, request))
    }

    fn import_pool(&self, call: Call, request: ImportPool) -> Answer<'_, Pool> {
        self.run("import_pool", Some(call), move |world, node| world.node_mut(node).import_pool(&request))
    }

    fn export_pool(&self, call: Call, pool: PoolRef) -> Answer<'_, ()> {
        self.run("export_pool", Some(call), move |world, node| world.remove_pool(node, &pool, false))
    }

    fn destroy_pool(&self, call: Call, pool: PoolRef) -> Answer<'_, ()> {
        self.run("destroy_pool", Some(call), move |world, node| world.remove_pool(node, &pool, true))
    }

    fn list_replicas(&self) -> Answer<'_, Vec<Replica>> {
        self.run("list_replicas", None, |world, node| Ok(world.node(node).replicas()))
    }

    fn create_replica(&self, call: Call, request: CreateReplica) -> Answer<'_, Replica> {
        self.run("create_replica", Some(call), |world, node| world.node_mut(node).create_replica(request))
    }

    fn destroy_replica(&self, call: Call, request: DestroyReplica) -> Answer<'_, ()> {
        self.run("destroy_replica", Some(call), move |world, node| world.destroy_replica(node, &request))
    }

    fn share_replica(&self, call: Call, replica: Uuid, share: Share) -> Answer<'_, Replica> {
        self.run("share_replica", Some(call), move |world, node| {
            world.node_mut(node).share_replica(replica, Some(share))
        })
    }

    fn unshare_replica(&self, call: Call, replica: Uuid) -> Answer<'_, Replica> {
        self.run("unshare_replica", Some(call), move |world, node| {
            world.node_mut(node).share_replica(replica, None)
        })
    }

    fn resize_replica(&self, call: Call, replica: Uuid, size_bytes: u64) -> Answer<'_, Replica> {
        self.run("resize_replica", Some(call), move |world, node| {
            world.node_mut(node).resize_replica(replica, size_bytes)
        })
    }

    fn list_nexuses(&self) -> Answer<'_, Vec<Nexus>> {
        self.run("list_nexuses", None, |world, node| Ok(world.nexuses(node)))
    }

    fn create_nexus(&self, call: Call, request: CreateNexus) -> Answer<'_, Nexus> {
        self.run("create_nexus", Some(call), |world, node| world.create_nexus(node, request))
    }

    fn destroy_nexus(&self, call: Call, nexus: Uuid) -> Answer<'_, ()> {
        self.run("destroy_nexus", Some(call), move |world, node| world.destroy_nexus(node, nexus))
    }

    fn shutdown_nexus(&self, call: Call, nexus: Uuid) -> Answer<'_, Nexus> {
        self.run("shutdown_nexus", Some(call), move |world, node| world.shutdown_nexus(node, nexus))
    }

    fn publish_nexus(&self, call: Call, nexus: Uuid, share: Share) -> Answer<'_, Nexus> {
        self.run("publish_nexus", Some(call), move |world, node| {
            world.publish_nexus(node, nexus, Some(share))
        })
    }

    fn unpublish_nexus(&self, call: Call, nexus: Uuid) -> Answer<'_, Nexus> {
        self.run("unpublish_nexus", Some(call), move |world, node| world.publish_nexus(node, nexus, None))
    }

    fn set_ana_state(&self, call: Call, nexus: Uuid, state: AnaState) -> Answer<'_, Nexus> {
        self.run("set_ana_state", Some(call), move |world, node| world.set_ana_state(node, nexus, state))
    }

    fn resize_nexus(&self, call: Call, nexus: Uuid, size_bytes: u64) -> Answer<'_, Nexus> {
        self.run("resize_nexus", Some(call), move |world, node| world.resize_nexus(node, nexus, size_bytes))
    }

    fn get_ana_state(&self, nexus: Uuid) -> Answer<'_, AnaState> {
        self.run("get_ana_state", None, move |world, node| world.get_ana_state(node, nexus))
    }

    fn add_child(&self, call: Call, request: AddChild) -> Answer<'_, Nexus> {
        self.run("add_child", Some(call), move |world, node| world.add_child(node, &request))
    }

    fn remove_child(&self, call: Call, child: ChildRef) -> Answer<'_, Nexus> {
        self.run("remove_child", Some(call), move |world, node| world.remove_child(node, &child))
    }

    fn fault_child(&self, call: Call, child: ChildRef) -> Answer<'_, Nexus> {
        self.run("fault_child", Some(call), move |world, node| {
            world.child_operation(node, &child, ChildAction::OfflinePermanent)
        })
    }

    fn child_operation(&self, call: Call, child: ChildRef, action: ChildAction) -> Answer<'_, Nexus> {
        self.run("child_operation", Some(call), move |world, node| {
            world.child_operation(node, &child, action)
        })
    }

    fn rebuild_stats(&self, child: ChildRef) -> Answer<'_, RebuildStats> {
        self.run("rebuild_stats", None, move |world, node| world.rebuild_stats(node, &child))
    }

    fn rebuild_history(&self) -> Answer<'_, Vec<RebuildRecord>> {
        self.run("rebuild_history", None, |world, node| Ok(world.node(node).rebuild_records()))
    }
}
