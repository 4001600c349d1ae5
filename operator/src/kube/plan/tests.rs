//! Stories of one volume, step by step, without Kubernetes.

use crds::names::VOLUME_FINALIZER;
use crds::volume::{Publish, VolumeStatus};
use crds::{Quantity, Volume, VolumeSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::super::port::VolumeObject;
use super::super::volume::Volumes;
use super::*;

const UUID: &str = "ec4e66fd-3b33-4439-b504-d49aba53da26";

fn spec(replicas: u8) -> VolumeSpec {
    VolumeSpec {
        uuid: Some(UUID.to_owned()),
        size: Quantity::from_bytes(1 << 30),
        replicas,
        ..VolumeSpec::default()
    }
}

fn published(mut spec: VolumeSpec, node: Option<&str>) -> VolumeSpec {
    spec.publish = Some(Publish { node: node.map(str::to_owned), allowed_hosts: vec!["*".to_owned()] });
    spec
}

/// A CR that was alive before.
fn cr(spec: VolumeSpec) -> Volume {
    let mut cr = Volume::new("v", spec);
    cr.metadata.finalizers = Some(vec![VOLUME_FINALIZER.to_owned()]);
    cr.status = Some(VolumeStatus { uuid: Some(UUID.to_owned()), ..VolumeStatus::default() });
    cr
}

fn deleted(mut cr: Volume) -> Volume {
    cr.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    cr
}

fn exists(spec: VolumeSpec) -> Standing<VolumeObject> {
    Standing::Exists(Box::new(VolumeObject { spec, ..VolumeObject::default() }))
}

fn mirror(spec: &VolumeSpec) -> Mirror {
    Mirror { settled: Some(serde_json::to_value(spec).unwrap()), pending: None }
}

#[derive(Default)]
struct Scene {
    cr: Option<Volume>,
    standing: Option<Standing<VolumeObject>>,
    mirror: Option<Mirror>,
    is_torn_down: bool,
    refused: Vec<Verb>,
}

impl Scene {
    fn next(&self) -> Option<Step<VolumeSpec>> {
        next::<Volumes>(&View {
            cr: self.cr.as_ref(),
            standing: self.standing.as_ref().unwrap_or(&Standing::Unknown),
            mirror: self.mirror.as_ref(),
            is_torn_down: self.is_torn_down,
            refused: &self.refused,
        })
    }
}

fn field_of(step: Option<Step<VolumeSpec>>) -> String {
    match step {
        Some(Step::Do(Verb::Change(wish))) => wish.field,
        other => panic!("a change was expected, not {other:?}"),
    }
}

#[test]
fn a_new_volume_is_held_before_it_is_made() {
    let mut new = cr(spec(2));
    new.status = None;
    new.metadata.finalizers = None;
    let mut scene = Scene { cr: Some(new.clone()), ..Scene::default() };
    assert_eq!(scene.next(), Some(Step::AddFinalizer));
    new.metadata.finalizers = Some(vec![VOLUME_FINALIZER.to_owned()]);
    scene.cr = Some(new);
    assert_eq!(scene.next(), Some(Step::Do(Verb::Create)));
    scene.refused = vec![Verb::Create];
    assert_eq!(scene.next(), None);
}

/// etcd was wiped: a CR that was alive is neither made anew, empty, nor removed.
#[test]
fn c1_a_volume_that_the_registry_forgot_is_left_alone() {
    let scene = Scene { cr: Some(cr(spec(2))), ..Scene::default() };
    assert_eq!(scene.next(), None);
    let scene = Scene { cr: Some(deleted(cr(spec(2)))), ..Scene::default() };
    assert_eq!(scene.next(), None);
}

#[test]
fn c2_a_published_volume_is_not_destroyed_with_its_cr() {
    let wanted = published(spec(2), None);
    let held = published(spec(2), Some("a"));
    let mut scene = Scene {
        cr: Some(deleted(cr(wanted.clone()))),
        standing: Some(exists(held.clone())),
        mirror: Some(mirror(&wanted)),
        ..Scene::default()
    };
    assert_eq!(scene.next(), None);
    // The way out is open: unpublishing is a wish that a dying CR may have.
    scene.cr = Some(deleted(cr(spec(2))));
    let Some(Step::Do(Verb::Change(wish))) = scene.next() else { panic!("{:?}", scene.next()) };
    assert_eq!(wish.field, "publish");
    ensure_current(&wish).unwrap();
    scene.standing = Some(exists(spec(2)));
    assert_eq!(scene.next(), Some(Step::Do(Verb::Destroy)));
    scene.standing = Some(Standing::Deleted);
    assert_eq!(scene.next(), Some(Step::ReleaseFinalizer));
    scene.cr = None;
    assert_eq!(scene.next(), Some(Step::Forget));
}

#[test]
fn c2_a_volume_that_a_persistent_volume_refers_to_is_not_destroyed_with_its_cr() {
    let mut object = VolumeObject { spec: spec(2), ..VolumeObject::default() };
    object.persistent_volumes.push("pvc-1".to_owned());
    let scene = Scene {
        cr: Some(deleted(cr(spec(2)))),
        standing: Some(Standing::Exists(Box::new(object))),
        mirror: Some(mirror(&spec(2))),
        ..Scene::default()
    };
    assert_eq!(scene.next(), None);
}

/// An operator that has just begun has not listed them; one may refer to the volume.
#[test]
fn c2_a_volume_is_not_destroyed_with_its_cr_before_persistent_volumes_were_listed() {
    let object = VolumeObject { spec: spec(2), is_use_unknown: true, ..VolumeObject::default() };
    let mut scene = Scene {
        cr: Some(deleted(cr(spec(2)))),
        standing: Some(Standing::Exists(Box::new(object.clone()))),
        mirror: Some(mirror(&spec(2))),
        ..Scene::default()
    };
    assert_eq!(scene.next(), None);
    let listed = VolumeObject { is_use_unknown: false, ..object };
    scene.standing = Some(Standing::Exists(Box::new(listed)));
    assert_eq!(scene.next(), Some(Step::Do(Verb::Destroy)));
}

/// A deletion through CSI or REST is never held by the CR.
#[test]
fn c2_a_volume_deleted_elsewhere_takes_its_cr_along() {
    let mut scene = Scene {
        cr: Some(cr(published(spec(2), None))),
        standing: Some(Standing::Deleted),
        mirror: Some(mirror(&spec(2))),
        ..Scene::default()
    };
    assert_eq!(scene.next(), Some(Step::DeleteCr));
    scene.cr = scene.cr.map(deleted);
    assert_eq!(scene.next(), Some(Step::ReleaseFinalizer));
}

/// `kubectl delete crd volumes.openebs.io` must not delete data, whatever the CRs say.
#[test]
fn c2_a_kind_that_is_torn_down_releases_finalizers_and_keeps_data() {
    for standing in [exists(published(spec(2), Some("a"))), exists(spec(2)), Standing::Unknown] {
        let mut scene = Scene {
            cr: Some(deleted(cr(spec(2)))),
            standing: Some(standing),
            mirror: Some(mirror(&spec(2))),
            is_torn_down: true,
            ..Scene::default()
        };
        assert_eq!(scene.next(), Some(Step::ReleaseFinalizer));
        scene.cr = None;
        assert_eq!(scene.next(), None);
    }
}

#[test]
fn a_cr_deleted_by_force_comes_back() {
    let scene = Scene {
        standing: Some(exists(published(spec(2), Some("a")))),
        mirror: Some(mirror(&spec(2))),
        ..Scene::default()
    };
    assert_eq!(scene.next(), Some(Step::CreateCr(published(spec(2), None))));
}

#[test]
fn c4_a_wish_is_what_differs_from_the_last_mirrored_spec() {
    let scene = |asked, registry, mirrored| Scene {
        cr: Some(cr(spec(asked))),
        standing: Some(exists(spec(registry))),
        mirror: Some(mirror(&spec(mirrored))),
        ..Scene::default()
    };
    assert_eq!(scene(2, 2, 2).next(), None);
    assert_eq!(field_of(scene(3, 2, 2).next()), "replicas");
    // REST changed it: the CR follows, in two steps, and neither is a wish.
    let pending = serde_json::to_value(spec(3)).unwrap();
    assert_eq!(scene(2, 3, 2).next(), Some(Step::NotePending(pending)));
}

/// The operator dies between taking a wish over and anything else, REST changes the volume, and the restart must not
/// revert that. The wish was noted in one with its change.
#[test]
fn c4_a_wish_is_not_carried_out_twice() {
    let scene = Scene {
        cr: Some(cr(spec(3))),
        standing: Some(exists(spec(2))),
        mirror: Some(mirror(&spec(3))),
        ..Scene::default()
    };
    assert_eq!(scene.next(), Some(Step::NotePending(serde_json::to_value(spec(2)).unwrap())));
}

/// As above, and the CR is being brought up to date: a crash before or after the CR is written is no wish either.
#[test]
fn c4_a_crash_while_mirroring_is_no_wish() {
    let halfway = |cr_replicas, registry| Scene {
        cr: Some(cr(spec(cr_replicas))),
        standing: Some(exists(spec(registry))),
        mirror: Some(Mirror {
            settled: Some(serde_json::to_value(spec(2)).unwrap()),
            pending: Some(serde_json::to_value(spec(3)).unwrap()),
        }),
        ..Scene::default()
    };
    // Not yet written.
    assert_eq!(halfway(2, 3).next(), Some(Step::PatchSpec(spec(3))));
    // Written, not yet noted.
    assert_eq!(halfway(3, 3).next(), Some(Step::Settle(serde_json::to_value(spec(3)).unwrap())));
    // Written, not yet noted, and REST was there again.
    assert_eq!(halfway(3, 4).next(), Some(Step::NotePending(serde_json::to_value(spec(4)).unwrap())));
}

#[test]
fn c4_a_refused_wish_stays_in_the_spec_and_blocks_no_other() {
    let mut asked = spec(9);
    asked.max_snapshots = Some(5);
    let mut scene = Scene {
        cr: Some(cr(asked.clone())),
        standing: Some(exists(spec(2))),
        mirror: Some(mirror(&spec(2))),
        ..Scene::default()
    };
    let mut seen = Vec::new();
    while let Some(step) = scene.next() {
        let Step::Do(verb @ Verb::Change(_)) = step else { panic!("{step:?}") };
        seen.push(field_of(Some(Step::Do(verb.clone()))));
        scene.refused.push(verb);
    }
    assert_eq!(seen, ["maxSnapshots", "replicas"]);
}

/// A manifest from an old backup must not take replicas away.
#[test]
fn c4_nothing_is_taken_away_by_a_cr_without_status() {
    let mut restored = cr(spec(1));
    restored.status = None;
    let registry = published(spec(3), Some("a"));
    let mut scene = Scene {
        cr: Some(restored.clone()),
        standing: Some(exists(registry.clone())),
        mirror: Some(mirror(&published(spec(3), None))),
        ..Scene::default()
    };
    assert!(matches!(scene.next(), Some(Step::NotePending(_))), "{:?}", scene.next());
    // More of something is a wish like any other.
    restored.spec = published(spec(4), None);
    scene.cr = Some(restored);
    assert_eq!(field_of(scene.next()), "replicas");
    // With nothing to compare with the registry has its way.
    scene.mirror = None;
    assert!(matches!(scene.next(), Some(Step::NotePending(_))), "{:?}", scene.next());
}

#[test]
fn c4_a_wish_on_ground_that_moved_is_refused() {
    let scene = Scene {
        cr: Some(cr(spec(1))),
        standing: Some(exists(spec(4))),
        mirror: Some(mirror(&spec(3))),
        ..Scene::default()
    };
    let Some(Step::Do(Verb::Change(wish))) = scene.next() else { panic!("{:?}", scene.next()) };
    let refusal = ensure_current(&wish).unwrap_err();
    assert_eq!(refusal.reason, "Conflict");
    assert!(refusal.message.contains("changed from 3 to 1 here while it was changed to 4 elsewhere"));
}

/// The operator chooses a node; that is not written into what the user asked for.
#[test]
fn a_choice_left_to_the_operator_stays_left() {
    let asked = published(spec(2), None);
    let scene = Scene {
        cr: Some(cr(asked.clone())),
        standing: Some(exists(published(spec(2), Some("a")))),
        mirror: Some(mirror(&asked)),
        ..Scene::default()
    };
    assert_eq!(scene.next(), None);
}
