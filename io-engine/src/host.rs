//! The machine: its disks, its network interfaces, and what the kernel counts for this process.
//!
//! Everything here looks and changes nothing. Reads of the kernel's files and of disks may block, so callers run them
//! where blocking is allowed.

pub mod interface;
pub mod inventory;
mod mounts;

use engine_api::ResourceUsage;
use nix::sys::resource::{UsageWho, getrusage};

/// What the kernel has counted for this process.
pub fn resource_usage() -> std::io::Result<ResourceUsage> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    Ok(ResourceUsage {
        soft_faults: usage.minor_page_faults(),
        hard_faults: usage.major_page_faults(),
        swaps: usage.full_swaps(),
        in_block_ops: usage.block_reads(),
        out_block_ops: usage.block_writes(),
        ipc_sent: usage.ipc_sends(),
        ipc_received: usage.ipc_receives(),
        signals: usage.signals(),
        voluntary_switches: usage.voluntary_context_switches(),
        involuntary_switches: usage.involuntary_context_switches(),
    })
}
