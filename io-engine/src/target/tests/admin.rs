//! What a Linux host asks while it connects, and what it is told when something changes.

use nvme::ana::{self, AnaState};
use nvme::codec::{text_at, u16_at, u32_at, u64_at};
use nvme::command::admin::{AdminCommand, GetLogPage, IdentifyTarget};
use nvme::command::fabrics::FabricsCommand;
use nvme::feature::{self, AsyncEvent, QueueCounts};
use nvme::property::{Capabilities, Property, VERSION_1_4};
use nvme::{Nqn, Nsid, Status, log_page};

use super::super::testing::{
    Admin, FakeReplica, Host, VOLUME, bytes, everywhere, nqn, only, subsystem, target, until,
};
use crate::initiator::queue::Data;

fn identify(target: IdentifyTarget) -> AdminCommand {
    AdminCommand::Identify { target, command_set: 0 }
}

fn log(log: u8, len: u64, retains_event: bool) -> nvme::SubmissionEntry {
    let get = GetLogPage { log, specific: 0, retains_event, len, offset: 0, offset_is_index: false };
    AdminCommand::GetLogPage(get).encode(Nsid::ALL)
}

async fn property(admin: &Admin, property: Property) -> u64 {
    let get = FabricsCommand::PropertyGet { property: Some(property), is_wide: property.is_wide() };
    let (completion, _) = admin.run(get.encode(), Data::None).await;
    assert_eq!(completion.status, Status::SUCCESS);
    completion.result
}

#[test]
fn a_linux_host_finds_the_controller_that_it_expects() {
    everywhere(async |address| {
        let target = target(address).await;
        target.add(subsystem("v", &FakeReplica::new())).expect("new");
        let (admin, cntlid) = Host::new(target.address(), "host").associate(&nqn("v")).await;
        assert_eq!(Capabilities::decode(property(&admin, Property::Cap).await).queue_entries_max, 128);
        assert_eq!(property(&admin, Property::Vs).await, u64::from(VERSION_1_4));
        assert_eq!(property(&admin, Property::Csts).await & 1, 1, "ready");

        let controller = admin.fetch(identify(IdentifyTarget::Controller).encode(Nsid(0)), 4096).await;
        assert_eq!(text_at(&controller, 24, 40), Some("Mayastor NVMe controller"));
        let serial = nvme::identify::serial_number(VOLUME.as_bytes());
        assert_eq!(text_at(&controller, 4, 20), Some(serial.as_str()));
        assert_eq!(u16_at(&controller, 78), cntlid);
        assert_eq!(Nqn::decode(&controller[768..1024]), Some(nqn("v")));

        let list = admin.fetch(identify(IdentifyTarget::ActiveNamespaces).encode(Nsid(0)), 4096).await;
        assert_eq!((u32_at(&list, 0), u32_at(&list, 4)), (1, 0));
        let descriptors =
            admin.fetch(identify(IdentifyTarget::NamespaceDescriptors).encode(Nsid(1)), 4096).await;
        assert_eq!(descriptors[4..20], *VOLUME.as_bytes());
        let namespace = admin.fetch(identify(IdentifyTarget::Namespace).encode(Nsid(1)), 4096).await;
        assert_eq!(u64_at(&namespace, 0), 8192, "blocks of 512 bytes");
        assert_eq!(namespace[104..120], *VOLUME.as_bytes(), "NGUID");
        for target in [
            IdentifyTarget::CommandSetController,
            IdentifyTarget::CommandSets,
            IdentifyTarget::IndependentNamespace,
            IdentifyTarget::CommandSetNamespace,
        ] {
            admin.fetch(identify(target).encode(Nsid(1)), 4096).await;
        }
        let missing = identify(IdentifyTarget::Namespace).encode(Nsid(2));
        let (completion, _) = admin.run(missing, Data::Read(runtime::IoBuf::zeroed(4096))).await;
        assert_eq!(completion.status, Status::INVALID_NAMESPACE.with_dnr());
    });
}

#[test]
fn features_and_logs_that_linux_asks_for_are_there() {
    everywhere(async |address| {
        let target = target(address).await;
        target.add(subsystem("v", &FakeReplica::new())).expect("new");
        let (admin, _) = Host::new(target.address(), "host").associate(&nqn("v")).await;
        let counts = QueueCounts { submission: 64, completion: 64 }.encode();
        let set = |feature, value| AdminCommand::SetFeatures { feature, save: false, value }.encode(Nsid(0));
        let get = |feature, value| AdminCommand::GetFeatures { feature, select: 0, value }.encode(Nsid(0));
        let (completion, _) = admin.run(set(feature::NUMBER_OF_QUEUES, counts), Data::None).await;
        assert_eq!(completion.result, 0x001F_001F, "32 queues, zero-based");
        for (feature, value) in [
            (feature::KEEP_ALIVE_TIMER, 5000),
            (feature::ASYNC_EVENT_CONFIGURATION, 0x900),
            (feature::VOLATILE_WRITE_CACHE, 0),
            (feature::RESERVATION_MASK, 0b1110),
        ] {
            assert_eq!(admin.run(set(feature, value), Data::None).await.0.status, Status::SUCCESS);
            assert_eq!(admin.run(get(feature, 0), Data::None).await.0.result, u64::from(value));
        }
        let mut behavior = vec![0; feature::HOST_BEHAVIOR_BYTES];
        behavior[0] = 1;
        let (completion, _) = admin.run(set(feature::HOST_BEHAVIOR, 0), bytes(&behavior)).await;
        assert_eq!(completion.status, Status::SUCCESS);
        let host_id = admin.fetch(get(feature::HOST_IDENTIFIER, 1), 16).await;
        assert_eq!(host_id, Host::new(target.address(), "host").identifier.0);
        let saved = AdminCommand::SetFeatures { feature: feature::KEEP_ALIVE_TIMER, save: true, value: 1 };
        let (completion, _) = admin.run(saved.encode(Nsid(0)), Data::None).await;
        assert_eq!(completion.status, Status::FEATURE_NOT_SAVEABLE.with_dnr());

        for (page, len) in [
            (log_page::ERROR, 64),
            (log_page::HEALTH, 512),
            (log_page::FIRMWARE_SLOT, 512),
            (log_page::CHANGED_NAMESPACES, 4096),
            (log_page::COMMAND_EFFECTS, 4096),
            (log_page::ANA, 52),
            (log_page::RESERVATION, 64),
        ] {
            let len_bytes = usize::try_from(len).expect("small");
            admin.fetch(log(page, len, true), len_bytes).await;
        }
        let (completion, _) =
            admin.run(log(0x70, 1024, true), Data::Read(runtime::IoBuf::zeroed(1024))).await;
        assert_eq!(completion.status, Status::INVALID_LOG_PAGE.with_dnr(), "discovery is elsewhere");
    });
}

#[test]
fn a_change_of_the_ana_state_is_told_once_until_its_log_is_read() {
    everywhere(async |address| {
        let target = target(address).await;
        target.add(subsystem("v", &FakeReplica::new())).expect("new");
        let (admin, _) = Host::new(target.address(), "host").associate(&nqn("v")).await;
        let enable = AdminCommand::SetFeatures {
            feature: feature::ASYNC_EVENT_CONFIGURATION,
            save: false,
            value: feature::EVENT_ANA_CHANGED,
        };
        admin.run(enable.encode(Nsid(0)), Data::None).await;
        let request = AdminCommand::AsyncEvent.encode(Nsid(0));
        let ask = |admin: Admin| runtime::spawn(async move { admin.run(request, Data::None).await.0 });

        let first = ask(admin.clone());
        let before = admin.fetch(log(log_page::ANA, 52, true), 52).await;
        assert!(!first.is_finished());
        target.set_ana_state(&nqn("v"), AnaState::NonOptimized).expect("served");
        let told = first.await.expect("not aborted");
        let event = u32::try_from(told.result).ok().and_then(AsyncEvent::decode);
        assert_eq!(event, Some(AsyncEvent::AnaChanged));

        let second = ask(admin.clone());
        target.set_ana_state(&nqn("v"), AnaState::Inaccessible).expect("served");
        let after = admin.fetch(log(log_page::ANA, 52, true), 52).await;
        assert!(!second.is_finished(), "the log was read with its event retained");
        let (count_before, _) = ana::decode_log(&before).expect("a log");
        let (count_after, groups) = ana::decode_log(&after).expect("a log");
        assert_eq!((groups[0].state, &groups[0].nsids), (AnaState::Inaccessible, &vec![1]));
        assert_eq!(count_after, count_before + 2);
        admin.fetch(log(log_page::ANA, 52, false), 52).await;
        assert_eq!(second.await.expect("not aborted").status, Status::SUCCESS);
    });
}

/// SAFETY C8: discovery shows a host only what it may use.
#[test]
fn c8_discovery_lists_only_what_the_asking_host_may_use() {
    everywhere(async |address| {
        let target = target(address).await;
        let mut private = subsystem("private", &FakeReplica::new());
        private.allowed_hosts = only(&["friend"]);
        target.add(private).expect("new");
        target.add(subsystem("public", &FakeReplica::new())).expect("new");
        let discovery = Nqn::new(nvme::nqn::DISCOVERY_NQN).expect("valid");
        for (name, expected) in
            [("friend", vec![nqn("private"), nqn("public")]), ("stranger", vec![nqn("public")])]
        {
            let (admin, _) = Host::new(target.address(), name).associate(&discovery).await;
            let identity = admin.fetch(identify(IdentifyTarget::Controller).encode(Nsid(0)), 4096).await;
            assert_eq!(identity[111], 2, "a discovery controller");
            let data = admin.fetch(log(log_page::DISCOVERY, 4096, false), 4096).await;
            let (_, entries) = log_page::decode_discovery(&data).expect("a log");
            let names: Vec<_> = entries.iter().map(|entry| entry.subsystem.clone()).collect();
            assert_eq!(names, expected);
            assert!(entries.iter().all(|entry| entry.address == target.address()));
        }
    });
}

#[test]
fn events_can_be_taken_back_and_are_limited() {
    everywhere(async |address| {
        let target = target(address).await;
        target.add(subsystem("v", &FakeReplica::new())).expect("new");
        let (admin, _) = Host::new(target.address(), "host").associate(&nqn("v")).await;
        let request = AdminCommand::AsyncEvent.encode(Nsid(0));
        let ask = |admin: Admin| runtime::spawn(async move { admin.run(request, Data::None).await.0 });
        let mut asked: Vec<_> = (0..5).map(|_| ask(admin.clone())).collect();
        until("one is refused", || asked.iter().any(runtime::JoinHandle::is_finished)).await;
        let index = asked.iter().position(runtime::JoinHandle::is_finished).expect("just seen");
        let refused = asked.remove(index).await.expect("not aborted");
        assert_eq!(refused.status, Status::ASYNC_EVENT_LIMIT_EXCEEDED.with_dnr());
        let mut aborted = 0;
        for cid in 0..8 {
            let abort = AdminCommand::Abort { queue_id: 0, cid: nvme::CommandId(cid) };
            if admin.run(abort.encode(Nsid(0)), Data::None).await.0.result == 0 {
                aborted += 1;
            }
        }
        assert_eq!(aborted, 4);
        for request in asked {
            assert_eq!(request.await.expect("not aborted").status, Status::ABORT_REQUESTED);
        }
    });
}
