//! `/nodes`.

use std::sync::Arc;

use axum::Json;
use control_api::{BlockDevice, Nexus, Node, Pool, Replica, RestJsonError};
use serde::Deserialize;

use super::page::PageQuery;
use super::{Answer, Leading, Path, Query, convert};
use crate::core::Core;
use crate::error::ServiceError;
use crate::volume::detached;

/// Lists the nodes.
#[utoipa::path(get, path = "/v0/nodes", params(("max_entries" = Option<u64>, Query, description = "at most so many; 0 or absent: the whole list, which has no other bound"), ("starting_token" = Option<u64>, Query, description = "how many to pass by")), responses((status = 200, body = Vec<Node>), (status = 503, body = RestJsonError)))]
pub(super) async fn list(Leading(core): Leading, Query(page): Query<PageQuery>) -> Answer<Vec<Node>> {
    Ok(Json(page.array(core.nodes().list()).into_iter().map(convert::node).collect()))
}

/// One node.
#[utoipa::path(get, path = "/v0/nodes/{id}", params(("id" = String, Path)), responses((status = 200, body = Node), (status = 404, body = RestJsonError)))]
pub(super) async fn one(Leading(core): Leading, Path(id): Path<String>) -> Answer<Node> {
    Ok(Json(convert::node(core.nodes().get(&id)?)))
}

#[derive(Deserialize)]
pub(super) struct All {
    #[serde(default)]
    all: bool,
}

/// A node's disks: those a pool could be made on, or all.
#[utoipa::path(get, path = "/v0/nodes/{id}/block_devices", params(("id" = String, Path), ("all" = Option<bool>, Query)), responses((status = 200, body = Vec<BlockDevice>), (status = 404, body = RestJsonError)))]
pub(super) async fn block_devices(
    Leading(core): Leading,
    Path(id): Path<String>,
    Query(All { all }): Query<All>,
) -> Answer<Vec<BlockDevice>> {
    let devices = core.nodes().block_devices(&id, all).await?;
    Ok(Json(devices.into_iter().map(convert::block_device).collect()))
}

/// Keeps new things off a node, under a name.
#[utoipa::path(put, path = "/v0/nodes/{id}/cordon/{label}", params(("id" = String, Path), ("label" = String, Path)), responses((status = 200, body = Node), (status = 412, body = RestJsonError)))]
pub(super) async fn cordon(
    Leading(core): Leading,
    Path((id, label)): Path<(String, String)>,
) -> Answer<Node> {
    let node = detached(core, |core| async move { core.nodes().cordon(&id, &label).await }).await?;
    Ok(Json(convert::node(node)))
}

/// Takes a name off a cordoned node.
#[utoipa::path(delete, path = "/v0/nodes/{id}/cordon/{label}", params(("id" = String, Path), ("label" = String, Path)), responses((status = 200, body = Node), (status = 412, body = RestJsonError)))]
pub(super) async fn uncordon(
    Leading(core): Leading,
    Path((id, label)): Path<(String, String)>,
) -> Answer<Node> {
    let node = detached(core, |core| async move { core.nodes().uncordon(&id, &label).await }).await?;
    Ok(Json(convert::node(node)))
}

#[derive(Deserialize)]
pub(super) struct Overwrite {
    #[serde(default)]
    overwrite: bool,
}

/// Gives a node a label, `key=value`. Labels that Kubernetes' node has are there already.
#[utoipa::path(put, path = "/v0/nodes/{id}/label/{label}", params(("id" = String, Path), ("label" = String, Path, description = "key=value"), ("overwrite" = Option<bool>, Query)), responses((status = 200, body = Node), (status = 400, body = RestJsonError), (status = 412, body = RestJsonError), (status = 422, body = RestJsonError)))]
pub(super) async fn label(
    Leading(core): Leading,
    Path((id, label)): Path<(String, String)>,
    Query(Overwrite { overwrite }): Query<Overwrite>,
) -> Answer<Node> {
    let (key, value) = match label.split_once('=') {
        Some((key, value)) if !key.is_empty() => (key.to_owned(), value.to_owned()),
        _ => return Err(ServiceError::invalid(format!("{label:?} is not key=value")).into()),
    };
    let set = |core: Arc<Core>| async move { core.nodes().set_label(&id, &key, &value, overwrite).await };
    Ok(Json(convert::node(detached(core, set).await?)))
}

/// Takes a label off a node.
#[utoipa::path(delete, path = "/v0/nodes/{id}/label/{key}", params(("id" = String, Path), ("key" = String, Path)), responses((status = 200, body = Node), (status = 412, body = RestJsonError)))]
pub(super) async fn unlabel(Leading(core): Leading, Path((id, key)): Path<(String, String)>) -> Answer<Node> {
    let node = detached(core, |core| async move { core.nodes().remove_label(&id, &key).await }).await?;
    Ok(Json(convert::node(node)))
}

/// The pools of a node.
#[utoipa::path(get, path = "/v0/nodes/{id}/pools", params(("id" = String, Path)), responses((status = 200, body = Vec<Pool>), (status = 404, body = RestJsonError)))]
pub(super) async fn pools(Leading(core): Leading, Path(id): Path<String>) -> Answer<Vec<Pool>> {
    core.nodes().get(&id)?;
    Ok(Json(convert::pools(&core, |node| node == id)))
}

/// The replicas of a node.
#[utoipa::path(get, path = "/v0/nodes/{id}/replicas", params(("id" = String, Path)), responses((status = 200, body = Vec<Replica>), (status = 404, body = RestJsonError)))]
pub(super) async fn replicas(Leading(core): Leading, Path(id): Path<String>) -> Answer<Vec<Replica>> {
    core.nodes().get(&id)?;
    Ok(Json(convert::replicas(&core, |node| node == id)))
}

/// The nexuses of a node.
#[utoipa::path(get, path = "/v0/nodes/{id}/nexuses", params(("id" = String, Path)), responses((status = 200, body = Vec<Nexus>), (status = 404, body = RestJsonError)))]
pub(super) async fn nexuses(Leading(core): Leading, Path(id): Path<String>) -> Answer<Vec<Nexus>> {
    core.nodes().get(&id)?;
    Ok(Json(convert::nexuses(&core, |node| node == id)))
}
