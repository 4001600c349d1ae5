//! The store on etcd v3.

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, GetResponse, KeyValue,
    LeaseGrantOptions, PutOptions, Txn, TxnOp, TxnOpResponse, WatchFilterType, WatchOptions, WatchStream,
};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc;

use crate::backend::{
    Condition, Lease, LeaseId, Operation, Outcome, Page, Record, Revision, Snapshot, Store, Transaction,
};
use crate::tls::Tls;
use crate::watch::WATCH_QUEUE;
use crate::{Change, StoreError, Watch};

/// How to reach etcd.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// `http://host:port` or `https://host:port`, one or more members of the cluster.
    pub endpoints: Vec<String>,
    /// Limit on one call.
    pub timeout: Duration,
    /// Where the endpoints begin with `https`.
    pub tls: Option<Tls>,
}

/// A client; it connects, and connects again, as calls need it.
pub(crate) async fn connect(options: &EtcdOptions) -> Result<Client, StoreError> {
    let mut connect = ConnectOptions::new()
        .with_connect_timeout(options.timeout)
        .with_keep_alive(Duration::from_secs(10), options.timeout)
        .with_keep_alive_while_idle(true);
    if let Some(tls) = &options.tls {
        connect = connect.with_tls(tls.options());
    }
    Client::connect(&options.endpoints, Some(connect)).await.map_err(|error| StoreError::Refused {
        reason: format!("endpoints {:?}: {error}", options.endpoints),
    })
}

/// A connection to etcd. Calls may run side by side.
pub struct EtcdStore {
    client: Client,
    endpoints: String,
    timeout: Duration,
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdStore").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl EtcdStore {
    /// Prepares the connection; it is made, and made again, as calls need it, so that this succeeds while etcd is down.
    pub async fn connect(options: &EtcdOptions) -> Result<Self, StoreError> {
        let client = connect(options).await?;
        Ok(Self { client, endpoints: options.endpoints.join(","), timeout: options.timeout })
    }

    /// Runs one call under the limit. `changes` names what would be in doubt should the reply be lost.
    async fn call<T>(
        &self,
        changes: Option<&str>,
        call: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(translate(error, changes)),
            Err(_) => Err(unanswered(format!("no answer within {:?}", self.timeout), changes)),
        }
    }

    async fn read_all(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        let reads: Vec<TxnOp> = keys.iter().map(|key| TxnOp::get(key.as_str(), None)).collect();
        let mut kv = self.client.kv_client();
        // One transaction, so that all keys are of one moment.
        let response = self.call(None, kv.txn(Txn::new().and_then(reads))).await?;
        snapshot(response.header().map_or(0, etcd_client::ResponseHeader::revision), response.op_responses())
    }

    async fn read_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        at: Option<Revision>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        // The first key after `k` is `k` followed by a zero byte.
        let start = after.map_or_else(|| prefix.as_bytes().to_vec(), |key| [key.as_bytes(), &[0]].concat());
        let mut options =
            GetOptions::new().with_range(end_of(prefix)).with_limit(i64::try_from(limit).unwrap_or(i64::MAX));
        if let Some(revision) = at {
            options = options.with_revision(signed(revision));
        }
        let mut kv = self.client.kv_client();
        let mut response: GetResponse = self.call(None, kv.get(start, Some(options))).await?;
        let revision =
            at.unwrap_or(unsigned(response.header().map_or(0, etcd_client::ResponseHeader::revision)));
        let more = response.more();
        let records = response.take_kvs().into_iter().map(record).collect::<Result<_, _>>()?;
        Ok(Page { records, more, revision })
    }

    async fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        let compares: Vec<Compare> = transaction.when.iter().map(compare).collect();
        let reads: Vec<TxnOp> = transaction.when.iter().map(|c| TxnOp::get(c.key(), None)).collect();
        let operations: Vec<TxnOp> = transaction.then.iter().map(operation).collect();
        let name = transaction.then.first().map_or("", |operation| match operation {
            Operation::Put { key, .. } | Operation::Delete { key } => key.as_str(),
        });
        let mut kv = self.client.kv_client();
        let txn = Txn::new().when(compares).and_then(operations).or_else(reads);
        let response = self.call(Some(name), kv.txn(txn)).await?;
        let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
        if response.succeeded() {
            return Ok(Outcome::Committed(unsigned(revision)));
        }
        Ok(Outcome::Refused(snapshot(revision, response.op_responses())?))
    }

    async fn start_watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let options = WatchOptions::new()
            .with_range(end_of(prefix))
            .with_start_revision(signed(after) + 1)
            .with_filters(Vec::<WatchFilterType>::new());
        let mut client = self.client.watch_client();
        let stream = self.call(None, client.watch(prefix, Some(options))).await?;
        let (sender, receiver) = mpsc::channel(WATCH_QUEUE);
        tokio::spawn(forward(stream, sender));
        Ok(Watch::new(receiver))
    }
}

impl Store for EtcdStore {
    fn read<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        self.read_all(keys).boxed()
    }

    fn page<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        at: Option<Revision>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Page, StoreError>> {
        self.read_page(prefix, after, at, limit).boxed()
    }

    fn transact<'a>(&'a self, transaction: &'a Transaction) -> BoxFuture<'a, Result<Outcome, StoreError>> {
        self.commit(transaction).boxed()
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: Revision) -> BoxFuture<'a, Result<Watch, StoreError>> {
        self.start_watch(prefix, after).boxed()
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease, StoreError>> {
        async move {
            let seconds = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
            let mut leases = self.client.lease_client();
            // A lease whose grant was lost ends by itself, so nothing is in doubt.
            let granted = self.call(None, leases.grant(seconds, None::<LeaseGrantOptions>)).await?;
            Ok(Lease { id: LeaseId(granted.id()), ttl: seconds_of(granted.ttl()) })
        }
        .boxed()
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Lease, StoreError>> {
        async move {
            let mut leases = self.client.lease_client();
            let renewed = self
                .call(None, async {
                    let (mut keeper, mut answers) = leases.keep_alive(lease.0).await?;
                    keeper.keep_alive().await?;
                    answers.message().await
                })
                .await?;
            match renewed {
                Some(answer) if answer.ttl() > 0 => Ok(Lease { id: lease, ttl: seconds_of(answer.ttl()) }),
                _ => Err(StoreError::LeaseLost),
            }
        }
        .boxed()
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let mut leases = self.client.lease_client();
            match self.call(None, leases.revoke(lease.0)).await {
                Ok(_) | Err(StoreError::LeaseLost) => Ok(()),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }
}

/// Passes events on until the reader is gone or the stream ends. The stream is dropped, and so cancelled, with it.
async fn forward(mut stream: WatchStream, sender: mpsc::Sender<Result<Change, StoreError>>) {
    loop {
        let message = tokio::select! {
            message = stream.message() => message,
            () = sender.closed() => return,
        };
        let response = match message {
            Ok(Some(response)) => response,
            Ok(None) => return,
            Err(error) => {
                let _ = sender.send(Err(translate(error, None))).await;
                return;
            }
        };
        if response.canceled() {
            let oldest = response.compact_revision();
            let error = if oldest > 0 {
                StoreError::Compacted { oldest: unsigned(oldest) }
            } else {
                StoreError::Unavailable { reason: format!("watch cancelled: {}", response.cancel_reason()) }
            };
            let _ = sender.send(Err(error)).await;
            return;
        }
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let change = match event.event_type() {
                EventType::Put => record(kv.clone()).map(Change::Put),
                EventType::Delete => Ok(Change::Deleted {
                    key: String::from_utf8_lossy(kv.key()).into_owned(),
                    revision: unsigned(kv.mod_revision()),
                }),
            };
            if sender.send(change).await.is_err() {
                return;
            }
        }
    }
}

fn compare(condition: &Condition) -> Compare {
    match condition {
        Condition::Absent { key } => Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
        Condition::Modified { key, revision } => {
            Compare::mod_revision(key.as_str(), CompareOp::Equal, signed(*revision))
        }
        Condition::Created { key, revision } => {
            Compare::create_revision(key.as_str(), CompareOp::Equal, signed(*revision))
        }
    }
}

fn operation(operation: &Operation) -> TxnOp {
    match operation {
        Operation::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
            TxnOp::put(key.as_str(), value.clone(), options)
        }
        Operation::Delete { key } => TxnOp::delete(key.as_str(), None),
    }
}

fn snapshot(revision: i64, responses: Vec<TxnOpResponse>) -> Result<Snapshot, StoreError> {
    let mut records = Vec::with_capacity(responses.len());
    for response in responses {
        if let TxnOpResponse::Get(mut get) = response {
            records.push(get.take_kvs().into_iter().next().map(record).transpose()?);
        }
    }
    Ok(Snapshot { records, revision: unsigned(revision) })
}

fn record(kv: KeyValue) -> Result<Record, StoreError> {
    let (created, modified) = (unsigned(kv.create_revision()), unsigned(kv.mod_revision()));
    let (key, value) = kv.into_key_value();
    let key = String::from_utf8(key).map_err(|error| StoreError::Refused {
        reason: format!("a key under our prefix is not text: {error}"),
    })?;
    Ok(Record { key, value, created, modified })
}

/// The first key that does not start with `prefix`. Our prefixes end in `/`, so the last byte can always be raised.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}

fn signed(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

fn unsigned(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or(0))
}

fn seconds_of(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}

fn unanswered(reason: String, changes: Option<&str>) -> StoreError {
    match changes {
        Some(key) => StoreError::Unknown { key: key.to_owned(), reason },
        None => StoreError::Unavailable { reason },
    }
}

/// gRPC codes that say the request was looked at and turned down: nothing is in doubt.
fn translate(error: etcd_client::Error, changes: Option<&str>) -> StoreError {
    let etcd_client::Error::GRpcStatus(status) = &error else {
        return unanswered(error.to_string(), changes);
    };
    let message = status.message();
    // etcd gives no structured detail beside the code, only these fixed texts.
    if message.contains("required revision has been compacted") {
        return StoreError::Compacted { oldest: Revision(0) };
    }
    if message.contains("requested lease not found") {
        return StoreError::LeaseLost;
    }
    let reason = format!("{}: {message}", status.code());
    if CODES_THAT_DECIDE.contains(&(status.code() as i32)) {
        return StoreError::Refused { reason };
    }
    unanswered(reason, changes)
}

/// InvalidArgument, NotFound, PermissionDenied, ResourceExhausted, FailedPrecondition, OutOfRange, Unauthenticated.
const CODES_THAT_DECIDE: [i32; 7] = [3, 5, 7, 8, 9, 11, 16];
