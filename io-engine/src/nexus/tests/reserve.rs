//! The replicas of these tests obey reservations as real ones do.

use runtime::IoBuf;

use super::world::{HOST, HostId, TestParts, World, run};
use crate::block::{BlockDevice, ErrorKind, Lba};
use crate::member::{ReservationType, Reserve};
use crate::nexus::child::Parts;

const OTHER: HostId = [2; 16];

#[test]
fn f1_a_replica_lets_only_the_holder_in() {
    run(async || {
        let world = World::new(2);
        for replica in &world.replicas {
            let parts = |host| TestParts { world: std::rc::Rc::clone(&world), host };
            let old = parts(HOST).open(&replica.uri()).await.expect("it listens");
            let new = parts(OTHER).open(&replica.uri()).await.expect("it listens");
            old.register(1).await.expect("room");
            old.acquire(ReservationType::ExclusiveAccess, 1).await.expect("free");
            new.register(2).await.expect("room");
            let refused = new.confirm().await.expect_err("another holds it");
            assert_eq!(refused.kind(), ErrorKind::ReservationConflict);
            new.preempt(ReservationType::ExclusiveAccess, 2, 1).await.expect("the holder's key");
            new.confirm().await.expect("it holds it");
            let refused = old.read(Lba(0), IoBuf::zeroed(4096)).await.expect_err("it is preempted");
            assert_eq!(refused.kind(), ErrorKind::ReservationConflict);
            replica.restart_engine();
            let holders: Vec<_> = replica.reservations().registrants;
            assert_eq!(holders.len(), 1, "{holders:?}");
            assert!(holders[0].host == OTHER && holders[0].is_holder);
        }
    });
}
