//! What hosts reach as a nexus, also while it is on standby and there is none yet.

use std::rc::Rc;

use runtime::{IoBuf, IoBytes};

use crate::block::{BlockDevice, BlockError, Geometry, Lba, LbaRange, WriteOptions};
use crate::nexus::EngineNexus;
use crate::watch;

/// The nexus of a slot as an export; clones are handles to the same one. I/O waits until it serves.
#[derive(Clone)]
pub(super) struct Serving {
    nexus: Rc<watch::Sender<Option<EngineNexus>>>,
    /// What hosts are told before children were opened.
    shown: Geometry,
}

impl Serving {
    pub(super) fn new(shown: Geometry) -> Self {
        Self { nexus: Rc::new(watch::Sender::new(None)), shown }
    }

    /// From now on this nexus serves.
    pub(super) fn begin(&self, nexus: EngineNexus) {
        self.nexus.send_modify(|serving| *serving = Some(nexus));
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
        self.nexus().await.read(lba, buf).await
    }

    async fn write(&self, lba: Lba, data: IoBytes, options: WriteOptions) -> Result<(), BlockError> {
        self.nexus().await.write(lba, data, options).await
    }

    async fn write_zeroes(&self, range: LbaRange, options: WriteOptions) -> Result<(), BlockError> {
        self.nexus().await.write_zeroes(range, options).await
    }

    async fn unmap(&self, range: LbaRange) -> Result<(), BlockError> {
        self.nexus().await.unmap(range).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.nexus().await.flush().await
    }
}
