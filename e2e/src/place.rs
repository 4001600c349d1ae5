//! Where a server of the laboratory runs: on this machine's loopback address, or in a network namespace.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

/// A network namespace and the address of it on which a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    namespace: Option<String>,
    address: IpAddr,
}

impl Place {
    /// The network that the harness is in, on the loopback address.
    pub const fn loopback() -> Self {
        Self { namespace: None, address: IpAddr::V4(Ipv4Addr::LOCALHOST) }
    }

    /// The network that the harness is in, on `address`.
    pub const fn at(address: IpAddr) -> Self {
        Self { namespace: None, address }
    }

    /// The named network namespace (see `ip netns`), on `address`.
    pub const fn within(namespace: String, address: IpAddr) -> Self {
        Self { namespace: Some(namespace), address }
    }

    /// Where the server listens and clients connect.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// A command that will run there. `ip netns exec` becomes the program, so its process id is the program's.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let program = program.as_ref();
        match &self.namespace {
            None => Command::new(program),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(program);
                command
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_for_a_namespace_enters_it_first() {
        let place = Place::within("hub".to_owned(), "10.77.0.254".parse().unwrap());
        let command = place.command("/bin/etcd");
        let words: Vec<_> = command.get_args().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(command.get_program(), "ip");
        assert_eq!(words, ["netns", "exec", "hub", "/bin/etcd"]);
        assert_eq!(Place::loopback().command("/bin/etcd").get_program(), "/bin/etcd");
    }
}
