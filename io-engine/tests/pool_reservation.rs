//! Reservations of replicas in a pool: kept over every crash, obeyed by everybody, drained before anybody hears of them.

#[path = "pool/support.rs"]
mod support;

use std::time::Duration;

use io_engine::block::fault::{Effect, Fault, FaultOp, FaultyDevice};
use io_engine::block::memory::Survival;
use io_engine::block::{
    BaseDevice, BlockDevice, BlockError, ErrorKind, Lba, LbaRange, MemoryDevice, WriteOptions,
};
use io_engine::member::{Epoch, Member, ReservationReport, ReservationType, Reserve};
use io_engine::pool::Pool;
use io_engine::replica::Replica;
use io_engine::reservation::Reservable;
use runtime::{IoBuf, IoBytes};
use support::*;
use uuid::Uuid;

const A: [u8; 16] = [0xA; 16];
const B: [u8; 16] = [0xB; 16];
const KIND: ReservationType = ReservationType::ExclusiveAccess;

async fn write(replica: &Replica) -> Result<(), BlockError> {
    replica.write(Lba(0), IoBytes::from_slice(&[7; PAGE]), WriteOptions::default()).await
}

async fn report(replica: &Replica) -> ReservationReport {
    replica.reservation().await.expect("it is open")
}

fn conflicts<T>(done: Result<T, BlockError>) -> bool {
    done.is_err_and(|error| error.kind() == ErrorKind::ReservationConflict)
}

#[test]
fn f1_a_cut_anywhere_leaves_the_old_reservation_or_the_new() {
    run(1, async {
        let disk = MemoryDevice::of_len(9 * MIB, 512);
        let pool = create(&disk).await;
        let replica = add(&pool, 1, MIB, true).await;
        write(&replica).await.expect("nothing is reserved");
        disk.record();
        let (old, new) = (replica.opened_by(A).await, replica.of_host(B));
        // What had been answered after so many events.
        let mut states = vec![(0, report(&old).await)];
        for step in 0..7 {
            match step {
                0 => old.register(1).await,
                1 => old.acquire(KIND, 1).await,
                2 => new.register(2).await,
                3 => new.preempt(KIND, 2, 1).await,
                4 => pool.checkpoint().await.map_err(Into::into),
                5 => new.release(KIND, 2).await,
                _ => new.unregister().await,
            }
            .expect("it is allowed");
            states.push((disk.events(), report(&old).await));
        }
        for events in 0..=disk.events() {
            let answered = states.iter().rposition(|(at, _)| *at <= events).expect("the first is at none");
            let random = (0..6).map(|seed| Survival::Random(seed * 7919 + events as u64));
            let fixed = [Survival::Nothing, Survival::Everything, Survival::OnlyLast, Survival::AllButFirst];
            for survival in fixed.into_iter().chain(random) {
                let image = disk.image_at(events, survival);
                let pool = import(&image, rebooted()).await.expect("it is imported");
                let found = report(&get(&pool, 1)).await;
                let mut allowed = states[answered..].iter().take(2).map(|(_, state)| state);
                // Before anything persists there is nothing to find but the default.
                assert!(allowed.any(|state| *state == found), "after {events} events: {found:?}");
            }
        }
    });
}

#[test]
fn f1_who_is_fenced_can_change_nothing_after_a_restart_either() {
    run(1, async {
        let disk = MemoryDevice::of_len(9 * MIB, 512);
        let pool = create(&disk).await;
        let holder = add(&pool, 1, MIB, true).await.of_host(A);
        holder.register(1).await.expect("room");
        holder.acquire(KIND, 1).await.expect("free");
        drop((holder, pool));
        let pool = import(&disk, restarted()).await.expect("it is imported");
        let replica = get(&pool, 1);
        let blocks = LbaRange::new(Lba(0), io_engine::block::Blocks(8)).expect("a range");
        for other in [replica.clone(), replica.of_host(B), replica.opened_by(A).await] {
            assert!(conflicts(write(&other).await));
            assert!(conflicts(other.read(Lba(0), IoBuf::zeroed(PAGE)).await));
            assert!(conflicts(other.write_zeroes(blocks, WriteOptions::default()).await));
            assert!(conflicts(other.unmap(blocks).await));
            assert!(conflicts(other.flush().await));
            assert!(conflicts(other.join(Uuid::from_u128(1), Epoch::default(), true).await));
            assert!(conflicts(other.close_regions(&[0]).await));
            assert!(conflicts(other.allocated(0..MIB, 1).await));
            assert!(conflicts(other.note_absent(Uuid::from_u128(9), Epoch::default(), &[], false).await));
            assert!(conflicts(other.forget_absent(Uuid::from_u128(9)).await));
            assert!(conflicts(other.confirm().await));
            other.report().await.expect("everybody may ask");
            other.absent().await.expect("everybody may ask");
            assert_eq!(report(&other).await.registrants.len(), 1);
        }
        write(&replica.of_host(A)).await.expect("it holds it");
        // Whoever opens it again goes on under the key that is registered.
        let again = replica.opened_by(A).await;
        again.acquire(KIND, 1).await.expect("it holds it");
        write(&again).await.expect("it holds it");
    });
}

/// A pool whose disk can be made to stand still.
async fn still() -> (FaultyDevice<MemoryDevice>, Pool) {
    let disk = FaultyDevice::new(MemoryDevice::of_len(9 * MIB, 512));
    let pool = Pool::create(BaseDevice::Faulty(disk.clone()), spec(), host()).await.expect("a clean disk");
    (disk, pool)
}

#[test]
fn d7_a_preempt_waits_for_a_write_of_the_preempted_that_the_disk_holds() {
    for is_local in [true, false] {
        run(1, async {
            let (disk, pool) = still().await;
            let replica = add(&pool, 1, MIB, true).await;
            write(&replica).await.expect("nothing is reserved");
            let old = if is_local { replica.opened_by(A).await } else { replica.of_host(A) };
            let new = replica.of_host(B);
            old.register(1).await.expect("room");
            old.acquire(KIND, 1).await.expect("free");
            new.register(2).await.expect("room");
            write(&old).await.expect("it holds it");
            let data =
                LbaRange::new(Lba(MIB / 512), io_engine::block::Blocks(16 * MIB / 512 / 2)).expect("a range");
            let held = disk.faults().add(Fault::new(FaultOp::Write, Effect::Hold).within(data).times(1));
            let stuck = {
                let old = old.clone();
                runtime::spawn(async move { write(&old).await })
            };
            while disk.faults().held() == 0 {
                runtime::sleep(Duration::from_millis(1)).await;
            }
            let preempting = {
                let new = new.clone();
                runtime::spawn(async move { new.preempt(KIND, 2, 1).await })
            };
            runtime::sleep(Duration::from_secs(1)).await;
            assert!(!preempting.is_finished(), "the write may still land");
            assert!(conflicts(write(&old).await), "what comes after is refused");
            disk.faults().remove(held);
            preempting.await.expect("not aborted").expect("the holder's key");
            stuck.await.expect("not aborted").expect("it had begun before");
        });
    }
}

/// A nexus that is made again in place has its predecessor's key, and the predecessor may have left a write behind.
#[test]
fn d7_a_replica_is_opened_when_what_its_older_openers_began_is_over() {
    run(1, async {
        let (disk, pool) = still().await;
        let replica = add(&pool, 1, MIB, true).await;
        write(&replica).await.expect("nothing is reserved");
        let old = replica.opened_by(A).await;
        old.register(1).await.expect("room");
        old.acquire(KIND, 1).await.expect("free");
        let data =
            LbaRange::new(Lba(MIB / 512), io_engine::block::Blocks(16 * MIB / 512 / 2)).expect("a range");
        let held = disk.faults().add(Fault::new(FaultOp::Write, Effect::Hold).within(data).times(1));
        let stuck = {
            let old = old.clone();
            runtime::spawn(async move { write(&old).await })
        };
        while disk.faults().held() == 0 {
            runtime::sleep(Duration::from_millis(1)).await;
        }
        old.leave();
        let refused = write(&old).await.expect_err("it has let go of it");
        assert_eq!(refused.kind(), ErrorKind::PathLost);
        let opening = {
            let replica = replica.clone();
            runtime::spawn(async move { replica.opened_by(A).await })
        };
        runtime::sleep(Duration::from_secs(1)).await;
        assert!(!opening.is_finished(), "the write may still land");
        disk.faults().remove(held);
        let new = opening.await.expect("not aborted");
        assert!(stuck.is_finished(), "it ended first");
        new.register(1).await.expect("the same key");
        new.acquire(KIND, 1).await.expect("it holds it");
        write(&new).await.expect("it holds it");
        assert_eq!(write(&old).await.expect_err("it stays away").kind(), ErrorKind::PathLost);
    });
}
