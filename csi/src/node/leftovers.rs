//! What a process that was killed has left half done: seen to before kubelet is served.

use std::sync::Arc;
use std::time::Duration;

use telemetry::chain;
use tracing::{info, warn};

use super::freeze::FreezeService;
use super::initiator::Initiator;
use crate::host::HostError;
use crate::host::identity::is_volume;
use crate::host::mount::Mounts;

/// What the kernel waits for a command unless told otherwise.
const KERNEL_IO_TIMEOUT: Duration = Duration::from_secs(30);

/// Finishes or takes back what no call of kubelet comes back to. What one does come back to is left to that call.
pub async fn tidy_up(
    initiator: &Initiator,
    mounts: &Arc<dyn Mounts>,
    freezer: &FreezeService,
) -> Result<(), HostError> {
    let tended = initiator.tend(is_volume, KERNEL_IO_TIMEOUT)?;
    if tended > 0 {
        info!(controllers = tended, "set the I/O time-out that an earlier process did not come to");
    }
    let own = mounts.clone();
    let tidied = tokio::task::spawn_blocking(move || own.tidy()).await;
    match tidied.expect("calls to the kernel do not panic") {
        Ok(0) => {}
        Ok(count) => info!(mounts = count, "took off what an earlier process did not come to show"),
        Err(error) => warn!(error = %chain(&error), "what an earlier process left mounted was not taken off"),
    }
    if let Err(error) = freezer.thaw_leftovers().await {
        warn!("file systems that an earlier process may have left frozen were not thawed: {error}");
    }
    Ok(())
}
