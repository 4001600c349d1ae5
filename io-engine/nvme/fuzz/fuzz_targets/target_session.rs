//! Arbitrary PDUs, in any order, end in Ready or Terminating.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nvme::command::fabrics::{Connect, FabricsCommand};
use nvme::session::target::{TargetConfig, Transfer};
use nvme::session::{TargetEvent, TargetSession};
use nvme::Status;

fuzz_target!(|data: &[u8]| {
    let mut session = TargetSession::new(TargetConfig::default());
    let mut connect: Option<Connect> = None;
    let mut input = data;
    while let Some(event) = session.receive(&mut input) {
        match event {
            TargetEvent::Command { tag, entry, transfer } => {
                if let (true, Ok(FabricsCommand::Connect(command))) =
                    (entry.is_fabrics(), FabricsCommand::decode(&entry))
                {
                    connect = Some(command);
                }
                match transfer {
                    Transfer::FromHost { .. } => session.request_data(tag),
                    Transfer::ToHost { len } => session.complete_with_data(tag, &vec![0; len as usize], 0),
                    Transfer::None => session.complete(tag, Status::SUCCESS, 0),
                    Transfer::InCapsule { .. } => {}
                }
            }
            TargetEvent::DataEnd { tag, .. } => match connect.take() {
                Some(command) => session.accept_connect(tag, &command, 1),
                None => session.complete(tag, Status::SUCCESS, 0),
            },
            TargetEvent::Data { .. } | TargetEvent::Ended(_) => {}
        }
        session.outbox().clear();
    }
    assert!(input.is_empty());
});
