//! The calls of the API on the engine's handle.

use engine_api::{
    AddChild, AnaState, Answer, ApiError, BlockDevice, Call, ChildAction, ChildRef, CreateNexus, CreatePool,
    CreateReplica, DestroyReplica, Engine, ImportPool, Nexus, NodeInfo, Pool, PoolRef, RebuildRecord,
    RebuildStats, Replica, ResourceUsage, Share,
};
use uuid::Uuid;

use super::EngineHandle;
use crate::host::{self, inventory};

/// Looks at the machine on a thread that may block.
async fn look<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(ApiError::internal(format!("{what}: {error}"))),
        Err(lost) => Err(ApiError::internal(format!("{what}: {lost}"))),
    }
}

impl Engine for EngineHandle {
    fn info(&self) -> Answer<'_, NodeInfo> {
        Box::pin(async { Ok(self.node_info().clone()) })
    }

    fn list_block_devices(&self, all: bool) -> Answer<'_, Vec<BlockDevice>> {
        Box::pin(look("list block devices", move || inventory::list(&inventory::Roots::default(), all)))
    }

    fn resource_usage(&self) -> Answer<'_, ResourceUsage> {
        Box::pin(look("read the process's counters", host::resource_usage))
    }

    fn list_pools(&self) -> Answer<'_, Vec<Pool>> {
        Box::pin(self.post(|core| async move { Ok(core.list_pools()) }))
    }

    fn create_pool(&self, call: Call, request: CreatePool) -> Answer<'_, Pool> {
        Box::pin(self.change(call, move |core| async move { core.create_pool(call, request).await }))
    }

    fn import_pool(&self, call: Call, request: ImportPool) -> Answer<'_, Pool> {
        Box::pin(self.change(call, move |core| async move { core.import_pool(call, request).await }))
    }

    fn export_pool(&self, call: Call, pool: PoolRef) -> Answer<'_, ()> {
        Box::pin(self.change(call, move |core| async move { core.remove_pool(call, pool, false).await }))
    }

    fn destroy_pool(&self, call: Call, pool: PoolRef) -> Answer<'_, ()> {
        Box::pin(self.change(call, move |core| async move { core.remove_pool(call, pool, true).await }))
    }

    fn list_replicas(&self) -> Answer<'_, Vec<Replica>> {
        Box::pin(self.post(|core| async move { Ok(core.list_replicas()) }))
    }

    fn create_replica(&self, call: Call, request: CreateReplica) -> Answer<'_, Replica> {
        Box::pin(self.change(call, move |core| async move { core.create_replica(call, request).await }))
    }

    fn destroy_replica(&self, call: Call, request: DestroyReplica) -> Answer<'_, ()> {
        Box::pin(self.change(call, move |core| async move { core.destroy_replica(call, request).await }))
    }

    fn share_replica(&self, call: Call, replica: Uuid, share: Share) -> Answer<'_, Replica> {
        Box::pin(
            self.change(
                call,
                move |core| async move { core.share_replica(call, replica, Some(share)).await },
            ),
        )
    }

    fn unshare_replica(&self, call: Call, replica: Uuid) -> Answer<'_, Replica> {
        Box::pin(self.change(call, move |core| async move { core.share_replica(call, replica, None).await }))
    }

    fn resize_replica(&self, call: Call, replica: Uuid, size_bytes: u64) -> Answer<'_, Replica> {
        Box::pin(
            self.change(
                call,
                move |core| async move { core.resize_replica(call, replica, size_bytes).await },
            ),
        )
    }

    fn list_nexuses(&self) -> Answer<'_, Vec<Nexus>> {
        Box::pin(self.post(|core| async move { Ok(core.list_nexuses()) }))
    }

    fn create_nexus(&self, call: Call, request: CreateNexus) -> Answer<'_, Nexus> {
        Box::pin(self.change(call, move |core| async move { core.create_nexus(call, request).await }))
    }

    fn destroy_nexus(&self, call: Call, nexus: Uuid) -> Answer<'_, ()> {
        Box::pin(self.change(call, move |core| async move { core.destroy_nexus(call, nexus).await }))
    }

    fn shutdown_nexus(&self, call: Call, nexus: Uuid) -> Answer<'_, Nexus> {
        Box::pin(self.change(call, move |core| async move { core.shutdown_nexus(call, nexus).await }))
    }

    fn publish_nexus(&self, call: Call, nexus: Uuid, share: Share) -> Answer<'_, Nexus> {
        Box::pin(self.change(call, move |core| async move { core.publish_nexus(call, nexus, share).await }))
    }

    fn unpublish_nexus(&self, call: Call, nexus: Uuid) -> Answer<'_, Nexus> {
        Box::pin(self.change(call, move |core| async move { core.unpublish_nexus(call, nexus).await }))
    }

    fn set_ana_state(&self, call: Call, nexus: Uuid, state: AnaState) -> Answer<'_, Nexus> {
        Box::pin(self.change(call, move |core| async move { core.set_ana_state(call, nexus, state).await }))
    }

    fn resize_nexus(&self, call: Call, nexus: Uuid, size_bytes: u64) -> Answer<'_, Nexus> {
        Box::pin(
            self.change(call, move |core| async move { core.resize_nexus(call, nexus, size_bytes).await }),
        )
    }

    fn get_ana_state(&self, nexus: Uuid) -> Answer<'_, AnaState> {
        Box::pin(self.post(move |core| async move { core.get_ana_state(nexus) }))
    }

    fn add_child(&self, call: Call, request: AddChild) -> Answer<'_, Nexus> {
        Box::pin(self.change(call, move |core| async move { core.add_child(call, request).await }))
    }

    fn remove_child(&self, call: Call, child: ChildRef) -> Answer<'_, Nexus> {
        Box::pin(self.change(call, move |core| async move { core.remove_child(call, child).await }))
    }

    fn fault_child(&self, call: Call, child: ChildRef) -> Answer<'_, Nexus> {
        self.child_operation(call, child, ChildAction::OfflinePermanent)
    }

    fn child_operation(&self, call: Call, child: ChildRef, action: ChildAction) -> Answer<'_, Nexus> {
        Box::pin(
            self.change(call, move |core| async move { core.child_operation(call, child, action).await }),
        )
    }

    fn rebuild_stats(&self, child: ChildRef) -> Answer<'_, RebuildStats> {
        Box::pin(self.post(move |core| async move { core.rebuild_stats(&child) }))
    }

    fn rebuild_history(&self) -> Answer<'_, Vec<RebuildRecord>> {
        Box::pin(self.post(|core| async move { Ok(core.rebuild_history()) }))
    }
}
