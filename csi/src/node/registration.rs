//! Tells the control plane where this node's plugin is, so that it can be called (file systems are frozen through it).

use std::time::Duration;

use control_api::{Client, RegisterAppNode};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use telemetry::chain;

/// The registry may have been restored from a backup, or the node deregistered by hand.
const AGAIN: Duration = Duration::from_secs(300);
/// The first pause after a failure; doubled up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Registers the node now and again and again, until `stop`; then deregisters it, once: what is left of it is
/// overwritten by the next that starts here.
pub async fn keep_registered(client: Client, node: String, spec: RegisterAppNode, stop: CancellationToken) {
    let mut retry = RETRY_FIRST;
    let mut is_told = false;
    loop {
        let outcome = tokio::select! {
            outcome = client.register_app_node(&node, &spec) => outcome,
            () = stop.cancelled() => break,
        };
        let pause = match outcome {
            Ok(()) => {
                if !std::mem::replace(&mut is_told, true) {
                    info!(
                        node.name = node,
                        node.endpoint = spec.endpoint,
                        "registered as an application node"
                    );
                }
                retry = RETRY_FIRST;
                AGAIN
            }
            Err(error) => {
                warn!(
                    node.name = node,
                    error = chain(&error),
                    "not registered as an application node, trying again"
                );
                is_told = false;
                let pause = retry;
                retry = (retry * 2).min(RETRY_MAX);
                pause
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => break,
        }
    }
    if let Err(error) = client.deregister_app_node(&node).await {
        warn!(node.name = node, error = chain(&error), "not deregistered");
    }
}
