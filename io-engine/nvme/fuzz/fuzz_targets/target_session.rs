//! Arbitrary PDUs, in any order, end in Ready or Terminating. The first byte says how far a proper host has come
//! before, and whether with digests: random bytes alone seldom get past the first PDU.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nvme::command::fabrics::{Connect, FabricsCommand};
use nvme::command::reservation::{ReportCommand, ReservationCommand, ReservationStatus};
use nvme::pdu::Digests;
use nvme::session::host::{HostConfig, HostTransfer};
use nvme::session::target::{TargetConfig, Transfer};
use nvme::session::{HostSession, TargetEvent, TargetSession};
use nvme::{Status, Tag};

const CONNECT_DATA: [u8; 1024] = [1; 1024];

fn connect() -> Connect {
    Connect { queue_id: 1, queue_entries: 8, flow_control_disabled: true, keep_alive_ms: 0 }
}

/// A session that a proper host has set up, and connected.
fn connected(digests: Digests) -> TargetSession {
    let mut target = TargetSession::new(TargetConfig::default());
    let mut host = HostSession::new(HostConfig { digests, ..HostConfig::default() });
    let hello = host.outbox().drain_to_vec(|_| &[]);
    assert!(target.receive(&mut &hello[..]).is_none());
    let answer = target.outbox().drain_to_vec(|_| &[]);
    assert!(host.receive(&mut &answer[..]).is_some());
    let entry = FabricsCommand::Connect(connect()).encode();
    host.submit(entry, HostTransfer::Write(&CONNECT_DATA)).expect("the first command");
    let capsule = host.outbox().drain_to_vec(|_| &CONNECT_DATA);
    let mut input = &capsule[..];
    while let Some(event) = target.receive(&mut input) {
        if let TargetEvent::DataEnd { tag, .. } = event {
            target.accept_connect(tag, &connect(), 1);
        }
    }
    target.outbox().clear();
    target
}

fuzz_target!(|data: &[u8]| {
    if let Some(status) = ReservationStatus::decode(data) {
        assert_eq!(ReservationStatus::decode(&status.encode()), Some(status));
    }
    let Some((mode, mut input)) = data.split_first() else { return };
    let digests = Digests { header: mode & 2 != 0, data: mode & 4 != 0 };
    let mut session = match mode & 1 {
        0 => TargetSession::new(TargetConfig::default()),
        _ => connected(digests),
    };
    let mut connecting: Option<Tag> = None;
    while let Some(event) = session.receive(&mut input) {
        match event {
            TargetEvent::Command { tag, entry, transfer } => {
                if entry.is_fabrics() {
                    connecting = Some(tag);
                }
                let _ = ReportCommand::decode(&entry);
                if let Some(Ok(command)) = ReservationCommand::decode(&entry) {
                    assert!(command.with_keys(&CONNECT_DATA[..command.data_bytes()]).is_some());
                }
                match transfer {
                    Transfer::FromHost { .. } => session.request_data(tag),
                    Transfer::ToHost { len } => session.complete_with_data(tag, &vec![0; len as usize], 0),
                    Transfer::None => session.complete(tag, Status::SUCCESS, 0),
                    Transfer::InCapsule { .. } => {}
                }
            }
            TargetEvent::DataEnd { tag, .. } if connecting.take() == Some(tag) => {
                session.accept_connect(tag, &connect(), 1);
            }
            TargetEvent::DataEnd { tag, .. } => session.complete(tag, Status::SUCCESS, 0),
            TargetEvent::Data { .. } | TargetEvent::Ended(_) => {}
        }
        assert!(session.commands_in_flight() <= 8);
        session.outbox().clear();
    }
    assert!(input.is_empty());
});
