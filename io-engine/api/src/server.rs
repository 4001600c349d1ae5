//! The gRPC services in front of any [`Engine`].
//!
//! A call is read into types, given to the engine on a task of its own, and its answer written back. The task goes on
//! when the client has gone away: a change that was begun is finished. What the trait does not offer, whole services
//! included, answers `UNIMPLEMENTED` and says so.

mod host;
mod nexus;
mod pool;
mod replica;

use std::{future::Future, sync::Arc, time::Duration};

use tonic::{Request, Response, Status, service::Routes};

use crate::{
    engine::{Call, Engine},
    error::{ApiError, ErrorKind},
    fence::Fence,
    proto::{
        host_rpc_server::HostRpcServer, nexus_rpc_server::NexusRpcServer, pool_rpc_server::PoolRpcServer,
        replica_rpc_server::ReplicaRpcServer,
    },
};

/// How long a call may take whose caller names no deadline.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// All services of an engine, for `tonic::transport::Server::add_routes`.
pub fn routes(engine: Arc<dyn Engine>) -> Routes {
    let front = Front { engine };
    let router = Routes::new(PoolRpcServer::new(front.clone()))
        .add_service(ReplicaRpcServer::new(front.clone()))
        .add_service(NexusRpcServer::new(front.clone()))
        .add_service(HostRpcServer::new(front))
        .into_axum_router()
        .fallback(async |request: http::Request<axum::body::Body>| {
            unimplemented_call(request.uri().path().trim_start_matches('/')).into_http::<axum::body::Body>()
        });
    Routes::from(router)
}

/// Answers for what this engine does not offer.
fn unimplemented_call(what: &str) -> Status {
    ApiError::new(ErrorKind::Unimplemented, format!("{what} is not offered by this engine")).into()
}

/// The services; one value serves them all.
#[derive(Clone)]
struct Front {
    engine: Arc<dyn Engine>,
}

type Reply<T> = Result<Response<T>, Status>;

impl Front {
    /// A call that only looks.
    async fn read<M, T, W, F>(&self, request: Request<M>, work: W) -> Reply<T>
    where
        W: FnOnce(Arc<dyn Engine>, M) -> F,
        F: Future<Output = Result<T, ApiError>> + Send + 'static,
        T: Send + 'static,
    {
        let timeout = timeout_of(&request);
        run(timeout, work(Arc::clone(&self.engine), request.into_inner())).await
    }

    /// A call that changes something: it carries the caller's fence.
    async fn change<M, T, W, F>(&self, request: Request<M>, work: W) -> Reply<T>
    where
        W: FnOnce(Arc<dyn Engine>, Call, M) -> F,
        F: Future<Output = Result<T, ApiError>> + Send + 'static,
        T: Send + 'static,
    {
        let timeout = timeout_of(&request);
        let call = Call { fence: Fence::read(request.metadata())?, timeout: Some(timeout) };
        run(timeout, work(Arc::clone(&self.engine), call, request.into_inner())).await
    }
}

/// Waits for work on a task of its own, no longer than the caller does.
async fn run<T: Send + 'static>(
    timeout: Duration,
    work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Reply<T> {
    match tokio::time::timeout(timeout, tokio::spawn(work)).await {
        Ok(Ok(answer)) => Ok(Response::new(answer?)),
        Ok(Err(lost)) => Err(Status::cancelled(format!("the call was lost: {lost}"))),
        Err(_) => Err(Status::deadline_exceeded(format!("not done within {} ms", timeout.as_millis()))),
    }
}

/// The caller's deadline.
fn timeout_of<T>(request: &Request<T>) -> Duration {
    let header = request.metadata().get("grpc-timeout").and_then(|value| value.to_str().ok());
    header.and_then(parse_timeout).unwrap_or(DEFAULT_TIMEOUT)
}

/// gRPC over HTTP/2, "Timeout": up to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let table = [
            ("15S", Some(Duration::from_secs(15))),
            ("1500m", Some(Duration::from_millis(1500))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("7u", Some(Duration::from_micros(7))),
            ("7n", Some(Duration::from_nanos(7))),
            ("", None),
            ("S", None),
            ("123456789S", None),
            ("-1S", None),
            ("1é", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_timeout(text), expected, "{text:?}");
        }
    }
}
