//! Operator, engines, hosts and agents in memory, for tests: what they may do to a switchover, they do here on demand.
//!
//! Storage nodes carry nexuses at `10.0.0.<n>:8420`. A host has a path to a nexus; the path is live while the nexus
//! serves and nothing lies between. The operator fences before it serves elsewhere, and leaves a target that serves
//! alone where it may.

mod agents;
mod operator;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::ports::{Live, VolumeErrorKind};
use super::record::{NQN_PREFIX, Target};

/// What goes wrong with the next call that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not done, and nobody answers.
    LoseRequest,
    /// It is done, and nobody answers.
    LoseReply,
    /// Whoever does it dies in the middle, and nobody answers: the old target is stopped and the new one is not there
    /// yet. (Of what has no middle it is done.)
    Halfway,
    /// It is not done, and the answer says why (from an agent: the path did not come up).
    Refuse(VolumeErrorKind),
}

/// A nexus.
#[derive(Clone, Debug)]
struct Nexus {
    id: Uuid,
    node: usize,
    /// It holds the volume's reservation: it may write.
    is_unfenced: bool,
    /// Its process has it.
    is_there: bool,
}

#[derive(Clone, Debug)]
struct Volume {
    nexuses: Vec<Nexus>,
    /// What is to take over in a planned move, and the hosts that were reported to be there.
    standby: Option<(Nexus, BTreeSet<String>)>,
    is_published: bool,
    allowed: BTreeSet<String>,
}

impl Volume {
    fn current(&self) -> &Nexus {
        self.nexuses.last().expect("a volume is made with its first nexus")
    }

    fn current_mut(&mut self) -> &mut Nexus {
        self.nexuses.last_mut().expect("a volume is made with its first nexus")
    }
}

#[derive(Clone, Debug)]
struct Host {
    endpoint: String,
    has_agent: bool,
    cut_from: BTreeSet<usize>,
    /// By volume: the nexuses it has controllers of, and since when one of them is live.
    paths: BTreeMap<Uuid, BTreeSet<Uuid>>,
}

#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<usize, bool>,
    /// The next target that is made is not there: its operator died.
    is_halfway: bool,
    volumes: BTreeMap<Uuid, Volume>,
    hosts: BTreeMap<String, Host>,
    operator_faults: VecDeque<Fault>,
    agent_faults: VecDeque<Fault>,
    is_operator_away: bool,
    served_since: BTreeMap<(String, Uuid), Instant>,
    acts: Vec<Act>,
    looks: usize,
    next_nexus: u128,
}

/// What was done at the operator or an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// The operator was asked to republish a volume.
    Asked(Uuid),
    /// The target was moved.
    Moved {
        /// The volume.
        volume: Uuid,
        /// Hosts that had a live path to the old target, and an agent that could say so, and for how long.
        served: Vec<(String, Duration)>,
    },
    /// A host was given a path.
    Replaced(String),
    /// Old targets were destroyed.
    Destroyed(Uuid),
    /// A planned move went on, as all hosts were reported ready.
    Switched(Uuid),
}

/// All of it. Cheap to clone; clones are the same world. It is both [`super::ports::Volumes`] and
/// [`super::ports::NodeAgents`].
#[derive(Clone, Debug, Default)]
pub struct World {
    state: Arc<Mutex<State>>,
}

/// How long an agent waits for a path that does not come.
const PATH_WAIT: Duration = Duration::from_secs(2);
/// How long a call is waited for whose request or reply was lost.
const LOST: Duration = Duration::from_secs(3);

impl World {
    /// Storage nodes 1 to `nodes`, all up.
    pub fn new(nodes: usize) -> Self {
        let world = Self::default();
        world.lock().nodes = (1..=nodes).map(|node| (node, true)).collect();
        world
    }

    /// Publishes a volume on a node to these hosts and connects them.
    pub fn publish(&self, volume: Uuid, node: usize, hosts: &[&str]) {
        let mut state = self.lock();
        let id = state.new_nexus();
        let allowed = hosts.iter().map(|host| (*host).to_owned()).collect();
        let nexuses = vec![Nexus { id, node, is_unfenced: true, is_there: true }];
        state.volumes.insert(volume, Volume { nexuses, standby: None, is_published: true, allowed });
        for host in hosts {
            let new = || Host {
                endpoint: format!("http://{host}:50053"),
                has_agent: true,
                cut_from: BTreeSet::new(),
                paths: BTreeMap::new(),
            };
            let host = state.hosts.entry((*host).to_owned()).or_insert_with(new);
            host.paths.insert(volume, BTreeSet::from([id]));
        }
        state.note_served();
    }

    /// Takes the volume's target away, wanted so.
    pub fn unpublish(&self, volume: Uuid) {
        let mut state = self.lock();
        if let Some(volume) = state.volumes.get_mut(&volume) {
            volume.is_published = false;
            volume.standby = None;
            for nexus in &mut volume.nexuses {
                nexus.is_unfenced = false;
                nexus.is_there = false;
            }
        }
        state.note_served();
    }

    /// The operator begins to move the target to a node: it stands by there.
    pub fn begin_move(&self, volume: Uuid, node: usize) {
        let mut state = self.lock();
        let (id, is_up) = (state.new_nexus(), state.is_up(node));
        let is_fit = |volume: &&mut Volume| {
            is_up && volume.is_published && volume.standby.is_none() && volume.current().node != node
        };
        if let Some(volume) = state.volumes.get_mut(&volume).filter(is_fit) {
            let nexus = Nexus { id, node, is_unfenced: false, is_there: true };
            volume.standby = Some((nexus, BTreeSet::new()));
        }
    }

    /// Whether a target of the volume stands by.
    pub fn is_moving(&self, volume: Uuid) -> bool {
        self.lock().volumes.get(&volume).is_some_and(|volume| volume.standby.is_some())
    }

    /// The engine of a node dies, with its nexuses.
    pub fn kill(&self, node: usize) {
        let mut state = self.lock();
        state.nodes.insert(node, false);
        for volume in state.volumes.values_mut() {
            // A move to a node that is gone is taken back.
            volume.standby = volume.standby.take().filter(|(nexus, _)| nexus.node != node);
            volume.nexuses.iter_mut().filter(|n| n.node == node).for_each(|n| n.is_there = false);
        }
        state.note_served();
    }

    /// The engine of a node starts, without nexuses.
    pub fn revive(&self, node: usize) {
        self.lock().nodes.insert(node, true);
    }

    /// A host cannot reach a node any more; the operator can.
    pub fn cut(&self, host: &str, node: usize) {
        let mut state = self.lock();
        if let Some(host) = state.hosts.get_mut(host) {
            host.cut_from.insert(node);
        }
        state.note_served();
    }

    /// Every host reaches every node.
    pub fn mend(&self) {
        let mut state = self.lock();
        state.hosts.values_mut().for_each(|host| host.cut_from.clear());
        state.note_served();
    }

    /// Whether a host's agent runs.
    pub fn set_agent(&self, host: &str, runs: bool) {
        let mut state = self.lock();
        if let Some(host) = state.hosts.get_mut(host) {
            host.has_agent = runs;
        }
        state.note_served();
    }

    /// Whether any operator answers.
    pub fn set_operator(&self, answers: bool) {
        self.lock().is_operator_away = !answers;
    }

    /// The next changing calls to the operator go like this.
    pub fn fail_operator(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().operator_faults.extend(faults);
    }

    /// The next path replacements go like this.
    pub fn fail_agents(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().agent_faults.extend(faults);
    }

    /// Everything runs and answers again.
    pub fn calm(&self) {
        self.mend();
        let mut state = self.lock();
        state.operator_faults.clear();
        state.agent_faults.clear();
        state.is_operator_away = false;
        state.nodes.values_mut().for_each(|up| *up = true);
        state.hosts.values_mut().for_each(|host| host.has_agent = true);
        state.note_served();
    }

    /// Published volumes that a host with a running agent has no live path to, with the agent's endpoint.
    pub fn lost(&self) -> Vec<(String, String, Uuid)> {
        let state = self.lock();
        let mut lost = Vec::new();
        for (name, host) in state.hosts.iter().filter(|(_, host)| host.has_agent) {
            for volume in host.paths.keys().filter(|volume| state.volumes[volume].is_published) {
                if !state.is_served(host, *volume) {
                    lost.push((name.clone(), host.endpoint.clone(), *volume));
                }
            }
        }
        lost
    }

    /// Where a volume's target is.
    pub fn node_of(&self, volume: Uuid) -> usize {
        self.lock().volumes[&volume].current().node
    }

    /// Volumes that more than one nexus may write to.
    pub fn unfenced_twice(&self) -> Vec<Uuid> {
        let state = self.lock();
        let twice = |volume: &Volume| volume.nexuses.iter().filter(|n| n.is_unfenced).count() > 1;
        state.volumes.iter().filter(|(_, volume)| twice(volume)).map(|(id, _)| *id).collect()
    }

    /// The target lets no I/O through from now on, though hosts stay connected to it.
    pub fn block(&self, volume: Uuid) {
        let mut state = self.lock();
        if let Some(volume) = state.volumes.get_mut(&volume) {
            volume.current_mut().is_unfenced = false;
        }
        state.note_served();
    }

    /// How many controllers a host has of a volume, live or not.
    pub fn paths_of(&self, host: &str, volume: Uuid) -> usize {
        self.lock().hosts[host].paths.get(&volume).map_or(0, BTreeSet::len)
    }

    /// Whether a host that is served has paths of this volume to anything but its target and what stands by for it.
    pub fn has_leftovers(&self, volume: Uuid) -> bool {
        let state = self.lock();
        let Some(known) = state.volumes.get(&volume).filter(|known| known.is_published) else { return false };
        let wanted = [Some(known.current().id), known.standby.as_ref().map(|(nexus, _)| nexus.id)];
        let is_left = |nexus: &Uuid| !wanted.contains(&Some(*nexus));
        state
            .hosts
            .values()
            .any(|host| host.paths.get(&volume).is_some_and(|paths| paths.iter().any(is_left)))
    }

    /// A host does not use a volume any more.
    pub fn disconnect(&self, host: &str, volume: Uuid) {
        let mut state = self.lock();
        if let Some(host) = state.hosts.get_mut(host) {
            host.paths.remove(&volume);
        }
        state.note_served();
    }

    /// How often the operator was asked where a volume is served.
    pub fn looks(&self) -> usize {
        self.lock().looks
    }

    /// What was done, in order.
    pub fn acts(&self) -> Vec<Act> {
        self.lock().acts.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new_nexus(&mut self) -> Uuid {
        self.next_nexus += 1;
        Uuid::from_u128(self.next_nexus)
    }

    fn is_up(&self, node: usize) -> bool {
        self.nodes.get(&node).copied().unwrap_or(false)
    }

    /// The live controllers that a host has of a volume.
    fn live(&self, host: &Host, volume: Uuid) -> Vec<Live> {
        let (Some(paths), Some(known)) = (host.paths.get(&volume), self.volumes.get(&volume)) else {
            return Vec::new();
        };
        let is_live = |nexus: &&Nexus| {
            nexus.is_there
                && self.is_up(nexus.node)
                && paths.contains(&nexus.id)
                && !host.cut_from.contains(&nexus.node)
        };
        let nexuses = known.nexuses.iter().chain(known.standby.iter().map(|(nexus, _)| nexus));
        let shown = |nexus: &Nexus| Live { address: address(nexus.node), is_accessible: nexus.is_unfenced };
        nexuses.filter(is_live).map(shown).collect()
    }

    fn is_served(&self, host: &Host, volume: Uuid) -> bool {
        self.live(host, volume).iter().any(|live| live.is_accessible)
    }

    /// Notes which hosts have a live path and an agent that could say so, for how long.
    fn note_served(&mut self) {
        let now = Instant::now();
        let mut served = BTreeMap::new();
        for (name, host) in self.hosts.iter().filter(|(_, host)| host.has_agent) {
            for volume in host.paths.keys().filter(|volume| self.is_served(host, **volume)) {
                let key = (name.clone(), *volume);
                served.insert(key.clone(), self.served_since.get(&key).copied().unwrap_or(now));
            }
        }
        self.served_since = served;
    }

    fn target(&self, id: Uuid) -> Target {
        self.shown(id, self.volumes[&id].current())
    }

    fn shown(&self, id: Uuid, nexus: &Nexus) -> Target {
        // The operator sees what engines show.
        let is_seen = nexus.is_there && self.is_up(nexus.node);
        let uri = format!("nvmf://{}/{NQN_PREFIX}{id}", address(nexus.node));
        Target { nexus: Some(nexus.id), node: format!("n{}", nexus.node), uri: is_seen.then_some(uri) }
    }
}

fn address(node: usize) -> String {
    format!("10.0.0.{node}:8420")
}
