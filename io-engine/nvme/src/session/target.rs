//! The controller's side of one queue: nvme-tcp 1.0 section 3.3 for the exchange, 3.3.2 for data.

use crate::command::{CommandId, Direction, SubmissionEntry, fabrics};
use crate::completion::CompletionEntry;
use crate::framing::{Framer, Limits, Piece, Reader};
use crate::outbox::{Outbox, Payload, Tag};
use crate::pdu::{
    DataTransfer, Digests, FatalError, InitializeRequest, InitializeResponse, Pdu, PduType, ReadyToTransfer,
    TerminateRequest,
};
use crate::session::phase::{Happening, Phase};
use crate::session::transfer::{Progress, Slots};
use crate::session::{PendingData, SessionError};
use crate::sgl::Sgl;
use crate::status::Status;

/// Bytes of in-capsule data that an admin queue, and a queue before its Connect, takes: nvme-tcp 1.0 section 3.3.2.
pub const ADMIN_CAPSULE_DATA_BYTES: u32 = 8192;

/// What a controller offers on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetConfig {
    /// Bytes of in-capsule data on I/O queues (IOCCSZ says so too).
    pub in_capsule_bytes_max: u32,
    /// Bytes of data of one command at most (MDTS says so too).
    pub data_bytes_max: u32,
    /// MAXH2CDATA.
    pub h2c_data_bytes_max: u32,
    /// Bytes that one R2T asks for at most. One R2T is outstanding per command, which every host allows.
    pub r2t_bytes_max: u32,
    /// Digests that are used if the host asks for them.
    pub digests: Digests,
}

impl Default for TargetConfig {
    fn default() -> Self {
        Self {
            in_capsule_bytes_max: 8192,
            data_bytes_max: 1 << 20,
            h2c_data_bytes_max: 1 << 20,
            r2t_bytes_max: 1 << 20,
            digests: Digests { header: true, data: true },
        }
    }
}

/// Data that goes with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// None.
    None,
    /// From the host, in the capsule: it comes next, the driver has a buffer ready when this event returns.
    InCapsule {
        /// Bytes.
        len: u32,
    },
    /// From the host, after [`TargetSession::request_data`].
    FromHost {
        /// Bytes.
        len: u32,
    },
    /// To the host, with [`TargetSession::complete_with_data`].
    ToHost {
        /// Bytes.
        len: u32,
    },
}

impl Transfer {
    /// Bytes of data, whichever way.
    pub fn len(self) -> u32 {
        match self {
            Self::None => 0,
            Self::InCapsule { len } | Self::FromHost { len } | Self::ToHost { len } => len,
        }
    }

    /// True for no data.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// What the driver has to act on.
#[derive(Debug, PartialEq, Eq)]
pub enum TargetEvent<'a> {
    /// A command. Until the queue is connected the only one is Connect.
    Command {
        /// Names it until it is completed.
        tag: Tag,
        /// The command.
        entry: SubmissionEntry,
        /// Its data.
        transfer: Transfer,
    },
    /// Bytes of a command's data, in order.
    Data {
        /// The command.
        tag: Tag,
        /// Offset in its data.
        offset: u32,
        /// The bytes, to be copied into the command's buffer.
        bytes: &'a [u8],
    },
    /// All of a command's data has come.
    DataEnd {
        /// The command.
        tag: Tag,
        /// False where a data digest did not match: complete it with Transient Transport Error
        /// (nvme-tcp 1.0 section 3.3.1.1).
        is_intact: bool,
    },
    /// The session has ended: send the outbox and close.
    Ended(SessionError),
}

#[derive(Debug)]
struct Command {
    cid: CommandId,
    transfer: Transfer,
    progress: Progress,
    is_intact: bool,
}

/// The controller's side of one queue.
#[derive(Debug)]
pub struct TargetSession {
    config: TargetConfig,
    phase: Phase,
    framer: Framer,
    digests: Digests,
    /// What the host asked of the place of data in C2HData, in bytes.
    alignment: usize,
    commands: Slots<Command>,
    /// The command whose data the framer passes on; `None` while data of a finished command is dropped.
    current: Option<Tag>,
    queue_entries: u32,
    sq_head: u32,
    flow_control_disabled: bool,
    outbox: Outbox,
}

impl TargetSession {
    /// A session for a connection that was just accepted.
    pub fn new(config: TargetConfig) -> Self {
        let limits = Limits {
            capsule_data_max: ADMIN_CAPSULE_DATA_BYTES.max(config.in_capsule_bytes_max),
            data_max: config.h2c_data_bytes_max,
        };
        Self {
            config,
            phase: Phase::Initialising,
            framer: Framer::new(Reader::Controller, limits),
            digests: Digests::default(),
            alignment: 4,
            commands: Slots::new(1),
            current: None,
            queue_entries: 0,
            sq_head: 0,
            flow_control_disabled: false,
            outbox: Outbox::default(),
        }
    }

    /// Where the session stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Commands that were not completed yet.
    pub fn commands_in_flight(&self) -> usize {
        self.commands.len()
    }

    /// What there is to send; the driver clears it when it has taken all.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Data that comes next, if it does.
    pub fn pending_data(&mut self) -> Option<PendingData> {
        let len = self.framer.data_left();
        let tag = self.current.filter(|_| len > 0)?;
        let offset = self.commands.get_mut(tag)?.progress.moved;
        Some(PendingData { tag, offset, len })
    }

    /// Takes bytes off `input` until there is an event; `None` when all were taken.
    pub fn receive<'a>(&mut self, input: &mut &'a [u8]) -> Option<TargetEvent<'a>> {
        loop {
            if self.phase == Phase::Terminating {
                *input = &[];
                return None;
            }
            let event = match self.framer.next(input) {
                Ok(None) => return None,
                Ok(Some(Piece::Pdu { pdu, data_len })) => self.on_pdu(pdu, data_len),
                Ok(Some(Piece::Data(bytes))) => Ok(self.on_data(bytes)),
                Ok(Some(Piece::End { is_intact })) => Ok(self.on_data_end(is_intact)),
                Err(error) => Err(error),
            };
            match event {
                Ok(Some(event)) => return Some(event),
                Ok(None) => {}
                Err(error) => return Some(self.fail(error)),
            }
        }
    }

    /// Asks the host for the data of a [`Transfer::FromHost`]; the driver has a buffer for it.
    pub fn request_data(&mut self, tag: Tag) {
        let Some(command) = self.commands.get_mut(tag) else { return };
        assert!(
            matches!(command.transfer, Transfer::FromHost { .. }),
            "only data from the host is asked for"
        );
        if let Some((offset, len)) = command.progress.grant(self.config.r2t_bytes_max) {
            let r2t = ReadyToTransfer { cid: command.cid, transfer_tag: tag.0, offset, len };
            self.push(PduType::R2t, 0, &r2t.encode(), None);
        }
    }

    /// Accepts the Connect `tag`: the queue has `queue_entries` entries and belongs to controller `cntlid`.
    pub fn accept_connect(&mut self, tag: Tag, connect: &fabrics::Connect, cntlid: u16) {
        self.queue_entries = connect.queue_entries;
        self.flow_control_disabled = connect.flow_control_disabled;
        // The Connect itself took the first entry.
        self.sq_head = 1 % self.queue_entries.max(1);
        self.transit(Happening::ConnectAccepted);
        self.respond(tag, Status::SUCCESS, u64::from(cntlid));
        self.commands.set_bound(self.queue_entries as usize);
        if connect.queue_id != 0 {
            self.framer.set_limits(Limits {
                capsule_data_max: self.config.in_capsule_bytes_max,
                data_max: self.config.h2c_data_bytes_max,
            });
        }
    }

    /// Refuses the Connect `tag`; the host may try again.
    pub fn refuse_connect(&mut self, tag: Tag, refusal: fabrics::ConnectRefusal) {
        self.transit(Happening::ConnectRefused);
        self.respond(tag, refusal.status, refusal.result);
    }

    /// Completes a command without data.
    pub fn complete(&mut self, tag: Tag, status: Status, result: u64) {
        self.respond(tag, status, result);
    }

    /// Completes a [`Transfer::ToHost`] with success; `data` has the transfer's length. Its bytes are sent by the
    /// driver when the outbox names them.
    pub fn complete_with_data(&mut self, tag: Tag, data: &[u8], result: u64) {
        let Some(command) = self.commands.get_mut(tag) else { return };
        let cid = command.cid;
        let len = command.transfer.len();
        assert!(matches!(command.transfer, Transfer::ToHost { .. }), "data goes to a host that asked for it");
        assert_eq!(data.len(), len as usize, "data has the length of the transfer");
        if len == 0 {
            self.respond(tag, Status::SUCCESS, result);
            return;
        }
        // nvme-tcp 1.0 section 3.3.2.2: the response capsule is left out only if it would say nothing, and only if
        // the host does not need it for flow control.
        let is_success = self.flow_control_disabled && result == 0;
        let transfer = DataTransfer { cid, transfer_tag: 0, offset: 0, len, is_last: true, is_success };
        let payload = Payload { tag, offset: 0, bytes: data };
        self.push(PduType::C2hData, transfer.flags(), &transfer.encode(), Some(payload));
        if is_success {
            self.commands.remove(tag);
        } else {
            self.respond(tag, Status::SUCCESS, result);
        }
    }

    /// Ends the session from our side without a reason the specification knows; the driver closes the connection.
    pub fn close(&mut self) {
        self.phase = Phase::Terminating;
    }

    fn on_pdu(&mut self, pdu: Pdu, data_len: u32) -> Result<Option<TargetEvent<'static>>, FatalError> {
        self.current = None;
        match (pdu, self.phase) {
            (Pdu::TermReq(request), _) => {
                self.transit(Happening::PeerTerminated);
                Ok(Some(TargetEvent::Ended(SessionError::Peer(request.error))))
            }
            (Pdu::IcReq(request), Phase::Initialising) => self.on_initialize(request).map(|()| None),
            (Pdu::CapsuleCmd(entry), Phase::Connected | Phase::Ready) => self.on_command(entry, data_len),
            (Pdu::H2cData(transfer), Phase::Ready) => self.on_transfer(transfer).map(|()| None),
            _ => Err(FatalError::Sequence),
        }
    }

    fn on_initialize(&mut self, request: InitializeRequest) -> Result<(), FatalError> {
        // nvme-tcp 1.0 figures 18 and 22: offsets of PFV and HPDA in the PDU.
        if request.format_version != 0 {
            return Err(FatalError::Unsupported { offset: 8 });
        }
        if request.data_alignment > 31 {
            return Err(FatalError::InvalidField { offset: 10 });
        }
        self.alignment = 4 * (usize::from(request.data_alignment) + 1);
        let response = InitializeResponse {
            format_version: 0,
            data_alignment: 0,
            digests: self.config.digests.and(request.digests),
            h2c_data_max: self.config.h2c_data_bytes_max,
        };
        self.push(PduType::IcResp, 0, &response.encode(), None);
        self.digests = response.digests;
        self.framer.set_digests(response.digests);
        self.transit(Happening::Initialised);
        Ok(())
    }

    fn on_command(
        &mut self,
        entry: SubmissionEntry,
        data_len: u32,
    ) -> Result<Option<TargetEvent<'static>>, FatalError> {
        if self.phase == Phase::Ready {
            self.sq_head = (self.sq_head + 1) % self.queue_entries;
        }
        if fabrics::is_connect(&entry) == (self.phase == Phase::Ready) {
            self.push_response(entry.cid, Status::COMMAND_SEQUENCE_ERROR.with_dnr(), 0);
            return Ok(None);
        }
        if self.commands.find(|command| command.cid == entry.cid).is_some() {
            self.push_response(entry.cid, Status::COMMAND_ID_CONFLICT.with_dnr(), 0);
            return Ok(None);
        }
        let transfer = match self.transfer_of(&entry, data_len) {
            Ok(transfer) => transfer,
            Err(status) => {
                self.push_response(entry.cid, status.with_dnr(), 0);
                return Ok(None);
            }
        };
        let mut progress = Progress::new(transfer.len());
        if let Transfer::InCapsule { len } = transfer {
            progress.granted = len;
        }
        let command = Command { cid: entry.cid, transfer, progress, is_intact: true };
        // More commands than the queue has entries: the host has lost count.
        let tag = self.commands.insert(command).ok_or(FatalError::Sequence)?;
        if matches!(transfer, Transfer::InCapsule { .. }) {
            self.current = Some(tag);
        }
        Ok(Some(TargetEvent::Command { tag, entry, transfer }))
    }

    /// nvme-tcp 1.0 section 3.3.2: which descriptors go with which direction.
    fn transfer_of(&self, entry: &SubmissionEntry, data_len: u32) -> Result<Transfer, Status> {
        match (entry.direction(), entry.sgl) {
            (Direction::None, _) => Ok(Transfer::None),
            (Direction::Both, _) => Err(Status::INVALID_OPCODE),
            (_, Sgl::Other { .. }) => Err(Status::SGL_TYPE_INVALID),
            (Direction::ToController, Sgl::InCapsule { offset, len }) => {
                if offset != 0 {
                    Err(Status::SGL_OFFSET_INVALID)
                } else if len != data_len {
                    Err(Status::SGL_LENGTH_INVALID)
                } else if len == 0 {
                    Ok(Transfer::None)
                } else {
                    Ok(Transfer::InCapsule { len })
                }
            }
            (Direction::ToHost, Sgl::InCapsule { .. }) => Err(Status::SGL_TYPE_INVALID),
            (_, Sgl::Transport { len: 0 }) => Ok(Transfer::None),
            (_, Sgl::Transport { len }) if len > self.config.data_bytes_max => Err(Status::INVALID_FIELD),
            (Direction::ToController, Sgl::Transport { len }) => Ok(Transfer::FromHost { len }),
            (Direction::ToHost, Sgl::Transport { len }) => Ok(Transfer::ToHost { len }),
        }
    }

    fn on_transfer(&mut self, transfer: DataTransfer) -> Result<(), FatalError> {
        let tag = Tag(transfer.transfer_tag);
        let command = self.commands.get_mut(tag).ok_or(FatalError::InvalidField { offset: 10 })?;
        if command.cid != transfer.cid {
            return Err(FatalError::InvalidField { offset: 8 });
        }
        let is_from_host = matches!(command.transfer, Transfer::FromHost { .. });
        if !is_from_host || !command.progress.expects(transfer.offset, transfer.len) {
            return Err(FatalError::OutOfRange);
        }
        let ends_at = transfer.offset + transfer.len;
        if transfer.is_last && ends_at != command.progress.granted {
            return Err(FatalError::OutOfRange);
        }
        self.current = Some(tag);
        Ok(())
    }

    fn on_data<'a>(&mut self, bytes: &'a [u8]) -> Option<TargetEvent<'a>> {
        let tag = self.current?;
        let command = self.commands.get_mut(tag)?;
        let offset = command.progress.moved;
        command.progress.moved += u32::try_from(bytes.len()).expect("within the PDU's data");
        Some(TargetEvent::Data { tag, offset, bytes })
    }

    fn on_data_end(&mut self, is_intact: bool) -> Option<TargetEvent<'static>> {
        let tag = self.current.take()?;
        let command = self.commands.get_mut(tag)?;
        command.is_intact &= is_intact;
        if command.progress.is_complete() {
            return Some(TargetEvent::DataEnd { tag, is_intact: command.is_intact });
        }
        if command.progress.is_grant_used() {
            self.request_data(tag);
        }
        None
    }

    fn respond(&mut self, tag: Tag, status: Status, result: u64) {
        let Some(command) = self.commands.remove(tag) else { return };
        if self.current == Some(tag) {
            self.current = None;
        }
        self.push_response(command.cid, status, result);
    }

    fn push_response(&mut self, cid: CommandId, status: Status, result: u64) {
        // Base 6.3 (Connect response): FFFFh says that flow control is disabled.
        let sq_head = if self.flow_control_disabled {
            u16::MAX
        } else {
            u16::try_from(self.sq_head & 0xFFFF).expect("masked to 16 bits")
        };
        let entry = CompletionEntry { result, sq_head, cid, status };
        let mut specific = [0; 16];
        specific.copy_from_slice(&entry.encode());
        self.push(PduType::CapsuleResp, 0, &specific, None);
    }

    fn push(&mut self, kind: PduType, flags: u8, specific: &[u8], payload: Option<Payload<'_>>) {
        if self.phase != Phase::Terminating {
            self.outbox.push(kind, flags, specific, payload, self.digests, self.alignment);
        }
    }

    fn fail(&mut self, error: FatalError) -> TargetEvent<'static> {
        let request = TerminateRequest { error };
        self.outbox.push_terminate(PduType::C2hTermReq, &request.encode(), self.framer.offending_header());
        self.transit(Happening::ProtocolError);
        TargetEvent::Ended(SessionError::Protocol(error))
    }

    fn transit(&mut self, happening: Happening) {
        if let Some(next) = self.phase.next(happening) {
            self.phase = next;
        }
    }
}
