//! Connect: who gets a queue, and in what order old and new associations of a host follow each other.

use std::rc::Rc;

use nvme::command::fabrics::{CNTLID_DYNAMIC, Connect, ConnectData, ConnectRefusal};
use nvme::{Nqn, Status};
use tracing::info;

use super::Shared;
use super::connection::Connection;
use super::controller::{Controller, Serves};
use super::export::Export;
use super::subsystem::{OlderCommands, Served};

/// Offsets in the submission entry, for refusals: QID and SQSIZE (base 2.0, section 6.3).
const QUEUE_ID_AT: u8 = 42;
const QUEUE_ENTRIES_AT: u8 = 44;

/// Decides on a Connect and makes what it asks for.
pub(super) async fn connect<E: Export>(
    shared: &Shared<E>,
    connection: &Rc<Connection<E>>,
    command: Connect,
    data: ConnectData,
) -> Result<Rc<Controller<E>>, ConnectRefusal> {
    let entries_max = match command.queue_id {
        0 => u32::from(u16::MAX),
        _ => u32::from(shared.options.queue_entries_max),
    };
    if command.queue_entries < 2 || command.queue_entries > entries_max {
        return Err(ConnectRefusal::command_field(QUEUE_ENTRIES_AT).with_dnr());
    }
    let controller = match (command.queue_id, data.subsystem.is_discovery()) {
        (0, true) => discover(shared, connection, &command, data)?,
        (_, true) => return Err(ConnectRefusal::command_field(QUEUE_ID_AT).with_dnr()),
        (0, false) => associate(shared, connection, &command, data).await?,
        (_, false) => join(shared, &command, &data)?,
    };
    controller.attach_queue(command.queue_id, connection);
    Ok(controller)
}

/// The subsystem, if it is served and admits the host. A name that is not served (yet, or any more) is refused without
/// "do not retry" (SAFETY D13); a host that is not allowed, with it.
fn admitted<E: Export>(shared: &Shared<E>, name: &Nqn, host: &Nqn) -> Result<Rc<Served<E>>, ConnectRefusal> {
    let subsystem = shared.subsystems.borrow().get(name).cloned();
    let subsystem = subsystem
        .filter(|subsystem| !subsystem.is_removed())
        .ok_or(ConnectRefusal::data_field(ConnectData::SUBSYSTEM_AT))?;
    if subsystem.admits(host) { Ok(subsystem) } else { Err(ConnectRefusal::host_not_allowed()) }
}

/// A new association, after the host's older one has ended (SAFETY D7).
async fn associate<E: Export>(
    shared: &Shared<E>,
    connection: &Rc<Connection<E>>,
    command: &Connect,
    data: ConnectData,
) -> Result<Rc<Controller<E>>, ConnectRefusal> {
    if data.cntlid != CNTLID_DYNAMIC {
        return Err(ConnectRefusal::data_field(ConnectData::CNTLID_AT).with_dnr());
    }
    let subsystem = admitted(shared, &data.subsystem, &data.host)?;
    // While older commands drain, another Connect of the same host may overtake this one: look again each time.
    loop {
        let older = subsystem.controllers_of(&data.host, data.host_id);
        for controller in &older {
            controller.close();
        }
        if subsystem.older_commands == OlderCommands::Detach {
            break;
        }
        subsystem.activity(&data.host, data.host_id).drained().await;
        if subsystem.controllers_of(&data.host, data.host_id).is_empty() {
            break;
        }
    }
    // The world may have changed while older commands drained.
    let subsystem = admitted(shared, &data.subsystem, &data.host)?;
    let busy = ConnectRefusal { status: Status::CONNECT_CONTROLLER_BUSY, result: 0 };
    if connection.is_closed() {
        return Err(busy);
    }
    let cntlid = subsystem.free_cntlid().ok_or(busy)?;
    let controller = Controller::new(
        cntlid,
        data.host,
        data.host_id,
        Serves::Subsystem(Rc::clone(&subsystem)),
        connection.reached_at(),
        command.keep_alive_ms,
    );
    subsystem.attach(Rc::clone(&controller));
    info!(subsystem.nqn = %subsystem.nqn, host.nqn = %controller.host, cntlid, "host connected");
    Ok(controller)
}

/// An I/O queue of an association.
fn join<E: Export>(
    shared: &Shared<E>,
    command: &Connect,
    data: &ConnectData,
) -> Result<Rc<Controller<E>>, ConnectRefusal> {
    let subsystem = admitted(shared, &data.subsystem, &data.host)?;
    let controller = subsystem
        .controller(data.cntlid)
        .filter(|it| it.host == data.host && it.host_id == data.host_id)
        .ok_or(ConnectRefusal::data_field(ConnectData::CNTLID_AT))?;
    if !controller.state.get().is_enabled() {
        return Err(ConnectRefusal { status: Status::COMMAND_SEQUENCE_ERROR, result: 0 });
    }
    if command.queue_id > shared.options.io_queues_max {
        return Err(ConnectRefusal::command_field(QUEUE_ID_AT).with_dnr());
    }
    if controller.has_queue(command.queue_id) {
        return Err(ConnectRefusal::command_field(QUEUE_ID_AT));
    }
    Ok(controller)
}

/// A discovery controller; every host may have several.
fn discover<E: Export>(
    shared: &Shared<E>,
    connection: &Rc<Connection<E>>,
    command: &Connect,
    data: ConnectData,
) -> Result<Rc<Controller<E>>, ConnectRefusal> {
    if data.cntlid != CNTLID_DYNAMIC {
        return Err(ConnectRefusal::data_field(ConnectData::CNTLID_AT).with_dnr());
    }
    let controller = Controller::new(
        shared.next_discovery_cntlid(),
        data.host,
        data.host_id,
        Serves::Discovery,
        connection.reached_at(),
        command.keep_alive_ms,
    );
    shared.attach_discovery(&controller);
    Ok(controller)
}
