//! What the engine holds and what it did, for whoever measures it.

use engine_api::{ApiError, Nexus, Pool, Replica};

use super::{Core, EngineHandle};
use crate::block::figures::Figures;

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
pub struct EngineFigures {
    /// Pools.
    pub pools: Vec<Pool>,
    /// Replicas, with what nexuses here and elsewhere asked of them.
    pub replicas: Vec<(Replica, Figures)>,
    /// Nexuses, with what hosts asked of them.
    pub nexuses: Vec<(Nexus, Figures)>,
}

impl EngineHandle {
    /// All figures, from the shard.
    pub async fn figures(&self) -> Result<EngineFigures, ApiError> {
        self.post(|core| async move { Ok(core.figures()) }).await
    }
}

impl Core {
    fn figures(&self) -> EngineFigures {
        let of_replica = |shown: Replica| {
            let (_, replica) = self.find_replica(shown.uuid)?;
            Some((shown, replica.figures()))
        };
        let of_nexus = |shown: Nexus| {
            let figures = self.nexus_figures(shown.uuid)?;
            Some((shown, figures))
        };
        EngineFigures {
            pools: self.list_pools(),
            replicas: self.list_replicas().into_iter().filter_map(of_replica).collect(),
            nexuses: self.list_nexuses().into_iter().filter_map(of_nexus).collect(),
        }
    }
}
