//! Who the plugin is, what it offers, whether it is ready.

use ::csi::proto::csi;
use ::csi::proto::csi::controller_service_capability::{Rpc, Type, rpc};
use anyhow::{Result, ensure};
use tonic::Code;

use crate::stage::{SIZE_MIB, Stage, asked, new_name, refused};

pub(crate) async fn xi_1_the_plugin_says_its_name_and_version(stage: &mut Stage) -> Result<()> {
    for _ in 0..2 {
        let info = stage.controller.identity()?.get_plugin_info(csi::GetPluginInfoRequest {}).await?;
        let info = info.into_inner();
        ensure!(info.name == "io.openebs.csi-mayastor", "{info:?}");
        ensure!(info.vendor_version == env!("CARGO_PKG_VERSION"), "{info:?}");
    }
    Ok(())
}

pub(crate) async fn xi_2_the_plugin_says_what_it_offers(stage: &mut Stage) -> Result<()> {
    for _ in 0..2 {
        let mut identity = stage.controller.identity()?;
        let offered = identity.get_plugin_capabilities(csi::GetPluginCapabilitiesRequest {}).await?;
        let words = format!("{:?}", offered.into_inner());
        for name in ["ControllerService", "VolumeAccessibilityConstraints", "Online", "Offline"] {
            ensure!(words.contains(name), "{name} is not in {words}");
        }
    }
    Ok(())
}

pub(crate) async fn xi_3_the_plugin_is_ready(stage: &mut Stage) -> Result<()> {
    for _ in 0..2 {
        let ready = stage.controller.identity()?.probe(csi::ProbeRequest {}).await?.into_inner().ready;
        ensure!(ready == Some(true), "{ready:?}");
    }
    Ok(())
}

pub(crate) async fn xi_4_the_plugin_is_not_ready_without_the_operator(stage: &mut Stage) -> Result<()> {
    stage.lab.operators[0].kill();
    for _ in 0..2 {
        let ready = stage.controller.identity()?.probe(csi::ProbeRequest {}).await?.into_inner().ready;
        ensure!(ready == Some(false), "{ready:?}");
    }
    let late = stage.plugin()?.create(asked(&new_name(), SIZE_MIB, &[])).await;
    refused(late, Code::Unavailable, "control plane")?;
    stage.lab.operators[0].start(&stage.lab.processes).await?;
    let ready = stage.controller.identity()?.probe(csi::ProbeRequest {}).await?.into_inner().ready;
    ensure!(ready == Some(true), "{ready:?} with the operator back");
    Ok(())
}

pub(crate) async fn xc_1_what_is_offered_works_and_what_does_not_is_not_offered(
    stage: &mut Stage,
) -> Result<()> {
    for _ in 0..2 {
        let request = csi::ControllerGetCapabilitiesRequest {};
        let offered = stage.plugin()?.0.controller_get_capabilities(request).await?.into_inner();
        let mut kinds: Vec<_> = offered
            .capabilities
            .iter()
            .filter_map(|offer| match offer.r#type {
                Some(Type::Rpc(Rpc { r#type })) => rpc::Type::try_from(r#type).ok(),
                None => None,
            })
            .collect();
        kinds.sort_unstable();
        let wanted = [
            rpc::Type::CreateDeleteVolume,
            rpc::Type::PublishUnpublishVolume,
            rpc::Type::ListVolumes,
            rpc::Type::GetCapacity,
            rpc::Type::ExpandVolume,
            rpc::Type::ListVolumesPublishedNodes,
            rpc::Type::VolumeCondition,
            rpc::Type::GetVolume,
            rpc::Type::SingleNodeMultiWriter,
            rpc::Type::ModifyVolume,
        ];
        ensure!(kinds == wanted, "{kinds:?}");
    }
    Ok(())
}
