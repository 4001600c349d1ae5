//! Thread-per-core runtime of the data path: one model, two drivers.
//!
//! ```text
//!                 tasks: spawn, sleep, File, TcpStream, mailbox      (the same code on both)
//!                                   |
//!                               Context (thread-local: executor, timers, driver)
//!                      /                                  \
//!        Shard: a thread with an io_uring        sim::Sim: a seeded world of nodes, disks, network
//! ```
//!
//! A *shard* is one thread with one executor and one io_uring. Its tasks are not `Send`, nothing in them is locked, and
//! no task is ever moved to another shard; shards and the tokio world talk through [`mailbox`]es. The functions of this
//! crate are ambient: they find the shard (or simulated node) of the running task in a thread-local.
//!
//! Invariants:
//! - memory and descriptors that the kernel may touch belong to the driver from submission to completion; a future that
//!   is dropped earlier leaves them there (see `driver::uring`);
//! - time and randomness come from here alone, so that a simulated run is a function of its seed;
//! - an idle shard sleeps in the kernel and uses no CPU.
//!
//! Deliberately absent: work stealing, blocking helper threads, and any wall-clock time.
#![warn(missing_docs)]

pub mod buffer;
mod clock;
mod context;
mod driver;
mod executor;
mod file;
pub mod mailbox;
mod net;
mod shard;
pub mod sim;
mod task;
mod timer;

pub use buffer::{IoBuf, IoBytes};
pub use clock::{Instant, boot_id, now, random_bytes, random_u64, random_uuid_bytes};
pub use file::{File, FileMeta, OpenOptions, WriteFlags};
pub use mailbox::mailbox;
pub use net::{TcpListener, TcpStream};
pub use shard::{Shard, ShardHandle, ShardOptions, block_on};
pub use task::{Aborted, JoinHandle, spawn, yield_now};
pub use timer::{Elapsed, Sleep, sleep, sleep_until, timeout};
