//! The REST front, `/v0`: parses, calls a service, renders. The OpenAPI document is made from the same handlers and
//! served at `/v0/api/spec`.
//!
//! Only the leader answers; a follower answers 503 with kind `Unavailable`, and the client asks another.

mod app_nodes;
mod capacity;
mod convert;
mod nodes;
mod page;
mod pools;
mod volumes;

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::header::{CONNECTION, HeaderValue};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use control_api::{ErrorKind, RestJsonError};
use utoipa::OpenApi;

use crate::core::Core;
use crate::error::ServiceError;
use crate::leader::Terms;

/// What handlers share.
#[derive(Clone, Debug)]
pub struct App {
    terms: Terms,
}

/// The services of the leader, for a handler.
pub(crate) struct Leading(pub(crate) Arc<Core>);

impl FromRequestParts<App> for Leading {
    type Rejection = Failure;

    async fn from_request_parts(_: &mut Parts, app: &App) -> Result<Self, Failure> {
        let core = app.terms.borrow().clone();
        core.map(Leading).ok_or_else(|| {
            Failure(ServiceError::new(
                ErrorKind::Unavailable,
                "this operator does not lead: another does or will",
            ))
        })
    }
}

/// An error on its way out.
pub(crate) struct Failure(ServiceError);

impl From<ServiceError> for Failure {
    fn from(error: ServiceError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let kind = self.0.kind();
        let body = RestJsonError { details: self.0.chain(), message: self.0.context().to_owned(), kind };
        let status = StatusCode::from_u16(kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(body)).into_response();
        if kind == ErrorKind::Unavailable {
            // Behind a Service the next connection goes to whoever leads by then; this one would stay here.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// What handlers answer.
pub(crate) type Answer<T> = Result<Json<T>, Failure>;

/// axum's extractors, with rejections in our words.
#[derive(FromRequest)]
#[from_request(via(Json), rejection(Failure))]
pub(crate) struct Body<T>(pub(crate) T);

#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Failure))]
pub(crate) struct Path<T>(pub(crate) T);

#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Failure))]
pub(crate) struct Query<T>(pub(crate) T);

fn unreadable(text: String) -> Failure {
    Failure(ServiceError::new(ErrorKind::Deserialize, text))
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Self {
        unreadable(rejection.body_text())
    }
}

impl From<PathRejection> for Failure {
    fn from(rejection: PathRejection) -> Self {
        unreadable(rejection.body_text())
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Self {
        unreadable(rejection.body_text())
    }
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Mayastor RESTful API", version = "v0"),
    paths(
        app_nodes::list,
        app_nodes::one,
        app_nodes::register,
        app_nodes::deregister,
        capacity::capacity,
        nodes::list,
        nodes::one,
        nodes::block_devices,
        nodes::cordon,
        nodes::uncordon,
        nodes::label,
        nodes::unlabel,
        nodes::pools,
        nodes::replicas,
        nodes::nexuses,
        pools::list,
        pools::one,
        pools::create,
        pools::destroy,
        pools::destroy_on_node,
        volumes::list,
        volumes::one,
        volumes::create,
        volumes::destroy,
        volumes::publish,
        volumes::unpublish,
        volumes::destroy_shutdown_targets,
        volumes::report_path,
        volumes::replica_count,
        volumes::resize,
        volumes::nexuses,
        volumes::one_nexus,
        volumes::replicas,
        volumes::one_replica,
        volumes::specs,
    ),
    components(schemas(RestJsonError, ErrorKind))
)]
struct Document;

/// The OpenAPI document as JSON.
pub fn document() -> serde_json::Value {
    serde_json::to_value(Document::openapi()).unwrap_or_default()
}

async fn serve_document() -> Json<serde_json::Value> {
    Json(document())
}

async fn live() -> &'static str {
    "live"
}

async fn ready(State(app): State<App>) -> Response {
    if app.terms.borrow().is_some() {
        return "ready".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "this operator does not lead").into_response()
}

async fn nothing_here() -> Failure {
    Failure(ServiceError::new(
        ErrorKind::NotFound,
        "there is nothing at this path; /v0/api/spec lists what there is",
    ))
}

/// The router over the terms of this process.
pub fn router(terms: Terms) -> Router {
    Router::new()
        .route("/v0/nodes", get(nodes::list))
        .route("/v0/nodes/{id}", get(nodes::one))
        .route("/v0/nodes/{id}/block_devices", get(nodes::block_devices))
        .route("/v0/nodes/{id}/cordon/{label}", put(nodes::cordon).delete(nodes::uncordon))
        .route("/v0/nodes/{id}/label/{*label}", put(nodes::label).delete(nodes::unlabel))
        .route("/v0/nodes/{id}/pools", get(nodes::pools))
        .route("/v0/nodes/{id}/replicas", get(nodes::replicas))
        .route("/v0/nodes/{id}/nexuses", get(nodes::nexuses))
        .route("/v0/nodes/{node}/pools/{pool}", put(pools::create).delete(pools::destroy_on_node))
        .route("/v0/pools", get(pools::list))
        .route("/v0/pools/{id}", get(pools::one).delete(pools::destroy))
        .route("/v0/volumes", get(volumes::list))
        .route("/v0/volumes/{id}", get(volumes::one).put(volumes::create).delete(volumes::destroy))
        .route("/v0/volumes/{id}/target", put(volumes::publish).delete(volumes::unpublish))
        .route("/v0/volumes/{id}/shutdown_targets", delete(volumes::destroy_shutdown_targets))
        .route("/v0/volumes/{id}/paths/{nexus}", put(volumes::report_path))
        .route("/v0/volumes/{id}/replica_count/{count}", put(volumes::replica_count))
        .route("/v0/volumes/{id}/size", put(volumes::resize))
        .route("/v0/app-nodes", get(app_nodes::list))
        .route(
            "/v0/app-nodes/{id}",
            get(app_nodes::one).put(app_nodes::register).delete(app_nodes::deregister),
        )
        .route("/v0/capacity", post(capacity::capacity))
        .route("/v0/nexuses", get(volumes::nexuses))
        .route("/v0/nexuses/{id}", get(volumes::one_nexus))
        .route("/v0/replicas", get(volumes::replicas))
        .route("/v0/replicas/{id}", get(volumes::one_replica))
        .route("/v0/specs", get(volumes::specs))
        .route("/v0/api/spec", get(serve_document))
        .route("/live", get(live))
        .route("/ready", get(ready))
        .fallback(nothing_here)
        .with_state(App { terms })
}
