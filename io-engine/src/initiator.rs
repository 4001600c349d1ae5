//! A namespace of another engine as a device: what a nexus uses a remote replica through.
//!
//! ```text
//!   RemoteDevice ──requests──> association (admin queue, I/O queue) ──TCP──> target
//!        │ supervisor: association lost -> reconnect::step -> connect again, or lost for good
//! ```
//!
//! | state | new requests | requests in flight |
//! | --- | --- | --- |
//! | Live | are sent | |
//! | Reconnecting | wait | have failed with `PathLost` or `TimedOut`: whether they were executed is unknown |
//! | Lost | fail with `PathLost` | |
//!
//! A write whose outcome is unknown is never sent again from here: the nexus knows what else was in flight, holds the
//! range, and decides (SAFETY D3, D8). It may send it again through the same device: a target drains what the older
//! association had begun before it answers the new one (D7).
//!
//! One host identity has one association with a subsystem (D7), so each nexus keeps one `RemoteDevice` per replica and
//! shares it: clones are handles. Of two nexuses of one engine the newer has the association: see `initiator/line.rs`.
//!
//! A larger namespace is found when somebody asks ([`RemoteDevice::refresh`]), or when the path comes back.
//!
//! Deliberately absent: several I/O queues, asynchronous events (a resize is told by the control plane).

mod absent;
mod connect;
mod keep_alive;
mod line;
pub(crate) mod queue;
mod reconnect;
mod reserve;
#[cfg(test)]
mod tests;
mod uri;

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::time::Duration;

use futures::future::{Either, select};
use nvme::command::nvm::{BlockRange, NvmCommand, encode_dsm_range};
use nvme::command::vendor::{
    ALLOCATED_HEADER_BYTES, ALLOCATED_RUN_BYTES, AllocatedData, JoinData, REPORT_HEADER_BYTES, ReportData,
    VendorCommand,
};
use nvme::pdu::Digests;
use nvme::{Nsid, SubmissionEntry};
use runtime::{IoBuf, IoBytes, JoinHandle};
use tokio::sync::Notify;
use tracing::{info, warn};
use uuid::Uuid;

use crate::block::{
    BlockDevice, BlockError, Blocks, ErrorKind, Geometry, Lba, LbaRange, WriteOptions, to_usize,
};
use crate::member::{Absence, Epoch, Member, MemberReport, Missed};
use crate::reservation::fence::calls;
use crate::target::status;
use connect::{Association, ConnectError, establish};
use line::Place;
use queue::{Data, Finished};
use reconnect::{Action, Attempt, Event, State};
pub use reconnect::{LostReason, ReconnectPolicy};
pub use uri::{NvmfUri, UriError, host_id};

/// The namespace: every subsystem here has one.
const NSID: Nsid = Nsid(1);
/// Blocks of one Write Zeroes command at most: what NLB can say.
const ZEROES_BLOCKS_MAX: u64 = 1 << 16;
/// Bytes that one deallocation covers at most, so that none takes as long as a time-out.
const UNMAP_BYTES_MAX: u64 = 1 << 30;
/// Bytes of one answer to a question about open or allocated regions.
const ANSWER_BYTES: usize = 64 << 10;

/// How an initiator behaves. All times are within what keeps a host's own I/O time-out away (SAFETY F5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitiatorOptions {
    /// Commands in flight at most; further ones wait.
    pub queue_depth: u16,
    /// A command that is not answered for this long takes the connection with it.
    pub io_timeout: Duration,
    /// The same for admin commands.
    pub admin_timeout: Duration,
    /// For making an association.
    pub connect_timeout: Duration,
    /// KATO: the target forgets us after that long; a silent target is noticed within it.
    pub keep_alive: Duration,
    /// After the path was lost.
    pub reconnect: ReconnectPolicy,
    /// Digests to ask for.
    pub digests: Digests,
}

impl Default for InitiatorOptions {
    fn default() -> Self {
        Self {
            queue_depth: 128,
            io_timeout: Duration::from_secs(8),
            admin_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            keep_alive: Duration::from_secs(10),
            reconnect: ReconnectPolicy::default(),
            digests: Digests::default(),
        }
    }
}

/// Where a remote device stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteState {
    /// Connected.
    Live,
    /// The path was lost; requests wait.
    Reconnecting,
    /// It will not come back; connect anew and look at its report.
    Lost(LostReason),
}

enum Link {
    Live(Rc<Association>),
    Reconnecting,
    Lost(LostReason),
}

struct Remote {
    uri: NvmfUri,
    options: InitiatorOptions,
    geometry: Cell<Geometry>,
    link: RefCell<Link>,
    changed: Notify,
    /// Under which this device has registered.
    key: Cell<Option<u64>>,
    place: Rc<Place>,
    supervisor: RefCell<Option<JoinHandle<()>>>,
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some(supervisor) = self.supervisor.get_mut() {
            supervisor.abort();
        }
        if let Link::Live(association) = self.link.get_mut() {
            association.close();
        }
    }
}

impl Remote {
    fn set(&self, link: Link) {
        if matches!(link, Link::Lost(_)) {
            self.place.leave();
        }
        let before = std::mem::replace(&mut *self.link.borrow_mut(), link);
        if let Link::Live(association) = before {
            association.close();
        }
        self.changed.notify_waiters();
    }

    /// Closes the connection for good; requests in flight fail.
    fn give_up(&self, reason: LostReason) {
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.abort();
        }
        self.set(Link::Lost(reason));
    }

    /// This device has registered: older ones of the same host are fenced, and need not ask to know it.
    fn registered(&self, key: u64) {
        self.key.set(Some(key));
        for older in self.place.replaced_by(key) {
            warn!(remote.uri = %self.uri, "another nexus of this engine has replaced the registration");
            older.give_up(LostReason::Fenced);
        }
    }

    /// The namespace has this size now.
    fn grow(&self, found: Geometry) -> Result<(), BlockError> {
        let known = self.geometry.get();
        if !is_as_large(found, known) {
            let text = format!("{} was {known:?} and is {found:?}", self.uri);
            return Err(BlockError::new(ErrorKind::Internal, text));
        }
        if found != known {
            info!(remote.uri = %self.uri, len_bytes = found.len_bytes(), "remote device has grown");
            self.geometry.set(found);
        }
        Ok(())
    }

    fn lost(&self, reason: LostReason) -> BlockError {
        let kind = match reason {
            LostReason::Fenced => ErrorKind::ReservationConflict,
            _ => ErrorKind::PathLost,
        };
        BlockError::new(kind, format!("{} is lost: {reason:?}", self.uri))
    }

    /// The association, when there is one.
    async fn association(&self) -> Result<Rc<Association>, BlockError> {
        loop {
            let changed = self.changed.notified();
            match &*self.link.borrow() {
                Link::Live(association) if !association.io.is_closed() => return Ok(Rc::clone(association)),
                // The supervisor is about to notice.
                Link::Live(_) | Link::Reconnecting => {}
                Link::Lost(reason) => return Err(self.lost(*reason)),
            }
            changed.await;
        }
    }
}

/// A remote namespace as a device. Clones are handles; the connection is closed with the last.
#[derive(Clone)]
pub struct RemoteDevice {
    remote: Rc<Remote>,
}

impl RemoteDevice {
    /// Connects. Tries once; the caller knows what to do about a failure.
    pub async fn connect(uri: NvmfUri, options: InitiatorOptions) -> Result<Self, BlockError> {
        let place = Place::take(&uri);
        let association = establish(&uri, &options).await.map_err(ConnectError::into_inner)?;
        let association = Rc::new(association);
        info!(remote.uri = %uri, "remote device connected");
        let remote = Rc::new(Remote {
            uri,
            options,
            geometry: Cell::new(association.geometry),
            link: RefCell::new(Link::Live(Rc::clone(&association))),
            changed: Notify::new(),
            key: Cell::new(None),
            place: Rc::clone(&place),
            supervisor: RefCell::default(),
        });
        place.belongs_to(&remote);
        let supervisor = runtime::spawn(supervise(Rc::downgrade(&remote), association));
        remote.supervisor.replace(Some(supervisor));
        Ok(Self { remote })
    }

    /// Where it is.
    pub fn uri(&self) -> &NvmfUri {
        &self.remote.uri
    }

    /// Where it stands.
    pub fn state(&self) -> RemoteState {
        match &*self.remote.link.borrow() {
            Link::Live(association) if !association.io.is_closed() => RemoteState::Live,
            Link::Live(_) | Link::Reconnecting => RemoteState::Reconnecting,
            Link::Lost(reason) => RemoteState::Lost(*reason),
        }
    }

    /// Returns when the state is no longer `state`.
    pub async fn state_changed_from(&self, state: RemoteState) -> RemoteState {
        loop {
            let changed = self.remote.changed.notified();
            let now = self.state();
            if now != state {
                return now;
            }
            changed.await;
        }
    }

    /// Asks how large the namespace is now. One that has become smaller, or has other blocks, is an error.
    pub async fn refresh(&self) -> Result<(), BlockError> {
        let association = self.remote.association().await?;
        let found = connect::identify(&association.admin, &self.remote.uri, &self.remote.options).await?;
        self.remote.grow(found)
    }

    /// Closes the connection for good; requests in flight fail.
    pub fn close(&self) {
        self.remote.give_up(LostReason::Closed);
    }

    async fn run(&self, entry: SubmissionEntry, data: Data, what: &str) -> Result<Finished, BlockError> {
        let association = self.remote.association().await?;
        let finished = association.io.submit(entry, data, self.remote.options.io_timeout).await?;
        let status = finished.completion.status;
        if status.is_success() {
            return Ok(finished);
        }
        let text = format!("{}: {what}: {status}", self.remote.uri);
        Err(BlockError::new(status::kind(status), text))
    }

    async fn transfer_bytes_max(&self) -> Result<usize, BlockError> {
        let association = self.remote.association().await?;
        let block_bytes = association.geometry.block_bytes;
        // Whole blocks, at least one.
        let most = association.transfer_bytes_max() / block_bytes * block_bytes;
        Ok(to_usize(most.max(block_bytes).into()))
    }

    /// The blocks that `len_bytes` at `lba` cover, if they are whole and within the device.
    fn range(&self, lba: Lba, len_bytes: usize) -> Result<LbaRange, BlockError> {
        let geometry = self.geometry();
        let block_bytes = to_usize(geometry.block_bytes.into());
        let range = (len_bytes.is_multiple_of(block_bytes))
            .then(|| LbaRange::new(lba, Blocks((len_bytes / block_bytes) as u64)))
            .flatten()
            .ok_or_else(|| {
                let text = format!("{len_bytes} bytes at block {} are no whole blocks", lba.0);
                BlockError::new(ErrorKind::OutOfRange, text)
            })?;
        geometry.check(range)?;
        Ok(range)
    }

    /// The replica's report with its open regions from `first_region` on, as many as fit.
    async fn report_from(&self, first_region: u64, room: usize) -> Result<ReportData, BlockError> {
        let entry = VendorCommand::Report { first_region }.encode(NSID);
        let finished = self.run(entry, Data::Read(IoBuf::zeroed(room)), "report").await?;
        finished.buffer.and_then(|buffer| ReportData::decode(&buffer)).ok_or_else(|| {
            BlockError::new(ErrorKind::Internal, format!("{}: report cannot be read", self.remote.uri))
        })
    }

    fn block_range(lba: Lba, len_bytes: usize, block_bytes: u32) -> BlockRange {
        let blocks = len_bytes / to_usize(block_bytes.into());
        BlockRange { lba: lba.0, blocks: u32::try_from(blocks).expect("limited by the transfer size") }
    }
}

/// Parts of at most `blocks_max` blocks.
fn parts(range: LbaRange, blocks_max: u64) -> impl Iterator<Item = BlockRange> {
    let end = range.end().0;
    let mut next = range.start().0;
    std::iter::from_fn(move || {
        let blocks = (end - next).min(blocks_max);
        let part = BlockRange { lba: next, blocks: u32::try_from(blocks).expect("limited by the caller") };
        next += blocks;
        (blocks > 0).then_some(part)
    })
}

impl BlockDevice for RemoteDevice {
    fn geometry(&self) -> Geometry {
        self.remote.geometry.get()
    }

    async fn read(&self, lba: Lba, buf: IoBuf) -> Result<IoBuf, BlockError> {
        self.range(lba, buf.len())?;
        let block_bytes = self.geometry().block_bytes;
        let most = self.transfer_bytes_max().await?;
        let (mut rest, mut at, mut filled) = (buf, lba, Vec::new());
        while !rest.is_empty() {
            let tail = rest.split_off(most.min(rest.len()));
            let range = Self::block_range(at, rest.len(), block_bytes);
            let entry = NvmCommand::Read { range, fua: false }.encode(NSID);
            let finished = self.run(entry, Data::Read(rest), "read").await?;
            filled.push(finished.buffer.expect("a read keeps its buffer"));
            at = Lba(at.0 + u64::from(range.blocks));
            rest = tail;
        }
        filled.push(rest);
        Ok(IoBuf::join(filled))
    }

    async fn write(&self, lba: Lba, data: IoBytes, options: WriteOptions) -> Result<(), BlockError> {
        self.range(lba, data.len())?;
        let block_bytes = self.geometry().block_bytes;
        let most = self.transfer_bytes_max().await?;
        let (mut done, mut at) = (0, lba);
        while done < data.len() {
            let len = most.min(data.len() - done);
            let range = Self::block_range(at, len, block_bytes);
            let entry = NvmCommand::Write { range, fua: options.fua }.encode(NSID);
            self.run(entry, Data::Write(data.slice(done..done + len)), "write").await?;
            at = Lba(at.0 + u64::from(range.blocks));
            done += len;
        }
        Ok(())
    }

    async fn write_zeroes(&self, range: LbaRange, options: WriteOptions) -> Result<(), BlockError> {
        self.geometry().check(range)?;
        let is_known = self.remote.association().await?.controller.has_write_zeroes;
        if is_known {
            for range in parts(range, ZEROES_BLOCKS_MAX) {
                let command = NvmCommand::WriteZeroes { range, fua: options.fua, deallocate: true };
                self.run(command.encode(NSID), Data::None, "write zeroes").await?;
            }
            return Ok(());
        }
        let most = self.transfer_bytes_max().await?;
        let block_bytes = self.geometry().block_bytes;
        let zeroes = IoBuf::zeroed(most).freeze();
        for part in parts(range, most as u64 / u64::from(block_bytes)) {
            let len = to_usize(u64::from(part.blocks) * u64::from(block_bytes));
            self.write(Lba(part.lba), zeroes.slice(0..len), options).await?;
        }
        Ok(())
    }

    async fn unmap(&self, range: LbaRange) -> Result<(), BlockError> {
        self.geometry().check(range)?;
        if !self.remote.association().await?.controller.has_dataset_management {
            let text = format!("{} cannot deallocate", self.remote.uri);
            return Err(BlockError::new(ErrorKind::Unsupported, text));
        }
        for range in parts(range, UNMAP_BYTES_MAX / u64::from(self.geometry().block_bytes)) {
            let command = NvmCommand::DatasetManagement { ranges: 1, deallocate: true };
            let data = Data::Write(IoBytes::from_slice(&encode_dsm_range(range)));
            self.run(command.encode(NSID), data, "deallocate").await?;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.run(NvmCommand::Flush.encode(NSID), Data::None, "flush").await.map(drop)
    }
}

impl Member for RemoteDevice {
    async fn report(&self) -> Result<MemberReport, BlockError> {
        let mut report = self.report_from(0, REPORT_HEADER_BYTES + 8 * 1024).await?;
        let mut whole = member_report(&report);
        while let Some(last) = report.open_regions.last().filter(|_| report.has_more) {
            report = self.report_from(last + 1, ANSWER_BYTES).await?;
            whole.open_regions.extend(&report.open_regions);
        }
        Ok(whole)
    }

    async fn join(&self, volume: Uuid, epoch: Epoch, caught_up: bool) -> Result<(), BlockError> {
        let join = JoinData {
            volume: volume.into_bytes(),
            epoch_counter: epoch.counter,
            epoch_raised_by: epoch.raised_by.into_bytes(),
            is_caught_up: caught_up,
        };
        let data = Data::Write(IoBytes::from_slice(&join.encode()));
        self.run(VendorCommand::Join.encode(NSID), data, "join").await.map(drop)
    }

    async fn close_regions(&self, regions: &[u64]) -> Result<(), BlockError> {
        for part in regions.chunks(ANSWER_BYTES / 8) {
            let bytes: Vec<u8> = part.iter().flat_map(|region| region.to_le_bytes()).collect();
            let count = u32::try_from(part.len()).expect("a chunk is small");
            let entry = VendorCommand::CloseRegions { count }.encode(NSID);
            self.run(entry, Data::Write(IoBytes::from_slice(&bytes)), "close regions").await?;
        }
        Ok(())
    }

    async fn allocated(
        &self,
        within: Range<u64>,
        runs_max: usize,
    ) -> Result<(Vec<(u64, u64)>, u64), BlockError> {
        let runs = runs_max.clamp(1, AllocatedData::runs_max(ANSWER_BYTES));
        let room = ALLOCATED_HEADER_BYTES + runs * ALLOCATED_RUN_BYTES;
        let len = within.end.saturating_sub(within.start);
        let entry = VendorCommand::Allocated { offset: within.start, len }.encode(NSID);
        let finished = self.run(entry, Data::Read(IoBuf::zeroed(room)), "list what is allocated").await?;
        let answer = finished.buffer.and_then(|buffer| AllocatedData::decode(&buffer)).ok_or_else(|| {
            BlockError::new(ErrorKind::Internal, format!("{}: answer cannot be read", self.remote.uri))
        })?;
        Ok((answer.runs, answer.complete_to))
    }

    async fn note_absent(
        &self,
        member: Uuid,
        left_at: Epoch,
        regions: &[u64],
        more_follow: bool,
    ) -> Result<(), BlockError> {
        self.note_absent_there(member, left_at, regions, more_follow).await
    }

    async fn absent(&self) -> Result<Vec<Absence>, BlockError> {
        self.absent_there().await
    }

    async fn missed(
        &self,
        member: Uuid,
        first_region: u64,
        regions_max: usize,
    ) -> Result<Option<Missed>, BlockError> {
        self.missed_there(member, first_region, regions_max).await
    }

    async fn forget_absent(&self, member: Uuid) -> Result<(), BlockError> {
        self.forget_absent_there(member).await
    }
}

fn member_report(answer: &ReportData) -> MemberReport {
    MemberReport {
        replica: Uuid::from_bytes(answer.replica),
        volume: Uuid::from_bytes(answer.volume),
        epoch: Epoch { counter: answer.epoch_counter, raised_by: Uuid::from_bytes(answer.epoch_raised_by) },
        boot_id: Uuid::from_bytes(answer.boot_id),
        engine_incarnation: Uuid::from_bytes(answer.engine_incarnation),
        lost_power: answer.has_lost_power,
        ran_without_break: answer.ran_without_break,
        region_bytes: answer.region_bytes,
        open_regions: answer.open_regions.clone(),
    }
}

/// The same blocks, and as many at least: a replica may grow.
fn is_as_large(found: Geometry, known: Geometry) -> bool {
    found.block_bytes == known.block_bytes && found.blocks >= known.blocks
}

/// Watches an association, and makes the next one when it is lost. Holds the device only while it acts.
async fn supervise(remote: Weak<Remote>, first: Rc<Association>) {
    let mut current = first;
    let identity = current.identity;
    loop {
        let Some(options) = remote.upgrade().map(|remote| remote.options) else { return };
        let keeping = runtime::spawn(keep_alive::keep_alive(
            Rc::downgrade(&current.admin),
            Rc::downgrade(&current),
            options.keep_alive,
        ));
        watch(&current).await;
        keeping.abort();
        current.close();
        let Some(uri) = remote.upgrade().map(|remote| {
            warn!(remote.uri = %remote.uri, "path lost");
            remote.set(Link::Reconnecting);
            remote.uri.clone()
        }) else {
            return;
        };

        let jitter = runtime::random_u64();
        let (mut state, mut action) =
            reconnect::step(State::Live, Event::PathLost, &options.reconnect, runtime::now(), jitter);
        let mut made = None;
        let found = loop {
            let event = match action {
                Action::WaitUntil(until) => {
                    runtime::sleep_until(until).await;
                    Event::Timer
                }
                Action::Connect => {
                    let known = remote
                        .upgrade()
                        .map(|remote| (remote.key.get(), Rc::clone(&remote.place), remote.geometry.get()));
                    let Some((key, place, geometry)) = known else { return };
                    // A newer device would lose the association to us; it may also leave again.
                    let attempt = attempt(&uri, &options, geometry, identity, key);
                    match select(pin!(place.superseded()), pin!(attempt)).await {
                        Either::Left(_) => Event::Attempted(Attempt::Failed),
                        Either::Right(((attempt, association), _)) => {
                            made = association;
                            Event::Attempted(attempt)
                        }
                    }
                }
                Action::Serve => break Ok(()),
                Action::GiveUp(reason) => break Err(reason),
                Action::None => unreachable!("every event here fits the state"),
            };
            let jitter = runtime::random_u64();
            (state, action) = reconnect::step(state, event, &options.reconnect, runtime::now(), jitter);
        };
        let Some(remote) = remote.upgrade() else {
            if let Some(association) = made {
                association.close();
            }
            return;
        };
        match (found, made) {
            (Ok(()), Some(association)) => {
                info!(remote.uri = %uri, "path is back");
                current = Rc::new(association);
                // It was found to be as large as before at least.
                remote.geometry.set(current.geometry);
                remote.set(Link::Live(Rc::clone(&current)));
            }
            (Ok(()), None) => unreachable!("an attempt that succeeded made an association"),
            (Err(reason), _) => {
                warn!(remote.uri = %uri, ?reason, "remote device lost");
                remote.set(Link::Lost(reason));
                return;
            }
        }
    }
}

/// Returns when either connection of the association is gone.
async fn watch(association: &Association) {
    let admin = Rc::clone(&association.admin);
    let io = Rc::clone(&association.io);
    select(pin!(admin.closed()), pin!(io.closed())).await;
}

/// Connects once, and looks who answers.
async fn attempt(
    uri: &NvmfUri,
    options: &InitiatorOptions,
    geometry: Geometry,
    known: Option<connect::Identity>,
    key: Option<u64>,
) -> (Attempt, Option<Association>) {
    let association = match establish(uri, options).await {
        Ok(association) => association,
        Err(ConnectError::Failed(_)) => return (Attempt::Failed, None),
        Err(ConnectError::Refused(error)) => {
            warn!(%error, "remote device refused us");
            return (Attempt::Useless(LostReason::Refused), None);
        }
    };
    let verdict = match (known, association.identity) {
        _ if !is_as_large(association.geometry, geometry) => Some(LostReason::Different),
        (None, _) | (_, None) => Some(LostReason::Unidentified),
        (Some(was), Some(is)) if was.replica != is.replica => Some(LostReason::Different),
        (Some(was), Some(is)) if was.boot_id != is.boot_id => Some(LostReason::Rebooted),
        (Some(was), Some(is)) if was.engine_incarnation != is.engine_incarnation => {
            Some(LostReason::EngineRestarted)
        }
        (Some(_), Some(_)) => None,
    };
    // Hosts are told apart by their identifier only: without this question a replaced nexus would go on under the
    // registration of a newer one on the same engine (SAFETY F1).
    let verdict = match (verdict, key) {
        (None, Some(_)) => match reserve::report(&association, options).await {
            Ok(report) => {
                let confirmed = calls::confirmed(&report, uri.host_id.0, key);
                confirmed.is_err().then_some(LostReason::Fenced)
            }
            Err(_) => {
                association.close();
                return (Attempt::Failed, None);
            }
        },
        (verdict, _) => verdict,
    };
    match verdict {
        None => (Attempt::Same, Some(association)),
        Some(reason) => {
            association.close();
            (Attempt::Useless(reason), None)
        }
    }
}
