//! What an administrator does to a nexus: children in and out, rebuilds, shutdown.

use std::rc::Rc;

use uuid::Uuid;

use crate::nexus::child::{Child, Parts};
use crate::nexus::child_state::{ChildEvent, ChildState, FaultReason};
use crate::nexus::create::open_child;
use crate::nexus::error::NexusError;
use crate::nexus::limits;
use crate::nexus::retire::{self, Change};
use crate::nexus::state::{NexusEvent, NexusState};
use crate::nexus::{ChildSpec, Inner, Nexus, StopReason};
use crate::rebuild::RebuildHandle;

impl<P: Parts> Nexus<P> {
    /// Adds a child and, unless `no_rebuild`, starts to fill it. Returns when the record knows it.
    pub async fn add_child(&self, spec: ChildSpec, no_rebuild: bool) -> Result<(), NexusError> {
        let nexus = &self.inner;
        nexus.check_open()?;
        let child = {
            let mut children = nexus.children.borrow_mut();
            if children.iter().any(|other| other.uri == spec.uri || other.replica == spec.replica) {
                return Err(NexusError::ChildExists { uri: spec.uri });
            }
            if children.len() >= limits::CHILDREN_MAX {
                return Err(NexusError::TooManyChildren { max: limits::CHILDREN_MAX });
            }
            let child = Child::new(spec.uri, spec.replica);
            nexus.listen_for_conflicts(&child);
            children.push(Rc::clone(&child));
            child
        };
        let added = async {
            open_child(nexus, &child).await?;
            let proof = retire::change(nexus, Change::Add(child.replica))
                .await
                .map_err(|refused| NexusError::of_change(refused, &child.uri))?;
            child.set_recorded(proof);
            Ok(())
        };
        if let Err(error) = added.await {
            nexus.children.borrow_mut().retain(|other| !Rc::ptr_eq(other, &child));
            child.apply(ChildEvent::Left);
            return Err(error);
        }
        if no_rebuild {
            child.apply(ChildEvent::OpenFailed(FaultReason::OutOfSync));
        } else {
            nexus.start_rebuild(&child);
        }
        nexus.changed();
        Ok(())
    }

    /// Takes a child out for good. A child that is not there is no error.
    pub async fn remove_child(&self, uri: &str) -> Result<(), NexusError> {
        let nexus = &self.inner;
        nexus.check_open()?;
        let Ok(child) = nexus.child_by_uri(uri) else { return Ok(()) };
        nexus.take_out(&child, FaultReason::ByClient).await?;
        retire::change(nexus, Change::Remove(child.replica))
            .await
            .map_err(|refused| NexusError::of_change(refused, uri))?;
        nexus.forget_everywhere(child.replica).await;
        child.apply(ChildEvent::Left);
        nexus.children.borrow_mut().retain(|other| !Rc::ptr_eq(other, &child));
        nexus.changed();
        Ok(())
    }

    /// Declares a child bad; it stays listed and comes back only by being removed and added. Returns when the record
    /// knows it.
    pub async fn fault_child(&self, uri: &str) -> Result<(), NexusError> {
        let child = self.inner.child_by_uri(uri)?;
        self.inner.check_open()?;
        self.inner.take_out(&child, FaultReason::ByClient).await
    }

    /// Takes a child out until [`Nexus::online_child`].
    pub async fn offline_child(&self, uri: &str) -> Result<(), NexusError> {
        let child = self.inner.child_by_uri(uri)?;
        self.inner.check_open()?;
        self.inner.take_out(&child, FaultReason::Offline).await
    }

    /// Opens a child again and fills it. A child that takes part already is no error.
    pub async fn online_child(&self, uri: &str) -> Result<(), NexusError> {
        let nexus = &self.inner;
        nexus.check_open()?;
        let child = nexus.child_by_uri(uri)?;
        match child.state() {
            ChildState::InSync | ChildState::Rebuilding | ChildState::Silent => return Ok(()),
            ChildState::Faulted(reason) if reason.is_recoverable() => {}
            state => return Err(NexusError::ChildState { uri: uri.to_owned(), state }),
        }
        child.apply(ChildEvent::Reopened);
        if let Err(error) = open_child(nexus, &child).await {
            child.apply(ChildEvent::OpenFailed(FaultReason::CannotOpen));
            nexus.changed();
            return Err(error);
        }
        nexus.start_rebuild(&child);
        nexus.changed();
        Ok(())
    }

    /// Gives a member up that the volume waits for.
    pub fn give_up(&self, replica: Uuid) {
        self.inner.given_up.borrow_mut().push(replica);
        self.inner.judge();
    }

    /// The rebuild of a child, while there is one.
    pub fn rebuild(&self, uri: &str) -> Result<RebuildHandle, NexusError> {
        let child = self.inner.child_by_uri(uri)?;
        self.inner.rebuild_of(child.replica).ok_or_else(|| NexusError::NoRebuild { uri: uri.to_owned() })
    }

    /// Ends service in order: I/O drains, every region is closed, the record says so. What is still held after
    /// [`limits::SHUTDOWN_DRAIN`] is dropped without an answer. Idempotent.
    pub async fn shutdown(&self) -> Result<(), NexusError> {
        let nexus = &self.inner;
        if nexus.state.get().is_final() {
            return Ok(());
        }
        if !nexus.apply(NexusEvent::ShutdownBegun) {
            return Err(NexusError::NexusState { state: nexus.state.get() });
        }
        nexus.gate.close();
        for rebuild in nexus.rebuilds.borrow().iter() {
            rebuild.stop();
        }
        let is_drained = runtime::timeout(limits::SHUTDOWN_DRAIN, nexus.gate.drained()).await.is_ok();
        let closing = async {
            while nexus.is_closing.get() {
                runtime::sleep(limits::RECONNECT_PAUSE).await;
            }
            // Regions still to be copied stay open for the next nexus.
            nexus.unsynced.borrow().len() == 0
                && nexus.close_regions().await
                && nexus.regions.borrow().is_empty()
        };
        let is_equal = is_drained && runtime::timeout(limits::SHUTDOWN_DRAIN, closing).await.unwrap_or(false);
        if is_drained {
            // What is still under way is the next nexus's to shut out: it stays reserved then.
            nexus.unregister().await;
        }
        if is_equal {
            let recorded = retire::change(nexus, Change::Clean);
            match runtime::timeout(limits::SHUTDOWN_STORE_DEADLINE, recorded).await {
                Ok(Ok(_)) => {}
                // The next nexus will find it unclean and copy nothing, since no region is open.
                Ok(Err(refused)) => tracing::warn!(nexus.id = %nexus.uuid, %refused, "not recorded as clean"),
                Err(_) => tracing::warn!(nexus.id = %nexus.uuid, "store unreachable: not recorded as clean"),
            }
        } else {
            tracing::warn!(nexus.id = %nexus.uuid, "shut down with I/O held or regions open");
        }
        nexus.apply(NexusEvent::ShutdownDone);
        nexus.stop(StopReason::Shutdown);
        Ok(())
    }
}

impl<P: Parts> Inner<P> {
    pub(super) fn check_open(&self) -> Result<(), NexusError> {
        match self.state.get() {
            NexusState::Open | NexusState::Holding => Ok(()),
            state => Err(NexusError::NexusState { state }),
        }
    }

    fn child_by_uri(&self, uri: &str) -> Result<Rc<Child<P::Device>>, NexusError> {
        let found = self.children.borrow().iter().find(|child| child.uri == uri).cloned();
        found.ok_or_else(|| NexusError::ChildNotFound { uri: uri.to_owned() })
    }

    pub(crate) fn rebuild_of(&self, replica: Uuid) -> Option<RebuildHandle> {
        self.rebuilds.borrow().iter().rev().find(|rebuild| rebuild.replica() == replica).cloned()
    }

    /// Takes a child out of the writer set and waits until that is recorded.
    async fn take_out(
        self: &Rc<Self>,
        child: &Rc<Child<P::Device>>,
        reason: FaultReason,
    ) -> Result<(), NexusError> {
        let last = || NexusError::LastHealthy { uri: child.uri.clone() };
        let is_member = matches!(child.state(), ChildState::InSync | ChildState::Silent);
        if is_member && !self.in_sync().iter().any(|other| !Rc::ptr_eq(other, child)) {
            return Err(last());
        }
        if child.state() == ChildState::Opening {
            return Err(NexusError::ChildState { uri: child.uri.clone(), state: child.state() });
        }
        self.fail(child, reason);
        child.left_writers().await;
        if child.state() == ChildState::InSync { Err(last()) } else { Ok(()) }
    }
}
