//! A remote device against our own target: requests, membership calls, and everything that can befall the path.

use std::net::SocketAddr;
use std::time::Duration;

use nvme::ana::AnaState;
use nvme::pdu::Digests;
use runtime::sim::{NodeId, Sim};
use runtime::{IoBuf, IoBytes};
use uuid::Uuid;

use super::{InitiatorOptions, LostReason, NvmfUri, ReconnectPolicy, RemoteDevice, RemoteState};
use crate::block::fault::{Effect, Fault, FaultOp};
use crate::block::{
    BaseDevice, BlockDevice, Blocks, ErrorKind, Lba, LbaRange, MemoryDevice, WriteOptions, suite,
};
use crate::member::{Absence, Epoch, Member, Missed, Registrant, ReservationType, Reserve};
use crate::reservation::Reservable;
use crate::reservation::fence::calls;
use crate::target::testing::{
    FakeReplica, VOLUME, everywhere, nqn, only, simulated, subsystem, target, until,
};
use crate::target::{Plain, Subsystem, Target, TargetOptions};

fn uri(address: SocketAddr) -> NvmfUri {
    let host = nqn("node-name:n1");
    NvmfUri { address, subsystem: nqn("r"), host_id: super::host_id(&host), host }
}

async fn connect(address: SocketAddr) -> RemoteDevice {
    RemoteDevice::connect(uri(address), InitiatorOptions::default()).await.expect("the target serves it")
}

fn block(byte: u8) -> IoBytes {
    IoBytes::from_slice(&[byte; 512])
}

async fn write(device: &RemoteDevice, lba: u64, byte: u8) -> Result<(), ErrorKind> {
    let written = device.write(Lba(lba), block(byte), WriteOptions::default()).await;
    written.map_err(|error| error.kind())
}

#[test]
fn a_remote_device_keeps_the_contract_of_a_device() {
    for digests in [Digests::default(), Digests { header: true, data: true }] {
        everywhere(async |address| {
            let target = target(address).await;
            target.add(subsystem("r", &FakeReplica::new())).expect("new");
            let options = InitiatorOptions { digests, ..InitiatorOptions::default() };
            let device = RemoteDevice::connect(uri(target.address()), options).await.expect("served");
            suite::check(&device).await;
        });
    }
}

/// As a host that waits at a target which stands by.
#[test]
fn a_path_that_is_inaccessible_is_connected_and_carries_commands_once_it_is_optimized() {
    everywhere(async |address| {
        let target = target(address).await;
        let standby = Subsystem { ana_state: AnaState::Inaccessible, ..subsystem("r", &FakeReplica::new()) };
        target.add(standby).expect("new");
        let device = connect(target.address()).await;
        assert_eq!(write(&device, 0, 1).await, Err(ErrorKind::PathLost));
        target.set_ana_state(&nqn("r"), AnaState::Optimized).expect("served");
        assert_eq!(write(&device, 0, 1).await, Ok(()));
        assert_eq!(device.state(), RemoteState::Live, "over the same connection");
    });
}

/// More than one command's data, at both sides of the limit.
#[test]
fn long_requests_are_split_and_put_together_again() {
    everywhere(async |address| {
        let target = target(address).await;
        target.add(subsystem("r", &FakeReplica::new())).expect("new");
        let device = connect(target.address()).await;
        for len in [1 << 20, (1 << 20) + 512, 3 << 20] {
            let bytes: Vec<u8> = (0..len).map(|at| u8::try_from(at % 253).expect("small")).collect();
            let data = IoBytes::from_slice(&bytes);
            device.write(Lba(16), data, WriteOptions { fua: true }).await.expect("written");
            let read = device.read(Lba(16), IoBuf::zeroed(len)).await.expect("read");
            assert!(*read == *bytes, "{len} bytes");
        }
    });
}

#[test]
fn membership_calls_reach_the_replica_and_its_answers_come_back() {
    everywhere(async |address| {
        let target = target(address).await;
        let replica = FakeReplica::new();
        // More than one answer holds, with gaps.
        replica.report.borrow_mut().open_regions = (0..20_000).map(|index| index * 3).collect();
        replica.report.borrow_mut().lost_power = true;
        replica.runs.replace((0..5000).map(|index| (index * 8192, 4096)).collect());
        target.add(subsystem("r", &replica)).expect("new");
        let device = connect(target.address()).await;

        assert_eq!(device.report().await.expect("answered"), *replica.report.borrow());
        let epoch = Epoch { counter: 7, raised_by: Uuid::from_u128(42) };
        device.join(VOLUME, epoch, true).await.expect("joined");
        let known = device.report().await.expect("answered");
        assert_eq!((known.volume, known.epoch, known.lost_power), (VOLUME, epoch, false));
        let stale = Epoch { counter: 6, ..epoch };
        let refused = device.join(VOLUME, stale, false).await.expect_err("a later epoch is known");
        assert_eq!(refused.kind(), ErrorKind::ReservationConflict);
        let closed: Vec<u64> = (0..19_999).map(|index| index * 3).collect();
        device.close_regions(&closed).await.expect("closed");
        assert_eq!(device.report().await.expect("answered").open_regions, [19_999 * 3]);
        device.close_regions(&[]).await.expect("nothing to close");

        let (runs, complete_to) = device.allocated(0..1 << 30, 100).await.expect("answered");
        assert_eq!((runs.len(), runs[1], complete_to), (100, (8192, 4096), 819_200));
        let mut from = 0;
        let mut all = Vec::new();
        while from < 5000 * 8192 {
            let (runs, complete_to) =
                device.allocated(from..5000 * 8192, usize::MAX).await.expect("answered");
            all.extend(runs);
            from = complete_to;
        }
        assert_eq!(all, *replica.runs.borrow());
    });
}

#[test]
fn notes_of_absent_members_reach_the_replica_and_come_back() {
    everywhere(async |address| {
        let target = target(address).await;
        let replica = FakeReplica::new();
        replica.report.borrow_mut().open_regions = vec![1];
        target.add(subsystem("r", &replica)).expect("new");
        let device = connect(target.address()).await;

        let (member, other) = (Uuid::from_u128(0xB), Uuid::from_u128(0xC));
        let left_at = Epoch { counter: 7, raised_by: Uuid::from_u128(42) };
        assert_eq!(device.absent().await.expect("answered"), []);
        assert_eq!(device.missed(member, 0, 9).await.expect("answered"), None);
        // More than one command holds, and more than one answer.
        let regions: Vec<u64> = (1..20_000).map(|index| index * 3).collect();
        device.note_absent(member, left_at, &regions, false).await.expect("noted");
        device.note_absent(other, left_at, &[5], true).await.expect("begun");
        assert_eq!(device.absent().await.expect("answered"), [Absence { member, left_at }]);
        device.note_absent(other, left_at, &[], false).await.expect("noted");
        let missed = device.missed(other, 2, 9).await.expect("answered").expect("noted");
        assert_eq!(missed, Missed { left_at, regions: vec![5], has_more: false });
        let (mut all, mut from) = (Vec::<u64>::new(), 0);
        loop {
            let part = device.missed(member, from, usize::MAX).await.expect("answered").expect("noted");
            assert_eq!(part.left_at, left_at);
            all.extend(&part.regions);
            match part.regions.last() {
                Some(last) if part.has_more => from = last + 1,
                _ => break,
            }
        }
        let expected: Vec<u64> = std::iter::once(1).chain(regions).collect();
        assert!(all == expected, "{} of {} regions", all.len(), expected.len());
        device.forget_absent(member).await.expect("forgotten");
        assert_eq!(device.absent().await.expect("answered"), [Absence { member: other, left_at }]);
    });
}

/// What is rebuilt whole, and says so.
#[test]
fn a_target_without_membership_is_used_and_answers_unsupported() {
    everywhere(async |address| {
        let target: Target<Plain<BaseDevice>> =
            Target::bind(address, TargetOptions::default()).await.expect("the port is free");
        let plain = subsystem("r", &FakeReplica::new());
        let memory = BaseDevice::Memory(MemoryDevice::of_len(1 << 20, 4096));
        target
            .add(Subsystem {
                export: Plain(memory),
                nqn: plain.nqn,
                uuid: plain.uuid,
                allowed_hosts: plain.allowed_hosts,
                cntlids: plain.cntlids,
                ana_state: plain.ana_state,
                is_thin: false,
                older_commands: plain.older_commands,
                retry_delays: plain.retry_delays,
            })
            .expect("new");
        let device = connect(target.address()).await;
        suite::check(&device).await;
        for answer in [
            device.report().await.map(drop),
            device.absent().await.map(drop),
            device.note_absent(VOLUME, Epoch::default(), &[], false).await,
            device.join(VOLUME, Epoch::default(), false).await,
            device.close_regions(&[1]).await,
            device.allocated(0..4096, 10).await.map(drop),
        ] {
            assert_eq!(answer.expect_err("no replica").kind(), ErrorKind::Unsupported);
        }
        let range = LbaRange::new(Lba(0), Blocks(8)).expect("fits");
        device.unmap(range).await.expect("the connection is as good as before");
    });
}

#[test]
fn errors_of_the_replica_keep_their_kind() {
    everywhere(async |address| {
        let target = target(address).await;
        let replica = FakeReplica::new();
        target.add(subsystem("r", &replica)).expect("new");
        let device = connect(target.address()).await;
        for kind in [ErrorKind::Media, ErrorKind::CapacityExceeded, ErrorKind::ReservationConflict] {
            replica.faults().add(Fault::new(FaultOp::Write, Effect::Fail(kind)).times(1));
            assert_eq!(write(&device, 0, 1).await, Err(kind));
        }
        assert_eq!(device.state(), RemoteState::Live);
    });
}

/// A bounded queue: what does not fit waits, and is not lost.
#[test]
fn requests_beyond_the_queue_depth_wait_their_turn() {
    everywhere(async |address| {
        let target = target(address).await;
        let replica = FakeReplica::new();
        target.add(subsystem("r", &replica)).expect("new");
        let options = InitiatorOptions { queue_depth: 4, ..InitiatorOptions::default() };
        let device = RemoteDevice::connect(uri(target.address()), options).await.expect("served");
        let held = replica.faults().add(Fault::new(FaultOp::Write, Effect::Hold));
        let writes: Vec<_> = (0..20_u8)
            .map(|index| {
                let device = device.clone();
                runtime::spawn(async move { write(&device, u64::from(index), index).await })
            })
            .collect();
        until("the queue is full", || replica.faults().held() == 4).await;
        runtime::sleep(Duration::from_millis(20)).await;
        assert_eq!(replica.faults().held(), 4);
        replica.faults().remove(held);
        for write in writes {
            assert_eq!(write.await.expect("not aborted"), Ok(()));
        }
    });
}

#[test]
fn a_request_that_is_not_answered_times_out_and_takes_the_path_with_it() {
    simulated(async |address| {
        let target = target(address).await;
        let replica = FakeReplica::new();
        target.add(subsystem("r", &replica)).expect("new");
        let device = connect(target.address()).await;
        replica.faults().add(Fault::new(FaultOp::Write, Effect::Hold));
        let begun = runtime::now();
        let second = {
            let device = device.clone();
            runtime::spawn(async move {
                runtime::sleep(Duration::from_secs(1)).await;
                write(&device, 8, 2).await
            })
        };
        assert_eq!(write(&device, 0, 1).await, Err(ErrorKind::TimedOut));
        let took = runtime::now().duration_since(begun);
        let limit = InitiatorOptions::default().io_timeout;
        assert!(took >= limit && took < limit + Duration::from_millis(100));
        assert_eq!(second.await.expect("not aborted"), Err(ErrorKind::PathLost));
        replica.faults().clear();
        assert_eq!(write(&device, 0, 1).await, Ok(()), "the path comes back when the replica does");
    });
}

/// SAFETY D3, D8: whether a write was executed when its connection broke nobody knows here; the nexus decides.
#[test]
fn d3_a_write_of_unknown_outcome_fails_and_is_not_sent_again() {
    everywhere(async |address| {
        let target = target(address).await;
        let replica = FakeReplica::new();
        target.add(subsystem("r", &replica)).expect("new");
        let device = connect(target.address()).await;
        let held = replica.faults().add(Fault::new(FaultOp::Write, Effect::Hold));
        let lost = {
            let device = device.clone();
            runtime::spawn(async move { write(&device, 0, 1).await })
        };
        until("the write is begun", || replica.faults().held() == 1).await;
        let writes_before = replica.faults().requests();
        // Taking the host off the list and putting it back breaks the connection.
        target.set_allowed_hosts(&nqn("r"), only(&[])).expect("served");
        target.set_allowed_hosts(&nqn("r"), crate::target::AllowedHosts::Any).expect("served");
        assert_eq!(lost.await.expect("not aborted"), Err(ErrorKind::PathLost));
        let waiting = {
            let device = device.clone();
            runtime::spawn(async move { device.read(Lba(8), IoBuf::zeroed(512)).await.map(drop) })
        };
        runtime::sleep(Duration::from_millis(30)).await;
        assert!(!waiting.is_finished(), "a new request waits for the path");
        replica.faults().remove(held);
        waiting.await.expect("not aborted").expect("read when the path is back");
        assert_eq!(device.state(), RemoteState::Live);
        assert_eq!(replica.faults().requests(), writes_before + 1, "only the read came");
    });
}

/// Two machines: the target's and ours.
struct Lab {
    sim: Sim,
    theirs: NodeId,
    ours: NodeId,
}

const THERE: &str = "10.0.0.1:8420";

impl Lab {
    fn new(seed: u64) -> Self {
        let sim = Sim::new(seed);
        let theirs = sim.add_node("theirs", "10.0.0.1".parse().expect("an address"));
        let ours = sim.add_node("ours", "10.0.0.2".parse().expect("an address"));
        Self { sim, theirs, ours }
    }

    /// Starts an engine process that serves the replica.
    fn serve(&self) {
        self.sim.spawn(self.theirs, async {
            let target = target(THERE.parse().expect("an address")).await;
            let replica = FakeReplica::new();
            {
                let mut report = replica.report.borrow_mut();
                report.boot_id = Uuid::from_bytes(runtime::boot_id());
                report.engine_incarnation = Uuid::from_bytes(runtime::random_uuid_bytes());
            }
            target.add(subsystem("r", &replica)).expect("new");
            std::future::pending::<()>().await;
        });
    }

    fn connect(&self) -> RemoteDevice {
        self.sim.block_on(self.ours, async {
            let address = THERE.parse().expect("an address");
            loop {
                if let Ok(device) = RemoteDevice::connect(uri(address), InitiatorOptions::default()).await {
                    return device;
                }
            }
        })
    }

    fn settled(&self, device: &RemoteDevice) -> RemoteState {
        self.sim.block_on(self.ours, async {
            loop {
                match device.state() {
                    RemoteState::Lost(reason) => return RemoteState::Lost(reason),
                    state => device.state_changed_from(state).await,
                };
            }
        })
    }
}

/// A short silence is no loss: requests stand still and go on.
#[test]
fn a_short_partition_is_waited_out() {
    for seed in 0..6 {
        let lab = Lab::new(seed);
        lab.serve();
        let device = lab.connect();
        lab.sim.partition(lab.ours, lab.theirs);
        let writing = {
            let device = device.clone();
            lab.sim.spawn(lab.ours, async move { write(&device, 0, 1).await })
        };
        lab.sim.run_for(Duration::from_secs(3));
        assert!(!writing.is_finished());
        lab.sim.heal(lab.ours, lab.theirs);
        assert_eq!(lab.sim.block_on(lab.ours, writing).expect("not aborted"), Ok(()), "seed {seed}");
        assert_eq!(device.state(), RemoteState::Live);
    }
}

/// The path breaks for longer than a request waits, and the same engine answers again within the window.
#[test]
fn the_same_engine_is_taken_back_within_the_window() {
    for seed in 0..6 {
        let lab = Lab::new(seed);
        lab.serve();
        let device = lab.connect();
        lab.sim.partition(lab.ours, lab.theirs);
        let lost = {
            let device = device.clone();
            lab.sim.spawn(lab.ours, async move { write(&device, 0, 1).await })
        };
        let lost = lab.sim.block_on(lab.ours, lost).expect("not aborted");
        assert!(matches!(lost, Err(ErrorKind::TimedOut | ErrorKind::PathLost)), "seed {seed}: {lost:?}");
        lab.sim.run_for(Duration::from_secs(4));
        assert_eq!(device.state(), RemoteState::Reconnecting);
        lab.sim.heal(lab.ours, lab.theirs);
        assert_eq!(lab.sim.block_on(lab.ours, write(&device, 0, 2)), Ok(()), "seed {seed}");
    }
}

/// SAFETY D3: a machine that came back within seconds may have lost what was not flushed.
#[test]
fn d3_a_rebooted_machine_is_not_taken_back() {
    for seed in 0..6 {
        let lab = Lab::new(seed);
        lab.serve();
        let device = lab.connect();
        lab.sim.power_off(lab.theirs);
        lab.sim.run_for(Duration::from_secs(3));
        lab.serve();
        assert_eq!(lab.settled(&device), RemoteState::Lost(LostReason::Rebooted), "seed {seed}");
        assert_eq!(lab.sim.block_on(lab.ours, write(&device, 0, 2)), Err(ErrorKind::PathLost));
    }
}

/// W1 is under way on an old connection, the host gives up on it and sends W2 over a new one: whatever network and
/// replica hold back and let go, W1 never lands after W2 was acknowledged.
#[test]
fn d7_a_write_that_was_given_up_never_lands_after_a_later_one() {
    for seed in 0..24 {
        let lab = Lab::new(seed);
        let replica = FakeReplica::new();
        let (medium, served) = (replica.disk.inner().clone(), replica.clone());
        medium.interleave(20, seed);
        lab.sim.spawn(lab.theirs, async move {
            let target = target(THERE.parse().expect("an address")).await;
            target.add(subsystem("r", &served)).expect("new");
            std::future::pending::<()>().await;
        });
        let device = lab.connect();
        let sim = lab.sim.handle();
        let (ours, theirs) = (lab.ours, lab.theirs);
        let faults = replica.faults();
        let weather = lab.sim.spawn(ours, async move {
            let millis = |below: u64| Duration::from_millis(1 + runtime::random_u64() % below);
            loop {
                runtime::sleep(millis(3000)).await;
                if runtime::random_u64().is_multiple_of(2) {
                    sim.partition(ours, theirs);
                    runtime::sleep(millis(9000)).await;
                    sim.heal(ours, theirs);
                } else {
                    // One write is stuck in the replica for longer than anybody waits, the next would not be.
                    let stuck = faults.add(Fault::new(FaultOp::Write, Effect::Hold).times(1));
                    runtime::sleep(millis(14_000)).await;
                    faults.remove(stuck);
                }
            }
        });
        lab.sim.block_on(ours, async move {
            let mut device = device;
            for value in 1..60_u8 {
                while write(&device, 0, value).await.is_err() {
                    if matches!(device.state(), RemoteState::Lost(_)) {
                        let address = THERE.parse().expect("an address");
                        let again = RemoteDevice::connect(uri(address), InitiatorOptions::default()).await;
                        if let Ok(again) = again {
                            device = again;
                        }
                    }
                }
                for _ in 0..4 {
                    assert_eq!(medium.peek(0, 1), [value], "seed {seed}: an older write landed");
                    runtime::sleep(Duration::from_millis(runtime::random_u64() % 200)).await;
                }
            }
        });
        weather.abort();
    }
}

/// An engine that was killed and started again has to be looked at anew, too.
#[test]
fn d3_a_restarted_engine_is_not_taken_back() {
    for seed in 0..6 {
        let lab = Lab::new(seed);
        lab.serve();
        let device = lab.connect();
        lab.sim.kill(lab.theirs);
        lab.sim.run_for(Duration::from_millis(500));
        lab.serve();
        assert_eq!(lab.settled(&device), RemoteState::Lost(LostReason::EngineRestarted), "seed {seed}");
    }
}

/// SAFETY F5: all of it within half a minute, also where nothing is being written.
#[test]
fn f5_a_silent_machine_is_given_up_in_time() {
    for seed in 0..6 {
        let lab = Lab::new(seed);
        lab.serve();
        let device = lab.connect();
        lab.sim.partition(lab.ours, lab.theirs);
        let begun = lab.sim.now();
        assert_eq!(lab.settled(&device), RemoteState::Lost(LostReason::WindowElapsed), "seed {seed}");
        assert!(lab.sim.now().duration_since(begun) < Duration::from_secs(30));
    }
}

#[test]
fn a_target_that_refuses_us_for_good_is_given_up_at_once() {
    everywhere(async |address| {
        let target = target(address).await;
        target.add(subsystem("r", &FakeReplica::new())).expect("new");
        let device = connect(target.address()).await;
        target.set_allowed_hosts(&nqn("r"), only(&["somebody-else"])).expect("served");
        let mut state = device.state();
        while !matches!(state, RemoteState::Lost(_)) {
            state = device.state_changed_from(state).await;
        }
        assert_eq!(state, RemoteState::Lost(LostReason::Refused));
    });
}

/// A subsystem that comes back within the window, e.g. after its share was renewed, is the same.
#[test]
fn a_subsystem_that_is_away_for_a_moment_is_waited_for() {
    everywhere(async |address| {
        let target = target(address).await;
        let replica = FakeReplica::new();
        target.add(subsystem("r", &replica)).expect("new");
        let device = connect(target.address()).await;
        assert!(target.remove(&nqn("r")).await);
        runtime::sleep(Duration::from_millis(300)).await;
        target.add(subsystem("r", &replica)).expect("free again");
        assert_eq!(write(&device, 0, 1).await, Ok(()));
    });
}

#[test]
fn a_closed_device_fails_at_once_and_lets_the_target_go() {
    everywhere(async |address| {
        let target = target(address).await;
        target.add(subsystem("r", &FakeReplica::new())).expect("new");
        let device = connect(target.address()).await;
        device.close();
        assert_eq!(write(&device, 0, 1).await, Err(ErrorKind::PathLost));
        until("the association is gone", || target.usage().associations == 0).await;
        drop(connect(target.address()).await);
        until("dropping is closing", || target.usage().associations == 0).await;
    });
}

#[test]
fn a_first_connect_that_fails_says_why() {
    everywhere(async |address| {
        let target = target(address).await;
        let options = InitiatorOptions {
            reconnect: ReconnectPolicy { window: Duration::ZERO, ..ReconnectPolicy::default() },
            ..InitiatorOptions::default()
        };
        let Err(error) = RemoteDevice::connect(uri(target.address()), options).await else {
            panic!("nothing is served")
        };
        assert!(error.to_string().contains("connect invalid parameters"), "{error}");
    });
}

fn reserving_host(address: SocketAddr, name: &str) -> NvmfUri {
    let host = nqn(name);
    NvmfUri { address, subsystem: nqn("r"), host_id: super::host_id(&host), host }
}

#[test]
fn f1_a_remote_device_reserves_and_is_fenced() {
    everywhere(async |address| {
        let target = target(address).await;
        target.add(subsystem("r", &FakeReplica::new())).expect("new");
        let options = InitiatorOptions::default();
        let open = async |name: &str| {
            RemoteDevice::connect(reserving_host(target.address(), name), options).await.expect("served")
        };
        let (old, new) = (open("node-name:old").await, open("node-name:new").await);
        let kind = ReservationType::ExclusiveAccess;
        old.confirm().await.expect("nothing is reserved");
        old.register(1).await.expect("room");
        old.acquire(kind, 1).await.expect("free");
        old.confirm().await.expect("it holds it");
        new.register(2).await.expect("room");
        let refused = new.acquire(kind, 2).await.expect_err("another holds it");
        assert_eq!(refused.kind(), ErrorKind::ReservationConflict);
        assert_eq!(new.confirm().await.expect_err("another holds it").kind(), ErrorKind::ReservationConflict);
        new.preempt(kind, 2, 1).await.expect("the holder's key");
        assert_eq!(write(&old, 0, 1).await, Err(ErrorKind::ReservationConflict));
        assert_eq!(old.confirm().await.expect_err("fenced").kind(), ErrorKind::ReservationConflict);
        assert_eq!(write(&new, 0, 2).await, Ok(()));
        let report = new.reservation().await.expect("a report");
        let own = super::host_id(&nqn("node-name:new")).0;
        assert_eq!(report.registrants, [Registrant { host: own, key: 2, is_holder: true }]);
        assert_eq!((report.kind, report.is_persistent), (Some(kind), true));
        // Giving up what is not its own is done already.
        old.release(kind, 1).await.expect("nothing to do");
        old.unregister().await.expect("nothing to do");
        new.release(kind, 2).await.expect("the holder");
        new.unregister().await.expect("registered");
        assert_eq!(new.reservation().await.expect("a report").registrants, []);
    });
}

#[test]
fn a_target_without_reservations_says_so() {
    everywhere(async |address| {
        let target = Target::bind(address, TargetOptions::default()).await.expect("the port is free");
        let export = Plain(BaseDevice::Memory(MemoryDevice::of_len(1 << 20, 512)));
        let fake = subsystem("r", &FakeReplica::new());
        target
            .add(Subsystem {
                nqn: fake.nqn,
                uuid: fake.uuid,
                export,
                allowed_hosts: fake.allowed_hosts,
                cntlids: fake.cntlids,
                ana_state: fake.ana_state,
                is_thin: false,
                older_commands: fake.older_commands,
                retry_delays: fake.retry_delays,
            })
            .expect("new");
        let device = connect(target.address()).await;
        assert_eq!(device.register(1).await.expect_err("unknown").kind(), ErrorKind::Unsupported);
        assert_eq!(device.confirm().await.expect_err("unknown").kind(), ErrorKind::Unsupported);
    });
}

const EXCLUSIVE: ReservationType = ReservationType::ExclusiveAccess;

/// Two nexuses on one engine have one host identifier: the older one's connection comes back and must not go on under
/// the newer one's registration, nor take the newer one's association away while it registers.
#[test]
fn f1_a_device_whose_key_was_replaced_on_the_same_engine_is_fenced_at_once() {
    simulated(async |address| {
        let target = target(address).await;
        target.add(subsystem("r", &FakeReplica::new())).expect("new");
        for older_key in [None, Some(1)] {
            let old = connect(target.address()).await;
            if let Some(key) = older_key {
                old.register(key).await.expect("room");
                old.acquire(EXCLUSIVE, key).await.expect("free");
            }
            let new = connect(target.address()).await;
            // Long enough for the older one to have tried to come back.
            runtime::sleep(Duration::from_secs(3)).await;
            assert_eq!((old.state(), new.state()), (RemoteState::Reconnecting, RemoteState::Live));
            new.register(2).await.expect("room");
            assert_eq!(old.state(), RemoteState::Lost(LostReason::Fenced));
            assert_eq!(write(&old, 0, 1).await, Err(ErrorKind::ReservationConflict));
            new.acquire(EXCLUSIVE, 2).await.expect("held by this host");
            assert_eq!(write(&new, 0, 2).await, Ok(()));
            new.confirm().await.expect("it holds it");
            new.release(EXCLUSIVE, 2).await.expect("the holder");
            new.unregister().await.expect("registered");
        }
    });
}

#[test]
fn a_device_whose_successor_leaves_without_registering_comes_back() {
    simulated(async |address| {
        let target = target(address).await;
        target.add(subsystem("r", &FakeReplica::new())).expect("new");
        let old = connect(target.address()).await;
        old.register(1).await.expect("room");
        old.acquire(EXCLUSIVE, 1).await.expect("free");
        let new = connect(target.address()).await;
        until("the older lost its path", || old.state() == RemoteState::Reconnecting).await;
        new.close();
        until("the older is back", || old.state() == RemoteState::Live).await;
        assert_eq!(write(&old, 0, 1).await, Ok(()));
        old.confirm().await.expect("it holds it still");
    });
}

/// Another process under the same identity: nobody tells the older device, so it asks when it is back.
#[test]
fn f1_a_device_whose_key_was_replaced_meanwhile_is_fenced_when_it_reconnects() {
    simulated(async |address| {
        let target = target(address).await;
        let replica = FakeReplica::new();
        target.add(subsystem("r", &replica)).expect("new");
        let old = connect(target.address()).await;
        old.register(1).await.expect("room");
        old.acquire(EXCLUSIVE, 1).await.expect("free");
        let other = replica.of_host(uri(target.address()).host_id.0);
        other.reserve(calls::register(2)).await.expect("room");
        target.remove(&nqn("r")).await;
        target.add(subsystem("r", &replica)).expect("free again");
        until("the older is fenced", || old.state() == RemoteState::Lost(LostReason::Fenced)).await;
        assert_eq!(write(&old, 0, 1).await, Err(ErrorKind::ReservationConflict));
    });
}
