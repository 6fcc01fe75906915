//! The credentials of the metrics endpoint: the files of the certificate that it presents and of the token that it
//! expects.
//!
//! Read at the start and at each reload, and by `xvs doctor`. `metrics/` in xvsd uses the credentials.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

use crate::config::{Config, ConfigError};
use crate::secret_file::{self, SecretFileError, read_file};

/// Certificate and token, as far as they are configured.
#[derive(Default)]
pub struct Credentials {
    /// The certificate of the metrics server; `None` if it uses plain HTTP.
    pub certificate: Option<Certificate>,
    /// The token; `None`: every client may read.
    pub token: Option<String>,
}

/// A certificate with its authorities, and its private key.
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    /// Their files.
    files: [PathBuf; 2],
}

impl Credentials {
    /// Reads the files that a checked configuration names.
    ///
    /// # Errors
    /// [`ConfigError::Credentials`].
    pub fn read(config: &Config) -> Result<Self, ConfigError> {
        let certificate = config
            .metrics_certificate
            .as_deref()
            .zip(config.metrics_private_key.as_deref())
            .map(|(certificate, key)| Certificate::read(certificate, key))
            .transpose();
        let token = config.metrics_token_file.as_deref().map(token).transpose();
        certificate
            .and_then(|certificate| Ok(Self { certificate, token: token? }))
            .map_err(|error: CredentialsError| ConfigError::Credentials(error.to_string()))
    }
}

impl Certificate {
    fn read(certificate: &Path, key: &Path) -> Result<Self, CredentialsError> {
        let files = [certificate, key].map(Path::to_owned);
        let (_, text) = read_file(certificate)
            .map_err(|error| CredentialsError::Unreadable(certificate.to_owned(), error))?;
        let chain = CertificateDer::pem_slice_iter(text.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            // The parser's text may contain parts of the file, which may be a secret.
            .map_err(|_| CredentialsError::NotPem(certificate.to_owned()))?;
        if chain.is_empty() {
            return Err(CredentialsError::NoCertificate(certificate.to_owned()));
        }
        let text = secret_file::read("metrics_private_key", key, KEY_FILE)?;
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes())
            .map_err(|_| CredentialsError::KeyNotPem(key.to_owned()))?;
        Ok(Self { chain, key, files })
    }

    /// Gives certificate and key to a TLS library, which checks that they belong together.
    ///
    /// # Errors
    /// [`ConfigError::Credentials`]: the library refuses them.
    pub fn accepted<T, E: Display>(
        self,
        accept: impl FnOnce(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) -> Result<T, E>,
    ) -> Result<T, ConfigError> {
        let Self { chain, key, files: [certificate, key_file] } = self;
        let names = [("metrics_certificate", &*certificate), ("metrics_private_key", &key_file)];
        accept(chain, key).map_err(|error| ConfigError::Credentials(refused(&error, names)))
    }
}

/// The reason why a file with credentials is not used, with the next step.
#[derive(Debug, Error)]
enum CredentialsError {
    #[error("metrics_certificate {path}: {1}; {CHAIN_FILE}", path = .0.display())]
    Unreadable(PathBuf, io::Error),
    #[error("metrics_certificate {}: {NOT_PEM}; {CHAIN_FILE}", .0.display())]
    NotPem(PathBuf),
    #[error("metrics_certificate {}: there is no certificate in it; {CHAIN_FILE}", .0.display())]
    NoCertificate(PathBuf),
    #[error("metrics_private_key {}: {NOT_PEM}; {KEY_FILE}", .0.display())]
    KeyNotPem(PathBuf),
    #[error(
        "metrics_token_file {}: not one word of at most {TOKEN_MAX_BYTES} ASCII letters, digits and signs; {TOKEN_FILE}",
        .0.display()
    )]
    Token(PathBuf),
    #[error(transparent)]
    Secret(#[from] SecretFileError),
}

/// The file that is wrong if a TLS library refuses a certificate with its key, the reason, and the next step. The files
/// are named with their keys of xvs.toml.
pub fn refused(error: &dyn Display, [(name, file), (key_name, key_file)]: [(&str, &Path); 2]) -> String {
    let text = error.to_string();
    let file = file.display();
    let key_file = key_file.display();
    // The library has no error of its own for this in its interface.
    if text.contains("UnsupportedCertVersion") {
        return format!(
            "{name} {file}: it is of X.509 version 1, and TLS needs version 3; sign it again with extensions (`openssl x509 \
             -req … -extfile FILE`)"
        );
    }
    format!("{key_name} {key_file}: not for {file}: {text}; {KEY_FILE}")
}

const CHAIN_FILE: &str = "name a file with the certificate, and those of its authorities behind it, in PEM";

const KEY_FILE: &str = "name a file with the certificate's private key in PEM, not encrypted";

const TOKEN_FILE: &str = "`openssl rand -hex 32` prints a token";

const NOT_PEM: &str = "not PEM, with a BEGIN and an END on lines of their own";

fn token(path: &Path) -> Result<String, CredentialsError> {
    let text = secret_file::read("metrics_token_file", path, TOKEN_FILE)?;
    let token = text.trim();
    if token.is_empty() || token.len() > TOKEN_MAX_BYTES || !token.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(CredentialsError::Token(path.to_owned()));
    }
    Ok(token.to_owned())
}

/// Maximum length of a token. Half of the longest request that the endpoint reads.
pub const TOKEN_MAX_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_of_version_1_is_the_wrong_file_and_any_other_error_is_about_the_key() {
        let names =
            [("metrics_certificate", Path::new("c.pem")), ("metrics_private_key", Path::new("k.pem"))];
        let version = "invalid peer certificate: Other(OtherError(UnsupportedCertVersion))";
        assert!(refused(&version, names).starts_with("metrics_certificate c.pem: it is of X.509 version 1"));
        let other = refused(&"keys may not be consistent: KeyMismatch", names);
        assert!(other.starts_with("metrics_private_key k.pem: not for c.pem: keys may not"), "{other}");
    }
}
