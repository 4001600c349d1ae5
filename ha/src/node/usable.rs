//! SAFETY F4: when the new path may take the place of the others. Pure.

use std::net::SocketAddr;

use csi::host::{Controller, ControllerState};

/// Why the new path cannot take over yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotYet {
    /// No controller to the new address.
    #[error("there is no controller to the new address")]
    Absent,
    /// It is not connected.
    #[error("the new controller is {}", .0.name())]
    State(ControllerState),
    /// Its namespace was not found yet.
    #[error("the new controller has no namespace")]
    NoNamespace,
    /// Its namespace is another device than the one the application has open.
    #[error("the new controller's namespace is not a path of the device in use")]
    OtherDevice,
    /// Its target does not serve I/O yet.
    #[error("the new path is neither optimized nor non-optimized")]
    Inaccessible,
}

/// Whether the controller to `address` carries the I/O of every device that the other controllers of the subsystem
/// carry: the same head, the same UUID, and ANA says that it may be used.
pub fn judge(controllers: &[Controller], nqn: &str, address: SocketAddr) -> Result<(), NotYet> {
    let of_subsystem = || controllers.iter().filter(|it| it.nqn == nqn);
    let is_new = |it: &&Controller| it.address == Some(address);
    // One that is on its way out may stand beside its successor for a moment.
    let new = of_subsystem()
        .filter(is_new)
        .min_by_key(|it| it.state == ControllerState::Deleting)
        .ok_or(NotYet::Absent)?;
    if new.state != ControllerState::Live {
        return Err(NotYet::State(new.state));
    }
    if new.paths.is_empty() {
        return Err(NotYet::NoNamespace);
    }
    for old in of_subsystem().filter(|it| !is_new(it)).flat_map(|it| &it.paths) {
        let same = new.paths.iter().find(|path| path.head == old.head);
        if same.is_none_or(|same| same.uuid.is_none() || same.uuid != old.uuid) {
            return Err(NotYet::OtherDevice);
        }
    }
    match new.paths.iter().all(csi::host::NamespacePath::is_accessible) {
        true => Ok(()),
        false => Err(NotYet::Inaccessible),
    }
}

#[cfg(test)]
mod tests {
    use csi::host::{ControllerId, NamespacePath};
    use nvme::ana::AnaState;
    use uuid::Uuid;

    use super::*;

    const NQN: &str = "nqn.2019-05.io.openebs:0f1c3a52-9a9e-4b0c-8a37-6c2b8f0f6b11";

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 77, 0, last], 8420))
    }

    fn controller(number: u8, state: ControllerState, head: &str, uuid: u128, ana: AnaState) -> Controller {
        Controller {
            id: ControllerId { name: format!("nvme{number}"), birth: number.into() },
            state,
            nqn: NQN.to_owned(),
            host_nqn: None,
            address: Some(at(number)),
            cntlid: 1,
            paths: vec![NamespacePath {
                name: format!("nvme0c{number}n1"),
                head: head.to_owned(),
                ana: Some(ana),
                uuid: (uuid > 0).then(|| Uuid::from_u128(uuid)),
                io_timeout: None,
            }],
        }
    }

    fn old() -> Controller {
        controller(1, ControllerState::Connecting, "nvme0n1", 7, AnaState::Optimized)
    }

    fn with(new: Controller) -> Result<(), NotYet> {
        judge(&[old(), new], NQN, at(2))
    }

    #[test]
    fn f4_the_new_path_takes_over_when_it_is_live_and_accessible_and_of_the_same_device() {
        for ana in [AnaState::Optimized, AnaState::NonOptimized] {
            assert_eq!(with(controller(2, ControllerState::Live, "nvme0n1", 7, ana)), Ok(()));
        }
    }

    #[test]
    fn f4_a_path_that_does_not_serve_yet_does_not_take_over() {
        for ana in [AnaState::Inaccessible, AnaState::Change, AnaState::PersistentLoss] {
            let new = controller(2, ControllerState::Live, "nvme0n1", 7, ana);
            assert_eq!(with(new), Err(NotYet::Inaccessible));
        }
        for state in [ControllerState::New, ControllerState::Connecting, ControllerState::Deleting] {
            let new = controller(2, state, "nvme0n1", 7, AnaState::Optimized);
            assert_eq!(with(new), Err(NotYet::State(state)));
        }
        assert_eq!(judge(&[old()], NQN, at(2)), Err(NotYet::Absent));
        let mut new = controller(2, ControllerState::Live, "nvme0n1", 7, AnaState::Optimized);
        new.paths.clear();
        assert_eq!(with(new), Err(NotYet::NoNamespace));
    }

    /// After the kernel gave a path up, the same NQN comes back as another device; the application has the old open.
    #[test]
    fn f4_a_path_of_another_device_does_not_take_over() {
        let new = |head, uuid| controller(2, ControllerState::Live, head, uuid, AnaState::Optimized);
        assert_eq!(with(new("nvme0n2", 7)), Err(NotYet::OtherDevice), "another head");
        assert_eq!(with(new("nvme0n1", 8)), Err(NotYet::OtherDevice), "another UUID");
        assert_eq!(with(new("nvme0n1", 0)), Err(NotYet::OtherDevice), "no UUID to tell by");
    }

    /// What other volumes do is of no interest.
    #[test]
    fn f4_only_controllers_of_the_subsystem_count() {
        let mut other = controller(2, ControllerState::Live, "nvme0n1", 7, AnaState::Optimized);
        other.nqn = "nqn.other".to_owned();
        assert_eq!(with(other), Err(NotYet::Absent));
    }

    /// A target that came back where it was: there is no other path, and the old one carries the I/O again.
    #[test]
    fn f4_the_only_path_takes_over_from_itself() {
        let mut only = old();
        assert!(judge(&[only.clone()], NQN, at(1)).is_err());
        only.state = ControllerState::Live;
        assert_eq!(judge(&[only], NQN, at(1)), Ok(()));
    }
}
