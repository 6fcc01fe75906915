//! The HTTP server of metrics: `GET /metrics` for Prometheus, and the status page for a browser if it is on.
//!
//! One thread serves all clients; a waiting client does not delay others. The number of clients, the time for a
//! request's headers and the time for a whole request are limited; a client has one request. With too many clients the
//! oldest one is disconnected: a scrape is short, so the oldest client is most likely a slow one. The thread builds the
//! page for each request, piece by piece as the client reads it, so a client costs one piece of memory. A TLS handshake
//! has the time limit of headers. The thread's niceness lets workers on the same core run first. Neither the control
//! thread nor a worker is involved; if the thread panics, forwarding continues. Not here: certificate and token
//! (`admission.rs`), the content of the pages ([`crate::metrics`], [`crate::status::page`]).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use http_body_util::{Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderValue, REFERRER_POLICY,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::nice;
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::select;
use tokio::sync::oneshot;
use tokio::task::JoinHandle as Task;
use tokio::time::{sleep, timeout};

use crate::metrics::admission::Admission;
use crate::rights::seccomp::{Kind, limit_thread};
use crate::status::page::{Document, FILE};
use crate::threads::spawn_stoppable;

/// Why metrics cannot be served.
#[derive(Debug, Error)]
pub enum ExporterError {
    /// Another socket listens there.
    #[error(
        "metrics_address {0}: in use by another program; `ss -ltnp` shows which: stop it, or choose another port"
    )]
    InUse(SocketAddr),
    /// The system refuses the address, or a resource.
    #[error(
        "metrics_address {address}: {error}; use an address of this machine and a free port, such as 127.0.0.1:9112"
    )]
    System {
        /// The configured address.
        address: SocketAddr,
        /// The OS error.
        error: io::Error,
    },
}

/// A bound address that is not served yet.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    runtime: Runtime,
}

impl Listener {
    /// Binds an address. Clients that connect wait until [`Self::serve`].
    ///
    /// # Errors
    /// [`ExporterError`]; nothing stays open.
    pub fn bind(address: SocketAddr) -> Result<Self, ExporterError> {
        Self::try_bind(address).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => ExporterError::InUse(address),
            _ => ExporterError::System { address, error },
        })
    }

    fn try_bind(address: SocketAddr) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind(address))?;
        Ok(Self { listener, runtime })
    }

    /// The bound address.
    ///
    /// # Errors
    /// The OS error.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Starts serving the pieces of `metrics`, and the status page, on a separate thread, to clients that the current
    /// admission admits.
    ///
    /// # Errors
    /// The OS error if the thread cannot be created.
    pub fn serve<P: Pieces>(
        self,
        metrics: impl Fn() -> P + Send + Sync + 'static,
        status: StatusPage,
        admission: Arc<ArcSwap<Admission>>,
    ) -> io::Result<Exporter> {
        let (stop, stopped) = oneshot::channel::<()>();
        let Self { listener, runtime } = self;
        let thread = spawn_stoppable("xvs-metrics", move || {
            // On Linux niceness belongs to the thread, and raising it is always permitted.
            let _ = nice(NICENESS);
            limit_thread(Kind::Reader);
            // Ends when the sender is dropped; the clients end with the runtime. `accept` is not spawned as a task,
            // because the panic of a task would be lost.
            runtime.block_on(async {
                select! {
                    () = accept(listener, Arc::new(Pages { metrics, status }), admission) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Exporter { stop: Some(stop), thread: Some(thread) })
    }
}

/// A running exporter. Dropping it ends it and closes all its clients.
#[derive(Debug)]
pub struct Exporter {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Exporter {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread itself has reported a panic.
            let _ = thread.join();
        }
    }
}

/// The status page.
pub struct StatusPage {
    /// Whether it is served.
    pub is_on: Arc<AtomicBool>,
    /// A document for a query of the URL.
    pub document: Box<MakeDocument>,
}

/// Makes a document for a query of the URL.
pub type MakeDocument = dyn Fn(Document, &str) -> Bytes + Send + Sync;

/// The pages that are served.
struct Pages<M> {
    metrics: M,
    status: StatusPage,
}

/// A page in pieces.
pub trait Pieces: Iterator<Item = String> + Send + Unpin + 'static {}

impl<I: Iterator<Item = String> + Send + Unpin + 'static> Pieces for I {}

/// A page as a body of hyper: a piece is built when there is room to send it.
struct Page<P>(P);

impl<P: Pieces> Body for Page<P> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.get_mut().0.next().map(|piece| Ok(Frame::data(piece.into()))))
    }
}

async fn accept<P: Pieces>(
    listener: TcpListener,
    pages: Arc<Pages<impl Fn() -> P + Send + Sync + 'static>>,
    admission: Arc<ArcSwap<Admission>>,
) {
    let mut clients: VecDeque<Task<()>> = VecDeque::with_capacity(CLIENTS);
    let mut refused = false;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !refused {
                    tracing::warn!(%error, "cannot accept clients of metrics; trying again until it works");
                }
                refused = true;
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        refused = false;
        clients.retain(|client| !client.is_finished());
        if clients.len() == CLIENTS
            && let Some(oldest) = clients.pop_front()
        {
            oldest.abort();
            tracing::debug!("closed the oldest client of metrics for a new one");
        }
        let pages = pages.clone();
        let admission = admission.load_full();
        clients.push_back(tokio::spawn(async move {
            if timeout(REQUEST_TIMEOUT, client(stream, &pages, &admission)).await.is_err() {
                tracing::debug!("a client of metrics was too slow");
            }
        }));
    }
}

/// Answers one request, after a TLS handshake if there is a certificate.
async fn client<P: Pieces>(stream: TcpStream, pages: &Pages<impl Fn() -> P>, admission: &Admission) {
    let Some(tls) = &admission.tls else { return respond(stream, pages, admission).await };
    match timeout(HEADERS_TIMEOUT, tls.accept(stream)).await.map_err(io::Error::from).and_then(|done| done) {
        Ok(stream) => respond(stream, pages, admission).await,
        Err(error) => tracing::debug!(%error, "the TLS handshake of a client of metrics"),
    }
}

async fn respond<P: Pieces>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    pages: &Pages<impl Fn() -> P>,
    admission: &Admission,
) {
    let answer = service_fn(|request| ready(Ok::<_, Infallible>(answer(&request, pages, admission))));
    let mut http = http1::Builder::new();
    http.keep_alive(false).max_buf_size(REQUEST_MAX_BYTES);
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS_TIMEOUT);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), answer).await {
        tracing::debug!(%error, "a client of metrics");
    }
}

fn answer<P: Pieces>(
    request: &Request<Incoming>,
    Pages { metrics, status }: &Pages<impl Fn() -> P>,
    admission: &Admission,
) -> Response<Either<Page<P>, Full<Bytes>>> {
    let mut headers = HeaderMap::new();
    let is_on = status.is_on.load(Ordering::Relaxed);
    let path = request.uri().path();
    let document = match path {
        "/status.json" => Some(Document::Status),
        "/history.json" => Some(Document::LastHour),
        _ => None,
    };
    let exists = path == "/metrics" || is_on && (path == "/" || document.is_some());
    let (code, kind, body) = match path {
        _ if !admission.admit(request.headers()) => {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"xvsd\""));
            if is_on {
                // A browser asks its user for a name and a password.
                headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"xvsd\""));
            }
            (StatusCode::UNAUTHORIZED, PLAIN, text(NO_TOKEN))
        }
        _ if exists && ![Method::GET, Method::HEAD].contains(request.method()) => {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            (StatusCode::METHOD_NOT_ALLOWED, PLAIN, text("only GET is answered\n"))
        }
        _ if exists && !admission.knows_host(request.headers()) => {
            (StatusCode::MISDIRECTED_REQUEST, PLAIN, text(NOT_ITS_NAME))
        }
        "/metrics" => (StatusCode::OK, PLAIN, Either::Left(Page(metrics()))),
        "/" if is_on => {
            headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
            headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
            (StatusCode::OK, "text/html; charset=utf-8", text(FILE))
        }
        _ if is_on => match document {
            Some(document) => {
                let bytes = (status.document)(document, request.uri().query().unwrap_or_default());
                (StatusCode::OK, "application/json", Either::Right(Full::new(bytes)))
            }
            None => (
                StatusCode::NOT_FOUND,
                PLAIN,
                text("xvsd's status page is at /, its metrics are at /metrics\n"),
            ),
        },
        _ => (StatusCode::NOT_FOUND, PLAIN, text("xvsd's metrics are at /metrics\n")),
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let mut response = Response::new(body);
    (*response.status_mut(), *response.headers_mut()) = (code, headers);
    response
}

fn text<P>(text: &'static str) -> Either<Page<P>, Full<Bytes>> {
    Either::Right(Full::from(text))
}

/// The response to a client without the token.
const NO_TOKEN: &str =
    "the token of metrics_token_file is needed: as bearer token, or as password of the user xvs\n";

/// The response to a request for another host.
const NOT_ITS_NAME: &str = "this is not a name of the director: use its address, or add the name to status_page_names \
                            of xvs.toml and reload\n";

const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The permissions of the status page in a browser: to run the script and use the style in the file, and to fetch from
/// the director.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash_of("script"),
        hash_of("style")
    );
    HeaderValue::try_from(policy).expect("it is ASCII")
});

/// The digest of the content of a tag of the status page.
fn hash_of(tag: &str) -> String {
    let (_, rest) = FILE.split_once(&format!("<{tag}>")).expect("the file has the tag");
    let (content, _) = rest.split_once(&format!("</{tag}>")).expect("the file has the end of the tag");
    BASE64_STANDARD.encode(Sha256::digest(content))
}

/// The largest number of clients.
pub(crate) const CLIENTS: usize = 128;
/// The time limit for a request's headers.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);
/// The time limit for a request with its response. Prometheus' default timeout is 10 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// A worker that shares its core with this thread gets nine tenths of the core.
const NICENESS: i32 = 10;
/// The longest request; the smallest value that hyper allows.
const REQUEST_MAX_BYTES: usize = 8192;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::{fs, iter};

    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use rustix::process::getpriority_process;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::ServerName;
    use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
    use xvs_ctl::config::Config;

    use crate::metrics::exporter::*;

    fn served<P: Pieces>(page: impl Fn() -> P + Send + Sync + 'static) -> (Exporter, SocketAddr) {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.address().unwrap();
        (listener.serve(page, status_page(false), Arc::default()).unwrap(), address)
    }

    /// A status page whose document is the query.
    fn status_page(is_on: bool) -> StatusPage {
        let document = |document, query: &str| match document {
            Document::Status => format!("[{query}]").into(),
            Document::LastHour => format!("[LastHour {query}]").into(),
        };
        StatusPage { is_on: Arc::new(is_on.into()), document: Box::new(document) }
    }

    fn two_pieces() -> impl Pieces {
        ["the ", "page\n"].into_iter().map(str::to_owned)
    }

    fn answer(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn only_get_of_metrics_returns_the_page_and_a_silent_client_delays_no_other() {
        let (_exporter, address) = served(two_pieces);
        let _silent = TcpStream::connect(address).unwrap();
        let mut slow = TcpStream::connect(address).unwrap();
        slow.write_all(b"GET /metr").unwrap();
        let chunked = "\r\n\r\n4\r\nthe \r\n5\r\npage\n\r\n0\r\n\r\n";
        let nothing = "\r\n\r\n";
        for (line, status, end) in [
            ("GET /metrics HTTP/1.1", "HTTP/1.1 200", chunked),
            ("GET http://director:9112/metrics HTTP/1.1", "HTTP/1.1 200", chunked),
            ("GET /metrics?x=1 HTTP/1.0", "HTTP/1.0 200", "\r\n\r\nthe page\n"),
            ("HEAD /metrics HTTP/1.1", "HTTP/1.1 200", nothing),
            ("HEAD /metrics HTTP/1.0", "HTTP/1.0 200", nothing),
            ("GET / HTTP/1.1", "HTTP/1.1 404", "at /metrics\n"),
            ("GET /metrics/x HTTP/1.1", "HTTP/1.1 404", "at /metrics\n"),
            ("OPTIONS * HTTP/1.1", "HTTP/1.1 404", "at /metrics\n"),
            ("POST /metrics HTTP/1.1", "HTTP/1.1 405", "only GET is answered\n"),
            ("GET /metrics HTTP/2.0", "HTTP/1.1 400", nothing),
            ("nonsense", "HTTP/1.1 400", nothing),
        ] {
            let text = answer(address, &format!("{line}\r\nHost: 192.0.2.1\r\n\r\n"));
            assert!(text.starts_with(status) && text.ends_with(end), "{line}: {text}");
        }
    }

    #[test]
    fn the_status_page_is_there_only_if_it_is_on_and_its_policy_has_the_hashes_of_its_script_and_style() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.address().unwrap();
        let status = status_page(false);
        let is_on = status.is_on.clone();
        let _exporter = listener.serve(two_pieces, status, Arc::default()).unwrap();
        for path in ["/", "/status.json", "/history.json"] {
            for method in ["GET", "POST"] {
                let text = answer(address, &format!("{method} {path} HTTP/1.0\r\n\r\n"));
                assert!(text.starts_with("HTTP/1.0 404") && text.ends_with("at /metrics\n"), "{text}");
            }
        }
        is_on.store(true, Ordering::Relaxed);
        let nothing = "\r\n\r\n";
        for (line, status, kind, end) in [
            ("GET /", 200, "text/html; charset=utf-8", "</html>\n"),
            ("GET /?search=80", 200, "text/html; charset=utf-8", "</html>\n"),
            ("HEAD /", 200, "text/html; charset=utf-8", nothing),
            ("GET /status.json", 200, "application/json", "\r\n\r\n[]"),
            ("GET /status.json?search=a%20b&page=2", 200, "application/json", "[search=a%20b&page=2]"),
            ("HEAD /status.json", 200, "application/json", nothing),
            ("GET /history.json?page=2", 200, "application/json", "\r\n\r\n[LastHour page=2]"),
            ("POST /", 405, PLAIN, "only GET is answered\n"),
            ("DELETE /status.json", 405, PLAIN, "only GET is answered\n"),
            ("GET /metrics", 200, PLAIN, "the page\n"),
            ("GET /favicon.ico", 404, PLAIN, "its metrics are at /metrics\n"),
        ] {
            let text = answer(address, &format!("{line} HTTP/1.0\r\n\r\n"));
            let begin = format!("HTTP/1.0 {status} ");
            assert!(text.starts_with(&begin) && text.ends_with(end), "{line}: {text}");
            for header in [format!("content-type: {kind}"), "cache-control: no-store".to_owned()] {
                assert!(text.contains(&format!("\r\n{header}\r\n")), "{line}: no {header}");
            }
        }
        let text = answer(address, "GET / HTTP/1.0\r\n\r\n");
        let (head, file) = text.split_once("\r\n\r\n").unwrap();
        let policy = head.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).unwrap();
        assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
        for tag in ["script", "style"] {
            let (before, rest) = file.split_once(&format!("<{tag}>")).unwrap();
            let (own, behind) = rest.split_once(&format!("</{tag}>")).unwrap();
            assert!(![before, behind].concat().contains(&format!("<{tag}")), "more than one {tag}");
            let hash = BASE64_STANDARD.encode(Sha256::digest(own));
            assert!(policy.contains(&format!("{tag}-src 'sha256-{hash}'")), "{policy}");
        }
        for from_elsewhere in ["src=", "http://", "https://", "@import", "url(", " style=", " onclick="] {
            let found = file.matches(from_elsewhere).count();
            // The name of the namespace of SVG is no address that a browser fetches.
            let names = file.matches("http://www.w3.org/2000/svg").count();
            let expected = if from_elsewhere == "http://" { names } else { 0 };
            assert_eq!(found, expected, "{from_elsewhere}");
        }
        assert!(!file.contains("innerHTML") && !file.contains("document.write"));
    }

    #[test]
    fn without_token_and_tls_all_pages_are_for_names_of_the_director_alone() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.address().unwrap();
        let config: Config = toml::from_str("status_page_names = [\"LB1.example.com\"]").unwrap();
        let admission = Arc::new(ArcSwap::from_pointee(Admission::read(&config).unwrap()));
        let _exporter = listener.serve(two_pieces, status_page(true), admission).unwrap();
        let code = |path: &str, host: &str| {
            let text = answer(address, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            let code = text.split(' ').nth(1).unwrap().to_owned();
            assert!(code != "421" || text.contains("status_page_names of xvs.toml"), "{text}");
            code
        };
        let own = [
            xvs_ctl::config::fleet::host_name(),
            "lb1.example.com".to_owned(),
            "lb1.EXAMPLE.com.:9112".to_owned(),
        ];
        let numbers =
            ["localhost", "LOCALHOST:9112", "192.0.2.1", "192.0.2.1:80", "[::1]:9112", "[2001:db8::1]"];
        let others =
            ["attacker.example", "lb1.attacker.example:9112", "192.0.2.1.attacker.example", "", "[attacker]"];
        for path in ["/", "/status.json", "/history.json", "/metrics"] {
            for host in numbers.into_iter().chain(own.iter().map(String::as_str)) {
                assert_eq!(code(path, host), "200", "{host}");
            }
            for host in others {
                assert_eq!(code(path, host), "421", "{host}");
            }
        }
    }

    #[test]
    fn a_browser_is_asked_for_the_user_xvs_and_the_token_as_password() {
        let secured = Secured::new("browser");
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.address().unwrap();
        let admission = Arc::new(ArcSwap::from_pointee(secured.admission()));
        let _exporter = listener.serve(two_pieces, status_page(true), admission).unwrap();
        let basic = |user: &str| format!("Authorization: Basic {}\r\n", BASE64_STANDARD.encode(user));
        let text = secured.answer(address, &basic(&format!("xvs:{TOKEN}"))).unwrap();
        assert!(text.starts_with("HTTP/1.0 200") && text.ends_with("the page\n"), "{text}");
        let wrong = [format!("root:{TOKEN}"), "xvs:".to_owned(), "xvs".to_owned(), format!("xvs:{TOKEN}0")];
        for header in wrong.iter().map(|user| basic(user)).chain([String::new()]) {
            let text = secured.answer(address, &header).unwrap();
            let asks = text.contains("www-authenticate: Basic realm=\"xvsd\"\r\n");
            assert!(text.starts_with("HTTP/1.0 401") && asks, "{header}: {text}");
        }
    }

    #[test]
    fn a_request_that_is_too_long_or_has_too_many_headers_is_refused_and_a_body_is_not_read() {
        let (_exporter, address) = served(two_pieces);
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(REQUEST_MAX_BYTES));
        assert!(answer(address, &long).starts_with("HTTP/1.1 431"));
        let path = format!("GET /{}", "x".repeat(REQUEST_MAX_BYTES));
        assert!(answer(address, &path).starts_with("HTTP/1.1 4"));
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(200));
        assert!(answer(address, &many).starts_with("HTTP/1.1 431"));
        let body = "POST /metrics HTTP/1.1\r\nContent-Length: 1000000000000\r\n\r\n";
        assert!(answer(address, body).starts_with("HTTP/1.1 405"));
    }

    #[test]
    fn with_too_many_clients_the_oldest_is_closed_so_slow_ones_block_no_scrape() {
        let (_exporter, address) = served(two_pieces);
        let mut slow: Vec<_> = (0..2 * CLIENTS)
            .map(|_| {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(b"GET /metrics HTTP/1.1\r\nX").unwrap();
                stream
            })
            .collect();
        assert!(answer(address, "GET /metrics HTTP/1.0\r\n\r\n").ends_with("page\n"));
        // It was closed, whether or not its data had been read.
        assert!(!matches!(slow[0].read(&mut [0]), Ok(1..)));
        assert_eq!(slow.len(), 2 * CLIENTS);
    }

    #[test]
    fn pieces_that_a_client_does_not_read_are_not_built_and_others_are_served_meanwhile() {
        const PIECES: usize = 100_000;
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let page = || {
            let piece = || {
                MADE.fetch_add(1, Ordering::Relaxed);
                "x".repeat(1 << 16)
            };
            iter::repeat_with(piece).take(PIECES)
        };
        let (_exporter, address) = served(page);
        let mut greedy: Vec<_> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
        for stream in &mut greedy {
            stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
            stream.read_exact(&mut [0; 1000]).unwrap();
        }
        assert!(answer(address, "GET / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 404"));
        // Socket buffers hold some megabytes.
        assert!(MADE.load(Ordering::Relaxed) < PIECES / 10);
    }

    /// The files of a certificate for addresses of this machine, its key and a token; and a client that trusts it.
    struct Secured {
        folder: PathBuf,
        client: Arc<ClientConfig>,
    }

    const TOKEN: &str = "0a1b2c";

    impl Secured {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("xvs-metrics-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            let mut roots = RootCertStore::empty();
            let CertifiedKey { cert, signing_key } =
                generate_simple_self_signed(["127.0.0.1".to_owned(), "::1".to_owned()]).unwrap();
            roots.add(cert.der().clone()).unwrap();
            let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
            let client = client.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
            let this = Self { folder, client: Arc::new(client.with_no_client_auth()) };
            for (name, text) in
                [("cert", cert.pem()), ("key", signing_key.serialize_pem()), ("token", format!("{TOKEN}\n"))]
            {
                fs::write(this.folder.join(name), text).unwrap();
                fs::set_permissions(this.folder.join(name), Permissions::from_mode(0o640)).unwrap();
            }
            this
        }

        fn admission(&self) -> Admission {
            let file = |name: &str| Some(self.folder.join(name));
            let config = Config {
                metrics_certificate: file("cert"),
                metrics_private_key: file("key"),
                metrics_token_file: file("token"),
                ..Config::default()
            };
            Admission::read(&config).unwrap()
        }

        fn served(&self, address: &str) -> (Exporter, SocketAddr) {
            let listener = Listener::bind(address.parse().unwrap()).unwrap();
            let address = listener.address().unwrap();
            let admission = Arc::new(ArcSwap::from_pointee(self.admission()));
            (listener.serve(two_pieces, status_page(false), admission).unwrap(), address)
        }

        /// The response by TLS to a request with these headers.
        fn answer(&self, address: SocketAddr, headers: &str) -> io::Result<String> {
            let name = ServerName::from(address.ip());
            let session = ClientConnection::new(self.client.clone(), name).unwrap();
            let mut stream = StreamOwned::new(session, TcpStream::connect(address)?);
            stream.write_all(format!("GET /metrics HTTP/1.0\r\n{headers}\r\n").as_bytes())?;
            let mut text = String::new();
            // Fails without close_notify, which marks the end of a whole page.
            stream.read_to_string(&mut text)?;
            Ok(text)
        }
    }

    impl Drop for Secured {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.folder).unwrap();
        }
    }

    #[test]
    fn by_tls_a_client_with_the_token_gets_the_page_and_one_without_it_is_refused() {
        let secured = Secured::new("token");
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (_exporter, address) = secured.served(address);
            for right in [format!("Bearer {TOKEN}"), format!("bearer  {TOKEN} ")] {
                let text = secured.answer(address, &format!("Authorization: {right}\r\n")).unwrap();
                assert!(text.starts_with("HTTP/1.0 200") && text.ends_with("the page\n"), "{right}: {text}");
            }
            for wrong in [
                String::new(),
                "Authorization: Bearer\r\n".to_owned(),
                "Authorization: Bearer \r\n".to_owned(),
                format!("Authorization: {TOKEN}\r\n"),
                format!("Authorization: Basic {TOKEN}\r\n"),
                format!("Authorization: Bearer {TOKEN}0\r\n"),
                format!("Authorization: Bearer {}\r\n", &TOKEN[1..]),
                format!("Authorization: Bearer {}\r\n", TOKEN.to_uppercase()),
                format!("Authorization: Bearer x\r\nAuthorization: Bearer {TOKEN}\r\n"),
                "Authorization: Bearer \u{e9}\r\n".to_owned(),
            ] {
                let text = secured.answer(address, &wrong).unwrap();
                let header = "www-authenticate: Bearer realm=\"xvsd\"\r\n";
                let is_refused = text.starts_with("HTTP/1.0 401") && text.contains(header);
                assert!(is_refused && !text.contains("the page"), "{wrong}: {text}");
            }
            let plain = TcpStream::connect(address).and_then(|mut stream| {
                stream.write_all(
                    format!("GET /metrics HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\n\r\n").as_bytes(),
                )?;
                let mut bytes = Vec::new();
                // Whether it ends by a TLS alert or a reset.
                let _ = stream.read_to_end(&mut bytes);
                Ok(bytes)
            });
            assert!(!plain.unwrap().starts_with(b"HTTP"));
        }
    }

    #[test]
    fn clients_that_do_not_begin_or_end_their_handshake_hold_no_other_client() {
        let secured = Secured::new("silent");
        let (_exporter, address) = secured.served("127.0.0.1:0");
        let silent: Vec<_> = (0..2 * CLIENTS)
            .map(|number| {
                let mut stream = TcpStream::connect(address).unwrap();
                // The first bytes of a ClientHello. An early one may be closed already.
                let _ = stream.write_all(&[0x16, 3, 1, 2, 0][..number % 6]);
                stream
            })
            .collect();
        let text = secured.answer(address, &format!("Authorization: Bearer {TOKEN}\r\n")).unwrap();
        assert!(text.ends_with("the page\n"), "{text}");
        assert_eq!(silent.len(), 2 * CLIENTS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_without_a_tls_handshake_is_closed() {
        let secured = Secured::new("closed");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut silent = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        // The paused clock advances while no task runs.
        let pages = Pages { metrics: two_pieces, status: status_page(false) };
        client(stream, &pages, &secured.admission()).await;
        assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn pages_are_built_by_a_thread_with_a_higher_niceness_than_workers() {
        let page = || iter::once(getpriority_process(None).unwrap().to_string());
        let (_exporter, address) = served(page);
        let text = answer(address, "GET /metrics HTTP/1.0\r\n\r\n");
        let niceness = (getpriority_process(None).unwrap() + NICENESS).min(19);
        assert!(text.ends_with(&format!("\r\n\r\n{niceness}")), "{text}");
    }

    #[test]
    fn an_ipv6_address_is_served() {
        let listener = Listener::bind("[::1]:0".parse().unwrap()).unwrap();
        let address = listener.address().unwrap();
        let _exporter = listener.serve(two_pieces, status_page(false), Arc::default()).unwrap();
        assert!(answer(address, "GET /metrics HTTP/1.0\r\n\r\n").ends_with("page\n"));
    }

    #[test]
    fn an_address_in_use_is_refused_by_name_and_free_again_after_the_exporter_is_dropped() {
        let (exporter, address) = served(two_pieces);
        let error = Listener::bind(address).unwrap_err();
        assert!(matches!(error, ExporterError::InUse(busy) if busy == address));
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        let open = TcpStream::connect(address).unwrap();
        drop(exporter);
        drop(open);
        assert!(Listener::bind(address).is_ok());
    }

    #[test]
    fn an_address_of_another_machine_is_refused_by_name() {
        let address = "192.0.2.1:9112".parse().unwrap();
        let error = Listener::bind(address).unwrap_err().to_string();
        assert!(error.contains("192.0.2.1:9112") && error.contains("of this machine"), "{error}");
    }
}
