//! Figures, as Prometheus would take them.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The page at `http://<address>/metrics`.
pub async fn scrape(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: e2e\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(answer)
}

/// The value of the first figure of this name whose labels contain all of these.
pub fn figure(page: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let mut lines = page.lines().filter(|line| {
        let is_named = line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        is_named && labels.iter().all(|label| line.contains(label))
    });
    lines.next()?.rsplit_once(' ')?.1.parse().ok()
}
