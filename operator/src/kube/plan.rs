//! What to do next for one resource: pure, the same for all kinds.

use std::fmt::Debug;

use crds::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::core::object::{HasSpec, HasStatus};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::port::{ControlPlane, Key, Kind, Mirror, Refusal, Standing};

/// A kind of resource that is reconciled.
pub trait Managed: Sized + Send + Sync + 'static {
    /// The custom resource.
    type Cr: Resource<DynamicType = ()>
        + HasSpec<Spec = Self::Spec>
        + HasStatus<Status = Self::Status>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static;
    /// Its spec.
    type Spec: Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static;
    /// Its status.
    type Status: Clone + Debug + PartialEq + Send + Sync + 'static;
    /// What the registry has of it.
    type Object: Clone + Debug + PartialEq + Send + Sync + 'static;

    /// The kind.
    const KIND: Kind;
    /// Name of its CustomResourceDefinition.
    const DEFINITION: &'static str;
    /// Finalizer that holds its CRs, for kinds whose deletion is a wish.
    const FINALIZER: Option<&'static str>;

    /// What the registry says of it.
    fn look(plane: &impl ControlPlane, name: &str) -> Standing<Self::Object>;
    /// The spec that a CR of this object would have. `cr` is what the CR says now: what the user leaves to the
    /// operator there stays left.
    fn spec_of(object: &Self::Object, cr: Option<&Self::Spec>) -> Self::Spec;
    /// Whether the status shows that there once was an object.
    fn was_alive(status: &Self::Status) -> bool;
    /// Cluster that the status names.
    fn cluster_id(status: &Self::Status) -> Option<&str>;
    /// Whether a change of a field takes something away; such a wish is never derived from a CR without status.
    fn takes_away(field: &str, from: &Value, to: &Value) -> bool;
    /// Whether a field may be changed while the CR is being deleted.
    fn may_change_while_deleting(field: &str) -> bool;
    /// What stands against destroying the object now.
    fn blocked_by(object: &Self::Object) -> Option<Refusal>;
    /// The CR that owns the CR of this object.
    fn owner(object: &Self::Object) -> Option<Key>;
    /// What to show.
    fn status(view: &View<'_, Self>, refusals: &[Refusal], now: Timestamp) -> Self::Status;
    /// Conditions of a status.
    fn conditions(status: &Self::Status) -> &[Condition];
    /// The status with figures left out that change all the time.
    fn without_usage(status: &Self::Status) -> Self::Status;
    /// Does what a step asks of the control plane.
    fn perform(
        plane: &impl ControlPlane,
        name: &str,
        cr: &Self::Cr,
        verb: &Verb,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;
}

/// What there is, at one moment.
#[derive(Debug)]
pub struct View<'a, M: Managed> {
    /// The CR.
    pub cr: Option<&'a M::Cr>,
    /// What the registry says.
    pub standing: &'a Standing<M::Object>,
    /// What was last mirrored.
    pub mirror: Option<&'a Mirror>,
    /// Whether the kind or the namespace is being deleted, or gone.
    pub is_torn_down: bool,
    /// What was asked in this reconcile and refused.
    pub refused: &'a [Verb],
}

impl<'a, M: Managed> View<'a, M> {
    /// The object, if there is one.
    pub fn object(&self) -> Option<&'a M::Object> {
        match self.standing {
            Standing::Exists(object) => Some(object),
            Standing::Unknown | Standing::Deleted => None,
        }
    }

    /// The status that the CR has.
    pub fn status(&self) -> Option<&'a M::Status> {
        self.cr.and_then(HasStatus::status)
    }

    /// Generation of the CR's spec.
    pub fn generation(&self) -> Option<i64> {
        self.cr.and_then(|cr| cr.meta().generation)
    }

    /// Whether somebody deletes the CR.
    pub fn is_deleting(&self) -> bool {
        self.cr.is_some_and(|cr| cr.meta().deletion_timestamp.is_some())
    }

    /// Whether the CR shows something that the registry does not know: nothing may touch it but recovery.
    pub fn is_unclaimed(&self) -> bool {
        *self.standing == Standing::Unknown && self.status().is_some_and(M::was_alive)
    }
}

/// One field that shall change.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// Name of the field in the spec.
    pub field: String,
    /// What it was made from: the last mirrored value.
    pub from: Value,
    /// What it shall be.
    pub to: Value,
    /// What the registry has: somebody else's change if it is not `from`.
    pub now: Value,
    /// The whole spec as mirrored once the wish is taken over.
    pub mirror: Value,
}

/// What is asked of the control plane.
#[derive(Clone, Debug, PartialEq)]
pub enum Verb {
    /// Make the object.
    Create,
    /// Change one field of it.
    Change(Wish),
    /// Destroy it, or give it free, as its policy says.
    Destroy,
}

/// One step. Each is decided on what was seen a moment ago and can be repeated.
#[derive(Clone, Debug, PartialEq)]
pub enum Step<S> {
    /// Hold the CR.
    AddFinalizer,
    /// Let the CR go.
    ReleaseFinalizer,
    /// The CR is missing: make it.
    CreateCr(S),
    /// The object was deleted behind the CR.
    DeleteCr,
    /// Note that the CR is about to be changed.
    NotePending(Value),
    /// Change the spec of the CR.
    PatchSpec(S),
    /// Note that CR and registry agree.
    Settle(Value),
    /// Nothing needs to be remembered any more.
    Forget,
    /// Ask the control plane.
    Do(Verb),
}

/// The next step; `None` when everything is as it should be, or nothing can be done.
pub fn next<M: Managed>(view: &View<'_, M>) -> Option<Step<M::Spec>> {
    let Some(cr) = view.cr else { return without_cr(view) };
    let holds = |finalizer| cr.meta().finalizers.iter().flatten().any(|name| name == finalizer);
    let is_held = M::FINALIZER.is_some_and(holds);
    if view.is_torn_down {
        return (view.is_deleting() && is_held).then_some(Step::ReleaseFinalizer);
    }
    if view.is_deleting() {
        return is_held.then(|| deleting(view, cr)).flatten();
    }
    match view.standing {
        Standing::Unknown if view.is_unclaimed() => None,
        Standing::Unknown if M::FINALIZER.is_some() && !is_held => Some(Step::AddFinalizer),
        Standing::Unknown => unless_refused(view, Verb::Create),
        Standing::Deleted => Some(Step::DeleteCr),
        Standing::Exists(_) if M::FINALIZER.is_some() && !is_held => Some(Step::AddFinalizer),
        Standing::Exists(object) => agree(view, cr.spec(), object),
    }
}

fn without_cr<M: Managed>(view: &View<'_, M>) -> Option<Step<M::Spec>> {
    match view.standing {
        Standing::Unknown => None,
        Standing::Deleted => Some(Step::Forget),
        Standing::Exists(_) if view.is_torn_down => None,
        Standing::Exists(object) => Some(Step::CreateCr(M::spec_of(object, None))),
    }
}

fn deleting<M: Managed>(view: &View<'_, M>, cr: &M::Cr) -> Option<Step<M::Spec>> {
    match view.standing {
        Standing::Unknown if view.is_unclaimed() => None,
        Standing::Unknown | Standing::Deleted => Some(Step::ReleaseFinalizer),
        Standing::Exists(object) => {
            let wish = wishes::<M>(view, cr.spec(), object)
                .into_iter()
                .find(|wish| M::may_change_while_deleting(&wish.field) && wish.now != wish.to)
                .and_then(|wish| unless_refused(view, Verb::Change(wish)));
            wish.or_else(|| match M::blocked_by(object) {
                Some(_) => None,
                None => unless_refused(view, Verb::Destroy),
            })
        }
    }
}

fn unless_refused<M: Managed>(view: &View<'_, M>, verb: Verb) -> Option<Step<M::Spec>> {
    (!view.refused.contains(&verb)).then_some(Step::Do(verb))
}

/// Wishes first, then what else the registry has goes to the CR, then both are noted to agree.
fn agree<M: Managed>(view: &View<'_, M>, spec: &M::Spec, object: &M::Object) -> Option<Step<M::Spec>> {
    let wishes = wishes::<M>(view, spec, object);
    let open: Vec<_> = wishes.iter().filter(|wish| wish.now != wish.to).collect();
    for wish in &open {
        if let Some(step) = unless_refused(view, Verb::Change((*wish).clone())) {
            return Some(step);
        }
    }
    // Refused wishes stay in the spec, and their base stays what it was.
    let registry = fields(&M::spec_of(object, Some(spec)));
    let mut shown = registry.clone();
    let mut settled = registry;
    for wish in open {
        put(&mut shown, &wish.field, &wish.to);
        put(&mut settled, &wish.field, &wish.from);
    }
    let settled = Value::Object(settled);
    let mirror = view.mirror.cloned().unwrap_or_default();
    if shown != fields(spec) {
        let spec =
            serde_json::from_value(Value::Object(shown)).expect("a spec with fields of two specs is a spec");
        return Some(match mirror.pending.as_ref() == Some(&settled) {
            true => Step::PatchSpec(spec),
            false => Step::NotePending(settled),
        });
    }
    (mirror != Mirror { settled: Some(settled.clone()), pending: None }).then_some(Step::Settle(settled))
}

/// Fields of the CR that differ from the last mirrored spec. Without one the registry has its way: nobody can say
/// then which of two values is the older.
pub fn wishes<M: Managed>(view: &View<'_, M>, spec: &M::Spec, object: &M::Object) -> Vec<Wish> {
    let Some(mirror) = view.mirror else { return Vec::new() };
    let Some(Value::Object(settled)) = &mirror.settled else { return Vec::new() };
    let field = |spec: &Map<String, Value>, name: &str| spec.get(name).cloned().unwrap_or(Value::Null);
    let asked = fields(spec);
    // What we wrote ourselves and did not come to note is as good as noted.
    let mut base = settled.clone();
    for (name, value) in mirror.pending.as_ref().and_then(Value::as_object).into_iter().flatten() {
        if asked.get(name) == Some(value) {
            put(&mut base, name, value);
        }
    }
    // Whether it is fulfilled is asked in the words of the wish; whether its ground has moved, in those of the base.
    let as_asked = fields(&M::spec_of(object, Some(spec)));
    let as_before = serde_json::from_value(Value::Object(base.clone())).ok();
    let as_before =
        as_before.map_or_else(|| as_asked.clone(), |base| fields(&M::spec_of(object, Some(&base))));
    let names = asked.keys().chain(base.keys().filter(|name| !asked.contains_key(*name)));
    names
        .map(|name| (name, field(&base, name), field(&asked, name)))
        .filter(|(_, from, to)| from != to)
        .filter(|(name, from, to)| view.status().is_some() || !M::takes_away(name, from, to))
        .map(|(name, from, to)| {
            let mut mirror = base.clone();
            put(&mut mirror, name, &to);
            let is_fulfilled = field(&as_asked, name) == to;
            let now = if is_fulfilled { to.clone() } else { field(&as_before, name) };
            Wish { field: name.clone(), from, to, now, mirror: Value::Object(mirror) }
        })
        .collect()
}

/// The fields of a spec as the API has them.
pub fn fields<S: Serialize>(spec: &S) -> Map<String, Value> {
    match serde_json::to_value(spec) {
        Ok(Value::Object(fields)) => fields,
        _ => unreachable!("specs are structs with plain fields"),
    }
}

fn put(fields: &mut Map<String, Value>, name: &str, value: &Value) {
    match value {
        Value::Null => fields.remove(name),
        value => fields.insert(name.to_owned(), value.clone()),
    };
}

/// Refuses a wish whose ground has moved: somebody else changed the same field since.
pub fn ensure_current(wish: &Wish) -> Result<(), Refusal> {
    if wish.now == wish.from {
        return Ok(());
    }
    let text = |value: &Value| if value.is_null() { "nothing".to_owned() } else { value.to_string() };
    Err(Refusal::invalid(
        "Conflict",
        format!(
            "spec.{} was changed from {} to {} here while it was changed to {} elsewhere: set it to {} to keep that, \
             then change it again",
            wish.field,
            text(&wish.from),
            text(&wish.to),
            text(&wish.now),
            text(&wish.now)
        ),
    ))
}

#[cfg(test)]
mod tests;
