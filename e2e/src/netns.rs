//! A network on one machine: engines in namespaces of their own on a bridge, Linux hosts on taps.
//!
//! ```text
//!   namespace hub:  etcd, API server, operator, the harness itself   10.77.0.254 = bridge
//!        |  ports e1 .. e3 (veth)                  |  ports h1 .. (tap)
//!   namespaces n1 .. n3: engines  10.77.0.1 ..     qemu: Linux hosts  10.77.0.100 ..
//! ```
//!
//! Every run has namespaces of its own, `mayastor-<pid>-<serial>-hub` and so on, so that runs do not meet, addresses
//! are the same in each, and what a killed run left behind can be told by its process id.
//!
//! Faults are made at one place, by nftables on the bridge, per direction: frames are dropped in silence, which is
//! what a dead switch does. Delay cannot be made here (the machine's kernel may lack netem); guests can delay
//! themselves.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

use crate::place::Place;

/// Tells the networks of one process apart.
static SERIAL: AtomicU32 = AtomicU32::new(0);

const NAME_PREFIX: &str = "mayastor-";
const NAMESPACES: &str = "/run/netns";

/// Where the control plane and the harness are.
pub const HUB_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);

/// Who is on the bridge. Engines and hosts count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    Hub,
    Engine(u8),
    Host(u8),
}

impl Peer {
    pub fn address(self) -> Ipv4Addr {
        match self {
            Self::Hub => HUB_ADDRESS,
            Self::Engine(number) => Ipv4Addr::new(10, 77, 0, number),
            Self::Host(number) => Ipv4Addr::new(10, 77, 0, 99 + number),
        }
    }

    /// The port of the bridge; the hub is the bridge itself.
    fn port(self) -> Option<String> {
        match self {
            Self::Hub => None,
            Self::Engine(number) => Some(format!("e{number}")),
            Self::Host(number) => Some(format!("h{number}")),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub => f.write_str("hub"),
            Self::Engine(number) => write!(f, "n{number}"),
            Self::Host(number) => write!(f, "host {number}"),
        }
    }
}

/// Frames from one peer to another are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cut {
    from: Peer,
    to: Peer,
}

/// The network of one run. Dropping it removes it.
#[derive(Debug)]
pub struct Net {
    prefix: String,
    engines: u8,
    hosts: u8,
    cuts: Mutex<BTreeSet<Cut>>,
}

impl Net {
    /// Makes a network for so many engines and Linux hosts, and removes what dead runs left.
    pub fn create(engines: u8, hosts: u8) -> Result<Self> {
        ensure!(engines < 99 && hosts < 99, "addresses are given out for fewer than 99 engines and hosts");
        sweep()?;
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let net = Self {
            prefix: format!("{NAME_PREFIX}{}-{serial}", std::process::id()),
            engines,
            hosts,
            cuts: Mutex::default(),
        };
        net.build()?;
        Ok(net)
    }

    fn build(&self) -> Result<()> {
        let hub = self.namespace(Peer::Hub)?;
        ip(&["netns", "add", &hub]).context(
            "network namespaces are needed, for which one must be root: run this as root or with sudo; or as a user \
             in a namespace of users, `unshare --user --map-root-user --net --mount sh -c \"mount -t tmpfs none /run \
             && …\"`; in a container, with --privileged",
        )?;
        // One batch in the hub: a process per command would take longer than all of it.
        let mut batch = String::from("link set lo up\nlink add br0 type bridge forward_delay 0\n");
        writeln!(batch, "addr add {HUB_ADDRESS}/24 dev br0\nlink set br0 up")?;
        for number in 1..=self.engines {
            let name = self.namespace(Peer::Engine(number))?;
            ip(&["netns", "add", &name])?;
            writeln!(batch, "link add e{number} type veth peer name eth0 netns {name}")?;
            writeln!(batch, "link set e{number} master br0 up")?;
        }
        for number in 1..=self.hosts {
            writeln!(batch, "tuntap add h{number} mode tap\nlink set h{number} master br0 up")?;
        }
        self.ip_batch(Peer::Hub, &batch)?;
        for number in 1..=self.engines {
            let engine = Peer::Engine(number);
            let address = engine.address();
            self.ip_batch(
                engine,
                &format!("link set lo up\naddr add {address}/24 dev eth0\nlink set eth0 up\n"),
            )?;
        }
        Ok(())
    }

    /// The name of a peer's namespace, for `ip netns exec`. Linux hosts have none: they are machines.
    pub fn namespace(&self, peer: Peer) -> Result<String> {
        match peer {
            Peer::Hub => Ok(format!("{}-hub", self.prefix)),
            Peer::Engine(number) => Ok(format!("{}-n{number}", self.prefix)),
            Peer::Host(_) => bail!("{peer} is a machine and has no namespace"),
        }
    }

    /// A command that runs in the peer's namespace; everything else it sees is the machine's.
    pub fn command(&self, peer: Peer, program: impl AsRef<Path>) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={NAMESPACES}/{}", self.namespace(peer)?)).arg("--").arg(program.as_ref());
        Ok(command)
    }

    /// Where a server of the laboratory runs when it runs at a peer.
    pub fn place(&self, peer: Peer) -> Result<Place> {
        Ok(Place::within(self.namespace(peer)?, peer.address().into()))
    }

    /// Moves the calling thread into a peer's namespace, and with it the threads and processes it will start: its
    /// sockets reach the bridge. Call it before a runtime makes its threads; a `#[tokio::test]` runs on one thread.
    pub fn enter(&self, peer: Peer) -> Result<()> {
        let path = Path::new(NAMESPACES).join(self.namespace(peer)?);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter the namespace of {peer}"))
    }

    /// The tap for the machine of a Linux host, in the hub's namespace.
    pub fn tap(&self, host: u8) -> Result<String> {
        ensure!((1..=self.hosts).contains(&host), "this network has {} hosts, not {host}", self.hosts);
        Ok(format!("h{host}"))
    }

    /// Lets the hub reach what is behind a peer: the pods of a node.
    pub fn route(&self, subnet: &str, via: Peer) -> Result<()> {
        self.ip_batch(Peer::Hub, &format!("route replace {subnet} via {}\n", via.address()))
    }

    /// Takes a peer off the network. An engine sees its link go down; a Linux host sees silence.
    pub fn link_down(&self, peer: Peer) -> Result<()> {
        self.set_link(peer, "down")
    }

    pub fn link_up(&self, peer: Peer) -> Result<()> {
        self.set_link(peer, "up")
    }

    fn set_link(&self, peer: Peer, state: &str) -> Result<()> {
        let port = peer.port().with_context(|| format!("{peer} has no link"))?;
        self.ip_batch(Peer::Hub, &format!("link set {port} {state}\n"))
    }

    /// Drops everything from one peer to another, in silence; the other direction stays.
    pub fn cut_one_way(&self, from: Peer, to: Peer) -> Result<()> {
        self.change_cuts(|cuts| cuts.extend([Cut { from, to }]))
    }

    /// Drops everything between two peers, in silence.
    pub fn cut(&self, a: Peer, b: Peer) -> Result<()> {
        self.change_cuts(|cuts| cuts.extend([Cut { from: a, to: b }, Cut { from: b, to: a }]))
    }

    /// Ends the cuts between two peers.
    pub fn heal(&self, a: Peer, b: Peer) -> Result<()> {
        self.change_cuts(|cuts| {
            cuts.retain(|cut| ![Cut { from: a, to: b }, Cut { from: b, to: a }].contains(cut));
        })
    }

    /// Ends all cuts.
    pub fn heal_all(&self) -> Result<()> {
        self.change_cuts(BTreeSet::clear)
    }

    fn change_cuts(&self, change: impl FnOnce(&mut BTreeSet<Cut>)) -> Result<()> {
        let mut cuts = self.cuts.lock().expect("no holder of this lock panics");
        let mut changed = cuts.clone();
        change(&mut changed);
        let ruleset = plan_ruleset(&changed);
        let mut nft = self.command(Peer::Hub, "nft")?;
        pipe_into(nft.args(["-f", "-"]), &ruleset).context("apply the bridge's rules")?;
        *cuts = changed;
        Ok(())
    }

    fn ip_batch(&self, peer: Peer, batch: &str) -> Result<()> {
        let mut command = self.command(peer, "ip")?;
        pipe_into(command.args(["-batch", "-"]), batch)
            .with_context(|| format!("set up the network of {peer}: {batch}"))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let peers = (1..=self.engines).map(Peer::Engine).chain([Peer::Hub]);
        for name in peers.filter_map(|peer| self.namespace(peer).ok()) {
            if Path::new(NAMESPACES).join(&name).exists()
                && let Err(error) = ip(&["netns", "del", &name])
            {
                eprintln!("cannot remove the namespace {name}: {error:#}");
            }
        }
    }
}

/// The whole ruleset for a set of cuts: what is applied is always all of it, in one transaction.
fn plan_ruleset(cuts: &BTreeSet<Cut>) -> String {
    // Declared before it is flushed, so that the first time is like every other.
    let mut rules = String::from("table bridge faults {}\nflush table bridge faults\n");
    for (chain, priority) in [("forward", 0), ("input", 0), ("output", 0)] {
        writeln!(
            rules,
            "add chain bridge faults {chain} {{ type filter hook {chain} priority {priority}; }}"
        )
        .expect("writing to a string cannot fail");
    }
    for Cut { from, to } in cuts {
        let rule = match (from.port(), to.port()) {
            (Some(from), Some(to)) => format!("forward iifname \"{from}\" oifname \"{to}\" drop"),
            (Some(from), None) => format!("input iifname \"{from}\" drop"),
            (None, Some(to)) => format!("output oifname \"{to}\" drop"),
            // The hub's conversation with itself never comes to the bridge.
            (None, None) => continue,
        };
        writeln!(rules, "add rule bridge faults {rule}").expect("writing to a string cannot fail");
    }
    rules
}

/// Removes the namespaces of runs whose process is gone. Their processes died with them.
fn sweep() -> Result<()> {
    let Ok(entries) = fs::read_dir(NAMESPACES) else {
        // The directory is made with the first namespace.
        return Ok(());
    };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let Some(pid) = owner(&name) else { continue };
        let is_dead = pid != std::process::id() && !Path::new("/proc").join(pid.to_string()).exists();
        if is_dead {
            let removed = ip(&["netns", "del", &name]);
            // Another run that starts now may have been quicker.
            if Path::new(NAMESPACES).join(&name).exists() {
                removed.with_context(|| format!("remove {name}, which a dead run left"))?;
            }
        }
    }
    Ok(())
}

/// The process id in the name of one of our namespaces.
fn owner(name: &str) -> Option<u32> {
    let (pid, _) = name.strip_prefix(NAME_PREFIX)?.split_once('-')?;
    pid.parse().ok()
}

fn ip(arguments: &[&str]) -> Result<()> {
    pipe_into(Command::new("ip").args(arguments), "").with_context(|| format!("ip {}", arguments.join(" ")))
}

fn pipe_into(command: &mut Command, input: &str) -> Result<()> {
    let name = command.get_program().display().to_string();
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().with_context(
            || format!("start {name} (`e2e/setup/host-packages.sh` installs what is missing)"),
        )?;
    let mut stdin = child.stdin.take().expect("standard input is a pipe");
    // A program that stops at an early line closes the pipe; its own words say more than our broken pipe.
    stdin.write_all(input.as_bytes()).ok();
    drop(stdin);
    let output = child.wait_with_output().context("wait for the command")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cuts are per direction and per place; a rule in the wrong chain would cut nothing, in silence.
    #[test]
    fn every_cut_has_its_rule_in_the_chain_its_frames_pass() {
        let cuts = BTreeSet::from([
            Cut { from: Peer::Host(1), to: Peer::Engine(2) },
            Cut { from: Peer::Engine(3), to: Peer::Hub },
            Cut { from: Peer::Hub, to: Peer::Engine(3) },
        ]);
        let rules = plan_ruleset(&cuts);
        for rule in [
            "add rule bridge faults forward iifname \"h1\" oifname \"e2\" drop\n",
            "add rule bridge faults input iifname \"e3\" drop\n",
            "add rule bridge faults output oifname \"e3\" drop\n",
        ] {
            assert!(rules.contains(rule), "{rules}");
        }
    }

    /// The sweep removes namespaces; somebody else's must never look like ours.
    #[test]
    fn only_our_own_names_have_an_owner() {
        assert_eq!(owner("mayastor-123-0-hub"), Some(123));
        assert_eq!(owner("mayastor-lab"), None);
        assert_eq!(owner("mayastor-x-0-hub"), None);
        assert_eq!(owner("cni-123-0-hub"), None);
    }
}
