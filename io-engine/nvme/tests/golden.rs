//! Conversations assembled by hand from the specifications, played to both sides of a session.
//!
//! Each file holds what both sides send. The target session hears the host's lines and must say the controller's,
//! byte for byte, and the other way round.

use nvme::command::fabrics::{Connect, ConnectData, FabricsCommand};
use nvme::command::nvm::{BlockRange, NvmCommand};
use nvme::pdu::Digests;
use nvme::session::host::{HostConfig, HostTransfer};
use nvme::session::target::{TargetConfig, Transfer};
use nvme::session::{HostEvent, HostSession, TargetEvent, TargetSession};
use nvme::{HostId, Nqn, Nsid, Status, SubmissionEntry, Tag};

/// Who says a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Host,
    Controller,
}

fn parse(text: &str) -> Vec<(Side, Vec<u8>)> {
    let mut turns: Vec<(Side, Vec<u8>)> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let side = if line.starts_with('>') { Side::Host } else { Side::Controller };
        let mut bytes = Vec::new();
        for word in line[1..].split_whitespace() {
            let (byte, count) = word.split_once('*').unwrap_or((word, "1"));
            let byte = u8::from_str_radix(byte, 16).expect("hexadecimal");
            bytes.extend(std::iter::repeat_n(byte, count.parse().expect("a count")));
        }
        match turns.last_mut() {
            Some((last, heard)) if *last == side => heard.extend(bytes),
            _ => turns.push((side, bytes)),
        }
    }
    turns
}

const READ_PATTERN: [u8; 512] = [0xA5; 512];
const WRITE_PATTERN: [u8; 8192] = [0x5A; 8192];

/// Plays the controller: accepts Connect as controller 0102h, reads A5h everywhere, takes writes of 5Ah.
fn play_target(turns: &[(Side, Vec<u8>)]) {
    let mut session =
        TargetSession::new(TargetConfig { h2c_data_bytes_max: 4096, ..TargetConfig::default() });
    let mut connect = None;
    for (side, bytes) in turns {
        if *side == Side::Controller {
            let said = session.outbox().drain_to_vec(|_| &READ_PATTERN);
            assert_eq!(&said, bytes, "the controller says what the vector has");
            continue;
        }
        let mut input = &bytes[..];
        while let Some(event) = session.receive(&mut input) {
            match event {
                TargetEvent::Command { tag, entry, transfer } => match transfer {
                    Transfer::InCapsule { .. } => {
                        if let Ok(FabricsCommand::Connect(command)) = FabricsCommand::decode(&entry) {
                            connect = Some((command, Vec::new()));
                        }
                    }
                    Transfer::FromHost { .. } => session.request_data(tag),
                    Transfer::ToHost { .. } => session.complete_with_data(tag, &READ_PATTERN, 0),
                    Transfer::None => session.complete(tag, Status::INVALID_OPCODE.with_dnr(), 0),
                },
                TargetEvent::Data { bytes, .. } => match &mut connect {
                    Some((_, data)) => data.extend_from_slice(bytes),
                    None => assert!(bytes.iter().all(|byte| *byte == 0x5A)),
                },
                TargetEvent::DataEnd { tag, is_intact } => {
                    assert!(is_intact);
                    match connect.take() {
                        Some((command, data)) => {
                            assert_eq!(command.queue_entries, 4);
                            let data = ConnectData::decode(&data).expect("valid");
                            assert_eq!(data.subsystem.as_str(), "nqn.2019-05.io.openebs:vol");
                            assert_eq!(data.host_id.0[15], 15);
                            session.accept_connect(tag, &command, 0x0102);
                        }
                        None => session.complete(tag, Status::SUCCESS, 0),
                    }
                }
                TargetEvent::Ended(error) => panic!("{error}"),
            }
        }
    }
}

/// Plays the host: the commands of the vectors, one after another.
fn play_host(turns: &[(Side, Vec<u8>)], digests: Digests, flow_control_disabled: bool) {
    let connect = Connect { queue_id: 1, queue_entries: 4, flow_control_disabled, keep_alive_ms: 0 };
    let data = ConnectData {
        host_id: HostId(std::array::from_fn(|index| u8::try_from(index).expect("16 bytes"))),
        cntlid: 0xFFFF,
        subsystem: Nqn::new("nqn.2019-05.io.openebs:vol").expect("valid"),
        host: Nqn::new("nqn.2014-08.org:host").expect("valid"),
    }
    .encode();
    let range = |lba, blocks| BlockRange { lba, blocks };
    let nvm = |command: NvmCommand| command.encode(Nsid(1));
    let read = nvm(NvmCommand::Read { range: range(0x0102_0304_0506_0708, 1), fua: false });
    let long_write = nvm(NvmCommand::Write { range: range(16, 16), fua: true });
    let short_write = nvm(NvmCommand::Write { range: range(7, 1), fua: false });
    let unknown = SubmissionEntry::new(0xFC, Nsid(1), [0; 6]);
    let mut commands = vec![
        (FabricsCommand::Connect(connect).encode(), HostTransfer::Write(&data)),
        (read, HostTransfer::Read { len: 512 }),
        (long_write, HostTransfer::Write(&WRITE_PATTERN)),
        (short_write, HostTransfer::Write(&WRITE_PATTERN[..512])),
        (unknown, HostTransfer::None),
    ]
    .into_iter();

    let mut session = HostSession::new(HostConfig { digests, r2t_max: 16, ..HostConfig::default() });
    let payload: std::cell::Cell<&[u8]> = std::cell::Cell::new(&[]);
    let mut statuses = Vec::new();
    let mut next = |session: &mut HostSession| {
        let Some((entry, transfer)) = commands.next() else { return };
        if let HostTransfer::Write(bytes) = transfer {
            payload.set(bytes);
        }
        assert_eq!(session.submit(entry, transfer), Ok(Tag(0)));
    };
    for (side, bytes) in turns {
        if *side == Side::Host {
            let said = session.outbox().drain_to_vec(|_| payload.get());
            assert_eq!(&said, bytes, "the host says what the vector has");
            continue;
        }
        session.set_in_capsule_bytes(4096);
        let mut input = &bytes[..];
        while let Some(event) = session.receive(&mut input) {
            match event {
                HostEvent::Initialised => next(&mut session),
                HostEvent::DataWanted(wanted) => session.send_data(wanted, payload.get()),
                HostEvent::Data { bytes, .. } => assert!(bytes.iter().all(|byte| *byte == 0xA5)),
                HostEvent::Completed { completion, is_intact, .. } => {
                    assert!(is_intact);
                    statuses.push(completion.status);
                    next(&mut session);
                }
                HostEvent::Ended(error) => panic!("{error}"),
            }
        }
    }
    let invalid = Status::INVALID_OPCODE.with_dnr();
    assert_eq!(statuses, [Status::SUCCESS, Status::SUCCESS, Status::SUCCESS, Status::SUCCESS, invalid]);
}

#[test]
fn a_queue_with_flow_control() {
    let turns = parse(include_str!("vectors/flow_control.hex"));
    play_target(&turns);
    play_host(&turns, Digests::default(), false);
}

#[test]
fn a_queue_without_flow_control_uses_the_success_flag() {
    let turns = parse(include_str!("vectors/success_flag.hex"));
    play_target(&turns);
    play_host(&turns, Digests::default(), true);
}

#[test]
fn a_queue_with_both_digests() {
    let turns = parse(include_str!("vectors/digests.hex"));
    play_target(&turns);
    play_host(&turns, Digests { header: true, data: true }, true);
}

#[test]
fn a_queue_with_header_digests_only() {
    let turns = parse(include_str!("vectors/header_digest.hex"));
    play_target(&turns);
    play_host(&turns, Digests { header: true, data: false }, false);
}
