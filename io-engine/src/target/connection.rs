//! One connection: socket <-> nvme session, and the commands that came over it.
//!
//! A task reads and decides, a second one sends, each I/O command that has all its data gets a task of its own. When a
//! connection ends, a replica's commands go on and find nobody to answer; a nexus's are dropped, since it goes on by
//! itself with what a child has begun (SAFETY D7).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

use nvme::command::fabrics::{Connect, ConnectData, ConnectRefusal, FabricsCommand};
use nvme::session::target::{TargetConfig, TargetEvent, TargetSession, Transfer};
use nvme::session::{Phase, SessionError};
use nvme::{Status, SubmissionEntry, Tag};
use runtime::{IoBuf, IoBytes, JoinHandle, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{debug, warn};

use super::Shared;
use super::admin::{self, Reply};
use super::connect::connect;
use super::controller::Controller;
use super::export::Export;
use super::io::{self, Outcome, Plan};
use super::subsystem::OlderCommands;
use crate::block::to_usize;
use crate::transport::{DIRECT_BYTES_MIN, RECEIVE_BYTES, SendQueue, receive_into};

/// A connection has this long to become a queue.
const CONNECT_DEADLINE: Duration = Duration::from_secs(15);
/// After a protocol error the peer has this long to read why and to close.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// While this much waits to be sent, nothing more is read.
const UNSENT_BYTES_MAX: usize = 8 << 20;
/// Data of Connect and of admin commands at most.
const ADMIN_DATA_BYTES_MAX: u32 = 8192;

/// What is done with a command when its data is here.
#[derive(Clone, Copy, Debug)]
enum Intent {
    Connect,
    Admin,
    Io(Plan),
}

/// The driver's side of a command in flight.
struct Command {
    entry: SubmissionEntry,
    transfer: Transfer,
    intent: Intent,
    buffer: Option<IoBuf>,
    permit: Option<OwnedSemaphorePermit>,
}

/// The queue that a connection has become.
struct Queue<E: Export> {
    controller: Rc<Controller<E>>,
    id: u16,
}

/// See the module.
pub(super) struct Connection<E: Export> {
    shared: Weak<Shared<E>>,
    stream: TcpStream,
    reached_at: SocketAddr,
    session: RefCell<TargetSession>,
    commands: RefCell<Vec<Option<Command>>>,
    /// I/O commands that are dropped with the connection: those of exports that finish by themselves what they began.
    detached: RefCell<BTreeMap<Tag, JoinHandle<()>>>,
    sending: SendQueue,
    queue: RefCell<Option<Queue<E>>>,
    is_closed: Cell<bool>,
}

impl<E: Export> Connection<E> {
    pub(super) fn new(shared: &Rc<Shared<E>>, stream: TcpStream) -> Rc<Self> {
        let options = &shared.options;
        let config = TargetConfig {
            in_capsule_bytes_max: options.in_capsule_bytes,
            data_bytes_max: options.transfer_bytes_max,
            h2c_data_bytes_max: options.transfer_bytes_max,
            r2t_bytes_max: options.transfer_bytes_max,
            digests: options.digests,
        };
        Rc::new(Self {
            shared: Rc::downgrade(shared),
            reached_at: stream.local_addr(),
            stream,
            session: RefCell::new(TargetSession::new(config)),
            commands: RefCell::default(),
            detached: RefCell::default(),
            sending: SendQueue::default(),
            queue: RefCell::default(),
            is_closed: Cell::new(false),
        })
    }

    /// The address that the host connected to.
    pub(super) fn reached_at(&self) -> SocketAddr {
        self.reached_at
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// Serves until either side closes.
    pub(super) async fn serve(self: Rc<Self>) {
        let sender = Rc::clone(&self);
        let sending = runtime::spawn(async move {
            if let Err(error) = sender.sending.run(&sender.stream).await {
                debug!(peer = %sender.stream.peer_addr(), %error, "sending failed");
                sender.abandon();
            }
        });
        self.read().await;
        self.is_closed.set(true);
        self.sending.finish();
        let queue = self.queue.take();
        if let Some(queue) = queue {
            queue.controller.detach_queue(queue.id);
        }
        self.commands.take();
        self.drop_detached();
        // A peer that does not read its terminate request, or does not close, must not hold the task.
        let last_words = runtime::timeout(LAST_WORDS, async {
            // An abort is an end too.
            let _ = sending.await;
            self.stream.shutdown();
            self.discard().await;
        });
        if last_words.await.is_err() {
            self.abandon();
        }
    }

    /// Reads on without a use for it until the peer closes: closing with unread data would reset the connection, and
    /// the peer might lose what we said last.
    async fn discard(&self) {
        let mut buf = IoBuf::zeroed(RECEIVE_BYTES);
        loop {
            let (received, back) = self.stream.recv(buf).await;
            buf = back;
            if !matches!(received, Ok(1..)) {
                return;
            }
        }
    }

    /// Breaks the connection; nothing more is sent.
    pub(super) fn abandon(&self) {
        self.is_closed.set(true);
        self.session.borrow_mut().close();
        self.sending.abandon();
        self.stream.reset();
        self.drop_detached();
    }

    /// Drops the commands of an export that needs nobody to finish what it began (SAFETY D7: a nexus's). What waits
    /// in it, and would wait for ever once it has stopped, is gone with that.
    fn drop_detached(&self) {
        for command in self.detached.take().into_values() {
            command.abort();
        }
    }

    async fn read(self: &Rc<Self>) {
        let mut buf = IoBuf::zeroed(RECEIVE_BYTES);
        let connect_by = runtime::now() + CONNECT_DEADLINE;
        while !self.is_closed() {
            self.sending.wait_below(UNSENT_BYTES_MAX).await;
            let received = if let Some(direct) = self.take_direct() {
                self.read_direct(direct).await
            } else {
                let receiving = self.stream.recv(buf);
                let (received, back) = if self.queue.borrow().is_some() {
                    receiving.await
                } else {
                    let left = connect_by.duration_since(runtime::now());
                    match runtime::timeout(left, receiving).await {
                        Ok(outcome) => outcome,
                        Err(_) => {
                            debug!(peer = %self.stream.peer_addr(), "no queue was connected in time");
                            return;
                        }
                    }
                };
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

    async fn read_direct(
        self: &Rc<Self>,
        (tag, buffer, offset, len): (Tag, IoBuf, usize, usize),
    ) -> std::io::Result<usize> {
        let (received, buffer) = receive_into(&self.stream, buffer, offset, len).await;
        let range = received?;
        if let Some(queue) = &*self.queue.borrow() {
            queue.controller.seen();
        }
        // The session accounts for the bytes (and their digest) where they are; there is nothing to copy.
        let mut input = &buffer[range.clone()];
        let mut event = self.session.borrow_mut().receive(&mut input);
        assert!(input.is_empty(), "no more than the data of one PDU was received");
        if matches!(event, Some(TargetEvent::Data { .. })) {
            event = self.session.borrow_mut().receive(&mut input);
        }
        let ended = match event {
            Some(TargetEvent::DataEnd { tag, is_intact }) => Some((tag, is_intact)),
            _ => None,
        };
        if let Some(Some(command)) = self.commands.borrow_mut().get_mut(tag.index()) {
            command.buffer = Some(buffer);
        }
        if let Some((tag, is_intact)) = ended {
            self.on_data_end(tag, is_intact);
        }
        self.collect(None, None);
        Ok(range.len())
    }

    /// Lets the session read what was received, and acts on it.
    fn absorb(self: &Rc<Self>, mut input: &[u8]) {
        if let Some(queue) = &*self.queue.borrow() {
            queue.controller.seen();
        }
        loop {
            let event = self.session.borrow_mut().receive(&mut input);
            match event {
                None => break,
                Some(TargetEvent::Command { tag, entry, transfer }) => self.on_command(tag, entry, transfer),
                Some(TargetEvent::Data { tag, offset, bytes }) => {
                    let mut commands = self.commands.borrow_mut();
                    let command = commands.get_mut(tag.index()).and_then(Option::as_mut);
                    if let Some(buffer) = command.and_then(|command| command.buffer.as_mut()) {
                        let at = to_usize(offset.into());
                        buffer[at..at + bytes.len()].copy_from_slice(bytes);
                    }
                }
                Some(TargetEvent::DataEnd { tag, is_intact }) => self.on_data_end(tag, is_intact),
                Some(TargetEvent::Ended(error)) => {
                    match error {
                        SessionError::Protocol(_) => {
                            warn!(peer = %self.stream.peer_addr(), %error, "connection ended");
                        }
                        SessionError::Peer(_) => {
                            warn!(peer = %self.stream.peer_addr(), %error, "connection ended");
                        }
                    }
                    self.is_closed.set(true);
                }
            }
        }
        self.collect(None, None);
    }

    /// A command came: decide what it is, refuse it, or get its data.
    fn on_command(self: &Rc<Self>, tag: Tag, entry: SubmissionEntry, transfer: Transfer) {
        let intent = match self.intent(&entry, transfer) {
            Ok(intent) => intent,
            Err(status) => return self.complete(tag, status, 0),
        };
        let mut command = Command { entry, transfer, intent, buffer: None, permit: None };
        let is_io = matches!(intent, Intent::Io(_));
        match transfer {
            Transfer::None | Transfer::ToHost { .. } => {
                self.insert(tag, command);
                self.start(tag);
            }
            Transfer::InCapsule { len } => {
                command.buffer = Some(IoBuf::zeroed(to_usize(len.into())));
                self.insert(tag, command);
            }
            Transfer::FromHost { len } => {
                if !is_io && len > ADMIN_DATA_BYTES_MAX {
                    return self.complete(tag, Status::INVALID_FIELD.with_dnr(), 0);
                }
                self.insert(tag, command);
                let Some(shared) = self.shared.upgrade() else { return };
                match shared.budget.try_reserve(len) {
                    Some(permit) => self.request_data(tag, len, permit),
                    None => {
                        let waiting = Rc::clone(self);
                        runtime::spawn(async move {
                            let permit = shared.budget.reserve(len).await;
                            if !waiting.is_closed() {
                                waiting.request_data(tag, len, permit);
                                waiting.collect(None, None);
                            }
                        });
                    }
                }
            }
        }
    }

    fn intent(&self, entry: &SubmissionEntry, transfer: Transfer) -> Result<Intent, Status> {
        let queue = self.queue.borrow();
        let Some(queue) = &*queue else {
            // Connect's data comes in the capsule, and is all there is.
            return match transfer {
                Transfer::InCapsule { .. } => Ok(Intent::Connect),
                _ => Err(Status::SGL_LENGTH_INVALID.with_dnr()),
            };
        };
        if queue.id == 0 || entry.is_fabrics() {
            return Ok(Intent::Admin);
        }
        let Some(subsystem) = queue.controller.subsystem() else {
            return Err(Status::INVALID_OPCODE.with_dnr());
        };
        if !queue.controller.state.get().is_enabled() {
            return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
        }
        if let Some(status) = subsystem.ana_refusal() {
            return Err(status);
        }
        let geometry = subsystem.export.geometry();
        io::plan(entry, transfer, geometry, subsystem.has_reservations).map(Intent::Io)
    }

    fn insert(&self, tag: Tag, command: Command) {
        let mut commands = self.commands.borrow_mut();
        if commands.len() <= tag.index() {
            commands.resize_with(tag.index() + 1, || None);
        }
        commands[tag.index()] = Some(command);
    }

    fn take(&self, tag: Tag) -> Option<Command> {
        self.commands.borrow_mut().get_mut(tag.index())?.take()
    }

    fn request_data(&self, tag: Tag, len: u32, permit: OwnedSemaphorePermit) {
        if let Some(Some(command)) = self.commands.borrow_mut().get_mut(tag.index()) {
            command.buffer = Some(IoBuf::zeroed(to_usize(len.into())));
            command.permit = Some(permit);
        }
        self.session.borrow_mut().request_data(tag);
    }

    fn on_data_end(self: &Rc<Self>, tag: Tag, is_intact: bool) {
        if is_intact {
            self.start(tag);
        } else {
            self.take(tag);
            self.complete(tag, Status::TRANSIENT_TRANSPORT_ERROR, 0);
        }
    }

    /// All data of a command is here.
    fn start(self: &Rc<Self>, tag: Tag) {
        let Some(command) = self.take(tag) else { return };
        let Some(shared) = self.shared.upgrade() else { return };
        match command.intent {
            Intent::Connect => self.start_connect(&shared, tag, &command),
            Intent::Admin => self.run_admin(&shared, tag, &command),
            Intent::Io(plan) => self.start_io(shared, tag, plan, command),
        }
    }

    fn start_connect(self: &Rc<Self>, shared: &Rc<Shared<E>>, tag: Tag, command: &Command) {
        let fabrics = FabricsCommand::decode(&command.entry);
        let connect_command = match fabrics {
            Ok(FabricsCommand::Connect(connect)) => connect,
            Ok(_) => return self.refuse(tag, ConnectRefusal::command_field(0).with_dnr()),
            Err(status) => return self.refuse(tag, ConnectRefusal { status, result: 0 }),
        };
        let data = match ConnectData::decode(command.buffer.as_deref().unwrap_or_default()) {
            Ok(data) => data,
            Err(refusal) => return self.refuse(tag, refusal),
        };
        let (this, shared) = (Rc::clone(self), Rc::clone(shared));
        runtime::spawn(async move {
            let host = data.host.clone();
            let subsystem = data.subsystem.clone();
            match connect(&shared, &this, connect_command, data).await {
                Ok(controller) => this.become_queue(tag, &connect_command, controller),
                Err(refusal) => {
                    debug!(
                        subsystem.nqn = %subsystem,
                        host.nqn = %host,
                        status = %refusal.status,
                        "connect refused"
                    );
                    this.refuse(tag, refusal);
                }
            }
        });
    }

    fn become_queue(self: &Rc<Self>, tag: Tag, command: &Connect, controller: Rc<Controller<E>>) {
        if self.is_closed() || controller.is_closed() {
            controller.detach_queue(command.queue_id);
            return self.abandon();
        }
        let cntlid = controller.cntlid;
        *self.queue.borrow_mut() = Some(Queue { controller, id: command.queue_id });
        self.session.borrow_mut().accept_connect(tag, command, cntlid);
        self.collect(None, None);
    }

    fn refuse(&self, tag: Tag, refusal: ConnectRefusal) {
        self.session.borrow_mut().refuse_connect(tag, refusal);
        self.collect(None, None);
    }

    fn run_admin(&self, shared: &Shared<E>, tag: Tag, command: &Command) {
        let (controller, queue_id) = match &*self.queue.borrow() {
            Some(queue) => (Rc::clone(&queue.controller), queue.id),
            None => return,
        };
        let entry = &command.entry;
        let reply = match (entry.is_fabrics(), queue_id) {
            (true, 0) => admin::fabrics(shared, &controller, entry),
            (true, _) => Reply::Failed(Status::INVALID_OPCODE.with_dnr()),
            (false, _) => {
                let data = command.buffer.as_deref().unwrap_or_default();
                admin::admin(shared, &controller, tag, entry, data)
            }
        };
        match reply {
            Reply::Done(result) => self.complete(tag, Status::SUCCESS, result),
            Reply::Failed(status) => self.complete(tag, status, 0),
            Reply::Data(mut data) => match command.transfer {
                Transfer::ToHost { len } => {
                    data.resize(to_usize(len.into()), 0);
                    self.complete_with_data(tag, &IoBytes::from_slice(&data), None);
                }
                _ => self.complete(tag, Status::SGL_LENGTH_INVALID.with_dnr(), 0),
            },
            Reply::Held => {}
            Reply::Aborted { tag: aborted, result } => {
                self.complete(aborted, Status::ABORT_REQUESTED, 0);
                self.complete(tag, Status::SUCCESS, result);
            }
        }
        // Requests and log reads may have made an event tellable.
        controller.tell_events();
    }

    fn start_io(self: &Rc<Self>, shared: Rc<Shared<E>>, tag: Tag, plan: Plan, command: Command) {
        let controller = match &*self.queue.borrow() {
            Some(queue) => Rc::clone(&queue.controller),
            None => return,
        };
        let detaches = controller.subsystem().is_some_and(|it| it.older_commands == OlderCommands::Detach);
        let this = Rc::clone(self);
        let running = runtime::spawn(async move {
            let mut permit = command.permit;
            if let (None, Transfer::ToHost { len }) = (&permit, command.transfer) {
                permit = Some(shared.budget.reserve(len).await);
            }
            // Nobody would be answered, and a later association's commands must not be overtaken.
            let Some(subsystem) = controller.subsystem().filter(|_| !this.is_closed()) else { return };
            let executing = controller.begin();
            let data = command.buffer.map(IoBuf::freeze);
            let is_write_through = controller.is_write_through.get();
            let Some(export) = controller.export() else { return };
            let cntlid_of = |host| subsystem.cntlid_of(host);
            let outcome = io::execute(export, plan, data, is_write_through, cntlid_of).await;
            drop(executing);
            this.detached.borrow_mut().remove(&tag);
            match outcome {
                Outcome::Done => this.complete(tag, Status::SUCCESS, 0),
                Outcome::Data(data) => this.complete_with_data(tag, &data, permit),
                Outcome::Failed(status) => this.complete(tag, status, 0),
                Outcome::Close => controller.close(),
            }
        });
        if detaches {
            self.detached.borrow_mut().insert(tag, running);
        }
    }

    /// Answers a command without data.
    pub(super) fn complete(&self, tag: Tag, status: Status, result: u64) {
        if self.is_closed() {
            return;
        }
        self.take(tag);
        self.session.borrow_mut().complete(tag, status, result);
        self.collect(None, None);
    }

    fn complete_with_data(&self, tag: Tag, data: &IoBytes, permit: Option<OwnedSemaphorePermit>) {
        if self.is_closed() || self.session.borrow().phase() != Phase::Ready {
            return;
        }
        self.session.borrow_mut().complete_with_data(tag, data, 0);
        self.collect(Some(data), permit);
    }

    /// Hands what the session has to say to the sender; `data` is what was just completed with.
    fn collect(&self, data: Option<&IoBytes>, permit: Option<OwnedSemaphorePermit>) {
        let mut session = self.session.borrow_mut();
        let payload = |_| data.expect("only a completion with data has a payload").clone();
        self.sending.collect(session.outbox(), payload, permit);
    }
}
