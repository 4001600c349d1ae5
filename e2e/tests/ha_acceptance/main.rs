//! Acceptance of high availability, one test for each of its ids, with real parts but for the host: engines, operator and
//! cluster agent are programs, the host is our own initiator, which tells exactly what a target has acknowledged. What
//! takes a Linux host is in `path_replacement.rs` and `failover_stories.rs`.

mod host;

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use control_api::{
    Client, CreatePoolBody, CreateVolumeBody, PoolStatus, PublishVolumeBody, Republish, Volume, VolumePolicy,
    VolumeStatus,
};
use e2e::lab::{Lab, NAMESPACE, Parts};
use e2e::netns::Peer;
use e2e::steps::step;
use e2e::wait::wait_until;
use ha::proto::cluster::HaNodeInfo;
use ha::proto::cluster::ha_cluster_rpc_client::HaClusterRpcClient;
use serde_json::Value;
use tonic::Code;
use uuid::Uuid;

use host::{Agent, HOST, Path};

const MIB: u64 = 1 << 20;
const SIZE_MIB: u64 = 16;
const PATIENCE: Duration = Duration::from_secs(120);
/// The block that targets are tried with, and the one that holds what must stay.
const TRIED: u64 = 1;
const KEPT: u64 = 2;

/// Where a volume is served.
#[derive(Clone, Debug)]
struct Target {
    node: u8,
    nexus: Uuid,
    uri: String,
}

struct Story {
    lab: Lab,
    volume: Uuid,
}

impl Story {
    /// Engines, of which those in `pools` have one, and a volume on all of these, served by `home` to the host.
    async fn begin(name: &str, engines: u8, pools: &[u8], home: u8) -> Result<(Self, Target)> {
        Self::begin_with(Parts { engines, hosts: 0, operators: 1, kubernetes: false }, name, pools, home)
            .await
    }

    async fn begin_with(parts: Parts, name: &str, pools: &[u8], home: u8) -> Result<(Self, Target)> {
        let lab = step("an operator and engines", Lab::start(name, parts)).await?;
        let rest = lab.rest().await?;
        for number in pools {
            let body = CreatePoolBody {
                disks: vec![lab.node(*number).disk().display().to_string()],
                cluster_size: Some(1 << 20),
                ..CreatePoolBody::default()
            };
            let node = lab.node(*number).name();
            rest.create_pool(&node, &format!("pool-{node}"), &body).await?;
        }
        wait_pools(&rest, pools.len()).await?;
        let volume = Uuid::new_v4();
        let body = CreateVolumeBody {
            policy: VolumePolicy { self_heal: true },
            replicas: u8::try_from(pools.len())?,
            size: SIZE_MIB * MIB,
            thin: true,
            topology: None,
            affinity_group: None,
            labels: None,
        };
        rest.create_volume(volume, &body).await?;
        let body = PublishVolumeBody {
            node: Some(lab.node(home).name()),
            frontend_node: Some(HOST.to_owned()),
            ..PublishVolumeBody::default()
        };
        rest.publish_volume(volume, &body).await?;
        let story = Self { lab, volume };
        let target = story.target().await?;
        ensure!(target.node == home, "{target:?}");
        Ok((story, target))
    }

    async fn look(&self) -> Result<Volume> {
        Ok(self.lab.rest().await?.volume(self.volume).await?)
    }

    /// Where the volume is served, once that can be seen.
    async fn target(&self) -> Result<Target> {
        wait_until(PATIENCE, "the target to be shown", || async {
            let volume = self.look().await?;
            let wanted = volume.spec.target.clone().context("not published")?;
            let shown = volume.state.target.clone().context("not shown")?;
            ensure!(Some(shown.uuid) == wanted.uuid && !shown.device_uri.is_empty(), "{volume:?}");
            let node = wanted.node.strip_prefix("node-").context("a node of ours")?.parse()?;
            Ok(Target { node, nexus: shown.uuid, uri: shown.device_uri })
        })
        .await
    }

    /// The operator is asked for another target than this, as the cluster agent does.
    async fn republish(&self, old: &Target) -> Result<Target> {
        let request = Republish {
            frontend_host: HOST.to_owned(),
            target_node: None,
            replaces: Some(old.nexus),
            reuse_existing: false,
            reuse_existing_fallback: false,
        };
        self.lab.rest().await?.republish_volume(self.volume, &request).await?;
        let new = self.target().await?;
        ensure!(new.nexus != old.nexus && new.node != old.node, "{old:?} stayed: {new:?}");
        Ok(new)
    }

    /// What is left of old targets goes, as far as it can be reached. Asked again while somebody is at work on the volume,
    /// as the cluster agent does.
    async fn destroy_old(&self) -> Result<()> {
        wait_until(PATIENCE, "old targets to be destroyed", || async {
            Ok(self.lab.rest().await?.destroy_shutdown_targets(self.volume, &[]).await?)
        })
        .await
    }

    /// From the hub, as a host that reaches every node.
    async fn path(&self, target: &Target) -> Result<Path> {
        self.path_from(Peer::Hub, target).await
    }

    async fn path_from(&self, place: Peer, target: &Target) -> Result<Path> {
        let connected = Path::connect(&self.lab.net, place, &target.uri).await;
        connected.with_context(|| format!("connect to {}", target.uri))
    }

    /// The target serves, and holds what was written before.
    async fn ensure_serves(&self, target: &Target, kept: u8) -> Result<Path> {
        let path = self.path(target).await?;
        path.write(TRIED, 7).await.context("the new target takes no write")?;
        ensure!(path.read(TRIED).await? == 7, "what was written is not read");
        ensure!(path.read(KEPT).await? == kept, "what was acknowledged before is lost");
        Ok(path)
    }

    async fn wait_online(&self) -> Result<()> {
        wait_until(PATIENCE, "the volume to be whole", || async {
            let volume = self.look().await?;
            ensure!(
                volume.state.status == VolumeStatus::Online && volume.spec.operation.is_none(),
                "{volume:?}"
            );
            Ok(())
        })
        .await
    }

    /// Nobody can be connected to a target there.
    async fn ensure_not_served(&self, old: &Target) -> Result<()> {
        ensure!(self.path(old).await.is_err(), "the old target takes connections");
        Ok(())
    }

    fn cut(&self, node: u8, others: &[Peer]) -> Result<()> {
        others.iter().try_for_each(|other| self.lab.net.cut(Peer::Engine(node), *other))
    }

    fn cluster(&self) -> String {
        self.lab.ha_clusters[0].url()
    }

    /// A cluster agent, and a host at `place` whose agent is registered.
    async fn with_host(&mut self, place: Peer, target: &Target) -> Result<Agent> {
        step("a cluster agent", self.lab.start_ha_clusters(1)).await?;
        let nqn = format!("nqn.2019-05.io.openebs:{}", self.volume);
        let agent = Agent::start(&self.lab.net, place, &nqn, &target.uri).await?;
        agent.register(&self.cluster()).await?;
        agent.path()?.write(KEPT, 1).await?;
        Ok(agent)
    }

    /// The host notices that its path is lost, and its agent reports it once.
    async fn report_loss(&self, agent: &Agent) -> Result<()> {
        wait_until(PATIENCE, "the host to notice", || async {
            ensure!(!agent.path()?.is_live().await, "it does not");
            Ok(())
        })
        .await?;
        let taken = agent.report(&self.cluster()).await?;
        ensure!(taken == Code::Ok, "{taken}");
        Ok(())
    }

    /// The host's agent reports, as ha-node does, until the host has a path that serves.
    async fn wait_path(&self, agent: &Agent) -> Result<Target> {
        wait_until(PATIENCE, "the host to have its path", || async {
            let path = agent.path()?;
            if !path.is_live().await {
                agent.report(&self.cluster()).await?;
                bail!("the path is not live");
            }
            path.write(TRIED, 9).await
        })
        .await
        .map_err(|error| match self.lab.ha_clusters[0].process() {
            Ok(process) => error.context(process.log_tail()),
            Err(_) => error,
        })?;
        let path = agent.path()?;
        ensure!(path.read(TRIED).await? == 9 && path.read(KEPT).await? == 1, "data is lost");
        self.target().await
    }

    /// Waits until condition SwitchingOver of the volume's resource is as it should be.
    async fn wait_condition(&self, kind: &str, is_so: impl Fn(&Value) -> bool) -> Result<()> {
        let name = self.volume.to_string();
        wait_until(PATIENCE, "condition SwitchingOver", || async {
            let cr = self.lab.kubernetes()?.kubectl().get(&["-n", NAMESPACE, kind, &name]).await?;
            let conditions = cr["status"]["conditions"].as_array().context("no conditions")?;
            let found = conditions.iter().find(|condition| condition["type"] == "SwitchingOver");
            let condition = found.with_context(|| format!("{conditions:?}"))?;
            ensure!(is_so(condition), "{condition:#}");
            println!("    {kind}: {} {}: {}", condition["status"], condition["reason"], condition["message"]);
            Ok(())
        })
        .await
    }

    /// Waits until the events of the Nexus tell how the switchover began, what it waited for, and how it ended.
    async fn wait_events(&self) -> Result<()> {
        let name = self.volume.to_string();
        wait_until(PATIENCE, "the events", || async {
            let list = self.lab.kubernetes()?.kubectl().get(&["-n", NAMESPACE, "events"]).await?;
            let items = list["items"].as_array().context("no events")?;
            let of_nexus = items.iter().filter(|event| {
                let object = &event["involvedObject"];
                object["kind"] == "Nexus"
                    && object["name"] == name.as_str()
                    && event["action"] == "SwitchingOver"
            });
            let told: Vec<[&str; 3]> = of_nexus
                .map(|event| {
                    ["type", "reason", "message"].map(|field| event[field].as_str().unwrap_or_default())
                })
                .collect();
            let is_told = |type_: &str, words: &str| {
                told.iter().any(|[of, _, message]| *of == type_ && message.contains(words))
            };
            ensure!(is_told("Warning", "app lost the path"), "no begin: {told:#?}");
            ensure!(is_told("Warning", "no node can take the target now"), "no obstacle: {told:#?}");
            ensure!(is_told("Normal", "moved from node node-1 to node node-2"), "no end: {told:#?}");
            for [type_, reason, message] in &told {
                println!("    {type_} {reason}: {message}");
            }
            Ok(())
        })
        .await
    }

    /// Waits until the cluster agent says what its switchover waits for.
    async fn wait_says(&self, words: &str) -> Result<()> {
        let agent = &self.lab.ha_clusters[0];
        wait_until(PATIENCE, &format!("the cluster agent to say {words:?}"), || async {
            ensure!(agent.log()?.contains(words), "it does not");
            Ok(())
        })
        .await
    }
}

async fn wait_pools(rest: &Client, count: usize) -> Result<()> {
    wait_until(PATIENCE, "pools to be online", || async {
        let pools = rest.pools().await?;
        let online = |pool: &&control_api::Pool| {
            pool.state.as_ref().is_some_and(|state| state.status == PoolStatus::Online)
        };
        ensure!(pools.iter().filter(online).count() == count, "{pools:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn h3_h4_node_agents_register_and_empty_data_is_an_error() -> Result<()> {
    let parts = Parts { engines: 0, hosts: 0, operators: 1, kubernetes: false };
    let mut lab = step("an operator", Lab::start("h3", parts)).await?;
    step("a cluster agent", lab.start_ha_clusters(1)).await?;
    let mut client = HaClusterRpcClient::connect(lab.ha_clusters[0].url()).await?;
    let info = |node: &str, endpoint: &str| HaNodeInfo { nodename: node.into(), endpoint: endpoint.into() };
    client.register_node_agent(info(HOST, "10.77.0.254:50053")).await?;
    for (node, endpoint) in [("", ""), (HOST, ""), ("", "10.77.0.254:50053")] {
        let refused = client.register_node_agent(info(node, endpoint)).await;
        let code = refused.map_or_else(|status| status.code(), |_| Code::Ok);
        ensure!(code == Code::InvalidArgument, "{node:?} {endpoint:?}: {code}");
    }
    lab.run.passed();
    Ok(())
}

#[tokio::test]
async fn h5_a_republished_target_has_the_replicas_and_the_old_one_has_none() -> Result<()> {
    let (story, old) = Story::begin("h5", 2, &[1, 2], 1).await?;
    let old_path = story.path(&old).await?;
    old_path.write(KEPT, 1).await?;
    let new = step("republish", story.republish(&old)).await?;
    let path = story.ensure_serves(&new, 1).await?;
    old_path.ensure_locked_out(TRIED, "the old target").await?;
    ensure!(path.read(TRIED).await? == 7, "the old target wrote");
    story.ensure_not_served(&old).await?;
    story.destroy_old().await?;
    story.wait_online().await?;
    story.lab.run.passed();
    Ok(())
}

#[tokio::test]
async fn h6_a_target_whose_node_was_killed_is_still_locked_out_when_it_is_back() -> Result<()> {
    let (mut story, old) = Story::begin("h6", 2, &[1, 2], 1).await?;
    let old_path = story.path(&old).await?;
    old_path.write(KEPT, 1).await?;
    story.lab.engine(1).kill();
    let new = step("republish", story.republish(&old)).await?;
    let path = story.ensure_serves(&new, 1).await?;
    step("the node is back", story.lab.restart_engine(1)).await?;
    old_path.ensure_locked_out(TRIED, "the old target").await?;
    story.ensure_not_served(&old).await?;
    step("the volume is whole again", story.wait_online()).await?;
    old_path.ensure_locked_out(TRIED, "the old target, later").await?;
    ensure!(path.read(TRIED).await? == 7, "the old target wrote");
    story.lab.run.passed();
    Ok(())
}

/// The old target's engine loses the others, and the operator where `and_operator`; a host beside it does not notice.
async fn broken_and_restored(name: &str, and_operator: bool) -> Result<()> {
    let (story, old) = Story::begin(name, 3, &[1, 2, 3], 1).await?;
    // On the node itself: nothing that is cut lies between this host and the target.
    let beside = story.path_from(Peer::Engine(1), &old).await?;
    beside.write(KEPT, 1).await?;
    let mut others = vec![Peer::Engine(2), Peer::Engine(3)];
    others.extend(and_operator.then_some(Peer::Hub));
    story.cut(1, &others)?;
    let new = step("republish", story.republish(&old)).await?;
    beside.ensure_locked_out(TRIED, "the old target, cut off").await?;
    let path = story.ensure_serves(&new, 1).await?;
    beside.ensure_locked_out(TRIED, "the old target, beside the new one").await?;
    story.lab.net.heal_all()?;
    beside.ensure_locked_out(TRIED, "the old target, healed").await?;
    step("the volume is whole again", story.wait_online()).await?;
    beside.ensure_locked_out(TRIED, "the old target, later").await?;
    ensure!(path.read(TRIED).await? == 7, "the old target wrote");
    story.lab.run.passed();
    Ok(())
}

#[tokio::test]
async fn h7_a_target_whose_io_path_broke_is_locked_out_when_it_is_restored() -> Result<()> {
    broken_and_restored("h7", false).await
}

#[tokio::test]
async fn h8_a_target_that_lost_io_path_and_grpc_is_locked_out_when_they_are_restored() -> Result<()> {
    broken_and_restored("h8", true).await
}

/// Five times the target is cut off and replaced, and the network healed: only the newest has the replicas.
async fn five_times(name: &str, and_operator: bool) -> Result<()> {
    let (story, mut target) = Story::begin(name, 3, &[1, 2, 3], 1).await?;
    let mut old_paths: Vec<(u8, u8, Path)> = Vec::new();
    story.path(&target).await?.write(KEPT, 1).await?;
    for round in 1..=5 {
        let beside = story.path_from(Peer::Engine(target.node), &target).await?;
        beside.write(TRIED, round).await?;
        let mut others: Vec<_> = (1..=3).filter(|node| *node != target.node).map(Peer::Engine).collect();
        others.extend(and_operator.then_some(Peer::Hub));
        story.cut(target.node, &others)?;
        old_paths.push((round, target.node, beside));
        let new = step(&format!("round {round}: republish"), story.republish(&target)).await?;
        story.destroy_old().await?;
        // One host has one path to an address: its older one would be connected to the new target, and end the newer one.
        for (_, _, path) in old_paths.extract_if(.., |(_, node, _)| *node == new.node) {
            path.close().await?;
        }
        let path = story.ensure_serves(&new, 1).await?;
        story.lab.net.heal_all()?;
        step(&format!("round {round}: whole again"), story.wait_online()).await?;
        for (round, _, old) in &old_paths {
            old.ensure_locked_out(TRIED, &format!("the target of round {round}")).await?;
        }
        ensure!(path.read(TRIED).await? == 7, "round {round}: an old target wrote");
        target = new;
    }
    story.lab.run.passed();
    Ok(())
}

#[tokio::test]
async fn h9_after_five_broken_io_paths_only_the_newest_target_has_the_replicas() -> Result<()> {
    five_times("h9", false).await
}

#[tokio::test]
async fn h10_after_five_broken_io_and_grpc_paths_only_the_newest_target_has_the_replicas() -> Result<()> {
    five_times("h10", true).await
}

#[tokio::test]
async fn h11_the_only_node_restarts_and_the_path_is_there_again() -> Result<()> {
    let (mut story, old) = Story::begin("h11", 1, &[1], 1).await?;
    let agent = story.with_host(Peer::Hub, &old).await?;
    story.lab.engine(1).kill();
    step("the node is back", story.lab.restart_engine(1)).await?;
    let new = step("the path is there again", story.wait_path(&agent)).await?;
    ensure!(new.node == 1, "{new:?}");
    story.lab.run.passed();
    Ok(())
}

/// The replica is on a node that may have no target; its target's node dies. Returns when several attempts failed.
async fn nowhere_to_go(name: &str, kubernetes: bool) -> Result<(Story, Agent)> {
    let parts = Parts { engines: 2, hosts: 0, operators: 1, kubernetes };
    let (mut story, old) = Story::begin_with(parts, name, &[2], 1).await?;
    let agent = story.with_host(Peer::Hub, &old).await?;
    let node = story.lab.node(2).name();
    story.lab.rest().await?.cordon_node(&node, "acceptance").await?;
    story.lab.engine(1).kill();
    story.report_loss(&agent).await?;
    step("some attempts fail", story.wait_says("ResourceExhausted")).await?;
    Ok((story, agent))
}

#[tokio::test]
async fn h12_the_other_node_is_uncordoned_and_the_path_is_there_again() -> Result<()> {
    let (story, agent) = nowhere_to_go("h12", false).await?;
    let node = story.lab.node(2).name();
    story.lab.rest().await?.uncordon_node(&node, "acceptance").await?;
    let new = step("the path is there again", story.wait_path(&agent)).await?;
    ensure!(new.node == 2, "{new:?}");
    story.lab.run.passed();
    Ok(())
}

#[tokio::test]
async fn h13_the_targets_node_restarts_while_the_other_is_cordoned_and_the_path_is_there_again() -> Result<()>
{
    let (mut story, agent) = nowhere_to_go("h13", false).await?;
    step("the node is back", story.lab.restart_engine(1)).await?;
    let new = step("the path is there again", story.wait_path(&agent)).await?;
    ensure!(new.node == 1, "{new:?}");
    story.lab.run.passed();
    Ok(())
}

#[tokio::test]
async fn h14_a_broken_path_to_the_only_node_is_mended_and_there_again() -> Result<()> {
    let (mut story, old) = Story::begin("h14", 2, &[1], 1).await?;
    let node = story.lab.node(2).name();
    story.lab.rest().await?.cordon_node(&node, "acceptance").await?;
    // The host is on the other node: the operator goes on reaching the target.
    let agent = story.with_host(Peer::Engine(2), &old).await?;
    story.cut(1, &[Peer::Engine(2)])?;
    let path = agent.path()?;
    let held = path.write(TRIED, 3);
    let report = async {
        story.report_loss(&agent).await?;
        step("some attempts fail", story.wait_says("path not replaced")).await?;
        story.lab.net.heal_all()
    };
    // What becomes of the write is the host's to know; the path is what counts.
    let (_, reported) = tokio::join!(held, report);
    reported?;
    let new = step("the path is there again", story.wait_path(&agent)).await?;
    ensure!(new.node == 1, "{new:?}");
    story.lab.run.passed();
    Ok(())
}

/// What `kubectl` shows of a switchover, on a real API server, while the cluster agent is there, dead, and there again.
#[tokio::test]
async fn the_stage_of_a_switchover_is_at_the_nexus_and_events_tell_begin_obstacle_and_end() -> Result<()> {
    let (mut story, agent) = nowhere_to_go("switchover-status", true).await?;
    let stuck = |condition: &Value| {
        let says = |words: &str| condition["message"].as_str().is_some_and(|message| message.contains(words));
        condition["status"] == "True"
            && condition["reason"] == "RepublishVolume"
            && says("app lost the path to node node-1")
            && says("not going on: NoPlace: no node can take the target now")
    };
    step("the Nexus says what it waits for", story.wait_condition("nexus", stuck)).await?;
    step("so does the Volume", story.wait_condition("volume", stuck)).await?;
    story.lab.ha_clusters[0].kill();
    let node = story.lab.node(2).name();
    story.lab.rest().await?.uncordon_node(&node, "acceptance").await?;
    // The log is what tells, not an agent.
    step("it says so while no cluster agent runs", story.wait_condition("nexus", stuck)).await?;
    let (agents, processes) = (&mut story.lab.ha_clusters, &story.lab.processes);
    agents[0].launch(processes)?;
    step("a cluster agent again", agents[0].wait_leading()).await?;
    let new = step("the path is there again", story.wait_path(&agent)).await?;
    ensure!(new.node == 2, "{new:?}");
    let over = |condition: &Value| {
        let message = condition["message"].as_str().unwrap_or_default();
        condition["status"] == "False"
            && condition["reason"] == "Successful"
            && message.contains("moved from node node-1 to node node-2")
    };
    step("the Nexus says that it is over", story.wait_condition("nexus", over)).await?;
    step("begin, obstacle and end are events", story.wait_events()).await?;
    story.lab.run.passed();
    Ok(())
}
