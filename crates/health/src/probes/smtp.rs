//! `SMTP_CHECK`: greeting, `HELO` and `QUIT` with a mail server.
//!
//! Runs once for each probe. The first line of each reply counts; its code must be followed by a space or directly by a
//! line feed. A reply of several lines therefore fails, as with keepalived. Source: RFC 5321 §3.1, §4.2. Cost: a buffer
//! for one line.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use xvs_model::health_checks::check::Target;

use crate::probes::probe_result::ProbeResult;
use crate::probes::socket;

/// Probes the target once, at most until the deadline. `name` is the argument of `HELO`.
pub(crate) async fn probe(target: &Target, name: &str, deadline: Instant) -> ProbeResult {
    exchange(target, name, deadline).await.err().unwrap_or(ProbeResult::Passed(0))
}

async fn exchange(target: &Target, name: &str, deadline: Instant) -> Result<(), ProbeResult> {
    let within = socket::within(deadline);
    let mut stream = BufReader::with_capacity(LINE_BYTES, socket::connect(target, deadline).await?);
    for (command, progress, code) in [
        (String::new(), "connected, but no greeting", Some("220")),
        (format!("HELO {name}\r\n"), "greeted, but HELO not accepted", Some("250")),
        ("QUIT\r\n".to_owned(), "HELO accepted, but no reply to QUIT", None),
    ] {
        let line = match timeout_at(deadline, reply(&mut stream, &command)).await {
            Err(_) => return Err(ProbeResult::Failed(format!("{progress} {within}"))),
            Ok(Err(error)) => return Err(socket::network_error(&error, progress, target.endpoint)),
            Ok(Ok(line)) => line,
        };
        let Some(line) = line.strip_suffix(b"\n") else {
            return Err(ProbeResult::Failed(match line.len() {
                LINE_BYTES => format!("{progress}: a line of more than {LINE_BYTES} bytes"),
                _ => format!("{progress}: connection closed by {}", target.endpoint),
            }));
        };
        if let Some(code) = code.filter(|code| !has_code(line, code)) {
            let seen = line[..line.len().min(SHOWN_BYTES)].trim_ascii().escape_ascii();
            return Err(ProbeResult::Failed(format!("{progress}: `{seen}`, not `{code} …`")));
        }
    }
    Ok(())
}

fn has_code(line: &[u8], code: &str) -> bool {
    line.strip_prefix(code.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b' ')
}

/// Sends a command and reads a line. The line has no line feed if it is too long or the connection was closed within
/// it.
async fn reply(stream: &mut BufReader<TcpStream>, command: &str) -> std::io::Result<Vec<u8>> {
    stream.write_all(command.as_bytes()).await?;
    let mut line = Vec::new();
    stream.take(LINE_BYTES as u64).read_until(b'\n', &mut line).await?;
    Ok(line)
}

/// Twice the limit of a reply line (RFC 5321 §4.5.3.1.5).
const LINE_BYTES: usize = 1024;
/// The number of bytes of a line that an error shows.
const SHOWN_BYTES: usize = 80;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use crate::probes::smtp::*;
    use crate::probes::socket::testing::{soon, target};

    /// A server that sends the first line at once and each further line after a line from the client, and then closes
    /// the connection. Also returns the received text.
    async fn server(lines: &[&str]) -> (Target, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = target(listener.local_addr().unwrap());
        let lines: Vec<_> = lines.iter().map(|&line| line.to_owned()).collect();
        let received = tokio::spawn(async move {
            let mut stream = BufReader::new(listener.accept().await.unwrap().0);
            let mut received = String::new();
            for (at, line) in lines.iter().enumerate() {
                if at > 0 {
                    stream.read_line(&mut received).await.unwrap();
                }
                stream.write_all(line.as_bytes()).await.unwrap();
            }
            stream.shutdown().await.unwrap();
            stream.read_to_string(&mut received).await.unwrap();
            received
        });
        (target, received)
    }

    async fn probed(lines: &[&str]) -> ProbeResult {
        let (target, _) = server(lines).await;
        let result = probe(&target, "lb.example", soon()).await;
        match result {
            ProbeResult::Failed(why) => {
                ProbeResult::Failed(why.replace(&target.endpoint.to_string(), "the server"))
            }
            result => result,
        }
    }

    #[tokio::test]
    async fn a_server_that_replies_to_helo_and_quit_passes() {
        let lines = ["220 mx.example ESMTP\r\n", "250 hello\r\n", "anything at all\n"];
        let (target, received) = server(&lines).await;
        assert_eq!(probe(&target, "lb.example", soon()).await, ProbeResult::Passed(0));
        assert_eq!(received.await.unwrap(), "HELO lb.example\r\nQUIT\r\n");
    }

    #[tokio::test]
    async fn a_reply_of_several_lines_or_without_a_space_fails() {
        for (greeting, seen) in [
            ("220-mx.example\r\n220 ESMTP\r\n", "220-mx.example"),
            ("554 no\r\n", "554 no"),
            ("220\r\n", "220"),
            ("22 0\r\n", "22 0"),
            ("2201 mx\r\n", "2201 mx"),
            (" 220 mx\r\n", "220 mx"),
            ("\x1b[2J\r\n", "\\x1b[2J"),
        ] {
            let why = format!("connected, but no greeting: `{seen}`, not `220 …`");
            assert_eq!(probed(&[greeting]).await, ProbeResult::Failed(why));
        }
        let why = "greeted, but HELO not accepted: `250-mx`, not `250 …`".to_owned();
        assert_eq!(probed(&["220 mx\r\n", "250-mx\r\n250 HELP\r\n"]).await, ProbeResult::Failed(why));
        // The code may be followed directly by a line feed.
        assert_eq!(probed(&["220\n", "250\n", "221\n"]).await, ProbeResult::Passed(0));
    }

    #[tokio::test]
    async fn a_server_that_closes_the_connection_early_fails() {
        let closed = |far: &str| ProbeResult::Failed(format!("{far}: connection closed by the server"));
        assert_eq!(probed(&["220 half a line"]).await, closed("connected, but no greeting"));
        assert_eq!(probed(&["220 mx\r\n"]).await, closed("greeted, but HELO not accepted"));
        let why = closed("HELO accepted, but no reply to QUIT");
        assert_eq!(probed(&["220 mx\r\n", "250 mx\r\n"]).await, why);
    }

    #[tokio::test]
    async fn a_server_that_resets_after_its_greeting_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = target(listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let mut stream = listener.accept().await.unwrap().0;
            stream.write_all(b"220 mx\r\n").await.unwrap();
            stream.set_zero_linger().unwrap();
        });
        let why = format!("greeted, but HELO not accepted: connection reset by {}", target.endpoint);
        assert_eq!(probe(&target, "lb.example", soon()).await, ProbeResult::Failed(why));
        server.await.unwrap();
    }

    #[tokio::test]
    async fn megabytes_without_a_line_are_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = target(listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut stream = listener.accept().await.unwrap().0;
            while stream.write_all(&[b'2'; 65_536]).await.is_ok() {}
        });
        let why = "connected, but no greeting: a line of more than 1024 bytes".to_owned();
        assert_eq!(probe(&target, "lb.example", soon()).await, ProbeResult::Failed(why));
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_a_second_does_not_stretch_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = target(listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut stream = listener.accept().await.unwrap().0;
            while stream.write_all(b"2").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let why = "connected, but no greeting within 5s".to_owned();
        assert_eq!(probe(&target, "lb.example", soon()).await, ProbeResult::Failed(why));
    }
}
