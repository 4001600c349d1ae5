//! What a nexus has of a replica: a connection that can break.

use std::cell::Cell;
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;

use futures::future::{Either, select};
use nvme::command::reservation::ReservationCommand;
use runtime::{IoBuf, IoBytes};
use uuid::Uuid;

use super::World;
use super::replica::{BLOCK, Durable, HOST, HostId, Reach, Replica};
use crate::block::fault::FaultyDevice;
use crate::block::{BlockDevice, BlockError, ErrorKind, Geometry, Lba, LbaRange, MemoryDevice, WriteOptions};
use crate::member::{
    Absence, Epoch, Member, MemberReport, Missed, ReservationReport, ReservationType, Reserve,
};
use crate::nexus::child::Device;
use crate::nexus::layout::DATA_OFFSET_BYTES;
use crate::nexus::tests::stories::Story;
use crate::reservation::fence::calls;
use crate::reservation::{Access, Caller};
use crate::watch;

/// A connection to a replica.
pub(in crate::nexus::tests) struct Connection {
    pub(super) replica: Rc<Replica>,
    /// What it was when it was last asked.
    pub(super) geometry: Cell<Geometry>,
    pub(super) host: HostId,
    pub(super) world: Rc<World>,
    pub(super) caller: Rc<Caller>,
    pub(super) generation: (u64, u64),
    pub(super) is_closed: watch::Sender<bool>,
}

pub(super) fn path_lost() -> BlockError {
    BlockError::new(ErrorKind::PathLost, "connection broken")
}

impl Connection {
    /// Sends a command: the engine runs it whether or not the connection stays.
    async fn send<T: 'static>(
        &self,
        command: impl Future<Output = Result<T, BlockError>> + 'static,
    ) -> Result<T, BlockError> {
        let mut closed = self.is_closed.subscribe();
        let mut generations = self.replica.connections.subscribe();
        if *closed.borrow() || generations.borrow().now(self.host) != self.generation {
            return Err(path_lost());
        }
        let is_black = self.replica.is_black_to(self.host);
        let (host, generation) = (self.host, self.generation);
        let broken = async {
            select(
                pin!(closed.wait_for(|closed| *closed)),
                pin!(generations.wait_for(|now| now.now(host) != generation)),
            )
            .await;
        };
        let replica = Rc::clone(&self.replica);
        let mut engine = replica.engine.subscribe();
        let serving = *engine.borrow();
        if !is_black {
            // At once: an open that comes before the task's first turn has to drain it as well.
            replica.begun.send_modify(|begun| *begun.entry(host).or_default() += 1);
        }
        let served = async move {
            if is_black {
                std::future::pending::<()>().await;
            }
            let work = async {
                replica.delay(host).await;
                let result = command.await;
                replica.delay(host).await;
                result
            };
            let died = pin!(engine.wait_for(|engine| *engine != serving));
            let outcome = match select(pin!(work), died).await {
                Either::Left((result, _)) => Some(result),
                Either::Right(_) => None,
            };
            replica.begun.send_modify(|begun| *begun.get_mut(&host).expect("counted above") -= 1);
            // The reply does not get through a network that lost it meanwhile.
            if outcome.is_none() || replica.reach.get() != Reach::Up || replica.is_black_to(host) {
                std::future::pending::<()>().await;
            }
            outcome.expect("looked at above")
        };
        let served = match &self.replica.home {
            Some((sim, node)) => sim.spawn(*node, served),
            None => runtime::spawn(served),
        };
        match select(pin!(broken), served).await {
            Either::Left(_) => Err(path_lost()),
            Either::Right((result, _)) => result.unwrap_or_else(|_| Err(path_lost())),
        }
    }

    /// A question about, or a change of, what the replica keeps beside the data.
    async fn ask<T: 'static>(
        &self,
        access: Option<Access>,
        question: impl FnOnce(&mut Durable) -> T + 'static,
    ) -> Result<T, BlockError> {
        if self.replica.is_mute.get() {
            return Err(BlockError::new(ErrorKind::Unsupported, "mute"));
        }
        let (replica, caller) = (Rc::clone(&self.replica), Rc::clone(&self.caller));
        self.send(async move {
            let fence = replica.fence();
            let _admitted = access.map(|access| fence.admit(&caller, access)).transpose()?;
            Ok(question(&mut replica.durable.borrow_mut()))
        })
        .await
    }

    async fn change(
        &self,
        range: LbaRange,
        is_data: bool,
        command: impl AsyncFnOnce(FaultyDevice<MemoryDevice>) -> Result<(), BlockError> + 'static,
    ) -> Result<(), BlockError> {
        let replica = Rc::clone(&self.replica);
        let caller = Rc::clone(&self.caller);
        self.send(async move {
            let _admitted = replica.fence().admit(&caller, Access::Write)?;
            let bytes = replica.geometry().check(range)?;
            replica.opens(&bytes);
            if is_data {
                // Before the data, as a pool does: a write that fails, or whose engine dies, may have reached the disk.
                let blocks = bytes.start / BLOCK..bytes.end.div_ceil(BLOCK);
                replica.durable.borrow_mut().allocated.extend(blocks);
            }
            let disk = replica.disk.borrow().clone();
            let result = command(disk).await;
            replica.ends(&bytes);
            if result.is_ok() && !is_data {
                let cleared = bytes.start.div_ceil(BLOCK)..bytes.end / BLOCK;
                replica.durable.borrow_mut().allocated.retain(|block| !cleared.contains(block));
            }
            result
        })
        .await
    }
}

impl BlockDevice for Connection {
    fn geometry(&self) -> Geometry {
        self.geometry.get()
    }

    async fn read(&self, lba: Lba, buf: IoBuf) -> Result<IoBuf, BlockError> {
        let (replica, caller) = (Rc::clone(&self.replica), Rc::clone(&self.caller));
        self.send(async move {
            let _admitted = replica.fence().admit(&caller, Access::Read)?;
            replica.geometry().check_bytes(lba, buf.len())?;
            let disk = replica.disk.borrow().clone();
            disk.read(lba, buf).await
        })
        .await
    }

    async fn write(&self, lba: Lba, data: IoBytes, options: WriteOptions) -> Result<(), BlockError> {
        let blocks = crate::block::Blocks(data.len() as u64 / 512);
        let replica = Rc::clone(&self.replica);
        self.change(LbaRange::new(lba, blocks).unwrap(), true, async move |disk| {
            let first = data[0];
            disk.write(lba, data, options).await?;
            replica.log.borrow_mut().push((Lba(lba.0 - DATA_OFFSET_BYTES / 512), first));
            Ok(())
        })
        .await
    }

    async fn write_zeroes(&self, range: LbaRange, options: WriteOptions) -> Result<(), BlockError> {
        self.change(range, false, async move |disk| disk.write_zeroes(range, options).await).await
    }

    async fn unmap(&self, range: LbaRange) -> Result<(), BlockError> {
        self.change(range, false, async move |disk| disk.write_zeroes(range, WriteOptions::default()).await)
            .await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        let (replica, caller) = (Rc::clone(&self.replica), Rc::clone(&self.caller));
        self.send(async move {
            let _admitted = replica.fence().admit(&caller, Access::Write)?;
            let disk = replica.disk.borrow().clone();
            disk.flush().await?;
            // What is durable need not be kept apart any more.
            disk.inner().record();
            Ok(())
        })
        .await
    }
}

impl Member for Connection {
    async fn report(&self) -> Result<MemberReport, BlockError> {
        if self.replica.is_mute.get() {
            return Err(BlockError::new(ErrorKind::Unsupported, "mute"));
        }
        let replica = Rc::clone(&self.replica);
        self.send(async move { Ok(replica.report()) }).await
    }

    async fn join(&self, volume: Uuid, epoch: Epoch, caught_up: bool) -> Result<(), BlockError> {
        if self.replica.is_mute.get() {
            return Err(BlockError::new(ErrorKind::Unsupported, "mute"));
        }
        let (replica, caller) = (Rc::clone(&self.replica), Rc::clone(&self.caller));
        self.send(async move {
            let _admitted = replica.fence().admit(&caller, Access::Write)?;
            replica.join(volume, epoch, caught_up)
        })
        .await
    }

    async fn close_regions(&self, regions: &[u64]) -> Result<(), BlockError> {
        let (replica, caller) = (Rc::clone(&self.replica), Rc::clone(&self.caller));
        let regions = regions.to_vec();
        self.send(async move {
            let _admitted = replica.fence().admit(&caller, Access::Write)?;
            replica.closes.set(replica.closes.get() + 1);
            let in_flight = replica.writes_in_flight.borrow();
            let mut durable = replica.durable.borrow_mut();
            for region in regions {
                if in_flight.get(&region).is_none_or(|count| *count == 0) {
                    durable.open.remove(&region);
                }
            }
            Ok(())
        })
        .await
    }

    async fn allocated(
        &self,
        within: Range<u64>,
        runs_max: usize,
    ) -> Result<(Vec<(u64, u64)>, u64), BlockError> {
        if self.replica.is_mute.get() {
            return Err(BlockError::new(ErrorKind::Unsupported, "mute"));
        }
        let (replica, caller) = (Rc::clone(&self.replica), Rc::clone(&self.caller));
        self.send(async move {
            let _admitted = replica.fence().admit(&caller, Access::Read)?;
            assert!(within.end <= replica.geometry().len_bytes(), "asked about {within:?}");
            let durable = replica.durable.borrow();
            let mut runs: Vec<(u64, u64)> = Vec::new();
            for block in durable.allocated.range(within.start / BLOCK..within.end.div_ceil(BLOCK)) {
                let at = block * BLOCK;
                let is_full = runs.len() == runs_max;
                match runs.last_mut() {
                    Some((start, len)) if *start + *len == at => *len += BLOCK,
                    _ if is_full => return Ok((runs, at)),
                    _ => runs.push((at, BLOCK)),
                }
            }
            Ok((runs, within.end))
        })
        .await
    }

    async fn note_absent(
        &self,
        member: Uuid,
        left_at: Epoch,
        regions: &[u64],
        more_follow: bool,
    ) -> Result<(), BlockError> {
        let regions = regions.to_vec();
        self.ask(Some(Access::Write), move |durable| {
            let open = durable.open.clone();
            durable.notes.note(member, left_at, &regions, more_follow, &open);
        })
        .await
    }

    async fn absent(&self) -> Result<Vec<Absence>, BlockError> {
        self.ask(None, |durable| durable.notes.absent()).await
    }

    async fn missed(&self, member: Uuid, first: u64, most: usize) -> Result<Option<Missed>, BlockError> {
        self.ask(None, move |durable| durable.notes.missed(member, first, most)).await
    }

    async fn forget_absent(&self, member: Uuid) -> Result<(), BlockError> {
        self.ask(Some(Access::Write), move |durable| durable.notes.forget(member)).await
    }
}

impl Connection {
    async fn reserve(&self, command: ReservationCommand) -> Result<(), BlockError> {
        if self.replica.is_mute.get() {
            return Err(BlockError::new(ErrorKind::Unsupported, "mute"));
        }
        let (replica, caller) = (Rc::clone(&self.replica), Rc::clone(&self.caller));
        self.send(async move {
            let fence = replica.fence();
            let keep = async |stored| {
                replica.durable.borrow_mut().reservations = stored;
                Ok(())
            };
            Ok(fence.execute(&caller, command, keep).await?)
        })
        .await
    }
}

impl Reserve for Connection {
    async fn register(&self, key: u64) -> Result<(), BlockError> {
        self.reserve(calls::register(key)).await
    }

    async fn unregister(&self) -> Result<(), BlockError> {
        match self.replica.fence().key_of(&self.caller) {
            Some(key) => calls::given_up(self.reserve(calls::unregister(key)).await),
            None => Ok(()),
        }
    }

    async fn acquire(&self, kind: ReservationType, key: u64) -> Result<(), BlockError> {
        self.reserve(calls::acquire(kind, key)).await
    }

    async fn preempt(&self, kind: ReservationType, key: u64, preempted: u64) -> Result<(), BlockError> {
        if self.replica.begun.borrow().iter().any(|(host, begun)| *host != self.host && *begun > 0) {
            self.world.stories.tell(Story::D7Drained);
        }
        self.reserve(calls::preempt(kind, key, preempted)).await
    }

    async fn release(&self, kind: ReservationType, key: u64) -> Result<(), BlockError> {
        calls::given_up(self.reserve(calls::release(kind, key)).await)
    }

    async fn reservation(&self) -> Result<ReservationReport, BlockError> {
        if self.replica.is_mute.get() {
            return Err(BlockError::new(ErrorKind::Unsupported, "mute"));
        }
        let replica = Rc::clone(&self.replica);
        self.send(async move { Ok(replica.fence().state().report()) }).await
    }

    async fn confirm(&self) -> Result<(), BlockError> {
        if self.replica.is_mute.get() {
            return Err(BlockError::new(ErrorKind::Unsupported, "mute"));
        }
        let (replica, caller) = (Rc::clone(&self.replica), Rc::clone(&self.caller));
        self.send(async move { replica.fence().confirm(&caller) }).await
    }
}

impl Device for Connection {
    fn is_local(&self) -> bool {
        self.replica.is_local && self.host == HOST
    }

    async fn refresh(&self) -> Result<(), BlockError> {
        let replica = Rc::clone(&self.replica);
        self.geometry.set(self.send(async move { Ok(replica.geometry()) }).await?);
        Ok(())
    }

    fn disconnect(&self) {
        self.is_closed.send_replace(true);
    }
}
