//! NexusRpc.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use tonic::Request;
use uuid::Uuid;

use super::{Front, Reply, unimplemented_call};
use crate::{
    convert::{FieldError, needed_share, optional_uuid, rebuild_history_answer, uuid},
    engine::Engine,
    error::ApiError,
    proto,
    types::{ChildAction, ChildRef, Nexus},
};

fn child(path: &'static str, nexus: &str, uri: String) -> Result<ChildRef, FieldError> {
    Ok(ChildRef { nexus: uuid(path, nexus)?, uri })
}

async fn find(engine: &Arc<dyn Engine>, id: Uuid) -> Result<Nexus, ApiError> {
    let nexuses = engine.list_nexuses().await?;
    nexuses
        .into_iter()
        .find(|nexus| nexus.uuid == id)
        .ok_or_else(|| ApiError::not_found(format!("there is no nexus {id} here")))
}

/// Answers that are a nexus and nothing else.
macro_rules! with_nexus {
    ($answer:ident, $nexus:expr) => {
        proto::$answer { nexus: Some($nexus.into()) }
    };
}

#[tonic::async_trait]
impl proto::nexus_rpc_server::NexusRpc for Front {
    async fn create_nexus(
        &self,
        request: Request<proto::CreateNexusRequest>,
    ) -> Reply<proto::CreateNexusResponse> {
        self.change(request, |engine, call, message| async move {
            Ok(with_nexus!(CreateNexusResponse, engine.create_nexus(call, message.try_into()?).await?))
        })
        .await
    }

    async fn destroy_nexus(&self, request: Request<proto::DestroyNexusRequest>) -> Reply<()> {
        self.change(request, |engine, call, message| async move {
            engine.destroy_nexus(call, uuid("DestroyNexusRequest.uuid", &message.uuid)?).await
        })
        .await
    }

    async fn shutdown_nexus(
        &self,
        request: Request<proto::ShutdownNexusRequest>,
    ) -> Reply<proto::ShutdownNexusResponse> {
        self.change(request, |engine, call, message| async move {
            let id = uuid("ShutdownNexusRequest.uuid", &message.uuid)?;
            Ok(with_nexus!(ShutdownNexusResponse, engine.shutdown_nexus(call, id).await?))
        })
        .await
    }

    async fn list_nexus(&self, request: Request<proto::ListNexusOptions>) -> Reply<proto::ListNexusResponse> {
        self.read(request, |engine, message| async move {
            let id = optional_uuid("ListNexusOptions.uuid", message.uuid.as_ref())?;
            let nexus_list = match (message.name, id) {
                (Some(name), _) => {
                    let nexuses = engine.list_nexuses().await?;
                    nexuses.into_iter().filter(|nexus| nexus.name == name).map(Into::into).collect()
                }
                (None, Some(id)) => vec![find(&engine, id).await?.into()],
                (None, None) => engine.list_nexuses().await?.into_iter().map(Into::into).collect(),
            };
            Ok(proto::ListNexusResponse { nexus_list })
        })
        .await
    }

    async fn publish_nexus(
        &self,
        request: Request<proto::PublishNexusRequest>,
    ) -> Reply<proto::PublishNexusResponse> {
        self.change(request, |engine, call, message| async move {
            if !matches!(message.key.len(), 0 | 16) {
                return Err(ApiError::invalid("field PublishNexusRequest.key: empty, or 16 characters"));
            }
            let id = uuid("PublishNexusRequest.uuid", &message.uuid)?;
            let share = needed_share("PublishNexusRequest.share", message.share, message.allowed_hosts)?;
            Ok(with_nexus!(PublishNexusResponse, engine.publish_nexus(call, id, share).await?))
        })
        .await
    }

    async fn unpublish_nexus(
        &self,
        request: Request<proto::UnpublishNexusRequest>,
    ) -> Reply<proto::UnpublishNexusResponse> {
        self.change(request, |engine, call, message| async move {
            let id = uuid("UnpublishNexusRequest.uuid", &message.uuid)?;
            Ok(with_nexus!(UnpublishNexusResponse, engine.unpublish_nexus(call, id).await?))
        })
        .await
    }

    async fn add_child_nexus(
        &self,
        request: Request<proto::AddChildNexusRequest>,
    ) -> Reply<proto::AddChildNexusResponse> {
        self.change(request, |engine, call, message| async move {
            Ok(with_nexus!(AddChildNexusResponse, engine.add_child(call, message.try_into()?).await?))
        })
        .await
    }

    async fn remove_child_nexus(
        &self,
        request: Request<proto::RemoveChildNexusRequest>,
    ) -> Reply<proto::RemoveChildNexusResponse> {
        self.change(request, |engine, call, message| async move {
            let child = child("RemoveChildNexusRequest.uuid", &message.uuid, message.uri)?;
            Ok(with_nexus!(RemoveChildNexusResponse, engine.remove_child(call, child).await?))
        })
        .await
    }

    async fn fault_nexus_child(
        &self,
        request: Request<proto::FaultNexusChildRequest>,
    ) -> Reply<proto::FaultNexusChildResponse> {
        self.change(request, |engine, call, message| async move {
            let child = child("FaultNexusChildRequest.uuid", &message.uuid, message.uri)?;
            Ok(with_nexus!(FaultNexusChildResponse, engine.fault_child(call, child).await?))
        })
        .await
    }

    async fn child_operation(
        &self,
        request: Request<proto::ChildOperationRequest>,
    ) -> Reply<proto::ChildOperationResponse> {
        self.change(request, |engine, call, message| async move {
            let action =
                proto::ChildAction::try_from(message.action).map(ChildAction::from).map_err(|_| {
                    ApiError::invalid(format!(
                        "field ChildOperationRequest.action: {} is no action",
                        message.action
                    ))
                })?;
            let child = child("ChildOperationRequest.nexus_uuid", &message.nexus_uuid, message.uri)?;
            let nexus = engine.child_operation(call, child, action).await?;
            Ok(with_nexus!(ChildOperationResponse, nexus))
        })
        .await
    }

    async fn get_rebuild_state(
        &self,
        request: Request<proto::RebuildStateRequest>,
    ) -> Reply<proto::RebuildStateResponse> {
        self.read(request, |engine, message| async move {
            let child = child("RebuildStateRequest.nexus_uuid", &message.nexus_uuid, message.uri)?;
            engine.rebuild_stats(child).await?;
            Ok(proto::RebuildStateResponse { state: "running".into() })
        })
        .await
    }

    async fn get_rebuild_stats(
        &self,
        request: Request<proto::RebuildStatsRequest>,
    ) -> Reply<proto::RebuildStatsResponse> {
        self.read(request, |engine, message| async move {
            let child = child("RebuildStatsRequest.nexus_uuid", &message.nexus_uuid, message.uri)?;
            Ok(engine.rebuild_stats(child).await?.into())
        })
        .await
    }

    async fn get_rebuild_history(
        &self,
        request: Request<proto::RebuildHistoryRequest>,
    ) -> Reply<proto::RebuildHistoryResponse> {
        self.read(request, |engine, message| async move {
            let nexus = find(&engine, uuid("RebuildHistoryRequest.uuid", &message.uuid)?).await?;
            let mut records = engine.rebuild_history().await?;
            records.retain(|record| record.nexus == nexus.uuid);
            let names = BTreeMap::from([(nexus.uuid, nexus.name.clone())]);
            let all = proto::ListRebuildHistoryRequest::default();
            let mut answer = rebuild_history_answer(records, &names, &all, Timestamp::UNIX_EPOCH)?;
            let id = nexus.uuid.to_string();
            Ok(answer.histories.remove(&id).unwrap_or(proto::RebuildHistoryResponse {
                uuid: id,
                name: nexus.name,
                records: Vec::new(),
            }))
        })
        .await
    }

    async fn list_rebuild_history(
        &self,
        request: Request<proto::ListRebuildHistoryRequest>,
    ) -> Reply<proto::ListRebuildHistoryResponse> {
        self.read(request, |engine, message| async move {
            let nexuses = engine.list_nexuses().await?;
            let names = nexuses.into_iter().map(|nexus| (nexus.uuid, nexus.name)).collect();
            let records = engine.rebuild_history().await?;
            Ok(rebuild_history_answer(records, &names, &message, Timestamp::now())?)
        })
        .await
    }

    async fn get_nvme_ana_state(
        &self,
        request: Request<proto::GetNvmeAnaStateRequest>,
    ) -> Reply<proto::GetNvmeAnaStateResponse> {
        self.read(request, |engine, message| async move {
            let id = uuid("GetNvmeAnaStateRequest.uuid", &message.uuid)?;
            let ana_state = proto::NvmeAnaState::from(engine.get_ana_state(id).await?).into();
            Ok(proto::GetNvmeAnaStateResponse { ana_state })
        })
        .await
    }

    async fn set_nvme_ana_state(
        &self,
        request: Request<proto::SetNvmeAnaStateRequest>,
    ) -> Reply<proto::SetNvmeAnaStateResponse> {
        self.change(request, |engine, call, message| async move {
            let id = uuid("SetNvmeAnaStateRequest.uuid", &message.uuid)?;
            let state = proto::NvmeAnaState::try_from(message.ana_state).map_err(|_| {
                let what = format!("{} is no ANA state", message.ana_state);
                ApiError::invalid(format!("field SetNvmeAnaStateRequest.ana_state: {what}"))
            })?;
            Ok(with_nexus!(SetNvmeAnaStateResponse, engine.set_ana_state(call, id, state.into()).await?))
        })
        .await
    }

    async fn resize_nexus(
        &self,
        request: Request<proto::ResizeNexusRequest>,
    ) -> Reply<proto::ResizeNexusResponse> {
        self.change(request, |engine, call, message| async move {
            let id = uuid("ResizeNexusRequest.uuid", &message.uuid)?;
            let size_bytes = message.requested_size;
            Ok(with_nexus!(ResizeNexusResponse, engine.resize_nexus(call, id, size_bytes).await?))
        })
        .await
    }

    async fn start_rebuild(
        &self,
        _: Request<proto::StartRebuildRequest>,
    ) -> Reply<proto::StartRebuildResponse> {
        Err(unimplemented_call("NexusRpc/StartRebuild"))
    }

    async fn stop_rebuild(&self, _: Request<proto::StopRebuildRequest>) -> Reply<proto::StopRebuildResponse> {
        Err(unimplemented_call("NexusRpc/StopRebuild"))
    }

    async fn pause_rebuild(
        &self,
        _: Request<proto::PauseRebuildRequest>,
    ) -> Reply<proto::PauseRebuildResponse> {
        Err(unimplemented_call("NexusRpc/PauseRebuild"))
    }

    async fn resume_rebuild(
        &self,
        _: Request<proto::ResumeRebuildRequest>,
    ) -> Reply<proto::ResumeRebuildResponse> {
        Err(unimplemented_call("NexusRpc/ResumeRebuild"))
    }
}
