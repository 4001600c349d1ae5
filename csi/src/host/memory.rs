//! The host in memory.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::kernel::{ALREADY, Kernel};
use super::life::Life;
use super::{ConnectOptions, Controller, ControllerId, HostError, Nvme, Standing, Target, Unfit};

/// A host whose kernel is a model. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryNvme {
    kernel: Arc<Kernel>,
    unfit: Arc<Mutex<Option<Unfit>>>,
    life: Life,
}

impl MemoryNvme {
    /// The kernel, for its targets and faults.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The same host in the hands of another process.
    pub fn in_life(&self, life: Life) -> Self {
        Self { life, ..self.clone() }
    }

    /// From now on this machine cannot connect, or can.
    pub fn set_unfit(&self, unfit: Option<Unfit>) {
        *self.unfit.lock().expect("no holder of this lock panics") = unfit;
    }
}

impl Nvme for MemoryNvme {
    fn preflight(&self) -> Result<(), Unfit> {
        self.unfit.lock().expect("no holder of this lock panics").clone().map_or(Ok(()), Err)
    }

    fn states(&self) -> Result<Vec<Standing>, HostError> {
        self.life.look()?;
        let standing = |(_, shown): (u32, Controller)| Standing { id: shown.id, state: shown.state };
        Ok(self.kernel.controllers().into_iter().map(standing).collect())
    }

    fn controllers(&self) -> Result<Vec<Controller>, HostError> {
        self.life.look()?;
        Ok(self.kernel.controllers().into_iter().map(|(_, controller)| controller).collect())
    }

    fn controllers_of(&self, nqn: &str) -> Result<Vec<Controller>, HostError> {
        Ok(self.controllers()?.into_iter().filter(|it| it.nqn == nqn).collect())
    }

    fn controller(&self, id: &ControllerId) -> Result<Option<Controller>, HostError> {
        Ok(self.controllers()?.into_iter().find(|it| it.id == *id))
    }

    fn connect(&self, target: &Target, options: &ConnectOptions) -> Result<ControllerId, HostError> {
        self.preflight()?;
        let (nqn, address) = (target.nqn.clone(), target.address);
        self.life.effect(|| match self.kernel.connect(&nqn, address, &options.host.nqn) {
            Ok((number, _)) => {
                let shown = self.kernel.controllers().into_iter().find(|(other, _)| *other == number);
                let gone = || HostError::Connect { nqn, address, source: io::ErrorKind::NotFound.into() };
                shown.map(|(_, controller)| controller.id).ok_or_else(gone)
            }
            Err(ALREADY) => Err(HostError::Connected { nqn, address }),
            Err(code) => Err(HostError::Connect { nqn, address, source: io::Error::from_raw_os_error(code) }),
        })
    }

    fn set_io_timeout(&self, controller: &ControllerId, timeout: Duration) -> Result<usize, HostError> {
        self.life.effect(|| Ok(self.kernel.set_io_timeout(controller, timeout)))
    }

    fn reset(&self, controller: &ControllerId) -> Result<(), HostError> {
        self.life.effect(|| {
            self.kernel.reset(controller);
            Ok(())
        })
    }

    fn delete(&self, controller: &ControllerId) -> Result<(), HostError> {
        self.life.effect(|| {
            self.kernel.delete(controller);
            Ok(())
        })
    }
}
