//! Who the plugin is and what it can do.

use ::csi::proto::csi;
use ::csi::proto::csi::node_service_capability::{Rpc, Type, rpc};

use crate::lab::Lab;

#[tokio::test]
async fn xj_1_the_plugin_says_its_name_and_version() {
    let lab = Lab::new().await;
    for _ in 0..2 {
        let info = lab.identity().get_plugin_info(csi::GetPluginInfoRequest {}).await.unwrap().into_inner();
        assert_eq!(info.name, "io.openebs.csi-mayastor");
        assert_eq!(info.vendor_version, env!("CARGO_PKG_VERSION"));
        let ready = lab.identity().probe(csi::ProbeRequest {}).await.unwrap().into_inner().ready;
        assert_eq!(ready, Some(true));
    }
}

#[tokio::test]
async fn xj_2_the_plugin_says_what_it_offers() {
    let mut lab = Lab::new().await;
    for _ in 0..2 {
        let offered = lab.identity().get_plugin_capabilities(csi::GetPluginCapabilitiesRequest {}).await;
        assert_eq!(offered.unwrap().into_inner().capabilities.len(), 4);
        let offered = lab.client.node_get_capabilities(csi::NodeGetCapabilitiesRequest {}).await.unwrap();
        let mut kinds: Vec<_> = offered
            .into_inner()
            .capabilities
            .into_iter()
            .map(|offer| match offer.r#type {
                Some(Type::Rpc(Rpc { r#type })) => rpc::Type::try_from(r#type).unwrap(),
                None => rpc::Type::Unknown,
            })
            .collect();
        kinds.sort_unstable();
        assert_eq!(
            kinds,
            [
                rpc::Type::StageUnstageVolume,
                rpc::Type::GetVolumeStats,
                rpc::Type::ExpandVolume,
                rpc::Type::VolumeCondition,
                rpc::Type::SingleNodeMultiWriter,
            ]
        );
    }
}

/// By these names and labels the other plugin and the scheduler know the node.
#[tokio::test]
async fn the_node_says_who_it_is_and_where() {
    let mut lab = Lab::new().await;
    for _ in 0..2 {
        let info = lab.client.node_get_info(csi::NodeGetInfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), ("node-1", 0));
        let segments = info.accessible_topology.unwrap().segments;
        assert_eq!(segments["openebs.io/nodename"], "node-1");
        assert_eq!(segments["openebs.io/csi-node"], "mayastor");
    }
}
