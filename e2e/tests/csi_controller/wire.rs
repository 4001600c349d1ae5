//! The wire between the plugin and the control plane, which fails when it is told to.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use e2e::netns::HUB_ADDRESS;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A request of ours is far smaller.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It does not arrive: the connection breaks.
    Refused,
    /// It is done, and its answer does not arrive.
    Lost,
    /// It arrives after this time.
    Late(Duration),
}

/// An HTTP proxy, one request to a connection. Dropping it closes the address.
pub(crate) struct Wire {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Requests so far.
    requests: usize,
    /// The request that fails, by its number from the first one on.
    fault: Option<(usize, Fault)>,
    /// Nothing arrives.
    is_cut: bool,
    /// Requests that are not finished.
    at_work: usize,
}

impl Wire {
    /// Leads to `control_plane`, from an address of the hub, in whose network the calling thread must be.
    pub(crate) async fn start(control_plane: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((HUB_ADDRESS, 0)).await.context("listen for the plugin")?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                lock(&shared).at_work += 1;
                let state = shared.clone();
                // As many at once as a story has calls.
                tokio::spawn(async move {
                    // A connection that breaks is what some stories are about.
                    serve(connection, control_plane, &state).await.ok();
                    lock(&state).at_work -= 1;
                });
            }
        });
        Ok(Self { address, state, task })
    }

    /// `http://address:port`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on requests are counted anew, and this one fails.
    pub(crate) fn fail(&self, number: usize, fault: Fault) {
        let mut state = lock(&self.state);
        (state.requests, state.fault) = (0, Some((number, fault)));
    }

    /// No request fails from now on; whether the one that should has.
    pub(crate) fn heal(&self) -> bool {
        let mut state = lock(&self.state);
        state.is_cut = false;
        state.fault.take().is_some_and(|(number, _)| state.requests > number)
    }

    /// Nothing arrives from now on.
    pub(crate) fn cut(&self) {
        lock(&self.state).is_cut = true;
    }

    /// Whether all requests so far are finished.
    pub(crate) fn is_idle(&self) -> bool {
        lock(&self.state).at_work == 0
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(mut connection: TcpStream, control_plane: SocketAddr, state: &Mutex<State>) -> Result<()> {
    let request = read_request(&mut connection).await?;
    let fault = {
        let mut state = lock(state);
        let number = state.requests;
        state.requests += 1;
        let planned = state.fault.filter(|(planned, _)| *planned == number).map(|(_, fault)| fault);
        if state.is_cut { Some(Fault::Refused) } else { planned }
    };
    match fault {
        Some(Fault::Refused) => return Ok(()),
        Some(Fault::Late(time)) => tokio::time::sleep(time).await,
        Some(Fault::Lost) | None => {}
    }
    let mut upstream = TcpStream::connect(control_plane).await.context("reach the control plane")?;
    upstream.write_all(&request).await?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer).await?;
    if fault != Some(Fault::Lost) {
        connection.write_all(&answer).await?;
    }
    Ok(())
}

/// A whole request (RFC 9112), with the wish that the connection ends with its answer.
async fn read_request(connection: &mut TcpStream) -> Result<Vec<u8>> {
    let mut request = Vec::new();
    loop {
        if let Some(head) = request.windows(4).position(|part| part == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&request[..head]).to_lowercase();
            let body = text.lines().find_map(|line| line.strip_prefix("content-length:"));
            let body: usize = body.map_or(Ok(0), |length| length.trim().parse())?;
            if request.len() >= head + 4 + body {
                let line = request.windows(2).position(|part| part == b"\r\n").context("a request line")?;
                request.splice(line..line, *b"\r\nconnection: close");
                return Ok(request);
            }
        }
        if request.len() > REQUEST_BYTES_MAX {
            bail!("a request without an end");
        }
        if connection.read_buf(&mut request).await? == 0 {
            bail!("the plugin went away");
        }
    }
}
