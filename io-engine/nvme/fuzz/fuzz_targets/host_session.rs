//! Arbitrary bytes from a controller end in a live session or in Terminating.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nvme::session::host::{HostConfig, HostTransfer};
use nvme::session::{HostEvent, HostSession};
use nvme::{Nsid, SubmissionEntry};

fuzz_target!(|data: &[u8]| {
    let mut session = HostSession::new(HostConfig::default());
    let payload = [0; 20_000];
    let mut input = data;
    while let Some(event) = session.receive(&mut input) {
        match event {
            HostEvent::Initialised => {
                let connect = nvme::command::fabrics::FabricsCommand::Disconnect;
                let _ = session.submit(connect.encode(), HostTransfer::None);
            }
            HostEvent::DataWanted(wanted) => session.send_data(wanted, &payload),
            HostEvent::Completed { .. } => {
                let entry = SubmissionEntry::new(1, Nsid(1), [0; 6]);
                let _ = session.submit(entry, HostTransfer::Write(&payload));
            }
            HostEvent::Data { .. } | HostEvent::Ended(_) => {}
        }
        session.outbox().clear();
    }
    assert!(input.is_empty());
});
