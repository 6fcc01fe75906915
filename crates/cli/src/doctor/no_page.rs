//! Why `xvs doctor --fleet` has no page of a director.

use hyper::StatusCode;
use hyper::http::uri::InvalidUri;
use std::error::Error;
use std::io;
use std::time::Duration;
use tokio::task::JoinError;
use tokio_rustls::rustls::pki_types::InvalidDnsNameError;

/// Why a director has no page.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoPage {
    #[error("neither HOST:PORT nor a URL: {0}")]
    Name(#[from] InvalidUri),
    #[error("the URL has no host")]
    NoHost,
    #[error("{0}{CHECK}")]
    Unreachable(io::Error),
    #[error("no answer within {PATIENCE:?}{CHECK}")]
    Late,
    #[error("the token is not one word of ASCII letters")]
    Token,
    #[error(transparent)]
    ServerName(#[from] InvalidDnsNameError),
    #[error("its certificate is an authority's; give it one with basicConstraints CA:FALSE")]
    Authority,
    #[error("TLS: {0}; see --ca-file")]
    Tls(io::Error),
    #[error("{0}; for a director with a certificate use https://")]
    Http(#[from] hyper::Error),
    #[error("it refuses the token; see --token-file")]
    TokenRefused,
    #[error("it does not know this name; use its address, or add the name to `status_page_names` there")]
    NameRefused,
    #[error("no /status.json there; set `status_page = true` and reload")]
    Absent,
    #[error("it answers with status {0}")]
    Status(StatusCode),
    #[error("{0}")]
    Body(Box<dyn Error + Send + Sync>),
    #[error("its /status.json is not one of this version of xvs: {0}; install one version")]
    Form(#[from] serde_json::Error),
    #[error(transparent)]
    Fault(#[from] JoinError),
}

/// The time limit of a request.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

const CHECK: &str = "; is xvsd running there, with `metrics_address` and `status_page = true`?";
