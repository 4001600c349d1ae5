//! Makes an association: admin queue, Connect, Identify, one I/O queue, and the question who the replica is.

use std::rc::Rc;
use std::time::Duration;

use nvme::command::admin::{AdminCommand, IdentifyTarget};
use nvme::command::fabrics::{CNTLID_DYNAMIC, Connect, ConnectData, FabricsCommand};
use nvme::command::vendor::{REPORT_HEADER_BYTES, ReportData, VendorCommand};
use nvme::feature::{self, QueueCounts};
use nvme::identify::controller::ControllerView;
use nvme::identify::namespace::NamespaceView;
use nvme::property::{CC_ENABLE, CSTS_READY, Capabilities, Property};
use nvme::session::host::HostConfig;
use nvme::{Nsid, Status, SubmissionEntry};
use runtime::{IoBuf, IoBytes};
use uuid::Uuid;

use super::queue::{CloseOnDrop, Data, Finished, Queue};
use super::{InitiatorOptions, NSID, NvmfUri};
use crate::block::{BlockError, Blocks, ErrorKind, Geometry};
use crate::target::status;

/// Commands of the admin queue: far fewer are ever in flight.
const ADMIN_ENTRIES: u16 = 32;
/// Between two looks at CSTS.RDY.
const READY_PAUSE: Duration = Duration::from_millis(20);

/// Who answers: see SAFETY D3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) replica: Uuid,
    pub(super) boot_id: Uuid,
    pub(super) engine_incarnation: Uuid,
}

/// A live association.
pub(super) struct Association {
    pub(super) admin: Rc<Queue>,
    pub(super) io: Rc<Queue>,
    pub(super) geometry: Geometry,
    pub(super) controller: ControllerView,
    /// `None` for a target that does not know our vendor commands.
    pub(super) identity: Option<Identity>,
}

impl Association {
    pub(super) fn close(&self) {
        self.io.close();
        self.admin.close();
    }

    /// Bytes of one command's data at most.
    pub(super) fn transfer_bytes_max(&self) -> u32 {
        let theirs = self.controller.transfer_bytes_max.unwrap_or(u64::MAX);
        u32::try_from(theirs).unwrap_or(u32::MAX).min(HostConfig::default().data_bytes_max)
    }
}

/// Also where an attempt to connect is given up halfway.
impl Drop for Association {
    fn drop(&mut self) {
        self.close();
    }
}

/// Why no association was made.
#[derive(Debug)]
pub(super) enum ConnectError {
    /// Trying again may help.
    Failed(BlockError),
    /// Trying again will not help.
    Refused(BlockError),
}

impl From<BlockError> for ConnectError {
    fn from(error: BlockError) -> Self {
        Self::Failed(error)
    }
}

impl ConnectError {
    pub(super) fn into_inner(self) -> BlockError {
        match self {
            Self::Failed(error) | Self::Refused(error) => error,
        }
    }
}

/// Connects within the options' time.
pub(super) async fn establish(
    uri: &NvmfUri,
    options: &InitiatorOptions,
) -> Result<Association, ConnectError> {
    match runtime::timeout(options.connect_timeout, connect(uri, options)).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let text = format!("{uri} was not connected within {} ms", options.connect_timeout.as_millis());
            Err(ConnectError::Failed(BlockError::new(ErrorKind::TimedOut, text)))
        }
    }
}

async fn connect(uri: &NvmfUri, options: &InitiatorOptions) -> Result<Association, ConnectError> {
    let config =
        |commands_max| HostConfig { commands_max, digests: options.digests, ..HostConfig::default() };
    let admin = CloseOnDrop(Some(Queue::open(uri.address, config(ADMIN_ENTRIES)).await?));
    let admin_queue = Rc::clone(admin.0.as_ref().expect("just made"));
    let setup = Setup { queue: &admin_queue, uri, options };

    let keep_alive_ms = u32::try_from(options.keep_alive.as_millis()).unwrap_or(u32::MAX);
    let cntlid = setup.connect(0, ADMIN_ENTRIES.into(), CNTLID_DYNAMIC, keep_alive_ms).await?;
    let cap = Capabilities::decode(setup.property(Property::Cap).await?);
    setup.enable().await?;
    let controller = ControllerView::decode(&*setup.identify(IdentifyTarget::Controller, Nsid(0)).await?);
    let counts = QueueCounts { submission: 1, completion: 1 };
    let value = counts.encode();
    let set = AdminCommand::SetFeatures { feature: feature::NUMBER_OF_QUEUES, save: false, value };
    setup.admin(set.encode(Nsid(0)), Data::None, "set the number of queues").await?;
    let geometry = setup.namespace().await?.ok_or_else(|| {
        let text = format!("{uri} has no namespace {} that can be used", NSID.0);
        ConnectError::Refused(BlockError::new(ErrorKind::Unsupported, text))
    })?;

    let commands_max = if controller.commands_max == 0 { u16::MAX } else { controller.commands_max };
    let depth = options.queue_depth.min(cap.queue_entries_max).min(commands_max).max(2);
    let io = CloseOnDrop(Some(Queue::open(uri.address, config(depth)).await?));
    let io_queue = Rc::clone(io.0.as_ref().expect("just made"));
    let setup = Setup { queue: &io_queue, uri, options };
    setup.connect(1, depth.into(), cntlid, 0).await?;
    io_queue.set_in_capsule_bytes(controller.in_capsule_bytes);
    let identity = setup.identity().await?;
    Ok(Association { admin: admin.keep(), io: io.keep(), geometry, controller, identity })
}

/// How large the namespace is now.
pub(super) async fn identify(
    admin: &Rc<Queue>,
    uri: &NvmfUri,
    options: &InitiatorOptions,
) -> Result<Geometry, BlockError> {
    Setup { queue: admin, uri, options }.namespace().await?.ok_or_else(|| {
        let text = format!("{uri} has no namespace {} any more", NSID.0);
        BlockError::new(ErrorKind::Internal, text)
    })
}

/// Commands of the set-up, over one queue.
struct Setup<'a> {
    queue: &'a Rc<Queue>,
    uri: &'a NvmfUri,
    options: &'a InitiatorOptions,
}

impl Setup<'_> {
    fn failed(&self, what: &str, status: Status) -> BlockError {
        BlockError::new(status::kind(status), format!("{}: {what}: {status}", self.uri))
    }

    async fn admin(&self, entry: SubmissionEntry, data: Data, what: &str) -> Result<Finished, BlockError> {
        let finished = self.queue.submit(entry, data, self.options.admin_timeout).await?;
        let status = finished.completion.status;
        if status.is_success() { Ok(finished) } else { Err(self.failed(what, status)) }
    }

    async fn connect(
        &self,
        queue_id: u16,
        queue_entries: u32,
        cntlid: u16,
        keep_alive_ms: u32,
    ) -> Result<u16, ConnectError> {
        // Completions need no queue head from us, and reads may end without one.
        let command = Connect { queue_id, queue_entries, flow_control_disabled: true, keep_alive_ms };
        let data = ConnectData {
            host_id: self.uri.host_id,
            cntlid,
            subsystem: self.uri.subsystem.clone(),
            host: self.uri.host.clone(),
        };
        let data = Data::Write(IoBytes::from_slice(&data.encode()));
        let entry = FabricsCommand::Connect(command).encode();
        let finished = self.queue.submit(entry, data, self.options.connect_timeout).await?;
        let status = finished.completion.status;
        if status.is_success() {
            Ok(u16::try_from(finished.completion.result & 0xFFFF).expect("masked to 16 bits"))
        } else if status.is_dnr() {
            Err(ConnectError::Refused(self.failed("connect", status)))
        } else {
            Err(ConnectError::Failed(self.failed("connect", status)))
        }
    }

    async fn property(&self, property: Property) -> Result<u64, BlockError> {
        let get = FabricsCommand::PropertyGet { property: Some(property), is_wide: property.is_wide() };
        Ok(self.admin(get.encode(), Data::None, "read a property").await?.completion.result)
    }

    /// Base 2.0, section 3.5.1: CC.EN, then wait for CSTS.RDY. The caller limits the time.
    async fn enable(&self) -> Result<(), BlockError> {
        let set = FabricsCommand::PropertySet { property: Some(Property::Cc), value: CC_ENABLE.into() };
        self.admin(set.encode(), Data::None, "enable the controller").await?;
        while self.property(Property::Csts).await? & u64::from(CSTS_READY) == 0 {
            runtime::sleep(READY_PAUSE).await;
        }
        Ok(())
    }

    async fn identify(&self, target: IdentifyTarget, nsid: Nsid) -> Result<Box<[u8; 4096]>, BlockError> {
        let entry = AdminCommand::Identify { target, command_set: 0 }.encode(nsid);
        let finished = self.admin(entry, Data::Read(IoBuf::zeroed(4096)), "identify").await?;
        let buffer = finished.buffer.expect("a read keeps its buffer");
        Ok(buffer.to_vec().into_boxed_slice().try_into().expect("made with this length"))
    }

    /// Size and blocks of the namespace; `None` where there is none that can be used.
    async fn namespace(&self) -> Result<Option<Geometry>, BlockError> {
        let found = NamespaceView::decode(&*self.identify(IdentifyTarget::Namespace, NSID).await?);
        Ok(found.filter(|namespace| namespace.blocks > 0).map(|namespace| Geometry {
            block_bytes: namespace.block_bytes,
            blocks: Blocks(namespace.blocks),
        }))
    }

    /// Who serves the replica; `None` if the target does not know the question, or answers no I/O now.
    async fn identity(&self) -> Result<Option<Identity>, BlockError> {
        let entry = VendorCommand::Report { first_region: 0 }.encode(NSID);
        let data = Data::Read(IoBuf::zeroed(REPORT_HEADER_BYTES));
        let finished = self.queue.submit(entry, data, self.options.io_timeout).await?;
        let status = finished.completion.status;
        if status::kind(status) == ErrorKind::Unsupported && !status.is_success() {
            return Ok(None);
        }
        // A path that carries no I/O yet, or no more, is a path all the same.
        if [Status::ANA_INACCESSIBLE, Status::ANA_TRANSITION].contains(&status.code()) {
            return Ok(None);
        }
        if !status.is_success() {
            return Err(self.failed("ask who serves it", status));
        }
        let report = ReportData::decode(&finished.buffer.expect("a read keeps its buffer"))
            .ok_or_else(|| BlockError::new(ErrorKind::Internal, format!("{}: unknown report", self.uri)))?;
        Ok(Some(Identity {
            replica: Uuid::from_bytes(report.replica),
            boot_id: Uuid::from_bytes(report.boot_id),
            engine_incarnation: Uuid::from_bytes(report.engine_incarnation),
        }))
    }
}
