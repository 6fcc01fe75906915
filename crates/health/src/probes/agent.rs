//! `TCP_CHECK` with `agent_check`: a line of keywords from an agent, as HAProxy's agent-check requests it.
//!
//! Runs once for each probe. The configured text, if any, is sent, and a line is read, which ends with a line feed or a
//! carriage return. An agent that does not reply, or replies without such an end, gives no result for the real server,
//! as in HAProxy. Cost: a buffer for one line. `agent.rs` interprets the keywords.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use xvs_model::health_checks::check::Target;

use crate::agent::{Answer, shown};
use crate::probes::probe_result::ProbeResult;
use crate::probes::socket;

/// Queries the agent once, at most until the deadline.
pub(crate) async fn probe(target: &Target, text: &str, deadline: Instant) -> ProbeResult {
    match exchange(target, text, deadline).await {
        Ok(answer) => ProbeResult::Agent(answer),
        Err(ProbeResult::Failed(why)) => ProbeResult::Inconclusive(why),
        Err(result) => result,
    }
}

async fn exchange(target: &Target, text: &str, deadline: Instant) -> Result<Answer, ProbeResult> {
    let within = socket::within(deadline);
    let mut stream = socket::connect(target, deadline).await?;
    let progress = "connected, but no line";
    let line = match timeout_at(deadline, line(&mut stream, text)).await {
        Err(_) => return Err(ProbeResult::Failed(format!("{progress} {within}"))),
        Ok(Err(error)) => return Err(socket::network_error(&error, progress, target.endpoint)),
        Ok(Ok(line)) => line,
    };
    let Some(end) = line.iter().position(is_end) else {
        let why = match line.len() {
            LINE_BYTES => format!("a line of more than {LINE_BYTES} bytes"),
            _ => "a line without a line feed".to_owned(),
        };
        return Err(ProbeResult::Failed(format!("{why} from {}: `{}`", target.endpoint, shown(&line))));
    };
    Ok(Answer::read(&line[..end]))
}

/// Sends the text, and reads until a line has ended, the connection is closed, or the line is too long.
async fn line(stream: &mut TcpStream, text: &str) -> io::Result<Vec<u8>> {
    stream.write_all(text.as_bytes()).await?;
    let mut line = Vec::with_capacity(LINE_BYTES);
    let mut bytes = stream.take(LINE_BYTES as u64);
    while bytes.read_buf(&mut line).await? > 0 && !line.iter().any(is_end) {}
    Ok(line)
}

fn is_end(byte: &u8) -> bool {
    b"\n\r".contains(byte)
}

/// A line has a few keywords and a description.
const LINE_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use crate::probes::agent::*;
    use crate::probes::socket::testing::{soon, target};

    /// The result of a probe of an agent that reads `text` and sends `reply`; it then closes the connection, or keeps
    /// it open.
    async fn probed(text: &str, reply: &[u8], closes: bool) -> ProbeResult {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = target(listener.local_addr().unwrap());
        let (expected, reply) = (text.to_owned(), reply.to_owned());
        let agent = tokio::spawn(async move {
            let mut stream = listener.accept().await.unwrap().0;
            let mut received = vec![0; expected.len()];
            stream.read_exact(&mut received).await.unwrap();
            assert_eq!(received, expected.as_bytes());
            stream.write_all(&reply).await.unwrap();
            (!closes).then_some(stream)
        });
        let result = probe(&target, text, soon()).await;
        drop(agent.await.unwrap());
        match result {
            ProbeResult::Inconclusive(why) => {
                ProbeResult::Inconclusive(why.replace(&target.endpoint.to_string(), "the agent"))
            }
            result => result,
        }
    }

    #[tokio::test]
    async fn a_line_ends_with_a_line_feed_or_a_carriage_return_and_the_text_is_sent_first() {
        for (text, reply) in [("", "75% up\n"), ("state\n", "75% up\r\nmore"), ("web 1", "75% up\n\n")] {
            for closes in [true, false] {
                let want = ProbeResult::Agent(Answer::read(b"75% up"));
                assert_eq!(probed(text, reply.as_bytes(), closes).await, want, "{reply:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_line_without_an_end_says_nothing() {
        for (reply, why) in [
            (b"".to_vec(), "a line without a line feed from the agent: ``"),
            (b"down".to_vec(), "a line without a line feed from the agent: `down`"),
            (b"\0\xff#".to_vec(), "a line without a line feed from the agent: `\\x00\\xff#`"),
            (
                [b"down ".repeat(1000), b"\n".to_vec()].concat(),
                "a line of more than 1024 bytes from the agent: `down",
            ),
        ] {
            let ProbeResult::Inconclusive(seen) = probed("", &reply, true).await else { panic!("{why}") };
            assert!(seen.starts_with(why), "{seen}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_is_gone_or_silent_says_nothing() {
        let silent = probed("", b"down", false).await;
        assert_eq!(silent, ProbeResult::Inconclusive("connected, but no line within 5s".to_owned()));
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let gone = ProbeResult::Inconclusive(format!("connection refused by {closed}"));
        assert_eq!(probe(&target(closed), "", soon()).await, gone);
    }
}
