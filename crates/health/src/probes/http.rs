//! `HTTP_GET` and `SSL_GET`: a request for one URL; status, MD5 digest of the body and a pattern in it.
//!
//! Runs once for each probe, over a separate connection. The response must end before the deadline; its status alone
//! does not suffice. Only as much of the body as a pattern needs is kept. Redirects are not followed. Cost: a
//! connection, a read buffer, and the kept part of the body. Source: keepalived-behaviour, section 4.6; RFC 9112.
//! `check_state.rs` chooses the URL.

use std::convert::Infallible;
use std::error;
use std::error::Error as _;
use std::future::{Future, pending};
use std::io;
use std::ops::RangeInclusive;
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::thread;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, USER_AGENT};
use hyper::{Request, Response, Version};
use hyper_util::rt::TokioIo;
use md5::{Digest, Md5};
use rustix::process::nice;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinError;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::rustls::ClientConfig;
use xvs_model::foreign_text::ForeignText;
use xvs_model::health_checks::check::{Http, Target, Url};
use xvs_model::hexadecimal;

use crate::blocking::run_blocking;
use crate::pattern::{BodyError, Search};
use crate::prepare::{PreparedHttp, PreparedUrl};
use crate::probes::probe_result::ProbeResult;
use crate::probes::socket::Within;
use crate::probes::tls::HandshakeError;
use crate::probes::{socket, tls};

/// Requests the URL of index `at`, at most until the deadline.
pub(crate) async fn probe(
    target: &Target,
    http: &Http,
    prepared: &PreparedHttp,
    at: usize,
    deadline: Instant,
) -> ProbeResult {
    let object = Object { url: &http.urls[at], prepared: &prepared.urls[at] };
    exchange(target, http, prepared.tls.as_ref(), object, &Bounds::of(deadline))
        .await
        .err()
        .unwrap_or(ProbeResult::Passed(0))
}

/// A URL: its configuration, and its prepared data.
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
    let request = request(target, http, object)
        .map_err(|error| ProbeResult::NotRun(format!("the request: {error}")))?;
    let stream = socket::connect(target, bounds.deadline).await?;
    match tls {
        // Boxed, because it takes several times the memory of one without TLS.
        Some(tls) => Box::pin(exchange_over_tls(tls, stream, request, object, bounds)).await,
        None => exchange_over(stream, request, object, bounds).await,
    }
    .map_err(|failure| match failure {
        HttpFailure::Panicked(_) | HttpFailure::NoThread(_) => ProbeResult::NotRun(failure.to_string()),
        failure => ProbeResult::Failed(failure.to_string()),
    })
}

/// The request, with keepalived's headers in its order.
fn request(
    target: &Target,
    http: &Http,
    object: Object<'_>,
) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    let mut request = Request::get(object.prepared.request_target.clone())
        .version(if http.is_1_1 { Version::HTTP_11 } else { Version::HTTP_10 })
        .header(USER_AGENT, "KeepAliveClient");
    if http.closes {
        request = request.header(CONNECTION, "close");
    }
    let host = object.url.host.as_ref().or(http.host.as_ref()).cloned();
    request.header(HOST, host.unwrap_or_else(|| target.endpoint.to_string())).body(Empty::new())
}

/// Why a server fails that accepts connections.
#[derive(Debug, Error)]
enum HttpFailure {
    /// The deadline is over.
    #[error("{so_far} {within}")]
    Late { so_far: String, within: Within },
    #[error(transparent)]
    Tls(#[from] HandshakeError),
    #[error("{}", describe(.0))]
    Connection(hyper::Error),
    #[error("connected, but no response: {}", describe(.0))]
    NoResponse(hyper::Error),
    #[error("status {status} is not one of {}", wanted.iter().map(codes).collect::<Vec<_>>().join(", "))]
    Status { status: u16, wanted: Vec<RangeInclusive<u16>> },
    #[error("the response broke off: {}", describe(.0))]
    BrokeOff(hyper::Error),
    #[error("the body's MD5 is {}, not {}", hexadecimal::encode(seen), hexadecimal::encode(wanted))]
    Digest { seen: [u8; 16], wanted: [u8; 16] },
    #[error(transparent)]
    Body(BodyError),
    /// The search for the pattern has panicked.
    #[error("the search for the pattern: {0}")]
    Panicked(JoinError),
    /// There is no thread for the search.
    #[error("no thread for the search: {0}")]
    NoThread(io::Error),
}

/// Sends the request over a TLS connection and checks the response.
async fn exchange_over_tls(
    tls: &Arc<ClientConfig>,
    stream: TcpStream,
    request: Request<Empty<Bytes>>,
    object: Object<'_>,
    bounds: &Bounds,
) -> Result<(), HttpFailure> {
    let stream = bounds
        .within("connected, but no TLS handshake", pin!(tls::handshake(tls, object.prepared, stream)))
        .await?;
    exchange_over(stream, request, object, bounds).await
}

/// Sends the request over a connection and checks the response.
async fn exchange_over<S>(
    stream: S,
    request: Request<Empty<Bytes>>,
    object: Object<'_>,
    bounds: &Bounds,
) -> Result<(), HttpFailure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut builder = http1::Builder::new();
    // keepalived reads no header but the length.
    builder.title_case_headers(true).ignore_invalid_headers_in_responses(true).max_buf_size(HEAD_MAX_BYTES);
    let (mut sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(HttpFailure::Connection)?;
    let mut connection = pin!(connection);
    let checking = async {
        let sent = async { sender.send_request(request).await.map_err(HttpFailure::NoResponse) };
        let answer = bounds.within("connected, but no response", pin!(sent)).await?;
        check_response(answer, object, bounds).await
    };
    // The sender of the request gets the errors of the connection.
    let driven = async {
        drop(connection.as_mut().await);
        pending::<Infallible>().await
    };
    tokio::select! {
        checked = checking => checked,
        never = driven => match never {},
    }
}

/// Checks a response whose head was received, in keepalived's order: status, digest, pattern.
async fn check_response(
    response: Response<Incoming>,
    object: Object<'_>,
    bounds: &Bounds,
) -> Result<(), HttpFailure> {
    let url = object.url;
    let status = response.status().as_u16();
    let wanted = if url.statuses.is_empty() { &[SUCCESS] } else { &url.statuses[..] };
    if !wanted.iter().any(|codes| codes.contains(&status)) {
        return Err(HttpFailure::Status { status, wanted: wanted.to_vec() });
    }
    let (seen, kept) = bounds.within("the response did not end", pin!(receive(response, url))).await?;
    if let Some(wanted) = url.digest.filter(|wanted| *wanted != seen) {
        return Err(HttpFailure::Digest { seen, wanted });
    }
    match &object.prepared.pattern {
        // Few have one.
        Some(search) => Box::pin(match_pattern(search, kept, bounds)).await,
        None => Ok(()),
    }
}

/// Receives the body. Returns its MD5 digest, computed only if one is configured, and the part for the pattern.
async fn receive(response: Response<Incoming>, url: &Url) -> Result<([u8; 16], Vec<u8>), HttpFailure> {
    let (head, mut body) = response.into_parts();
    let ends_with_connection =
        !head.headers.contains_key(CONTENT_LENGTH) && !head.headers.contains_key(TRANSFER_ENCODING);
    let mut sum = Md5::new();
    let mut kept = Vec::new();
    let most = if url.pattern.is_some() { PATTERN_MAX_BYTES } else { 0 };
    while let Some(frame) = body.frame().await {
        let data = match frame {
            Ok(frame) => frame.into_data().unwrap_or_default(),
            // Many servers close the connection without close_notify of TLS.
            Err(error) if ends_with_connection && is_end(&error) => break,
            Err(error) => return Err(HttpFailure::BrokeOff(error)),
        };
        if url.digest.is_some() {
            sum.update(&data);
        }
        kept.extend_from_slice(&data[..data.len().min(most - kept.len())]);
    }
    Ok((sum.finalize().into(), kept))
}

/// Matches a pattern on a blocking thread. One search for each pattern runs at a time, so a slow one does not pile up.
/// A search ends soon after this future: at the deadline, or with its check.
async fn match_pattern(search: &Search, body: Vec<u8>, bounds: &Bounds) -> Result<(), HttpFailure> {
    let searched = async {
        let permit = search.permit().acquire_owned().await;
        let search = search.clone();
        // The receiver is dropped with this future.
        let (waited_for, _waits) = oneshot::channel::<Infallible>();
        let call = run_blocking(move || {
            let _permit = permit;
            if let Some(matched) = search.check_quickly(&body) {
                return Ok(Some(matched));
            }
            // A separate thread, because its priority cannot be raised again: workers on the same core run first.
            let searching = thread::Builder::new().name("xvs-search".to_owned()).spawn(move || {
                // Raising the niceness of a thread is always permitted.
                let _ = nice(NICENESS);
                search.check_thoroughly(&body, || !waited_for.is_closed())
            })?;
            Ok(searching.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        match call.await.map_err(HttpFailure::Panicked)?.map_err(HttpFailure::NoThread)? {
            Some(matched) => matched.map_err(HttpFailure::Body),
            None => unreachable!("the search ends early only when nobody waits"),
        }
    };
    let what = format!("response received, but the search did not end for `{}`", search.pattern.text);
    bounds.within(&what, pin!(searched)).await
}

/// The deadline of a probe.
struct Bounds {
    deadline: Instant,
    /// The time of the whole probe.
    within: Within,
}

impl Bounds {
    fn of(deadline: Instant) -> Self {
        Self { deadline, within: socket::within(deadline) }
    }

    /// Waits for `what` until the deadline. It is pinned, because a function that takes a future by value stores it
    /// twice.
    ///
    /// # Errors
    ///
    /// Its own error, or `so_far` and the time if the deadline is over.
    async fn within<T, E: Into<HttpFailure>>(
        &self,
        so_far: &str,
        what: Pin<&mut impl Future<Output = Result<T, E>>>,
    ) -> Result<T, HttpFailure> {
        match timeout_at(self.deadline, what).await {
            Ok(outcome) => outcome.map_err(Into::into),
            Err(_) => Err(HttpFailure::Late { so_far: so_far.to_owned(), within: self.within }),
        }
    }
}

/// The niceness of a search that takes long.
const NICENESS: i32 = 19;

/// The limit of the head of a response.
const HEAD_MAX_BYTES: usize = 64 << 10;

/// The number of bytes of a body against which a pattern is matched.
const PATTERN_MAX_BYTES: usize = 1 << 20;

/// The status codes that pass by default.
const SUCCESS: RangeInclusive<u16> = 200..=299;

fn codes(codes: &RangeInclusive<u16>) -> String {
    let (first, last) = codes.clone().into_inner();
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

/// An error with its sources.
fn describe(error: &dyn error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", describe(source)),
        None => ForeignText::from(error.to_string()).to_string(),
    }
}

/// Whether the connection ended without close_notify of TLS.
fn is_end(error: &hyper::Error) -> bool {
    error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
        .is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use http_body_util::Full;
    use hyper::server;
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::net::TcpListener;

    use crate::command::testing::until;
    use crate::probes::http::*;
    use crate::probes::socket::testing::{soon, target};
    use xvs_model::health_checks::check::Pattern;
    use xvs_model::health_checks::fault::Place;

    fn url() -> Url {
        Url { path: "/health".to_owned(), ..Url::default() }
    }

    fn with_pattern(text: &str) -> Url {
        let pattern = Pattern { text: text.to_owned(), ..Pattern::default() };
        Url { pattern: Some(pattern), ..url() }
    }

    fn prepared(url: &Url) -> PreparedUrl {
        let mut faults = Vec::new();
        let prepared = PreparedUrl::of(&any_target(), &Http::default(), url, &Place::default(), &mut faults);
        prepared.unwrap_or_else(|| panic!("{faults:?}"))
    }

    fn any_target() -> Target {
        target("192.0.2.1:80".parse().unwrap())
    }

    /// Reads a request to its end.
    async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> String {
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") {
            read.push(stream.read_u8().await.unwrap());
        }
        String::from_utf8(read).unwrap()
    }

    /// The result of a probe of a server that runs `serve` after it has read the request.
    async fn checked_by<F>(object: Object<'_>, serve: impl FnOnce(DuplexStream) -> F) -> Result<(), String>
    where
        F: Future<Output = ()>,
    {
        let (client, mut server) = duplex(64 << 10);
        let request = request(&any_target(), &Http::default(), object).unwrap();
        let served = async {
            read_request(&mut server).await;
            serve(server).await;
            pending::<Infallible>().await
        };
        let bounds = Bounds::of(soon());
        tokio::select! {
            checked = exchange_over(client, request, object, &bounds) => {
                checked.map_err(|failure| failure.to_string())
            }
            never = served => match never {},
        }
    }

    /// The result of a probe of a server that sends this response and closes the connection.
    async fn checked(url: &Url, answer: impl AsRef<[u8]>) -> Result<(), String> {
        let object = Object { url, prepared: &prepared(url) };
        checked_by(object, async |mut stream| drop(stream.write_all(answer.as_ref()).await)).await
    }

    /// The result of a probe of a server that sends this response and leaves the connection open.
    async fn checked_open(url: &Url, answer: &str) -> Result<(), String> {
        let serve = async |mut stream: DuplexStream| {
            stream.write_all(answer.as_bytes()).await.unwrap();
            pending().await
        };
        checked_by(Object { url, prepared: &prepared(url) }, serve).await
    }

    #[track_caller]
    fn assert_failed(checked: Result<(), String>, why: &str) {
        assert_eq!(checked, Err(why.to_owned()));
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
            let (client, mut server) = duplex(4096);
            let object = Object { url, prepared: &prepared(url) };
            let request = request(&target(endpoint.parse().unwrap()), http, object).unwrap();
            let bounds = Bounds::of(soon());
            tokio::select! {
                _ = exchange_over(client, request, object, &bounds) => panic!("there was no response"),
                read = read_request(&mut server) => assert_eq!(read, expected),
            }
        }
    }

    #[tokio::test]
    async fn a_configured_status_passes_and_redirects_are_not_followed() {
        let empty = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(checked(&url(), empty("200 OK")).await, Ok(()));
        assert_eq!(checked(&url(), "HTTP/1.0 204 No Content\r\n\r\n").await, Ok(()));
        assert_failed(checked(&url(), empty("500 No")).await, "status 500 is not one of 200-299");
        let moved = "HTTP/1.1 301 Moved\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n";
        assert_failed(checked(&url(), moved).await, "status 301 is not one of 200-299");
        let some = Url { statuses: vec![200..=204, 301..=301], ..url() };
        assert_eq!(checked(&some, moved).await, Ok(()));
        assert_failed(checked(&some, empty("404 No")).await, "status 404 is not one of 200-204, 301");
        // The body is not waited for.
        assert_failed(
            checked_open(&some, "HTTP/1.1 500 No\r\n\r\n").await,
            "status 500 is not one of 200-204, 301",
        );
    }

    // Printed by `printf 'hello from 10.1.0.1\n' | md5sum`.
    const BODY: &str = "hello from 10.1.0.1\n";
    const SUM: u128 = 0x9e2ef7721ae9f08b3c91c4cb7cb55be3;

    #[tokio::test]
    async fn the_digest_is_that_of_the_bodys_bytes_however_they_are_sent() {
        let right = Url { digest: Some(SUM.to_be_bytes()), ..url() };
        assert_eq!(checked(&right, format!("HTTP/1.0 200 OK\r\n\r\n{BODY}")).await, Ok(()));
        let chunks = "7\r\nhello f\r\nd;ext=1\r\nrom 10.1.0.1\n\r\n0\r\nTrailer: x\r\n\r\n";
        let chunked = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        assert_eq!(checked_open(&right, &chunked).await, Ok(()));
        // head -c 3000000 /dev/zero | tr '\0' a | md5sum
        let long = Url { digest: Some(0x99ddc9a3a46ea62c95652bdf937a1fb8_u128.to_be_bytes()), ..url() };
        let mut answer = b"HTTP/1.0 200 OK\r\n\r\n".to_vec();
        answer.resize(answer.len() + 3_000_000, b'a');
        assert_eq!(checked(&long, &answer).await, Ok(()));
        let why = checked(&right, "HTTP/1.0 200 OK\r\n\r\n").await;
        assert_failed(
            why,
            "the body's MD5 is d41d8cd98f00b204e9800998ecf8427e, not 9e2ef7721ae9f08b3c91c4cb7cb55be3",
        );
    }

    #[tokio::test]
    async fn a_pattern_is_matched_against_the_first_mebibyte_of_the_body_and_no_header() {
        let answer = "HTTP/1.0 200 OK\r\nX-State: ready\r\n\r\nstate: ready\n";
        assert_eq!(checked(&with_pattern("^state: re"), answer).await, Ok(()));
        let why = checked(&with_pattern("X-State"), answer).await;
        assert_failed(why, "the body does not match `X-State`");
        let mut answer = b"HTTP/1.0 200 OK\r\n\r\n".to_vec();
        answer.resize(answer.len() + PATTERN_MAX_BYTES - 1, b'a');
        answer.extend(b"bc");
        assert_eq!(checked(&with_pattern("ab"), &answer).await, Ok(()));
        assert_failed(checked(&with_pattern("bc"), &answer).await, "the body does not match `bc`");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pattern_search_that_does_not_end_fails_at_the_deadline() {
        let slow = with_pattern("a");
        let object = Object { url: &slow, prepared: &prepared(&slow) };
        let _searching = object.prepared.pattern.as_ref().unwrap().permit().acquire_owned().await;
        let answer = b"HTTP/1.0 200 OK\r\n\r\na";
        let why = checked_by(object, async |mut stream| drop(stream.write_all(answer).await)).await;
        assert_failed(why, "response received, but the search did not end for `a` within 5s");
    }

    #[tokio::test]
    async fn a_search_that_takes_minutes_ends_at_the_deadline_on_a_thread_of_low_priority() {
        let url = with_pattern("\\d+[a-f]");
        let prepared = prepared(&url);
        let pattern = prepared.pattern.as_ref().unwrap();
        let bounds = Bounds::of(Instant::now() + Duration::from_secs(1));
        let searched = tokio::spawn({
            let pattern = pattern.clone();
            async move { match_pattern(&pattern, vec![b'7'; 900_000], &bounds).await }
        });
        let niceness = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat")).ok()?;
            let (before, after) = stat.rsplit_once(')')?;
            before.ends_with("(xvs-search").then(|| after.split_whitespace().nth(16).unwrap().to_owned())
        };
        let search = || {
            fs::read_dir("/proc/self/task").unwrap().flatten().filter_map(niceness).any(|nice| nice == "19")
        };
        until(search).await;
        let why = searched.await.unwrap().unwrap_err().to_string();
        assert_eq!(why, "response received, but the search did not end for `\\d+[a-f]` within 1s");
        // It has ended: its permit is free again.
        drop(pattern.permit().acquire_owned().await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_ends_by_its_length_or_with_the_connection() {
        let known = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        assert_eq!(checked_open(&url(), known).await, Ok(()));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        assert_eq!(checked_open(&url(), chunked).await, Ok(()));
        let unknown = "HTTP/1.1 200 OK\r\n\r\nok";
        assert_eq!(checked(&url(), unknown).await, Ok(()));
        let why = checked_open(&url(), unknown).await;
        assert_failed(why, "the response did not end within 5s");
        let short = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok";
        let why = checked(&url(), short).await.unwrap_err();
        assert!(why.starts_with("the response broke off: "), "{why}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_sends_a_byte_a_second_or_nothing_fails_at_the_deadline() {
        let serve = async |mut stream: DuplexStream| {
            for byte in b"HTTP/1.0 200 OK\r\n\r\nok" {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if stream.write_u8(*byte).await.is_err() {
                    return;
                }
            }
        };
        assert_failed(
            checked_by(Object { url: &url(), prepared: &prepared(&url()) }, serve).await,
            "connected, but no response within 5s",
        );
        assert_failed(checked_open(&url(), "").await, "connected, but no response within 5s");
    }

    #[tokio::test(start_paused = true)]
    async fn an_endless_response_is_read_until_the_deadline_and_not_kept() {
        let whole = with_pattern("^b");
        let block = vec![b'a'; 64 << 10];
        let serve = async |mut stream: DuplexStream| {
            let mut sent = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await;
            while sent.is_ok() {
                sent = stream.write_all(&block).await;
                tokio::time::advance(Duration::from_millis(1)).await;
            }
        };
        assert_failed(
            checked_by(Object { url: &whole, prepared: &prepared(&whole) }, serve).await,
            "the response did not end within 5s",
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_invalid_response_fails_with_what_was_seen() {
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
            assert_failed(checked(&url(), answer).await, &format!("connected, but no response: {why}"));
        }
    }

    #[tokio::test]
    async fn a_server_is_probed_over_tcp_and_one_that_refuses_fails() {
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
        // The future of a probe is `Send`.
        let probing: Pin<Box<dyn Future<Output = ProbeResult> + Send>> =
            Box::pin(probe(&target, &http, &prepared, 0, deadline));
        let (answer, served) = tokio::join!(probing, served);
        assert_eq!(answer, ProbeResult::Passed(0));
        drop(served);
        drop(listener);
        assert!(matches!(probe(&target, &http, &prepared, 0, deadline).await, ProbeResult::Failed(_)));
    }
}
