//! The client for `xvs doctor --fleet`: reads `/status.json` from directors, over HTTP or HTTPS.
//!
//! All directors are queried at once, with five seconds for each request. All pages of a document are read.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use xvs_model::foreign_text::ForeignText;

use crate::doctor::fleet::{Asked, NoPage, Page};

/// The directors, and the settings of the requests to them.
#[derive(Debug, Args)]
pub(super) struct Fleet {
    /// Compare these directors of a fleet instead: each by the HOST, HOST:PORT [default: 9112] or URL of its status
    /// page
    #[arg(long, value_name = "DIRECTOR", num_args = 2..)]
    #[arg(conflicts_with_all = ["interfaces", "addresses", "directors", "config"])]
    pub fleet: Vec<String>,
    /// The token of the directors' metrics
    #[arg(long, value_name = "FILE", requires = "fleet")]
    token_file: Option<PathBuf>,
    /// The certificate authority of https:// directors [default: the system's authorities]
    #[arg(long, value_name = "FILE", requires = "fleet")]
    ca_file: Option<PathBuf>,
}

impl Fleet {
    /// The page of each director with all its services, or why there is none.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn fetch(&self) -> Result<Vec<Asked>, Box<dyn Error>> {
        let mut token = None;
        if let Some(path) = &self.token_file {
            let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            token = Some(format!("Bearer {}", text.trim()));
        }
        let access = Arc::new(Access { token, tls: Arc::new(tls(self.ca_file.as_ref())?) });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("sockets: {error}"))?;
        Ok(runtime.block_on(async {
            let asked: Vec<_> = self
                .fleet
                .iter()
                .map(|name| (name.clone(), tokio::spawn(ask(name.clone(), access.clone()))))
                .collect();
            let mut pages = Vec::new();
            for (name, page) in asked {
                pages.push((name, page.await.unwrap_or_else(|fault| Err(fault.into()))));
            }
            pages
        }))
    }
}

/// The credentials sent to all directors.
struct Access {
    /// The value of the header.
    token: Option<String>,
    tls: Arc<ClientConfig>,
}

/// The configuration of TLS with these authorities.
fn tls(ca_file: Option<&PathBuf>) -> Result<ClientConfig, Box<dyn Error>> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => add(&mut roots, path).map_err(|error| format!("{}: {error}", path.display()))?,
        None => _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
    }
    Ok(ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring supports TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Adds the authorities of a file.
fn add(roots: &mut RootCertStore, file: &Path) -> Result<(), Box<dyn Error>> {
    for certificate in CertificateDer::pem_file_iter(file)? {
        roots.add(certificate?)?;
    }
    Ok(())
}

async fn ask(director: String, access: Arc<Access>) -> Result<Page, NoPage> {
    let url: Uri = if director.contains("://") { director } else { format!("http://{director}") }
        .parse()
        .map_err(|error| format!("neither HOST:PORT nor a URL: {error}"))?;
    let mut left = BYTES_MAX;
    let mut page = fetch(&url, 1, &access, &mut left).await?;
    for number in 2..=page.pages {
        page.services.extend(fetch(&url, number, &access, &mut left).await?.services);
    }
    Ok(page)
}

/// One page of the services. `left` are the bytes that may still be read.
async fn fetch(url: &Uri, number: usize, access: &Access, left: &mut usize) -> Result<Page, NoPage> {
    let text = timeout(PATIENCE, read(url, number, access))
        .await
        .map_err(|_| format!("no answer within {PATIENCE:?}{CHECK}"))??;
    *left = left
        .checked_sub(text.len())
        .ok_or_else(|| format!("its /status.json has more than {BYTES_MAX} bytes; is it a director?"))?;
    Ok(serde_json::from_slice(&text).map_err(|error| {
        format!(
            "its /status.json is not one of this version of xvs: {}; install one version",
            ForeignText::from(error.to_string())
        )
    })?)
}

async fn read(url: &Uri, number: usize, access: &Access) -> Result<Vec<u8>, NoPage> {
    let host = url.host().ok_or("the URL has no host")?;
    // An IPv6 address of a URL is in brackets.
    let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = url.port_u16().unwrap_or(PORT);
    let stream =
        TcpStream::connect((name.as_str(), port)).await.map_err(|error| format!("{error}{CHECK}"))?;
    let mut builder =
        Request::get(format!("/status.json?page={number}")).header(HOST, format!("{host}:{port}"));
    if let Some(token) = &access.token {
        builder = builder.header(AUTHORIZATION, token);
    }
    let request = builder.body(Empty::new()).map_err(|_| "the token is not one word of ASCII letters")?;
    if url.scheme_str() != Some("https") {
        return exchange(stream, request).await;
    }
    let stream = TlsConnector::from(access.tls.clone())
        .connect(ServerName::try_from(name)?, stream)
        .await
        .map_err(|error| match error.to_string().contains("CaUsedAsEndEntity") {
            true => {
                "its certificate is an authority's; give it one with basicConstraints CA:FALSE".to_owned()
            }
            false => format!("TLS: {error}; see --ca-file"),
        })?;
    exchange(stream, request).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<Vec<u8>, NoPage> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(not_http)?;
    // The sender gets its errors.
    tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(not_http)?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED => return Err("it refuses the token; see --token-file".into()),
        StatusCode::MISDIRECTED_REQUEST => {
            return Err(
                "it does not know this name; use its address, or add the name to `status_page_names` there"
                    .into(),
            );
        }
        StatusCode::NOT_FOUND => {
            return Err("no /status.json there; set `status_page = true` and reload".into());
        }
        other => return Err(format!("it answers with status {other}").into()),
    }
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        bytes.extend(frame?.into_data().unwrap_or_default());
        if bytes.len() > PAGE_MAX {
            return Err(format!(
                "a page of its /status.json has more than {PAGE_MAX} bytes; is it a director?"
            )
            .into());
        }
    }
    Ok(bytes)
}

fn not_http(error: hyper::Error) -> NoPage {
    format!("{error}; for a director with a certificate use https://").into()
}

/// The time limit of a request.
const PATIENCE: Duration = Duration::from_secs(5);
const CHECK: &str = "; is xvsd running there, with `metrics_address` and `status_page = true`?";
/// The port of a director that is named without one.
const PORT: u16 = 9112;
/// The bytes that are read of all pages of a director.
const BYTES_MAX: usize = 256 << 20;
/// The longest page that is read.
const PAGE_MAX: usize = 16 << 20;
