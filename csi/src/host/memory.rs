//! The host in memory.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
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
    asked: Arc<Mutex<Asked>>,
}

/// The calls that change something.
#[derive(Debug, Default)]
struct Asked {
    /// The call that fails next: how many more succeed before it.
    fails_after: Option<usize>,
    calls: usize,
    connects: Vec<ConnectOptions>,
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

    /// The call that changes something after `successes` more of them fails, once.
    pub fn fail_after(&self, successes: usize) {
        self.asked().fails_after = Some(successes);
    }

    /// How many calls changed something so far.
    pub fn calls(&self) -> usize {
        self.asked().calls
    }

    /// With what the kernel was asked to connect, in order.
    pub fn connects(&self) -> Vec<ConnectOptions> {
        self.asked().connects.clone()
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().expect("no holder of this lock panics")
    }

    fn begin(&self) -> io::Result<()> {
        let mut asked = self.asked();
        if let Some(left) = asked.fails_after {
            asked.fails_after = left.checked_sub(1);
            if left == 0 {
                return Err(io::Error::other("made to fail"));
            }
        }
        asked.calls += 1;
        Ok(())
    }

    /// As [`Self::begin`], for what is written to a controller's attribute.
    fn write(&self, controller: &ControllerId, attribute: &str) -> Result<(), HostError> {
        let path = Path::new("/sys/class/nvme").join(&controller.name).join(attribute);
        self.begin().map_err(|source| HostError::Write { path, source })
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
        self.begin().map_err(|source| HostError::Connect { nqn: nqn.clone(), address, source })?;
        self.asked().connects.push(options.clone());
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
        self.write(controller, "queue/io_timeout")?;
        self.life.effect(|| Ok(self.kernel.set_io_timeout(controller, timeout)))
    }

    fn reset(&self, controller: &ControllerId) -> Result<(), HostError> {
        self.write(controller, "reset_controller")?;
        self.life.effect(|| {
            self.kernel.reset(controller);
            Ok(())
        })
    }

    fn delete(&self, controller: &ControllerId) -> Result<(), HostError> {
        self.write(controller, "delete_controller")?;
        self.life.effect(|| {
            self.kernel.delete(controller);
            Ok(())
        })
    }
}
