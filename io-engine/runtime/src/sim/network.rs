//! The simulated network: TCP as its users see it, between the nodes' addresses.
//!
//! Fault model, in words.
//! - A stream's bytes arrive in order, whole, once, each segment after a random delay. A receive may give fewer bytes
//!   than have arrived. A sender is held back when 256 KiB are on their way or unread.
//! - A partition between two nodes is silent: nothing arrives, nothing fails, connects get no answer. Segments wait for
//!   the heal, as retransmission would have it, and then arrive in order.
//! - When a process is killed, its listeners vanish, bytes it had under way are lost, and a reset goes to each peer (after
//!   the heal, if there is a partition). Its machine still answers: connects are refused, data is reset.
//! - When a node loses its power its peers hear nothing. Connects to it, and data on old connections, wait until
//!   something is started on it again, and are then answered by what is there: a reset, if nothing knows them. An idle
//!   connection never learns of it; who wants to know must probe.
//! - A connect to an address that is no node's, or to a port without a listener, is refused.
//! - Closing sends the end of stream after the data; closing with unread data, or data that meets a closed stream, is
//!   answered by a reset.
//!
//! Not modelled: loss without retransmission, corruption on the wire, and bandwidth.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::schedule::{Event, Mark, State};
use crate::buffer::{IoBuf, IoBytes};
use crate::clock::Instant;
use crate::executor::NodeIndex;

/// Bytes a sender may have on their way or unread: about what Linux gives a socket.
const WINDOW_BYTES: usize = 256 * 1024;
/// Connections that may wait to be accepted; further ones are refused.
const BACKLOG: usize = 1024;
/// First of the ports given to who does not ask for one.
const FIRST_PORT: u16 = 32768;

/// What travels from one end to the other.
enum Segment {
    Connect,
    Accepted,
    Data(IoBytes),
    End,
    Reset,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Open,
    Refused,
    Reset,
}

/// One end of a stream.
struct Endpoint {
    node: NodeIndex,
    local: SocketAddr,
    remote: SocketAddr,
    remote_node: NodeIndex,
    /// The other end, once it is known.
    peer: Option<u64>,
    phase: Phase,
    /// The stream was dropped or its process died; the endpoint stays until what it has sent has arrived.
    is_closed: bool,
    has_sent_end: bool,
    has_received_end: bool,
    outbound: VecDeque<(Instant, Segment)>,
    received: VecDeque<IoBytes>,
    /// Bytes sent that the peer has not read.
    unread_bytes: usize,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Default)]
struct Listener {
    waiting: VecDeque<u64>,
    waker: Option<Waker>,
}

/// Listeners, streams and partitions of a world.
pub(crate) struct Network {
    listeners: BTreeMap<(NodeIndex, u16), Listener>,
    endpoints: BTreeMap<u64, Endpoint>,
    next_endpoint: u64,
    next_port: u16,
    partitions: BTreeSet<(NodeIndex, NodeIndex)>,
    /// Resets without an endpoint that met a partition.
    held_resets: Vec<(NodeIndex, u64)>,
    /// Delay of a segment, from and to, in nanoseconds.
    delay: (u64, u64),
}

impl Default for Network {
    fn default() -> Self {
        Self {
            listeners: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            next_endpoint: 1,
            next_port: FIRST_PORT,
            partitions: BTreeSet::new(),
            held_resets: Vec::new(),
            delay: (20_000, 400_000),
        }
    }
}

fn pair(a: NodeIndex, b: NodeIndex) -> (NodeIndex, NodeIndex) {
    (a.min(b), a.max(b))
}

impl State {
    pub(crate) fn set_network_delay(&mut self, delay: Range<Duration>) {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.network.delay = (nanos(delay.start), nanos(delay.end).max(nanos(delay.start)));
    }

    fn is_silent(&self, a: NodeIndex, b: NodeIndex) -> bool {
        self.network.partitions.contains(&pair(a, b)) || !self.nodes[a].has_power || !self.nodes[b].has_power
    }

    pub(crate) fn partition(&mut self, a: NodeIndex, b: NodeIndex) {
        assert_ne!(a, b, "a node is not parted from itself");
        self.network.partitions.insert(pair(a, b));
        self.trace.record(Mark::Fault, &[a as u64, b as u64]);
    }

    pub(crate) fn heal_partition(&mut self, a: NodeIndex, b: NodeIndex) {
        self.network.partitions.remove(&pair(a, b));
        self.trace.record(Mark::Fault, &[a as u64, b as u64]);
        self.send_again();
    }

    /// Something between the nodes breaks every connection they have: both ends see a reset.
    pub(crate) fn reset_between(&mut self, a: NodeIndex, b: NodeIndex) {
        self.trace.record(Mark::Fault, &[a as u64, b as u64]);
        let ends = |endpoint: &Endpoint| pair(endpoint.node, endpoint.remote_node) == pair(a, b);
        let numbers: Vec<u64> = self
            .network
            .endpoints
            .iter()
            .filter(|(_, endpoint)| ends(endpoint))
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            self.end_endpoint(number);
        }
    }

    /// Sends on their way what a silence has held.
    pub(crate) fn send_again(&mut self) {
        let numbers: Vec<u64> = self.network.endpoints.keys().copied().collect();
        for number in numbers {
            let delay = self.rng.between(self.network.delay);
            let now = self.now;
            let endpoint = self.network.endpoints.get_mut(&number).expect("numbers were just listed");
            for (at, _) in &mut endpoint.outbound {
                // What was held travels again; what was sent since stays behind it, and has its own event.
                *at = (*at).max(now + Duration::from_nanos(delay));
            }
            if let Some((first, _)) = endpoint.outbound.front() {
                let first = *first;
                self.schedule(first, Event::Arrive(number));
            }
        }
        for (from, to) in std::mem::take(&mut self.network.held_resets) {
            self.schedule(self.now, Event::Reset { from, to });
        }
    }

    /// The node of an address as seen from `node`.
    fn resolve(&self, node: NodeIndex, address: IpAddr) -> Option<NodeIndex> {
        if address.is_loopback() || address.is_unspecified() {
            return Some(node);
        }
        self.nodes.iter().position(|candidate| candidate.address == address)
    }

    fn free_port(&mut self, node: NodeIndex) -> u16 {
        loop {
            let port = self.network.next_port;
            self.network.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.network.listeners.contains_key(&(node, port)) {
                return port;
            }
        }
    }

    pub(crate) fn listen(&mut self, node: NodeIndex, address: SocketAddr) -> io::Result<SocketAddr> {
        if self.resolve(node, address.ip()) != Some(node) {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let port = if address.port() == 0 { self.free_port(node) } else { address.port() };
        if self.network.listeners.contains_key(&(node, port)) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        self.network.listeners.insert((node, port), Listener::default());
        let ip = if address.ip().is_unspecified() { self.nodes[node].address } else { address.ip() };
        Ok(SocketAddr::new(ip, port))
    }

    pub(crate) fn unlisten(&mut self, node: NodeIndex, port: u16) {
        if let Some(listener) = self.network.listeners.remove(&(node, port)) {
            for endpoint in listener.waiting {
                self.reset_endpoint(endpoint);
            }
        }
    }

    pub(crate) fn poll_accept(
        &mut self,
        node: NodeIndex,
        port: u16,
        waker: &Waker,
    ) -> Poll<io::Result<(u64, SocketAddr)>> {
        let Some(listener) = self.network.listeners.get_mut(&(node, port)) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        match listener.waiting.pop_front() {
            Some(endpoint) => Poll::Ready(Ok((endpoint, self.network.endpoints[&endpoint].remote))),
            None => {
                listener.waker = Some(waker.clone());
                Poll::Pending
            }
        }
    }

    fn add_endpoint(&mut self, endpoint: Endpoint) -> u64 {
        let number = self.network.next_endpoint;
        self.network.next_endpoint += 1;
        self.network.endpoints.insert(number, endpoint);
        number
    }

    pub(crate) fn connect(&mut self, node: NodeIndex, address: SocketAddr) -> u64 {
        let target = self.resolve(node, address.ip());
        let local_ip = if address.ip().is_loopback() { address.ip() } else { self.nodes[node].address };
        let local = SocketAddr::new(local_ip, self.free_port(node));
        let number = self.add_endpoint(Endpoint {
            node,
            local,
            remote: address,
            remote_node: target.unwrap_or(node),
            peer: None,
            phase: Phase::Connecting,
            is_closed: false,
            has_sent_end: false,
            has_received_end: false,
            outbound: VecDeque::new(),
            received: VecDeque::new(),
            unread_bytes: 0,
            reader: None,
            writer: None,
        });
        if target.is_some() {
            self.send_segment(number, Segment::Connect);
        } else {
            self.answer_reset(node, number);
        }
        number
    }

    pub(crate) fn poll_connected(&mut self, number: u64, waker: &Waker) -> Poll<io::Result<()>> {
        let Some(endpoint) = self.network.endpoints.get_mut(&number) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        match endpoint.phase {
            Phase::Connecting => {
                endpoint.writer = Some(waker.clone());
                Poll::Pending
            }
            Phase::Open => Poll::Ready(Ok(())),
            Phase::Refused => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
            Phase::Reset => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }

    fn send_segment(&mut self, number: u64, segment: Segment) {
        let delay = Duration::from_nanos(self.rng.between(self.network.delay));
        let now = self.now;
        let endpoint = self.network.endpoints.get_mut(&number).expect("only existing endpoints send");
        let last = endpoint.outbound.back().map_or(now, |(at, _)| *at);
        let at = last.max(now + delay);
        endpoint.outbound.push_back((at, segment));
        self.schedule(at, Event::Arrive(number));
    }

    /// A reset from a node that knows no endpoint for what it got.
    fn answer_reset(&mut self, from: NodeIndex, to: u64) {
        let delay = Duration::from_nanos(self.rng.between(self.network.delay));
        self.schedule(self.now + delay, Event::Reset { from, to });
    }

    pub(crate) fn reset_arrives(&mut self, from: NodeIndex, to: u64) {
        let Some(endpoint) = self.network.endpoints.get(&to) else { return };
        if self.is_silent(from, endpoint.node) {
            self.network.held_resets.push((from, to));
            return;
        }
        self.trace.record(Mark::Reset, &[to, self.now.as_nanos()]);
        self.end_endpoint(to);
    }

    /// The endpoint's stream is broken: both directions fail from here on.
    fn end_endpoint(&mut self, number: u64) {
        let Some(endpoint) = self.network.endpoints.get_mut(&number) else { return };
        endpoint.phase = if endpoint.phase == Phase::Connecting { Phase::Refused } else { Phase::Reset };
        endpoint.outbound.clear();
        endpoint.received.clear();
        let (mut reader, mut writer) = (endpoint.reader.take(), endpoint.writer.take());
        let is_closed = endpoint.is_closed;
        self.wake(&mut reader);
        self.wake(&mut writer);
        if is_closed {
            self.network.endpoints.remove(&number);
        }
    }

    /// Segments of this endpoint that are due reach the other side, unless there is silence between them.
    pub(crate) fn segments_arrive(&mut self, number: u64) {
        loop {
            let Some(endpoint) = self.network.endpoints.get(&number) else { return };
            let is_due = endpoint.outbound.front().is_some_and(|(at, _)| *at <= self.now);
            if !is_due || self.is_silent(endpoint.node, endpoint.remote_node) {
                break;
            }
            let endpoint = self.network.endpoints.get_mut(&number).expect("looked up above");
            let (_, segment) = endpoint.outbound.pop_front().expect("looked at above");
            self.trace.record(Mark::Segment, &[number, self.now.as_nanos()]);
            self.segment_arrives(number, segment);
        }
        if let Some(endpoint) = self.network.endpoints.get(&number)
            && endpoint.is_closed
            && endpoint.outbound.is_empty()
        {
            self.network.endpoints.remove(&number);
        }
    }

    fn segment_arrives(&mut self, from: u64, segment: Segment) {
        let sender = &self.network.endpoints[&from];
        let (node, peer) = (sender.remote_node, sender.peer);
        if let Segment::Connect = segment {
            return self.connect_arrives(from);
        }
        let receiver = peer.and_then(|peer| self.network.endpoints.get_mut(&peer));
        let Some(receiver) =
            receiver.filter(|receiver| !receiver.is_closed && receiver.phase != Phase::Reset)
        else {
            // Nobody is there for it. An end needs no answer, a reset gets none.
            if let Segment::Data(_) | Segment::Accepted = segment {
                self.answer_reset(node, from);
            }
            return;
        };
        match segment {
            Segment::Connect => unreachable!("handled above"),
            Segment::Accepted => {
                receiver.phase = Phase::Open;
                receiver.peer = Some(from);
                let mut waker = receiver.writer.take();
                self.wake(&mut waker);
            }
            Segment::Data(data) => {
                receiver.received.push_back(data);
                let mut waker = receiver.reader.take();
                self.wake(&mut waker);
            }
            Segment::End => {
                receiver.has_received_end = true;
                let mut waker = receiver.reader.take();
                self.wake(&mut waker);
            }
            Segment::Reset => self.end_endpoint(peer.expect("the receiver was found by it")),
        }
    }

    fn connect_arrives(&mut self, from: u64) {
        let sender = &self.network.endpoints[&from];
        let (node, address, client, client_node) =
            (sender.remote_node, sender.remote, sender.local, sender.node);
        let has_room = self
            .network
            .listeners
            .get(&(node, address.port()))
            .is_some_and(|listener| listener.waiting.len() < BACKLOG);
        if !has_room || sender.is_closed {
            return self.answer_reset(node, from);
        }
        let accepted = self.add_endpoint(Endpoint {
            node,
            local: address,
            remote: client,
            remote_node: client_node,
            peer: Some(from),
            phase: Phase::Open,
            is_closed: false,
            has_sent_end: false,
            has_received_end: false,
            outbound: VecDeque::new(),
            received: VecDeque::new(),
            unread_bytes: 0,
            reader: None,
            writer: None,
        });
        self.send_segment(accepted, Segment::Accepted);
        let listener = self.network.listeners.get_mut(&(node, address.port())).expect("looked up above");
        listener.waiting.push_back(accepted);
        let mut waker = listener.waker.take();
        self.wake(&mut waker);
    }

    /// Takes as much of `parts` as the window admits; ready when nothing is left.
    pub(crate) fn poll_send(
        &mut self,
        number: u64,
        parts: &mut VecDeque<IoBytes>,
        waker: &Waker,
    ) -> Poll<io::Result<()>> {
        loop {
            let Some(endpoint) = self.network.endpoints.get_mut(&number) else {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            };
            if endpoint.phase != Phase::Open {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if endpoint.has_sent_end {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let Some(part) = parts.pop_front() else { return Poll::Ready(Ok(())) };
            if part.is_empty() {
                continue;
            }
            let room = WINDOW_BYTES - endpoint.unread_bytes;
            if room == 0 {
                parts.push_front(part);
                endpoint.writer = Some(waker.clone());
                return Poll::Pending;
            }
            let taken = room.min(part.len());
            endpoint.unread_bytes += taken;
            if taken < part.len() {
                parts.push_front(part.slice(taken..part.len()));
            }
            self.send_segment(number, Segment::Data(part.slice(0..taken)));
        }
    }

    /// Fills `buf` with what has arrived, or with less.
    pub(crate) fn poll_receive(
        &mut self,
        number: u64,
        buf: &mut IoBuf,
        waker: &Waker,
    ) -> Poll<io::Result<usize>> {
        let Some(endpoint) = self.network.endpoints.get_mut(&number) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        if endpoint.phase != Phase::Open {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let available = endpoint.received.iter().map(|data| data.len()).sum::<usize>().min(buf.len());
        if available == 0 {
            if endpoint.has_received_end || buf.is_empty() {
                return Poll::Ready(Ok(0));
            }
            endpoint.reader = Some(waker.clone());
            return Poll::Pending;
        }
        let wanted = if self.rng.one_in(4) { 1 + self.rng.index(available) } else { available };
        let mut done = 0;
        while done < wanted {
            let data = endpoint.received.front_mut().expect("the bytes were counted above");
            let part = data.len().min(wanted - done);
            buf[done..done + part].copy_from_slice(&data[..part]);
            done += part;
            if part == data.len() {
                endpoint.received.pop_front();
            } else {
                *data = data.slice(part..data.len());
            }
        }
        self.trace.record(Mark::Receive, &[number, wanted as u64, fold(&buf[..wanted])]);
        let peer = endpoint.peer;
        if let Some(sender) = peer.and_then(|peer| self.network.endpoints.get_mut(&peer)) {
            sender.unread_bytes -= wanted;
            let mut waker = sender.writer.take();
            self.wake(&mut waker);
        }
        Poll::Ready(Ok(wanted))
    }

    /// Ends the sending direction.
    pub(crate) fn shutdown_endpoint(&mut self, number: u64) {
        let Some(endpoint) = self.network.endpoints.get_mut(&number) else { return };
        if endpoint.phase == Phase::Open && !std::mem::replace(&mut endpoint.has_sent_end, true) {
            self.send_segment(number, Segment::End);
        }
    }

    /// Breaks the stream: data under way is lost and the peer gets a reset.
    pub(crate) fn reset_endpoint(&mut self, number: u64) {
        let Some(endpoint) = self.network.endpoints.get_mut(&number) else { return };
        let is_broken = matches!(endpoint.phase, Phase::Reset | Phase::Refused);
        endpoint.outbound.retain(|(_, segment)| matches!(segment, Segment::Accepted | Segment::Reset));
        endpoint.received.clear();
        endpoint.phase = Phase::Reset;
        let (mut reader, mut writer) = (endpoint.reader.take(), endpoint.writer.take());
        let has_peer = endpoint.peer.is_some();
        self.wake(&mut reader);
        self.wake(&mut writer);
        if !is_broken && has_peer {
            self.send_segment(number, Segment::Reset);
        }
    }

    /// The last holder of the stream is gone.
    pub(crate) fn close_endpoint(&mut self, number: u64) {
        let Some(endpoint) = self.network.endpoints.get_mut(&number) else { return };
        endpoint.is_closed = true;
        if endpoint.received.is_empty() && endpoint.phase == Phase::Open {
            self.shutdown_endpoint(number);
        } else {
            self.reset_endpoint(number);
        }
        if self.network.endpoints.get(&number).is_some_and(|endpoint| endpoint.outbound.is_empty()) {
            self.network.endpoints.remove(&number);
        }
    }

    /// The node's process or power ended. Called before its tasks are dropped.
    pub(crate) fn network_settle(&mut self, node: NodeIndex, has_lost_power: bool) {
        self.network.listeners.retain(|(of, _), _| *of != node);
        let numbers: Vec<u64> = self
            .network
            .endpoints
            .iter()
            .filter(|(_, endpoint)| endpoint.node == node)
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            if has_lost_power {
                self.network.endpoints.remove(&number);
            } else {
                self.reset_endpoint(number);
                self.close_endpoint(number);
            }
        }
    }

    pub(crate) fn local_address(&self, number: u64) -> Option<SocketAddr> {
        self.network.endpoints.get(&number).map(|endpoint| endpoint.local)
    }
}

/// A few bytes' worth of evidence for the trace.
fn fold(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
