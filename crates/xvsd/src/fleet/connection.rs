//! A connection to a member of etcd: HTTP/1.1, over TLS if its URL requires it, kept for further requests.
//!
//! Certificate files are read for each connection, so renewed certificates need no reload. Errors are for the operator:
//! they name the URL or the file.

use std::error;
use std::error::Error as _;
use std::path::Path;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use xvs_ctl::config::ConfigError;
use xvs_ctl::config::fleet::{Fleet, Url};
use xvs_ctl::credentials::refused;
use xvs_ctl::secret_file::{self, read_file};

/// The longest answer, in bytes. etcd itself takes no request beyond 1.5 MiB unless it is configured to.
const ANSWER_MAX: usize = 16 << 20;

/// Why a member of etcd cannot be reached, a request to it has failed, or a file of certificates or key, which is named
/// with its key of xvs.toml, cannot be used.
pub(super) type ConnectionError = Box<dyn error::Error + Send + Sync>;

const CERTIFICATES: &str = "name a file with certificates in PEM";
const KEY: &str = "name a file with the certificate's private key in PEM, not encrypted";

/// An open connection.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    /// Connects. A task on the caller's runtime drives the connection until this is dropped.
    pub(super) async fn open(url: &Url, fleet: &Fleet) -> Result<Self, ConnectionError> {
        let stream = TcpStream::connect((url.host.as_str(), url.port)).await?;
        // Requests are small and wait for their answers.
        let _ = stream.set_nodelay(true);
        let sender = if url.has_tls {
            let name = ServerName::try_from(url.host.clone())?;
            let connector = TlsConnector::from(client_config(fleet)?);
            begin(connector.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))?).await?
        } else {
            begin(stream).await?
        };
        let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.clone() };
        Ok(Self { sender, host: format!("{host}:{}", url.port) })
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// The connection cannot be used any more.
    pub(super) async fn post(
        &mut self,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Vec<u8>), ConnectionError> {
        let request = Request::post(path)
            .header(HOST, &self.host)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        self.sender.ready().await.map_err(described)?;
        let answer = self.sender.send_request(request).await.map_err(described)?;
        Ok((answer.status(), whole(answer.into_body()).await?))
    }
}

/// A whole body. Its pieces are joined as they come, because each separate piece has an overhead of memory.
async fn whole<B>(mut body: B) -> Result<Vec<u8>, ConnectionError>
where
    B: Body<Data = Bytes, Error: Into<ConnectionError>> + Unpin,
{
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        bytes.extend(frame.map_err(Into::into)?.into_data().unwrap_or_default());
        if bytes.len() > ANSWER_MAX {
            return Err(format!(
                "its answer has more than {ANSWER_MAX} bytes; correct `etcd` in [fleet] of xvs.toml"
            )
            .into());
        }
    }
    Ok(bytes)
}

async fn begin<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(described)?;
    // The sender also gets the connection's errors.
    tokio::spawn(async move { _ = connection.await });
    Ok(sender)
}

/// An error of hyper with its cause, which contains the text from the system or from TLS.
fn described(error: hyper::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Checks the files of certificates and key of a checked configuration.
///
/// # Errors
/// [`ConfigError::Credentials`].
pub fn check_files(fleet: &Fleet) -> Result<(), ConfigError> {
    match fleet.urls().iter().any(|url| url.has_tls) {
        true => client_config(fleet).map(drop).map_err(|error| ConfigError::Credentials(error.to_string())),
        false => Ok(()),
    }
}

fn client_config(fleet: &Fleet) -> Result<Arc<ClientConfig>, ConnectionError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &fleet.ca_file {
        for certificate in certificates("fleet.ca_file", path)? {
            roots.add(certificate).map_err(|error| format!("fleet.ca_file {}: {error}", path.display()))?;
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring supports TLS 1.2 and 1.3")
        .with_root_certificates(roots);
    Ok(Arc::new(match (&fleet.certificate_file, &fleet.private_key_file) {
        (Some(certificate), Some(key)) => {
            let chain = certificates("fleet.certificate_file", certificate)?;
            let text = secret_file::read("fleet.private_key_file", key, KEY)?;
            // The parser's error may contain parts of the key.
            let secret = PrivateKeyDer::from_pem_slice(text.as_bytes())
                .map_err(|_| format!("fleet.private_key_file {}: not PEM; {KEY}", key.display()))?;
            let names = [("fleet.certificate_file", &**certificate), ("fleet.private_key_file", key)];
            builder.with_client_auth_cert(chain, secret).map_err(|error| refused(&error, names))?
        }
        _ => builder.with_no_client_auth(),
    }))
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectionError> {
    let name = format!("{key} {}", path.display());
    let (_, text) = read_file(path).map_err(|error| format!("{name}: {error}; {CERTIFICATES}"))?;
    match CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>() {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(format!("{name}: there is no certificate in it; {CERTIFICATES}").into()),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper::body::Frame;

    use super::*;

    /// A body with this many pieces of this many bytes.
    struct Pieces(usize, usize);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let piece = self.0.checked_sub(1).map(|left| {
                self.0 = left;
                Ok(Frame::data(vec![b'x'; self.1].into()))
            });
            Poll::Ready(piece)
        }
    }

    #[tokio::test]
    async fn an_endless_answer_is_left_at_its_limit_and_a_piecemeal_one_is_joined() {
        assert_eq!(whole(Pieces(100_000, 1)).await.unwrap().len(), 100_000);
        let why = whole(Pieces(usize::MAX, 1 << 16)).await.unwrap_err().to_string();
        assert!(why.starts_with("its answer has more than 16777216 bytes"), "{why}");
    }
}
