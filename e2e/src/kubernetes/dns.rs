//! DNS of the cluster: names of Services, and of the pods behind those without an address of their own.
//!
//! ```text
//! operator.mayastor.svc.cluster.local                 the Service's address
//! etcd-headless.mayastor.svc.cluster.local            addresses of its pods
//! etcd-0.etcd-headless.mayastor.svc.cluster.local     the pod of that name
//! ```
//!
//! It serves in the hub what other clusters' CoreDNS serves in a pod. Answers are what the API server has said; nothing
//! outside of the cluster has a name.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

const DOMAIN: &str = ".svc.cluster.local";
const PORT: u16 = 53;
/// The longest question without extensions.
const QUERY_BYTES_MAX: usize = 512;
/// Clients ask anew for each connection that fails.
const TTL_SECONDS: u32 = 5;
const HEADER_BYTES: usize = 12;
const TYPE_A: u16 = 1;
/// Response, authoritative, recursion desired and available.
const FLAGS: u16 = 0x8580;
const NAME_ERROR: u16 = 3;
/// The name of the question, which follows the header.
const POINTER_TO_QUESTION: u16 = 0xc00c;

/// The server, at work. Dropping it ends it.
#[derive(Debug)]
pub struct Dns {
    tasks: [JoinHandle<()>; 3],
}

impl Dns {
    /// Serves the names of a cluster at `address`.
    pub async fn start(client: Client, address: IpAddr) -> Result<Self> {
        let socket = UdpSocket::bind((address, PORT)).await;
        let socket = socket.with_context(|| format!("serve DNS at {address}"))?;
        let (services, follow_services) = follow::<Service>(Api::all(client.clone()));
        let (endpoints, follow_endpoints) = follow::<Endpoints>(Api::all(client));
        let serving = tokio::spawn(async move {
            let mut query = [0; QUERY_BYTES_MAX];
            loop {
                // An error is of an earlier answer, whose client has gone.
                let Ok((length, from)) = socket.recv_from(&mut query).await else { continue };
                let known = |name: &str| addresses(name, &services.state(), &endpoints.state());
                if let Some(answer) = answer(&query[..length], known) {
                    socket.send_to(&answer, from).await.ok();
                }
            }
        });
        Ok(Self { tasks: [serving, follow_services, follow_endpoints] })
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A copy of all objects of a kind that follows the server's.
fn follow<K>(api: Api<K>) -> (Store<K>, JoinHandle<()>)
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + Send
        + Sync
        + serde::de::DeserializeOwned
        + 'static,
{
    let (store, writer) = reflector::store();
    let changes = reflector::reflector(writer, watcher(api, watcher::Config::default())).default_backoff();
    (store, tokio::spawn(changes.for_each(|_| std::future::ready(()))))
}

/// The addresses of a name; none: there is no such name.
fn addresses(name: &str, services: &[Arc<Service>], endpoints: &[Arc<Endpoints>]) -> Option<Vec<Ipv4Addr>> {
    let labels: Vec<_> = name.strip_suffix(DOMAIN)?.split('.').collect();
    let (pod, service, namespace) = match labels[..] {
        [service, namespace] => (None, service, namespace),
        [pod, service, namespace] => (Some(pod), service, namespace),
        _ => return None,
    };
    let is_it = |found_name: String, found_namespace: Option<String>| {
        found_name == service && found_namespace.as_deref() == Some(namespace)
    };
    let found = services.iter().find(|one| is_it(one.name_any(), one.namespace()))?.spec.as_ref()?;
    let own: Option<Ipv4Addr> = found.cluster_ip.as_deref().and_then(|address| address.parse().ok());
    if let (Some(own), None) = (own, pod) {
        return Some(vec![own]);
    }
    let behind = endpoints.iter().find(|one| is_it(one.name_any(), one.namespace()));
    let subsets = behind.and_then(|endpoints| endpoints.subsets.as_ref()).into_iter().flatten();
    // The controller lists those that are not ready here too, where the Service asks for it.
    let ready = subsets.flat_map(|subset| subset.addresses.iter().flatten());
    let wanted: Vec<_> = ready
        .filter(|address| pod.is_none() || address.hostname.as_deref() == pod)
        .filter_map(|address: &EndpointAddress| address.ip.parse().ok())
        .collect();
    (pod.is_none() || !wanted.is_empty()).then_some(wanted)
}

/// The answer to a query (RFC 1035, section 4.1); none where it is none.
fn answer(query: &[u8], known: impl Fn(&str) -> Option<Vec<Ipv4Addr>>) -> Option<Vec<u8>> {
    let (name, end) = question(query)?;
    let kind = u16::from_be_bytes(query.get(end..end + 2)?.try_into().ok()?);
    let found = known(&name);
    let code = if found.is_none() { NAME_ERROR } else { 0 };
    // A name without addresses of a kind is there all the same, and the answer has none.
    let found = if kind == TYPE_A { found.unwrap_or_default() } else { Vec::new() };
    let mut answer = query[..2].to_vec();
    for word in [FLAGS | code, 1, u16::try_from(found.len()).ok()?, 0, 0] {
        answer.extend(word.to_be_bytes());
    }
    answer.extend(query.get(HEADER_BYTES..end + 4)?);
    for address in found {
        for word in [POINTER_TO_QUESTION, TYPE_A, 1] {
            answer.extend(word.to_be_bytes());
        }
        answer.extend(TTL_SECONDS.to_be_bytes());
        answer.extend(4_u16.to_be_bytes());
        answer.extend(address.octets());
    }
    Some(answer)
}

/// The name that is asked for, in lower case, and where it ends.
fn question(query: &[u8]) -> Option<(String, usize)> {
    let (mut at, mut labels) = (HEADER_BYTES, Vec::new());
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(std::str::from_utf8(query.get(at..at + length)?).ok()?.to_ascii_lowercase());
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut query = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).unwrap());
            query.extend(label.bytes());
        }
        query.push(0);
        query.extend(kind.to_be_bytes());
        query.extend([0, 1]);
        query
    }

    fn known() -> impl Fn(&str) -> Option<Vec<Ipv4Addr>> {
        let service = |name: &str, address: &str| {
            let service =
                json!({ "metadata": { "name": name, "namespace": "n" }, "spec": { "clusterIP": address } });
            Arc::new(serde_json::from_value::<Service>(service).unwrap())
        };
        let endpoints = json!({
            "metadata": { "name": "etcd", "namespace": "n" },
            "subsets": [{ "addresses": [{ "ip": "10.244.1.7", "hostname": "etcd-0" }, { "ip": "10.244.2.7" }] }],
        });
        let endpoints = [Arc::new(serde_json::from_value::<Endpoints>(endpoints).unwrap())];
        let services = [service("rest", "10.96.0.9"), service("etcd", "None")];
        move |name| addresses(name, &services, &endpoints)
    }

    /// A Service has its address, one without an address those of its pods, and a member of it its own.
    #[test]
    fn names_have_the_addresses_that_the_api_server_tells() {
        let ask = |name: &str| known()(name);
        assert_eq!(ask("rest.n.svc.cluster.local"), Some(vec![Ipv4Addr::new(10, 96, 0, 9)]));
        let pods = vec![Ipv4Addr::new(10, 244, 1, 7), Ipv4Addr::new(10, 244, 2, 7)];
        assert_eq!(ask("etcd.n.svc.cluster.local"), Some(pods));
        assert_eq!(ask("etcd-0.etcd.n.svc.cluster.local"), Some(vec![Ipv4Addr::new(10, 244, 1, 7)]));
        for absent in ["rest.n.svc", "rest.other.svc.cluster.local", "etcd-1.etcd.n.svc.cluster.local"] {
            assert_eq!(ask(absent), None, "{absent}");
        }
    }

    /// A resolver asks for both families at once, and takes "no such name" of one for both.
    #[test]
    fn a_name_without_an_address_of_the_family_is_no_error() {
        let is_there = answer(&query("rest.n.svc.cluster.local", 28), known()).unwrap();
        assert_eq!(is_there[..12], [7, 9, 0x85, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
        let is_not = answer(&query("rest.n.svc", 1), known()).unwrap();
        assert_eq!(is_not[..12], [7, 9, 0x85, 0x83, 0, 1, 0, 0, 0, 0, 0, 0]);
        let found = answer(&query("REST.n.svc.cluster.local", 1), known()).unwrap();
        assert_eq!(found[..12], [7, 9, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(found[found.len() - 6..], [0, 4, 10, 96, 0, 9]);
    }

    /// What comes from the network may be anything.
    #[test]
    fn a_query_that_is_cut_short_has_no_answer() {
        let whole = query("rest.n.svc.cluster.local", 1);
        for length in 0..whole.len() {
            assert_eq!(answer(&whole[..length], known()), None, "{length} bytes");
        }
    }
}
