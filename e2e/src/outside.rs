//! A way out of the laboratory's network, to a single server: the API of a cluster that the user names.
//!
//! ```text
//!  hub's namespace                                the namespace that the run was started in
//!  kubectl, operators --> 10.77.0.254:port --> a thread that never left --> the server, names resolved there
//! ```
//!
//! A socket belongs to the namespace of the thread that made it, whoever uses it later: the listener is made inside,
//! the connections to the server outside.

use std::net::{SocketAddr, TcpListener};
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::netns::HUB_ADDRESS;

/// One run uses one cluster.
const FORWARDS_MAX: usize = 4;

struct Forward {
    listener: TcpListener,
    server: String,
}

/// The thread outside. It ends when this is dropped, and its connections with it.
#[derive(Debug)]
pub struct Outside {
    forwards: mpsc::Sender<Forward>,
}

impl Outside {
    /// Leaves a thread in the network that the caller is in now.
    pub fn stay() -> Result<Self> {
        let (forwards, wanted) = mpsc::channel(FORWARDS_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("make a runtime for the thread outside")?;
        thread::Builder::new()
            .name("outside".to_owned())
            .spawn(move || runtime.block_on(serve(wanted)))
            .context("start the thread outside")?;
        Ok(Self { forwards })
    }

    /// Listens in the hub, in whose network the caller must be, and connects whoever comes to `server` (`host:port`).
    pub fn forward(&self, server: String) -> Result<SocketAddr> {
        let listener = TcpListener::bind((HUB_ADDRESS, 0)).context("listen in the hub")?;
        listener.set_nonblocking(true).context("prepare the listener")?;
        let address = listener.local_addr().context("ask for the listener's port")?;
        self.forwards
            .try_send(Forward { listener, server })
            .map_err(|error| anyhow!("the thread outside takes no forward: {error}"))?;
        Ok(address)
    }
}

async fn serve(mut wanted: mpsc::Receiver<Forward>) {
    while let Some(Forward { listener, server }) = wanted.recv().await {
        tokio::spawn(async move {
            let listener = match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => return eprintln!("cannot listen for {server}: {error}"),
            };
            while let Ok((mut inside, _)) = listener.accept().await {
                let server = server.clone();
                // As many at once as there are clients: kubectl and operators.
                tokio::spawn(async move {
                    match TcpStream::connect(&server).await {
                        // An end with an error is an end.
                        Ok(mut there) => {
                            tokio::io::copy_bidirectional(&mut inside, &mut there).await.ok();
                        }
                        Err(error) => eprintln!("cannot reach {server}: {error}"),
                    }
                });
            }
        });
    }
}
