//! Keeps an association alive, and notices when the other side is not.

use std::rc::Weak;
use std::time::Duration;

use nvme::Nsid;
use nvme::command::admin::AdminCommand;
use tracing::warn;

use super::connect::Association;
use super::queue::{Data, Queue};

/// Sends Keep Alive twice per agreed time until the association is gone; a target that does not answer within the
/// other half loses it. Idle cost: one small exchange per half of the agreed time.
pub(super) async fn keep_alive(admin: Weak<Queue>, association: Weak<Association>, agreed: Duration) {
    let half = agreed / 2;
    loop {
        runtime::sleep(half).await;
        let Some(queue) = admin.upgrade().filter(|queue| !queue.is_closed()) else { return };
        let entry = AdminCommand::KeepAlive.encode(Nsid(0));
        let answered = queue.submit(entry, Data::None, half).await;
        if let Err(error) = answered {
            if let Some(association) = association.upgrade() {
                if !association.io.is_closed() {
                    warn!(%error, "target went silent");
                }
                association.close();
            }
            return;
        }
    }
}
