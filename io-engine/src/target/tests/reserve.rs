//! Reservations of hosts over the wire.

use std::time::Duration;

use nvme::command::admin::{AdminCommand, GetLogPage};
use nvme::command::nvm::{BlockRange, NvmCommand};
use nvme::command::reservation::{ReportCommand, ReservationCommand, ReservationStatus};
use nvme::feature::{self, AsyncEvent};
use nvme::log_page;
use nvme::{Nsid, Status};
use runtime::IoBuf;

use super::super::testing::{
    Admin, FakeReplica, Host, NAMESPACE, bytes, everywhere, nqn, simulated, subsystem, target, until,
};
use crate::block::fault::{Effect, Fault, FaultOp};
use crate::initiator::queue::Data;
use crate::member::ReservationType;
use crate::reservation::fence::calls;

const KIND: ReservationType = ReservationType::ExclusiveAccess;

async fn reserve(queue: &Admin, command: ReservationCommand) -> Status {
    let (entry, data) = command.encode(NAMESPACE);
    queue.run(entry, bytes(&data)).await.0.status
}

async fn write(queue: &Admin) -> Status {
    let range = BlockRange { lba: 0, blocks: 8 };
    queue.run(NvmCommand::Write { range, fua: false }.encode(NAMESPACE), bytes(&[7; 4096])).await.0.status
}

async fn report(queue: &Admin) -> ReservationStatus {
    let entry = ReportCommand { len: 4096, is_extended: true }.encode(NAMESPACE);
    ReservationStatus::decode(&queue.fetch(entry, 4096).await).expect("a report")
}

#[test]
fn f1_a_preempted_host_neither_reads_nor_writes_and_is_told() {
    everywhere(async |address| {
        let target = target(address).await;
        target.add(subsystem("v", &FakeReplica::new())).expect("new");
        let (old_admin, old) = Host::new(target.address(), "old").attach(&nqn("v")).await;
        let (_new_admin, new) = Host::new(target.address(), "new").attach(&nqn("v")).await;
        assert_eq!(write(&new).await, Status::SUCCESS, "nothing is reserved");
        assert_eq!(reserve(&old, calls::register(1)).await, Status::SUCCESS);
        assert_eq!(reserve(&old, calls::acquire(KIND, 1)).await, Status::SUCCESS);
        let conflict = Status::RESERVATION_CONFLICT.with_dnr();
        assert_eq!(write(&new).await, conflict);
        assert_eq!(reserve(&new, calls::preempt(KIND, 2, 1)).await, conflict, "not registered");
        assert_eq!(reserve(&new, calls::register(2)).await, Status::SUCCESS);
        let event = {
            let admin = old_admin.clone();
            runtime::spawn(async move {
                admin.run(AdminCommand::AsyncEvent.encode(Nsid(0)), Data::None).await.0.result
            })
        };
        // The request is there before what it is to tell.
        let get = AdminCommand::GetFeatures { feature: feature::RESERVATION_MASK, select: 0, value: 0 };
        assert_eq!(old_admin.run(get.encode(NAMESPACE), Data::None).await.0.status, Status::SUCCESS);
        assert_eq!(reserve(&new, calls::preempt(KIND, 2, 1)).await, Status::SUCCESS);
        assert_eq!((write(&old).await, write(&new).await), (conflict, Status::SUCCESS));
        let read = NvmCommand::Read { range: BlockRange { lba: 0, blocks: 8 }, fua: false }.encode(NAMESPACE);
        assert_eq!(old.run(read, Data::Read(IoBuf::zeroed(4096))).await.0.status, conflict);
        assert_eq!(old.run(NvmCommand::Flush.encode(NAMESPACE), Data::None).await.0.status, conflict);
        let told = event.await.expect("not aborted");
        assert_eq!(told, u64::from(AsyncEvent::ReservationLog.encode()));
        let get = AdminCommand::GetLogPage(GetLogPage {
            log: log_page::RESERVATION,
            len: 64,
            offset: 0,
            offset_is_index: false,
            specific: 0,
            retains_event: false,
        });
        let log = old_admin.fetch(get.encode(NAMESPACE), 64).await;
        assert_eq!(log[..16], [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
        let report = report(&old).await;
        assert_eq!((report.kind, report.is_persistent), (Some(KIND), true));
        let holders: Vec<_> = report.registrants.iter().map(|it| (it.key, it.is_holder)).collect();
        assert_eq!(holders, [(2, true)]);
    });
}

#[test]
fn d7_a_preempt_over_the_wire_waits_for_commands_of_the_preempted() {
    simulated(async |address| {
        let target = target(address).await;
        let replica = FakeReplica::new();
        target.add(subsystem("v", &replica)).expect("new");
        let (_old_admin, old) = Host::new(target.address(), "old").attach(&nqn("v")).await;
        let (_new_admin, new) = Host::new(target.address(), "new").attach(&nqn("v")).await;
        assert_eq!(reserve(&old, calls::register(1)).await, Status::SUCCESS);
        assert_eq!(reserve(&old, calls::acquire(KIND, 1)).await, Status::SUCCESS);
        assert_eq!(reserve(&new, calls::register(2)).await, Status::SUCCESS);
        let held = replica.faults().add(Fault::new(FaultOp::Write, Effect::Hold));
        let stuck = runtime::spawn(async move { write(&old).await });
        until("the write is held", || replica.faults().held() == 1).await;
        let preempting = runtime::spawn(async move { reserve(&new, calls::preempt(KIND, 2, 1)).await });
        runtime::sleep(Duration::from_secs(3)).await;
        assert!(!preempting.is_finished(), "the write may still land");
        replica.faults().remove(held);
        assert_eq!(preempting.await.expect("not aborted"), Status::SUCCESS);
        assert_eq!(stuck.await.expect("not aborted"), Status::SUCCESS, "it had begun before");
    });
}

#[test]
fn commands_on_reservations_are_checked_before_they_act() {
    everywhere(async |address| {
        let target = target(address).await;
        target.add(subsystem("v", &FakeReplica::new())).expect("new");
        let (admin, io) = Host::new(target.address(), "a").attach(&nqn("v")).await;
        let (entry, _) = calls::register(1).encode(NAMESPACE);
        let short = io.run(entry, bytes(&[0; 8])).await.0.status;
        assert_eq!(short, Status::SGL_LENGTH_INVALID.with_dnr());
        let plain = ReportCommand { len: 4096, is_extended: false }.encode(NAMESPACE);
        let refused = io.run(plain, Data::Read(IoBuf::zeroed(4096))).await.0.status;
        assert_eq!(refused, Status::HOST_ID_INCONSISTENT.with_dnr());
        assert_eq!(reserve(&io, calls::register(1)).await, Status::SUCCESS);
        let get =
            AdminCommand::GetFeatures { feature: feature::RESERVATION_PERSISTENCE, select: 0, value: 0 };
        assert_eq!(admin.run(get.encode(NAMESPACE), Data::None).await.0.result, 1);
    });
}
