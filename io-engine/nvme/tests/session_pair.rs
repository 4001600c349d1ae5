//! Host and target back to back: any commands, any cutting of the streams, any digests; and bytes from nowhere.

use std::collections::{BTreeMap, VecDeque};

use nvme::command::fabrics::{Connect, ConnectData, FabricsCommand};
use nvme::pdu::Digests;
use nvme::session::host::{HostConfig, HostTransfer, SubmitError};
use nvme::session::target::{TargetConfig, Transfer};
use nvme::session::{HostEvent, HostSession, Phase, TargetEvent, TargetSession};
use nvme::{HostId, Nqn, Nsid, Status, SubmissionEntry, Tag};
use proptest::prelude::*;

/// A command of the host: how much data, and which way.
#[derive(Clone, Copy, Debug)]
enum Plan {
    Nothing,
    Write(u32),
    Read(u32),
}

#[derive(Clone, Debug)]
struct Scenario {
    digests: Digests,
    flow_control_disabled: bool,
    in_capsule: u32,
    r2t_bytes: u32,
    h2c_bytes: u32,
    plans: Vec<Plan>,
    cuts: Vec<usize>,
}

fn scenario() -> impl Strategy<Value = Scenario> {
    let plan = prop_oneof![
        Just(Plan::Nothing),
        (1_u32..60_000).prop_map(Plan::Write),
        (1_u32..60_000).prop_map(Plan::Read),
    ];
    (
        any::<(bool, bool, bool)>(),
        prop_oneof![Just(0_u32), Just(4096), Just(8192)],
        (1_u32..70_000, 4096_u32..70_000),
        proptest::collection::vec(plan, 1..20),
        proptest::collection::vec(1_usize..5000, 1..20),
    )
        .prop_map(|((header, data, flow), in_capsule, (r2t_bytes, h2c_bytes), plans, cuts)| Scenario {
            digests: Digests { header, data },
            flow_control_disabled: flow,
            in_capsule,
            r2t_bytes,
            h2c_bytes,
            plans,
            cuts,
        })
}

fn pattern(seed: usize, len: u32) -> Vec<u8> {
    (0..len as usize).map(|at| u8::try_from((at * 31 + seed * 7) % 251).expect("below 251")).collect()
}

/// The controller: keeps what was written, answers reads with the pattern of the command's seed (dword 12).
#[derive(Default)]
struct Controller {
    entries: BTreeMap<Tag, SubmissionEntry>,
    inbound: BTreeMap<Tag, Vec<u8>>,
    outbound: BTreeMap<Tag, Vec<u8>>,
    written: BTreeMap<u32, Vec<u8>>,
    deferred: VecDeque<Tag>,
}

impl Controller {
    fn on_event(&mut self, session: &mut TargetSession, event: TargetEvent<'_>) {
        match event {
            TargetEvent::Command { tag, entry, transfer } => {
                self.entries.insert(tag, entry);
                match transfer {
                    Transfer::None => session.complete(tag, Status::SUCCESS, 0),
                    Transfer::InCapsule { len } => {
                        self.inbound.insert(tag, vec![0; len as usize]);
                    }
                    Transfer::FromHost { len } => {
                        self.inbound.insert(tag, vec![0; len as usize]);
                        session.request_data(tag);
                    }
                    Transfer::ToHost { len } => {
                        let data = pattern(entry.cdw10_15[2] as usize, len);
                        self.outbound.insert(tag, data);
                        self.deferred.push_back(tag);
                    }
                }
            }
            TargetEvent::Data { tag, offset, bytes } => {
                let buffer = self.inbound.get_mut(&tag).expect("a buffer is ready");
                buffer[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
            }
            TargetEvent::DataEnd { tag, is_intact } => {
                assert!(is_intact);
                let data = self.inbound.remove(&tag).expect("a buffer");
                let entry = self.entries[&tag];
                if let Ok(FabricsCommand::Connect(connect)) = FabricsCommand::decode(&entry)
                    && entry.is_fabrics()
                {
                    ConnectData::decode(&data).expect("valid");
                    session.accept_connect(tag, &connect, 7);
                } else {
                    self.written.insert(entry.cdw10_15[2], data);
                    session.complete(tag, Status::SUCCESS, 0);
                }
            }
            TargetEvent::Ended(error) => panic!("{error}"),
        }
    }

    fn finish_reads(&mut self, session: &mut TargetSession) {
        // The last one first: completions need no order.
        while let Some(tag) = self.deferred.pop_back() {
            session.complete_with_data(tag, &self.outbound[&tag], 0);
        }
    }
}

fn run(scenario: &Scenario) {
    let mut host = HostSession::new(HostConfig { digests: scenario.digests, ..HostConfig::default() });
    let mut target = TargetSession::new(TargetConfig {
        in_capsule_bytes_max: scenario.in_capsule,
        r2t_bytes_max: scenario.r2t_bytes,
        h2c_data_bytes_max: scenario.h2c_bytes,
        ..TargetConfig::default()
    });
    let connect = Connect {
        queue_id: 1,
        queue_entries: 8,
        flow_control_disabled: scenario.flow_control_disabled,
        keep_alive_ms: 0,
    };
    let connect_data = ConnectData {
        host_id: HostId([1; 16]),
        cntlid: 0xFFFF,
        subsystem: Nqn::new("nqn.2019-05.io.openebs:vol").expect("valid"),
        host: Nqn::new("nqn.2014-08.org:host").expect("valid"),
    }
    .encode();

    let mut controller = Controller::default();
    let mut cuts = scenario.cuts.iter().copied().cycle();
    let mut payloads: BTreeMap<Tag, Vec<u8>> = BTreeMap::new();
    let mut reads: BTreeMap<Tag, (usize, Vec<u8>)> = BTreeMap::new();
    let mut to_target = Vec::new();
    let mut to_host = Vec::new();
    let mut next_plan = 0;
    let mut completed = 0;
    let mut turns = 0;
    let mut is_connected = false;

    while completed < scenario.plans.len() {
        turns += 1;
        assert!(turns < 100_000, "the exchange comes to its end");
        to_target.extend(host.outbox().drain_to_vec(|tag| &payloads[&tag]));
        let cut = cuts.next().expect("endless").min(to_target.len());
        let chunk: Vec<u8> = to_target.drain(..cut).collect();
        let mut input = &chunk[..];
        while let Some(event) = target.receive(&mut input) {
            controller.on_event(&mut target, event);
        }
        controller.finish_reads(&mut target);
        to_host.extend(target.outbox().drain_to_vec(|tag| &controller.outbound[&tag]));
        let cut = cuts.next().expect("endless").min(to_host.len());
        let chunk: Vec<u8> = to_host.drain(..cut).collect();
        let mut input = &chunk[..];
        while let Some(event) = host.receive(&mut input) {
            match event {
                HostEvent::Initialised => {
                    let entry = FabricsCommand::Connect(connect).encode();
                    let tag = host.submit(entry, HostTransfer::Write(&connect_data)).expect("first");
                    payloads.insert(tag, connect_data.clone());
                }
                HostEvent::DataWanted(wanted) => host.send_data(wanted, &payloads[&wanted.tag]),
                HostEvent::Data { tag, offset, bytes } => {
                    let (_, buffer) = reads.get_mut(&tag).expect("a read");
                    assert_eq!(buffer.len(), offset as usize, "data comes in order");
                    buffer.extend_from_slice(bytes);
                }
                HostEvent::Completed { tag, completion, received, is_intact } => {
                    assert!(completion.status.is_success() && is_intact);
                    if !is_connected {
                        assert_eq!(completion.result, 7);
                        is_connected = true;
                        host.set_in_capsule_bytes(scenario.in_capsule);
                        continue;
                    }
                    if let Some((seed, data)) = reads.remove(&tag) {
                        assert_eq!(data, pattern(seed, received));
                    }
                    completed += 1;
                }
                HostEvent::Ended(error) => panic!("{error}"),
            }
        }
        while is_connected && next_plan < scenario.plans.len() && host.commands_in_flight() < 8 {
            let seed = u32::try_from(next_plan).expect("few");
            let entry = |opcode| SubmissionEntry::new(opcode, Nsid(1), [0, 0, seed, 0, 0, 0]);
            match scenario.plans[next_plan] {
                Plan::Nothing => {
                    host.submit(entry(0), HostTransfer::None).expect("room");
                }
                Plan::Write(len) => {
                    let data = pattern(next_plan, len);
                    let tag = host.submit(entry(1), HostTransfer::Write(&data)).expect("room");
                    payloads.insert(tag, data);
                }
                Plan::Read(len) => {
                    let tag = host.submit(entry(2), HostTransfer::Read { len }).expect("room");
                    reads.insert(tag, (next_plan, Vec::new()));
                }
            }
            // The payload is taken from the outbox before its tag can be used again.
            to_target.extend(host.outbox().drain_to_vec(|tag| &payloads[&tag]));
            next_plan += 1;
        }
    }
    for (seed, data) in &controller.written {
        let Plan::Write(len) = scenario.plans[*seed as usize] else { panic!("only writes write") };
        assert_eq!(data, &pattern(*seed as usize, len));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever the sizes, digests and cuts: every command completes and data arrives as it was sent.
    #[test]
    fn data_arrives_whole_and_in_order(scenario in scenario()) {
        run(&scenario);
    }

    /// A target that hears noise, at any point of a conversation, neither panics nor keeps more than it should.
    #[test]
    fn a_target_survives_garbage(
        good in 0_usize..1300,
        noise in proptest::collection::vec(any::<u8>(), 0..4000),
        flips in proptest::collection::vec((0_usize..1300, any::<u8>()), 0..3),
    ) {
        let mut stream = conversation_of_a_host();
        for (at, value) in flips {
            let at = at % stream.len();
            stream[at] ^= value;
        }
        stream.truncate(good);
        stream.extend(noise);
        let mut session = TargetSession::new(TargetConfig::default());
        let mut input = &stream[..];
        while let Some(event) = session.receive(&mut input) {
            match event {
                TargetEvent::Command { tag, transfer: Transfer::FromHost { .. }, .. } => session.request_data(tag),
                TargetEvent::Command { tag, transfer: Transfer::ToHost { len }, .. } => {
                    prop_assert!(len <= 1 << 20);
                    session.complete_with_data(tag, &vec![0; len as usize], 0);
                }
                TargetEvent::DataEnd { tag, .. } if session.phase() == Phase::Connected => {
                    let connect = Connect {
                        queue_id: 1, queue_entries: 8, flow_control_disabled: false, keep_alive_ms: 0,
                    };
                    session.accept_connect(tag, &connect, 1);
                }
                TargetEvent::Command { .. } | TargetEvent::Data { .. } | TargetEvent::DataEnd { .. } => {}
                TargetEvent::Ended(_) => prop_assert_eq!(session.phase(), Phase::Terminating),
            }
            prop_assert!(session.commands_in_flight() <= 8);
        }
        prop_assert!(input.is_empty());
    }

    /// The same for a host.
    #[test]
    fn a_host_survives_garbage(noise in proptest::collection::vec(any::<u8>(), 0..4000), after in any::<bool>()) {
        let mut session = HostSession::new(HostConfig::default());
        let mut stream = Vec::new();
        if after {
            let mut target = TargetSession::new(TargetConfig::default());
            let hello = session.outbox().drain_to_vec(|_| &[]);
            prop_assert!(target.receive(&mut &hello[..]).is_none());
            stream = target.outbox().drain_to_vec(|_| &[]);
        }
        stream.extend(noise);
        let mut input = &stream[..];
        while let Some(event) = session.receive(&mut input) {
            if matches!(event, HostEvent::Ended(_)) {
                prop_assert_eq!(session.phase(), Phase::Terminating);
            }
        }
        prop_assert!(input.is_empty());
    }
}

/// Set-up, Connect and a write whose data is to be asked for.
fn conversation_of_a_host() -> Vec<u8> {
    let mut host = HostSession::new(HostConfig::default());
    let mut target = TargetSession::new(TargetConfig::default());
    let mut stream = host.outbox().drain_to_vec(|_| &[]);
    assert!(target.receive(&mut &stream[..]).is_none());
    let answer = target.outbox().drain_to_vec(|_| &[]);
    assert_eq!(host.receive(&mut &answer[..]), Some(HostEvent::Initialised));
    let connect = Connect { queue_id: 1, queue_entries: 8, flow_control_disabled: true, keep_alive_ms: 0 };
    let data = ConnectData {
        host_id: HostId([1; 16]),
        cntlid: 0xFFFF,
        subsystem: Nqn::new("nqn.2019-05.io.openebs:vol").expect("valid"),
        host: Nqn::new("nqn.2014-08.org:host").expect("valid"),
    }
    .encode();
    host.submit(FabricsCommand::Connect(connect).encode(), HostTransfer::Write(&data)).expect("first");
    stream.extend(host.outbox().drain_to_vec(|_| &data));
    stream
}

/// Refused commands, queue bounds and data digests, each as its own small story.
mod stories {
    use super::*;

    fn connected(digests: Digests, queue_entries: u32) -> (HostSession, TargetSession) {
        let mut host = HostSession::new(HostConfig { digests, ..HostConfig::default() });
        let mut target = TargetSession::new(TargetConfig::default());
        let hello = host.outbox().drain_to_vec(|_| &[]);
        assert!(target.receive(&mut &hello[..]).is_none());
        let answer = target.outbox().drain_to_vec(|_| &[]);
        assert_eq!(host.receive(&mut &answer[..]), Some(HostEvent::Initialised));
        let connect = Connect { queue_id: 1, queue_entries, flow_control_disabled: true, keep_alive_ms: 0 };
        let data = vec![0; 1024];
        let entry = FabricsCommand::Connect(connect).encode();
        host.submit(entry, HostTransfer::Write(&data)).expect("first");
        let bytes = host.outbox().drain_to_vec(|_| &data);
        let mut input = &bytes[..];
        let mut connect_tag = None;
        while let Some(event) = target.receive(&mut input) {
            if let TargetEvent::DataEnd { tag, .. } = event {
                connect_tag = Some(tag);
            }
        }
        target.accept_connect(connect_tag.expect("all of it came"), &connect, 1);
        let bytes = target.outbox().drain_to_vec(|_| &[]);
        assert!(matches!(host.receive(&mut &bytes[..]), Some(HostEvent::Completed { .. })));
        assert_eq!((host.phase(), target.phase()), (Phase::Ready, Phase::Ready));
        (host, target)
    }

    #[test]
    fn only_connect_is_taken_before_a_queue_is_connected() {
        let mut host = HostSession::new(HostConfig::default());
        assert_eq!(
            host.submit(SubmissionEntry::new(0, Nsid(1), [0; 6]), HostTransfer::None),
            Err(SubmitError::NotReady)
        );
        let mut target = TargetSession::new(TargetConfig::default());
        let mut stream = host.outbox().drain_to_vec(|_| &[]);
        let mut capsule = vec![4, 0, 72, 0, 72, 0, 0, 0];
        capsule.extend(SubmissionEntry::new(0, Nsid(1), [0; 6]).encode());
        stream.extend(capsule);
        assert_eq!(target.receive(&mut &stream[..]), None);
        let said = target.outbox().drain_to_vec(|_| &[]);
        let status = u16::from_le_bytes([said[128 + 22], said[128 + 23]]) >> 1;
        assert_eq!(Status::from_bits(status), Status::COMMAND_SEQUENCE_ERROR.with_dnr());
        assert_eq!(target.phase(), Phase::Connected);
    }

    #[test]
    fn a_data_digest_that_does_not_match_spoils_the_command_and_not_the_connection() {
        let (mut host, mut target) = connected(Digests { header: true, data: true }, 8);
        let data = [3; 512];
        host.submit(SubmissionEntry::new(1, Nsid(1), [0; 6]), HostTransfer::Write(&data)).expect("room");
        let mut bytes = host.outbox().drain_to_vec(|_| &data);
        let last = bytes.len() - 5;
        bytes[last] ^= 1;
        let mut input = &bytes[..];
        let mut is_spoilt = false;
        while let Some(event) = target.receive(&mut input) {
            is_spoilt |= matches!(event, TargetEvent::DataEnd { is_intact: false, .. });
        }
        assert!(is_spoilt);
        assert_eq!(target.phase(), Phase::Ready);
    }

    #[test]
    fn a_header_digest_that_does_not_match_ends_the_connection() {
        let (mut host, mut target) = connected(Digests { header: true, data: false }, 8);
        host.submit(SubmissionEntry::new(0, Nsid(1), [0; 6]), HostTransfer::None).expect("room");
        let mut bytes = host.outbox().drain_to_vec(|_| &[]);
        bytes[40] ^= 1;
        assert!(matches!(target.receive(&mut &bytes[..]), Some(TargetEvent::Ended(_))));
        let said = target.outbox().drain_to_vec(|_| &[]);
        assert_eq!(said[..4], [3, 0, 24, 0], "C2HTermReq");
        assert_eq!(said[8..10], [3, 0], "header digest error");
        assert_eq!(said.len(), 24 + 72, "the offending header is quoted");
        assert!(matches!(host.receive(&mut &said[..]), Some(HostEvent::Ended(_))), "the host understands");
    }

    #[test]
    fn a_host_that_overruns_the_queue_is_cut_off() {
        let (mut host, mut target) = connected(Digests::default(), 4);
        for _ in 0..5 {
            host.submit(SubmissionEntry::new(0, Nsid(1), [0; 6]), HostTransfer::None).expect("room");
        }
        let bytes = host.outbox().drain_to_vec(|_| &[]);
        let mut input = &bytes[..];
        let mut commands = 0;
        while let Some(event) = target.receive(&mut input) {
            match event {
                TargetEvent::Command { .. } => commands += 1,
                TargetEvent::Ended(_) => break,
                _ => {}
            }
        }
        assert_eq!((commands, target.phase()), (4, Phase::Terminating));
    }

    #[test]
    fn data_that_nobody_asked_for_ends_the_connection() {
        let (_, mut target) = connected(Digests::default(), 4);
        let mut pdu = vec![6, 4, 24, 24, 28, 0, 0, 0];
        pdu.extend([0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
        pdu.extend([1, 2, 3, 4]);
        assert!(matches!(target.receive(&mut &pdu[..]), Some(TargetEvent::Ended(_))));
        assert_eq!(target.phase(), Phase::Terminating);
    }

    #[test]
    fn data_in_the_capsule_of_a_command_that_was_answered_is_dropped() {
        let (mut host, mut target) = connected(Digests::default(), 4);
        let data = [3; 4096];
        host.submit(SubmissionEntry::new(1, Nsid(1), [0; 6]), HostTransfer::Write(&data)).expect("room");
        host.submit(SubmissionEntry::new(0, Nsid(1), [0; 6]), HostTransfer::None).expect("room");
        let bytes = host.outbox().drain_to_vec(|_| &data);
        let mut input = &bytes[..];
        let Some(TargetEvent::Command { tag, .. }) = target.receive(&mut input) else { panic!("a write") };
        target.complete(tag, Status::LBA_OUT_OF_RANGE.with_dnr(), 0);
        assert!(
            matches!(target.receive(&mut input), Some(TargetEvent::Command { entry, .. }) if entry.opcode == 0)
        );
    }

    #[test]
    fn pending_data_tells_where_the_next_bytes_belong() {
        let (mut host, mut target) = connected(Digests::default(), 4);
        let data = [3; 4096];
        host.submit(SubmissionEntry::new(1, Nsid(1), [0; 6]), HostTransfer::Write(&data)).expect("room");
        let bytes = host.outbox().drain_to_vec(|_| &data);
        let mut input = &bytes[..72 + 100];
        while target.receive(&mut input).is_some() {}
        let pending = target.pending_data().expect("data is to come");
        assert_eq!((pending.offset, pending.len), (100, 3996));
    }
}
