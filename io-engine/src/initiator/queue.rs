//! One queue of an association: socket <-> nvme session, commands in flight, deadlines.
//!
//! A command that is not answered by its deadline takes the queue with it: what became of it is unknown, and nothing
//! that was sent behind it can be trusted to be in order. All other commands then fail as lost with the path.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use nvme::session::host::{HostConfig, HostTransfer};
use nvme::session::{HostEvent, HostSession};
use nvme::{CompletionEntry, SubmissionEntry, Tag};
use runtime::{IoBuf, IoBytes, TcpStream};
use tokio::sync::{Notify, Semaphore, oneshot};
use tracing::debug;

use crate::block::{BlockError, ErrorKind, to_usize};
use crate::transport::{DIRECT_BYTES_MIN, RECEIVE_BYTES, SendQueue, receive_into};

/// Data that goes with a command.
pub(crate) enum Data {
    None,
    /// To the controller.
    Write(IoBytes),
    /// To the host: the buffer to fill.
    Read(IoBuf),
}

/// A command that was answered.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) completion: CompletionEntry,
    /// The buffer of a read, filled if the command succeeded.
    pub(crate) buffer: Option<IoBuf>,
}

struct InFlight {
    data: Option<IoBytes>,
    buffer: Option<IoBuf>,
    reply: oneshot::Sender<Finished>,
}

/// See the module.
pub(crate) struct Queue {
    stream: TcpStream,
    session: RefCell<HostSession>,
    commands: RefCell<Vec<Option<InFlight>>>,
    slots: Semaphore,
    sending: SendQueue,
    is_initialised: Cell<bool>,
    is_closed: Cell<bool>,
    changed: Notify,
}

impl Queue {
    /// Connects, and exchanges ICReq and ICResp. The caller limits the time.
    pub(crate) async fn open(address: SocketAddr, config: HostConfig) -> Result<Rc<Self>, BlockError> {
        let lost = |error: io::Error| {
            BlockError::with_source(ErrorKind::PathLost, format!("connect to {address}"), error)
        };
        let stream = TcpStream::connect(address).await.map_err(lost)?;
        let queue = Rc::new(Self {
            stream,
            session: RefCell::new(HostSession::new(config)),
            commands: RefCell::default(),
            slots: Semaphore::new(usize::from(config.commands_max)),
            sending: SendQueue::default(),
            is_initialised: Cell::new(false),
            is_closed: Cell::new(false),
            changed: Notify::new(),
        });
        queue.collect();
        let (sender, reader) = (Rc::clone(&queue), Rc::clone(&queue));
        runtime::spawn(async move {
            if let Err(error) = sender.sending.run(&sender.stream).await {
                debug!(peer = %sender.stream.peer_addr(), %error, "sending failed");
                sender.close();
            }
        });
        runtime::spawn(async move {
            reader.read().await;
            reader.close();
        });
        let opening = CloseOnDrop(Some(Rc::clone(&queue)));
        while !queue.is_initialised.get() {
            if queue.is_closed() {
                return Err(BlockError::new(ErrorKind::PathLost, format!("{address} closed the connection")));
            }
            queue.changed.notified().await;
        }
        Ok(opening.keep())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// Returns when the connection is gone.
    pub(crate) async fn closed(&self) {
        while !self.is_closed() {
            self.changed.notified().await;
        }
    }

    /// Breaks the connection; commands in flight fail as lost with the path.
    pub(crate) fn close(&self) {
        if self.is_closed.replace(true) {
            return;
        }
        self.sending.abandon();
        self.stream.reset();
        self.commands.take();
        self.slots.close();
        self.changed.notify_waiters();
    }

    /// What Identify said of data in the capsule.
    pub(crate) fn set_in_capsule_bytes(&self, bytes_max: u32) {
        self.session.borrow_mut().set_in_capsule_bytes(bytes_max);
    }

    /// Sends a command and waits for its completion, at most `deadline` from when it was sent. Waits for a free place
    /// in the queue first.
    ///
    /// Cancel safe: the command goes on, its completion is dropped.
    pub(crate) async fn submit(
        self: &Rc<Self>,
        entry: SubmissionEntry,
        data: Data,
        deadline: Duration,
    ) -> Result<Finished, BlockError> {
        let lost = || {
            BlockError::new(ErrorKind::PathLost, format!("connection to {} is gone", self.stream.peer_addr()))
        };
        let place = self.slots.acquire().await.map_err(|_| lost())?;
        // The place is free again with the completion, not with the caller's patience.
        place.forget();
        let (reply, answered) = oneshot::channel();
        let (data, buffer, transfer_len) = match data {
            Data::None => (None, None, None),
            Data::Write(bytes) => (Some(bytes), None, None),
            Data::Read(buffer) => {
                let len = u32::try_from(buffer.len()).expect("limited by the transfer size");
                (None, Some(buffer), Some(len))
            }
        };
        let transfer = match (&data, transfer_len) {
            (Some(bytes), _) => HostTransfer::Write(bytes),
            (None, Some(len)) => HostTransfer::Read { len },
            (None, None) => HostTransfer::None,
        };
        let submitted = self.session.borrow_mut().submit(entry, transfer);
        let tag = match submitted {
            Ok(tag) => tag,
            Err(error) => {
                self.slots.add_permits(1);
                return Err(BlockError::with_source(ErrorKind::Internal, "submit a command", error));
            }
        };
        self.insert(tag, InFlight { data, buffer, reply });
        self.collect();
        match runtime::timeout(deadline, answered).await {
            Ok(Ok(finished)) => Ok(finished),
            Ok(Err(_)) => Err(lost()),
            Err(_) => {
                self.close();
                let peer = self.stream.peer_addr();
                let text = format!("{peer} did not answer within {} ms", deadline.as_millis());
                Err(BlockError::new(ErrorKind::TimedOut, text))
            }
        }
    }

    fn insert(&self, tag: Tag, command: InFlight) {
        let mut commands = self.commands.borrow_mut();
        if commands.len() <= tag.index() {
            commands.resize_with(tag.index() + 1, || None);
        }
        commands[tag.index()] = Some(command);
    }

    async fn read(&self) {
        let mut buf = IoBuf::zeroed(RECEIVE_BYTES);
        while !self.is_closed() {
            let received = if let Some((tag, buffer, offset, len)) = self.take_direct() {
                self.read_direct(tag, buffer, offset, len).await
            } else {
                let (received, back) = self.stream.recv(buf).await;
                buf = back;
                if let Ok(count) = received {
                    self.absorb(&buf[..count]);
                }
                received
            };
            match received {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => {
                    debug!(peer = %self.stream.peer_addr(), %error, "receiving failed");
                    return;
                }
            }
        }
    }

    /// The buffer of a command whose long data comes next.
    fn take_direct(&self) -> Option<(Tag, IoBuf, usize, usize)> {
        let pending = self.session.borrow_mut().pending_data()?;
        if pending.len < DIRECT_BYTES_MIN {
            return None;
        }
        let mut commands = self.commands.borrow_mut();
        let buffer = commands.get_mut(pending.tag.index())?.as_mut()?.buffer.take()?;
        Some((pending.tag, buffer, to_usize(pending.offset.into()), to_usize(pending.len.into())))
    }

    async fn read_direct(&self, tag: Tag, buffer: IoBuf, offset: usize, len: usize) -> io::Result<usize> {
        let (received, buffer) = receive_into(&self.stream, buffer, offset, len).await;
        let range = received?;
        // The session accounts for the bytes (and their digest) where they are; there is nothing to copy.
        let mut input = &buffer[range.clone()];
        let mut event = self.session.borrow_mut().receive(&mut input);
        assert!(input.is_empty(), "no more than the data of one PDU was received");
        if matches!(event, Some(HostEvent::Data { .. })) {
            event = self.session.borrow_mut().receive(&mut input);
        }
        let finished = match event {
            Some(HostEvent::Completed { tag, completion, received, is_intact }) => {
                Some((tag, completion, received, is_intact))
            }
            _ => None,
        };
        if let Some(Some(command)) = self.commands.borrow_mut().get_mut(tag.index()) {
            command.buffer = Some(buffer);
        }
        if let Some((tag, completion, received, is_intact)) = finished {
            self.finish(tag, completion, received, is_intact);
        }
        Ok(range.len())
    }

    fn absorb(&self, mut input: &[u8]) {
        loop {
            let event = self.session.borrow_mut().receive(&mut input);
            match event {
                None => break,
                Some(HostEvent::Initialised) => {
                    self.is_initialised.set(true);
                    self.changed.notify_waiters();
                }
                Some(HostEvent::DataWanted(wanted)) => {
                    let commands = self.commands.borrow();
                    let command = commands.get(wanted.tag.index()).and_then(Option::as_ref);
                    if let Some(data) = command.and_then(|command| command.data.as_ref()) {
                        self.session.borrow_mut().send_data(wanted, data);
                    }
                    drop(commands);
                    self.collect();
                }
                Some(HostEvent::Data { tag, offset, bytes }) => {
                    let mut commands = self.commands.borrow_mut();
                    let command = commands.get_mut(tag.index()).and_then(Option::as_mut);
                    if let Some(buffer) = command.and_then(|command| command.buffer.as_mut()) {
                        let at = to_usize(offset.into());
                        buffer[at..at + bytes.len()].copy_from_slice(bytes);
                    }
                }
                Some(HostEvent::Completed { tag, completion, received, is_intact }) => {
                    self.finish(tag, completion, received, is_intact);
                }
                Some(HostEvent::Ended(error)) => {
                    debug!(peer = %self.stream.peer_addr(), %error, "connection ended");
                    self.collect();
                    self.close();
                }
            }
        }
    }

    fn finish(&self, tag: Tag, mut completion: CompletionEntry, received: u32, is_intact: bool) {
        let command = self.commands.borrow_mut().get_mut(tag.index()).and_then(Option::take);
        let Some(command) = command else { return };
        if !self.is_closed() {
            self.slots.add_permits(1);
        }
        let is_short =
            command.buffer.as_ref().is_some_and(|buffer| buffer.len() != to_usize(received.into()));
        if completion.status.is_success() && (is_short || !is_intact) {
            // A success without all of its data, or with data that its digest disowns, is no success.
            completion.status = nvme::Status::TRANSIENT_TRANSPORT_ERROR;
        }
        // A caller that gave up has no use for it.
        let _ = command.reply.send(Finished { completion, buffer: command.buffer });
    }

    fn collect(&self) {
        let mut session = self.session.borrow_mut();
        let commands = self.commands.borrow();
        let payload = |tag: Tag| {
            let command = commands.get(tag.index()).and_then(Option::as_ref);
            command.and_then(|command| command.data.clone()).expect("a command in flight keeps its data")
        };
        self.sending.collect(session.outbox(), payload, None);
    }
}

/// Closes a queue whose opening or set-up was given up.
pub(crate) struct CloseOnDrop(pub(crate) Option<Rc<Queue>>);

impl CloseOnDrop {
    /// The queue, to be kept.
    pub(crate) fn keep(mut self) -> Rc<Queue> {
        self.0.take().expect("kept once")
    }
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(queue) = &self.0 {
            queue.close();
        }
    }
}
