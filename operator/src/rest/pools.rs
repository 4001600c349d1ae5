//! `/pools` and `/nodes/{node}/pools`.

use axum::Json;
use axum::http::StatusCode;
use control_api::{CreatePoolBody, Pool, RestJsonError};

use super::page::PageQuery;
use super::{Answer, Body, Failure, Leading, Path, Query, convert};
use crate::error::ServiceError;
use crate::pool::CreatePool;
use crate::volume::detached;

/// Lists the pools: those the registry knows and those that only an engine shows.
#[utoipa::path(get, path = "/v0/pools", params(("max_entries" = Option<u64>, Query, description = "at most so many; 0 or absent: the whole list, which has no other bound"), ("starting_token" = Option<u64>, Query, description = "how many to pass by")), responses((status = 200, body = Vec<Pool>), (status = 503, body = RestJsonError)))]
pub(super) async fn list(Leading(core): Leading, Query(page): Query<PageQuery>) -> Answer<Vec<Pool>> {
    Ok(Json(page.array(convert::pools(&core, |_| true))))
}

/// One pool.
#[utoipa::path(get, path = "/v0/pools/{id}", params(("id" = String, Path)), responses((status = 200, body = Pool), (status = 404, body = RestJsonError)))]
pub(super) async fn one(Leading(core): Leading, Path(id): Path<String>) -> Answer<Pool> {
    let found = convert::pools(&core, |_| true).into_iter().find(|pool| pool.id == id);
    Ok(Json(found.ok_or_else(|| ServiceError::not_found(format!("pool {id}")))?))
}

/// Makes a pool on a node's disk.
#[utoipa::path(put, path = "/v0/nodes/{node}/pools/{pool}", params(("node" = String, Path), ("pool" = String, Path)), request_body = CreatePoolBody, responses((status = 200, body = Pool), (status = 400, body = RestJsonError), (status = 404, body = RestJsonError), (status = 422, body = RestJsonError)))]
pub(super) async fn create(
    Leading(core): Leading,
    Path((node, id)): Path<(String, String)>,
    Body(body): Body<CreatePoolBody>,
) -> Answer<Pool> {
    let request = CreatePool {
        id,
        node,
        disks: body.disks,
        labels: body.labels.unwrap_or_default(),
        cluster_bytes: body.cluster_size,
    };
    let spec = detached(core.clone(), |core| async move { core.pools().create(request).await }).await?;
    Ok(Json(convert::pool(&core, &spec)))
}

/// Destroys an empty pool.
#[utoipa::path(delete, path = "/v0/pools/{id}", params(("id" = String, Path)), responses((status = 204), (status = 404, body = RestJsonError), (status = 409, body = RestJsonError)))]
pub(super) async fn destroy(Leading(core): Leading, Path(id): Path<String>) -> Result<StatusCode, Failure> {
    detached(core, |core| async move { core.pools().destroy(&id).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Destroys an empty pool of a node.
#[utoipa::path(delete, path = "/v0/nodes/{node}/pools/{pool}", params(("node" = String, Path), ("pool" = String, Path)), responses((status = 204), (status = 404, body = RestJsonError), (status = 409, body = RestJsonError)))]
pub(super) async fn destroy_on_node(
    Leading(core): Leading,
    Path((node, id)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    if core.pools().get(&id)?.node != node {
        return Err(ServiceError::not_found(format!("pool {id} on node {node}")).into());
    }
    detached(core, |core| async move { core.pools().destroy(&id).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}
