//! `NodeGetVolumeStats`: how full a volume is, and whether it can be reached.

use tonic::Status;
use uuid::Uuid;

use super::{NodePlugin, path, volume_id};
use crate::host::{Controller, mount::Usage};
use crate::node::volume::{mounted_at, shows_node};
use crate::proto::csi;
use crate::proto::csi::volume_usage::Unit;

impl NodePlugin {
    pub(super) async fn stats(
        &self,
        request: &csi::NodeGetVolumeStatsRequest,
    ) -> Result<csi::NodeGetVolumeStatsResponse, Status> {
        let volume = volume_id(&request.volume_id)?;
        let place = path("volume_path", &request.volume_path)?;
        let controllers = self.controllers(volume)?;
        let mounts = self.mount_table().await?;
        let not_here = || Status::not_found(format!("volume {volume} is not at {}", place.display()));
        let device = crate::node::volume::device_of(volume, &controllers).ok_or_else(not_here)?;
        let mount = mounted_at(&mounts, &place).ok_or_else(not_here)?;
        let usage = if shows_node(mount, &device) {
            let len_bytes = self.with_mounts(move |mounts| mounts.len_bytes(&device)).await?;
            vec![csi::VolumeUsage {
                total: signed(len_bytes),
                unit: Unit::Bytes.into(),
                ..csi::VolumeUsage::default()
            }]
        } else if std::path::Path::new(&mount.source) == device {
            let found = self.with_mounts(move |mounts| mounts.usage(&place)).await?;
            shape(&found)
        } else {
            return Err(not_here());
        };
        Ok(csi::NodeGetVolumeStatsResponse { usage, volume_condition: Some(condition(volume, &controllers)) })
    }
}

fn shape(found: &Usage) -> Vec<csi::VolumeUsage> {
    let bytes = csi::VolumeUsage {
        available: signed(found.bytes_free),
        total: signed(found.bytes),
        used: signed(found.bytes_used),
        unit: Unit::Bytes.into(),
    };
    let inodes = csi::VolumeUsage {
        available: signed(found.inodes_free),
        total: signed(found.inodes),
        used: signed(found.inodes.saturating_sub(found.inodes_free)),
        unit: Unit::Inodes.into(),
    };
    // btrfs counts no inodes.
    if found.inodes == 0 { vec![bytes] } else { vec![bytes, inodes] }
}

fn condition(volume: Uuid, controllers: &[Controller]) -> csi::VolumeCondition {
    let usable = controllers.iter().filter(|controller| controller.is_usable()).count();
    let states: Vec<_> = controllers
        .iter()
        .map(|controller| {
            let address = controller.address.map(|address| address.to_string()).unwrap_or_default();
            format!("{} to {address}: {}", controller.id.name, controller.state.name())
        })
        .collect();
    csi::VolumeCondition {
        abnormal: usable == 0,
        message: match usable {
            0 => format!("volume {volume} cannot be reached, I/O waits ({})", states.join(", ")),
            1 => "1 path".to_owned(),
            count => format!("{count} paths"),
        },
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
