//! A wrapper that fails, holds, tears or corrupts requests as it is told: the test double of a bad disk.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Poll, Waker};

use runtime::{IoBuf, IoBytes};

use super::{BlockDevice, BlockError, Blocks, ErrorKind, Geometry, Lba, LbaRange, WriteOptions, to_usize};

/// Which requests a fault meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOp {
    /// Reads.
    Read,
    /// Writes and zeroing writes.
    Write,
    /// Unmaps.
    Unmap,
    /// Flushes; a fault with a range does not meet them.
    Flush,
    /// All of them.
    Any,
}

/// What happens to a request that a fault meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails and does nothing.
    Fail(ErrorKind),
    /// It is executed, and then reported as failed: the reply was lost.
    FailAfter(ErrorKind),
    /// It waits until the fault is removed, then goes on.
    Hold,
    /// Of a write, only this many blocks reach the device, then it fails.
    Tear(Blocks),
    /// The first byte read is inverted.
    Corrupt,
}

/// One fault.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Which requests.
    pub op: FaultOp,
    /// Only requests that overlap this range.
    pub range: Option<LbaRange>,
    /// Requests that go through before the first is met.
    pub skip: u64,
    /// How many requests are met before the fault is used up; `None`: all.
    pub hits: Option<u64>,
    /// What happens.
    pub effect: Effect,
}

impl Fault {
    /// A fault that meets every request of this kind.
    pub fn new(op: FaultOp, effect: Effect) -> Self {
        Self { op, range: None, skip: 0, hits: None, effect }
    }

    /// The same, for `hits` requests only.
    pub fn times(self, hits: u64) -> Self {
        Self { hits: Some(hits), ..self }
    }

    /// The same, for requests that overlap `range` only.
    pub fn within(self, range: LbaRange) -> Self {
        Self { range: Some(range), ..self }
    }

    /// The same, after `skip` requests went through.
    pub fn after(self, skip: u64) -> Self {
        Self { skip, ..self }
    }

    fn meets(&self, op: FaultOp, range: Option<LbaRange>) -> bool {
        let right_place = match (self.range, range) {
            (None, _) => true,
            (Some(mine), Some(theirs)) => mine.overlaps(theirs),
            (Some(_), None) => false,
        };
        right_place && (self.op == FaultOp::Any || self.op == op)
    }
}

/// Names a fault for [`Faults::remove`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultId(u64);

#[derive(Default)]
struct State {
    next: u64,
    faults: Vec<(FaultId, Fault)>,
    waiting: Vec<Waker>,
    held: usize,
    requests: u64,
}

/// The hand that plants and removes faults; clones are handles to the same set.
#[derive(Clone, Default)]
pub struct Faults {
    state: Rc<RefCell<State>>,
}

impl Faults {
    /// Plants a fault.
    pub fn add(&self, fault: Fault) -> FaultId {
        let mut state = self.state.borrow_mut();
        let id = FaultId(state.next);
        state.next += 1;
        state.faults.push((id, fault));
        id
    }

    /// Removes a fault; what it held goes on.
    pub fn remove(&self, id: FaultId) {
        self.retain(|other| other != id);
    }

    /// Removes all faults; what they held goes on.
    pub fn clear(&self) {
        self.retain(|_| false);
    }

    /// Requests that a fault holds now.
    pub fn held(&self) -> usize {
        self.state.borrow().held
    }

    /// Requests that came so far.
    pub fn requests(&self) -> u64 {
        self.state.borrow().requests
    }

    fn retain(&self, keep: impl Fn(FaultId) -> bool) {
        let mut state = self.state.borrow_mut();
        state.faults.retain(|(id, _)| keep(*id));
        let woken = std::mem::take(&mut state.waiting);
        drop(state);
        for waker in woken {
            waker.wake();
        }
    }

    /// The first fault that meets the request, counted as a hit.
    fn strike(&self, op: FaultOp, range: Option<LbaRange>) -> Option<(FaultId, Effect)> {
        let mut state = self.state.borrow_mut();
        state.requests += 1;
        for (id, fault) in &mut state.faults {
            if !fault.meets(op, range) || fault.hits == Some(0) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            if let Some(hits) = &mut fault.hits {
                *hits -= 1;
            }
            return Some((*id, fault.effect));
        }
        None
    }

    /// Waits until the fault is removed.
    async fn hold(&self, id: FaultId) {
        self.state.borrow_mut().held += 1;
        let _held = Held(self);
        std::future::poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if state.faults.iter().any(|(other, _)| *other == id) {
                state.waiting.push(context.waker().clone());
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
    }

    /// What is left to do for a request after faults that hold it or fail it at once.
    async fn meet(&self, op: FaultOp, range: Option<LbaRange>) -> Result<Option<Effect>, BlockError> {
        match self.strike(op, range) {
            Some((_, Effect::Fail(kind))) => Err(planted(kind)),
            Some((id, Effect::Hold)) => {
                self.hold(id).await;
                Ok(None)
            }
            Some((_, effect)) => Ok(Some(effect)),
            None => Ok(None),
        }
    }
}

/// Counts a request as held while it waits, also when its future is dropped.
struct Held<'a>(&'a Faults);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.state.borrow_mut().held -= 1;
    }
}

fn planted(kind: ErrorKind) -> BlockError {
    BlockError::new(kind, "a planted fault")
}

fn fail_after(effect: Option<Effect>) -> Result<(), BlockError> {
    match effect {
        Some(Effect::FailAfter(kind)) => Err(planted(kind)),
        _ => Ok(()),
    }
}

/// A device with faults planted in front of it.
#[derive(Clone)]
pub struct FaultyDevice<D> {
    inner: D,
    faults: Faults,
}

impl<D: BlockDevice> FaultyDevice<D> {
    /// `inner` behind no faults yet.
    pub fn new(inner: D) -> Self {
        Self { inner, faults: Faults::default() }
    }

    /// The hand that plants them.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    /// The device behind.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    fn range(&self, lba: Lba, len: usize) -> Option<LbaRange> {
        LbaRange::new(lba, Blocks(len as u64 / u64::from(self.inner.geometry().block_bytes)))
    }
}

impl<D: BlockDevice> BlockDevice for FaultyDevice<D> {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    async fn read(&self, lba: Lba, buf: IoBuf) -> Result<IoBuf, BlockError> {
        let effect = self.faults.meet(FaultOp::Read, self.range(lba, buf.len())).await?;
        let mut buf = self.inner.read(lba, buf).await?;
        if effect == Some(Effect::Corrupt)
            && let Some(byte) = buf.first_mut()
        {
            *byte = !*byte;
        }
        fail_after(effect)?;
        Ok(buf)
    }

    async fn write(&self, lba: Lba, data: IoBytes, options: WriteOptions) -> Result<(), BlockError> {
        let effect = self.faults.meet(FaultOp::Write, self.range(lba, data.len())).await?;
        if let Some(Effect::Tear(blocks)) = effect {
            let whole = blocks.0 * u64::from(self.geometry().block_bytes);
            let part = data.slice(0..to_usize(whole).min(data.len()));
            self.inner.write(lba, part, WriteOptions::default()).await?;
            return Err(planted(ErrorKind::Media));
        }
        self.inner.write(lba, data, options).await?;
        fail_after(effect)
    }

    async fn write_zeroes(&self, range: LbaRange, options: WriteOptions) -> Result<(), BlockError> {
        let effect = self.faults.meet(FaultOp::Write, Some(range)).await?;
        self.inner.write_zeroes(range, options).await?;
        fail_after(effect)
    }

    async fn unmap(&self, range: LbaRange) -> Result<(), BlockError> {
        let effect = self.faults.meet(FaultOp::Unmap, Some(range)).await?;
        self.inner.unmap(range).await?;
        fail_after(effect)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        let effect = self.faults.meet(FaultOp::Flush, None).await?;
        self.inner.flush().await?;
        fail_after(effect)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::executor::block_on;

    use super::*;
    use crate::block::{MemoryDevice, suite};

    fn device() -> FaultyDevice<MemoryDevice> {
        FaultyDevice::new(MemoryDevice::of_len(1 << 20, 512))
    }

    fn block(byte: u8) -> IoBytes {
        IoBytes::from_slice(&[byte; 512])
    }

    #[test]
    fn without_faults_the_contract_of_the_inner_device_holds() {
        block_on(suite::check(&device()));
    }

    #[test]
    fn a_fault_meets_the_requests_it_names_and_no_others() {
        let device = device();
        let place = LbaRange::new(Lba(8), Blocks(8)).unwrap();
        let fault =
            Fault::new(FaultOp::Write, Effect::Fail(ErrorKind::Media)).within(place).after(1).times(1);
        device.faults().add(fault);
        block_on(async {
            device.write(Lba(0), block(1), WriteOptions::default()).await.expect("elsewhere");
            device.write(Lba(8), block(1), WriteOptions::default()).await.expect("skipped");
            device.read(Lba(8), IoBuf::zeroed(512)).await.expect("a read");
            let error = device.write(Lba(9), block(1), WriteOptions::default()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Media);
            device.write(Lba(9), block(1), WriteOptions::default()).await.expect("used up");
        });
    }

    #[test]
    fn a_held_request_goes_on_when_the_fault_is_removed() {
        let device = device();
        let faults = device.faults();
        let id = faults.add(Fault::new(FaultOp::Flush, Effect::Hold));
        let mut flush = Box::pin(device.flush());
        assert!(flush.as_mut().now_or_never().is_none());
        assert_eq!(faults.held(), 1);
        faults.remove(id);
        flush.as_mut().now_or_never().expect("released").expect("flushed");
        assert_eq!(faults.held(), 0);
    }

    #[test]
    fn a_torn_write_leaves_its_first_blocks_and_fails() {
        let device = device();
        device.faults().add(Fault::new(FaultOp::Write, Effect::Tear(Blocks(2))));
        let data = IoBytes::from_slice(&[7; 2048]);
        block_on(device.write(Lba(0), data, WriteOptions::default())).unwrap_err();
        assert_eq!(device.inner().peek(0, 2048), [[7; 1024], [0; 1024]].concat());
    }
}
