//! NVMe and NVMe/TCP without I/O: types of the specifications, and one session machine per side of a queue.
//!
//! ```text
//!   bytes in ──> framing ──> session ──> events (commands, data, completions)
//!   bytes out <── outbox <── session <── calls (complete, request data, submit)
//! ```
//!
//! Nothing here reads a clock, a socket or a device, and no payload is copied or kept: received data passes as slices
//! of the bytes that were handed in, sent data as ranges of the caller's buffer. Allocation is bounded by the queue
//! depth, whatever the peer sends.
//!
//! Sections are cited as *base* (NVM Express Base Specification 2.0), *nvm* (NVM Command Set Specification 1.0),
//! *fabrics* (NVM Express over Fabrics 1.1, whose text is part of base 2.0) and *nvme-tcp* (TCP Transport
//! Specification 1.0). Controllers say version 1.4; a field that only 2.0 knows is named where it is used.
//!
//! Deliberately absent: metadata and protection information, fused commands, namespace management, in-band
//! authentication and TLS.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod ana;
pub mod codec;
pub mod command;
pub mod completion;
pub mod feature;
pub mod framing;
pub mod identify;
pub mod log_page;
pub mod node;
pub mod nqn;
pub mod outbox;
pub mod pdu;
pub mod property;
pub mod session;
pub mod sgl;
pub mod status;

pub use command::{CommandId, Nsid, SubmissionEntry};
pub use completion::CompletionEntry;
pub use nqn::{HostId, Nqn};
pub use outbox::{Outbox, Part, Tag};
pub use status::Status;
