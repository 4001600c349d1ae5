//! `/capacity`.

use axum::Json;
use control_api::{Capacity, CapacityBody, RestJsonError};

use super::{Answer, Body, Leading, convert};
use crate::volume::NewVolumes;

/// What new volumes of a kind could have now: what the scheduler would still find a place for.
#[utoipa::path(post, path = "/v0/capacity", request_body = CapacityBody, responses((status = 200, body = Capacity), (status = 400, body = RestJsonError), (status = 503, body = RestJsonError)))]
pub(super) async fn capacity(Leading(core): Leading, Body(body): Body<CapacityBody>) -> Answer<Capacity> {
    let kind = NewVolumes {
        replicas: body.replicas,
        thin: body.thin,
        topology: convert::topology_from(body.topology.unwrap_or_default()),
        node: body.node,
        node_labels: body.node_labels,
    };
    let found = core.volumes().capacity(&kind)?;
    Ok(Json(Capacity { available: found.available_bytes, maximum_volume_size: found.maximum_volume_bytes }))
}
