//! Asking a target whether it is there, beside the kernel: a TCP connection and ICReq, the first message of the
//! transport. No association is made, so nothing that the host has at the target is touched (SAFETY D7).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ::nvme::session::host::{HostConfig, HostEvent, HostSession};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// ICResp has 128 bytes; more in the first read is possible and not of interest.
const RECEIVE_BYTES: usize = 256;

/// What a target did when it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It speaks NVMe/TCP. Whether it serves a certain subsystem is another question.
    Answered,
    /// Its machine says that nobody listens, or the connection was closed without an answer.
    Refused,
    /// Nothing came in time.
    Silent,
}

/// Asks the target at `address`, and waits for `limit` at most.
pub async fn probe(address: SocketAddr, limit: Duration) -> Outcome {
    match timeout(limit, initialise(address)).await {
        Ok(Ok(())) => Outcome::Answered,
        Ok(Err(error)) => match error.kind() {
            // Answers of the network, not of the target's machine: it may be there.
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::TimedOut => {
                Outcome::Silent
            }
            _ => Outcome::Refused,
        },
        Err(_) => Outcome::Silent,
    }
}

async fn initialise(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let mut session = HostSession::new(HostConfig { commands_max: 1, ..HostConfig::default() });
    let request = session.outbox().drain_to_vec(|_| &[]);
    stream.write_all(&request).await?;
    let mut received = [0; RECEIVE_BYTES];
    loop {
        let count = stream.read(&mut received).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut input = &received[..count];
        match session.receive(&mut input) {
            Some(HostEvent::Initialised) => return Ok(()),
            Some(_) => return Err(io::ErrorKind::InvalidData.into()),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use ::nvme::session::target::{TargetConfig, TargetSession};
    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(300);

    /// A target that answers what `answer` makes of the request, byte by byte.
    async fn target(answer: fn(&[u8]) -> Vec<u8>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 128];
            stream.read_exact(&mut request).await.unwrap();
            for byte in answer(&request) {
                // The prober may have seen enough.
                if stream.write_all(&[byte]).await.is_err() {
                    return;
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn a_target_of_ours_answers() {
        let address = target(|request| {
            let mut session = TargetSession::new(TargetConfig::default());
            let mut input = request;
            while session.receive(&mut input).is_some() {}
            session.outbox().drain_to_vec(|_| &[])
        })
        .await;
        assert_eq!(probe(address, LIMIT).await, Outcome::Answered);
    }

    #[tokio::test]
    async fn whoever_closes_or_speaks_otherwise_is_no_target() {
        let closes = target(|_| Vec::new()).await;
        assert_eq!(probe(closes, LIMIT).await, Outcome::Refused);
        let other = target(|_| b"HTTP/1.1 400 Bad Request\r\n\r\n".repeat(8)).await;
        assert_eq!(probe(other, LIMIT).await, Outcome::Refused);
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert_eq!(probe(gone, LIMIT).await, Outcome::Refused);
    }

    /// A frozen process: its kernel accepts, it never answers.
    #[tokio::test]
    async fn a_target_that_only_accepts_is_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        assert_eq!(probe(listener.local_addr().unwrap(), LIMIT).await, Outcome::Silent);
    }
}
