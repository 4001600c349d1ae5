//! Writes to Kubernetes, each on the resource version that it was decided on.

use k8s_openapi::api::core::v1::{Namespace, ObjectReference};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde_json::{Value, json};
use tracing::warn;

use super::condition::{event_reason, is_good};
use super::merge::diff;
use super::plan::{Managed, fields};

/// Who wrote, in managed fields and events.
const MANAGER: &str = "mayastor-operator";
/// Kubernetes refuses longer notes of events.
const NOTE_LENGTH_MAX: usize = 1000;

/// One kind in one namespace.
#[derive(Clone)]
pub(crate) struct Rim<M: Managed> {
    client: Client,
    namespace: String,
    api: Api<M::Cr>,
    recorder: Recorder,
}

impl<M: Managed> Rim<M>
where
    M::Cr: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
{
    pub(crate) fn new(client: Client, namespace: &str, instance: &str) -> Self {
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(instance.to_owned()) };
        Self {
            api: Api::namespaced(client.clone(), namespace),
            recorder: Recorder::new(client.clone(), reporter),
            client,
            namespace: namespace.to_owned(),
        }
    }

    pub(crate) async fn get(&self, name: &str) -> kube::Result<Option<M::Cr>> {
        self.api.get_opt(name).await
    }

    /// Whether the kind or the namespace is being deleted or gone. An error decides nothing: a finalizer held too
    /// long can be released, data that was destroyed cannot be brought back.
    pub(crate) async fn is_torn_down(&self) -> kube::Result<bool> {
        let kinds: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let kind = kinds.get_metadata_opt(M::DEFINITION).await?;
        let namespace = namespaces.get_metadata_opt(&self.namespace).await?;
        Ok(kind.is_none_or(|kind| kind.metadata.deletion_timestamp.is_some())
            || namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()))
    }

    pub(crate) async fn set_finalizer(&self, cr: &M::Cr, finalizer: &str, is_held: bool) -> kube::Result<()> {
        let others = cr.finalizers().iter().filter(|name| *name != finalizer).cloned();
        let finalizers: Vec<_> = others.chain(is_held.then(|| finalizer.to_owned())).collect();
        self.patch(cr, json!({ "metadata": { "finalizers": finalizers } })).await
    }

    pub(crate) async fn patch_spec(&self, cr: &M::Cr, spec: &M::Spec) -> kube::Result<()> {
        use kube::core::object::HasSpec as _;
        let patch = diff(&Value::Object(fields(cr.spec())), &Value::Object(fields(spec)));
        self.patch(cr, json!({ "spec": patch })).await
    }

    async fn patch(&self, cr: &M::Cr, mut patch: Value) -> kube::Result<()> {
        patch["metadata"]["resourceVersion"] = json!(cr.resource_version());
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        self.api.patch(&cr.name_any(), &params, &Patch::Merge(patch)).await.map(drop)
    }

    pub(crate) async fn create(
        &self,
        name: &str,
        spec: &M::Spec,
        owner: Option<OwnerReference>,
    ) -> kube::Result<()> {
        let cr = json!({
            "apiVersion": M::Cr::api_version(&()),
            "kind": M::Cr::kind(&()),
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "finalizers": M::FINALIZER.into_iter().collect::<Vec<_>>(),
                "ownerReferences": owner.into_iter().collect::<Vec<_>>(),
            },
            "spec": spec,
        });
        let cr = serde_json::from_value(cr).map_err(kube::Error::SerdeError)?;
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        self.api.create(&params, &cr).await.map(drop)
    }

    pub(crate) async fn delete(&self, cr: &M::Cr) -> kube::Result<()> {
        let preconditions = Preconditions { resource_version: cr.resource_version(), uid: cr.uid() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        self.api.delete(&cr.name_any(), &params).await.map(drop)
    }

    /// Replaces the status as a whole, so that fields that are no longer there go.
    pub(crate) async fn replace_status(&self, cr: &M::Cr, status: M::Status) -> kube::Result<()> {
        use kube::core::object::HasStatus as _;
        let mut cr = cr.clone();
        *cr.status_mut() = Some(status);
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        self.api.replace_status(&cr.name_any(), &params, &cr).await.map(drop)
    }

    /// An event at the CR for each condition that says something new. Lost events cost nobody anything but news.
    pub(crate) async fn tell(&self, cr: &M::Cr, conditions: &[&crds::Condition]) {
        let reference: ObjectReference = cr.object_ref(&());
        for condition in conditions {
            let note: String = condition.message.chars().take(NOTE_LENGTH_MAX).collect();
            let event = Event {
                type_: if is_good(condition) { EventType::Normal } else { EventType::Warning },
                reason: event_reason(condition).to_owned(),
                note: (!note.is_empty()).then_some(note),
                action: condition.type_.clone(),
                secondary: None,
            };
            if let Err(error) = self.recorder.publish(&event, &reference).await {
                warn!(cr.name = %cr.name_any(), error = %error, "event could not be published");
            }
        }
    }
}

/// Whether somebody else wrote first: look again.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
}
