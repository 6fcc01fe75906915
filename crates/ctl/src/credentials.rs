//! The credentials of the metrics endpoint: the files of the certificate that it shows and of the token that it
//! expects.
//!
//! Read at the start and at each reload, and by `xvs doctor`. Not here: what is done with them (`metrics/` of xvsd).

use std::fmt::Display;
use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{Config, ConfigError};
use crate::secret_file::{self, read_file};

/// Certificate and token, as far as they are configured.
#[derive(Default)]
pub struct Credentials {
    /// The certificate of the metrics server; `None`: it speaks plain HTTP.
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
        let files = config.metrics_certificate.as_deref().zip(config.metrics_private_key.as_deref());
        let certificate = files.map(|(certificate, key)| Certificate::read(certificate, key)).transpose();
        let token = config.metrics_token_file.as_deref().map(token).transpose();
        certificate
            .and_then(|certificate| Ok(Self { certificate, token: token? }))
            .map_err(ConfigError::Credentials)
    }
}

impl Certificate {
    fn read(certificate: &Path, key: &Path) -> Result<Self, String> {
        let (certificate_file, key_file) = (certificate.display(), key.display());
        let files = [certificate, key].map(Path::to_owned);
        let how = "name a file with the certificate, and those of its authorities behind it, in PEM";
        let wrong = |why: String| format!("metrics_certificate {certificate_file}: {why}; {how}");
        let text = read_file(certificate).map_err(|error| wrong(error.to_string()))?.1;
        let chain = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
        // The parser's own text may have parts of the file, which may be a secret.
        let chain = chain.map_err(|_| wrong(NOT_PEM.to_owned()))?;
        if chain.is_empty() {
            return Err(wrong("there is no certificate in it".to_owned()));
        }
        let text = secret_file::read("metrics_private_key", key, KEY_FILE)?;
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes())
            .map_err(|_| format!("metrics_private_key {key_file}: {NOT_PEM}; {KEY_FILE}"))?;
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

/// Which file is wrong if a TLS library refuses a certificate with its key, why, and the next step. The files have
/// their keys of xvs.toml.
pub fn refused(error: &dyn Display, [certificate, key]: [(&str, &Path); 2]) -> String {
    let text = error.to_string();
    let ([name, key_name], [file, key_file]) =
        ([certificate.0, key.0], [certificate.1, key.1].map(Path::display));
    // The library has no error of its own for this in its interface.
    if text.contains("UnsupportedCertVersion") {
        return format!(
            "{name} {file}: it is of X.509 version 1, and TLS needs version 3; sign it again with extensions (`openssl x509 \
             -req … -extfile FILE`)"
        );
    }
    format!("{key_name} {key_file}: not for {file}: {text}; {KEY_FILE}")
}

const KEY_FILE: &str = "name a file with the certificate's private key in PEM, not encrypted";

const NOT_PEM: &str = "not PEM, with a BEGIN and an END on lines of their own";

fn token(path: &Path) -> Result<String, String> {
    let how = "`openssl rand -hex 32` prints a token";
    let text = secret_file::read("metrics_token_file", path, how)?;
    let token = text.trim();
    if token.is_empty() || token.len() > TOKEN_MAX_BYTES || !token.bytes().all(|byte| byte.is_ascii_graphic())
    {
        let path = path.display();
        return Err(format!(
            "metrics_token_file {path}: not one word of at most {TOKEN_MAX_BYTES} ASCII letters, digits and signs; {how}"
        ));
    }
    Ok(token.to_owned())
}

/// The longest token. Half of the longest request that the endpoint reads.
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
