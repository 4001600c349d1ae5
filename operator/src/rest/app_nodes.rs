//! `/app-nodes`.

use std::sync::Arc;

use axum::Json;
use axum::http::StatusCode;
use control_api::{AppNode, AppNodes, RegisterAppNode, RestJsonError};

use super::page::PageQuery;
use super::{Answer, Body, Failure, Leading, Path, Query, convert};
use crate::core::Core;
use crate::volume::detached;

/// Lists the nodes whose applications use volumes, all or page by page.
#[utoipa::path(get, path = "/v0/app-nodes", params(("max_entries" = Option<u64>, Query), ("starting_token" = Option<u64>, Query)), responses((status = 200, body = AppNodes), (status = 503, body = RestJsonError)))]
pub(super) async fn list(Leading(core): Leading, Query(page): Query<PageQuery>) -> Answer<AppNodes> {
    let (specs, next_token) = page.page(core.app_nodes().list());
    Ok(Json(AppNodes { entries: specs.into_iter().map(convert::app_node).collect(), next_token }))
}

/// One of them.
#[utoipa::path(get, path = "/v0/app-nodes/{id}", params(("id" = String, Path)), responses((status = 200, body = AppNode), (status = 404, body = RestJsonError)))]
pub(super) async fn one(Leading(core): Leading, Path(id): Path<String>) -> Answer<AppNode> {
    Ok(Json(convert::app_node(core.app_nodes().get(&id)?)))
}

/// Registers a node, as its node plugin does now and then.
#[utoipa::path(put, path = "/v0/app-nodes/{id}", params(("id" = String, Path)), request_body = RegisterAppNode, responses((status = 204), (status = 400, body = RestJsonError), (status = 503, body = RestJsonError)))]
pub(super) async fn register(
    Leading(core): Leading,
    Path(id): Path<String>,
    Body(body): Body<RegisterAppNode>,
) -> Result<StatusCode, Failure> {
    let labels = body.labels.unwrap_or_default();
    let register =
        |core: Arc<Core>| async move { core.app_nodes().register(&id, body.endpoint, labels).await };
    detached(core, register).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Forgets a node, as its node plugin asks when it ends.
#[utoipa::path(delete, path = "/v0/app-nodes/{id}", params(("id" = String, Path)), responses((status = 204), (status = 503, body = RestJsonError)))]
pub(super) async fn deregister(
    Leading(core): Leading,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    detached(core, |core| async move { core.app_nodes().deregister(&id).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}
