//! `HTTP_GET` and `SSL_GET`: one object is asked for, by its status, the sum of its body and a pattern in it.
//!
//! Runs once for each attempt, over a connection of its own. The answer has to end within the deadline: a status alone is
//! not enough. Of a body only what a pattern looks at is kept. Redirects are not followed. Cost: a connection, a read
//! buffer, and that. Source: keepalived's behaviour as it is written down (section 4.6); RFC 9112. Not here: which object
//! is asked for in which round.

use std::convert::Infallible;
use std::error::Error;
use std::future::{Future, pending};
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, USER_AGENT};
use hyper::{Request, Response, Version};
use hyper_util::rt::TokioIo;
use md5::{Digest, Md5};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::rustls::ClientConfig;
use xvs_model::check::{Http, Target, Url};

use crate::blocking::run_blocking;
use crate::pattern::Search;
use crate::prepare::{PreparedHttp, PreparedUrl};
use crate::probe_result::ProbeResult;
use crate::{socket, tls};

/// Asks for the object of this number.
pub(super) async fn probe(
    target: &Target,
    http: &Http,
    prepared: &PreparedHttp,
    at: usize,
    deadline: Instant,
) -> ProbeResult {
    let object = Object { url: &http.urls[at], prepared: &prepared.urls[at] };
    match exchange(target, http, prepared.tls.as_ref(), object, &Bounds::of(deadline)).await {
        Ok(()) => ProbeResult::Passed(0),
        Err(answer) => answer,
    }
}

/// An object: what the file says of it, and that made ready.
#[derive(Clone, Copy)]
struct Object<'a> {
    url: &'a Url,
    prepared: &'a PreparedUrl,
}

async fn exchange(
    target: &Target,
    http: &Http,
    tls: Option<&Arc<ClientConfig>>,
    object: Object<'_>,
    bounds: &Bounds,
) -> Result<(), ProbeResult> {
    let request = request(target, http, object).map_err(ProbeResult::NotRun)?;
    let stream = socket::connect(target, bounds.deadline).await?;
    let Some(tls) = tls else {
        return converse(stream, request, object, bounds).await.map_err(ProbeResult::Failed);
    };
    let handshake = tls::handshake(tls, object.prepared, stream);
    let stream = bounds.within("connected, and no TLS handshake", handshake).await;
    converse(stream.map_err(ProbeResult::Failed)?, request, object, bounds).await.map_err(ProbeResult::Failed)
}

/// The bytes that keepalived sends, header by header.
fn request(target: &Target, http: &Http, object: Object<'_>) -> Result<Request<Empty<Bytes>>, String> {
    let version = if http.is_1_1 { Version::HTTP_11 } else { Version::HTTP_10 };
    let mut request = Request::get(object.prepared.request_target.clone()).version(version);
    request = request.header(USER_AGENT, "KeepAliveClient");
    if http.closes {
        request = request.header(CONNECTION, "close");
    }
    let host = object.url.host.as_ref().or(http.host.as_ref()).cloned();
    let host = host.unwrap_or_else(|| target.endpoint.to_string());
    request.header(HOST, host).body(Empty::new()).map_err(|error| format!("the request: {error}"))
}

/// Asks and judges over a connection; not well in words.
async fn converse<S>(
    stream: S,
    request: Request<Empty<Bytes>>,
    object: Object<'_>,
    bounds: &Bounds,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut builder = http1::Builder::new();
    // keepalived looks at no header but the length.
    builder.title_case_headers(true).ignore_invalid_headers_in_responses(true).max_buf_size(HEAD_MAX_BYTES);
    let handshake = builder.handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| words(&error))?;
    let asked = async {
        let answer = async {
            let answer = sender.send_request(request).await;
            answer.map_err(|error| format!("connected, and no answer: {}", words(&error)))
        };
        judge(bounds.within("connected, and no answer", answer).await?, object, bounds).await
    };
    // What goes wrong with the connection is told to who asks.
    let driven = async {
        drop(connection.await);
        pending::<Infallible>().await
    };
    tokio::select! {
        judged = asked => judged,
        never = driven => match never {},
    }
}

/// The rest of an answer that has begun, in keepalived's order: status, sum, pattern.
async fn judge(answer: Response<Incoming>, object: Object<'_>, bounds: &Bounds) -> Result<(), String> {
    let url = object.url;
    let status = answer.status().as_u16();
    let wanted = if url.statuses.is_empty() { &[SUCCESS] } else { &url.statuses[..] };
    if !wanted.iter().any(|codes| codes.contains(&status)) {
        let wanted: Vec<_> = wanted.iter().map(codes).collect();
        return Err(format!("status {status} is not one of {}", wanted.join(", ")));
    }
    let (sum, kept) = bounds.within("an answer began, and did not end", receive(answer, url)).await?;
    if let Some(wanted) = url.digest.filter(|wanted| *wanted != sum) {
        return Err(format!("the body's MD5 is {}, not {}", hexadecimal(sum), hexadecimal(wanted)));
    }
    match &object.prepared.pattern {
        Some(search) => look(search, kept, bounds).await,
        None => Ok(()),
    }
}

/// A body's sum, if it counts, and what a pattern looks at.
async fn receive(answer: Response<Incoming>, url: &Url) -> Result<([u8; 16], Vec<u8>), String> {
    let (head, mut body) = answer.into_parts();
    let ends_with_connection =
        !head.headers.contains_key(CONTENT_LENGTH) && !head.headers.contains_key(TRANSFER_ENCODING);
    let mut sum = Md5::new();
    let mut kept = Vec::new();
    let most = if url.pattern.is_some() { PATTERN_MAX_BYTES } else { 0 };
    while let Some(frame) = body.frame().await {
        let data = match frame {
            Ok(frame) => frame.into_data().unwrap_or_default(),
            // Many servers end TLS without saying so.
            Err(error) if ends_with_connection && is_end(&error) => break,
            Err(error) => return Err(format!("the answer broke off: {}", words(&error))),
        };
        if url.digest.is_some() {
            sum.update(&data);
        }
        kept.extend_from_slice(&data[..data.len().min(most - kept.len())]);
    }
    Ok((sum.finalize().into(), kept))
}

/// Looks for a pattern on a thread that may wait. One that does not come to its end is not looked for once more meanwhile.
async fn look(search: &Search, body: Vec<u8>, bounds: &Bounds) -> Result<(), String> {
    let looked = async {
        let turn = search.turn().acquire_owned().await;
        let search = search.clone();
        let looking = move || {
            let judged = search.judge(&body);
            drop(turn);
            judged
        };
        run_blocking(looking).await.unwrap_or_else(|error| Err(error.to_string()))
    };
    let what = format!("answered, and the body not looked through for `{}`", search.pattern.text);
    bounds.within(&what, looked).await
}

/// When an attempt ends.
struct Bounds {
    deadline: Instant,
    /// How long all of it may take, in words.
    within: String,
}

impl Bounds {
    fn of(deadline: Instant) -> Self {
        Self { deadline, within: socket::within(deadline) }
    }

    /// What comes of something within the deadline, or how far it has come.
    async fn within<T>(
        &self,
        so_far: &str,
        what: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        match timeout_at(self.deadline, what).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("{so_far} {}", self.within)),
        }
    }
}

/// How long the head of an answer may be.
const HEAD_MAX_BYTES: usize = 64 << 10;

/// How much of a body a pattern looks at.
const PATTERN_MAX_BYTES: usize = 1 << 20;

/// What is well if nothing is said.
const SUCCESS: RangeInclusive<u16> = 200..=299;

fn codes(codes: &RangeInclusive<u16>) -> String {
    match codes.start() == codes.end() {
        true => codes.start().to_string(),
        false => format!("{}-{}", codes.start(), codes.end()),
    }
}

fn hexadecimal(sum: [u8; 16]) -> String {
    sum.map(|byte| format!("{byte:02x}")).concat()
}

/// An error with what led to it.
fn words(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", words(source)),
        None => error.to_string(),
    }
}

/// Whether a connection was at its end without having said so.
fn is_end(error: &hyper::Error) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::time::Duration;

    use http_body_util::Full;
    use hyper::server;
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::net::TcpListener;

    use crate::http::*;
    use crate::socket::testing::{soon, target};
    use xvs_model::check::Pattern;
    use xvs_model::fault::Place;

    fn url() -> Url {
        Url { path: "/health".to_owned(), ..Url::default() }
    }

    fn with_pattern(text: &str) -> Url {
        let pattern = Pattern { text: text.to_owned(), ..Pattern::default() };
        Url { pattern: Some(pattern), ..url() }
    }

    fn prepared(url: &Url) -> PreparedUrl {
        let mut faults = Vec::new();
        let prepared = PreparedUrl::of(&somebody(), &Http::default(), url, &Place::default(), &mut faults);
        prepared.unwrap_or_else(|| panic!("{faults:?}"))
    }

    fn somebody() -> Target {
        target("192.0.2.1:80".parse().unwrap())
    }

    /// Reads a request to its end.
    async fn request_of(stream: &mut (impl AsyncRead + Unpin)) -> String {
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") {
            read.push(stream.read_u8().await.unwrap());
        }
        String::from_utf8(read).unwrap()
    }

    /// What a server is worth that does this when it has read a request.
    async fn judged_by<F>(object: Object<'_>, serve: impl FnOnce(DuplexStream) -> F) -> Result<(), String>
    where
        F: Future<Output = ()>,
    {
        let (mine, mut theirs) = duplex(64 << 10);
        let request = request(&somebody(), &Http::default(), object).unwrap();
        let served = async {
            request_of(&mut theirs).await;
            serve(theirs).await;
            pending::<Infallible>().await
        };
        let bounds = Bounds::of(soon());
        tokio::select! {
            judged = converse(mine, request, object, &bounds) => judged,
            never = served => match never {},
        }
    }

    /// What a server is worth that answers so and closes.
    async fn judged(url: &Url, answer: impl AsRef<[u8]>) -> Result<(), String> {
        let object = Object { url, prepared: &prepared(url) };
        judged_by(object, async |mut stream| drop(stream.write_all(answer.as_ref()).await)).await
    }

    /// What a server is worth that answers so and leaves the connection open.
    async fn judged_open(url: &Url, answer: &str) -> Result<(), String> {
        let serve = async |mut stream: DuplexStream| {
            stream.write_all(answer.as_bytes()).await.unwrap();
            pending().await
        };
        judged_by(Object { url, prepared: &prepared(url) }, serve).await
    }

    #[track_caller]
    fn assert_unwell(judged: Result<(), String>, why: &str) {
        assert_eq!(judged, Err(why.to_owned()));
    }

    #[tokio::test]
    async fn a_request_is_byte_for_byte_that_of_keepalived() {
        let plain = Http::default();
        let closing = Http { closes: true, ..Http::default() };
        let new = Http { is_1_1: true, closes: true, host: Some("rs.example".to_owned()), ..Http::default() };
        let own = Url { host: Some("Own.example:8080".to_owned()), ..url() };
        let odd = Url { path: "/a b?q=\"ä\"&x=1#frag".to_owned(), ..url() };
        let relative = Url { path: "index.html".to_owned(), ..url() };
        let whole = Url { path: "http://other.example/x".to_owned(), ..url() };
        let (v4, v6) = ("192.0.2.1:80", "[2001:db8::1]:8080");
        for (endpoint, http, url, expected) in [
            (
                v4,
                &plain,
                &url(),
                "GET /health HTTP/1.0\r\nUser-Agent: KeepAliveClient\r\nHost: 192.0.2.1:80\r\n\r\n",
            ),
            (
                v6,
                &closing,
                &url(),
                "GET /health HTTP/1.0\r\nUser-Agent: KeepAliveClient\r\nConnection: close\r\n\
                 Host: [2001:db8::1]:8080\r\n\r\n",
            ),
            (
                v6,
                &new,
                &url(),
                "GET /health HTTP/1.1\r\nUser-Agent: KeepAliveClient\r\nConnection: close\r\nHost: rs.example\r\n\r\n",
            ),
            (
                v4,
                &new,
                &own,
                "GET /health HTTP/1.1\r\nUser-Agent: KeepAliveClient\r\nConnection: close\r\n\
                 Host: Own.example:8080\r\n\r\n",
            ),
            (
                v4,
                &plain,
                &odd,
                "GET /a%20b?q=%22%C3%A4%22&x=1 HTTP/1.0\r\nUser-Agent: KeepAliveClient\r\nHost: 192.0.2.1:80\r\n\r\n",
            ),
            (
                v4,
                &plain,
                &relative,
                "GET index.html HTTP/1.0\r\nUser-Agent: KeepAliveClient\r\nHost: 192.0.2.1:80\r\n\r\n",
            ),
            (
                v4,
                &plain,
                &whole,
                "GET http://other.example/x HTTP/1.0\r\nUser-Agent: KeepAliveClient\r\nHost: 192.0.2.1:80\r\n\r\n",
            ),
        ] {
            let (mine, mut theirs) = duplex(4096);
            let object = Object { url, prepared: &prepared(url) };
            let request = request(&target(endpoint.parse().unwrap()), http, object).unwrap();
            let bounds = Bounds::of(soon());
            tokio::select! {
                _ = converse(mine, request, object, &bounds) => panic!("nobody answers"),
                read = request_of(&mut theirs) => assert_eq!(read, expected),
            }
        }
    }

    #[tokio::test]
    async fn a_status_is_one_of_those_that_are_wanted_and_redirects_are_not_followed() {
        let empty = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(judged(&url(), empty("200 OK")).await, Ok(()));
        assert_eq!(judged(&url(), "HTTP/1.0 204 No Content\r\n\r\n").await, Ok(()));
        assert_unwell(judged(&url(), empty("500 No")).await, "status 500 is not one of 200-299");
        let moved = "HTTP/1.1 301 Moved\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n";
        assert_unwell(judged(&url(), moved).await, "status 301 is not one of 200-299");
        let some = Url { statuses: vec![200..=204, 301..=301], ..url() };
        assert_eq!(judged(&some, moved).await, Ok(()));
        assert_unwell(judged(&some, empty("404 No")).await, "status 404 is not one of 200-204, 301");
        // What a body would be is not waited for.
        assert_unwell(
            judged_open(&some, "HTTP/1.1 500 No\r\n\r\n").await,
            "status 500 is not one of 200-204, 301",
        );
    }

    // The sum is what `printf 'hello from 10.1.0.1\n' | md5sum` prints.
    const BODY: &str = "hello from 10.1.0.1\n";
    const SUM: u128 = 0x9e2ef7721ae9f08b3c91c4cb7cb55be3;

    #[tokio::test]
    async fn a_bodys_sum_is_that_of_its_bytes_however_they_come() {
        let right = Url { digest: Some(SUM.to_be_bytes()), ..url() };
        assert_eq!(judged(&right, format!("HTTP/1.0 200 OK\r\n\r\n{BODY}")).await, Ok(()));
        let chunks = "7\r\nhello f\r\nd;ext=1\r\nrom 10.1.0.1\n\r\n0\r\nTrailer: x\r\n\r\n";
        let chunked = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        assert_eq!(judged_open(&right, &chunked).await, Ok(()));
        // head -c 3000000 /dev/zero | tr '\0' a | md5sum
        let long = Url { digest: Some(0x99ddc9a3a46ea62c95652bdf937a1fb8_u128.to_be_bytes()), ..url() };
        let mut answer = b"HTTP/1.0 200 OK\r\n\r\n".to_vec();
        answer.resize(answer.len() + 3_000_000, b'a');
        assert_eq!(judged(&long, &answer).await, Ok(()));
        let why = judged(&right, "HTTP/1.0 200 OK\r\n\r\n").await;
        assert_unwell(
            why,
            "the body's MD5 is d41d8cd98f00b204e9800998ecf8427e, not 9e2ef7721ae9f08b3c91c4cb7cb55be3",
        );
    }

    #[tokio::test]
    async fn a_pattern_looks_at_the_first_mebibyte_of_the_body_and_at_no_header() {
        let answer = "HTTP/1.0 200 OK\r\nX-State: ready\r\n\r\nstate: ready\n";
        assert_eq!(judged(&with_pattern("^state: re"), answer).await, Ok(()));
        let why = judged(&with_pattern("X-State"), answer).await;
        assert_unwell(why, "the body does not match `X-State`");
        let mut answer = b"HTTP/1.0 200 OK\r\n\r\n".to_vec();
        answer.resize(answer.len() + PATTERN_MAX_BYTES - 1, b'a');
        answer.extend(b"bc");
        assert_eq!(judged(&with_pattern("ab"), &answer).await, Ok(()));
        assert_unwell(judged(&with_pattern("bc"), &answer).await, "the body does not match `bc`");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pattern_that_does_not_come_to_its_end_ends_with_the_attempt() {
        let slow = with_pattern("a");
        let object = Object { url: &slow, prepared: &prepared(&slow) };
        let _looking = object.prepared.pattern.as_ref().unwrap().turn().acquire_owned().await;
        let answer = b"HTTP/1.0 200 OK\r\n\r\na";
        let why = judged_by(object, async |mut stream| drop(stream.write_all(answer).await)).await;
        assert_unwell(why, "answered, and the body not looked through for `a` within 5s");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_ends_by_its_length_or_with_the_connection() {
        let known = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        assert_eq!(judged_open(&url(), known).await, Ok(()));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        assert_eq!(judged_open(&url(), chunked).await, Ok(()));
        let unknown = "HTTP/1.1 200 OK\r\n\r\nok";
        assert_eq!(judged(&url(), unknown).await, Ok(()));
        let why = judged_open(&url(), unknown).await;
        assert_unwell(why, "an answer began, and did not end within 5s");
        let short = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok";
        let why = judged(&url(), short).await.unwrap_err();
        assert!(why.starts_with("the answer broke off: "), "{why}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_answers_a_byte_a_second_or_nothing_is_not_waited_for() {
        let serve = async |mut stream: DuplexStream| {
            for byte in b"HTTP/1.0 200 OK\r\n\r\nok" {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if stream.write_u8(*byte).await.is_err() {
                    return;
                }
            }
        };
        assert_unwell(
            judged_by(Object { url: &url(), prepared: &prepared(&url()) }, serve).await,
            "connected, and no answer within 5s",
        );
        assert_unwell(judged_open(&url(), "").await, "connected, and no answer within 5s");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_without_an_end_is_read_until_the_deadline_and_not_kept() {
        let whole = with_pattern("^b");
        let block = vec![b'a'; 64 << 10];
        let serve = async |mut stream: DuplexStream| {
            let mut sent = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await;
            while sent.is_ok() {
                sent = stream.write_all(&block).await;
                tokio::time::advance(Duration::from_millis(1)).await;
            }
        };
        assert_unwell(
            judged_by(Object { url: &whole, prepared: &prepared(&whole) }, serve).await,
            "an answer began, and did not end within 5s",
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_answer_is_told_as_it_was_seen() {
        let mut flood = b"HTTP/1.0 200 OK\r\n".to_vec();
        flood.extend(b"X-Flood: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(10_000));
        let long = [&b"HTTP/1.0 200 OK\r\nX-Long: "[..], &[b'a'; 1 << 20]].concat();
        for (answer, why) in [
            (&flood[..], "message head is too large"),
            (&long, "message head is too large"),
            (b"HTTP/1.0 200 OK\r\nContent-Le", "connection closed before message completed"),
            (b"", "connection closed before message completed"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "invalid HTTP version parsed"),
        ] {
            assert_unwell(judged(&url(), answer).await, &format!("connected, and no answer: {why}"));
        }
    }

    #[tokio::test]
    async fn a_server_is_asked_over_tcp_and_one_that_refuses_is_not_well() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = target(listener.local_addr().unwrap());
        let http = Http { is_1_1: true, closes: true, ..Http::default() };
        let expected = Url { digest: Some(SUM.to_be_bytes()), ..with_pattern("10\\.1\\.0\\.1") };
        let served = async {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = service_fn(async |request: Request<Incoming>| {
                assert_eq!(request.headers()[HOST], target.endpoint.to_string());
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(BODY.as_bytes()))))
            });
            server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await
        };
        let prepared = PreparedHttp { tls: None, urls: vec![prepared(&expected)] };
        let http = Http { urls: vec![expected], ..http };
        let deadline = Instant::now() + Duration::from_secs(60);
        // Any thread may ask.
        let asking: Pin<Box<dyn Future<Output = ProbeResult> + Send>> =
            Box::pin(probe(&target, &http, &prepared, 0, deadline));
        let (answer, served) = tokio::join!(asking, served);
        assert_eq!(answer, ProbeResult::Passed(0));
        drop(served);
        drop(listener);
        assert!(matches!(probe(&target, &http, &prepared, 0, deadline).await, ProbeResult::Failed(_)));
    }
}
