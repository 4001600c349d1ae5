//! Arbitrary bytes from a controller end in a live session or in Terminating. The first byte says how far a proper
//! controller has come before, and whether with digests.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nvme::command::fabrics::{Connect, FabricsCommand};
use nvme::pdu::Digests;
use nvme::session::host::{HostConfig, HostTransfer};
use nvme::session::target::TargetConfig;
use nvme::session::{HostEvent, HostSession, TargetEvent, TargetSession};
use nvme::{Nsid, SubmissionEntry};

static PAYLOAD: [u8; 20_000] = [7; 20_000];

/// A session that has commands of every kind in flight at a proper controller.
fn busy(digests: Digests) -> HostSession {
    let mut host = HostSession::new(HostConfig { digests, ..HostConfig::default() });
    let mut target = TargetSession::new(TargetConfig::default());
    let hello = host.outbox().drain_to_vec(|_| &[]);
    assert!(target.receive(&mut &hello[..]).is_none());
    let answer = target.outbox().drain_to_vec(|_| &[]);
    assert!(host.receive(&mut &answer[..]).is_some());
    let connect = Connect { queue_id: 1, queue_entries: 128, flow_control_disabled: true, keep_alive_ms: 0 };
    let entry = FabricsCommand::Connect(connect).encode();
    host.submit(entry, HostTransfer::Write(&PAYLOAD[..1024])).expect("the first command");
    let capsule = host.outbox().drain_to_vec(|_| &PAYLOAD);
    let mut input = &capsule[..];
    while let Some(event) = target.receive(&mut input) {
        if let TargetEvent::DataEnd { tag, .. } = event {
            target.accept_connect(tag, &connect, 1);
        }
    }
    let answer = target.outbox().drain_to_vec(|_| &[]);
    assert!(host.receive(&mut &answer[..]).is_some());
    for _ in 0..2 {
        host.submit(SubmissionEntry::new(1, Nsid(1), [0; 6]), HostTransfer::Write(&PAYLOAD)).expect("room");
        host.submit(SubmissionEntry::new(2, Nsid(1), [0; 6]), HostTransfer::Read { len: 5000 })
            .expect("room");
        host.submit(SubmissionEntry::new(0, Nsid(1), [0; 6]), HostTransfer::None).expect("room");
    }
    host.outbox().clear();
    host
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, mut input)) = data.split_first() else { return };
    let digests = Digests { header: mode & 2 != 0, data: mode & 4 != 0 };
    let mut session = match mode & 1 {
        0 => HostSession::new(HostConfig { digests, ..HostConfig::default() }),
        _ => busy(digests),
    };
    while let Some(event) = session.receive(&mut input) {
        if let HostEvent::DataWanted(wanted) = event {
            session.send_data(wanted, &PAYLOAD);
        }
        session.outbox().clear();
    }
    assert!(input.is_empty());
});
