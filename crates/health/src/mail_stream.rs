//! A connection to a mail server, over which a limited number of bytes is received.
//!
//! The SMTP library reads a line to its end before it checks the length. The server, or any host on the path, could
//! therefore fill the memory with a line that has no end; or use the processor with a reply of many short lines, which
//! is read again with each line. The limit counts all bytes received over one connection, including the TLS handshake.
//! One connection carries one mail.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use lettre::transport::smtp::client::AsyncTokioStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// The connection.
#[derive(Debug)]
pub(super) struct MailStream {
    stream: TcpStream,
    /// The bytes that may still come.
    left: usize,
}

/// Maximum number of bytes received over one connection: a certificate chain, and replies of a few lines.
const RECEIVED_MAX: usize = 16 << 10;

impl MailStream {
    /// Connects to the first address of the host that accepts, at most for `patience` each.
    pub(super) async fn connect(host: &str, port: u16, patience: Duration) -> io::Result<Self> {
        let mut last = io::Error::other("the name has no address");
        for addr in lookup_host((host, port)).await? {
            match timeout(patience, TcpStream::connect(addr)).await {
                Ok(Ok(stream)) => return Ok(Self { stream, left: RECEIVED_MAX }),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }
}

impl AsyncRead for MailStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let received = buffer.filled().len() - before;
        self.left = self
            .left
            .checked_sub(received)
            .ok_or_else(|| io::Error::other(format!("it sends more than {RECEIVED_MAX} bytes")))?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MailStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncTokioStream for MailStream {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }
}
