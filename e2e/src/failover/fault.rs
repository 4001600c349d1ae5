//! What becomes of an engine, and how it ends.

use anyhow::Result;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Stand;
use crate::netns::Peer;

/// A fault of the engine that serves a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// Its process is killed; its kernel resets connections.
    Killed,
    /// Everything from it and to it is dropped, in silence.
    Silent,
    /// It is stopped; its kernel acknowledges for it, and it goes on later as if nothing had been.
    Frozen,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Killed, Self::Silent, Self::Frozen];

    /// In what state it leaves the engine.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Silent => "cut off",
            Self::Frozen => "frozen",
        }
    }
}

/// A fault that was made.
#[derive(Clone, Debug)]
pub struct Outage {
    /// What was done.
    pub fault: Fault,
    /// To which node.
    pub node: u8,
    /// When, on the clock of waits and on that of logs.
    pub begun: Instant,
    /// See `begun`.
    pub at: Timestamp,
    /// How much the cluster agent had logged by then.
    pub log_bytes: usize,
}

impl Stand {
    /// Notes that something happens to a node now, which somebody else does.
    pub fn note(&self, fault: Fault, node: u8) -> Result<Outage> {
        let log_bytes = self.lab.ha_clusters[0].log_bytes()?;
        Ok(Outage { fault, node, begun: Instant::now(), at: Timestamp::now(), log_bytes })
    }

    /// Makes a fault.
    pub fn strike(&mut self, fault: Fault, node: u8) -> Result<Outage> {
        // A cut takes a while to be made: the fault begins when it is there.
        if fault == Fault::Silent {
            self.cut_off(node)?;
        }
        let outage = self.note(fault, node)?;
        match fault {
            Fault::Killed => self.lab.engine(node).kill(),
            Fault::Frozen => self.lab.node(node).process()?.freeze()?,
            Fault::Silent => {}
        }
        Ok(outage)
    }

    /// Ends a fault: the engine is started again, can be reached, goes on.
    pub async fn relent(&mut self, outage: &Outage) -> Result<()> {
        match outage.fault {
            Fault::Killed => self.lab.restart_engine(outage.node).await,
            Fault::Silent => {
                for other in self.others(outage.node) {
                    self.lab.net.heal(Peer::Engine(outage.node), other)?;
                }
                Ok(())
            }
            Fault::Frozen => self.lab.node(outage.node).process()?.thaw(),
        }
    }

    /// Drops everything that comes from a node's engine, or goes to it.
    fn cut_off(&self, node: u8) -> Result<()> {
        for other in self.others(node) {
            self.lab.net.cut(Peer::Engine(node), other)?;
        }
        Ok(())
    }

    fn others(&self, node: u8) -> Vec<Peer> {
        let engines = (1..).zip(&self.lab.engines).map(|(number, _)| number).filter(|number| *number != node);
        engines.map(Peer::Engine).chain([Peer::Hub, Peer::Host(1)]).collect()
    }
}
