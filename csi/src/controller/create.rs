//! `CreateVolume`.

use std::collections::{BTreeMap, BTreeSet};

use control_api::{AffinityGroup, CreateVolumeBody, ErrorKind, SpecStatus, Volume, VolumePolicy};
use tonic::Status;
use tracing::info;
use uuid::Uuid;

use super::volume::{CSI_NODE_LABEL, NODE_NAME_LABEL, id_of_name, shape};
use super::{ControllerService, modify};
use crate::capability::parse_all;
use crate::error::status;
use crate::params::Params;
use crate::proto::csi;

/// What a request without a size gets.
const DEFAULT_BYTES: u64 = 1 << 30;
/// Sizes are whole units of this.
const UNIT_BYTES: u64 = 1 << 20;

impl ControllerService {
    pub(super) async fn create(
        &self,
        request: csi::CreateVolumeRequest,
    ) -> Result<csi::CreateVolumeResponse, Status> {
        if request.name.is_empty() {
            return Err(Status::invalid_argument("name is missing"));
        }
        for capability in parse_all(&request.volume_capabilities)? {
            if let Some(why) = capability.unsupported() {
                return Err(Status::invalid_argument(why));
            }
        }
        if request.volume_content_source.is_some() {
            return Err(Status::unimplemented(
                "volumes from snapshots or volumes are not offered in this version",
            ));
        }
        let mut params =
            Params::parse(&request.parameters).map_err(|e| Status::invalid_argument(e.to_string()))?;
        if let Some(replicas) = modify::replicas_of(&request.mutable_parameters)? {
            params.replicas = replicas;
        }
        let wished = wished_labels(request.accessibility_requirements.as_ref())?;
        params.keep_to(wished).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let group = params.affinity_group().map_err(|e| Status::invalid_argument(e.to_string()))?;
        let group = group.map(|id| AffinityGroup { id });
        let range = SizeRange::of(request.capacity_range.as_ref())?;
        let id = id_of_name(&request.name);
        let _work = self.begin(id)?;
        let volume = match self.client.volume(id).await {
            Ok(found) => found,
            Err(error) if error.kind() == Some(ErrorKind::NotFound) => {
                match self
                    .client
                    .create_volume(id, &body(&request.name, &params, group.clone(), range.wanted))
                    .await
                {
                    Ok(made) => {
                        info!(volume.id = %id, name = request.name, "volume made");
                        made
                    }
                    // Made by a call whose answer was lost, while this one was on its way.
                    Err(error) if error.kind() == Some(ErrorKind::AlreadyExists) => {
                        self.client.volume(id).await.map_err(|error| status(&error))?
                    }
                    Err(error) => return Err(status(&error)),
                }
            }
            Err(error) => return Err(status(&error)),
        };
        ensure_as_asked(id, &volume, &params, group.as_ref(), &range)?;
        Ok(csi::CreateVolumeResponse { volume: Some(shape(&volume, request.parameters)) })
    }
}

fn body(name: &str, params: &Params, affinity_group: Option<AffinityGroup>, size: u64) -> CreateVolumeBody {
    let mut labels = BTreeMap::from([
        ("openebs.io/created-by".to_owned(), crate::identity::DRIVER.to_owned()),
        ("openebs.io/csi-name".to_owned(), name.chars().take(63).collect()),
    ]);
    if let Some((namespace, claim)) = &params.claim {
        labels.insert("openebs.io/pvc".to_owned(), format!("{namespace}/{claim}"));
    }
    CreateVolumeBody {
        policy: VolumePolicy { self_heal: true },
        replicas: params.replicas,
        size,
        thin: params.thin,
        topology: Some(params.topology.clone())
            .filter(|topology| *topology != control_api::Topology::default()),
        affinity_group,
        labels: Some(labels),
    }
}

/// The labels of nodes that `allowedTopologies` of a class asks for. What csi-node says of its node says where pods may run,
/// which is no matter of where replicas are; any other label is somebody's wish for the volume.
fn wished_labels(requirement: Option<&csi::TopologyRequirement>) -> Result<BTreeMap<String, String>, Status> {
    let labels = |topology: &csi::Topology| {
        let others =
            topology.segments.iter().filter(|(key, _)| *key != CSI_NODE_LABEL.0 && *key != NODE_NAME_LABEL);
        others.map(|(key, value)| (key.clone(), value.clone())).collect::<BTreeMap<_, _>>()
    };
    let requisite = requirement.map(|requirement| requirement.requisite.as_slice()).unwrap_or_default();
    let mut wishes: BTreeSet<_> = requisite.iter().map(labels).collect();
    let wish = wishes.pop_first().unwrap_or_default();
    // One that names nothing allows everything.
    if wishes.is_empty() || wish.is_empty() {
        return Ok(wish);
    }
    Err(Status::invalid_argument(
        "allowedTopologies has several values: give one, which the nodes of all replicas shall have, or none and the \
         parameter nodeAffinityTopologyKey, by which a volume's nodes share one value, whichever it is",
    ))
}

/// A volume that is there already has to be what this request would have made (CSI, "`CreateVolume` errors").
fn ensure_as_asked(
    id: Uuid,
    volume: &Volume,
    params: &Params,
    group: Option<&AffinityGroup>,
    range: &SizeRange,
) -> Result<(), Status> {
    match volume.spec.status {
        SpecStatus::Created => {}
        SpecStatus::Creating => return Err(Status::aborted(format!("volume {id} is being created"))),
        SpecStatus::Deleting | SpecStatus::Deleted => {
            return Err(Status::aborted(format!("volume {id} is being deleted")));
        }
    }
    let spec = &volume.spec;
    let found_group = spec.affinity_group.as_ref();
    let difference = if !range.admits(spec.size) {
        Some(format!("{} bytes", spec.size))
    } else if spec.num_replicas < params.replicas {
        Some(format!("{} replicas", spec.num_replicas))
    } else if spec.thin != params.thin {
        Some(format!("thin: {}", spec.thin))
    } else if found_group != group {
        Some(found_group.map_or("no affinity group".into(), |group| format!("affinity group {}", group.id)))
    } else {
        None
    };
    match difference {
        None => Ok(()),
        Some(what) => {
            Err(Status::already_exists(format!("volume {id} exists and is another: it has {what}")))
        }
    }
}

/// The sizes that a request accepts, and the one that it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SizeRange {
    required: u64,
    limit: Option<u64>,
    /// What it gets.
    pub(super) wanted: u64,
}

impl SizeRange {
    pub(super) fn of(range: Option<&csi::CapacityRange>) -> Result<Self, Status> {
        let bytes = |name: &str, given: i64| {
            u64::try_from(given).map_err(|_| Status::invalid_argument(format!("{name} is negative: {given}")))
        };
        let required = bytes("required_bytes", range.map_or(0, |range| range.required_bytes))?;
        let limit = bytes("limit_bytes", range.map_or(0, |range| range.limit_bytes))?;
        let limit = (limit > 0).then_some(limit);
        if limit.is_some_and(|limit| limit < required) {
            return Err(Status::invalid_argument(format!(
                "limit_bytes is less than required_bytes, {required}"
            )));
        }
        let at_least =
            if required > 0 { required } else { limit.map_or(DEFAULT_BYTES, |l| l.min(DEFAULT_BYTES)) };
        let wanted = match at_least.checked_next_multiple_of(UNIT_BYTES) {
            Some(rounded) if limit.is_none_or(|limit| rounded <= limit) => rounded,
            // A limit below the next whole unit: down, where nothing more is required.
            Some(rounded) if required == 0 && rounded > UNIT_BYTES => rounded - UNIT_BYTES,
            _ => {
                return Err(Status::out_of_range(format!(
                    "volumes have whole MiB: there is none from {required} to {} bytes",
                    limit.unwrap_or(u64::MAX)
                )));
            }
        };
        Ok(Self { required, limit, wanted })
    }

    /// Not above the limit.
    pub(super) fn may_be(&self, size: u64) -> bool {
        self.limit.is_none_or(|limit| size <= limit)
    }

    pub(super) fn admits(&self, size: u64) -> bool {
        size >= self.required && self.may_be(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn range(required: i64, limit: i64) -> Result<u64, Code> {
        let given = csi::CapacityRange { required_bytes: required, limit_bytes: limit };
        SizeRange::of(Some(&given)).map(|range| range.wanted).map_err(|error| error.code())
    }

    #[test]
    fn one_allowed_topology_is_a_wish_for_replicas_and_where_pods_run_is_none() {
        let topology = |pairs: &[(&str, &str)]| csi::Topology {
            segments: pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        };
        let wished = |requisite: &[csi::Topology]| {
            let requirement =
                csi::TopologyRequirement { requisite: requisite.to_vec(), preferred: requisite.to_vec() };
            wished_labels(Some(&requirement)).map(|labels| labels.into_iter().collect::<Vec<_>>())
        };
        let zone = |name| topology(&[("topology.kubernetes.io/zone", name)]);
        let pods = |name| topology(&[("openebs.io/csi-node", "mayastor"), ("openebs.io/nodename", name)]);
        assert!(wished_labels(None).unwrap().is_empty() && wished(&[]).unwrap().is_empty());
        assert!(wished(&[pods("a"), pods("b")]).unwrap().is_empty());
        let expected = [("topology.kubernetes.io/zone".to_owned(), "z1".to_owned())];
        assert_eq!(wished(&[zone("z1")]).unwrap(), expected);
        let rack = topology(&[("openebs.io/rack", "r1")]);
        assert_eq!(wished(&[rack]).unwrap(), [("openebs.io/rack".to_owned(), "r1".to_owned())]);
        assert_eq!(wished(&[zone("z1"), zone("z1")]).unwrap(), expected);
        let several = wished(&[zone("z1"), zone("z2")]).unwrap_err();
        assert!(several.message().contains("allowedTopologies"), "{several}");
    }

    #[test]
    fn sizes_are_whole_mib_within_what_is_asked_for() {
        const MIB: i64 = 1 << 20;
        assert_eq!(SizeRange::of(None).unwrap().wanted, DEFAULT_BYTES);
        assert_eq!(range(0, 0), Ok(DEFAULT_BYTES));
        assert_eq!(range(100_000_000, 0), Ok(96 << 20));
        assert_eq!(range(10 * MIB, 10 * MIB), Ok(10 << 20));
        assert_eq!(range(0, 10 * MIB + 5), Ok(10 << 20));
        assert_eq!(range(10 * MIB + 1, 10 * MIB + 2), Err(Code::OutOfRange));
        assert_eq!(range(i64::MAX, 0), Ok(1 << 63));
        assert_eq!(range(2 * MIB, MIB), Err(Code::InvalidArgument));
        assert_eq!(range(-1, 0), Err(Code::InvalidArgument));
        assert_eq!(range(0, 5), Err(Code::OutOfRange));
    }
}
