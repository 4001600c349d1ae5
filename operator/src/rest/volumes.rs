//! `/volumes`, and what volumes are made of: `/nexuses`, `/replicas`, `/specs`.

use std::collections::BTreeSet;

use axum::Json;
use axum::http::StatusCode;
use control_api::{
    CreateVolumeBody, Nexus, Protocol, PublishVolumeBody, Replica, ResizeVolumeBody, RestJsonError, Specs,
    Volume, Volumes,
};
use serde::Deserialize;
use tracing::warn;
use uuid::Uuid;

use super::page::PageQuery;
use super::{Answer, Body, Failure, Leading, Path, Query, convert};
use crate::core::Core;
use crate::error::ServiceError;
use crate::registry::HostAcl;
use crate::volume::republish::Republish;
use crate::volume::{CreateVolume, PublishVolume, detached};

#[derive(Deserialize)]
pub(super) struct Which {
    /// Only this one.
    volume_id: Option<Uuid>,
    /// Only those after this one.
    after: Option<Uuid>,
}

/// Lists the volumes page by page, in the order of their ids.
#[utoipa::path(get, path = "/v0/volumes", params(("max_entries" = Option<u64>, Query, description = "at most so many; a page has 1000 at most"), ("starting_token" = Option<u64>, Query, description = "where the page before ended"), ("after" = Option<Uuid>, Query, description = "instead of a token: the last volume of the page before, which may be gone"), ("volume_id" = Option<Uuid>, Query)), responses((status = 200, body = Volumes), (status = 503, body = RestJsonError)))]
pub(super) async fn list(
    Leading(core): Leading,
    Query(page): Query<PageQuery>,
    Query(which): Query<Which>,
) -> Answer<Volumes> {
    if let Some(id) = which.volume_id {
        core.volumes().get(id)?;
        return Ok(Json(Volumes { entries: vec![convert::volume(&core, id)?], next_token: None }));
    }
    let mut all: Vec<Uuid> = core.volumes().list().into_iter().map(|spec| spec.uuid).collect();
    all.sort_unstable();
    all.retain(|id| which.after.is_none_or(|after| *id > after));
    let (ids, next_token) = page.page(all);
    // One that goes in this moment is left out.
    let entries = ids.into_iter().filter_map(|id| convert::volume(&core, id).ok()).collect();
    Ok(Json(Volumes { entries, next_token }))
}

/// One volume.
#[utoipa::path(get, path = "/v0/volumes/{id}", params(("id" = Uuid, Path)), responses((status = 200, body = Volume), (status = 404, body = RestJsonError)))]
pub(super) async fn one(Leading(core): Leading, Path(id): Path<Uuid>) -> Answer<Volume> {
    Ok(Json(convert::volume(&core, id)?))
}

/// Makes a volume.
#[utoipa::path(put, path = "/v0/volumes/{id}", params(("id" = Uuid, Path)), request_body = CreateVolumeBody, responses((status = 200, body = Volume), (status = 412, body = RestJsonError), (status = 422, body = RestJsonError), (status = 507, body = RestJsonError)))]
pub(super) async fn create(
    Leading(core): Leading,
    Path(uuid): Path<Uuid>,
    Body(body): Body<CreateVolumeBody>,
) -> Answer<Volume> {
    let request = CreateVolume {
        uuid,
        origin: None,
        size: body.size,
        replicas: body.replicas,
        thin: body.thin,
        policy: convert::policy_from(body.policy),
        topology: convert::topology_from(body.topology.unwrap_or_default()),
        affinity_group: body.affinity_group.map(|group| group.id),
        labels: body.labels.unwrap_or_default(),
    };
    detached(core.clone(), |core| async move { core.volumes().create(request).await }).await?;
    Ok(Json(convert::volume(&core, uuid)?))
}

/// Deletes a volume, published or not.
#[utoipa::path(delete, path = "/v0/volumes/{id}", params(("id" = Uuid, Path)), responses((status = 204), (status = 404, body = RestJsonError)))]
pub(super) async fn destroy(Leading(core): Leading, Path(id): Path<Uuid>) -> Result<StatusCode, Failure> {
    detached(core, |core| async move { core.volumes().destroy(id).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Serves a volume; moves the target of one that is served; with `republish`, gives it one that serves.
#[utoipa::path(put, path = "/v0/volumes/{id}/target", params(("id" = Uuid, Path)), request_body = PublishVolumeBody, responses((status = 200, body = Volume), (status = 404, body = RestJsonError), (status = 412, body = RestJsonError)))]
pub(super) async fn publish(
    Leading(core): Leading,
    Path(id): Path<Uuid>,
    Body(body): Body<PublishVolumeBody>,
) -> Answer<Volume> {
    if !matches!(body.protocol, None | Some(Protocol::Nvmf)) {
        return Err(ServiceError::invalid("a volume is served as nvmf").into());
    }
    let host = body.frontend_node.as_deref().map(host_nqn).transpose()?;
    if body.republish == Some(true) {
        let Some(host) = host else {
            return Err(
                ServiceError::invalid("republish is asked for by a host: frontend_node is missing").into()
            );
        };
        let request = Republish {
            host,
            node: body.node,
            replaces: body.replaces,
            reuse_existing: body.reuse_existing.unwrap_or(true),
            reuse_existing_fallback: body.reuse_existing_fallback.unwrap_or(false),
        };
        detached(core.clone(), |core| async move { core.volumes().republish(id, request).await }).await?;
        return Ok(Json(convert::volume(&core, id)?));
    }
    if let Some(node) = node_to_move_to(&core, id, &body, host.as_deref())? {
        detached(core.clone(), |core| async move { core.volumes().move_target(id, &node).await }).await?;
        return Ok(Json(convert::volume(&core, id)?));
    }
    let hosts = match host {
        Some(host) => HostAcl::Hosts(BTreeSet::from([host])),
        None => {
            warn!(volume.id = %id, "published without a frontend node: any host may connect");
            HostAcl::Any
        }
    };
    let request = PublishVolume { node: body.node, preferred: body.frontend_node, hosts };
    detached(core.clone(), |core| async move { core.volumes().publish(id, request).await.map(drop) }).await?;
    Ok(Json(convert::volume(&core, id)?))
}

/// The NVMe host name of a host that is given by it, or by the name of its node.
fn host_nqn(host: &str) -> Result<String, ServiceError> {
    let nqn = match host.starts_with("nqn.") {
        true => nvme::Nqn::new(host).map_err(|error| format!("host {host:?}: {error}")),
        false => nvme::node::host_nqn(host).map_err(|error| error.to_string()),
    };
    nqn.map(|nqn| nqn.as_str().to_owned()).map_err(ServiceError::invalid)
}

/// Publishing a volume that is published, from another node and for the same hosts, moves its target.
fn node_to_move_to(
    core: &Core,
    id: Uuid,
    body: &PublishVolumeBody,
    host: Option<&str>,
) -> Result<Option<String>, Failure> {
    let spec = core.volumes().get(id)?;
    let (Some(target), Some(node)) = (&spec.target, &body.node) else { return Ok(None) };
    let is_same_host = host.is_none_or(|host| target.hosts.admits(host));
    Ok(Some(node.clone()).filter(|node| is_same_host && *node != target.node))
}

#[derive(Deserialize)]
pub(super) struct RegisteredTargets {
    #[serde(default)]
    registered_targets: String,
}

/// Destroys what replaced targets left behind, but for those that hosts still have a path to.
#[utoipa::path(delete, path = "/v0/volumes/{id}/shutdown_targets", params(("id" = Uuid, Path), ("registered_targets" = Option<String>, Query, description = "address:port of targets to keep, separated by commas")), responses((status = 204), (status = 404, body = RestJsonError)))]
pub(super) async fn destroy_shutdown_targets(
    Leading(core): Leading,
    Path(id): Path<Uuid>,
    Query(RegisteredTargets { registered_targets }): Query<RegisteredTargets>,
) -> Result<StatusCode, Failure> {
    let kept: Vec<String> =
        registered_targets.split(',').filter(|target| !target.is_empty()).map(str::to_owned).collect();
    detached(core, |core| async move { core.volumes().destroy_shutdown_targets(id, &kept).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
pub(super) struct FrontendHost {
    frontend_host: String,
}

/// A host has a path to this nexus of the volume; what a planned move waits for.
#[utoipa::path(put, path = "/v0/volumes/{id}/paths/{nexus}", params(("id" = Uuid, Path), ("nexus" = Uuid, Path), ("frontend_host" = String, Query, description = "name of the host's node, or its NVMe host name")), responses((status = 204), (status = 404, body = RestJsonError)))]
pub(super) async fn report_path(
    Leading(core): Leading,
    Path((id, nexus)): Path<(Uuid, Uuid)>,
    Query(FrontendHost { frontend_host }): Query<FrontendHost>,
) -> Result<StatusCode, Failure> {
    core.volumes().report_path(id, nexus, &host_nqn(&frontend_host)?)?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
pub(super) struct Force {
    #[serde(default)]
    force: bool,
}

/// Stops serving a volume.
#[utoipa::path(delete, path = "/v0/volumes/{id}/target", params(("id" = Uuid, Path), ("force" = Option<bool>, Query)), responses((status = 200, body = Volume), (status = 412, body = RestJsonError)))]
pub(super) async fn unpublish(
    Leading(core): Leading,
    Path(id): Path<Uuid>,
    Query(Force { force }): Query<Force>,
) -> Answer<Volume> {
    detached(core.clone(), |core| async move { core.volumes().unpublish(id, force).await.map(drop) }).await?;
    Ok(Json(convert::volume(&core, id)?))
}

/// Gives a volume more or fewer replicas.
#[utoipa::path(put, path = "/v0/volumes/{id}/replica_count/{count}", params(("id" = Uuid, Path), ("count" = u8, Path)), responses((status = 200, body = Volume), (status = 412, body = RestJsonError), (status = 507, body = RestJsonError)))]
pub(super) async fn replica_count(
    Leading(core): Leading,
    Path((id, count)): Path<(Uuid, u8)>,
) -> Answer<Volume> {
    let change = |core: std::sync::Arc<Core>| async move {
        core.volumes().set_replica_count(id, count).await.map(drop)
    };
    detached(core.clone(), change).await?;
    Ok(Json(convert::volume(&core, id)?))
}

/// Makes a volume larger.
#[utoipa::path(put, path = "/v0/volumes/{id}/size", params(("id" = Uuid, Path)), request_body = ResizeVolumeBody, responses((status = 200, body = Volume), (status = 400, body = RestJsonError), (status = 412, body = RestJsonError), (status = 507, body = RestJsonError)))]
pub(super) async fn resize(
    Leading(core): Leading,
    Path(id): Path<Uuid>,
    Body(body): Body<ResizeVolumeBody>,
) -> Answer<Volume> {
    detached(core.clone(), move |core| async move { core.volumes().resize(id, body.size).await.map(drop) })
        .await?;
    Ok(Json(convert::volume(&core, id)?))
}

/// Lists the nexuses that engines report.
#[utoipa::path(get, path = "/v0/nexuses", params(("max_entries" = Option<u64>, Query, description = "at most so many; 0 or absent: the whole list, which has no other bound"), ("starting_token" = Option<u64>, Query, description = "how many to pass by")), responses((status = 200, body = Vec<Nexus>), (status = 503, body = RestJsonError)))]
pub(super) async fn nexuses(Leading(core): Leading, Query(page): Query<PageQuery>) -> Answer<Vec<Nexus>> {
    Ok(Json(page.array(convert::nexuses(&core, |_| true))))
}

/// One nexus.
#[utoipa::path(get, path = "/v0/nexuses/{id}", params(("id" = Uuid, Path)), responses((status = 200, body = Nexus), (status = 404, body = RestJsonError)))]
pub(super) async fn one_nexus(Leading(core): Leading, Path(id): Path<Uuid>) -> Answer<Nexus> {
    let found = convert::nexuses(&core, |_| true).into_iter().find(|nexus| nexus.uuid == id);
    Ok(Json(found.ok_or_else(|| ServiceError::not_found(format!("nexus {id}")))?))
}

/// Lists the replicas that engines report.
#[utoipa::path(get, path = "/v0/replicas", params(("max_entries" = Option<u64>, Query, description = "at most so many; 0 or absent: the whole list, which has no other bound"), ("starting_token" = Option<u64>, Query, description = "how many to pass by")), responses((status = 200, body = Vec<Replica>), (status = 503, body = RestJsonError)))]
pub(super) async fn replicas(Leading(core): Leading, Query(page): Query<PageQuery>) -> Answer<Vec<Replica>> {
    Ok(Json(page.array(convert::replicas(&core, |_| true))))
}

/// One replica.
#[utoipa::path(get, path = "/v0/replicas/{id}", params(("id" = Uuid, Path)), responses((status = 200, body = Replica), (status = 404, body = RestJsonError)))]
pub(super) async fn one_replica(Leading(core): Leading, Path(id): Path<Uuid>) -> Answer<Replica> {
    let found = convert::replicas(&core, |_| true).into_iter().find(|replica| replica.uuid == id);
    Ok(Json(found.ok_or_else(|| ServiceError::not_found(format!("replica {id}")))?))
}

/// Everything the registry wants.
#[utoipa::path(get, path = "/v0/specs", responses((status = 200, body = Specs), (status = 503, body = RestJsonError)))]
pub(super) async fn specs(Leading(core): Leading) -> Answer<Specs> {
    Ok(Json(convert::specs(&core)))
}
