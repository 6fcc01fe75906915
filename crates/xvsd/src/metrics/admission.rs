//! Admission of clients to the director's pages: TLS, the token, and the names of the director.
//!
//! A reload takes over a renewed certificate; open connections keep the old one. Without a certificate there is no TLS,
//! and without a token every client may read. Not here: the handshake and the response (`exporter.rs`), the files
//! (`credentials.rs` of `xvs-ctl`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HOST};
use subtle::ConstantTimeEq;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use xvs_ctl::config::fleet::host_name;
use xvs_ctl::config::{Config, ConfigError};
use xvs_ctl::credentials::Credentials;

/// Who may read the pages, and how.
#[derive(Default)]
pub struct Admission {
    /// `None`: plain HTTP.
    pub(super) tls: Option<TlsAcceptor>,
    token: Option<Token>,
    /// Names of the director in lower case.
    names: Vec<String>,
}

/// The credentials that a client sends after the name of a scheme.
struct Token {
    bearer: String,
    /// The user `xvs` with the token as password (RFC 7617, section 2): browsers send no bearer token.
    basic: String,
}

impl Admission {
    /// Reads the files that a checked configuration names.
    ///
    /// # Errors
    /// [`ConfigError::Credentials`].
    pub fn read(config: &Config) -> Result<Self, ConfigError> {
        let Credentials { certificate, token } = Credentials::read(config)?;
        let tls = certificate
            .map(|certificate| {
                certificate.accepted(|chain, key| {
                    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
                        .with_safe_default_protocol_versions()
                        .expect("ring supports TLS 1.2 and 1.3")
                        .with_no_client_auth()
                        .with_single_cert(chain, key)
                })
            })
            .transpose()?;
        let names = config.status_page_names.iter().cloned().chain([host_name()]);
        Ok(Self {
            tls: tls.map(|server| TlsAcceptor::from(Arc::new(server))),
            token: token
                .map(|bearer| Token { basic: BASE64_STANDARD.encode(format!("xvs:{bearer}")), bearer }),
            names: names.map(|name| name.to_ascii_lowercase()).collect(),
        })
    }

    /// Whether `Host` is a name of the director. A foreign site can point its own name to the director's address (DNS
    /// rebinding); then the browser sends that name in `Host`. With a token or certificate, every name is admitted: the
    /// browser sends such a site no token, and the certificate is not for its name. Browsers always send `Host`.
    pub fn knows_host(&self, headers: &HeaderMap) -> bool {
        let Some(header) = headers.get(HOST).filter(|_| self.token.is_none() && self.tls.is_none()) else {
            return true;
        };
        let host = header.to_str().unwrap_or_default();
        if host.parse::<IpAddr>().is_ok() || host.parse::<SocketAddr>().is_ok() {
            return true;
        }
        if let Some(bare) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            return bare.parse::<IpAddr>().is_ok();
        }
        let (name, _) = host.split_once(':').unwrap_or((host, ""));
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        name == "localhost" || self.names.contains(&name)
    }

    /// Whether a request has the token, or needs none (RFC 6750, section 2.1). The comparison's duration reveals only
    /// the length.
    pub fn admit(&self, headers: &HeaderMap) -> bool {
        let Some(Token { bearer, basic }) = &self.token else { return true };
        let Some((scheme, sent)) =
            headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.split_once(' '))
        else {
            return false;
        };
        let wanted = match scheme.to_ascii_lowercase().as_str() {
            "bearer" => bearer,
            "basic" => basic,
            _ => return false,
        };
        sent.trim().as_bytes().ct_eq(wanted.as_bytes()).into()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
    use xvs_ctl::credentials::TOKEN_MAX_BYTES;

    use super::*;

    /// A folder of files that goes with the test.
    struct Folder(std::path::PathBuf);

    impl Folder {
        fn write(&self, name: &str, text: &str, mode: u32) -> Option<std::path::PathBuf> {
            let path = self.0.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            Some(path)
        }

        /// The error of a configuration, with this folder as `DIR`.
        #[track_caller]
        fn error(&self, config: Config) -> String {
            let error = Admission::read(&config).err().expect("a file cannot be used").to_string();
            error.replace(self.0.to_str().unwrap(), "DIR")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn folder(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("xvs-admission-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    #[test]
    fn a_token_is_one_word_in_a_file_that_not_everyone_may_read() {
        let folder = folder("token");
        let of = |text: &str, mode| Config {
            metrics_token_file: folder.write("token", text, mode),
            ..Config::default()
        };
        assert_eq!(
            Admission::read(&of(" 0a1b-._~+/= \n", 0o640)).unwrap().token.unwrap().bearer,
            "0a1b-._~+/="
        );
        let everyone = "metrics_token_file DIR/token: every user may read or change it; `chmod o= DIR/token`";
        assert_eq!(folder.error(of("0a1b", 0o644)), everyone);
        let how = "`openssl rand -hex 32` prints a token";
        assert!(Admission::read(&of(&"x".repeat(TOKEN_MAX_BYTES), 0o600)).is_ok());
        let too_long = "x".repeat(TOKEN_MAX_BYTES + 1);
        for wrong in ["", "\n", "two words", "one\ntwo\n", "\u{e9}t\u{e9}", &too_long] {
            let expected = format!(
                "metrics_token_file DIR/token: not one word of at most {TOKEN_MAX_BYTES} ASCII letters, digits and signs; {how}"
            );
            assert_eq!(folder.error(of(wrong, 0o600)), expected, "{wrong:?}");
        }
        let error = folder.error(of(&"x".repeat(100_000), 0o600));
        assert!(error.starts_with("metrics_token_file DIR/token: ") && error.ends_with(how), "{error}");
        let missing = Config { metrics_token_file: Some(folder.0.join("none")), ..Config::default() };
        let error = folder.error(missing);
        assert!(error.contains("DIR/none: No such file") && error.ends_with(how), "{error}");
    }

    #[test]
    fn a_certificate_or_key_that_cannot_be_used_is_named_with_its_key_of_xvs_toml() {
        let folder = folder("tls");
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["lb".to_owned()]).unwrap();
        let (cert, key) = (cert.pem(), signing_key.serialize_pem());
        let other = KeyPair::generate().unwrap().serialize_pem();
        let config = |certificate: &str, key: &str, mode| Config {
            metrics_certificate: folder.write("cert", certificate, 0o644),
            metrics_private_key: folder.write("key", key, mode),
            ..Config::default()
        };
        let both = Admission::read(&config(&format!("{cert}{cert}"), &key, 0o640)).unwrap();
        assert!(both.tls.is_some() && both.admit(&HeaderMap::new()));
        for (certificate, secret, mode, expected) in [
            (
                "",
                key.as_str(),
                0o600,
                "metrics_certificate DIR/cert: there is no certificate in it; name a file",
            ),
            (&key, &key, 0o600, "metrics_certificate DIR/cert: there is no certificate in it; name"),
            (&cert, "", 0o600, "metrics_private_key DIR/key: "),
            (&cert, &cert, 0o600, "metrics_private_key DIR/key: "),
            (&cert, &other, 0o600, "metrics_private_key DIR/key: not for DIR/cert: "),
            (&cert, &key, 0o604, "metrics_private_key DIR/key: every user may read or change it; `chmod"),
        ] {
            let error = folder.error(config(certificate, secret, mode));
            assert!(error.starts_with(expected), "{error} is not {expected}");
        }
        // Keys that lost their ends of lines.
        for folded in [key.replace('\n', " "), key.replace('\n', "\\n"), key.replace('\n', "")] {
            for config in [config(&cert, &folded, 0o600), config(&folded, &key, 0o600)] {
                let error = folder.error(config);
                assert!(error.len() < 250, "a part of the key is shown: {error}");
            }
        }
        fs::remove_file(folder.0.join("key")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.0.join("key"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let pipe = Config {
            metrics_certificate: folder.write("cert", &cert, 0o644),
            metrics_private_key: Some(folder.0.join("key")),
            ..Config::default()
        };
        assert!(folder.error(pipe).contains("DIR/key: not a file"));
    }
}
