//! Nexuses of a simulated cluster: who may be removed, what is rebuilt, what a lost replica does.

use jiff::Timestamp;
use uuid::Uuid;

use super::world::{Holder, Rebuilds, World};
use crate::{
    error::ApiError,
    layout,
    types::{
        AddChild, AnaState, Child, ChildAction, ChildReason, ChildRef, ChildState, CreateNexus, Nexus,
        NexusState, Preempt, RebuildRecord, RebuildState, RebuildStats, Reservation, Share, subsystem_nqn,
    },
};

const BLOCK_BYTES: u32 = 512;

/// A nexus as its engine has it.
pub(super) struct SimNexus {
    pub(super) name: String,
    uuid: Uuid,
    size_bytes: u64,
    life: Life,
    ana: AnaState,
    reservation: Option<Reservation>,
    share: Option<Share>,
    children: Vec<SimChild>,
    pub(super) history: Vec<RebuildRecord>,
}

/// Where a nexus is in its life.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Standby,
    Serving,
    ShutDown,
}

/// A child and what it is in.
struct SimChild {
    uri: String,
    state: State,
    faulted_at: Option<Timestamp>,
}

/// What a child is in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    InSync,
    OutOfSync { rebuild_percent: Option<u8> },
    Out { reason: ChildReason, may_return: bool },
}

impl State {
    fn shown(self) -> (ChildState, ChildReason, Option<u8>) {
        use ChildReason as Reason;
        match self {
            Self::InSync => (ChildState::Online, Reason::None, None),
            Self::OutOfSync { rebuild_percent } => (ChildState::Degraded, Reason::OutOfSync, rebuild_percent),
            Self::Out { reason, may_return: true } => (ChildState::Degraded, reason, None),
            Self::Out { reason, may_return: false } => (ChildState::Faulted, reason, None),
        }
    }
}

impl SimChild {
    fn fault(&mut self, reason: ChildReason) {
        self.state = State::Out { reason, may_return: reason == ChildReason::NoSpace };
        self.faulted_at = Some(Timestamp::UNIX_EPOCH);
    }

    fn is_open(&self) -> bool {
        !matches!(self.state, State::Out { .. })
    }

    fn shown(&self) -> Child {
        let (state, reason, rebuild_percent) = self.state.shown();
        Child {
            uri: self.uri.clone(),
            state,
            reason,
            rebuild_percent,
            device_name: self.is_open().then(|| self.uri.clone()),
            faulted_at: self.faulted_at,
            is_missed_known: false,
        }
    }
}

impl SimNexus {
    pub(super) fn is_open(&self) -> bool {
        self.life == Life::Serving
    }

    pub(super) fn open_children(&self) -> impl Iterator<Item = &str> {
        self.children.iter().filter(|child| child.is_open()).map(|child| child.uri.as_str())
    }

    fn shown(&self, address: std::net::IpAddr) -> Nexus {
        let healthy = self.children.iter().filter(|child| child.state == State::InSync).count();
        let state = match healthy {
            _ if self.life == Life::Standby => NexusState::Unknown,
            _ if self.life == Life::ShutDown => NexusState::Shutdown,
            0 => NexusState::Faulted,
            n if n == self.children.len() => NexusState::Online,
            _ => NexusState::Degraded,
        };
        let rebuilds = self
            .children
            .iter()
            .filter(|child| matches!(child.state, State::OutOfSync { rebuild_percent: Some(_) }));
        let device_uri = self
            .share
            .as_ref()
            .map(|_| format!("nvmf+tcp://{address}:8420/{}?uuid={}", subsystem_nqn(&self.name), self.uuid));
        Nexus {
            uuid: self.uuid,
            name: self.name.clone(),
            size_bytes: self.size_bytes,
            state,
            children: self.children.iter().map(SimChild::shown).collect(),
            rebuilds: u32::try_from(rebuilds.count()).unwrap_or(u32::MAX),
            ana_state: if device_uri.is_some() { self.ana } else { AnaState::Invalid },
            device_uri,
            allowed_hosts: self.share.clone().unwrap_or_default().allowed_hosts,
        }
    }

    /// Refuses to take out the last child that has all data.
    fn check_not_last_healthy(&self, uri: &str) -> Result<(), ApiError> {
        let others = self.children.iter().filter(|child| child.uri != uri);
        let mut healthy_others = others.filter(|child| child.state == State::InSync);
        let is_healthy = self.children.iter().any(|child| child.uri == uri && child.state == State::InSync);
        if self.children.len() == 1 || (is_healthy && healthy_others.next().is_none()) {
            let why = format!("{uri} is the last healthy child of nexus {}", self.name);
            return Err(ApiError::precondition(why));
        }
        Ok(())
    }

    fn child_mut(&mut self, uri: &str) -> Result<&mut SimChild, ApiError> {
        let name = self.name.clone();
        self.children
            .iter_mut()
            .find(|child| child.uri == uri)
            .ok_or_else(|| ApiError::not_found(format!("nexus {name} has no child {uri}")))
    }

    fn check_is_published(&self) -> Result<(), ApiError> {
        match self.share {
            Some(_) => Ok(()),
            None => Err(ApiError::invalid(format!("nexus {} is not published", self.name))),
        }
    }

    /// Closes children and hosts' connections.
    fn shut_down(&mut self) {
        self.life = Life::ShutDown;
        self.share = None;
        for child in &mut self.children {
            if child.is_open() {
                child.state = State::Out { reason: ChildReason::Closed, may_return: true };
            }
        }
    }

    fn check_serves(&self) -> Result<(), ApiError> {
        match self.life {
            Life::ShutDown => Err(ApiError::precondition(format!("nexus {} is shut down", self.name))),
            Life::Standby => Err(ApiError::precondition(format!("nexus {} is on standby", self.name))),
            Life::Serving => Ok(()),
        }
    }

    fn stats(&self, percent: u8) -> RebuildStats {
        let total = self.size_bytes / u64::from(BLOCK_BYTES);
        let recovered = total * u64::from(percent) / 100;
        RebuildStats {
            blocks_total: total,
            blocks_recovered: recovered,
            blocks_transferred: recovered,
            blocks_remaining: total - recovered,
            percent: percent.into(),
            blocks_per_task: 128,
            block_bytes: BLOCK_BYTES.into(),
            tasks_total: 16,
            tasks_active: u64::from(percent < 100),
            is_partial: false,
            started_at: Some(Timestamp::UNIX_EPOCH),
        }
    }

    /// Notes the end of a child's rebuild.
    fn record(&mut self, uri: &str, state: RebuildState, percent: u8) {
        let source = self.children.iter().find(|child| child.state == State::InSync && child.uri != uri);
        self.history.push(RebuildRecord {
            nexus: self.uuid,
            child_uri: uri.into(),
            source_uri: source.map(|child| child.uri.clone()).unwrap_or_default(),
            state,
            stats: self.stats(percent),
            ended_at: Some(Timestamp::UNIX_EPOCH),
        });
    }

    fn start_rebuild(&mut self, uri: &str, rebuilds: Rebuilds) -> Result<(), ApiError> {
        let has_source = self.children.iter().any(|child| child.state == State::InSync);
        let percent = has_source.then_some(0);
        self.child_mut(uri)?.state = State::OutOfSync { rebuild_percent: percent };
        if has_source && rebuilds == Rebuilds::AtOnce {
            self.finish_rebuild(uri)?;
        }
        Ok(())
    }

    fn finish_rebuild(&mut self, uri: &str) -> Result<(), ApiError> {
        self.record(uri, RebuildState::Completed, 100);
        let child = self.child_mut(uri)?;
        child.state = State::InSync;
        child.faulted_at = None;
        Ok(())
    }
}

impl World {
    fn nexus_mut(&mut self, node: &str, id: Uuid) -> Result<&mut SimNexus, ApiError> {
        self.node_mut(node)
            .nexuses
            .get_mut(&id)
            .ok_or_else(|| ApiError::not_found(format!("there is no nexus {id} here")))
    }

    fn anywhere(&mut self, id: Uuid) -> Result<&mut SimNexus, ApiError> {
        self.nodes_mut()
            .find_map(|node| node.nexuses.get_mut(&id))
            .ok_or_else(|| ApiError::not_found(format!("there is no nexus {id} anywhere")))
    }

    fn shown(&self, node: &str, id: Uuid) -> Nexus {
        let here = self.node(node);
        here.nexuses[&id].shown(here.address)
    }

    pub(super) fn nexuses(&self, node: &str) -> Vec<Nexus> {
        let here = self.node(node);
        here.nexuses.values().map(|nexus| nexus.shown(here.address)).collect()
    }

    /// Host bytes that fit on a child, or why it cannot be opened.
    fn open_child(&self, node: &str, uri: &str) -> Result<u64, ApiError> {
        let replica = self
            .reach(node, uri)
            .ok_or_else(|| ApiError::invalid(format!("child {uri} cannot be opened")))?;
        match layout::host_bytes(replica.size_bytes, BLOCK_BYTES) {
            0 => Err(ApiError::invalid(format!("child {uri} is too small"))),
            fits => Ok(fits),
        }
    }

    pub(super) fn create_nexus(&mut self, node: &str, request: CreateNexus) -> Result<Nexus, ApiError> {
        let taken = &self.node(node).nexuses;
        if taken.values().any(|nexus| nexus.name == request.name) {
            return Err(ApiError::exists(format!("a nexus named {} exists", request.name)));
        }
        if taken.contains_key(&request.uuid) {
            return Err(ApiError::internal(format!("a nexus of id {} exists", request.uuid)));
        }
        if request.children.is_empty() {
            return Err(ApiError::internal("a nexus needs children"));
        }
        let mut children: Vec<SimChild> = Vec::new();
        for uri in request.children {
            if children.iter().any(|child| child.uri == uri) {
                return Err(ApiError::invalid(format!("child {uri} is named twice")));
            }
            let state = State::Out { reason: ChildReason::Init, may_return: true };
            children.push(SimChild { uri, state, faulted_at: None });
        }
        let nexus = SimNexus {
            name: request.name,
            uuid: request.uuid,
            size_bytes: request.size_bytes,
            life: Life::Standby,
            ana: AnaState::Inaccessible,
            reservation: request.reservation,
            share: None,
            children,
            history: Vec::new(),
        };
        self.node_mut(node).nexuses.insert(request.uuid, nexus);
        if !request.standby
            && let Err(error) = self.activate(node, request.uuid)
        {
            self.node_mut(node).nexuses.remove(&request.uuid);
            return Err(error);
        }
        Ok(self.shown(node, request.uuid))
    }

    /// Makes a nexus on standby serve: its children are opened and reserved, or nothing is changed.
    fn activate(&mut self, node: &str, id: Uuid) -> Result<(), ApiError> {
        let nexus = self.nexus_mut(node, id)?;
        let (mut size_bytes, reservation) = (nexus.size_bytes, nexus.reservation);
        let uris: Vec<_> = nexus.children.iter().map(|child| child.uri.clone()).collect();
        for uri in &uris {
            size_bytes = size_bytes.min(self.open_child(node, uri)?);
        }
        let replaced = self.take_reservations(node, id, &uris, reservation)?;
        for other in self.nodes_mut().flat_map(|node| node.nexuses.values_mut()) {
            // The next command of the one replaced meets the reservation, and it stops.
            if replaced.contains(&other.uuid) && other.is_open() {
                other.shut_down();
            }
        }
        let nexus = self.nexus_mut(node, id)?;
        (nexus.size_bytes, nexus.life, nexus.ana) = (size_bytes, Life::Serving, AnaState::Optimized);
        for child in &mut nexus.children {
            child.state = State::InSync;
        }
        Ok(())
    }

    /// Takes the reservation of every child for a nexus, and tells whom it replaced.
    fn take_reservations(
        &mut self,
        node: &str,
        id: Uuid,
        uris: &[String],
        reservation: Option<Reservation>,
    ) -> Result<Vec<Uuid>, ApiError> {
        let reached: Vec<_> = uris.iter().filter_map(|uri| self.reach(node, uri)).collect();
        let replicas: Vec<_> = reached.into_iter().map(|replica| replica.uuid).collect();
        let mut replaced = Vec::new();
        for replica in &replicas {
            let Some(holder) = self.holder_mut(*replica).and_then(|holder| *holder) else { continue };
            let is_replaced = holder.nexus == id
                || match reservation.map(|reservation| reservation.preempt) {
                    Some(Preempt::Holder) => true,
                    Some(Preempt::Key(key)) => key == holder.key,
                    Some(Preempt::Nobody) | None => false,
                };
            if !is_replaced {
                let why = format!("replica {replica} is reserved by nexus {}", holder.nexus);
                return Err(ApiError::internal(why));
            }
            replaced.push(holder.nexus);
        }
        if let Some(reservation) = reservation {
            // Nexuses that never reserved are shut out as well.
            let users = self.nexuses_over(&replicas);
            replaced.extend(users);
            replaced.retain(|replaced| *replaced != id);
            for replica in replicas {
                if let Some(holder) = self.holder_mut(replica) {
                    *holder = Some(Holder { nexus: id, key: reservation.key });
                }
            }
        }
        Ok(replaced)
    }

    /// Nexuses that have one of the replicas open.
    fn nexuses_over(&self, replicas: &[Uuid]) -> Vec<Uuid> {
        let mut found = Vec::new();
        for (name, node) in self.nodes() {
            for nexus in node.nexuses.values().filter(|nexus| nexus.is_open()) {
                let mut uses = nexus.open_children().filter_map(|uri| self.reach(name, uri));
                if uses.any(|replica| replicas.contains(&replica.uuid)) {
                    found.push(nexus.uuid);
                }
            }
        }
        found
    }

    pub(super) fn resize_nexus(&mut self, node: &str, id: Uuid, size_bytes: u64) -> Result<Nexus, ApiError> {
        let nexus = self.nexus_mut(node, id)?;
        nexus.check_serves()?;
        if size_bytes < nexus.size_bytes {
            let why = format!("nexus {} has {} bytes and does not shrink", nexus.name, nexus.size_bytes);
            return Err(ApiError::invalid(why));
        }
        let open: Vec<_> = nexus.open_children().map(ToOwned::to_owned).collect();
        for uri in open {
            let fits = self.open_child(node, &uri)?;
            if fits < size_bytes {
                let why = format!("child {uri} holds {fits} bytes, {size_bytes} are asked for");
                return Err(ApiError::invalid(why));
            }
        }
        self.nexus_mut(node, id)?.size_bytes = size_bytes;
        Ok(self.shown(node, id))
    }

    pub(super) fn set_ana_state(&mut self, node: &str, id: Uuid, state: AnaState) -> Result<Nexus, ApiError> {
        let nexus = self.nexus_mut(node, id)?;
        if nexus.life == Life::ShutDown {
            return Err(ApiError::precondition(format!("nexus {} was shut down", nexus.name)));
        }
        nexus.check_is_published()?;
        match (nexus.life, state) {
            (_, AnaState::Invalid | AnaState::PersistentLoss | AnaState::Change) => {
                return Err(ApiError::invalid(format!("{state:?} is no ANA state that can be asked for")));
            }
            (Life::Standby, AnaState::NonOptimized) => {
                return Err(ApiError::precondition(format!("nexus {} is on standby", nexus.name)));
            }
            (Life::Standby, AnaState::Optimized) => self.activate(node, id)?,
            _ => nexus.ana = state,
        }
        Ok(self.shown(node, id))
    }

    pub(super) fn get_ana_state(&mut self, node: &str, id: Uuid) -> Result<AnaState, ApiError> {
        let nexus = self.nexus_mut(node, id)?;
        nexus.check_is_published()?;
        Ok(nexus.ana)
    }

    /// Gives up what a nexus has reserved.
    fn release(&mut self, id: Uuid) {
        for holder in self.holders_mut() {
            holder.take_if(|holder| holder.nexus == id);
        }
    }

    pub(super) fn destroy_nexus(&mut self, node: &str, id: Uuid) -> Result<(), ApiError> {
        self.nexus_mut(node, id)?;
        self.release(id);
        self.node_mut(node).nexuses.remove(&id);
        Ok(())
    }

    pub(super) fn shutdown_nexus(&mut self, node: &str, id: Uuid) -> Result<Nexus, ApiError> {
        self.nexus_mut(node, id)?.shut_down();
        self.release(id);
        Ok(self.shown(node, id))
    }

    pub(super) fn publish_nexus(
        &mut self,
        node: &str,
        id: Uuid,
        share: Option<Share>,
    ) -> Result<Nexus, ApiError> {
        let nexus = self.nexus_mut(node, id)?;
        if share.is_some() && nexus.life != Life::Standby {
            nexus.check_serves()?;
        }
        nexus.share = share;
        Ok(self.shown(node, id))
    }

    pub(super) fn add_child(&mut self, node: &str, request: &AddChild) -> Result<Nexus, ApiError> {
        let rebuilds = self.rebuilds;
        let nexus = self.nexus_mut(node, request.nexus)?;
        nexus.check_serves()?;
        if nexus.children.iter().any(|child| child.uri == request.uri) {
            return Err(ApiError::exists(format!("nexus {} has child {}", nexus.name, request.uri)));
        }
        let needed = nexus.size_bytes;
        let fits = self.open_child(node, &request.uri)?;
        if fits < needed {
            let why = format!("child {} holds {fits} bytes, the nexus has {needed}", request.uri);
            return Err(ApiError::invalid(why));
        }
        let nexus = self.nexus_mut(node, request.nexus)?;
        let state = State::OutOfSync { rebuild_percent: None };
        nexus.children.push(SimChild { uri: request.uri.clone(), state, faulted_at: None });
        if request.rebuild {
            nexus.start_rebuild(&request.uri, rebuilds)?;
        }
        Ok(self.shown(node, request.nexus))
    }

    pub(super) fn remove_child(&mut self, node: &str, child: &ChildRef) -> Result<Nexus, ApiError> {
        let nexus = self.nexus_mut(node, child.nexus)?;
        nexus.check_serves()?;
        if nexus.children.iter().any(|known| known.uri == child.uri) {
            nexus.check_not_last_healthy(&child.uri)?;
            nexus.children.retain(|known| known.uri != child.uri);
        }
        Ok(self.shown(node, child.nexus))
    }

    pub(super) fn child_operation(
        &mut self,
        node: &str,
        child: &ChildRef,
        action: ChildAction,
    ) -> Result<Nexus, ApiError> {
        let rebuilds = self.rebuilds;
        let can_open = self.open_child(node, &child.uri);
        let nexus = self.nexus_mut(node, child.nexus)?;
        nexus.check_serves()?;
        let state = nexus.child_mut(&child.uri)?.state;
        if action == ChildAction::Online {
            if let State::Out { reason, may_return } = state {
                // What was taken out for good comes back only by being removed and added.
                if reason == ChildReason::ByClient && !may_return {
                    return Err(ApiError::precondition(format!("{} was taken out for good", child.uri)));
                }
                let (fits, needed) = (can_open?, nexus.size_bytes);
                if fits < needed {
                    let why = format!("child {} holds {fits} bytes, the nexus has {needed}", child.uri);
                    return Err(ApiError::invalid(why));
                }
                nexus.start_rebuild(&child.uri, rebuilds)?;
            }
        } else {
            nexus.check_not_last_healthy(&child.uri)?;
            let reason = match action {
                ChildAction::FaultIoError => ChildReason::IoFailure,
                _ => ChildReason::ByClient,
            };
            nexus.child_mut(&child.uri)?.fault(reason);
            // A plain offline may come back: it is degraded, not lost.
            if action == ChildAction::Offline {
                nexus.child_mut(&child.uri)?.state = State::Out { reason, may_return: true };
            }
        }
        Ok(self.shown(node, child.nexus))
    }

    pub(super) fn rebuild_stats(&mut self, node: &str, child: &ChildRef) -> Result<RebuildStats, ApiError> {
        let nexus = self.nexus_mut(node, child.nexus)?;
        match nexus.child_mut(&child.uri)?.state {
            State::OutOfSync { rebuild_percent: Some(percent) } => Ok(nexus.stats(percent)),
            _ => Err(ApiError::not_found(format!("no rebuild of {} runs", child.uri))),
        }
    }

    pub(super) fn set_rebuild_percent(&mut self, id: Uuid, uri: &str, percent: u8) -> Result<(), ApiError> {
        let nexus = self.anywhere(id)?;
        let child = nexus.child_mut(uri)?;
        match (&mut child.state, percent) {
            (State::OutOfSync { rebuild_percent: Some(_) }, 100..) => nexus.finish_rebuild(uri),
            (State::OutOfSync { rebuild_percent: Some(old) }, _) => {
                *old = percent;
                Ok(())
            }
            _ => Err(ApiError::not_found(format!("no rebuild of {uri} runs"))),
        }
    }

    pub(super) fn fail_rebuild(&mut self, id: Uuid, uri: &str) -> Result<(), ApiError> {
        let nexus = self.anywhere(id)?;
        let State::OutOfSync { rebuild_percent: Some(percent) } = nexus.child_mut(uri)?.state else {
            return Err(ApiError::not_found(format!("no rebuild of {uri} runs")));
        };
        nexus.record(uri, RebuildState::Failed, percent);
        nexus.child_mut(uri)?.fault(ChildReason::RebuildFailed);
        Ok(())
    }

    pub(super) fn fault_child_for(
        &mut self,
        id: Uuid,
        uri: &str,
        reason: ChildReason,
    ) -> Result<(), ApiError> {
        self.anywhere(id)?.child_mut(uri)?.fault(reason);
        Ok(())
    }

    /// Faults every open child whose replica cannot be reached any more, as the write path of a real nexus would.
    pub(super) fn lose_unreachable_children(&mut self) {
        let names: Vec<String> = self.nodes_mut().map(|node| node.info.node.clone()).collect();
        for name in names {
            let mut lost = Vec::new();
            for (id, nexus) in &self.node(&name).nexuses {
                if nexus.is_open() {
                    let unreachable = nexus.open_children().filter(|uri| self.reach(&name, uri).is_none());
                    lost.extend(unreachable.map(|uri| (*id, uri.to_owned())));
                }
            }
            for (id, uri) in lost {
                if let Ok(child) = self.nexus_mut(&name, id).and_then(|nexus| nexus.child_mut(&uri)) {
                    child.fault(ChildReason::IoFailure);
                }
            }
        }
    }
}
