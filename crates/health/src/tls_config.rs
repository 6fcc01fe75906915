//! The TLS settings of checks: the accepted server certificates, and the director's client certificate.
//!
//! Files are read once, when a configuration is prepared. A file that cannot be used refuses the configuration;
//! keepalived's checker ends in that case. As with keepalived, any server certificate is accepted unless a check has
//! `tls_verify`.

use std::collections::HashMap;
use std::sync::Arc;
use std::{error, fs};

use pkcs8::{EncryptedPrivateKeyInfo, SecretDocument};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime,
};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use xvs_model::health_checks::check::{Check, Setting, Tls, Trust};
use xvs_model::health_checks::fault::{Fault, Severity};

/// The TLS server name of a host, which may have a port; `None` if it is not a valid name.
pub(super) fn server_name(host: &str) -> Option<ServerName<'static>> {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((addr, _)) => addr,
        None => match host.split_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        },
    };
    ServerName::try_from(name.to_owned()).ok()
}

/// The TLS settings of the checks of a configuration, created once for each distinct combination.
#[derive(Default)]
pub(super) struct TlsConfigs(HashMap<Tls, Option<Arc<ClientConfig>>>);

/// The statement whose file cannot be used, and the reason; `None` if no statement names a file.
type Refusal<'a> = (Option<&'a Setting>, Box<dyn error::Error>);

impl TlsConfigs {
    /// The settings of a check. `None` if a file cannot be used; the fault is at its statement, or at `check` if no
    /// statement names a file.
    pub(super) fn get(
        &mut self,
        tls: &Tls,
        check: &Check,
        faults: &mut Vec<Fault>,
    ) -> Option<Arc<ClientConfig>> {
        if let Some(made) = self.0.get(tls) {
            return made.clone();
        }
        let made = client_config(tls).map_err(|(setting, why)| {
            let (place, text) = match setting {
                Some(setting) => (&setting.place, format!("`{}`: {why}", setting.text)),
                None => (&check.place, why.to_string()),
            };
            faults.push(Fault { place: place.clone(), severity: Severity::Error, text });
        });
        self.0.entry(tls.clone()).or_insert(made.ok()).clone()
    }
}

fn client_config(tls: &Tls) -> Result<Arc<ClientConfig>, Refusal<'_>> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring supports TLS 1.2 and 1.3");
    let builder = match tls.trust {
        Trust::AnyCertificate => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAnyCertificate(provider)))
        }
        Trust::Authorities => builder.with_root_certificates(roots(tls)?),
    };
    let mut config = match (&tls.certificate, &tls.key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(certificate), Some(key)) => {
            let chain = certificates(certificate)?;
            let secret = private_key(key, tls.password.as_ref())?;
            builder.with_client_auth_cert(chain, secret).map_err(|error| (Some(key), error.into()))?
        }
        (Some(lone), None) | (None, Some(lone)) => {
            return Err((Some(lone), "`certificate` and `key` go together".into()));
        }
    };
    // A resumed session would not show the current certificate.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The trusted authorities: those of `ca`, or the system's.
fn roots(tls: &Tls) -> Result<RootCertStore, Refusal<'_>> {
    let mut roots = RootCertStore::empty();
    if let Some(ca) = &tls.ca {
        for certificate in certificates(ca)? {
            roots.add(certificate).map_err(|error| (Some(ca), error.into()))?;
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if roots.is_empty() {
        let why = "`tls_verify` finds no certificate authorities; name a file with `SSL { ca FILE }`";
        return Err((None, why.into()));
    }
    Ok(roots)
}

fn private_key<'a>(
    key: &'a Setting,
    password: Option<&Setting>,
) -> Result<PrivateKeyDer<'static>, Refusal<'a>> {
    let text = contents(key)?;
    match encrypted(&text) {
        Some(section) => decrypted(section, password),
        None => PrivateKeyDer::from_pem_slice(&text).map_err(Into::into),
    }
    .map_err(|why| (Some(key), why))
}

fn decrypted(
    section: &str,
    password: Option<&Setting>,
) -> Result<PrivateKeyDer<'static>, Box<dyn error::Error>> {
    let password = password.ok_or("it is encrypted, and there is no `password`")?;
    let (_, document) = SecretDocument::from_pem(section).map_err(|error| error.to_string())?;
    let plain = EncryptedPrivateKeyInfo::try_from(document.as_bytes())
        .and_then(|info| info.decrypt(&password.value))
        .map_err(|error| error.to_string())?;
    Ok(PrivatePkcs8KeyDer::from(plain.as_bytes().to_vec()).into())
}

/// The encrypted key in a file, if there is one (RFC 7468, section 11).
fn encrypted(text: &[u8]) -> Option<&str> {
    let text = str::from_utf8(text).ok()?;
    let section = &text[text.find("-----BEGIN ENCRYPTED PRIVATE KEY-----")?..];
    let end = "-----END ENCRYPTED PRIVATE KEY-----";
    Some(&section[..section.find(end)? + end.len()])
}

/// The certificates in the file of a statement; at least one.
fn certificates(file: &Setting) -> Result<Vec<CertificateDer<'static>>, Refusal<'_>> {
    match CertificateDer::pem_slice_iter(&contents(file)?).collect::<Result<Vec<_>, _>>() {
        Ok(found) if found.is_empty() => Err((Some(file), "there is no certificate in it".into())),
        read => read.map_err(|error| (Some(file), error.into())),
    }
}

/// The content of the file of a statement.
fn contents(file: &Setting) -> Result<Vec<u8>, Refusal<'_>> {
    fs::read(&file.value).map_err(|error| (Some(file), error.into()))
}

/// Accepts any certificate and any signature.
#[derive(Debug)]
struct AcceptAnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};

    use crate::prepare::Prepared;
    use crate::tls_config::*;
    use xvs_keepalived::read;
    use xvs_model::health_checks::virtual_server::Configuration;

    /// The configuration from a file with an `SSL_GET` check with `statements` and an `SSL` block with `ssl`.
    fn configuration(ssl: &str, statements: &str) -> Configuration {
        let server =
            format!("real_server 10.1.0.1 443 {{\nSSL_GET {{\n{statements}\nurl {{\npath /\n}}\n}}\n}}\n");
        let text = format!(
            "virtual_server 10.0.0.1 443 {{\nlvs_sched rr\nlvs_method NAT\nprotocol TCP\n{server}}}\nSSL {{\n{ssl}\n}}\n"
        );
        let file = file(&text);
        let read = read(&file, "lb1").unwrap();
        fs::remove_file(file).unwrap();
        Prepared::of(read).map_or_else(|refused| *refused, |prepared| prepared.configuration)
    }

    fn file(text: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("xvs-ssl-{}-{}", std::process::id(), fastrand::u64(..)));
        fs::write(&path, text).unwrap();
        path
    }

    #[track_caller]
    fn assert_refused(read: &Configuration, why: &str) {
        let faults: Vec<_> = read.faults.iter().map(|fault| fault.text.as_str()).collect();
        assert!(!read.is_usable() && faults.len() == 1 && faults[0].contains(why), "{faults:?} is not {why}");
    }

    #[test]
    fn certificate_files_that_cannot_be_used_refuse_the_configuration() {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["lb".to_owned()]).unwrap();
        let other = KeyPair::generate().unwrap().serialize_pem();
        let files = [&cert.pem(), &signing_key.serialize_pem(), &other].map(|text| file(text));
        let [certificate, key, other] = files.each_ref().map(|path| path.display().to_string());
        let ssl = |certificate: &str, key: &str| format!("certificate {certificate}\nkey {key}");
        assert_eq!(configuration(&ssl(&certificate, &key), "").faults, []);
        assert_refused(&configuration(&ssl("/nowhere", &key), ""), "`certificate /nowhere`: No such file");
        assert_refused(&configuration(&ssl(&certificate, &other), ""), "keys may not be consistent");
        assert_refused(&configuration(&ssl(&key, &key), ""), "there is no certificate in it");
        assert_refused(&configuration(&format!("key {key}"), ""), "`certificate` and `key` go together");
        assert_refused(&configuration("ca /nowhere", "tls_verify"), "`ca /nowhere`: No such file");
        // No check uses the authorities.
        assert_eq!(configuration("ca /nowhere", "tls_verify off").faults, []);
        assert_eq!(configuration("", "nothing").faults.len(), 1);
        files.iter().for_each(|path| fs::remove_file(path).unwrap());
    }

    // openssl ecparam -name prime256v1 -genkey -noout -out k; openssl req -new -x509 -key k -subj /CN=lb -days 36500
    const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBcjCCARegAwIBAgIUbcjYGvGcPCmzCuuChMF58lVz1eMwCgYIKoZIzj0EAwIw
DTELMAkGA1UEAwwCbGIwIBcNMjYxMTIwMTg0NTE2WhgPMjEyNjEwMjcxODQ1MTZa
MA0xCzAJBgNVBAMMAmxiMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEuAf65LTB
uuhE4Q/os27U5jqZDb7GxJw0NetNeUS9BhscdnGR4BsG44L/4N+DMoWjEAimk67I
SBfx9Ej8uBZSEKNTMFEwHQYDVR0OBBYEFCuORZ/FXQBBPckgH91mliE7kO8QMB8G
A1UdIwQYMBaAFCuORZ/FXQBBPckgH91mliE7kO8QMA8GA1UdEwEB/wQFMAMBAf8w
CgYIKoZIzj0EAwIDSQAwRgIhAMY8t7DCZ/v9LAZGqbqkF+Ragv9emveAYIsTmEtr
VlB7AiEAwJQY7q+JcdigeyKnMLpo28/VDgUym75/4mZ6NLD2sk8=
-----END CERTIFICATE-----
";
    // openssl pkcs8 -topk8 -v2 aes-256-cbc -passout pass:secret -in k
    const KEY: &str = "\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAhpgT2DYZEmZwICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEDYpG0FkZbQOhz1q6qE2ah8EgZCz
l6sLiF1OkVD2myWJds+BsUGoDz0ApbLcRGX76JcXRzre4S1zhP4IWrSpQfwiKZX8
ZaYjpsGNwICAu6uaQC9qTCcONSdI3Jw2EWs569yw5lL+pa0n4AiOtmJobIhw4gma
qBvNqIqnqCiV1lHsdbyLv3TUBhMS1AdkkNkXNFvxKY8qXBaqoyYXxy/Kl14bI1Y=
-----END ENCRYPTED PRIVATE KEY-----
";

    #[test]
    fn a_key_is_decrypted_with_the_password() {
        let files = [CERTIFICATE, KEY, &KEY.replace("MIHs", "MIHt")].map(file);
        let [certificate, key, torn] = files.each_ref().map(|path| path.display().to_string());
        let ssl = |key: &str, rest: &str| format!("certificate {certificate}\nkey {key}\n{rest}");
        assert_eq!(configuration(&ssl(&key, "password secret"), "").faults, []);
        assert_refused(&configuration(&ssl(&key, ""), ""), "it is encrypted, and there is no `password`");
        assert_refused(&configuration(&ssl(&key, "password wrong"), ""), &format!("`key {key}`: "));
        assert_refused(&configuration(&ssl(&torn, "password secret"), ""), &format!("`key {torn}`: "));
        files.iter().for_each(|path| fs::remove_file(path).unwrap());
    }

    #[test]
    fn the_identity_of_a_check_ignores_certificate_files_and_covers_tls_verify() {
        let ca = || file(&generate_simple_self_signed(["ca".to_owned()]).unwrap().cert.pem());
        let files = [ca(), ca()];
        let identity = |file: &PathBuf, statements: &str| {
            let read = configuration(&format!("ca {}", file.display()), statements);
            read.virtual_servers[0].real_servers[0].checks[0].probe.identity()
        };
        assert_eq!(identity(&files[0], "tls_verify"), identity(&files[1], "tls_verify"));
        assert_ne!(identity(&files[0], "tls_verify"), identity(&files[0], ""));
        files.iter().for_each(|path| fs::remove_file(path).unwrap());
    }

    #[test]
    fn the_server_name_is_the_host_without_its_port() {
        let name = |host: &str| server_name(host).map(|name| name.to_str().into_owned());
        assert_eq!(name("a.example").as_deref(), Some("a.example"));
        assert_eq!(name("a.example:8443").as_deref(), Some("a.example"));
        assert_eq!(name("192.0.2.1:443").as_deref(), Some("192.0.2.1"));
        assert_eq!(name("[2001:db8::1]:443").as_deref(), Some("2001:db8::1"));
        assert_eq!(name("2001:db8::1").as_deref(), Some("2001:db8::1"));
        assert_eq!(name("a b"), None);
        assert_eq!(name(""), None);
    }
}
