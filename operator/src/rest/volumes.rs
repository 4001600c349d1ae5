//! `/volumes`, and what volumes are made of: `/nexuses`, `/replicas`, `/specs`.

use std::collections::BTreeSet;

use axum::Json;
use axum::http::StatusCode;
use control_api::{
    CreateVolumeBody, ErrorKind, Nexus, Protocol, PublishVolumeBody, Replica, RestJsonError, Specs, Volume,
    Volumes,
};
use serde::Deserialize;
use tracing::warn;
use uuid::Uuid;

use super::{Answer, Body, Failure, Leading, Path, Query, convert};
use crate::error::ServiceError;
use crate::registry::HostAcl;
use crate::volume::{CreateVolume, PublishVolume, detached};

#[derive(Deserialize)]
pub(super) struct PageQuery {
    max_entries: Option<usize>,
    #[serde(default)]
    starting_token: usize,
    volume_id: Option<Uuid>,
}

/// Lists the volumes, all or page by page.
#[utoipa::path(get, path = "/v0/volumes", params(("max_entries" = Option<u64>, Query), ("starting_token" = Option<u64>, Query), ("volume_id" = Option<Uuid>, Query)), responses((status = 200, body = Volumes), (status = 503, body = RestJsonError)))]
pub(super) async fn list(Leading(core): Leading, Query(page): Query<PageQuery>) -> Answer<Volumes> {
    if let Some(id) = page.volume_id {
        core.volumes().get(id)?;
        return Ok(Json(Volumes { entries: vec![convert::volume(&core, id)?], next_token: None }));
    }
    let all = core.volumes().list();
    // 0 asks for everything, as absent does.
    let limit = page.max_entries.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let end = page.starting_token.saturating_add(limit);
    let wanted = all.iter().skip(page.starting_token).take(limit);
    let entries = wanted.filter_map(|spec| convert::volume(&core, spec.uuid).ok()).collect();
    let next_token = (end < all.len()).then_some(end as u64);
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

/// Serves a volume.
#[utoipa::path(put, path = "/v0/volumes/{id}/target", params(("id" = Uuid, Path)), request_body = PublishVolumeBody, responses((status = 200, body = Volume), (status = 404, body = RestJsonError), (status = 412, body = RestJsonError)))]
pub(super) async fn publish(
    Leading(core): Leading,
    Path(id): Path<Uuid>,
    Body(body): Body<PublishVolumeBody>,
) -> Answer<Volume> {
    if !matches!(body.protocol, None | Some(Protocol::Nvmf)) {
        return Err(ServiceError::invalid("a volume is served as nvmf").into());
    }
    if body.republish == Some(true) {
        let text = "moving a published target needs fencing, which does not exist yet";
        return Err(ServiceError::new(ErrorKind::Unimplemented, text).into());
    }
    let hosts = match &body.frontend_node {
        Some(node) => HostAcl::Hosts(BTreeSet::from([engine_api::node_host_nqn(node)])),
        None => {
            warn!(volume.id = %id, "published without a frontend node: any host may connect");
            HostAcl::Any
        }
    };
    let request = PublishVolume { node: body.node, preferred: body.frontend_node, hosts };
    detached(core.clone(), |core| async move { core.volumes().publish(id, request).await.map(drop) }).await?;
    Ok(Json(convert::volume(&core, id)?))
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
    let change = |core: std::sync::Arc<crate::core::Core>| async move {
        core.volumes().set_replica_count(id, count).await.map(drop)
    };
    detached(core.clone(), change).await?;
    Ok(Json(convert::volume(&core, id)?))
}

/// Lists the nexuses that engines report.
#[utoipa::path(get, path = "/v0/nexuses", responses((status = 200, body = Vec<Nexus>), (status = 503, body = RestJsonError)))]
pub(super) async fn nexuses(Leading(core): Leading) -> Answer<Vec<Nexus>> {
    Ok(Json(convert::nexuses(&core, |_| true)))
}

/// One nexus.
#[utoipa::path(get, path = "/v0/nexuses/{id}", params(("id" = Uuid, Path)), responses((status = 200, body = Nexus), (status = 404, body = RestJsonError)))]
pub(super) async fn one_nexus(Leading(core): Leading, Path(id): Path<Uuid>) -> Answer<Nexus> {
    let found = convert::nexuses(&core, |_| true).into_iter().find(|nexus| nexus.uuid == id);
    Ok(Json(found.ok_or_else(|| ServiceError::not_found(format!("nexus {id}")))?))
}

/// Lists the replicas that engines report.
#[utoipa::path(get, path = "/v0/replicas", responses((status = 200, body = Vec<Replica>), (status = 503, body = RestJsonError)))]
pub(super) async fn replicas(Leading(core): Leading) -> Answer<Vec<Replica>> {
    Ok(Json(convert::replicas(&core, |_| true)))
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
