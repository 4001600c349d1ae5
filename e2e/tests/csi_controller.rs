//! The controller plugin over its socket, before a real operator and real engines: acceptance XC and XI, in the words of
//! the CSI specification. One laboratory serves all of it; each step is named by its id.

use std::collections::HashMap;
use std::time::Duration;

use ::csi::node::registration::keep_registered;
use ::csi::proto::csi;
use ::csi::proto::csi::controller_client::ControllerClient;
use ::csi::proto::csi::volume_capability::access_mode::Mode;
use ::csi::proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use anyhow::{Context as _, Result, ensure};
use control_api::RegisterAppNode;
use e2e::lab::{CsiController, Lab, Parts};
use e2e::scrape::{figure, scrape};
use e2e::steps::step;
use e2e::wait::wait_until;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};
use uuid::Uuid;

const MIB: i64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(90);

fn capability(mode: Mode) -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: "ext4".into(),
            ..MountVolume::default()
        })),
    }
}

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn asked(name: &str, mib: i64, parameters: &[(&str, &str)]) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(csi::CapacityRange { required_bytes: mib * MIB, limit_bytes: 0 }),
        volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
        parameters: map(parameters),
        ..csi::CreateVolumeRequest::default()
    }
}

/// The plugin, called as the sidecars call it.
struct Plugin(ControllerClient<Channel>);

impl Plugin {
    async fn create(&mut self, request: csi::CreateVolumeRequest) -> Result<csi::Volume, Status> {
        Ok(self.0.create_volume(request).await?.into_inner().volume.expect("a volume is in the answer"))
    }

    async fn delete(&mut self, id: &str) -> Result<(), Status> {
        let request =
            csi::DeleteVolumeRequest { volume_id: id.into(), ..csi::DeleteVolumeRequest::default() };
        self.0.delete_volume(request).await.map(drop)
    }

    async fn publish(&mut self, id: &str, node: &str) -> Result<HashMap<String, String>, Status> {
        let request = csi::ControllerPublishVolumeRequest {
            volume_id: id.into(),
            node_id: node.into(),
            volume_capability: Some(capability(Mode::SingleNodeWriter)),
            volume_context: map(&[("repl", "2"), ("nvmeNrIoQueues", "4")]),
            ..csi::ControllerPublishVolumeRequest::default()
        };
        Ok(self.0.controller_publish_volume(request).await?.into_inner().publish_context)
    }

    async fn unpublish(&mut self, id: &str, node: &str) -> Result<(), Status> {
        let request = csi::ControllerUnpublishVolumeRequest {
            volume_id: id.into(),
            node_id: node.into(),
            ..csi::ControllerUnpublishVolumeRequest::default()
        };
        self.0.controller_unpublish_volume(request).await.map(drop)
    }

    async fn list(&mut self, max_entries: i32, token: &str) -> Result<csi::ListVolumesResponse, Status> {
        let request = csi::ListVolumesRequest { max_entries, starting_token: token.into() };
        Ok(self.0.list_volumes(request).await?.into_inner())
    }

    async fn get(&mut self, id: &str) -> Result<csi::ControllerGetVolumeResponse, Status> {
        let request = csi::ControllerGetVolumeRequest { volume_id: id.into() };
        Ok(self.0.controller_get_volume(request).await?.into_inner())
    }

    async fn nodes(&mut self, id: &str) -> Result<Vec<String>, Status> {
        Ok(self.get(id).await?.status.unwrap_or_default().published_node_ids)
    }

    async fn validate(
        &mut self,
        id: &str,
        modes: &[Mode],
    ) -> Result<csi::ValidateVolumeCapabilitiesResponse, Status> {
        let request = csi::ValidateVolumeCapabilitiesRequest {
            volume_id: id.into(),
            volume_capabilities: modes.iter().map(|mode| capability(*mode)).collect(),
            ..csi::ValidateVolumeCapabilitiesRequest::default()
        };
        Ok(self.0.validate_volume_capabilities(request).await?.into_inner())
    }

    async fn modify(&mut self, id: &str, parameters: &[(&str, &str)]) -> Result<(), Status> {
        let request = csi::ControllerModifyVolumeRequest {
            volume_id: id.into(),
            mutable_parameters: map(parameters),
            ..csi::ControllerModifyVolumeRequest::default()
        };
        self.0.controller_modify_volume(request).await.map(drop)
    }

    /// Grows a volume to between these sizes in bytes.
    async fn expand(
        &mut self,
        id: &str,
        (required_bytes, limit_bytes): (i64, i64),
        capability: csi::VolumeCapability,
    ) -> Result<csi::ControllerExpandVolumeResponse, Status> {
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: id.into(),
            capacity_range: Some(csi::CapacityRange { required_bytes, limit_bytes }),
            volume_capability: Some(capability),
            ..csi::ControllerExpandVolumeRequest::default()
        };
        Ok(self.0.controller_expand_volume(request).await?.into_inner())
    }

    async fn capacity(
        &mut self,
        node: Option<&str>,
        parameters: &[(&str, &str)],
    ) -> Result<csi::GetCapacityResponse, Status> {
        let topology = node.map(|node| csi::Topology { segments: map(&[("openebs.io/nodename", node)]) });
        let request = csi::GetCapacityRequest {
            accessible_topology: topology,
            parameters: map(parameters),
            ..csi::GetCapacityRequest::default()
        };
        Ok(self.0.get_capacity(request).await?.into_inner())
    }
}

/// The code and the words of a call that must fail.
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, words: &str) -> Result<()> {
    match answer {
        Err(status) if status.code() == code && status.message().contains(words) => Ok(()),
        other => anyhow::bail!("not {code:?} with {words:?}: {other:?}"),
    }
}

#[tokio::test]
async fn the_controller_keeps_the_rules_of_csi() -> Result<()> {
    let parts = Parts { engines: 3, hosts: 0, operators: 1, kubernetes: false };
    let mut lab = step("an operator and three engines", Lab::start("csi-controller", parts)).await?;
    let rest = step("a pool on each", lab.create_pools()).await?;
    let url = lab.operators[0].rest_url();
    let controller = step("the plugin", CsiController::start(&lab.processes, lab.run.path(), &url)).await?;
    let plugin = &mut Plugin(controller.client()?);

    step("XI-1..3 name and version, capabilities, ready", async {
        let mut identity = controller.identity()?;
        let info = identity.get_plugin_info(csi::GetPluginInfoRequest {}).await?.into_inner();
        ensure!(info.name == "io.openebs.csi-mayastor" && !info.vendor_version.is_empty(), "{info:?}");
        let offered =
            identity.get_plugin_capabilities(csi::GetPluginCapabilitiesRequest {}).await?.into_inner();
        let words = format!("{offered:?}");
        ensure!(
            words.contains("ControllerService") && words.contains("VolumeAccessibilityConstraints"),
            "{words}"
        );
        ensure!(words.contains("Online") && words.contains("Offline"), "{words}");
        let ready = identity.probe(csi::ProbeRequest {}).await?.into_inner().ready;
        ensure!(ready == Some(true), "{ready:?}");
        Ok(())
    })
    .await?;
    step("XC-1 what is offered works, what does not is not offered", async {
        let offered = plugin.0.controller_get_capabilities(csi::ControllerGetCapabilitiesRequest {}).await?;
        let words = format!("{:?}", offered.into_inner());
        for name in [
            "CreateDeleteVolume",
            "PublishUnpublishVolume",
            "ListVolumes",
            "GetCapacity",
            "ModifyVolume",
            "ExpandVolume",
        ] {
            ensure!(words.contains(name), "{name} is not in {words}");
        }
        ensure!(!words.contains("Snapshot"), "{words}");
        refused(
            plugin.0.create_snapshot(csi::CreateSnapshotRequest::default()).await,
            Code::Unimplemented,
            "snapshots",
        )
    })
    .await?;
    let free = step("XC-2/3 free space, of all pools and of a node's", async {
        let all = plugin.capacity(None, &[]).await?;
        let one = plugin.capacity(Some("node-1"), &[]).await?.available_capacity;
        ensure!(one > 0 && all.available_capacity == 3 * one, "{one} and {all:?}");
        let largest = all.maximum_volume_size.context("it is told")?;
        ensure!(largest < one && largest > one - 8 * MIB, "a replica keeps something: {one} and {all:?}");
        ensure!(plugin.capacity(None, &[("repl", "4")]).await?.maximum_volume_size == Some(0));
        ensure!(plugin.capacity(Some("elsewhere"), &[]).await?.available_capacity == 0);
        refused(plugin.capacity(None, &[("repl", "0")]).await, Code::InvalidArgument, "repl")?;
        Ok(all.available_capacity)
    })
    .await?;

    let name = format!("pvc-{}", Uuid::new_v4());
    let parameters = [("protocol", "nvmf"), ("repl", "2"), ("nvmeNrIoQueues", "4")];
    let id = step("XC-4 a volume, with the class in its context", async {
        let made = plugin.create(asked(&name, 16, &parameters)).await?;
        ensure!(format!("pvc-{}", made.volume_id) == name && made.capacity_bytes == 16 * MIB, "{made:?}");
        ensure!(made.volume_context == map(&parameters), "{made:?}");
        let everywhere = map(&[("openebs.io/csi-node", "mayastor")]);
        ensure!(
            made.accessible_topology.len() == 1 && made.accessible_topology[0].segments == everywhere,
            "{made:?}"
        );
        wait_until(PATIENCE, "the space of two replicas to be taken", || async {
            let left = Plugin(controller.client()?).capacity(None, &[]).await?.available_capacity;
            ensure!(left <= free - 2 * 16 * MIB, "{free} before, {left} now");
            Ok(())
        })
        .await?;
        Ok(made.volume_id)
    })
    .await?;
    step("XC-5 the same again is the same; another under its name is refused", async {
        let again = plugin.create(asked(&name, 16, &parameters)).await?;
        ensure!(again.volume_id == id && again.volume_context == map(&parameters), "{again:?}");
        let more = plugin.create(asked(&name, 32, &parameters)).await;
        refused(more, Code::AlreadyExists, "16777216 bytes")?;
        let thin = plugin.create(asked(&name, 16, &[("repl", "2"), ("thin", "true")])).await;
        refused(thin, Code::AlreadyExists, "thin: false")
    })
    .await?;
    step("what is missing or wrong is named", async {
        refused(plugin.create(asked("", 16, &[])).await, Code::InvalidArgument, "name")?;
        refused(
            plugin.create(asked("x", 16, &[("replicas", "2")])).await,
            Code::InvalidArgument,
            "replicas is not known",
        )?;
        let mut request = asked("x", 16, &[]);
        request.volume_capabilities.clear();
        refused(plugin.create(request).await, Code::InvalidArgument, "volume_capabilities")?;
        let mut request = asked("x", 16, &[]);
        request.volume_capabilities = vec![capability(Mode::MultiNodeMultiWriter)];
        refused(plugin.create(request).await, Code::InvalidArgument, "MULTI_NODE_MULTI_WRITER")?;
        let mut request = asked("x", 16, &[]);
        request.volume_capabilities[0].access_type = None;
        refused(plugin.create(request).await, Code::InvalidArgument, "access type")?;
        let mut request = asked("x", 16, &[]);
        request.volume_content_source = Some(csi::VolumeContentSource::default());
        refused(plugin.create(request).await, Code::Unimplemented, "from snapshots")?;
        refused(plugin.create(asked("x", 1 << 30, &[])).await, Code::ResourceExhausted, "pool-node-1")?;
        refused(plugin.create(asked("x", 16, &[("repl", "9")])).await, Code::ResourceExhausted, "")?;
        refused(plugin.publish("", "node-1").await, Code::InvalidArgument, "volume_id")?;
        refused(plugin.publish(&id, "").await, Code::InvalidArgument, "node_id")?;
        let without = csi::ControllerPublishVolumeRequest {
            volume_id: id.clone(),
            node_id: "node-1".into(),
            ..csi::ControllerPublishVolumeRequest::default()
        };
        refused(
            plugin.0.controller_publish_volume(without).await,
            Code::InvalidArgument,
            "volume_capability",
        )?;
        refused(plugin.publish("no-such", "node-1").await, Code::NotFound, "no-such")?;
        refused(plugin.publish(&Uuid::new_v4().to_string(), "node-1").await, Code::NotFound, "")?;
        refused(plugin.delete("").await, Code::InvalidArgument, "volume_id")?;
        refused(plugin.unpublish("", "node-1").await, Code::InvalidArgument, "volume_id")?;
        refused(plugin.get(&Uuid::new_v4().to_string()).await, Code::NotFound, "")?;
        ensure!(plugin.list(0, "").await?.entries.len() == 1, "something of that was made");
        Ok(())
    })
    .await?;
    step("a long name, and one that is no pvc-<uuid>", async {
        let long = "v".repeat(128);
        let first = plugin.create(asked(&long, 8, &[])).await?;
        ensure!(plugin.create(asked(&long, 8, &[])).await?.volume_id == first.volume_id);
        plugin.delete(&first.volume_id).await?;
        Ok(())
    })
    .await?;
    step("XC-9/10 one node's access is confirmed, many nodes' is not, and why", async {
        let yes = plugin.validate(&id, &[Mode::SingleNodeWriter, Mode::SingleNodeMultiWriter]).await?;
        ensure!(yes.confirmed.is_some() && yes.message.is_empty(), "{yes:?}");
        for mode in [Mode::MultiNodeReaderOnly, Mode::MultiNodeSingleWriter, Mode::MultiNodeMultiWriter] {
            let no = plugin.validate(&id, &[Mode::SingleNodeWriter, mode]).await?;
            ensure!(no.confirmed.is_none() && no.message.contains(mode.as_str_name()), "{no:?}");
        }
        refused(plugin.validate(&id, &[]).await, Code::InvalidArgument, "volume_capabilities")?;
        refused(plugin.validate("no-such", &[Mode::SingleNodeWriter]).await, Code::NotFound, "no-such")
    })
    .await?;
    let context = step("XC-11/12 published for a node, twice the same", async {
        let context = plugin.publish(&id, "node-1").await?;
        ensure!(context["uri"].starts_with("nvmf") && context["nvmeNrIoQueues"] == "4", "{context:?}");
        ensure!(!context.contains_key("repl"), "{context:?}");
        ensure!(plugin.publish(&id, "node-1").await? == context, "another answer");
        ensure!(plugin.nodes(&id).await? == ["node-1"]);
        let volume = rest.volume(id.parse()?).await?;
        ensure!(
            volume.spec.target.is_some_and(|target| target.node == "node-1"),
            "served from where it is used"
        );
        Ok(context)
    })
    .await?;
    step("figures of the operator and of the engine that serves it", async {
        let page = scrape(lab.operators[0].metrics()).await?;
        let is = |page: &str, name: &str, labels: &[&str], value: f64| {
            let found = figure(page, name, labels);
            ensure!(found == Some(value), "{name} with {labels:?} is {found:?}, not {value}, in\n{page}");
            Ok(())
        };
        is(&page, "operator_leading", &[], 1.0)?;
        is(&page, "operator_node_online", &["node=\"node-2\""], 1.0)?;
        is(&page, "operator_volume_published", &[&id], 1.0)?;
        is(&page, "operator_volumes", &["status=\"online\""], 1.0)?;
        is(&page, "operator_pool_online", &["pool=\"pool-node-1\""], 1.0)?;
        let page = scrape(lab.node(1).metrics()).await?;
        is(&page, "io_engine_nexus_serving", &[&id], 1.0)?;
        is(&page, "io_engine_nexus_children_online", &[&id], 2.0)?;
        is(&page, "io_engine_nexus_io_errors_total", &[&id, "operation=\"write\""], 0.0)?;
        is(&page, "io_engine_pool_online", &["pool=\"pool-node-1\""], 1.0)?;
        let taken =
            figure(&page, "io_engine_pool_used_bytes", &["pool-node-1"]).context("it has a replica")?;
        ensure!(taken >= 16.0 * 1024.0 * 1024.0, "{taken}");
        Ok(())
    })
    .await?;
    step("XC-17 not for a second node; XC-15 that one has nothing to lose", async {
        refused(plugin.publish(&id, "node-2").await, Code::FailedPrecondition, "node-1")?;
        plugin.unpublish(&id, "node-2").await?;
        ensure!(plugin.publish(&id, "node-1").await? == context, "it was taken from node-1");
        Ok(())
    })
    .await?;
    step("XC-13/14/16 unpublished, twice; and what never was", async {
        plugin.unpublish(&id, "node-1").await?;
        plugin.unpublish(&id, "node-1").await?;
        plugin.unpublish(&Uuid::new_v4().to_string(), "node-1").await?;
        plugin.unpublish("no-such", "node-1").await?;
        ensure!(
            plugin.nodes(&id).await?.is_empty() && rest.nexuses().await?.is_empty(),
            "something serves it"
        );
        plugin.publish(&id, "app-node-without-engine").await?;
        plugin.unpublish(&id, "").await?;
        ensure!(plugin.nodes(&id).await?.is_empty());
        Ok(())
    })
    .await?;
    step("RO-1, RO-8, RN-1 a volume grows, used or not; what cannot be is named", async {
        let fs = || capability(Mode::SingleNodeWriter);
        let block = csi::VolumeCapability {
            access_type: Some(AccessType::Block(BlockVolume {})),
            ..capability(Mode::SingleNodeWriter)
        };
        let missing = csi::ControllerExpandVolumeRequest { volume_id: id.clone(), ..Default::default() };
        refused(plugin.0.controller_expand_volume(missing).await, Code::InvalidArgument, "capacity_range")?;
        refused(plugin.expand("", (MIB, 0), fs()).await, Code::InvalidArgument, "volume_id")?;
        refused(plugin.expand("elsewhere", (MIB, 0), fs()).await, Code::NotFound, "elsewhere")?;
        let unknown = Uuid::new_v4().to_string();
        refused(plugin.expand(&unknown, (MIB, 0), fs()).await, Code::NotFound, &unknown)?;
        refused(plugin.expand(&id, (-MIB, 0), fs()).await, Code::InvalidArgument, "required_bytes")?;
        refused(plugin.expand(&id, (64 * MIB, 32 * MIB), fs()).await, Code::InvalidArgument, "limit_bytes")?;
        refused(plugin.expand(&id, (0, 8 * MIB), fs()).await, Code::OutOfRange, "cannot shrink")?;
        refused(plugin.expand(&id, (1 << 50, 0), fs()).await, Code::ResourceExhausted, "Free space there")?;
        let small = plugin.expand(&id, (MIB, 0), fs()).await?;
        ensure!(small.capacity_bytes == 16 * MIB && small.node_expansion_required, "{small:?}");
        for _ in 0..2 {
            let grown = plugin.expand(&id, (20 * MIB + 1, 24 * MIB), fs()).await?;
            ensure!(grown.capacity_bytes == 21 * MIB && grown.node_expansion_required, "{grown:?}");
        }
        plugin.publish(&id, "node-1").await?;
        let grown = plugin.expand(&id, (32 * MIB, 0), block).await?;
        ensure!(grown.capacity_bytes == 32 * MIB && !grown.node_expansion_required, "{grown:?}");
        let shown = rest.volume(id.parse()?).await?.state;
        let nexus = shown.target.context("it is published")?;
        ensure!((shown.size, nexus.size) == (32 << 20, 32 << 20), "{nexus:?}");
        Ok(plugin.unpublish(&id, "node-1").await?)
    })
    .await?;
    step("the number of replicas follows a VolumeAttributesClass", async {
        plugin.modify(&id, &[("repl", "3")]).await?;
        plugin.modify(&id, &[("repl", "3")]).await?;
        ensure!(rest.volume(id.parse()?).await?.spec.num_replicas == 3);
        refused(plugin.modify(&id, &[("thin", "true")]).await, Code::InvalidArgument, "thin")?;
        refused(plugin.modify(&id, &[("repl", "none")]).await, Code::InvalidArgument, "repl")?;
        refused(plugin.modify(&id, &[("repl", "4")]).await, Code::ResourceExhausted, "")?;
        refused(plugin.modify(&Uuid::new_v4().to_string(), &[("repl", "2")]).await, Code::NotFound, "")?;
        plugin.modify(&id, &[("repl", "2")]).await?;
        Ok(())
    })
    .await?;
    step("XC-8/19/20 listed, all and page by page", async {
        let other = plugin.create(asked("other", 8, &[])).await?.volume_id;
        let all = plugin.list(0, "").await?;
        ensure!(all.entries.len() == 2 && all.next_token.is_empty(), "{all:?}");
        let entry = all.entries.iter().find(|entry| entry.volume.as_ref().is_some_and(|v| v.volume_id == id));
        let condition =
            entry.and_then(|entry| entry.status.clone()?.volume_condition).context("it is listed")?;
        ensure!(!condition.abnormal, "{condition:?}");
        let first = plugin.list(1, "").await?;
        ensure!(first.entries.len() == 1 && !first.next_token.is_empty(), "{first:?}");
        let second = plugin.list(1, &first.next_token).await?;
        ensure!(second.entries.len() == 1 && second.next_token.is_empty(), "{second:?}");
        ensure!(first.entries[0].volume != second.entries[0].volume);
        refused(plugin.list(0, "page two").await, Code::Aborted, "page two")?;
        refused(plugin.list(-1, "").await, Code::InvalidArgument, "max_entries")?;
        plugin.delete(&other).await?;
        Ok(())
    })
    .await?;
    step("XC-18 the target's node is away: unpublished, and published elsewhere", async {
        plugin.publish(&id, "node-1").await?;
        lab.engine(1).kill();
        wait_until(PATIENCE, "the volume to be unpublished", || async {
            let mut plugin = Plugin(controller.client()?);
            Ok(plugin.unpublish(&id, "node-1").await?)
        })
        .await?;
        wait_until(PATIENCE, "the volume to be published elsewhere", || async {
            let mut plugin = Plugin(controller.client()?);
            plugin.publish(&id, "node-2").await?;
            ensure!(plugin.nodes(&id).await? == ["node-2"]);
            let condition = plugin.get(&id).await?.status.and_then(|status| status.volume_condition);
            ensure!(condition.as_ref().is_some_and(|c| c.abnormal), "{condition:?}");
            Ok(())
        })
        .await?;
        plugin.unpublish(&id, "node-2").await?;
        Ok(())
    })
    .await?;
    step("XC-6/7 deleted, twice; and what never was", async {
        plugin.delete(&id).await?;
        plugin.delete(&id).await?;
        plugin.delete("no-such").await?;
        ensure!(plugin.list(0, "").await?.entries.is_empty());
        Ok(())
    })
    .await?;
    step("concurrent calls for one volume: one is at work, the others come again", async {
        let calls = (0..6).map(|_| {
            let mut plugin = Plugin(controller.client().expect("a socket"));
            tokio::spawn(async move { plugin.create(asked("many", 8, &[])).await })
        });
        let calls: Vec<_> = calls.collect();
        let mut made = std::collections::BTreeSet::new();
        for call in calls {
            match call.await? {
                Ok(volume) => drop(made.insert(volume.volume_id)),
                Err(status) => ensure!(status.code() == Code::Aborted, "{status:?}"),
            }
        }
        ensure!(made.len() == 1 && rest.volumes().await?.entries.len() == 1, "{made:?}");
        plugin.delete(made.first().context("one was made")?).await?;
        Ok(())
    })
    .await?;
    step("a raw block volume", async {
        let mut request = asked("raw", 8, &[]);
        request.volume_capabilities[0].access_type = Some(AccessType::Block(BlockVolume {}));
        let id = plugin.create(request).await?.volume_id;
        plugin.delete(&id).await?;
        Ok(())
    })
    .await?;
    step("a node that uses volumes registers, whoever leads, and deregisters", async {
        let spec = RegisterAppNode { endpoint: "10.0.0.7:10199".into(), labels: None };
        let stop = CancellationToken::new();
        let registering =
            tokio::spawn(keep_registered(rest.clone(), "app-node".into(), spec.clone(), stop.clone()));
        wait_until(PATIENCE, "it to be registered", || async {
            let found = rest.app_node("app-node").await?;
            ensure!(found.spec.endpoint == spec.endpoint, "{found:?}");
            Ok(())
        })
        .await?;
        stop.cancel();
        registering.await?;
        ensure!(rest.app_nodes_page(0, 0).await?.entries.is_empty(), "it is still there");
        Ok(())
    })
    .await?;
    step("XI-4 not ready, and UNAVAILABLE, without the operator", async {
        lab.operators[0].kill();
        let mut identity = controller.identity()?;
        let ready = identity.probe(csi::ProbeRequest {}).await?.into_inner().ready;
        ensure!(ready == Some(false), "{ready:?}");
        refused(plugin.create(asked("late", 8, &[])).await, Code::Unavailable, "control plane")
    })
    .await?;
    lab.run.passed();
    Ok(())
}
