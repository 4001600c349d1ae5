//! The discovery subsystem: a log of what the asking host may use, and nothing else (SAFETY C8).

use nvme::log_page::{self, DiscoveryEntry};

use super::Shared;
use super::controller::Controller;
use super::export::Export;

/// The one port.
const PORT_ID: u16 = 1;

/// The log as the host of `controller` may see it, with the address that it reached us at.
pub(super) fn log<E: Export>(shared: &Shared<E>, controller: &Controller<E>) -> Vec<u8> {
    let subsystems = shared.subsystems.borrow();
    let entries: Vec<_> = subsystems
        .values()
        .filter(|subsystem| subsystem.admits(&controller.host))
        .map(|subsystem| DiscoveryEntry {
            subsystem: subsystem.nqn.clone(),
            address: controller.reached_at,
            port_id: PORT_ID,
        })
        .collect();
    log_page::encode_discovery(shared.generation.get(), &entries)
}
