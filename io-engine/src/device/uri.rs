//! Names of devices: what a pool's disk list or a nexus' child list may say.
//!
//! ```text
//! /dev/sdb, aio:///dev/sdb?blk_size=512, uring:///path     a file or block device
//! malloc:///name?size_mb=64&blk_size=4096, null:///name…   memory; nothing
//! bdev:///name?uuid=…, loopback:///name                    a device of this engine, such as a replica
//! nvmf+tcp://host:8420/nqn?uuid=…                          a namespace of another engine
//! ```
//! A parameter that a scheme does not know is refused by name, except for NVMe over Fabrics, where other systems add
//! their own.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use uuid::Uuid;

/// Port of a replica or nexus target where the address names none.
pub const NVMF_PORT_DEFAULT: u16 = 8420;
const BLOCK_BYTES_DEFAULT: u32 = 512;

/// Why a text is not a device.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UriError {
    /// Neither an absolute path nor `scheme://…`.
    #[error("{0:?} is neither an absolute path nor a URI")]
    NotAUri(String),
    /// A scheme that is not served.
    #[error("devices of scheme {0:?} are not supported")]
    UnknownScheme(String),
    /// A parameter that the scheme does not know.
    #[error("{scheme} devices have no parameter {name:?}")]
    UnknownParameter {
        /// The scheme.
        scheme: String,
        /// The parameter.
        name: String,
    },
    /// A parameter with a value that makes no sense.
    #[error("parameter {name}={value:?}: {why}")]
    BadParameter {
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is expected.
        why: &'static str,
    },
    /// Something that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
}

/// How a file is asked for; both are opened alike, through the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileScheme {
    /// A bare path or `aio://`.
    Aio,
    /// `uring://`.
    Uring,
}

/// Shape of a device that exists only in this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volatile {
    /// Its name.
    pub name: String,
    /// Length in bytes, a multiple of the block size.
    pub len_bytes: u64,
    /// 512 or 4096.
    pub block_bytes: u32,
    /// Its UUID, if one was asked for.
    pub uuid: Option<Uuid>,
}

/// A device by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceUri {
    /// A file or block device.
    File {
        /// Absolute path.
        path: PathBuf,
        /// How it was asked for.
        scheme: FileScheme,
        /// Logical block size, 512 or 4096; that of the device where absent.
        block_bytes: Option<u32>,
        /// UUID to be shown for it.
        uuid: Option<Uuid>,
    },
    /// A RAM disk.
    Malloc(Volatile),
    /// Discards writes, reads zeroes.
    Null(Volatile),
    /// A device of this engine.
    Bdev {
        /// Its name.
        name: String,
        /// Its UUID, which the nexus takes for the child's.
        uuid: Option<Uuid>,
    },
    /// A namespace over NVMe/TCP.
    Nvmf {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// Subsystem.
        nqn: String,
        /// UUID of the namespace, which the nexus takes for the child's.
        uuid: Option<Uuid>,
        /// Host NQN to connect with, if not the engine's own.
        host_nqn: Option<String>,
    },
}

/// Parameters that were not asked for yet.
struct Parameters {
    scheme: String,
    values: BTreeMap<String, String>,
}

impl Parameters {
    fn parse(scheme: &str, query: Option<&str>) -> Self {
        let values = query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (decode(name), decode(value)))
            .collect();
        Self { scheme: scheme.to_owned(), values }
    }

    fn take<T: std::str::FromStr>(
        &mut self,
        name: &'static str,
        why: &'static str,
    ) -> Result<Option<T>, UriError> {
        let Some(value) = self.values.remove(name) else { return Ok(None) };
        value.parse().map(Some).map_err(|_| UriError::BadParameter { name, value, why })
    }

    fn take_uuid(&mut self) -> Result<Option<Uuid>, UriError> {
        self.take("uuid", "expected a UUID")
    }

    fn take_block_bytes(&mut self) -> Result<Option<u32>, UriError> {
        const NAME: &str = "blk_size";
        const WHY: &str = "block sizes are 512 and 4096";
        match self.take::<u32>(NAME, WHY)? {
            None | Some(0) => Ok(None),
            Some(size @ (512 | 4096)) => Ok(Some(size)),
            Some(other) => Err(UriError::BadParameter { name: NAME, value: other.to_string(), why: WHY }),
        }
    }

    /// Refuses what is left.
    fn finish(self) -> Result<(), UriError> {
        match self.values.into_keys().next() {
            Some(name) => Err(UriError::UnknownParameter { scheme: self.scheme, name }),
            None => Ok(()),
        }
    }
}

/// Replaces `%41` by `A`; what is no valid escape stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'%')
            .then(|| tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Volatile {
    fn parse(name: String, parameters: &mut Parameters) -> Result<Self, UriError> {
        if name.is_empty() {
            return Err(UriError::Missing("the device's name"));
        }
        let block_bytes = parameters.take_block_bytes()?.unwrap_or(BLOCK_BYTES_DEFAULT);
        let size_mb: Option<u32> = parameters.take("size_mb", "expected a number of MiB")?;
        let blocks: Option<u32> = parameters.take("num_blocks", "expected a number of blocks")?;
        let uuid = parameters.take_uuid()?;
        // Accepted for the tests of other tools; a RAM disk here never changes its size.
        parameters.take::<String>("resize", "")?;
        let len_bytes = match (size_mb.filter(|size| *size > 0), blocks.filter(|blocks| *blocks > 0)) {
            (Some(size), None) => u64::from(size) << 20,
            (None, Some(blocks)) => u64::from(blocks) * u64::from(block_bytes),
            (None, None) => return Err(UriError::Missing("size_mb or num_blocks")),
            (Some(_), Some(blocks)) => {
                let why = "give size_mb or num_blocks, not both";
                return Err(UriError::BadParameter { name: "num_blocks", value: blocks.to_string(), why });
            }
        };
        Ok(Self { name, len_bytes, block_bytes, uuid })
    }
}

impl std::str::FromStr for DeviceUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if text.starts_with('/') {
            let path = PathBuf::from(text);
            return Ok(Self::File { path, scheme: FileScheme::Aio, block_bytes: None, uuid: None });
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(|| UriError::NotAUri(text.to_owned()))?;
        let (place, query) = match rest.split_once('?') {
            Some((place, query)) => (place, Some(query)),
            None => (rest, None),
        };
        let mut parameters = Parameters::parse(scheme, query);
        let (host, path) = place.split_once('/').map_or((place, ""), |(host, path)| (host, path));
        let (path, is_local) = (decode(path), host.is_empty());
        let uri = match scheme {
            "aio" | "uring" => {
                if !is_local || path.is_empty() {
                    return Err(UriError::Missing("an absolute path"));
                }
                parameters.take::<String>("rescan", "")?;
                Self::File {
                    path: PathBuf::from(format!("/{path}")),
                    scheme: if scheme == "aio" { FileScheme::Aio } else { FileScheme::Uring },
                    block_bytes: parameters.take_block_bytes()?,
                    uuid: parameters.take_uuid()?,
                }
            }
            "malloc" => Self::Malloc(Volatile::parse(path, &mut parameters)?),
            "null" => Self::Null(Volatile::parse(path, &mut parameters)?),
            "bdev" | "loopback" => {
                if !is_local || path.is_empty() {
                    return Err(UriError::Missing("the device's name"));
                }
                Self::Bdev { name: path, uuid: parameters.take_uuid()? }
            }
            "nvmf" | "nvmf+tcp" => {
                let uri = parse_nvmf(host, path, &mut parameters)?;
                parameters.values.clear();
                uri
            }
            other => return Err(UriError::UnknownScheme(other.to_owned())),
        };
        parameters.finish()?;
        Ok(uri)
    }
}

fn parse_nvmf(authority: &str, nqn: String, parameters: &mut Parameters) -> Result<DeviceUri, UriError> {
    // An IPv6 address stands in brackets, so the last colon outside of them starts the port.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            let number = port.parse().map_err(|_| UriError::BadParameter {
                name: "port",
                value: port.to_owned(),
                why: "expected a TCP port",
            })?;
            (host, number)
        }
        _ => (authority, NVMF_PORT_DEFAULT),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(UriError::Missing("the target's host"));
    }
    if nqn.is_empty() {
        return Err(UriError::Missing("the subsystem's NQN"));
    }
    Ok(DeviceUri::Nvmf {
        host: host.to_owned(),
        port,
        nqn,
        uuid: parameters.take_uuid()?,
        host_nqn: parameters.take("hostnqn", "expected an NQN")?,
    })
}

impl DeviceUri {
    /// The UUID that the name carries.
    pub fn uuid(&self) -> Option<Uuid> {
        match self {
            Self::File { uuid, .. } | Self::Bdev { uuid, .. } | Self::Nvmf { uuid, .. } => *uuid,
            Self::Malloc(volatile) | Self::Null(volatile) => volatile.uuid,
        }
    }
}

impl fmt::Display for DeviceUri {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parameters = Vec::new();
        match self {
            Self::File { path, scheme, block_bytes, .. } => {
                let scheme = if *scheme == FileScheme::Aio { "aio" } else { "uring" };
                write!(out, "{scheme}://{}", path.display())?;
                parameters.extend(block_bytes.map(|size| format!("blk_size={size}")));
            }
            Self::Malloc(volatile) | Self::Null(volatile) => {
                let scheme = if matches!(self, Self::Malloc(_)) { "malloc" } else { "null" };
                write!(out, "{scheme}:///{}", volatile.name)?;
                parameters
                    .push(format!("num_blocks={}", volatile.len_bytes / u64::from(volatile.block_bytes)));
                parameters.push(format!("blk_size={}", volatile.block_bytes));
            }
            Self::Bdev { name, .. } => write!(out, "bdev:///{name}")?,
            Self::Nvmf { host, port, nqn, host_nqn, .. } => {
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(out, "nvmf+tcp://{open}{host}{close}:{port}/{nqn}")?;
                parameters.extend(host_nqn.as_ref().map(|host| format!("hostnqn={host}")));
            }
        }
        parameters.extend(self.uuid().map(|uuid| format!("uuid={uuid}")));
        if !parameters.is_empty() {
            write!(out, "?{}", parameters.join("&"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "5a0ff1b4-8d3a-4b5e-9d0f-3b8a1c2d4e5f";

    fn parse(text: &str) -> DeviceUri {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn every_scheme_is_read_and_printed_alike() {
        for text in [
            "aio:///dev/sdb",
            "uring:///var/disk.img?blk_size=4096",
            "malloc:///disk0?num_blocks=131072&blk_size=512",
            "null:///n?num_blocks=1&blk_size=4096",
            "bdev:///replica-1?uuid=5a0ff1b4-8d3a-4b5e-9d0f-3b8a1c2d4e5f",
            "nvmf+tcp://10.0.0.1:8420/nqn.2019-05.io.openebs:r?uuid=5a0ff1b4-8d3a-4b5e-9d0f-3b8a1c2d4e5f",
            "nvmf+tcp://[fd00::1]:4420/nqn.2019-05.io.openebs:r?hostnqn=nqn.2014-08.org.nvmexpress:h",
        ] {
            assert_eq!(parse(text).to_string(), text);
        }
        assert_eq!(parse("/dev/sdb"), parse("aio:///dev/sdb"));
        assert_eq!(parse("loopback:///r"), parse("bdev:///r"));
        assert_eq!(parse("malloc:///d?size_mb=64"), parse("malloc:///d?num_blocks=131072"));
        assert_eq!(parse("nvmf://h/nqn.a:b").to_string(), "nvmf+tcp://h:8420/nqn.a:b");
        assert_eq!(parse(&format!("bdev:///r?uuid={UUID}")).uuid(), Some(UUID.parse().unwrap()));
        assert_eq!(
            parse("aio:///a%20b"),
            DeviceUri::File { path: "/a b".into(), scheme: FileScheme::Aio, block_bytes: None, uuid: None }
        );
    }

    #[test]
    fn what_a_scheme_does_not_know_is_refused_by_name() {
        let refusal = |text: &str| text.parse::<DeviceUri>().expect_err(text).to_string();
        assert_eq!(refusal("aio:///dev/sdb?size_mb=1"), "aio devices have no parameter \"size_mb\"");
        assert_eq!(refusal("malloc:///d?size_mb=1&sise=2"), "malloc devices have no parameter \"sise\"");
        assert_eq!(refusal("bdev:///r?blk_size=512"), "bdev devices have no parameter \"blk_size\"");
        assert_eq!(refusal("pcie:///0000:00:01.0"), "devices of scheme \"pcie\" are not supported");
        assert_eq!(refusal("sdb"), "\"sdb\" is neither an absolute path nor a URI");
        assert_eq!(refusal("malloc:///d"), "size_mb or num_blocks is missing");
        assert_eq!(refusal("malloc:///?size_mb=1"), "the device's name is missing");
        assert_eq!(refusal("aio://dev/sdb"), "an absolute path is missing");
        assert_eq!(refusal("nvmf://10.0.0.1"), "the subsystem's NQN is missing");
        assert!(refusal("malloc:///d?size_mb=1&blk_size=1024").contains("512 and 4096"));
        assert!(refusal("malloc:///d?size_mb=1&num_blocks=9").contains("not both"));
        assert!(refusal("bdev:///r?uuid=7").contains("expected a UUID"));
        // Other systems put their own parameters on fabrics addresses.
        parse("nvmf://h/nqn.a:b?whatever=1");
    }
}
