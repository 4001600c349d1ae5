//! What every host of ours does: the double passes the same checks as the real one.

use std::net::SocketAddr;
use std::time::Duration;

use ::nvme::ana::AnaState;
use uuid::Uuid;

use super::kernel::{DEFAULT_IO_TIMEOUT, Kernel, Served};
use super::memory::MemoryNvme;
use super::tree::Tree;
use super::{
    ConnectOptions, Controller, ControllerId, ControllerState, HostError, HostIdentity, Nvme, Target,
};

/// A host whose kernel a test can move.
pub trait Subject {
    /// What is tested.
    fn host(&self) -> &dyn Nvme;
    /// Something happens to its kernel.
    fn change(&self, change: &mut dyn FnMut(&Kernel));
}

impl Subject for MemoryNvme {
    fn host(&self) -> &dyn Nvme {
        self
    }

    fn change(&self, change: &mut dyn FnMut(&Kernel)) {
        change(self.kernel());
    }
}

/// The real host on a tree.
pub struct OnTree {
    tree: Tree,
    host: super::SysfsNvme,
}

impl OnTree {
    /// On a fresh machine.
    pub fn new(tree: Tree) -> Self {
        Self { host: tree.host(), tree }
    }
}

impl Subject for OnTree {
    fn host(&self) -> &dyn Nvme {
        &self.host
    }

    fn change(&self, change: &mut dyn FnMut(&Kernel)) {
        self.tree.change(|kernel| change(kernel));
    }
}

const NQN: &str = "nqn.2019-05.io.openebs:0f1c3a52-9a9e-4b0c-8a37-6c2b8f0f6b11";
const VOLUME: Uuid = Uuid::from_u128(0x0f1c_3a52_9a9e_4b0c_8a37_6c2b_8f0f_6b11);
const FIRST: &str = "127.0.0.1:8420";
const SECOND: &str = "127.0.0.2:8420";

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address of this suite")
}

fn target(address: &str) -> Target {
    Target { nqn: NQN.to_owned(), address: at(address) }
}

fn options() -> ConnectOptions {
    ConnectOptions {
        host: HostIdentity::of_node("node-1").expect("a name"),
        io_queues: 2,
        reconnect_delay: Duration::from_secs(1),
        controller_loss: None,
        keep_alive: Duration::from_secs(2),
    }
}

fn serve(subject: &dyn Subject, address: &str, ana: AnaState, cntlid: u16) {
    subject.change(&mut |kernel| kernel.serve(at(address), NQN, Served { uuid: VOLUME, ana, cntlid }));
}

fn shown(subject: &dyn Subject, id: &ControllerId) -> Controller {
    let all = subject.host().controllers().expect("controllers can be listed");
    all.into_iter().find(|it| it.id == *id).expect("the controller is listed")
}

/// Two targets of one subsystem are two paths of one device.
pub fn a_second_path_joins_the_head_of_the_first(subject: &dyn Subject) {
    serve(subject, FIRST, AnaState::Optimized, 1);
    serve(subject, SECOND, AnaState::Inaccessible, 1000);
    subject.host().preflight().expect("a fit machine");
    let first = subject.host().connect(&target(FIRST), &options()).expect("the first path");
    let second = subject.host().connect(&target(SECOND), &options()).expect("the second path");
    let (first, second) = (shown(subject, &first), shown(subject, &second));
    assert_eq!((first.state, first.cntlid, second.cntlid), (ControllerState::Live, 1, 1000));
    assert_eq!((first.nqn.as_str(), first.address), (NQN, Some(at(FIRST))));
    assert_eq!(first.host_nqn.as_deref(), Some("nqn.2019-05.io.openebs:node-name:node-1"));
    let (one, other) = (&first.paths[0], &second.paths[0]);
    assert_eq!((one.head.as_str(), one.uuid), ("nvme0n1", Some(VOLUME)));
    assert_eq!((other.head.as_str(), other.uuid), ("nvme0n1", Some(VOLUME)));
    assert_ne!(one.name, other.name);
    assert!(first.is_usable() && !second.is_usable(), "{second:?}");
    serve(subject, SECOND, AnaState::NonOptimized, 1000);
    assert!(shown(subject, &second.id).is_usable());
}

/// The short ways to a controller show what the listing of all shows, also after its name was given to another's.
pub fn a_controller_is_found_among_others_as_it_is_in_the_list_of_all(subject: &dyn Subject) {
    serve(subject, FIRST, AnaState::Optimized, 1);
    serve(subject, SECOND, AnaState::NonOptimized, 1000);
    let other = Target { nqn: format!("{NQN}-other"), address: at(FIRST) };
    let served = Served { uuid: Uuid::from_u128(1), ana: AnaState::Optimized, cntlid: 1 };
    subject.change(&mut |kernel| kernel.serve(at(FIRST), &other.nqn, served));
    let host = subject.host();
    let old = host.connect(&other, &options()).expect("connects");
    assert_eq!(host.controllers_of(&other.nqn).expect("lists"), [shown(subject, &old)]);
    host.delete(&old).expect("deletes");
    let new = host.connect(&target(FIRST), &options()).expect("connects");
    let second = host.connect(&target(SECOND), &options()).expect("connects");
    assert_eq!(old.name, new.name, "the kernel uses names again");
    assert_eq!(host.controller(&old).expect("looks"), None);
    assert_eq!(host.controllers_of(&other.nqn).expect("lists"), []);
    for id in [&new, &second] {
        assert_eq!(host.controller(id).expect("looks").as_ref(), Some(&shown(subject, id)));
    }
    assert_eq!(host.controllers_of(NQN).expect("lists"), host.controllers().expect("lists"));
}

/// Somebody looks while a controller is being made, when the kernel does not know yet whose it is.
pub fn a_controller_that_was_seen_being_made_is_found_later(subject: &dyn Subject) {
    serve(subject, FIRST, AnaState::Optimized, 1);
    subject.change(&mut |kernel| {
        kernel.connect(NQN, at(FIRST), "nqn.2019-05.io.openebs:node-name:node-1").expect("connects");
        kernel.set_state(at(FIRST), ControllerState::New);
    });
    let host = subject.host();
    assert_eq!(host.states().expect("looks").len(), 1);
    assert_eq!(host.controllers().expect("lists").len(), 1);
    host.controllers_of(NQN).expect("lists");
    subject.change(&mut |kernel| kernel.set_state(at(FIRST), ControllerState::Live));
    let found = host.controllers_of(NQN).expect("lists");
    assert_eq!(found.iter().map(|it| it.nqn.as_str()).collect::<Vec<_>>(), [NQN]);
    assert_eq!(host.controllers().expect("lists"), found);
}

/// The kernel refuses a second controller to the same address; that it is there is what the caller wanted.
pub fn a_connect_to_the_same_address_says_that_it_is_connected(subject: &dyn Subject) {
    serve(subject, FIRST, AnaState::Optimized, 1);
    subject.host().connect(&target(FIRST), &options()).expect("connects");
    let again = subject.host().connect(&target(FIRST), &options());
    assert!(matches!(again, Err(HostError::Connected { .. })), "{again:?}");
    assert_eq!(subject.host().controllers().expect("lists").len(), 1);
}

/// Nobody there, or nobody who serves it.
pub fn a_refused_connect_leaves_nothing(subject: &dyn Subject) {
    let refused = subject.host().connect(&target(FIRST), &options());
    assert!(matches!(refused, Err(HostError::Connect { .. })), "{refused:?}");
    assert_eq!(subject.host().controllers().expect("lists"), []);
    assert_eq!(subject.host().states().expect("lists"), []);
}

/// What the watcher reads is what the listing says, through all states.
pub fn states_follow_the_kernel(subject: &dyn Subject) {
    serve(subject, FIRST, AnaState::Optimized, 1);
    let id = subject.host().connect(&target(FIRST), &options()).expect("connects");
    for state in [
        ControllerState::Resetting,
        ControllerState::Connecting,
        ControllerState::Live,
        ControllerState::Deleting,
    ] {
        subject.change(&mut |kernel| kernel.set_state(at(FIRST), state));
        let states = subject.host().states().expect("lists");
        assert_eq!(states.len(), 1);
        assert_eq!((&states[0].id, states[0].state), (&id, state));
        assert_eq!(shown(subject, &id).state, state);
    }
}

/// The time-out is each path's, and a new controller has the kernel's again.
pub fn an_io_timeout_is_gone_with_its_controller(subject: &dyn Subject) {
    serve(subject, FIRST, AnaState::Optimized, 1);
    let id = subject.host().connect(&target(FIRST), &options()).expect("connects");
    assert_eq!(shown(subject, &id).paths[0].io_timeout, Some(DEFAULT_IO_TIMEOUT));
    let wanted = Duration::from_secs(2);
    assert_eq!(subject.host().set_io_timeout(&id, wanted).expect("sets"), 1);
    assert_eq!(shown(subject, &id).paths[0].io_timeout, Some(wanted));
    subject.host().delete(&id).expect("deletes");
    assert_eq!(subject.host().set_io_timeout(&id, wanted).expect("nothing to set"), 0);
    let next = subject.host().connect(&target(FIRST), &options()).expect("connects");
    assert_eq!(shown(subject, &next).paths[0].io_timeout, Some(DEFAULT_IO_TIMEOUT));
}

/// Names come back. What was meant for a controller that is gone must not hit the one that has its name now.
pub fn a_deleted_controller_is_not_confused_with_the_next_of_its_name(subject: &dyn Subject) {
    serve(subject, FIRST, AnaState::Optimized, 1);
    let old = subject.host().connect(&target(FIRST), &options()).expect("connects");
    subject.host().delete(&old).expect("deletes");
    subject.host().delete(&old).expect("a second time is no error");
    let new = subject.host().connect(&target(FIRST), &options()).expect("connects");
    assert_eq!(old.name, new.name, "the kernel uses names again");
    assert_ne!(old, new);
    subject.host().delete(&old).expect("nothing to delete");
    subject.host().reset(&old).expect("nothing to reset");
    assert_eq!(shown(subject, &new).state, ControllerState::Live);
    assert_eq!(subject.host().states().expect("lists").len(), 1);
}

/// A reset breaks the connection; without a target the kernel goes on trying.
pub fn a_reset_controller_tries_to_connect_anew(subject: &dyn Subject) {
    serve(subject, FIRST, AnaState::Optimized, 1);
    let id = subject.host().connect(&target(FIRST), &options()).expect("connects");
    subject.change(&mut |kernel| kernel.withdraw(at(FIRST)));
    subject.host().reset(&id).expect("resets");
    assert_eq!(shown(subject, &id).state, ControllerState::Connecting);
    subject.host().reset(&id).expect("a second time is no error");
}

/// Namespaces come after the connect, or never.
pub fn a_controller_is_there_before_its_namespaces(subject: &dyn Subject) {
    serve(subject, FIRST, AnaState::Optimized, 1);
    subject.change(&mut |kernel| kernel.hold_scan(at(FIRST), true));
    let id = subject.host().connect(&target(FIRST), &options()).expect("connects");
    let controller = shown(subject, &id);
    assert!(controller.paths.is_empty() && !controller.is_usable());
    assert_eq!(subject.host().set_io_timeout(&id, Duration::from_secs(2)).expect("nothing to set"), 0);
    subject.change(&mut |kernel| kernel.hold_scan(at(FIRST), false));
    assert!(shown(subject, &id).is_usable());
}
