//! The TLS handshake of an `SSL_GET` probe.
//!
//! Runs once for each probe, over its connection and within its deadline. Sessions are never resumed, so each handshake
//! gets the certificate. `tls_config.rs` defines the accepted certificates.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{CertificateError, ClientConfig, Error};
use xvs_model::foreign_text::ForeignText;

use crate::prepare::PreparedUrl;

/// Performs the handshake with the server of a URL.
pub(crate) async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    config: &Arc<ClientConfig>,
    object: &PreparedUrl,
    stream: S,
) -> Result<TlsStream<S>, HandshakeError> {
    let mut config = Arc::clone(config);
    if !object.sends_name {
        Arc::make_mut(&mut config).enable_sni = false;
    }
    TlsConnector::from(config).connect(object.name.clone(), stream).await.map_err(HandshakeError)
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
#[error("the TLS handshake: {}", describe(.0))]
pub(crate) struct HandshakeError(io::Error);

fn describe(error: &io::Error) -> String {
    use CertificateError::{Expired, ExpiredContext, NotValidForNameContext, Other, UnknownIssuer};
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(Error::InvalidCertificate(Expired)) => "certificate expired".to_owned(),
        Some(Error::InvalidCertificate(ExpiredContext { time, not_after })) => {
            let days = time.as_secs().saturating_sub(not_after.as_secs()) / (24 * 60 * 60);
            format!("certificate expired {days} days ago")
        }
        Some(Error::InvalidCertificate(NotValidForNameContext { expected, presented })) => {
            // Each entry is a kind with the name in parentheses.
            let names: Vec<_> = presented
                .iter()
                .map(|name| name.split(['(', ')']).nth(1).unwrap_or(name).trim_matches('"'))
                .collect();
            format!(
                "certificate is for {}, not for {}",
                ForeignText::from(names.join(", ")),
                expected.to_str()
            )
        }
        Some(Error::InvalidCertificate(UnknownIssuer)) => {
            "certificate is not signed by an authority that is trusted".to_owned()
        }
        // rustls has no variant for this error, only its text.
        Some(Error::InvalidCertificate(Other(inner))) if inner.to_string() == "CaUsedAsEndEntity" => {
            "certificate is an authority's, not a server's".to_owned()
        }
        _ => ForeignText::from(error.to_string()).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::SocketAddr;
    use std::time::Duration;

    use rcgen::{CertificateParams, CertifiedIssuer, DnType, KeyPair, date_time_ymd};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::Instant;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::rustls::server::WebPkiClientVerifier;
    use tokio_rustls::rustls::{RootCertStore, ServerConfig};

    use crate::prepare::{Prepared, PreparedHttp};
    use crate::probes::http;
    use crate::probes::probe_result::ProbeResult;
    use crate::probes::tls::*;
    use xvs_keepalived::read;
    use xvs_model::health_checks::check::{Http, Probe, Target};

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn authority(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// A certificate for this name and its key, both in PEM.
    fn certificate(authority: &Authority, name: &str, last_year: i32) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_after = date_time_ymd(last_year, 1, 1);
        (params.signed_by(&key, authority).unwrap().pem(), key.serialize_pem())
    }

    /// The data that a server received in a handshake: the name (SNI), and the number of client certificates.
    #[derive(Debug, PartialEq)]
    struct Seen {
        name: Option<String>,
        certificates: usize,
    }

    /// Serves one connection with this certificate. Requires a client certificate if `clients` names its authority.
    async fn serve(
        listener: &TcpListener,
        (certificate, key): &(String, String),
        clients: Option<&Authority>,
    ) -> Option<Seen> {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.der().clone()).unwrap();
                let provider = Arc::new(ring::default_provider());
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let config = builder.with_single_cert(chain, key).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.ok()?;
        let seen = Seen {
            name: stream.get_ref().1.server_name().map(str::to_owned),
            certificates: stream.get_ref().1.peer_certificates().map_or(0, <[_]>::len),
        };
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.ok()?);
        }
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello").await.ok()?;
        stream.flush().await.ok()?;
        // Many servers close the connection without close_notify.
        Some(seen)
    }

    /// An `SSL_GET` check of this server with these statements, and these in the `SSL` block.
    fn probe(statements: &str, ssl: &str, server: SocketAddr) -> (Target, Http, Arc<PreparedHttp>) {
        let path = std::env::temp_dir().join(format!("xvs-tls-{}-{}", std::process::id(), server.port()));
        let text = format!(
            "SSL {{\n{ssl}\n}}\nvirtual_server 192.0.2.1 443 {{\nlvs_sched rr\nlvs_method NAT\nprotocol TCP\n\
             real_server {} {} {{\nSSL_GET {{\n{statements}\n\
             url {{\npath /\ndigest 5d41402abc4b2a76b9719d911017c592\n}}\n}}\n}}\n}}\n",
            server.ip(),
            server.port(),
        );
        fs::write(&path, text).unwrap();
        let read = read(&path, "lb1").unwrap();
        fs::remove_file(path).unwrap();
        let read = Prepared::of(read).unwrap_or_else(|refused| panic!("{:?}", refused.faults));
        let check = &read.configuration.virtual_servers[0].real_servers[0].checks[0];
        let Probe::Http(target, http) = check.probe.clone() else { panic!("{check:?}") };
        (target, http, read.checks[0][0][0].clone().unwrap())
    }

    /// The result of an `SSL_GET` probe of a server with this certificate, and what the server received.
    async fn probed(
        statements: &str,
        ssl: &str,
        certificate: &(String, String),
        clients: Option<&Authority>,
    ) -> (ProbeResult, Option<Seen>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (target, http, prepared) = probe(statements, ssl, listener.local_addr().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        let probed = http::probe(&target, &http, &prepared, 0, deadline);
        tokio::join!(probed, serve(&listener, certificate, clients))
    }

    /// A temporary file.
    struct File(std::path::PathBuf);

    impl File {
        fn of(name: &str, text: &str) -> Self {
            let path = std::env::temp_dir().join(format!("xvs-tls-{}-{name}.pem", std::process::id()));
            fs::write(&path, text).unwrap();
            Self(path)
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            fs::remove_file(&self.0).unwrap();
        }
    }

    #[tokio::test]
    async fn any_certificate_is_accepted_unless_tls_verify_checks_name_time_and_authority() {
        let (ours, other) = (authority("ours"), authority("other"));
        let ca = File::of("verified", &ours.pem());
        let ssl = format!("ca {}", ca.0.display());
        let named = "virtualhost www.example:8443";
        let is_expected = |expected: &str, result: ProbeResult| match result {
            ProbeResult::Passed(0) => expected.is_empty(),
            ProbeResult::Failed(why) => !expected.is_empty() && why.contains(expected),
            _ => false,
        };
        for (signer, name, year, statements, expected) in [
            (&ours, "www.example", 2100, named, ""),
            (&ours, "127.0.0.1", 2100, "", ""),
            (&ours, "www.example", 2020, named, "the TLS handshake: certificate expired "),
            (&ours, "a.example", 2100, named, "certificate is for a.example, not for www.example"),
            (&ours, "www.example", 2100, "", "not for 127.0.0.1"),
            (&other, "www.example", 2100, named, "certificate is not signed by an authority that is trusted"),
        ] {
            let certificate = certificate(signer, name, year);
            let (result, _) = probed(statements, &ssl, &certificate, None).await;
            assert_eq!(result, ProbeResult::Passed(0), "{name} {year}");
            let (result, _) = probed(&format!("tls_verify\n{statements}"), &ssl, &certificate, None).await;
            assert!(is_expected(expected, result.clone()), "{result:?} is not {expected}");
        }
    }

    #[tokio::test]
    async fn the_certificate_of_an_authority_is_not_accepted_as_a_servers() {
        let ours = authority("ours");
        let itself = (ours.pem(), ours.key().serialize_pem());
        let ca = File::of("itself", &itself.0);
        let (result, _) = probed("tls_verify", &format!("ca {}", ca.0.display()), &itself, None).await;
        let why = "the TLS handshake: certificate is an authority's, not a server's";
        assert_eq!(result, ProbeResult::Failed(why.to_owned()));
    }

    #[tokio::test]
    async fn a_server_name_is_sent_only_if_configured() {
        let certificate = certificate(&authority("ours"), "www.example", 2100);
        for (statements, name) in [
            ("virtualhost www.example", None),
            ("enable_sni", None),
            ("enable_sni\nvirtualhost www.example:8443", Some("www.example")),
            ("sni_name other.example\nvirtualhost www.example", Some("other.example")),
        ] {
            let (result, seen) = probed(statements, "", &certificate, None).await;
            assert_eq!(result, ProbeResult::Passed(0));
            assert_eq!(seen, Some(Seen { name: name.map(str::to_owned), certificates: 0 }), "{statements}");
        }
    }

    #[tokio::test]
    async fn a_server_that_requires_a_certificate_gets_the_configured_one() {
        let ours = authority("ours");
        let (of_server, (client_certificate, key)) =
            (certificate(&ours, "a.example", 2100), certificate(&ours, "lb", 2100));
        let files = [File::of("certificate", &client_certificate), File::of("key", &key)];
        let ssl = format!("certificate {}\nkey {}", files[0].0.display(), files[1].0.display());
        let (result, seen) = probed("", &ssl, &of_server, Some(&ours)).await;
        assert_eq!((result, seen), (ProbeResult::Passed(0), Some(Seen { name: None, certificates: 1 })));
        let (result, _) = probed("", "", &of_server, Some(&ours)).await;
        assert!(
            matches!(&result, ProbeResult::Failed(why) if why.contains("CertificateRequired")),
            "{result:?}"
        );
    }

    #[tokio::test]
    async fn a_server_without_tls_fails_with_a_reason_and_a_silent_one_at_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (target, http, prepared) = probe("", "", listener.local_addr().unwrap());
        let served = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await.unwrap();
            stream
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        let (result, _) = tokio::join!(http::probe(&target, &http, &prepared, 0, deadline), served);
        let why = "the TLS handshake: received corrupt message of type InvalidContentType";
        assert_eq!(result, ProbeResult::Failed(why.to_owned()));
        let deadline = Instant::now() + Duration::from_millis(500);
        let result = http::probe(&target, &http, &prepared, 0, deadline).await;
        let why = "connected, but no TLS handshake within 500ms";
        assert_eq!(result, ProbeResult::Failed(why.to_owned()));
    }
}
