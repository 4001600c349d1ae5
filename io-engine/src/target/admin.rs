//! Admin commands: Identify, logs, features, asynchronous events. Nothing here waits for a device.

use nvme::command::admin::{AdminCommand, GetLogPage, IdentifyTarget};
use nvme::command::fabrics::FabricsCommand;
use nvme::feature::{self, AsyncEvent, QueueCounts};
use nvme::identify::{ControllerKind, IdentifyController, IdentifyNamespace, serial_number};
use nvme::log_page;
use nvme::nqn::DISCOVERY_NQN;
use nvme::property::{Capabilities, CcEffect, Property, VERSION_1_4};
use nvme::{CommandId, Nqn, Nsid, Status, SubmissionEntry, Tag};

use super::Shared;
use super::controller::Controller;
use super::discovery;
use super::export::Export;
use super::io::NSID;
use crate::reservation::Reservable;

/// FR: the engine's version, cut off to what fits.
const FIRMWARE: &str = env!("CARGO_PKG_VERSION");
/// CAP.TO: a controller is ready at once; this is what a host waits at most.
const READY_TIMEOUT_HALF_SECONDS: u8 = 30;
/// Which of the three notifications a host does not want.
const RESERVATION_MASK_BITS: u32 = 0b1110;

/// How an admin command ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// With this result.
    Done(u64),
    /// With an error.
    Failed(Status),
    /// With data, to be cut off or filled with zeroes to what the host asked for.
    Data(Vec<u8>),
    /// Later, with an event.
    Held,
    /// With this result, after another command was aborted.
    Aborted { tag: Tag, result: u64 },
}

fn refused(status: Status) -> Reply {
    Reply::Failed(status.with_dnr())
}

/// Executes a fabrics command other than Connect; on I/O queues none is left.
pub(super) fn fabrics<E: Export>(
    shared: &Shared<E>,
    controller: &Controller<E>,
    entry: &SubmissionEntry,
) -> Reply {
    match FabricsCommand::decode(entry) {
        Ok(FabricsCommand::PropertyGet { property: Some(property), is_wide }) => {
            if property.is_wide() != is_wide {
                return refused(Status::INVALID_FIELD);
            }
            let state = controller.state.get();
            Reply::Done(match property {
                Property::Cap => Capabilities {
                    queue_entries_max: shared.options.queue_entries_max,
                    timeout_half_seconds: READY_TIMEOUT_HALF_SECONDS,
                }
                .encode(),
                Property::Vs => VERSION_1_4.into(),
                Property::Cc => state.cc().into(),
                Property::Csts => state.csts().into(),
            })
        }
        Ok(FabricsCommand::PropertySet { property: Some(Property::Cc), value }) => {
            let mut state = controller.state.get();
            let effect = state.write_cc(value);
            controller.state.set(state);
            match effect {
                CcEffect::Reset => controller.reset_io_queues(),
                CcEffect::None | CcEffect::Enabled | CcEffect::ShutDown => {}
            }
            Reply::Done(0)
        }
        Ok(FabricsCommand::PropertyGet { .. } | FabricsCommand::PropertySet { .. }) => {
            refused(Status::INVALID_FIELD)
        }
        // OFCS says that Disconnect is not supported; Connect does not come here.
        Ok(FabricsCommand::Disconnect | FabricsCommand::Connect(_)) => refused(Status::INVALID_OPCODE),
        Err(status) => Reply::Failed(status),
    }
}

/// Executes an admin command. `data` is what came from the host.
pub(super) fn admin<E: Export>(
    shared: &Shared<E>,
    controller: &Controller<E>,
    tag: Tag,
    entry: &SubmissionEntry,
    data: &[u8],
) -> Reply {
    let command = match AdminCommand::decode(entry) {
        Ok(command) => command,
        Err(status) => return Reply::Failed(status),
    };
    // Base 2.0, section 3.5.3: before CC.EN only fabrics commands; Keep Alive does no harm and keeps a slow host.
    if !controller.state.get().is_enabled() && command != AdminCommand::KeepAlive {
        return refused(Status::COMMAND_SEQUENCE_ERROR);
    }
    match command {
        AdminCommand::KeepAlive => Reply::Done(0),
        AdminCommand::AsyncEvent => {
            if controller.events.borrow_mut().request(tag, entry.cid) {
                Reply::Held
            } else {
                refused(Status::ASYNC_EVENT_LIMIT_EXCEEDED)
            }
        }
        AdminCommand::Abort { queue_id, cid } => abort(controller, queue_id, cid),
        AdminCommand::Identify { target, command_set } => {
            identify(shared, controller, target, command_set, entry.nsid)
        }
        AdminCommand::GetLogPage(get) => log(shared, controller, get),
        AdminCommand::SetFeatures { save: true, .. } => refused(Status::FEATURE_NOT_SAVEABLE),
        AdminCommand::SetFeatures { feature, value, .. } => {
            set_feature(shared, controller, feature, value, data)
        }
        AdminCommand::GetFeatures { feature, select, value } => {
            get_feature(shared, controller, feature, select, value)
        }
    }
}

/// Base 2.0, section 5.1: bit 0 of the result says "not aborted". Only requests for events are: I/O that was begun
/// ends by itself.
fn abort<E: Export>(controller: &Controller<E>, queue_id: u16, cid: CommandId) -> Reply {
    let aborted = (queue_id == 0).then(|| controller.events.borrow_mut().abort(cid)).flatten();
    match aborted {
        Some(tag) => Reply::Aborted { tag, result: 0 },
        None => Reply::Done(1),
    }
}

fn identify<E: Export>(
    shared: &Shared<E>,
    controller: &Controller<E>,
    target: IdentifyTarget,
    command_set: u8,
    nsid: Nsid,
) -> Reply {
    let Some(subsystem) = controller.subsystem() else {
        return match target {
            IdentifyTarget::Controller => {
                let subsystem = Nqn::new(DISCOVERY_NQN).expect("a valid NQN");
                let identity = controller_data(shared, controller, subsystem, ControllerKind::Discovery);
                Reply::Data(identity.encode().to_vec())
            }
            _ => refused(Status::INVALID_FIELD),
        };
    };
    let namespace = subsystem.identify_namespace();
    let of_namespace = |data: &dyn Fn() -> Box<[u8; 4096]>| {
        if nsid == NSID { Reply::Data(data().to_vec()) } else { refused(Status::INVALID_NAMESPACE) }
    };
    let of_nvm_set = |reply: Reply| if command_set == 0 { reply } else { refused(Status::INVALID_FIELD) };
    match target {
        IdentifyTarget::Controller => {
            let nqn = subsystem.nqn.clone();
            let mut identity = controller_data(shared, controller, nqn, ControllerKind::Io);
            identity.serial = serial_number(subsystem.uuid.as_bytes());
            identity.retry_delays = subsystem.retry_delays;
            identity.has_reservations = namespace.has_reservations;
            Reply::Data(identity.encode().to_vec())
        }
        IdentifyTarget::Namespace => of_namespace(&|| namespace.encode()),
        IdentifyTarget::NamespaceDescriptors => of_namespace(&|| namespace.encode_descriptors()),
        IdentifyTarget::IndependentNamespace => of_namespace(&|| namespace.encode_independent()),
        IdentifyTarget::CommandSetNamespace => of_nvm_set(of_namespace(&IdentifyNamespace::encode_empty)),
        IdentifyTarget::CommandSetController => {
            of_nvm_set(Reply::Data(IdentifyController::encode_command_set().to_vec()))
        }
        IdentifyTarget::ActiveNamespaces | IdentifyTarget::CommandSetActiveNamespaces => {
            // Base 2.0, section 5.17.2.3: FFFFFFFEh and FFFFFFFFh are not valid here.
            if nsid.0 >= 0xFFFF_FFFE {
                return refused(Status::INVALID_NAMESPACE);
            }
            of_nvm_set(Reply::Data(IdentifyNamespace::encode_active_list(&[NSID.0], nsid.0).to_vec()))
        }
        IdentifyTarget::CommandSets => {
            Reply::Data(IdentifyController::encode_command_set_combinations().to_vec())
        }
    }
}

fn controller_data<E: Export>(
    shared: &Shared<E>,
    controller: &Controller<E>,
    subsystem: Nqn,
    kind: ControllerKind,
) -> IdentifyController {
    IdentifyController {
        kind,
        cntlid: controller.cntlid,
        serial: "DISCOVERY".to_owned(),
        firmware: FIRMWARE.to_owned(),
        subsystem,
        transfer_pages_log2: shared.options.transfer_pages_log2(),
        in_capsule_bytes: shared.options.in_capsule_bytes,
        commands_max: shared.options.queue_entries_max,
        retry_delays: [0; 3],
        has_reservations: false,
    }
}

fn log<E: Export>(shared: &Shared<E>, controller: &Controller<E>, get: GetLogPage) -> Reply {
    if get.offset_is_index || !get.offset.is_multiple_of(4) {
        return refused(Status::INVALID_FIELD);
    }
    let content = match (get.log, controller.subsystem()) {
        (log_page::DISCOVERY, None) => discovery::log(shared, controller),
        (_, None) => return refused(Status::INVALID_LOG_PAGE),
        (log_page::ERROR, _) => vec![0; 128 * log_page::ENTRY_BYTES],
        (log_page::HEALTH, _) => log_page::encode_health(),
        (log_page::FIRMWARE_SLOT, _) => log_page::encode_firmware_slot(FIRMWARE),
        (log_page::CHANGED_NAMESPACES, _) => {
            let changed: &[u32] = if controller.namespace_changed.get() { &[NSID.0] } else { &[] };
            log_page::encode_changed_namespaces(changed)
        }
        (log_page::COMMAND_EFFECTS, Some(subsystem)) => {
            log_page::encode_command_effects(subsystem.has_reservations)
        }
        // LSP bit 0: groups only.
        (log_page::ANA, Some(subsystem)) => subsystem.ana_log(get.specific & 1 != 0),
        (log_page::RESERVATION, _) => controller.notices.borrow().page(),
        _ => return refused(Status::INVALID_LOG_PAGE),
    };
    if !get.retains_event {
        if get.log == log_page::CHANGED_NAMESPACES {
            controller.namespace_changed.set(false);
        }
        controller.events.borrow_mut().log_read(get.log);
        if get.log == log_page::RESERVATION && get.offset == 0 && controller.notices.borrow_mut().pop() {
            controller.events.borrow_mut().raise(AsyncEvent::ReservationLog);
        }
    }
    match usize::try_from(get.offset).ok().and_then(|offset| content.get(offset..)) {
        Some(rest) => Reply::Data(rest.to_vec()),
        None => refused(Status::INVALID_FIELD),
    }
}

fn set_feature<E: Export>(
    shared: &Shared<E>,
    controller: &Controller<E>,
    feature: u8,
    value: u32,
    data: &[u8],
) -> Reply {
    match feature {
        feature::NUMBER_OF_QUEUES => match QueueCounts::decode(value) {
            Some(asked) => Reply::Done(grant_queues(shared, asked).encode().into()),
            None => refused(Status::INVALID_FIELD),
        },
        feature::KEEP_ALIVE_TIMER => {
            controller.keep_alive_ms.set(value);
            Reply::Done(0)
        }
        feature::ASYNC_EVENT_CONFIGURATION => {
            controller.events.borrow_mut().configure(value);
            Reply::Done(0)
        }
        feature::VOLATILE_WRITE_CACHE => {
            controller.is_write_through.set(value & 1 == 0);
            Reply::Done(0)
        }
        feature::HOST_BEHAVIOR => match data.first() {
            Some(accepts) if data.len() == feature::HOST_BEHAVIOR_BYTES => {
                controller.accepts_retry_delay.set(accepts & 1 != 0);
                Reply::Done(0)
            }
            _ => refused(Status::SGL_LENGTH_INVALID),
        },
        // Over fabrics the host identifier comes with Connect (base 2.0, section 5.27.1.25).
        feature::HOST_IDENTIFIER => refused(Status::COMMAND_SEQUENCE_ERROR),
        feature::RESERVATION_MASK => {
            controller.reservation_mask.set(value & RESERVATION_MASK_BITS);
            Reply::Done(0)
        }
        // What persists is said with a registration (CPTPL), where it is durable before it is answered.
        feature::RESERVATION_PERSISTENCE => refused(Status::FEATURE_NOT_CHANGEABLE),
        // Mandatory for an I/O controller to know; they steer nothing here.
        feature::ARBITRATION
        | feature::POWER_MANAGEMENT
        | feature::TEMPERATURE_THRESHOLD
        | feature::ERROR_RECOVERY
        | feature::WRITE_ATOMICITY => Reply::Done(0),
        _ => refused(Status::INVALID_FIELD),
    }
}

/// The most that a host gets, or what it asked for.
fn grant_queues<E: Export>(shared: &Shared<E>, asked: QueueCounts) -> QueueCounts {
    let most = u32::from(shared.options.io_queues_max);
    QueueCounts { submission: asked.submission.min(most), completion: asked.completion.min(most) }
}

fn get_feature<E: Export>(
    shared: &Shared<E>,
    controller: &Controller<E>,
    feature: u8,
    select: u8,
    value: u32,
) -> Reply {
    const CAPABILITIES: u8 = 3;
    const CHANGEABLE: u64 = 1 << 2;
    let most = u32::from(shared.options.io_queues_max);
    let (current, default, is_changeable) = match feature {
        feature::NUMBER_OF_QUEUES => {
            let counts = QueueCounts { submission: most, completion: most }.encode();
            (counts, counts, true)
        }
        feature::KEEP_ALIVE_TIMER => (controller.keep_alive_ms.get(), 0, true),
        feature::ASYNC_EVENT_CONFIGURATION => (controller.events.borrow().configuration(), 0, true),
        feature::VOLATILE_WRITE_CACHE => (u32::from(!controller.is_write_through.get()), 1, true),
        feature::RESERVATION_MASK => (controller.reservation_mask.get(), 0, true),
        feature::RESERVATION_PERSISTENCE => {
            let kept = controller.export().and_then(Reservable::reservations);
            let Some(kept) = kept else { return refused(Status::INVALID_FIELD) };
            (u32::from(kept.is_persistent()), 0, false)
        }
        feature::HOST_IDENTIFIER => {
            if select == CAPABILITIES {
                return Reply::Done(0);
            }
            // EXHID: only the 128-bit form is enabled over fabrics.
            if value & 1 == 0 {
                return refused(Status::HOST_ID_INCONSISTENT);
            }
            return Reply::Data(controller.host_id.0.to_vec());
        }
        feature::HOST_BEHAVIOR => {
            let mut data = vec![0; feature::HOST_BEHAVIOR_BYTES];
            data[0] = u8::from(controller.accepts_retry_delay.get());
            return Reply::Data(data);
        }
        feature::ARBITRATION
        | feature::POWER_MANAGEMENT
        | feature::TEMPERATURE_THRESHOLD
        | feature::ERROR_RECOVERY
        | feature::WRITE_ATOMICITY => (0, 0, false),
        _ => return refused(Status::INVALID_FIELD),
    };
    Reply::Done(match select {
        0 => current.into(),
        CAPABILITIES => {
            if is_changeable {
                CHANGEABLE
            } else {
                0
            }
        }
        _ => default.into(),
    })
}
