//! The address that a target is served on, by the names an administrator has for it.

use std::net::{IpAddr, Ipv4Addr};

use nix::ifaddrs::{InterfaceAddress, getifaddrs};

/// Why no address was found.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// Not one of the forms.
    #[error("give an address, or ip:<address>, name:<interface>, mac:<address> or subnet:<address>/<bits>")]
    Form,
    /// The kernel did not list its interfaces.
    #[error("list network interfaces")]
    List(#[source] std::io::Error),
    /// Nothing fits.
    #[error("no interface with an IPv4 address fits; there are {present}")]
    None {
        /// What there is.
        present: String,
    },
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Ip(IpAddr),
    Name(String),
    Mac(String),
    Subnet(Ipv4Addr, u32),
}

impl Wanted {
    fn parse(text: &str) -> Option<Self> {
        if let Ok(ip) = text.parse() {
            return Some(Self::Ip(ip));
        }
        let (form, value) = text.split_once(':')?;
        match form {
            "ip" => value.parse().ok().map(Self::Ip),
            "name" if !value.is_empty() => Some(Self::Name(value.to_owned())),
            "mac" if value.split(':').count() == 6 => Some(Self::Mac(value.to_lowercase())),
            "subnet" => {
                let (network, bits) = value.split_once('/')?;
                let bits = bits.parse().ok().filter(|bits| *bits <= 32)?;
                Some(Self::Subnet(network.parse().ok()?, bits))
            }
            _ => None,
        }
    }
}

fn is_within(ip: Ipv4Addr, network: Ipv4Addr, bits: u32) -> bool {
    let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
    u32::from(ip) & mask == u32::from(network) & mask
}

fn ipv4(interface: &InterfaceAddress) -> Option<Ipv4Addr> {
    Some(interface.address.as_ref()?.as_sockaddr_in()?.ip())
}

/// The address for `text`: itself, or that of the interface it names.
pub fn address(text: &str) -> Result<IpAddr, InterfaceError> {
    let wanted = Wanted::parse(text).ok_or(InterfaceError::Form)?;
    if let Wanted::Ip(ip) = wanted {
        return Ok(ip);
    }
    let all: Vec<_> = getifaddrs().map_err(|error| InterfaceError::List(error.into()))?.collect();
    let name = match &wanted {
        Wanted::Name(name) => Some(name.clone()),
        Wanted::Mac(mac) => {
            let has_mac = |interface: &&InterfaceAddress| {
                let link = interface.address.as_ref().and_then(|address| address.as_link_addr());
                link.is_some_and(|link| link.to_string().to_lowercase() == *mac)
            };
            all.iter().find(has_mac).map(|interface| interface.interface_name.clone())
        }
        Wanted::Ip(_) | Wanted::Subnet(..) => None,
    };
    let fits = |interface: &&InterfaceAddress| match (&wanted, ipv4(interface)) {
        (_, None) => false,
        (Wanted::Subnet(network, bits), Some(ip)) => is_within(ip, *network, *bits),
        (_, Some(_)) => Some(&interface.interface_name) == name.as_ref(),
    };
    all.iter().find(fits).and_then(ipv4).map(IpAddr::V4).ok_or_else(|| {
        let present = all.iter().filter_map(|it| Some(format!("{} ({})", it.interface_name, ipv4(it)?)));
        InterfaceError::None { present: present.collect::<Vec<_>>().join(", ") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_named_in_several_ways() {
        let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
        for text in ["127.0.0.1", "ip:127.0.0.1", "name:lo", "subnet:127.0.0.0/8"] {
            assert_eq!(address(text).expect(text), localhost, "{text}");
        }
    }

    #[test]
    fn what_does_not_exist_is_refused_with_what_does() {
        let error = address("name:nowhere0").expect_err("there is none").to_string();
        assert!(error.contains("lo (127.0.0.1)"), "{error}");
        for text in ["", "eth0", "name:", "mac:1:2", "subnet:10.0.0.0", "subnet:10.0.0.0/33"] {
            assert!(matches!(address(text), Err(InterfaceError::Form)), "{text}");
        }
    }

    #[test]
    fn a_subnet_holds_its_addresses_and_no_others() {
        let ip = Ipv4Addr::new(10, 1, 2, 3);
        assert!(is_within(ip, Ipv4Addr::new(10, 1, 0, 0), 16));
        assert!(!is_within(ip, Ipv4Addr::new(10, 2, 0, 0), 16));
        assert!(is_within(ip, Ipv4Addr::UNSPECIFIED, 0));
        assert!(!is_within(ip, Ipv4Addr::new(10, 1, 2, 4), 32));
    }
}
