//! A target for tests of what connects: it answers probes, and nothing else; the kernel in memory needs no more.

use std::net::SocketAddr;

use ::nvme::session::target::{TargetConfig, TargetSession};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Bytes of an ICReq PDU (NVMe/TCP transport specification 1.0, section 3.6.2.2).
const ICREQ_BYTES: usize = 128;

/// Answers ICReq for as long as the runtime lives; its address.
pub async fn answering() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; ICREQ_BYTES];
            if stream.read_exact(&mut request).await.is_err() {
                continue;
            }
            let mut session = TargetSession::new(TargetConfig::default());
            let mut input = &request[..];
            while session.receive(&mut input).is_some() {}
            // Who probes may have gone.
            let _ = stream.write_all(&session.outbox().drain_to_vec(|_| &[])).await;
        }
    });
    address
}
