//! Records in a real etcd.
//!
//! etcd is spoken to on tokio's threads; a nexus lives on a shard. Each request is a task over there and a oneshot back,
//! which any executor can wait on. There is at most one request per nexus under way, which bounds the tasks.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, EventType, KeyValue, Txn, TxnOp, TxnOpResponse, TxnResponse,
    WatchOptions,
};
use store::Tls;
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, oneshot};

use crate::record::store::{Loaded, RecordStore, Revision, StoreError};
use crate::record::value::{RecordValue, membership_key};

/// The part of a registry's identity that nexuses go by.
#[derive(serde::Deserialize)]
struct Identity {
    #[serde(default)]
    cluster: Option<String>,
}

/// The cluster that a registry's identity names: the installation, whichever incarnation of its registry wrote it. One
/// that names none, or that cannot be read, proves nothing (SAFETY D6).
fn cluster_of(identity: &[u8]) -> Option<String> {
    serde_json::from_slice::<Identity>(identity).ok()?.cluster
}

/// How to reach etcd.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// `http://host:port` or `https://host:port`, one or more members of the cluster.
    pub endpoints: Vec<String>,
    /// Limit on one request, connecting included.
    pub timeout: Duration,
    /// Where the endpoints begin with `https`.
    pub tls: Option<Tls>,
    /// Key under which the registry's identity stands, a JSON object with the field `cluster`; read with every record.
    pub identity_key: String,
}

struct Shared {
    options: EtcdOptions,
    client: OnceCell<Client>,
}

/// A connection to etcd; clones share it. It is made, and made again, as requests need it.
#[derive(Clone)]
pub struct EtcdStore {
    tokio: Handle,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("EtcdStore").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl EtcdStore {
    /// A store whose requests run on `tokio`. Succeeds while etcd is down.
    pub fn new(tokio: Handle, options: EtcdOptions) -> Self {
        Self { tokio, shared: Arc::new(Shared { options, client: OnceCell::new() }) }
    }

    /// Runs `request` over there. `None`: tokio is shutting down, the outcome is unknown.
    async fn call<T: Send + 'static>(&self, request: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.tokio.spawn(async move {
            let mut reply: oneshot::Sender<T> = reply;
            // Nobody waits any more where the nexus was stopped meanwhile, or asks again.
            tokio::select! {
                done = request => drop(reply.send(done)),
                () = reply.closed() => {}
            }
        });
        answer.await.ok()
    }
}

impl Shared {
    async fn client(&self) -> Result<Client, etcd_client::Error> {
        let client = self
            .client
            .get_or_try_init(async || {
                let mut connect = ConnectOptions::new()
                    .with_connect_timeout(self.options.timeout)
                    .with_keep_alive(Duration::from_secs(10), self.options.timeout);
                if let Some(tls) = &self.options.tls {
                    connect = connect.with_tls(tls.options());
                }
                Client::connect(&self.options.endpoints, Some(connect)).await
            })
            .await?;
        Ok(client.clone())
    }

    async fn transact(&self, transaction: Txn) -> Result<TxnResponse, String> {
        let request = async { self.client().await?.txn(transaction).await };
        match tokio::time::timeout(self.options.timeout, request).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {:?}", self.options.timeout)),
        }
    }

    async fn load(&self, key: String) -> Result<Loaded, StoreError> {
        let ours = membership_key(&key);
        // One transaction, so that all three are of one moment; etcd's reads are linearizable.
        let reads = [key.as_str(), &ours, &self.options.identity_key].map(|key| TxnOp::get(key, None));
        let response = self.transact(Txn::new().and_then(reads)).await.map_err(StoreError::Unreachable)?;
        let mut found = response.op_responses().into_iter().map(|answer| match answer {
            TxnOpResponse::Get(mut got) => got.take_kvs().into_iter().next(),
            _ => None,
        });
        let (info, membership, identity) =
            (found.next().flatten(), found.next().flatten(), found.next().flatten());
        let record = match info {
            None => None,
            Some(info) => {
                let value = RecordValue::decode(info.value(), membership.as_ref().map(KeyValue::value))?;
                let revision = Revision {
                    info: info.mod_revision(),
                    membership: membership.as_ref().map_or(0, KeyValue::mod_revision),
                };
                Some((value, revision))
            }
        };
        let identity = identity.and_then(|found| cluster_of(found.value()));
        Ok(Loaded { record, identity })
    }

    async fn swap(
        &self,
        key: String,
        expected: Revision,
        value: RecordValue,
    ) -> Result<Revision, StoreError> {
        let ours = membership_key(&key);
        let (info, membership) = value.encode();
        // A key that does not exist has revision 0.
        let compares = [
            Compare::mod_revision(key.as_str(), CompareOp::Equal, expected.info),
            Compare::mod_revision(ours.as_str(), CompareOp::Equal, expected.membership),
        ];
        let has_membership = membership.is_some();
        let mut puts = vec![TxnOp::put(key.as_str(), info, None)];
        puts.extend(membership.map(|text| TxnOp::put(ours.as_str(), text, None)));
        let transaction = Txn::new().when(compares).and_then(puts);
        let response = self.transact(transaction).await.map_err(StoreError::OutcomeUnknown)?;
        if !response.succeeded() {
            return Err(StoreError::Conflict);
        }
        let at = response.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok(Revision { info: at, membership: if has_membership { at } else { 0 } })
    }
}

impl Shared {
    /// The revision at which the health document stands, once that is not `seen`.
    async fn changed(&self, key: String, seen: i64) -> Result<i64, StoreError> {
        let unreachable = |error: etcd_client::Error| StoreError::Unreachable(error.to_string());
        let watched = async {
            let mut client = self.client().await?;
            let got = client.get(key.as_str(), None).await?;
            let at = got.kvs().first().map_or(0, KeyValue::mod_revision);
            if at != seen {
                return Ok((at, None));
            }
            // From the revision after the one that was looked at: nothing between look and watch is missed.
            let from = got.header().map_or(seen, etcd_client::ResponseHeader::revision) + 1;
            let options = WatchOptions::new().with_start_revision(from);
            Ok((at, Some(client.watch(key.as_str(), Some(options)).await?)))
        };
        let (at, stream) = match tokio::time::timeout(self.options.timeout, watched).await {
            Ok(begun) => begun.map_err(unreachable)?,
            Err(_) => {
                return Err(StoreError::Unreachable(format!("no watch within {:?}", self.options.timeout)));
            }
        };
        let Some(mut stream) = stream else { return Ok(at) };
        while let Some(answer) = stream.message().await.map_err(unreachable)? {
            if let Some(event) = answer.events().last() {
                let kv = event.kv().filter(|_| event.event_type() == EventType::Put);
                return Ok(kv.map_or(0, KeyValue::mod_revision));
            }
            if answer.canceled() {
                break;
            }
        }
        Err(StoreError::Unreachable("the watch ended".into()))
    }
}

impl RecordStore for EtcdStore {
    async fn load(&self, key: &str) -> Result<Loaded, StoreError> {
        let (shared, key) = (Arc::clone(&self.shared), key.to_owned());
        self.call(async move { shared.load(key).await })
            .await
            .unwrap_or_else(|| Err(StoreError::Unreachable("the engine is stopping".into())))
    }

    async fn swap(&self, key: &str, expected: Revision, value: &RecordValue) -> Result<Revision, StoreError> {
        let (shared, key, value) = (Arc::clone(&self.shared), key.to_owned(), value.clone());
        self.call(async move { shared.swap(key, expected, value).await })
            .await
            .unwrap_or_else(|| Err(StoreError::OutcomeUnknown("the engine is stopping".into())))
    }

    async fn changed(&self, key: &str, seen: i64) -> Result<i64, StoreError> {
        let (shared, key) = (Arc::clone(&self.shared), key.to_owned());
        self.call(async move { shared.changed(key, seen).await })
            .await
            .unwrap_or_else(|| Err(StoreError::Unreachable("the engine is stopping".into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A registry that is restored or taken over is another incarnation for the same cluster, and stops no volume.
    #[test]
    fn d6_the_cluster_is_the_identity_and_not_the_whole_document() {
        let cluster = |document: &str| cluster_of(document.as_bytes());
        let ours = cluster(r#"{"incarnation":"1","cluster":"c"}"#);
        assert_eq!(ours.as_deref(), Some("c"));
        assert_eq!(cluster(r#"{"cluster":"c","incarnation":"2","more":[]}"#), ours);
        assert_ne!(cluster(r#"{"incarnation":"1","cluster":"d"}"#), ours);
        for nobody in [r#"{"incarnation":"1"}"#, r#"{"incarnation":"1","cluster":null}"#, "this cluster", ""]
        {
            assert_eq!(cluster(nobody), None, "{nobody}");
        }
    }
}
