//! Who gets in, and in what order old and new follow each other.

use std::time::Duration;

use nvme::ana::AnaState;
use nvme::command::admin::AdminCommand;
use nvme::command::fabrics::CNTLID_DYNAMIC;
use nvme::command::nvm::{BlockRange, NvmCommand};
use nvme::{Nsid, Status};

use super::super::testing::{
    FakeReplica, Host, NAMESPACE, bytes, everywhere, nqn, only, simulated, subsystem, target, until,
};
use crate::block::fault::{Effect, Fault, FaultOp};
use crate::initiator::queue::Data;
use crate::target::OlderCommands;

fn write(lba: u64) -> nvme::SubmissionEntry {
    NvmCommand::Write { range: BlockRange { lba, blocks: 1 }, fua: false }.encode(NAMESPACE)
}

/// A restarting or fenced target must not make a host give up: Linux removes the controller at the first DNR.
#[test]
fn d13_an_unknown_subsystem_is_refused_without_dnr() {
    everywhere(async |address| {
        let target = target(address).await;
        let host = Host::new(target.address(), "host");
        let (_, completion) = host.try_connect(&nqn("nobody"), 0, CNTLID_DYNAMIC).await;
        let completion = completion.expect("answered");
        assert_eq!(completion.status, Status::CONNECT_INVALID_PARAMETERS);
        assert_eq!(completion.result, 0x1_0100, "the result points at the subsystem's name");
    });
}

/// A subsystem that was removed is as unknown as one that never was.
#[test]
fn d13_a_subsystem_that_is_gone_is_refused_without_dnr() {
    everywhere(async |address| {
        let target = target(address).await;
        target.add(subsystem("v", &FakeReplica::new())).expect("new");
        let host = Host::new(target.address(), "host");
        host.attach(&nqn("v")).await;
        assert!(target.remove(&nqn("v")).await);
        let (_, completion) = host.try_connect(&nqn("v"), 0, CNTLID_DYNAMIC).await;
        assert_eq!(completion.expect("answered").status, Status::CONNECT_INVALID_PARAMETERS);
    });
}

#[test]
fn d13_a_host_that_is_not_allowed_is_refused_for_good() {
    everywhere(async |address| {
        let target = target(address).await;
        let mut closed = subsystem("v", &FakeReplica::new());
        closed.allowed_hosts = only(&["friend"]);
        target.add(closed).expect("new");
        for (name, expected) in
            [("friend", Status::SUCCESS), ("stranger", Status::CONNECT_INVALID_HOST.with_dnr())]
        {
            let host = Host::new(target.address(), name);
            let (_, completion) = host.try_connect(&nqn("v"), 0, CNTLID_DYNAMIC).await;
            assert_eq!(completion.expect("answered").status, expected);
        }
        target.set_allowed_hosts(&nqn("v"), only(&[])).expect("served");
        let friend = Host::new(target.address(), "friend");
        let (_, completion) = friend.try_connect(&nqn("v"), 0, CNTLID_DYNAMIC).await;
        assert_eq!(completion.expect("answered").status, Status::CONNECT_INVALID_HOST.with_dnr());
    });
}

/// Taking a host off the list ends what it has.
#[test]
fn a_host_that_may_not_any_more_is_disconnected() {
    everywhere(async |address| {
        let target = target(address).await;
        target.add(subsystem("v", &FakeReplica::new())).expect("new");
        let (admin, io) = Host::new(target.address(), "host").attach(&nqn("v")).await;
        target.set_allowed_hosts(&nqn("v"), only(&["other"])).expect("served");
        until("both queues are closed", || admin.queue.is_closed() && io.queue.is_closed()).await;
        until("the association is gone", || target.usage().associations == 0).await;
    });
}

/// W1 is stuck, the host connects again and sends it once more: W1 must not land after the second one.
#[test]
fn d7_a_replica_drains_older_commands_before_the_new_connect_is_answered() {
    everywhere(async |address| {
        let target = target(address).await;
        let replica = FakeReplica::new();
        target.add(subsystem("v", &replica)).expect("new");
        let host = Host::new(target.address(), "host");
        let (_, old) = host.attach(&nqn("v")).await;
        let stuck = replica.faults().add(Fault::new(FaultOp::Write, Effect::Hold));
        let old_write = old.clone();
        let first = runtime::spawn(async move { old_write.try_run(write(0), bytes(&[1; 512])).await });
        until("the write is stuck", || replica.faults().held() == 1).await;

        let again = Host::new(target.address(), "host");
        let reconnect =
            runtime::spawn(async move { again.try_connect(&nqn("v"), 0, CNTLID_DYNAMIC).await.1 });
        until("the older association is closed", || old.queue.is_closed()).await;
        assert_eq!(first.await.expect("not aborted"), None, "the stuck write is never answered");
        runtime::sleep(Duration::from_millis(50)).await;
        assert!(!reconnect.is_finished(), "the new connect waits for the older command");

        replica.faults().remove(stuck);
        let completion = reconnect.await.expect("not aborted").expect("answered");
        assert_eq!(completion.status, Status::SUCCESS);
        assert_eq!(replica.disk.inner().peek(0, 1), [1], "the older write has landed before");
    });
}

/// The same when the older connection died by itself, and nobody closed the association.
#[test]
fn d7_commands_of_a_dead_connection_are_drained_too() {
    everywhere(async |address| {
        let target = target(address).await;
        let replica = FakeReplica::new();
        target.add(subsystem("v", &replica)).expect("new");
        let host = Host::new(target.address(), "host");
        let (admin, old) = host.attach(&nqn("v")).await;
        replica.faults().add(Fault::new(FaultOp::Write, Effect::Hold));
        let old_write = old.clone();
        runtime::spawn(async move { old_write.try_run(write(0), bytes(&[1; 512])).await });
        until("the write is stuck", || replica.faults().held() == 1).await;
        admin.queue.close();
        old.queue.close();
        until("the target has noticed", || target.usage().associations == 0).await;
        let again = Host::new(target.address(), "host");
        let reconnect =
            runtime::spawn(async move { again.try_connect(&nqn("v"), 0, CNTLID_DYNAMIC).await.1 });
        runtime::sleep(Duration::from_millis(50)).await;
        assert!(!reconnect.is_finished());
        replica.faults().clear();
        assert_eq!(reconnect.await.expect("not aborted").expect("answered").status, Status::SUCCESS);
    });
}

/// A Connect to a nexus never waits for a child or the store.
#[test]
fn d7_a_nexus_answers_a_new_connect_while_older_commands_are_stuck() {
    everywhere(async |address| {
        let target = target(address).await;
        let replica = FakeReplica::new();
        let mut nexus = subsystem("v", &replica);
        nexus.older_commands = OlderCommands::Detach;
        target.add(nexus).expect("new");
        let host = Host::new(target.address(), "host");
        let (_, old) = host.attach(&nqn("v")).await;
        replica.faults().add(Fault::new(FaultOp::Write, Effect::Hold));
        let old_write = old.clone();
        runtime::spawn(async move { old_write.try_run(write(0), bytes(&[1; 512])).await });
        until("the write is stuck", || replica.faults().held() == 1).await;
        let (_, completion) = host.try_connect(&nqn("v"), 0, CNTLID_DYNAMIC).await;
        assert_eq!(completion.expect("answered").status, Status::SUCCESS);
        until("the older association is closed", || old.queue.is_closed()).await;
        until("the older command is dropped", || replica.faults().held() == 0).await;
    });
}

/// A nexus that has stopped answers nothing for ever; taking it away must not wait for that.
#[test]
fn f2_a_nexus_that_will_never_answer_is_removed_at_once() {
    everywhere(async |address| {
        let target = target(address).await;
        let replica = FakeReplica::new();
        let mut nexus = subsystem("v", &replica);
        nexus.older_commands = OlderCommands::Detach;
        target.add(nexus).expect("new");
        let (_, io) = Host::new(target.address(), "host").attach(&nqn("v")).await;
        replica.faults().add(Fault::new(FaultOp::Any, Effect::Hold));
        let queue = io.clone();
        let write = runtime::spawn(async move { queue.try_run(write(0), bytes(&[1; 512])).await });
        until("the write is stuck", || replica.faults().held() == 1).await;
        assert!(target.remove(&nqn("v")).await);
        assert_eq!(write.await.expect("not aborted"), None);
        until("nobody holds the nexus", || std::rc::Rc::strong_count(&replica.report) == 1).await;
    });
}

/// Two hosts, or two identifiers of one host, do not get in each other's way.
#[test]
fn d7_other_hosts_keep_their_associations() {
    everywhere(async |address| {
        let target = target(address).await;
        target.add(subsystem("v", &FakeReplica::new())).expect("new");
        let (one, _) = Host::new(target.address(), "one").attach(&nqn("v")).await;
        let (two, _) = Host::new(target.address(), "two").attach(&nqn("v")).await;
        let keep_alive = AdminCommand::KeepAlive.encode(Nsid(0));
        for admin in [one, two] {
            assert_eq!(admin.run(keep_alive, Data::None).await.0.status, Status::SUCCESS);
        }
        assert_eq!(target.usage().associations, 2);
        assert_eq!(target.hosts(&nqn("v")).expect("served").len(), 2);
    });
}

/// A fenced or removed target answers nothing: not what is in flight, not with an error.
#[test]
fn f2_removing_a_subsystem_closes_its_connections_and_answers_nothing() {
    everywhere(async |address| {
        let target = target(address).await;
        let replica = FakeReplica::new();
        target.add(subsystem("v", &replica)).expect("new");
        let (_, io) = Host::new(target.address(), "host").attach(&nqn("v")).await;
        replica.faults().add(Fault::new(FaultOp::Write, Effect::Hold));
        let queue = io.clone();
        let write = runtime::spawn(async move { queue.try_run(write(0), bytes(&[1; 512])).await });
        until("the write is stuck", || replica.faults().held() == 1).await;
        let removed = target.remove(&nqn("v"));
        assert_eq!(write.await.expect("not aborted"), None, "the connection closed without an answer");
        replica.faults().clear();
        assert!(removed.await, "and the removal returns when the write has ended");
        assert!(!target.serves(&nqn("v")));
    });
}

/// An export that is being shut down says so by an error kind; hosts see a closed connection (SAFETY D13).
#[test]
fn d13_a_shutdown_error_closes_the_connections() {
    everywhere(async |address| {
        let target = target(address).await;
        let replica = FakeReplica::new();
        target.add(subsystem("v", &replica)).expect("new");
        let (admin, io) = Host::new(target.address(), "host").attach(&nqn("v")).await;
        let shut_down = Effect::Fail(crate::block::ErrorKind::ShutDown);
        replica.faults().add(Fault::new(FaultOp::Write, shut_down));
        assert_eq!(io.try_run(write(0), bytes(&[1; 512])).await, None);
        until("the admin queue closes too", || admin.queue.is_closed()).await;
    });
}

#[test]
fn a_host_that_goes_silent_loses_its_association() {
    simulated(async |address| {
        let target = target(address).await;
        target.add(subsystem("v", &FakeReplica::new())).expect("new");
        let mut host = Host::new(target.address(), "host");
        host.keep_alive_ms = 2000;
        let (admin, _) = host.associate(&nqn("v")).await;
        let keep_alive = AdminCommand::KeepAlive.encode(Nsid(0));
        for _ in 0..10 {
            runtime::sleep(Duration::from_secs(1)).await;
            assert_eq!(admin.run(keep_alive, Data::None).await.0.status, Status::SUCCESS);
        }
        let silent_since = runtime::now();
        until("the association is gone", || target.usage().associations == 0).await;
        let noticed_after = runtime::now().duration_since(silent_since);
        assert!(noticed_after >= Duration::from_secs(2) && noticed_after < Duration::from_secs(4));
        until("the connection is closed", || admin.queue.is_closed()).await;
    });
}

/// Controller identifiers come from the target's own range, so that two targets of a volume never share one.
#[test]
fn controller_ids_come_from_the_subsystems_range_and_are_used_again() {
    everywhere(async |address| {
        let target = target(address).await;
        let mut narrow = subsystem("v", &FakeReplica::new());
        narrow.cntlids = 1000..=1001;
        target.add(narrow).expect("new");
        let (_, first) = Host::new(target.address(), "one").associate(&nqn("v")).await;
        let (second_admin, second) = Host::new(target.address(), "two").associate(&nqn("v")).await;
        assert_eq!((first, second), (1000, 1001));
        let third = Host::new(target.address(), "three");
        let (_, completion) = third.try_connect(&nqn("v"), 0, CNTLID_DYNAMIC).await;
        assert_eq!(completion.expect("answered").status, Status::CONNECT_CONTROLLER_BUSY);
        second_admin.queue.close();
        until("the second is gone", || target.usage().associations == 1).await;
        let (_, again) = third.associate(&nqn("v")).await;
        assert_eq!(again, 1001);
    });
}

/// An I/O queue belongs to the host whose controller it names, and only once that is enabled.
#[test]
fn io_queues_are_joined_to_their_own_controller_only() {
    everywhere(async |address| {
        let target = target(address).await;
        target.add(subsystem("v", &FakeReplica::new())).expect("new");
        let host = Host::new(target.address(), "host");
        let (_keep, cntlid) = host.associate(&nqn("v")).await;
        let stranger = Host::new(target.address(), "stranger");
        let (_, completion) = stranger.try_connect(&nqn("v"), 1, cntlid).await;
        assert_eq!(completion.expect("answered").status, Status::CONNECT_INVALID_PARAMETERS);
        let (_, completion) = host.try_connect(&nqn("v"), 1, cntlid + 1).await;
        assert_eq!(completion.expect("answered").status, Status::CONNECT_INVALID_PARAMETERS);
        let (_, completion) = host.try_connect(&nqn("v"), 99, cntlid).await;
        assert_eq!(completion.expect("answered").status, Status::CONNECT_INVALID_PARAMETERS.with_dnr());
        let (_queue, completion) = host.try_connect(&nqn("v"), 1, cntlid).await;
        assert_eq!(completion.expect("answered").status, Status::SUCCESS);
        let (_, completion) = host.try_connect(&nqn("v"), 1, cntlid).await;
        assert_eq!(completion.expect("answered").status, Status::CONNECT_INVALID_PARAMETERS);
    });
}

#[test]
fn io_is_refused_as_ana_demands() {
    everywhere(async |address| {
        let target = target(address).await;
        target.add(subsystem("v", &FakeReplica::new())).expect("new");
        let (_, io) = Host::new(target.address(), "host").attach(&nqn("v")).await;
        for (state, expected) in [
            (AnaState::Inaccessible, Status::ANA_INACCESSIBLE),
            (AnaState::Change, Status::ANA_TRANSITION),
            (AnaState::NonOptimized, Status::SUCCESS),
        ] {
            target.set_ana_state(&nqn("v"), state).expect("served");
            assert_eq!(io.run(write(0), bytes(&[1; 512])).await.0.status, expected);
        }
    });
}
