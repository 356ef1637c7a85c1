//! A GET over loopback, enough to ask `/readyz` of a process we started.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const ANSWER_MAX: u64 = 64 * 1024;

/// Status and body (at most 64 KiB) of `GET http://<address><path>` within two seconds.
///
/// # Errors
/// When nobody listens, the answer is late, or it is not HTTP/1.
pub async fn get(address: &str, path: &str) -> Result<(u16, String)> {
    tokio::time::timeout(Duration::from_secs(2), exchange(address, path))
        .await
        .with_context(|| format!("no answer from {address} within 2 s"))?
}

async fn exchange(address: &str, path: &str) -> Result<(u16, String)> {
    let mut stream =
        TcpStream::connect(address).await.with_context(|| format!("nobody listens on {address}"))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer.as_str(), ""));
    let Some(status) = head.split(' ').nth(1).and_then(|code| code.parse().ok()) else {
        bail!("{address} does not speak HTTP");
    };
    Ok((status, body.to_owned()))
}
