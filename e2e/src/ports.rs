//! Free TCP ports on the loopback address.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};

/// Ports are taken from below Linux's default range for outgoing connections (32768..60999), so that no connection
/// made between picking a port and listening on it can take it.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// How many ports of this process have been tried. Test processes start at places of their own, by process id.
static TRIED: AtomicU16 = AtomicU16::new(0);

/// A TCP port of 127.0.0.1 on which nothing listens now. No two calls in one process return the same port before
/// the whole range has been handed out.
pub fn free_port() -> Result<u16> {
    let start = u16::try_from(std::process::id() * 61 % u32::from(COUNT))?;
    for _ in 0..COUNT {
        let tried = TRIED.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + (start + tried) % COUNT;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("every TCP port from {FIRST} to {} of 127.0.0.1 is taken", FIRST + COUNT - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two servers started one after the other must not be given the same port, although neither listens yet.
    #[test]
    fn two_calls_give_two_ports() {
        assert_ne!(free_port().unwrap(), free_port().unwrap());
    }
}
