//! What hosts reach as a nexus, also while it is on standby and there is none yet.

use std::rc::Rc;

use runtime::{IoBuf, IoBytes};

use crate::block::figures::{Figures, Measure, Operation};
use crate::block::{BlockDevice, BlockError, Geometry, Lba, LbaRange, WriteOptions};
use crate::nexus::EngineNexus;
use crate::watch;

/// The nexus of a slot as an export; clones are handles to the same one. I/O waits until it serves.
#[derive(Clone)]
pub(super) struct Serving {
    nexus: Rc<watch::Sender<Option<EngineNexus>>>,
    /// What hosts are told before children were opened.
    shown: Geometry,
    /// What hosts asked for, the time that they waited included.
    measure: Rc<Measure>,
}

impl Serving {
    pub(super) fn new(shown: Geometry) -> Self {
        Self { nexus: Rc::new(watch::Sender::new(None)), shown, measure: Rc::default() }
    }

    /// From now on this nexus serves.
    pub(super) fn begin(&self, nexus: EngineNexus) {
        self.nexus.send_modify(|serving| *serving = Some(nexus));
    }

    /// What hosts asked for since it was made.
    pub(super) fn figures(&self) -> Figures {
        self.measure.figures()
    }

    fn len_of(&self, range: LbaRange) -> u64 {
        range.blocks().0 * u64::from(self.geometry().block_bytes)
    }

    async fn nexus(&self) -> EngineNexus {
        let mut serving = self.nexus.subscribe();
        loop {
            if let Some(nexus) = &*self.nexus.borrow() {
                return nexus.clone();
            }
            // The sender lives in this handle.
            let _ = serving.wait_for(Option::is_some).await;
        }
    }
}

impl BlockDevice for Serving {
    fn geometry(&self) -> Geometry {
        self.nexus.borrow().as_ref().map_or(self.shown, BlockDevice::geometry)
    }

    async fn read(&self, lba: Lba, buf: IoBuf) -> Result<IoBuf, BlockError> {
        let bytes = buf.len() as u64;
        self.measure.of(Operation::Read, bytes, async { self.nexus().await.read(lba, buf).await }).await
    }

    async fn write(&self, lba: Lba, data: IoBytes, options: WriteOptions) -> Result<(), BlockError> {
        let bytes = data.len() as u64;
        let request = async { self.nexus().await.write(lba, data, options).await };
        self.measure.of(Operation::Write, bytes, request).await
    }

    async fn write_zeroes(&self, range: LbaRange, options: WriteOptions) -> Result<(), BlockError> {
        let request = async { self.nexus().await.write_zeroes(range, options).await };
        self.measure.of(Operation::Unmap, self.len_of(range), request).await
    }

    async fn unmap(&self, range: LbaRange) -> Result<(), BlockError> {
        let request = async { self.nexus().await.unmap(range).await };
        self.measure.of(Operation::Unmap, self.len_of(range), request).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.measure.of(Operation::Flush, 0, async { self.nexus().await.flush().await }).await
    }
}
