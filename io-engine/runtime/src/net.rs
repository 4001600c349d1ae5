//! TCP listeners and streams.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use crate::buffer::{IoBuf, IoBytes};
use crate::context;
use crate::driver::Driver;
use crate::driver::uring::{UringListener, UringStream};
use crate::sim::{SimListener, SimStream};

/// A listening socket; the port is free again when it is dropped.
pub struct TcpListener {
    inner: Listener,
}

enum Listener {
    Uring(UringListener),
    Sim(SimListener),
}

impl TcpListener {
    /// Listens at `address`; port 0 asks for any free one.
    #[expect(clippy::unused_async, reason = "callers need not change when it goes through the ring")]
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let context = context::current();
        let inner = match &context.driver {
            Driver::Uring(uring) => Listener::Uring(UringListener::bind(uring, address)?),
            Driver::Sim(world) => Listener::Sim(SimListener::bind(world, context.executor.node(), address)?),
        };
        Ok(Self { inner })
    }

    /// The next connection and where it comes from. Cancel safe: a connection that was accepted for a dropped call is
    /// given to the next. One task accepts.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (inner, remote) = match &self.inner {
            Listener::Uring(listener) => {
                let (stream, remote) = listener.accept().await?;
                (Stream::Uring(stream), remote)
            }
            Listener::Sim(listener) => {
                let (stream, remote) = listener.accept().await?;
                (Stream::Sim(stream), remote)
            }
        };
        Ok((TcpStream { inner: Rc::new(inner) }, remote))
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        match &self.inner {
            Listener::Uring(listener) => listener.local_addr(),
            Listener::Sim(listener) => listener.local_addr(),
        }
    }
}

/// A connection. Clones share it, so that one task reads while another writes; it is closed with the last of them.
#[derive(Clone)]
pub struct TcpStream {
    inner: Rc<Stream>,
}

enum Stream {
    Uring(UringStream),
    Sim(SimStream),
}

impl TcpStream {
    /// Connects to `address`. There is no time limit but the kernel's: see [`crate::timeout`].
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let context = context::current();
        let inner = match &context.driver {
            Driver::Uring(uring) => Stream::Uring(UringStream::connect(uring, address).await?),
            Driver::Sim(world) => {
                Stream::Sim(SimStream::connect(world, context.executor.node(), address).await?)
            }
        };
        Ok(Self { inner: Rc::new(inner) })
    }

    /// Receives at most as many bytes as `buf` holds, at least one; none means that the peer has ended its side. The
    /// buffer comes back in any case. A dropped call may take bytes with it: give up on the connection then.
    pub async fn recv(&self, buf: IoBuf) -> (io::Result<usize>, IoBuf) {
        match &*self.inner {
            Stream::Uring(stream) => stream.recv(buf).await,
            Stream::Sim(stream) => stream.recv(buf).await,
        }
    }

    /// Sends all of `parts`, one after the other. Of a dropped call any number of bytes may have been sent: give up on
    /// the connection then. Calls that overlap would mix their bytes: one task sends.
    pub async fn send(&self, parts: Vec<IoBytes>) -> io::Result<()> {
        match &*self.inner {
            Stream::Uring(stream) => stream.send(parts).await,
            Stream::Sim(stream) => stream.send(parts).await,
        }
    }

    /// Ends the sending side: the peer sees the end of the stream behind what was sent.
    pub fn shutdown(&self) {
        match &*self.inner {
            Stream::Uring(stream) => stream.shutdown(),
            Stream::Sim(stream) => stream.shutdown(),
        }
    }

    /// Breaks the connection at once: the peer gets a reset, calls in flight on both sides fail.
    pub fn reset(&self) {
        match &*self.inner {
            Stream::Uring(stream) => stream.reset(),
            Stream::Sim(stream) => stream.reset(),
        }
    }

    /// Where the connection comes from on this side.
    pub fn local_addr(&self) -> SocketAddr {
        match &*self.inner {
            Stream::Uring(stream) => stream.local_addr(),
            Stream::Sim(stream) => stream.local_addr(),
        }
    }

    /// Where the other side is.
    pub fn peer_addr(&self) -> SocketAddr {
        match &*self.inner {
            Stream::Uring(stream) => stream.peer_addr(),
            Stream::Sim(stream) => stream.peer_addr(),
        }
    }
}
