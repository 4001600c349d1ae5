//! Accepts connections and serves each in a task of its own.

use std::rc::{Rc, Weak};
use std::time::Duration;

use runtime::TcpListener;
use tracing::warn;

use super::Shared;
use super::connection::Connection;
use super::export::Export;

/// How long to wait after the system refused to accept (e.g. no descriptors left).
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// Accepts until the target is gone.
pub(super) async fn listen<E: Export>(listener: TcpListener, shared: Weak<Shared<E>>) {
    loop {
        let accepted = listener.accept().await;
        let Some(shared) = shared.upgrade() else { return };
        match accepted {
            Ok((stream, peer)) => {
                if shared.connections.get() >= shared.options.connections_max {
                    warn!(%peer, connections_max = shared.options.connections_max, "too many connections");
                    stream.reset();
                    continue;
                }
                let connection = Connection::new(&shared, stream);
                let counted = shared.count_connection(&connection);
                runtime::spawn(async move {
                    connection.serve().await;
                    drop(counted);
                });
            }
            Err(error) => {
                warn!(%error, "accept failed");
                drop(shared);
                runtime::sleep(AFTER_ERROR).await;
            }
        }
    }
}

/// A connection in the target's count, until it is dropped.
pub(super) struct Counted<E: Export> {
    shared: Rc<Shared<E>>,
    id: u64,
}

impl<E: Export> Counted<E> {
    pub(super) fn new(shared: Rc<Shared<E>>, id: u64) -> Self {
        Self { shared, id }
    }
}

impl<E: Export> Drop for Counted<E> {
    fn drop(&mut self) {
        self.shared.forget_connection(self.id);
    }
}
