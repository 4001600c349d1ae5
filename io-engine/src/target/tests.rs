//! The target as hosts see it, in simulated worlds and over the loopback device.

mod admin;
mod connect;
mod io;
mod reserve;
mod robust;
