//! How a volume may be used: access modes and kinds.

use tonic::Status;

use crate::host::FileSystem;
use crate::proto::csi::VolumeCapability;
use crate::proto::csi::volume_capability::access_mode::Mode;
use crate::proto::csi::volume_capability::{AccessType, MountVolume};

/// What an application sees of a volume.
#[derive(Clone, Debug, PartialEq)]
pub enum Access {
    /// A block device.
    Block,
    /// A file system.
    Mount(MountVolume),
}

/// One use of a volume, complete and offered.
#[derive(Clone, Debug, PartialEq)]
pub struct Capability {
    /// What the application sees.
    pub access: Access,
    /// By whom.
    pub mode: Mode,
}

impl Capability {
    /// A capability that has all its parts. `InvalidArgument` names the missing one.
    pub fn parse(given: Option<&VolumeCapability>) -> Result<Self, Status> {
        let given = given.ok_or_else(|| Status::invalid_argument("volume_capability is missing"))?;
        let access = match &given.access_type {
            Some(AccessType::Block(_)) => Access::Block,
            Some(AccessType::Mount(mount)) => Access::Mount(mount.clone()),
            None => {
                return Err(Status::invalid_argument("volume_capability has no access type: block or mount"));
            }
        };
        let mode = given
            .access_mode
            .as_ref()
            .map_or(Mode::Unknown, crate::proto::csi::volume_capability::AccessMode::mode);
        if mode == Mode::Unknown {
            return Err(Status::invalid_argument("volume_capability has no access mode"));
        }
        Ok(Self { access, mode })
    }

    /// Why volumes cannot be used like this; `None` when they can.
    pub fn unsupported(&self) -> Option<String> {
        match self.mode {
            Mode::SingleNodeWriter
            | Mode::SingleNodeSingleWriter
            | Mode::SingleNodeMultiWriter
            | Mode::SingleNodeReaderOnly => {}
            mode => {
                return Some(format!(
                    "access mode {} is not offered: a volume is used on one node at a time",
                    mode.as_str_name()
                ));
            }
        }
        match &self.access {
            Access::Mount(mount) if !mount.fs_type.is_empty() => {
                mount.fs_type.parse::<FileSystem>().err().map(|error| error.to_string())
            }
            _ => None,
        }
    }
}

/// All capabilities of a request, at least one. `InvalidArgument` when one is missing or incomplete.
pub fn parse_all(given: &[VolumeCapability]) -> Result<Vec<Capability>, Status> {
    if given.is_empty() {
        return Err(Status::invalid_argument("volume_capabilities is missing"));
    }
    given.iter().map(|one| Capability::parse(Some(one))).collect()
}
