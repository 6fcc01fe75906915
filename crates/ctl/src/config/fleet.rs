//! The section `[fleet]` of xvs.toml: the etcd whose rules several directors follow.

use std::path::PathBuf;

use http::Uri;
use rustix::system::uname;
use serde::{Deserialize, Serialize};

use crate::config::error::{ConfigError, wrong};

/// The section `[fleet]`: rules that several directors follow in etcd.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fleet {
    /// The URLs of the members of etcd, `https://HOST:PORT`, one of which is used at a time. Default: none, so that
    /// this director is in no fleet.
    pub etcd: Vec<String>,
    /// The name of the fleet, the same on all its directors: its keys in etcd begin with `/xvs/NAME/`.
    pub name: Option<String>,
    /// The name of this director in the fleet. Default: the host name.
    pub director: Option<String>,
    /// The file of the certificates, in PEM, of the authorities that may sign etcd's certificate.
    pub ca_file: Option<PathBuf>,
    /// The file of this director's certificate for etcd, in PEM. Default: none.
    pub certificate_file: Option<PathBuf>,
    /// The file of its private key, in PEM, not encrypted; not every user may read it.
    pub private_key_file: Option<PathBuf>,
    /// The folder of the files that rules in etcd may name: access lists and keys of QUIC. Default: none, so that they
    /// name no file.
    pub files_folder: Option<PathBuf>,
}

/// The address at which a member of etcd listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// As it was configured.
    pub text: String,
    /// Whether its text begins with `https`.
    pub has_tls: bool,
    /// A name or an address.
    pub host: String,
    /// TCP.
    pub port: u16,
}

/// The port of etcd for clients.
const PORT: u16 = 2379;

/// The longest name.
const NAME_BYTES: usize = 100;

impl Fleet {
    /// The members of etcd; invalid URLs are left out.
    pub fn urls(&self) -> Vec<Url> {
        self.etcd.iter().filter_map(|url| Url::parse(url)).collect()
    }

    /// The name of this director.
    pub fn director(&self) -> String {
        self.director.clone().unwrap_or_else(host_name)
    }

    /// Checks names and URLs.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.etcd.is_empty() {
            let why = "at least one URL is needed, such as https://192.0.2.21:2379";
            return if self == &Self::default() { Ok(()) } else { wrong("fleet.etcd", &self.etcd, why) };
        }
        if let Some(url) = self.etcd.iter().find(|url| Url::parse(url).is_none()) {
            return wrong("fleet.etcd", url, "no URL such as https://192.0.2.21:2379, without a path");
        }
        let Some(name) = &self.name else {
            return wrong("fleet.name", "", "a fleet needs a name, the same on all its directors");
        };
        for (key, name) in [("fleet.name", name), ("fleet.director", &self.director())] {
            let is_named = !name.is_empty() && name.len() <= NAME_BYTES;
            if !is_named || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
                let why = "a name has at most 100 letters, digits, points, hyphens and underscores";
                return wrong(key, name, why);
            }
        }
        if let Some(folder) = self.files_folder.as_ref().filter(|folder| !folder.is_absolute()) {
            return wrong("fleet.files_folder", folder, "a path from / is needed, such as /etc/xvs/lists");
        }
        match (&self.ca_file, &self.certificate_file, &self.private_key_file) {
            (None, ..) if self.urls().iter().any(|url| url.has_tls) => {
                wrong("fleet.ca_file", "", "https needs the file of the authority of etcd's certificate")
            }
            (_, Some(file), None) => {
                let why = "without a private key; name its file with private_key_file";
                wrong("fleet.certificate_file", file, why)
            }
            (_, None, Some(file)) => {
                let why = "without a certificate; name its file with certificate_file";
                wrong("fleet.private_key_file", file, why)
            }
            _ => Ok(()),
        }
    }
}

impl Url {
    /// `None`: it is no URL with http or https and nothing behind host and port.
    fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let has_tls = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        if uri.path() != "/" || uri.query().is_some() || uri.authority()?.as_str().contains('@') {
            return None;
        }
        Some(Self {
            text: text.trim_end_matches('/').to_owned(),
            has_tls,
            host: uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: uri.port_u16().unwrap_or(PORT),
        })
    }
}

/// The name of this machine.
pub fn host_name() -> String {
    uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_needs_urls_a_name_and_an_authority_for_tls() {
        let error = |text: &str| {
            let fleet: Fleet = toml::from_str(text).unwrap();
            fleet.check().err().map(|error| error.to_string()).unwrap_or_default()
        };
        let usable = "etcd = [\"https://[2001:db8::1]:4001\", \"https://etcd.example.com/\"]\nname = \"prod\"\nca_file = \"/ca\"\n";
        assert_eq!(error(usable), "");
        assert_eq!(error(""), "");
        for (text, begin) in [
            ("name = \"prod\"", "fleet.etcd = []: at least one URL"),
            ("etcd = [\"etcd:2379\"]\nname = \"a\"", "fleet.etcd = \"etcd:2379\": no URL"),
            ("etcd = [\"http://etcd/v3\"]\nname = \"a\"", "fleet.etcd = \"http://etcd/v3\": no URL"),
            ("etcd = [\"http://u:p@etcd\"]\nname = \"a\"", "fleet.etcd = \"http://u:p@etcd\": no URL"),
            ("etcd = [\"http://etcd\"]", "fleet.name = \"\": a fleet needs a name"),
            ("etcd = [\"http://etcd\"]\nname = \"a/b\"", "fleet.name = \"a/b\": a name has"),
            ("etcd = [\"http://etcd\"]\nname = \"a\"\ndirector = \"\"", "fleet.director = \"\": a name has"),
            (
                "etcd = [\"http://etcd\"]\nname = \"a\"\nfiles_folder = \"lists\"",
                "fleet.files_folder = \"lists\": a path from /",
            ),
            ("etcd = [\"https://etcd\"]\nname = \"a\"", "fleet.ca_file = \"\": https needs"),
        ] {
            assert!(error(text).starts_with(begin), "{}", error(text));
        }
        let key = format!("{usable}private_key_file = \"/key\"");
        assert!(error(&key).starts_with("fleet.private_key_file = \"/key\": without a certificate"));
    }

    #[test]
    fn a_url_has_a_host_and_the_port_of_etcd_if_it_names_none() {
        let url = |text| Url::parse(text).map(|url| (url.has_tls, url.host, url.port));
        assert_eq!(url("https://[2001:db8::1]:4001"), Some((true, "2001:db8::1".to_owned(), 4001)));
        assert_eq!(url("http://etcd/"), Some((false, "etcd".to_owned(), 2379)));
    }
}
