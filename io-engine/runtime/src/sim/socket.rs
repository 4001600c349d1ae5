//! The simulated side of [`crate::TcpListener`] and [`crate::TcpStream`].

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;

use super::schedule::World;
use crate::buffer::{IoBuf, IoBytes};
use crate::executor::NodeIndex;

/// A listener; its port is free again when it is dropped.
pub(crate) struct SimListener {
    world: Rc<World>,
    node: NodeIndex,
    address: SocketAddr,
}

impl SimListener {
    pub(crate) fn bind(world: &Rc<World>, node: NodeIndex, address: SocketAddr) -> io::Result<Self> {
        let address = world.with(|state| state.listen(node, address))?;
        Ok(Self { world: Rc::clone(world), node, address })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }

    pub(crate) async fn accept(&self) -> io::Result<(SimStream, SocketAddr)> {
        let (endpoint, remote) = poll_fn(|cx| {
            self.world.with(|state| state.poll_accept(self.node, self.address.port(), cx.waker()))
        })
        .await?;
        let stream = SimStream { world: Rc::clone(&self.world), endpoint, local: self.address, remote };
        Ok((stream, remote))
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.world.with(|state| state.unlisten(self.node, self.address.port()));
    }
}

/// One end of a stream; closed when dropped.
pub(crate) struct SimStream {
    world: Rc<World>,
    endpoint: u64,
    local: SocketAddr,
    remote: SocketAddr,
}

impl SimStream {
    pub(crate) async fn connect(world: &Rc<World>, node: NodeIndex, remote: SocketAddr) -> io::Result<Self> {
        let (endpoint, local) = world.with(|state| {
            let endpoint = state.connect(node, remote);
            (endpoint, state.local_address(endpoint).expect("the endpoint was just added"))
        });
        // From here on a dropped future closes the endpoint.
        let stream = Self { world: Rc::clone(world), endpoint, local, remote };
        poll_fn(|cx| world.with(|state| state.poll_connected(endpoint, cx.waker()))).await?;
        Ok(stream)
    }

    pub(crate) async fn recv(&self, mut buf: IoBuf) -> (io::Result<usize>, IoBuf) {
        let result = poll_fn(|cx| -> Poll<io::Result<usize>> {
            self.world.with(|state| state.poll_receive(self.endpoint, &mut buf, cx.waker()))
        })
        .await;
        (result, buf)
    }

    pub(crate) async fn send(&self, parts: Vec<IoBytes>) -> io::Result<()> {
        let mut parts = VecDeque::from(parts);
        poll_fn(|cx| self.world.with(|state| state.poll_send(self.endpoint, &mut parts, cx.waker()))).await
    }

    pub(crate) fn shutdown(&self) {
        self.world.with(|state| state.shutdown_endpoint(self.endpoint));
    }

    pub(crate) fn reset(&self) {
        self.world.with(|state| state.reset_endpoint(self.endpoint));
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    pub(crate) fn peer_addr(&self) -> SocketAddr {
        self.remote
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.world.with(|state| state.close_endpoint(self.endpoint));
    }
}
