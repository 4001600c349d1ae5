//! Which PersistentVolumes refer to which volumes, and which volumes none refers to any more (SAFETY C2, C6).
//!
//! What Kubernetes shows is noted here and decided upon; [`crate::kube::persistent_volumes`] looks and acts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use crate::registry::{SpecStatus, VolumeSpec};

/// The label by which a volume says who made it.
const CREATED_BY: &str = "openebs.io/created-by";
/// Who CSI is.
pub const CSI_DRIVER: &str = "io.openebs.csi-mayastor";

/// A `PersistentVolume` of our driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersistentVolume {
    /// Its name.
    pub name: String,
    /// The volume it refers to.
    pub volume: Uuid,
    /// Its reclaim policy is Delete.
    pub is_reclaimed: bool,
    /// It is being deleted.
    pub is_going: bool,
}

/// Why a volume without a `PersistentVolume` is not deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept {
    /// Nobody saw a `PersistentVolume` with reclaim policy Delete go.
    RemovalNotSeen,
    /// It is published: somebody may use it.
    Published,
    /// Its Volume resource says Retain.
    Retained,
    /// It would be one of too many at once.
    TooMany,
}

/// For people: what was found, and what they can do.
impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no PersistentVolume refers to the volume, which was made for a claim")?;
        f.write_str(match self {
            Self::RemovalNotSeen => {
                ", and none with reclaim policy Delete was seen going: delete the Volume if nobody needs its data, or \
                 make a PersistentVolume for it"
            }
            Self::Published => ", but it is published: it is deleted when its hosts have let go of it",
            Self::Retained => ": its deletionPolicy Retain keeps it",
            Self::TooMany => {
                ", and more are so than the operator's --orphan-vol-gc-max: nothing is deleted before somebody has \
                 looked why. Raise it, or delete the Volumes"
            }
        })
    }
}

/// What is to become of the volumes that CSI made and no `PersistentVolume` refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Deleted.
    pub deleted: Vec<Uuid>,
    /// Told to somebody.
    pub reported: BTreeMap<Uuid, Kept>,
}

/// Decides. `referred` are the volumes that a `PersistentVolume` refers to. More than `deletes_max` at once is no
/// clean-up: then nothing is deleted.
pub fn sweep<'a>(
    volumes: impl Iterator<Item = &'a VolumeSpec>,
    referred: &BTreeSet<Uuid>,
    deletes_max: usize,
) -> Sweep {
    let made_by_csi =
        |volume: &&VolumeSpec| volume.labels.get(CREATED_BY).is_some_and(|maker| maker == CSI_DRIVER);
    let left =
        |volume: &&VolumeSpec| volume.status == SpecStatus::Created && !referred.contains(&volume.uuid);
    let mut sweep = Sweep::default();
    for volume in volumes.filter(made_by_csi).filter(left) {
        match why_kept(volume) {
            Some(why) => drop(sweep.reported.insert(volume.uuid, why)),
            None => sweep.deleted.push(volume.uuid),
        }
    }
    if sweep.deleted.len() > deletes_max {
        let too_many = std::mem::take(&mut sweep.deleted);
        sweep.reported.extend(too_many.into_iter().map(|id| (id, Kept::TooMany)));
    }
    sweep
}

fn why_kept(volume: &VolumeSpec) -> Option<Kept> {
    let settled = volume.mirror.as_ref().and_then(|mirror| mirror.settled.as_ref());
    let is_retained = settled.is_some_and(|spec| spec["deletionPolicy"] == "Retain");
    if volume.reclaimed_with.is_none() {
        Some(Kept::RemovalNotSeen)
    } else if volume.target.is_some() {
        Some(Kept::Published)
    } else {
        is_retained.then_some(Kept::Retained)
    }
}

/// What was last seen of Kubernetes. Lost with the term.
#[derive(Debug, Default)]
pub struct PersistentVolumes {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// By name; none before they were listed once.
    listed: Option<BTreeMap<String, PersistentVolume>>,
    orphans: BTreeMap<Uuid, Kept>,
}

/// Whether a `PersistentVolume` refers to a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// They have not been listed yet.
    Unknown,
    /// These do, by name; or none.
    By(Vec<String>),
}

impl PersistentVolumes {
    /// Takes the place of all seen before; returns the volumes whose use may have changed.
    pub fn replace(&self, all: impl IntoIterator<Item = PersistentVolume>) -> BTreeSet<Uuid> {
        let all = all.into_iter().map(|found| (found.name.clone(), found)).collect();
        let before = self.lock(|seen| seen.listed.replace(all));
        before.into_iter().flatten().map(|(_, found)| found.volume).chain(self.volumes()).collect()
    }

    /// One was made or changed.
    pub fn insert(&self, found: PersistentVolume) {
        self.lock(|seen| seen.listed.get_or_insert_default().insert(found.name.clone(), found));
    }

    /// One is gone.
    pub fn remove(&self, name: &str) {
        self.lock(|seen| seen.listed.get_or_insert_default().remove(name));
    }

    /// Who refers to a volume.
    pub fn use_of(&self, volume: Uuid) -> Use {
        self.lock(|seen| match &seen.listed {
            None => Use::Unknown,
            Some(listed) => {
                let users = listed.values().filter(|found| found.volume == volume);
                Use::By(users.map(|found| found.name.clone()).collect())
            }
        })
    }

    /// Volumes that are referred to.
    pub fn volumes(&self) -> BTreeSet<Uuid> {
        self.lock(|seen| seen.listed.iter().flatten().map(|(_, found)| found.volume).collect())
    }

    /// Notes the volumes that nobody refers to and that are kept; returns those about which that is news.
    pub fn note_orphans(&self, orphans: BTreeMap<Uuid, Kept>) -> BTreeSet<Uuid> {
        let before = self.lock(|seen| std::mem::replace(&mut seen.orphans, orphans.clone()));
        let ids = before.keys().chain(orphans.keys()).copied();
        ids.filter(|id| before.get(id) != orphans.get(id)).collect()
    }

    /// Why the volume, which nobody refers to, is kept.
    pub fn orphaned(&self, volume: Uuid) -> Option<Kept> {
        self.lock(|seen| seen.orphans.get(&volume).copied())
    }

    /// How many there are.
    pub fn orphans(&self) -> usize {
        self.lock(|seen| seen.orphans.len())
    }

    fn lock<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{HostAcl, MirrorNote};

    fn volume(n: u128) -> VolumeSpec {
        let mut volume = VolumeSpec::new(Uuid::from_u128(n), 1 << 30);
        volume.status = SpecStatus::Created;
        volume.labels.insert(CREATED_BY.into(), CSI_DRIVER.into());
        volume.reclaimed_with = Some("pvc-1".into());
        volume
    }

    fn of(volume: &VolumeSpec) -> Sweep {
        sweep(std::iter::once(volume), &BTreeSet::new(), 10)
    }

    fn kept(volume: &VolumeSpec, why: Kept) -> Sweep {
        Sweep { deleted: Vec::new(), reported: [(volume.uuid, why)].into() }
    }

    #[test]
    fn c6_only_what_csi_made_and_a_watched_persistent_volume_left_behind_is_deleted() {
        let left = volume(1);
        assert_eq!(of(&left), Sweep { deleted: vec![left.uuid], reported: BTreeMap::new() });

        let unseen = VolumeSpec { reclaimed_with: None, ..volume(1) };
        assert_eq!(of(&unseen), kept(&unseen, Kept::RemovalNotSeen));
        let by_hand = VolumeSpec { labels: BTreeMap::new(), ..volume(1) };
        assert_eq!(of(&by_hand), Sweep::default(), "it never had one");
        let going = VolumeSpec { status: SpecStatus::Deleting, ..volume(1) };
        assert_eq!(of(&going), Sweep::default());
        let mut published = volume(1);
        published.target = Some(published.take_target("a".into(), HostAcl::Any));
        assert_eq!(of(&published), kept(&published, Kept::Published));
        let settled = Some(serde_json::json!({ "deletionPolicy": "Retain" }));
        let retained = VolumeSpec { mirror: Some(MirrorNote { settled, pending: None }), ..volume(1) };
        assert_eq!(of(&retained), kept(&retained, Kept::Retained));

        let referred = BTreeSet::from([left.uuid]);
        assert_eq!(sweep(std::iter::once(&left), &referred, 10), Sweep::default(), "another refers to it");
    }

    #[test]
    fn c6_a_sweep_that_would_delete_too_many_deletes_none() {
        let volumes: Vec<_> = (1..=4).map(volume).collect();
        let found = sweep(volumes.iter(), &BTreeSet::new(), 3);
        assert!(found.deleted.is_empty());
        assert!(found.reported.len() == 4 && found.reported.values().all(|why| *why == Kept::TooMany));
        assert_eq!(sweep(volumes[..3].iter(), &BTreeSet::new(), 3).deleted.len(), 3);
        assert!(sweep(volumes[..1].iter(), &BTreeSet::new(), 0).deleted.is_empty(), "0: ask always");
    }

    #[test]
    fn c2_before_they_were_listed_nobody_says_that_nothing_refers_to_a_volume() {
        let seen = PersistentVolumes::default();
        let id = Uuid::from_u128(1);
        assert_eq!(seen.use_of(id), Use::Unknown);
        let one = PersistentVolume { name: "pv".into(), volume: id, is_reclaimed: true, is_going: false };
        assert_eq!(seen.replace([one.clone()]), [id].into());
        assert_eq!(seen.use_of(id), Use::By(vec!["pv".into()]));
        assert_eq!(seen.replace([]), [id].into());
        assert_eq!(seen.use_of(id), Use::By(Vec::new()));
        seen.insert(one);
        seen.remove("pv");
        assert_eq!(seen.use_of(id), Use::By(Vec::new()));
    }
}
