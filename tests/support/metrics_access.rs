//! Certificate, private key and token for a daemon's metrics, in the cluster's folder.
//!
//! openssl makes them, for 127.0.0.1 and ::1. Not here: the client.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use crate::cluster::{Cluster, succeed};

/// The files of certificate, key and token.
#[derive(Debug)]
pub struct MetricsAccess {
    /// A certificate that is its own authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub private_key: PathBuf,
    /// The token.
    pub token: PathBuf,
}

impl MetricsAccess {
    /// New files with this token; `number` tells them from others of the cluster.
    ///
    /// # Panics
    ///
    /// With what openssl says if it fails.
    pub fn make(cluster: &Cluster, number: u8, token: &str) -> Self {
        let file = |name: &str| cluster.state().join(format!("metrics-{number}-{name}"));
        let this = Self { certificate: file("cert.pem"), private_key: file("key.pem"), token: file("token") };
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        openssl.args(["-subj", "/CN=director", "-addext", "subjectAltName=IP:127.0.0.1,IP:::1"]);
        succeed(openssl.arg("-keyout").arg(&this.private_key).arg("-out").arg(&this.certificate));
        fs::write(&this.token, format!("{token}\n")).expect("the cluster's folder takes files");
        for secret in [&this.private_key, &this.token] {
            fs::set_permissions(secret, Permissions::from_mode(0o600)).expect("it was made above");
        }
        this
    }

    /// Puts these files in the place of others.
    ///
    /// # Panics
    ///
    /// If a file is missing.
    pub fn replace(&self, others: &Self) {
        for (new, old) in [
            (&self.certificate, &others.certificate),
            (&self.private_key, &others.private_key),
            (&self.token, &others.token),
        ] {
            fs::copy(new, old).expect("both are in the cluster's folder");
        }
    }

    /// The keys of xvs.toml that name them.
    pub fn toml(&self) -> String {
        let Self { certificate, private_key, token } = self;
        format!(
            "metrics_certificate = {certificate:?}\nmetrics_private_key = {private_key:?}\nmetrics_token_file = {token:?}\n"
        )
    }
}
