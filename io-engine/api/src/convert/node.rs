//! Nodes, their disks and counters.

use super::{FieldError, optional_uuid};
use crate::{
    proto,
    types::{BlockDevice, Features, Filesystem, NodeInfo, Partition, ResourceUsage},
};

/// The unit of the size on the wire, whatever the device's own block size is.
const SECTOR_BYTES: u64 = 512;

impl From<NodeInfo> for proto::RegisterRequest {
    fn from(info: NodeInfo) -> Self {
        Self {
            id: info.node,
            grpc_endpoint: info.grpc_endpoint,
            instance_uuid: info.instance.map(|uuid| uuid.to_string()),
            api_version: vec![proto::ApiVersion::V1.into()],
            hostnqn: info.host_nqn,
            features: Some(proto::MayastorFeatures {
                asymmetric_namespace_access: info.features.ana,
                logical_volume_manager: Some(info.features.lvm),
                snapshot_rebuild: Some(info.features.snapshot_rebuild),
                rdma_capable_io_engine: Some(info.features.rdma),
            }),
            bugfixes: Some(proto::MayastorBugFixes {
                nexus_rebuild_replica_ancestry: info.features.rebuild_copies_ancestors,
            }),
            version: Some(info.version),
        }
    }
}

impl TryFrom<proto::RegisterRequest> for NodeInfo {
    type Error = FieldError;

    fn try_from(request: proto::RegisterRequest) -> Result<Self, FieldError> {
        let features = request.features.unwrap_or_default();
        Ok(Self {
            node: super::name("RegisterRequest.id", request.id)?,
            grpc_endpoint: super::name("RegisterRequest.grpc_endpoint", request.grpc_endpoint)?,
            instance: optional_uuid("RegisterRequest.instance_uuid", request.instance_uuid.as_ref())?,
            host_nqn: request.hostnqn.filter(|nqn| !nqn.is_empty()),
            features: Features {
                ana: features.asymmetric_namespace_access,
                lvm: features.logical_volume_manager.unwrap_or(false),
                snapshot_rebuild: features.snapshot_rebuild.unwrap_or(false),
                rdma: features.rdma_capable_io_engine.unwrap_or(false),
                rebuild_copies_ancestors: request
                    .bugfixes
                    .is_some_and(|fixes| fixes.nexus_rebuild_replica_ancestry),
            },
            version: request.version.unwrap_or_default(),
        })
    }
}

impl From<NodeInfo> for proto::MayastorInfoResponse {
    fn from(info: NodeInfo) -> Self {
        Self {
            version: info.version.clone(),
            previous_features: Some(proto::BackCompatMayastorFeatures {
                asymmetric_namespace_access: info.features.ana,
            }),
            registration_info: Some(info.into()),
        }
    }
}

impl TryFrom<proto::MayastorInfoResponse> for NodeInfo {
    type Error = FieldError;

    fn try_from(answer: proto::MayastorInfoResponse) -> Result<Self, FieldError> {
        let registration = answer
            .registration_info
            .ok_or_else(|| FieldError::new("MayastorInfoResponse.registration_info", "is missing"))?;
        let info = Self::try_from(registration)?;
        Ok(Self { version: answer.version, ..info })
    }
}

impl From<BlockDevice> for proto::BlockDevice {
    fn from(device: BlockDevice) -> Self {
        Self {
            devname: device.name,
            devtype: device.kind,
            devmajor: device.number.0,
            devminor: device.number.1,
            model: device.model,
            devpath: device.sysfs_path,
            devlinks: device.links,
            size: device.size_bytes / SECTOR_BYTES,
            partition: device.partition.map(|partition| proto::block_device::Partition {
                parent: partition.parent,
                number: partition.number,
                name: partition.name,
                scheme: partition.scheme,
                typeid: partition.type_id,
                uuid: partition.uuid,
            }),
            filesystem: device.filesystem.map(|filesystem| proto::block_device::Filesystem {
                fstype: filesystem.kind,
                label: filesystem.label,
                uuid: filesystem.uuid,
                mountpoints: filesystem.mountpoints,
            }),
            available: device.is_available,
            connection_type: device.connection,
            is_rotational: device.is_rotational,
        }
    }
}

impl From<proto::BlockDevice> for BlockDevice {
    fn from(device: proto::BlockDevice) -> Self {
        Self {
            name: device.devname,
            kind: device.devtype,
            number: (device.devmajor, device.devminor),
            model: device.model,
            sysfs_path: device.devpath,
            links: device.devlinks,
            size_bytes: device.size.saturating_mul(SECTOR_BYTES),
            partition: device.partition.map(|partition| Partition {
                parent: partition.parent,
                number: partition.number,
                name: partition.name,
                scheme: partition.scheme,
                type_id: partition.typeid,
                uuid: partition.uuid,
            }),
            filesystem: device.filesystem.map(|filesystem| Filesystem {
                kind: filesystem.fstype,
                label: filesystem.label,
                uuid: filesystem.uuid,
                mountpoints: filesystem.mountpoints,
            }),
            is_available: device.available,
            connection: device.connection_type,
            is_rotational: device.is_rotational,
        }
    }
}

impl From<ResourceUsage> for proto::ResourceUsage {
    fn from(usage: ResourceUsage) -> Self {
        Self {
            soft_faults: usage.soft_faults,
            hard_faults: usage.hard_faults,
            swaps: usage.swaps,
            in_block_ops: usage.in_block_ops,
            out_block_ops: usage.out_block_ops,
            ipc_msg_send: usage.ipc_sent,
            ipc_msg_rcv: usage.ipc_received,
            signals: usage.signals,
            vol_csw: usage.voluntary_switches,
            invol_csw: usage.involuntary_switches,
        }
    }
}

impl From<proto::ResourceUsage> for ResourceUsage {
    fn from(usage: proto::ResourceUsage) -> Self {
        Self {
            soft_faults: usage.soft_faults,
            hard_faults: usage.hard_faults,
            swaps: usage.swaps,
            in_block_ops: usage.in_block_ops,
            out_block_ops: usage.out_block_ops,
            ipc_sent: usage.ipc_msg_send,
            ipc_received: usage.ipc_msg_rcv,
            signals: usage.signals,
            voluntary_switches: usage.vol_csw,
            involuntary_switches: usage.invol_csw,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_of_an_older_engine_lacks_what_it_does_not_know() {
        let old = proto::RegisterRequest {
            id: "n1".into(),
            grpc_endpoint: "10.0.0.1:10124".into(),
            ..Default::default()
        };
        let info = NodeInfo::try_from(old).expect("name and endpoint are enough");
        assert_eq!((info.instance, info.host_nqn, info.features), (None, None, Features::default()));
    }

    #[test]
    fn sizes_travel_in_sectors_and_arrive_in_bytes() {
        let device = BlockDevice { size_bytes: 1 << 30, ..Default::default() };
        let wire = proto::BlockDevice::from(device.clone());
        assert_eq!(wire.size, (1 << 30) / 512);
        assert_eq!(BlockDevice::from(wire), device);
    }
}
