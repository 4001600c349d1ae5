//! What the ambient functions of this crate are carried out by: a ring of the kernel's, or a simulated world.

use std::rc::Rc;

use crate::clock::Instant;
use crate::executor::NodeIndex;
use crate::sim::World;

pub(crate) mod op;
pub(crate) mod ring;
pub(crate) mod uring;

use uring::Uring;

/// The driver of a context; dispatched statically.
pub(crate) enum Driver {
    Uring(Rc<Uring>),
    Sim(Rc<World>),
}

impl Driver {
    pub(crate) fn now(&self) -> Instant {
        match self {
            Self::Uring(_) => Instant::of_kernel(),
            Self::Sim(world) => world.now(),
        }
    }

    pub(crate) fn random(&self, bytes: &mut [u8]) {
        match self {
            Self::Uring(_) => fill_from_kernel(bytes),
            Self::Sim(world) => world.random(bytes),
        }
    }

    pub(crate) fn boot_id(&self, node: NodeIndex) -> [u8; 16] {
        match self {
            Self::Uring(uring) => uring.boot_id(),
            Self::Sim(world) => world.boot_id(node),
        }
    }
}

fn fill_from_kernel(bytes: &mut [u8]) {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[done..], rustix::rand::GetRandomFlags::empty()) {
            Ok(filled) => done += filled,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("the kernel gives no random numbers: {error}"),
        }
    }
}
