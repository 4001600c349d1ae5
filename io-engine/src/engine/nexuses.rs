//! Nexuses: made, published, changed, shut down.

use std::rc::Rc;

use engine_api::{
    AddChild, AnaState as ShownAna, ApiError, Call, Child, ChildAction, ChildRef, CreateNexus, ErrorKind,
    Nexus as Shown, NexusState as ShownState, RebuildRecord as ShownRecord, RebuildStats as ShownStats,
    Share, subsystem_nqn, uri_uuid,
};
use nvme::ana::AnaState;
use uuid::Uuid;

use super::core::Core;
use super::export::EngineExport;
use super::fault::{of_nexus, of_target};
use super::replicas::{allowed_hosts, nqn_of};
use super::standby::Serving;
use super::turns::Object;
use crate::block::figures::Figures;
use crate::block::{BlockDevice, Blocks, Geometry};
use crate::device::DeviceUri;
use crate::initiator::InitiatorOptions;
use crate::nexus::child_state::ChildState;
use crate::nexus::gate::Paused;
use crate::nexus::limits;
use crate::nexus::state::NexusState;
use crate::nexus::view::{ChildView, NexusHealth};
use crate::nexus::{ChildSpec, EngineNexus, EngineParts, NexusSpec};
use crate::target::{OlderCommands, Plain, Subsystem};

mod shown;

use shown::{child, child_state, rebuild_state, reservation, stats, time};

/// A nexus, or one that is being made.
pub(super) struct Slot {
    name: String,
    /// Replicas and URIs it was made with.
    children: Vec<ChildSpec>,
    cntlids: std::ops::RangeInclusive<u16>,
    /// Absent while it is being made, and on standby.
    nexus: Option<EngineNexus>,
    standby: Option<Standby>,
    serving: Serving,
    share: Option<Share>,
    /// What hosts see while it is exported.
    ana_state: AnaState,
    /// Holds hosts' I/O while they are told that this path is inaccessible.
    paused: Option<Paused>,
}

/// A nexus that has touched nothing yet.
#[derive(Clone)]
struct Standby {
    spec: NexusSpec,
    /// Its children are being opened.
    is_beginning: bool,
    is_ended: bool,
}

fn not_found(uuid: Uuid) -> ApiError {
    ApiError::not_found(format!("there is no nexus {uuid} here"))
}

fn not_published(uuid: Uuid) -> ApiError {
    ApiError::invalid(format!("nexus {uuid} is not published"))
}

impl Core {
    /// What hosts see of the path: where they connect, and its access state.
    fn show_path(&self, uuid: Uuid, slot: &Slot) -> (Option<String>, ShownAna) {
        let nqn = subsystem_nqn(&slot.name);
        let uri =
            || format!("nvmf+tcp://{}/{nqn}?uuid={}", self.target.address(), identity(&slot.name, uuid));
        let ana_state =
            nqn_of(&slot.name).and_then(|nqn| self.target.ana_state(&nqn).map_err(|error| of_target(&error)));
        let ana_state = match ana_state {
            Ok(AnaState::Optimized) => ShownAna::Optimized,
            Ok(AnaState::NonOptimized) => ShownAna::NonOptimized,
            Ok(AnaState::Inaccessible) => ShownAna::Inaccessible,
            Ok(AnaState::PersistentLoss) => ShownAna::PersistentLoss,
            Ok(AnaState::Change) => ShownAna::Change,
            Err(_) => ShownAna::Invalid,
        };
        (slot.share.is_some().then(uri), ana_state)
    }

    fn show_standby(&self, uuid: Uuid, slot: &Slot, standby: &Standby) -> Shown {
        let (device_uri, ana_state) = self.show_path(uuid, slot);
        let (state, reason) = child_state(ChildState::Opening);
        let child = |child: &ChildSpec| Child {
            uri: child.uri.clone(),
            state,
            reason,
            rebuild_percent: None,
            device_name: None,
            faulted_at: None,
            is_missed_known: false,
        };
        Shown {
            uuid,
            name: slot.name.clone(),
            size_bytes: standby.spec.size_bytes,
            state: if standby.is_ended { ShownState::Shutdown } else { ShownState::Unknown },
            children: slot.children.iter().map(child).collect(),
            device_uri,
            rebuilds: 0,
            ana_state,
            allowed_hosts: slot.share.clone().unwrap_or_default().allowed_hosts,
        }
    }

    fn show_slot(&self, uuid: Uuid, slot: &Slot) -> Option<Shown> {
        if let Some(standby) = &slot.standby {
            return Some(self.show_standby(uuid, slot, standby));
        }
        let view = slot.nexus.as_ref()?.view();
        let (device_uri, ana_state) = self.show_path(uuid, slot);
        Some(Shown {
            uuid,
            name: slot.name.clone(),
            size_bytes: view.size_bytes,
            state: match (view.state, view.health) {
                (NexusState::Init, _) => ShownState::Unknown,
                (NexusState::ShuttingDown, _) => ShownState::ShuttingDown,
                (NexusState::Shutdown | NexusState::Fenced, _) => ShownState::Shutdown,
                (_, NexusHealth::Online) => ShownState::Online,
                (_, NexusHealth::Degraded) => ShownState::Degraded,
                (_, NexusHealth::Faulted) => ShownState::Faulted,
            },
            rebuilds: u32::try_from(view.children.iter().filter(|child| child.rebuild.is_some()).count())
                .unwrap_or(u32::MAX),
            children: view.children.into_iter().map(child).collect(),
            device_uri,
            ana_state,
            allowed_hosts: slot.share.clone().unwrap_or_default().allowed_hosts,
        })
    }

    pub(super) fn list_nexuses(&self) -> Vec<Shown> {
        let nexuses = self.nexuses.borrow();
        nexuses.iter().filter_map(|(uuid, slot)| self.show_slot(*uuid, slot)).collect()
    }

    pub(super) fn nexus_figures(&self, uuid: Uuid) -> Option<Figures> {
        self.nexuses.borrow().get(&uuid).map(|slot| slot.serving.figures())
    }

    fn show_nexus(&self, uuid: Uuid) -> Result<Shown, ApiError> {
        let nexuses = self.nexuses.borrow();
        nexuses.get(&uuid).and_then(|slot| self.show_slot(uuid, slot)).ok_or_else(|| not_found(uuid))
    }

    /// A nexus that was made.
    pub(super) fn nexus(&self, uuid: Uuid) -> Result<EngineNexus, ApiError> {
        if self.standby(uuid).is_some() {
            return Err(ApiError::precondition(format!("nexus {uuid} is on standby")));
        }
        let nexuses = self.nexuses.borrow();
        nexuses.get(&uuid).and_then(|slot| slot.nexus.clone()).ok_or_else(|| not_found(uuid))
    }

    fn standby(&self, uuid: Uuid) -> Option<Standby> {
        self.nexuses.borrow().get(&uuid)?.standby.clone()
    }

    /// The name of a nexus on this engine that has a replica open, or is opening it.
    pub(super) fn user_of(&self, replica: Uuid) -> Option<String> {
        let nexuses = self.nexuses.borrow();
        let uses = |slot: &&Slot| match &slot.nexus {
            None => {
                let is_idle = slot.standby.as_ref().is_some_and(|standby| !standby.is_beginning);
                !is_idle && slot.children.iter().any(|child| child.replica == replica)
            }
            Some(nexus) => {
                let view = nexus.view();
                let is_open = |child: &ChildView| {
                    child.replica == replica
                        && (child.is_local == Some(true) || child.state == ChildState::Opening)
                };
                !view.state.is_final() && view.children.iter().any(is_open)
            }
        };
        nexuses.values().find(uses).map(|slot| slot.name.clone())
    }

    /// The replica behind a child's URI: what the URI says, else whose name it is, else made of the URI itself.
    fn child_spec(&self, uri: String) -> ChildSpec {
        let by_name = || match uri.parse() {
            Ok(DeviceUri::Bdev { name, .. }) => self.find_replica_by_name(&name).map(|it| it.uuid()),
            _ => None,
        };
        let replica = uri_uuid(&uri)
            .or_else(by_name)
            .unwrap_or_else(|| Uuid::new_v5(&Uuid::NAMESPACE_URL, uri.as_bytes()));
        ChildSpec { uri, replica }
    }

    fn parts(self: &Rc<Self>, record_key: &str) -> EngineParts {
        let core = Rc::downgrade(self);
        EngineParts {
            host: self.config.host_nqn.clone(),
            initiator: InitiatorOptions::default(),
            find_local: Rc::new(move |uri: &str| match uri.parse() {
                Ok(DeviceUri::Bdev { name, .. }) => core.upgrade()?.find_replica_by_name(&name),
                _ => None,
            }),
            store: self.stores.of(record_key),
        }
    }

    pub(super) async fn create_nexus(
        self: &Rc<Self>,
        call: Call,
        request: CreateNexus,
    ) -> Result<Shown, ApiError> {
        let uuid = request.uuid;
        let _turn = self.turn(Object::Nexus(uuid), call).await?;
        if self.nexuses.borrow().values().any(|slot| slot.name == request.name) {
            return Err(ApiError::exists(format!("a nexus named {} exists", request.name)));
        }
        if self.nexuses.borrow().contains_key(&uuid) {
            return Err(ApiError::internal(format!("a nexus of id {uuid} exists")));
        }
        nqn_of(&request.name)?;
        let children: Vec<_> = request.children.into_iter().map(|uri| self.child_spec(uri)).collect();
        for (at, child) in children.iter().enumerate() {
            if children[..at].iter().any(|other| other.replica == child.replica) {
                return Err(ApiError::invalid(format!("child {} is named twice", child.uri)));
            }
        }
        if children.is_empty() && request.standby {
            return Err(ApiError::internal("a nexus needs children"));
        }
        if !request.standby {
            self.check_here(&children)?;
        }
        let record_key = request.info_key.unwrap_or_else(|| uuid.to_string());
        let spec = NexusSpec {
            uuid,
            name: request.name.clone(),
            volume: identity(&request.name, uuid),
            size_bytes: request.size_bytes,
            children: children.clone(),
            record_key,
            given_up: request.given_up,
            rebuild_bytes_per_second: None,
            reservation: request.reservation.map(reservation),
        };
        let shown = self.shown_geometry(&spec);
        let standby =
            request.standby.then(|| Standby { spec: spec.clone(), is_beginning: false, is_ended: false });
        let slot = Slot {
            name: request.name,
            children,
            cntlids: request.cntlids,
            nexus: None,
            ana_state: if standby.is_some() { AnaState::Inaccessible } else { AnaState::Optimized },
            standby,
            serving: Serving::new(shown),
            share: None,
            paused: None,
        };
        self.nexuses.borrow_mut().insert(uuid, slot);
        if request.standby {
            return self.show_nexus(uuid);
        }
        match self.begin(spec, false).await {
            Ok(()) => self.show_nexus(uuid),
            Err(error) => {
                self.nexuses.borrow_mut().remove(&uuid);
                Err(error)
            }
        }
    }

    /// What hosts are told before the children are opened: a local one may be asked without touching it.
    fn shown_geometry(&self, spec: &NexusSpec) -> Geometry {
        let local = spec.children.iter().find_map(|child| self.find_replica(child.replica));
        let block_bytes = local.map_or(512, |(_, replica)| replica.geometry().block_bytes);
        Geometry { block_bytes, blocks: Blocks(spec.size_bytes / u64::from(block_bytes)) }
    }

    /// A replica elsewhere may be away for a while, and the nexus opens without it; one that should be here is here or
    /// is a mistake.
    fn check_here(&self, children: &[ChildSpec]) -> Result<(), ApiError> {
        let here = |child: &&ChildSpec| matches!(child.uri.parse(), Ok(DeviceUri::Bdev { .. }));
        match children.iter().filter(here).find(|child| self.find_replica(child.replica).is_none()) {
            None => Ok(()),
            Some(child) => {
                let what = "no such replica in the loaded pools";
                Err(ApiError::invalid(format!("child {} cannot be opened: {what}", child.uri)))
            }
        }
    }

    fn set_beginning(&self, uuid: Uuid, is_beginning: bool) {
        let mut nexuses = self.nexuses.borrow_mut();
        if let Some(standby) = nexuses.get_mut(&uuid).and_then(|slot| slot.standby.as_mut()) {
            standby.is_beginning = is_beginning;
        }
    }

    /// Opens the children of a slot and lets its nexus serve. Hosts that were told a geometry keep it.
    async fn begin(self: &Rc<Self>, spec: NexusSpec, was_shown: bool) -> Result<(), ApiError> {
        let (uuid, record_key) = (spec.uuid, spec.record_key.clone());
        let told = self.nexuses.borrow().get(&uuid).map(|slot| slot.serving.geometry());
        let created = Box::pin(EngineNexus::create(spec, self.parts(&record_key))).await;
        let nexus = created.map_err(|error| of_nexus(&error))?;
        if was_shown && told != Some(nexus.geometry()) {
            nexus.shutdown().await.map_err(|error| of_nexus(&error))?;
            let why =
                format!("nexus {uuid}: its children have other blocks, or less room, than hosts were told");
            return Err(ApiError::invalid(why));
        }
        self.close_hosts_when_stopped(&nexus);
        if let Some(slot) = self.nexuses.borrow_mut().get_mut(&uuid) {
            slot.standby = None;
            slot.serving.begin(nexus.clone());
            slot.nexus = Some(nexus);
        }
        Ok(())
    }

    /// A nexus that stops for any reason answers nothing any more: its hosts are let go at once, so that they try
    /// elsewhere (SAFETY D13, F2).
    fn close_hosts_when_stopped(self: &Rc<Self>, nexus: &EngineNexus) {
        let stopped = nexus.stopped();
        let (uuid, core) = (nexus.uuid(), Rc::downgrade(self));
        runtime::spawn(async move {
            let why = stopped.await;
            if let Some(core) = core.upgrade() {
                tracing::info!(nexus.id = %uuid, ?why, "nexus stopped");
                core.withdraw(uuid);
            }
        });
    }

    /// Ends the export of a nexus.
    fn withdraw(&self, uuid: Uuid) {
        let name = self.nexuses.borrow_mut().get_mut(&uuid).and_then(|slot| {
            slot.share.take()?;
            Some(slot.name.clone())
        });
        if let Some(nqn) = name.and_then(|name| nqn_of(&name).ok()) {
            drop(self.target.remove(&nqn));
        }
    }

    pub(super) async fn destroy_nexus(&self, call: Call, uuid: Uuid) -> Result<(), ApiError> {
        let _turn = self.turn(Object::Nexus(uuid), call).await?;
        let nexus = match self.standby(uuid) {
            Some(_) => None,
            None => Some(self.nexus(uuid)?),
        };
        self.withdraw(uuid);
        if let Some(nexus) = nexus {
            nexus.shutdown().await.map_err(|error| of_nexus(&error))?;
        }
        self.nexuses.borrow_mut().remove(&uuid);
        Ok(())
    }

    pub(super) async fn shutdown_nexus(&self, call: Call, uuid: Uuid) -> Result<Shown, ApiError> {
        let _turn = self.turn(Object::Nexus(uuid), call).await?;
        if let Some(standby) = self.nexuses.borrow_mut().get_mut(&uuid).and_then(|slot| slot.standby.as_mut())
        {
            standby.is_ended = true;
        }
        if self.standby(uuid).is_some() {
            self.withdraw(uuid);
            return self.show_nexus(uuid);
        }
        self.nexus(uuid)?.shutdown().await.map_err(|error| of_nexus(&error))?;
        self.show_nexus(uuid)
    }

    pub(super) async fn publish_nexus(
        &self,
        call: Call,
        uuid: Uuid,
        share: Share,
    ) -> Result<Shown, ApiError> {
        let _turn = self.turn(Object::Nexus(uuid), call).await?;
        self.check_serves(uuid)?;
        let allowed_hosts = allowed_hosts(&share.allowed_hosts)?;
        let (name, cntlids, ana_state, serving) = {
            let nexuses = self.nexuses.borrow();
            let slot = nexuses.get(&uuid).ok_or_else(|| not_found(uuid))?;
            (slot.name.clone(), slot.cntlids.clone(), slot.ana_state, slot.serving.clone())
        };
        let nqn = nqn_of(&name)?;
        let served = if self.target.serves(&nqn) {
            self.target.set_allowed_hosts(&nqn, allowed_hosts)
        } else {
            self.target.add(Subsystem {
                nqn,
                uuid: identity(&name, uuid),
                export: EngineExport::Nexus(Plain(serving)),
                allowed_hosts,
                cntlids,
                ana_state,
                is_thin: true,
                older_commands: OlderCommands::Detach,
                retry_delays: self.config.retry_delays,
            })
        };
        served.map_err(|error| of_target(&error))?;
        if let Some(slot) = self.nexuses.borrow_mut().get_mut(&uuid) {
            slot.share = Some(share);
        }
        self.show_nexus(uuid)
    }

    pub(super) async fn unpublish_nexus(&self, call: Call, uuid: Uuid) -> Result<Shown, ApiError> {
        let _turn = self.turn(Object::Nexus(uuid), call).await?;
        self.show_nexus(uuid)?;
        self.withdraw(uuid);
        self.show_nexus(uuid)
    }

    /// Refuses a nexus that was shut down or stopped.
    fn check_serves(&self, uuid: Uuid) -> Result<(), ApiError> {
        let state = match self.standby(uuid) {
            Some(standby) if standby.is_ended => NexusState::Shutdown,
            Some(_) => NexusState::Open,
            None => self.nexus(uuid)?.view().state,
        };
        match state {
            NexusState::Open | NexusState::Holding => Ok(()),
            state => Err(ApiError::precondition(format!("nexus {uuid} is {state}"))),
        }
    }

    pub(super) async fn set_ana_state(
        self: &Rc<Self>,
        call: Call,
        uuid: Uuid,
        state: ShownAna,
    ) -> Result<Shown, ApiError> {
        let _turn = self.turn(Object::Nexus(uuid), call).await?;
        self.check_serves(uuid)?;
        let shown = self.show_nexus(uuid)?;
        if shown.device_uri.is_none() {
            return Err(not_published(uuid));
        }
        let nqn = nqn_of(&shown.name)?;
        let wanted = match state {
            ShownAna::Optimized => AnaState::Optimized,
            ShownAna::NonOptimized => AnaState::NonOptimized,
            ShownAna::Inaccessible => AnaState::Inaccessible,
            ShownAna::Invalid | ShownAna::PersistentLoss | ShownAna::Change => {
                return Err(ApiError::invalid(format!("{state:?} is no ANA state that can be asked for")));
            }
        };
        if let Some(standby) = self.standby(uuid) {
            match wanted {
                AnaState::Inaccessible => return Ok(shown),
                AnaState::Optimized => {}
                _ => return Err(ApiError::precondition(format!("nexus {uuid} is on standby"))),
            }
            self.check_here(&standby.spec.children)?;
            self.set_beginning(uuid, true);
            let begun = self.begin(standby.spec, true).await;
            self.set_beginning(uuid, false);
            begun?;
        }
        let nexus = self.nexus(uuid)?;
        // Held first and told afterwards: a host that hears of it sends its commands elsewhere, and none of those that
        // went on here may land after them.
        let paused = match wanted {
            AnaState::Inaccessible => {
                Some(runtime::timeout(limits::SHUTDOWN_DRAIN, nexus.pause()).await.map_err(|_| {
                    let why = format!("nexus {uuid}: I/O in flight did not end in time");
                    ApiError::new(ErrorKind::DeadlineExceeded, why)
                })?)
            }
            _ => None,
        };
        self.target.set_ana_state(&nqn, wanted).map_err(|error| of_target(&error))?;
        if let Some(slot) = self.nexuses.borrow_mut().get_mut(&uuid) {
            slot.ana_state = wanted;
            slot.paused = paused;
        }
        self.show_nexus(uuid)
    }

    pub(super) async fn resize_nexus(
        &self,
        call: Call,
        uuid: Uuid,
        size_bytes: u64,
    ) -> Result<Shown, ApiError> {
        let _turn = self.turn(Object::Nexus(uuid), call).await?;
        let nexus = self.nexus(uuid)?;
        let before = nexus.geometry();
        nexus.resize(size_bytes).await.map_err(|error| of_nexus(&error))?;
        let nqn = nqn_of(nexus.name())?;
        // Afterwards: a host that hears of it asks at once how large it is.
        if nexus.geometry() != before && self.target.serves(&nqn) {
            self.target.namespace_changed(&nqn).map_err(|error| of_target(&error))?;
        }
        self.show_nexus(uuid)
    }

    pub(super) fn get_ana_state(&self, uuid: Uuid) -> Result<ShownAna, ApiError> {
        match self.show_nexus(uuid)?.ana_state {
            ShownAna::Invalid => Err(not_published(uuid)),
            state => Ok(state),
        }
    }

    pub(super) async fn add_child(&self, call: Call, request: AddChild) -> Result<Shown, ApiError> {
        let _turn = self.turn(Object::Nexus(request.nexus), call).await?;
        let nexus = self.nexus(request.nexus)?;
        let spec = self.child_spec(request.uri);
        nexus.add_child(spec, !request.rebuild).await.map_err(|error| of_nexus(&error))?;
        self.show_nexus(request.nexus)
    }

    pub(super) async fn remove_child(&self, call: Call, which: ChildRef) -> Result<Shown, ApiError> {
        let _turn = self.turn(Object::Nexus(which.nexus), call).await?;
        let nexus = self.nexus(which.nexus)?;
        nexus.remove_child(&which.uri).await.map_err(|error| of_nexus(&error))?;
        self.show_nexus(which.nexus)
    }

    pub(super) async fn child_operation(
        &self,
        call: Call,
        which: ChildRef,
        action: ChildAction,
    ) -> Result<Shown, ApiError> {
        let _turn = self.turn(Object::Nexus(which.nexus), call).await?;
        let nexus = self.nexus(which.nexus)?;
        let done = match action {
            // A child that failed as if by an I/O error may come back, like one taken offline.
            ChildAction::Offline | ChildAction::FaultIoError => nexus.offline_child(&which.uri).await,
            ChildAction::Online => nexus.online_child(&which.uri).await,
            ChildAction::OfflinePermanent => nexus.fault_child(&which.uri).await,
        };
        done.map_err(|error| of_nexus(&error))?;
        self.show_nexus(which.nexus)
    }

    pub(super) fn rebuild_stats(&self, which: &ChildRef) -> Result<ShownStats, ApiError> {
        let rebuild = self.nexus(which.nexus)?.rebuild(&which.uri).map_err(|error| of_nexus(&error))?;
        Ok(stats(&rebuild.stats()))
    }

    pub(super) fn rebuild_history(&self) -> Vec<ShownRecord> {
        let nexuses = self.nexuses.borrow();
        let made = nexuses.values().filter_map(|slot| slot.nexus.as_ref());
        let mut records: Vec<_> = made
            .flat_map(|nexus| nexus.rebuild_history().into_iter().rev().map(|record| (nexus.uuid(), record)))
            .map(|(nexus, record)| ShownRecord {
                nexus,
                child_uri: record.child_uri,
                source_uri: record.source_uri,
                state: rebuild_state(record.stats.state),
                ended_at: time(record.stats.end_time),
                stats: stats(&record.stats),
            })
            .collect();
        records.sort_by_key(|record| record.ended_at);
        records
    }

    /// Shuts every nexus down, for the end of the process.
    pub(super) async fn shut_down_nexuses(&self) {
        let nexuses: Vec<_> = self.nexuses.borrow().values().filter_map(|slot| slot.nexus.clone()).collect();
        let ends = nexuses.into_iter().map(|nexus| async move {
            self.withdraw(nexus.uuid());
            if let Err(error) = nexus.shutdown().await {
                tracing::warn!(nexus.id = %nexus.uuid(), %error, "nexus not shut down in order");
            }
        });
        futures::future::join_all(ends).await;
    }
}

/// What hosts see as a nexus's identity: its name where that is a uuid, so that a volume keeps it over incarnations.
fn identity(name: &str, uuid: Uuid) -> Uuid {
    name.parse().unwrap_or(uuid)
}
