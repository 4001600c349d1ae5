//! Plays the standard sidecars of a CSI driver, which cannot be had offline, by their public contracts and no more.
//!
//! ```text
//! PersistentVolumeClaim --provision--> CreateVolume --> PersistentVolume         csi-provisioner
//! PersistentVolume, released --------> DeleteVolume                              csi-provisioner
//! VolumeAttachment ------attach------> ControllerPublish-, UnpublishVolume       csi-attacher
//! claim that asks for more --resize--> ControllerExpandVolume                    csi-resizer, where the driver offers it
//! plugins_registry ---registration---> what kubelet asks of a plugin             node-driver-registrar
//! ```
//!
//! The first four run in the harness, with the rights of the account that the chart gives the real ones, or each as a
//! program, `player`, in the real one's place; the last always is such a program, `registrar`.
//!
//! Absent on purpose: leader election, events, capacity, snapshots, secrets.

use std::fmt;
use std::fs::OpenOptions;
use std::future::{Future, ready};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use csi::proto::csi::controller_client::ControllerClient;
use csi::proto::csi::controller_service_capability::Type as Offer;
use csi::proto::csi::controller_service_capability::rpc::Type as Rpc;
use csi::proto::csi::identity_client::IdentityClient;
use csi::proto::csi::volume_capability::access_mode::Mode;
use csi::proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use csi::proto::csi::{ControllerGetCapabilitiesRequest, GetPluginInfoRequest, VolumeCapability};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSINode, VolumeAttachment};
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

mod attach;
mod provision;
pub mod registration;
mod resize;

/// Objects of a kind that are worked on at once, as the chart asks of the real ones.
const WORKERS: u16 = 10;
/// After a failure; the real ones begin with this and wait longer each time.
const RETRY: Duration = Duration::from_secs(1);
/// What nobody tells us of is looked at again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Who is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Claims become volumes, and released volumes go.
    Provisioner,
    /// Volumes are published to nodes, and taken back.
    Attacher,
    /// Volumes grow with their claims.
    Resizer,
}

impl Part {
    /// The whole cast.
    pub const ALL: [Self; 3] = [Self::Provisioner, Self::Attacher, Self::Resizer];
}

/// The players, at work. Dropping it stops them where they are, as a killed pod would.
#[derive(Debug)]
pub struct Player {
    tasks: Vec<JoinHandle<()>>,
}

impl Player {
    /// Begins to play for the driver behind `socket`, in the cluster of `client`; what fails is written to `log`.
    pub async fn start(
        client: Client,
        socket: Channel,
        parts: &[Part],
        log: Box<dyn Write + Send>,
    ) -> Result<Self> {
        let mut identity = IdentityClient::new(socket.clone());
        let driver = identity.get_plugin_info(GetPluginInfoRequest {}).await?.into_inner().name;
        let mut csi = ControllerClient::new(socket);
        let offered =
            csi.controller_get_capabilities(ControllerGetCapabilitiesRequest {}).await?.into_inner();
        let offered: Vec<Rpc> = offered
            .capabilities
            .into_iter()
            .filter_map(|one| match one.r#type? {
                Offer::Rpc(rpc) => Some(rpc.r#type()),
            })
            .collect();
        let stage = Arc::new(Stage {
            client,
            csi,
            driver,
            multi_writer: offered.contains(&Rpc::SingleNodeMultiWriter),
            log: Mutex::new(log),
        });
        let claims: Api<PersistentVolumeClaim> = Api::all(stage.client.clone());
        let volumes: Api<PersistentVolume> = Api::all(stage.client.clone());
        let attachments: Api<VolumeAttachment> = Api::all(stage.client.clone());
        let mut player = Self { tasks: Vec::new() };
        for part in parts {
            match part {
                Part::Provisioner => player.tasks.extend([
                    tokio::spawn(play(claims.clone(), stage.clone(), provision::claim)),
                    tokio::spawn(play(volumes.clone(), stage.clone(), provision::volume)),
                ]),
                Part::Attacher => {
                    player.tasks.push(tokio::spawn(play(
                        attachments.clone(),
                        stage.clone(),
                        attach::attachment,
                    )));
                }
                Part::Resizer if offered.contains(&Rpc::ExpandVolume) => {
                    player.tasks.push(tokio::spawn(play(claims.clone(), stage.clone(), resize::claim)));
                }
                Part::Resizer => {}
            }
        }
        Ok(player)
    }

    /// Waits until one of them ends, which none does by itself.
    pub async fn ended(mut self) -> Result<()> {
        futures::future::select_all(&mut self.tasks).await.0.context("a player ended")
    }
}

/// A log in a file, which may have begun earlier.
pub fn log_file(path: &Path) -> Result<Box<dyn Write + Send>> {
    let log = OpenOptions::new().create(true).append(true).open(path);
    Ok(Box::new(log.context("open the log of the players")?))
}

impl Drop for Player {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// What the players share.
struct Stage {
    client: Client,
    csi: ControllerClient<Channel>,
    driver: String,
    /// The driver tells one writer on a node from several.
    multi_writer: bool,
    log: Mutex<Box<dyn Write + Send>>,
}

/// Works on each object of a kind whenever it changes.
async fn play<K, F, R>(api: Api<K>, stage: Arc<Stage>, part: F)
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + serde::de::DeserializeOwned
        + fmt::Debug
        + Send
        + Sync
        + 'static,
    F: Fn(Arc<K>, Arc<Stage>) -> R + Copy + Send + Sync + 'static,
    R: Future<Output = Result<Action>> + Send + 'static,
{
    Controller::new(api, watcher::Config::default())
        .with_config(Config::default().concurrency(WORKERS))
        .run(
            move |object, stage| async move { part(object, stage).await.map_err(Failure) },
            |object: Arc<K>, failure, stage: Arc<Stage>| {
                let name = object.meta().name.as_deref().unwrap_or_default();
                stage.say(&format!("{} {name}: {:#}", K::kind(&()), failure.0));
                Action::requeue(RETRY)
            },
            stage,
        )
        .for_each(|_| ready(()))
        .await;
}

/// A failure of a part; it comes again.
#[derive(Debug)]
struct Failure(anyhow::Error);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for Failure {}

impl Stage {
    fn say(&self, line: &str) {
        // A log that cannot be written is no reason to stop the play.
        writeln!(
            self.log.lock().expect("no holder of this lock panics"),
            "{} {line}",
            jiff::Timestamp::now()
        )
        .ok();
    }

    /// What a volume has to be able to, in the words of CSI.
    fn capability(
        &self,
        modes: &[String],
        volume_mode: Option<&str>,
        fs_type: &str,
    ) -> Result<VolumeCapability> {
        let mode = modes.first().context("an access mode")?;
        let mode = match mode.as_str() {
            "ReadWriteOnce" if self.multi_writer => Mode::SingleNodeMultiWriter,
            "ReadWriteOnce" => Mode::SingleNodeWriter,
            "ReadWriteOncePod" => Mode::SingleNodeSingleWriter,
            "ReadOnlyMany" => Mode::MultiNodeReaderOnly,
            "ReadWriteMany" => Mode::MultiNodeMultiWriter,
            other => anyhow::bail!("access mode {other}"),
        };
        let access_type = match volume_mode {
            Some("Block") => AccessType::Block(BlockVolume {}),
            _ => AccessType::Mount(MountVolume { fs_type: fs_type.to_owned(), ..MountVolume::default() }),
        };
        Ok(VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(access_type),
        })
    }

    /// The driver's name of a node; an error while the driver is not registered there.
    async fn node_id(&self, node: &str) -> Result<String> {
        let nodes: Api<CSINode> = Api::all(self.client.clone());
        let node = nodes.get(node).await?;
        let driver = node.spec.drivers.into_iter().find(|one| one.name == self.driver);
        Ok(driver.context("the driver is not registered on the node")?.node_id)
    }

    /// Volumes of others are not ours to touch.
    fn handle<'a>(&self, volume: &'a PersistentVolume) -> Option<&'a str> {
        let source = volume.spec.as_ref()?.csi.as_ref()?;
        (source.driver == self.driver).then_some(source.volume_handle.as_str())
    }
}
