//! Where Prometheus scrapes: `GET /metrics` over HTTP.
//!
//! One thread for all clients, none of whose waiting is another's: so many at a time, each with one request and so long
//! for it, headers and the taking of the answer included; who comes meanwhile waits in the kernel's queue. The page is made
//! on this thread, anew for each request. No control thread and no worker has a part in it; if it ends by a fault,
//! packets go on. Without names or passwords: whoever reaches the address may read. Not here: what the page says
//! ([`crate::metrics`]).

use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

/// Why nobody can scrape.
#[derive(Debug, Error)]
pub enum ExporterError {
    /// Somebody listens there.
    #[error(
        "metrics_address {0}: in use by another program; `ss -ltnp` shows which: stop it, or choose another port"
    )]
    InUse(SocketAddr),
    /// The system refuses.
    #[error(
        "metrics_address {address}: {error}; name an address of this machine and a free port, as 127.0.0.1:9112"
    )]
    System {
        /// Where it was to listen.
        address: SocketAddr,
        /// The system's word.
        error: io::Error,
    },
}

/// An address that is taken, and not yet answered at.
#[derive(Debug)]
pub struct Listener {
    listener: tokio::net::TcpListener,
    runtime: Runtime,
}

impl Listener {
    /// Takes an address. Who connects waits until [`Self::serve`].
    ///
    /// # Errors
    /// [`ExporterError`]; nothing is left behind then.
    pub fn bind(address: SocketAddr) -> Result<Self, ExporterError> {
        let bind = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let entered = runtime.enter();
            let listener = tokio::net::TcpListener::from_std(listener)?;
            drop(entered);
            Ok(Self { listener, runtime })
        };
        bind().map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => ExporterError::InUse(address),
            _ => ExporterError::System { address, error },
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system's word.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers from now on with what `page` gives, on a thread of its own.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub fn serve(self, page: impl Fn() -> String + Send + Sync + 'static) -> io::Result<Exporter> {
        let (stop, stopped) = oneshot::channel::<()>();
        let Self { listener, runtime } = self;
        let run = move || {
            runtime.spawn(accept(listener, Arc::new(page)));
            // Told to stop by the other end's being dropped; the clients end with the runtime.
            let _ = runtime.block_on(stopped);
        };
        let thread = thread::Builder::new().name("xvs-metrics".to_owned()).spawn(run)?;
        Ok(Exporter { stop: Some(stop), thread: Some(thread) })
    }
}

/// A running exporter; dropped, it ends with all its clients.
#[derive(Debug)]
pub struct Exporter {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Exporter {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its own thread.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, page: Arc<impl Fn() -> String + Send + Sync + 'static>) {
    let places = Arc::new(Semaphore::new(CLIENTS));
    // The semaphore is never closed.
    while let Ok(place) = places.clone().acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a client of metrics");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let page = page.clone();
        tokio::spawn(async move {
            if timeout(PATIENCE, client(stream, &*page)).await.is_err() {
                tracing::debug!("a client of metrics was too slow");
            }
            drop(place);
        });
    }
}

/// Answers one request.
async fn client(stream: TcpStream, page: &impl Fn() -> String) {
    let answer = service_fn(|request| ready(Ok::<_, Infallible>(answer(&request, page))));
    let mut http = http1::Builder::new();
    http.keep_alive(false).max_buf_size(REQUEST_MAX_BYTES);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), answer).await {
        tracing::debug!(%error, "a client of metrics");
    }
}

fn answer(request: &Request<Incoming>, page: &impl Fn() -> String) -> Response<Full<Bytes>> {
    let (status, text) = match (request.uri().path(), request.method()) {
        ("/metrics", &Method::GET | &Method::HEAD) => (StatusCode::OK, page()),
        ("/metrics", _) => (StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "xvsd's metrics are at /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

/// Clients at one time.
const CLIENTS: usize = 16;
/// How long one may take for everything.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest request; the least that hyper takes.
const REQUEST_MAX_BYTES: usize = 8192;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    fn served() -> (Exporter, SocketAddr) {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.address().unwrap();
        (listener.serve(|| "the page\n".to_owned()).unwrap(), address)
    }

    fn answer(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn only_get_of_metrics_has_the_page_and_a_client_that_is_silent_keeps_nobody_waiting() {
        let (_exporter, address) = served();
        let _silent = TcpStream::connect(address).unwrap();
        let mut slow = TcpStream::connect(address).unwrap();
        slow.write_all(b"GET /metr").unwrap();
        for (line, status, has_page) in [
            ("GET /metrics HTTP/1.1", "HTTP/1.1 200", true),
            ("GET /metrics?x=1 HTTP/1.0", "HTTP/1.0 200", true),
            ("HEAD /metrics HTTP/1.1", "HTTP/1.1 200", false),
            ("GET / HTTP/1.1", "HTTP/1.1 404", false),
            ("GET /metrics/x HTTP/1.1", "HTTP/1.1 404", false),
            ("POST /metrics HTTP/1.1", "HTTP/1.1 405", false),
            ("nonsense", "HTTP/1.1 400", false),
        ] {
            let text = answer(address, &format!("{line}\r\nHost: xvs\r\n\r\n"));
            assert!(text.starts_with(status) && text.contains("the page\n") == has_page, "{line}: {text}");
        }
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(REQUEST_MAX_BYTES));
        assert!(answer(address, &long).starts_with("HTTP/1.1 431"));
    }

    #[test]
    fn a_busy_address_is_refused_by_its_name_and_free_again_when_the_exporter_is_gone() {
        let (exporter, address) = served();
        let error = Listener::bind(address).unwrap_err();
        assert!(matches!(error, ExporterError::InUse(busy) if busy == address));
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        let open = TcpStream::connect(address).unwrap();
        drop(exporter);
        drop(open);
        assert!(Listener::bind(address).is_ok());
    }
}
