//! Pools.

use super::{FieldError, name, optional_uuid, uuid};
use crate::{
    proto,
    types::{CreatePool, ImportPool, Pool, PoolRef, PoolState},
};

/// The one disk of a pool.
fn disk(path: &'static str, mut disks: Vec<String>) -> Result<String, FieldError> {
    match disks.len() {
        1 if !disks[0].is_empty() => Ok(disks.remove(0)),
        1 => Err(FieldError::new(path, "the disk's path is empty")),
        0 => Err(FieldError::new(path, "a pool needs a disk")),
        more => Err(FieldError::new(path, format!("a pool has exactly one disk, not {more}"))),
    }
}

fn pool_type(path: &'static str, value: i32) -> Result<(), FieldError> {
    match proto::PoolType::try_from(value) {
        Ok(proto::PoolType::Lvs) => Ok(()),
        Ok(proto::PoolType::Lvm) => Err(FieldError::new(path, "this engine makes no pools on LVM")),
        Err(_) => Err(FieldError::new(path, format!("{value} is no pool type"))),
    }
}

impl TryFrom<proto::CreatePoolRequest> for CreatePool {
    type Error = FieldError;

    fn try_from(request: proto::CreatePoolRequest) -> Result<Self, FieldError> {
        pool_type("CreatePoolRequest.pooltype", request.pooltype)?;
        Ok(Self {
            name: name("CreatePoolRequest.name", request.name)?,
            uuid: optional_uuid("CreatePoolRequest.uuid", request.uuid.as_ref())?,
            disk: disk("CreatePoolRequest.disks", request.disks)?,
            cluster_bytes: request.cluster_size,
            cluster: optional_uuid("CreatePoolRequest.cluster_id", request.cluster_id.as_ref())?,
        })
    }
}

impl From<CreatePool> for proto::CreatePoolRequest {
    fn from(request: CreatePool) -> Self {
        Self {
            name: request.name,
            uuid: request.uuid.map(|uuid| uuid.to_string()),
            disks: vec![request.disk],
            pooltype: proto::PoolType::Lvs.into(),
            cluster_size: request.cluster_bytes,
            md_args: None,
            cluster_id: request.cluster.map(|uuid| uuid.to_string()),
        }
    }
}

impl TryFrom<proto::ImportPoolRequest> for ImportPool {
    type Error = FieldError;

    fn try_from(request: proto::ImportPoolRequest) -> Result<Self, FieldError> {
        pool_type("ImportPoolRequest.pooltype", request.pooltype)?;
        Ok(Self {
            name: name("ImportPoolRequest.name", request.name)?,
            uuid: optional_uuid("ImportPoolRequest.uuid", request.uuid.as_ref())?,
            disk: disk("ImportPoolRequest.disks", request.disks)?,
        })
    }
}

impl From<ImportPool> for proto::ImportPoolRequest {
    fn from(request: ImportPool) -> Self {
        Self {
            name: request.name,
            uuid: request.uuid.map(|uuid| uuid.to_string()),
            disks: vec![request.disk],
            pooltype: proto::PoolType::Lvs.into(),
        }
    }
}

impl TryFrom<proto::DestroyPoolRequest> for PoolRef {
    type Error = FieldError;

    fn try_from(request: proto::DestroyPoolRequest) -> Result<Self, FieldError> {
        let uuid = optional_uuid("DestroyPoolRequest.uuid", request.uuid.as_ref())?;
        Ok(Self { name: name("DestroyPoolRequest.name", request.name)?, uuid })
    }
}

impl From<PoolRef> for proto::DestroyPoolRequest {
    fn from(pool: PoolRef) -> Self {
        Self { name: pool.name, uuid: pool.uuid.map(|uuid| uuid.to_string()) }
    }
}

impl TryFrom<proto::ExportPoolRequest> for PoolRef {
    type Error = FieldError;

    fn try_from(request: proto::ExportPoolRequest) -> Result<Self, FieldError> {
        let uuid = optional_uuid("ExportPoolRequest.uuid", request.uuid.as_ref())?;
        Ok(Self { name: name("ExportPoolRequest.name", request.name)?, uuid })
    }
}

impl From<PoolRef> for proto::ExportPoolRequest {
    fn from(pool: PoolRef) -> Self {
        Self { name: pool.name, uuid: pool.uuid.map(|uuid| uuid.to_string()) }
    }
}

impl From<PoolState> for proto::PoolState {
    fn from(state: PoolState) -> Self {
        match state {
            PoolState::Unknown => Self::PoolUnknown,
            PoolState::Online => Self::PoolOnline,
            PoolState::Degraded => Self::PoolDegraded,
            PoolState::Faulted => Self::PoolFaulted,
        }
    }
}

impl From<proto::PoolState> for PoolState {
    fn from(state: proto::PoolState) -> Self {
        match state {
            proto::PoolState::PoolUnknown => Self::Unknown,
            proto::PoolState::PoolOnline => Self::Online,
            proto::PoolState::PoolDegraded => Self::Degraded,
            proto::PoolState::PoolFaulted => Self::Faulted,
        }
    }
}

impl From<Pool> for proto::Pool {
    fn from(pool: Pool) -> Self {
        Self {
            uuid: pool.uuid.to_string(),
            name: pool.name,
            disks: pool.disks,
            state: proto::PoolState::from(pool.state).into(),
            capacity: pool.capacity_bytes,
            used: pool.used_bytes,
            pooltype: proto::PoolType::Lvs.into(),
            committed: pool.committed_bytes,
            cluster_size: pool.cluster_bytes,
            page_size: None,
            disk_capacity: pool.disk_bytes,
            md_info: None,
            cluster_id: pool.cluster.map(|uuid| uuid.to_string()),
        }
    }
}

impl TryFrom<proto::Pool> for Pool {
    type Error = FieldError;

    fn try_from(pool: proto::Pool) -> Result<Self, FieldError> {
        Ok(Self {
            uuid: uuid("Pool.uuid", &pool.uuid)?,
            state: pool.state().into(),
            name: pool.name,
            disks: pool.disks,
            capacity_bytes: pool.capacity,
            used_bytes: pool.used,
            committed_bytes: pool.committed,
            cluster_bytes: pool.cluster_size,
            disk_bytes: pool.disk_capacity,
            cluster: optional_uuid("Pool.cluster_id", pool.cluster_id.as_ref())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(disks: &[&str]) -> proto::CreatePoolRequest {
        proto::CreatePoolRequest {
            name: "p".into(),
            disks: disks.iter().map(|&disk| disk.into()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_pool_has_exactly_one_disk() {
        for disks in [&[][..], &[""], &["/a", "/b"]] {
            let error = CreatePool::try_from(request(disks)).expect_err("not one disk");
            assert_eq!(error.path, "CreatePoolRequest.disks");
        }
        assert!(CreatePool::try_from(request(&["/a"])).is_ok());
    }

    #[test]
    fn a_bad_uuid_or_type_is_refused_and_the_field_named() {
        let bad = proto::CreatePoolRequest { uuid: Some("x".into()), ..request(&["/a"]) };
        assert_eq!(CreatePool::try_from(bad).expect_err("bad uuid").path, "CreatePoolRequest.uuid");
        let lvm = proto::CreatePoolRequest { pooltype: 1, ..request(&["/a"]) };
        assert_eq!(CreatePool::try_from(lvm).expect_err("lvm").path, "CreatePoolRequest.pooltype");
        let none = proto::CreatePoolRequest { pooltype: 7, ..request(&["/a"]) };
        assert_eq!(CreatePool::try_from(none).expect_err("7").path, "CreatePoolRequest.pooltype");
    }
}
