//! TCP on the ring.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::ptr;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use io_uring::opcode;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, sockopt};

use super::{Uring, checked, ring_fd};
use crate::buffer::{IoBuf, IoBytes};
use crate::driver::op::{Fd, Held, Message, Op, SocketAddress, accepted};

/// The most parts that the kernel takes in one call (UIO_MAXIOV).
const PARTS_MAX: usize = 1024;
/// No signal for a broken pipe; and the kernel goes on after short sends by itself.
const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;

/// See [`crate::TcpListener`].
pub(crate) struct UringListener {
    driver: Rc<Uring>,
    fd: Fd,
    address: SocketAddr,
    /// The accept in flight. It belongs to the listener and not to a call, so that a dropped call loses no connection.
    accept: RefCell<Option<Op>>,
}

impl UringListener {
    pub(crate) fn bind(driver: &Rc<Uring>, address: SocketAddr) -> io::Result<Self> {
        // The standard library's listener allows the address to be taken over from connections in TIME_WAIT.
        let socket = std::net::TcpListener::bind(address)?;
        let address = socket.local_addr()?;
        Ok(Self {
            driver: Rc::clone(driver),
            fd: Rc::new(socket.into()),
            address,
            accept: RefCell::default(),
        })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }

    pub(crate) async fn accept(&self) -> io::Result<(UringStream, SocketAddr)> {
        loop {
            let fd = match poll_fn(|cx| self.poll_accept(cx)).await {
                Ok(fd) => fd,
                // The connection was broken before it was accepted; the listener is fine.
                Err(error) if is_of_the_connection(&error) => continue,
                Err(error) => return Err(error),
            };
            // A connection that is reset by now has no peer any more: on to the next.
            if let Ok(stream) = UringStream::adopt(&self.driver, fd) {
                let remote = stream.remote;
                return Ok((stream, remote));
            }
        }
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<OwnedFd>> {
        let mut accept = self.accept.borrow_mut();
        let (result, _) = ready!(Pin::new(accept.get_or_insert_with(|| self.submit_accept())).poll(cx));
        *accept = None;
        Poll::Ready(accepted(result).ok_or_else(|| io::Error::from_raw_os_error(-result)))
    }

    fn submit_accept(&self) -> Op {
        let entry = opcode::Accept::new(ring_fd(&self.fd), ptr::null_mut(), ptr::null_mut())
            .flags(libc::SOCK_CLOEXEC)
            .build();
        // SAFETY: the entry points to nothing: the peer's address is asked for later.
        unsafe { self.driver.submit(entry, Held::Accept { _fd: Rc::clone(&self.fd) }) }
    }
}

impl Drop for UringListener {
    fn drop(&mut self) {
        // The accept in flight holds the descriptor for some turns more; the port is to be free now.
        let _ = rustix::net::shutdown(self.fd.as_fd(), Shutdown::Both);
    }
}

/// Errors of accept that speak of one connection, not of the listener (accept(2), "Error handling").
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EAGAIN
                | libc::ENETDOWN
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
        )
    )
}

/// See [`crate::TcpStream`].
pub(crate) struct UringStream {
    driver: Rc<Uring>,
    fd: Fd,
    local: SocketAddr,
    remote: SocketAddr,
}

impl UringStream {
    fn adopt(driver: &Rc<Uring>, fd: OwnedFd) -> io::Result<Self> {
        sockopt::set_tcp_nodelay(&fd, true)?;
        let local = SocketAddr::try_from(rustix::net::getsockname(&fd)?)?;
        let remote =
            rustix::net::getpeername(&fd)?.ok_or(io::ErrorKind::NotConnected).map(SocketAddr::try_from)??;
        Ok(Self { driver: Rc::clone(driver), fd: Rc::new(fd), local, remote })
    }

    pub(crate) async fn connect(driver: &Rc<Uring>, remote: SocketAddr) -> io::Result<Self> {
        let family = if remote.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let fd: Fd =
            Rc::new(rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?);
        let address = Box::new(SocketAddress::new(remote));
        let entry = opcode::Connect::new(ring_fd(&fd), address.as_ptr(), address.len()).build();
        let held = Held::Address { _fd: Rc::clone(&fd), _address: address };
        // SAFETY: the entry points to the address, which is boxed and goes along.
        let (result, held) = unsafe { driver.submit(entry, held) }.await;
        checked(result)?;
        drop(held);
        let fd = Rc::into_inner(fd).expect("the operation has given its share back");
        Self::adopt(driver, fd)
    }

    pub(crate) async fn recv(&self, mut buf: IoBuf) -> (io::Result<usize>, IoBuf) {
        loop {
            let len = u32::try_from(buf.len()).unwrap_or(u32::MAX);
            let entry = opcode::Recv::new(ring_fd(&self.fd), buf.as_mut_ptr(), len).build();
            // SAFETY: the entry points to `len` writable bytes of the buffer, whose memory is on the heap and goes
            // along.
            let receive = unsafe { self.driver.submit(entry, Held::Buf { _fd: Rc::clone(&self.fd), buf }) };
            let (result, held) = receive.await;
            buf = held.into_buf();
            match checked(result) {
                Err(error) if is_transient(&error) => {}
                result => return (result, buf),
            }
        }
    }

    pub(crate) async fn send(&self, mut parts: Vec<IoBytes>) -> io::Result<()> {
        parts.retain(|part| !part.is_empty());
        while !parts.is_empty() {
            let result = if parts.len() == 1 {
                self.send_one(parts[0].clone()).await.0
            } else {
                let (result, held) = self.send_message(parts).await;
                parts = match held {
                    Held::Message { message, .. } => message.parts,
                    _ => unreachable!("a vectored send holds its message"),
                };
                result
            };
            match checked(result) {
                Ok(count) => drop_front(&mut parts, count),
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn send_one(&self, data: IoBytes) -> Op {
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(ring_fd(&self.fd), data.as_ptr(), len).flags(SEND_FLAGS).build();
        // SAFETY: the entry points to `len` bytes that nobody may write into, and that go along.
        unsafe { self.driver.submit(entry, Held::Bytes { _fd: Rc::clone(&self.fd), _bytes: data }) }
    }

    fn send_message(&self, parts: Vec<IoBytes>) -> Op {
        let vectors = parts
            .iter()
            .take(PARTS_MAX)
            .map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() })
            .collect();
        // SAFETY: all-zero bytes are a valid msghdr: null pointers and zero lengths.
        let header: libc::msghdr = unsafe { std::mem::zeroed() };
        let mut message = Box::new(Message { header, vectors, parts });
        message.header.msg_iov = message.vectors.as_mut_ptr();
        message.header.msg_iovlen = message.vectors.len();
        let entry = opcode::SendMsg::new(ring_fd(&self.fd), &raw const message.header)
            .flags(SEND_FLAGS.cast_unsigned())
            .build();
        // SAFETY: the entry points to the header, the header to the vectors, these to the parts; all of it is on the
        // heap, goes along in the message, and is only read by the kernel.
        unsafe { self.driver.submit(entry, Held::Message { _fd: Rc::clone(&self.fd), message }) }
    }

    pub(crate) fn shutdown(&self) {
        // The only error is that there is no connection any more.
        let _ = rustix::net::shutdown(self.fd.as_fd(), Shutdown::Write);
    }

    pub(crate) fn reset(&self) {
        // Dissolving the association (connect(2) with AF_UNSPEC) sends the reset now, though operations in flight
        // still hold the descriptor. Errors mean that there is no connection any more.
        let _ = sockopt::set_socket_linger(self.fd.as_fd(), Some(Duration::ZERO));
        let _ = rustix::net::connect_unspec(self.fd.as_fd());
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    pub(crate) fn peer_addr(&self) -> SocketAddr {
        self.remote
    }
}

/// Takes `count` sent bytes off the front of `parts`.
fn drop_front(parts: &mut Vec<IoBytes>, mut count: usize) {
    let whole = parts
        .iter()
        .take_while(|part| {
            let is_sent = part.len() <= count;
            if is_sent {
                count -= part.len();
            }
            is_sent
        })
        .count();
    parts.drain(..whole);
    if count > 0 {
        let first = &mut parts[0];
        *first = first.slice(count..first.len());
    }
}

/// Errors after which the same request is simply made again.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_send_goes_on_where_it_stopped() {
        let mut parts =
            vec![IoBytes::from_slice(b"abc"), IoBytes::from_slice(b"defg"), IoBytes::from_slice(b"h")];
        drop_front(&mut parts, 5);
        assert_eq!(
            parts.iter().map(|part| part.to_vec()).collect::<Vec<_>>(),
            [b"fg".to_vec(), b"h".to_vec()]
        );
        drop_front(&mut parts, 3);
        assert!(parts.is_empty());
    }
}
