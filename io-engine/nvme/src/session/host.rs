//! The initiator's side of one queue: nvme-tcp 1.0 section 3.3 for the exchange, 3.3.2 for data.

use crate::command::{CommandId, SubmissionEntry, fabrics};
use crate::completion::CompletionEntry;
use crate::framing::{Framer, Limits, Piece, Reader};
use crate::outbox::{Outbox, Payload, Tag};
use crate::pdu::{
    DataTransfer, Digests, FatalError, InitializeRequest, InitializeResponse, Pdu, PduType, ReadyToTransfer,
    TerminateRequest,
};
use crate::session::PendingData;
use crate::session::SessionError;
use crate::session::phase::{Happening, Phase};
use crate::session::target::ADMIN_CAPSULE_DATA_BYTES;
use crate::session::transfer::{Progress, Slots};
use crate::sgl::Sgl;
use crate::status::Status;

/// What an initiator asks for on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// Commands in flight at most.
    pub commands_max: u16,
    /// Digests that are asked for.
    pub digests: Digests,
    /// R2Ts outstanding for one command at most.
    pub r2t_max: u32,
    /// Bytes of data of one command at most.
    pub data_bytes_max: u32,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self { commands_max: 128, digests: Digests::default(), r2t_max: 16, data_bytes_max: 1 << 20 }
    }
}

/// Data that goes with a command.
#[derive(Clone, Copy, Debug)]
pub enum HostTransfer<'a> {
    /// None.
    None,
    /// To the controller. The session looks at the bytes only; the driver keeps them until the command completes.
    Write(&'a [u8]),
    /// To the host.
    Read {
        /// Bytes.
        len: u32,
    },
}

/// The controller asks for a part of a command's data: answer with [`HostSession::send_data`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataWanted {
    /// The command.
    pub tag: Tag,
    /// Offset in its data.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
    transfer_tag: u16,
    serial: u64,
}

/// What the driver has to act on.
#[derive(Debug, PartialEq, Eq)]
pub enum HostEvent<'a> {
    /// The transport is set up: submit Connect.
    Initialised,
    /// Data of a command may be sent.
    DataWanted(DataWanted),
    /// Bytes of a command's data, in order.
    Data {
        /// The command.
        tag: Tag,
        /// Offset in its data.
        offset: u32,
        /// The bytes, to be copied into the command's buffer.
        bytes: &'a [u8],
    },
    /// A command has ended; its tag is free.
    Completed {
        /// The command.
        tag: Tag,
        /// Its completion.
        completion: CompletionEntry,
        /// Bytes of data that came.
        received: u32,
        /// False where a data digest did not match: the data is not to be trusted.
        is_intact: bool,
    },
    /// The session has ended: send the outbox and close.
    Ended(SessionError),
}

/// Why a command was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// As many commands as the queue takes are in flight.
    #[error("the queue is full")]
    Full,
    /// The queue is not in a state to take this command.
    #[error("the queue takes no such command in this state")]
    NotReady,
    /// More data than the controller takes.
    #[error("the data is too long")]
    TooLong,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    None,
    /// All data was sent with the capsule.
    InCapsule,
    /// The controller grants by R2T; `moved` is what was sent.
    ToController,
    ToHost,
}

#[derive(Debug)]
struct Command {
    flow: Flow,
    progress: Progress,
    r2ts: u32,
    serial: u64,
    is_connect: bool,
    is_intact: bool,
}

/// The initiator's side of one queue.
#[derive(Debug)]
pub struct HostSession {
    config: HostConfig,
    phase: Phase,
    framer: Framer,
    digests: Digests,
    /// What the controller asked of the place of data, in bytes.
    alignment: usize,
    h2c_data_max: u32,
    in_capsule_bytes_max: u32,
    commands: Slots<Command>,
    /// The command whose data the framer passes on, and whether its end completes it.
    current: Option<(Tag, bool)>,
    serial: u64,
    outbox: Outbox,
}

impl HostSession {
    /// A session for a connection that was just made; ICReq is in the outbox.
    pub fn new(config: HostConfig) -> Self {
        let limits = Limits { capsule_data_max: 0, data_max: config.data_bytes_max };
        let mut session = Self {
            config,
            phase: Phase::Initialising,
            framer: Framer::new(Reader::Host, limits),
            digests: Digests::default(),
            alignment: 4,
            h2c_data_max: 4096,
            in_capsule_bytes_max: ADMIN_CAPSULE_DATA_BYTES,
            commands: Slots::new(usize::from(config.commands_max)),
            current: None,
            serial: 0,
            outbox: Outbox::default(),
        };
        let request = InitializeRequest {
            format_version: 0,
            data_alignment: 0,
            digests: config.digests,
            r2t_max: config.r2t_max,
        };
        session.push(PduType::IcReq, 0, &request.encode(), None);
        session
    }

    /// Where the session stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Commands that have not completed.
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
        let (tag, _) = self.current.filter(|_| len > 0)?;
        let offset = self.commands.get_mut(tag)?.progress.moved;
        Some(PendingData { tag, offset, len })
    }

    /// Bytes of in-capsule data that the controller takes on this queue: for I/O queues what IOCCSZ said.
    pub fn set_in_capsule_bytes(&mut self, bytes_max: u32) {
        self.in_capsule_bytes_max = bytes_max;
    }

    /// Sends a command. Connect's data always goes in the capsule, other data where it fits.
    pub fn submit(
        &mut self,
        mut entry: SubmissionEntry,
        transfer: HostTransfer<'_>,
    ) -> Result<Tag, SubmitError> {
        let is_connect = fabrics::is_connect(&entry);
        let phase_wanted = if is_connect { Phase::Connected } else { Phase::Ready };
        if self.phase != phase_wanted {
            return Err(SubmitError::NotReady);
        }
        let (flow, len) = match transfer {
            HostTransfer::None => (Flow::None, 0),
            HostTransfer::Read { len } => (Flow::ToHost, len),
            HostTransfer::Write(bytes) => {
                let len = u32::try_from(bytes.len()).map_err(|_| SubmitError::TooLong)?;
                let fits = is_connect || len <= self.in_capsule_bytes_max;
                (if fits { Flow::InCapsule } else { Flow::ToController }, len)
            }
        };
        if len > self.config.data_bytes_max {
            return Err(SubmitError::TooLong);
        }
        let mut progress = Progress::new(len);
        if flow == Flow::ToHost {
            progress.granted = len;
        }
        self.serial += 1;
        let command = Command { flow, progress, r2ts: 0, serial: self.serial, is_connect, is_intact: true };
        let tag = self.commands.insert(command).ok_or(SubmitError::Full)?;
        entry.cid = CommandId(tag.0);
        entry.sgl = match flow {
            Flow::InCapsule => Sgl::InCapsule { offset: 0, len },
            Flow::None => Sgl::NONE,
            Flow::ToController | Flow::ToHost => Sgl::Transport { len },
        };
        let encoded = entry.encode();
        let payload = match transfer {
            HostTransfer::Write(bytes) if flow == Flow::InCapsule && len > 0 => {
                Some(Payload { tag, offset: 0, bytes })
            }
            _ => None,
        };
        self.push(PduType::CapsuleCmd, 0, &encoded, payload);
        Ok(tag)
    }

    /// Sends what the controller asked for. `data` is all of the command's data. Nothing happens if the command has
    /// ended meanwhile.
    pub fn send_data(&mut self, wanted: DataWanted, data: &[u8]) {
        let Some(command) = self.commands.get_mut(wanted.tag) else { return };
        if command.serial != wanted.serial {
            return;
        }
        assert_eq!(data.len(), command.progress.len as usize, "the data is the command's");
        command.r2ts -= 1;
        let end = wanted.offset + wanted.len;
        let mut offset = wanted.offset;
        while offset < end {
            let len = (end - offset).min(self.h2c_data_max);
            let transfer = DataTransfer {
                cid: CommandId(wanted.tag.0),
                transfer_tag: wanted.transfer_tag,
                offset,
                len,
                is_last: offset + len == end,
                is_success: false,
            };
            let bytes = &data[offset as usize..(offset + len) as usize];
            let payload = Payload { tag: wanted.tag, offset: offset as usize, bytes };
            self.push(PduType::H2cData, transfer.flags(), &transfer.encode(), Some(payload));
            offset += len;
        }
    }

    /// Takes bytes off `input` until there is an event; `None` when all were taken.
    pub fn receive<'a>(&mut self, input: &mut &'a [u8]) -> Option<HostEvent<'a>> {
        loop {
            if self.phase == Phase::Terminating {
                *input = &[];
                return None;
            }
            let event = match self.framer.next(input) {
                Ok(None) => return None,
                Ok(Some(Piece::Pdu { pdu, .. })) => self.on_pdu(pdu),
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

    fn on_pdu(&mut self, pdu: Pdu) -> Result<Option<HostEvent<'static>>, FatalError> {
        self.current = None;
        match (pdu, self.phase) {
            (Pdu::TermReq(request), _) => {
                self.transit(Happening::PeerTerminated);
                Ok(Some(HostEvent::Ended(SessionError::Peer(request.error))))
            }
            (Pdu::IcResp(response), Phase::Initialising) => {
                self.on_initialized(response)?;
                Ok(Some(HostEvent::Initialised))
            }
            (Pdu::CapsuleResp(completion), Phase::Connected | Phase::Ready) => {
                self.on_completion(completion).map(Some)
            }
            (Pdu::R2t(r2t), Phase::Ready) => self.on_r2t(r2t).map(Some),
            (Pdu::C2hData(transfer), Phase::Ready) => self.on_transfer(transfer).map(|()| None),
            _ => Err(FatalError::Sequence),
        }
    }

    fn on_initialized(&mut self, response: InitializeResponse) -> Result<(), FatalError> {
        // nvme-tcp 1.0 figure 20: offsets of PFV, CPDA, DGST and MAXH2CDATA in the PDU.
        if response.format_version != 0 {
            return Err(FatalError::Unsupported { offset: 8 });
        }
        if response.data_alignment > 31 {
            return Err(FatalError::InvalidField { offset: 10 });
        }
        if response.digests.and(self.config.digests) != response.digests {
            return Err(FatalError::InvalidField { offset: 11 });
        }
        if response.h2c_data_max < 4096 {
            return Err(FatalError::InvalidField { offset: 12 });
        }
        self.alignment = 4 * (usize::from(response.data_alignment) + 1);
        self.h2c_data_max = response.h2c_data_max;
        self.digests = response.digests;
        self.framer.set_digests(response.digests);
        self.transit(Happening::Initialised);
        Ok(())
    }

    fn on_completion(&mut self, completion: CompletionEntry) -> Result<HostEvent<'static>, FatalError> {
        let tag = Tag(completion.cid.0);
        // nvme-tcp 1.0 figure 27: the completion entry's CID is at offset 20 of the PDU.
        let command = self.commands.remove(tag).ok_or(FatalError::InvalidField { offset: 20 })?;
        Ok(self.completed(tag, &command, completion))
    }

    fn completed(&mut self, tag: Tag, command: &Command, completion: CompletionEntry) -> HostEvent<'static> {
        if command.is_connect {
            self.transit(if completion.status.is_success() {
                Happening::ConnectAccepted
            } else {
                Happening::ConnectRefused
            });
        }
        let received = if command.flow == Flow::ToHost { command.progress.moved } else { 0 };
        HostEvent::Completed { tag, completion, received, is_intact: command.is_intact }
    }

    fn on_r2t(&mut self, r2t: ReadyToTransfer) -> Result<HostEvent<'static>, FatalError> {
        let tag = Tag(r2t.cid.0);
        let r2t_max = self.config.r2t_max;
        let command = self.commands.get_mut(tag).ok_or(FatalError::InvalidField { offset: 8 })?;
        let end = r2t.offset.checked_add(r2t.len).ok_or(FatalError::OutOfRange)?;
        if command.flow != Flow::ToController
            || r2t.len == 0
            || r2t.offset != command.progress.granted
            || end > command.progress.len
        {
            return Err(FatalError::OutOfRange);
        }
        if command.r2ts >= r2t_max {
            return Err(FatalError::LimitExceeded);
        }
        command.r2ts += 1;
        command.progress.granted = end;
        Ok(HostEvent::DataWanted(DataWanted {
            tag,
            offset: r2t.offset,
            len: r2t.len,
            transfer_tag: r2t.transfer_tag,
            serial: command.serial,
        }))
    }

    fn on_transfer(&mut self, transfer: DataTransfer) -> Result<(), FatalError> {
        let tag = Tag(transfer.cid.0);
        let command = self.commands.get_mut(tag).ok_or(FatalError::InvalidField { offset: 8 })?;
        if command.flow != Flow::ToHost || !command.progress.expects(transfer.offset, transfer.len) {
            return Err(FatalError::OutOfRange);
        }
        // nvme-tcp 1.0 section 3.6.2.8: SUCCESS goes with LAST_PDU only.
        if transfer.is_success && !transfer.is_last {
            return Err(FatalError::InvalidField { offset: 1 });
        }
        self.current = Some((tag, transfer.is_success));
        Ok(())
    }

    fn on_data<'a>(&mut self, bytes: &'a [u8]) -> Option<HostEvent<'a>> {
        let (tag, _) = self.current?;
        let command = self.commands.get_mut(tag)?;
        let offset = command.progress.moved;
        command.progress.moved += u32::try_from(bytes.len()).expect("within the PDU's data");
        Some(HostEvent::Data { tag, offset, bytes })
    }

    fn on_data_end(&mut self, is_intact: bool) -> Option<HostEvent<'static>> {
        let (tag, is_success) = self.current.take()?;
        self.commands.get_mut(tag)?.is_intact &= is_intact;
        if !is_success {
            return None;
        }
        let command = self.commands.remove(tag)?;
        let completion =
            CompletionEntry { result: 0, sq_head: 0, cid: CommandId(tag.0), status: Status::SUCCESS };
        Some(self.completed(tag, &command, completion))
    }

    fn push(&mut self, kind: PduType, flags: u8, specific: &[u8], payload: Option<Payload<'_>>) {
        if self.phase != Phase::Terminating {
            self.outbox.push(kind, flags, specific, payload, self.digests, self.alignment);
        }
    }

    fn fail(&mut self, error: FatalError) -> HostEvent<'static> {
        let request = TerminateRequest { error };
        self.outbox.push_terminate(PduType::H2cTermReq, &request.encode(), self.framer.offending_header());
        self.transit(Happening::ProtocolError);
        HostEvent::Ended(SessionError::Protocol(error))
    }

    fn transit(&mut self, happening: Happening) {
        if let Some(next) = self.phase.next(happening) {
            self.phase = next;
        }
    }
}
