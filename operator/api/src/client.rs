//! A typed client.

use std::time::Duration;

use reqwest::{Method, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::{
    AppNode, AppNodes, BlockDevice, Capacity, CapacityBody, CreatePoolBody, CreateVolumeBody, ErrorKind,
    Nexus, Node, Pool, PublishVolumeBody, RegisterAppNode, Replica, Republish, ResizeVolumeBody,
    RestJsonError, Specs, Volume, Volumes,
};

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server said no.
    #[error("{} ({:?}): {}", .error.message, .error.kind, .error.details)]
    Refused {
        /// With this status.
        status: u16,
        /// And these words.
        error: RestJsonError,
    },
    /// The server could not be reached, or did not answer; whether the call was done is unknown.
    #[error("{method} {url}")]
    Transport {
        /// What was called.
        method: Method,
        /// Where.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The answer is not what this version understands.
    #[error("{method} {url} answered {status} with a body that cannot be read: {body}")]
    Nonsense {
        /// What was called.
        method: Method,
        /// Where.
        url: String,
        /// The status.
        status: u16,
        /// The first part of the body.
        body: String,
    },
}

impl ClientError {
    /// What to branch on; `None` when the server did not say.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Refused { error, .. } => Some(error.kind),
            _ => None,
        }
    }
}

/// A connection to a server, or to several that take turns leading.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

type Answer<T> = Result<T, ClientError>;

impl Client {
    /// A client of `http://address:port`; `timeout` limits each call.
    pub fn new(base: impl Into<String>, timeout: Duration) -> Answer<Self> {
        let base = base.into().trim_end_matches('/').to_owned();
        let http = reqwest::Client::builder().timeout(timeout).build();
        let http =
            http.map_err(|source| ClientError::Transport { method: Method::GET, url: base.clone(), source })?;
        Ok(Self { http, base })
    }

    /// All nodes.
    pub async fn nodes(&self) -> Answer<Vec<Node>> {
        self.get("/nodes").await
    }

    /// One node.
    pub async fn node(&self, id: &str) -> Answer<Node> {
        self.get(&format!("/nodes/{id}")).await
    }

    /// A node's disks: all, or only those a pool could be made on.
    pub async fn block_devices(&self, node: &str, all: bool) -> Answer<Vec<BlockDevice>> {
        self.get(&format!("/nodes/{node}/block_devices?all={all}")).await
    }

    /// Cordons a node under a name.
    pub async fn cordon_node(&self, node: &str, label: &str) -> Answer<Node> {
        self.call(Method::PUT, &format!("/nodes/{node}/cordon/{label}"), None::<&()>).await
    }

    /// Takes that name off.
    pub async fn uncordon_node(&self, node: &str, label: &str) -> Answer<Node> {
        self.call(Method::DELETE, &format!("/nodes/{node}/cordon/{label}"), None::<&()>).await
    }

    /// Gives a node a label. Another value than it has is refused unless `overwrite` is said.
    pub async fn label_node(&self, node: &str, key: &str, value: &str, overwrite: bool) -> Answer<Node> {
        let path = format!("/nodes/{node}/label/{key}={value}?overwrite={overwrite}");
        self.call(Method::PUT, &path, None::<&()>).await
    }

    /// Takes a label off a node.
    pub async fn unlabel_node(&self, node: &str, key: &str) -> Answer<Node> {
        self.call(Method::DELETE, &format!("/nodes/{node}/label/{key}"), None::<&()>).await
    }

    /// All pools.
    pub async fn pools(&self) -> Answer<Vec<Pool>> {
        self.get("/pools").await
    }

    /// One pool.
    pub async fn pool(&self, id: &str) -> Answer<Pool> {
        self.get(&format!("/pools/{id}")).await
    }

    /// Makes a pool.
    pub async fn create_pool(&self, node: &str, id: &str, body: &CreatePoolBody) -> Answer<Pool> {
        self.call(Method::PUT, &format!("/nodes/{node}/pools/{id}"), Some(body)).await
    }

    /// Destroys a pool.
    pub async fn destroy_pool(&self, id: &str) -> Answer<()> {
        self.done(Method::DELETE, &format!("/pools/{id}")).await
    }

    /// What new volumes of a kind could have now.
    pub async fn capacity(&self, kind: &CapacityBody) -> Answer<Capacity> {
        self.call(Method::POST, "/capacity", Some(kind)).await
    }

    /// A page of the nodes whose applications use volumes: at most `max_entries` (0: as many as a page may have), from
    /// where [`AppNodes::next_token`] of the page before says.
    pub async fn app_nodes_page(&self, max_entries: u64, starting_token: u64) -> Answer<AppNodes> {
        self.get(&format!("/app-nodes?max_entries={max_entries}&starting_token={starting_token}")).await
    }

    /// One of them.
    pub async fn app_node(&self, id: &str) -> Answer<AppNode> {
        self.get(&format!("/app-nodes/{id}")).await
    }

    /// Registers such a node. Can be repeated.
    pub async fn register_app_node(&self, id: &str, spec: &RegisterAppNode) -> Answer<()> {
        self.send(&Method::PUT, &format!("/app-nodes/{id}"), Some(spec)).await.map(drop)
    }

    /// Forgets such a node; one that is not registered is forgotten.
    pub async fn deregister_app_node(&self, id: &str) -> Answer<()> {
        self.done(Method::DELETE, &format!("/app-nodes/{id}")).await
    }

    /// All volumes, read page by page.
    pub async fn volumes(&self) -> Answer<Volumes> {
        let mut all = Volumes::default();
        loop {
            let page = self.volumes_after(0, all.entries.last().map(|volume| volume.spec.uuid)).await?;
            all.entries.extend(page.entries);
            if page.next_token.is_none() {
                return Ok(all);
            }
        }
    }

    /// A page of the volumes: at most `max_entries` (0: as many as a page may have), after the one of this id. Unlike a
    /// token, an id misses nothing when volumes go meanwhile. There is more where [`Volumes::next_token`] is set.
    pub async fn volumes_after(&self, max_entries: u64, after: Option<Uuid>) -> Answer<Volumes> {
        let after = after.map(|id| format!("&after={id}")).unwrap_or_default();
        self.get(&format!("/volumes?max_entries={max_entries}{after}")).await
    }

    /// A page of the volumes: at most `max_entries` (0: as many as a page may have), from where [`Volumes::next_token`] of the page before says.
    pub async fn volumes_page(&self, max_entries: u64, starting_token: u64) -> Answer<Volumes> {
        self.get(&format!("/volumes?max_entries={max_entries}&starting_token={starting_token}")).await
    }

    /// One volume.
    pub async fn volume(&self, id: Uuid) -> Answer<Volume> {
        self.get(&format!("/volumes/{id}")).await
    }

    /// Makes a volume.
    pub async fn create_volume(&self, id: Uuid, body: &CreateVolumeBody) -> Answer<Volume> {
        self.call(Method::PUT, &format!("/volumes/{id}"), Some(body)).await
    }

    /// Deletes a volume.
    pub async fn destroy_volume(&self, id: Uuid) -> Answer<()> {
        self.done(Method::DELETE, &format!("/volumes/{id}")).await
    }

    /// Serves a volume.
    pub async fn publish_volume(&self, id: Uuid, body: &PublishVolumeBody) -> Answer<Volume> {
        self.call(Method::PUT, &format!("/volumes/{id}/target"), Some(body)).await
    }

    /// Stops serving a volume.
    pub async fn unpublish_volume(&self, id: Uuid, force: bool) -> Answer<Volume> {
        self.call(Method::DELETE, &format!("/volumes/{id}/target?force={force}"), None::<&()>).await
    }

    /// Gives a published volume a target that serves: the one it has, made again in place, or a new one elsewhere
    /// after the old one was fenced. Can be repeated; a target that serves this host already is left alone. Fails with
    /// [`ErrorKind::PermissionDenied`] (the host may not connect), [`ErrorKind::NotPublished`], [`ErrorKind::NotFound`],
    /// [`ErrorKind::VolumeNoReplicas`] (no replica with all data can be reached: the message names them),
    /// [`ErrorKind::ResourceExhausted`] (no other node can serve) and what every call can fail with.
    pub async fn republish_volume(&self, id: Uuid, request: &Republish) -> Answer<Volume> {
        self.publish_volume(id, &request.into()).await
    }

    /// A host has a path to this nexus of the volume; what a planned move waits for ([`VolumeSpec::moving`]).
    ///
    /// [`VolumeSpec::moving`]: crate::VolumeSpec::moving
    pub async fn report_path(&self, id: Uuid, nexus: Uuid, frontend_host: &str) -> Answer<()> {
        self.done(Method::PUT, &format!("/volumes/{id}/paths/{nexus}?frontend_host={frontend_host}")).await
    }

    /// Destroys what replaced targets of a volume left behind, but for those that listen at one of
    /// `registered_targets` (`address:port`): hosts still have a path to them. What is on a node that does not answer
    /// goes when it returns.
    pub async fn destroy_shutdown_targets(&self, id: Uuid, registered_targets: &[String]) -> Answer<()> {
        let query = match registered_targets {
            [] => String::new(),
            targets => format!("?registered_targets={}", targets.join(",")),
        };
        self.done(Method::DELETE, &format!("/volumes/{id}/shutdown_targets{query}")).await
    }

    /// Gives a volume more or fewer replicas.
    pub async fn set_replica_count(&self, id: Uuid, count: u8) -> Answer<Volume> {
        self.call(Method::PUT, &format!("/volumes/{id}/replica_count/{count}"), None::<&()>).await
    }

    /// Makes a volume larger: `size` bytes that hosts see. At that size already, no error.
    pub async fn resize_volume(&self, id: Uuid, size: u64) -> Answer<Volume> {
        self.call(Method::PUT, &format!("/volumes/{id}/size"), Some(&ResizeVolumeBody { size })).await
    }

    /// All nexuses that engines report.
    pub async fn nexuses(&self) -> Answer<Vec<Nexus>> {
        self.get("/nexuses").await
    }

    /// All replicas that engines report.
    pub async fn replicas(&self) -> Answer<Vec<Replica>> {
        self.get("/replicas").await
    }

    /// Everything the registry wants.
    pub async fn specs(&self) -> Answer<Specs> {
        self.get("/specs").await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Answer<T> {
        self.call(Method::GET, path, None::<&()>).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Answer<T> {
        let (url, status, text) = self.send(&method, path, body).await?;
        serde_json::from_str(&text).map_err(|_| nonsense(method, url, status, &text))
    }

    async fn done(&self, method: Method, path: &str) -> Answer<()> {
        self.send(&method, path, None::<&()>).await.map(drop)
    }

    async fn send(
        &self,
        method: &Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Answer<(String, StatusCode, String)> {
        let url = format!("{}/v0{path}", self.base);
        let lost = |source| ClientError::Transport { method: method.clone(), url: url.clone(), source };
        let mut request = self.http.request(method.clone(), &url);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response: Response = request.send().await.map_err(lost)?;
        let status = response.status();
        let text = response.text().await.map_err(lost)?;
        if status.is_success() {
            return Ok((url, status, text));
        }
        match serde_json::from_str(&text) {
            Ok(error) => Err(ClientError::Refused { status: status.as_u16(), error }),
            Err(_) => Err(nonsense(method.clone(), url, status, &text)),
        }
    }
}

fn nonsense(method: Method, url: String, status: StatusCode, text: &str) -> ClientError {
    ClientError::Nonsense { method, url, status: status.as_u16(), body: text.chars().take(200).collect() }
}
