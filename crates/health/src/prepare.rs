//! Preparation of checks: patterns compiled, TLS settings loaded, request targets and names parsed.
//!
//! Runs once for each configuration, before it replaces the running one, so a pattern or file that cannot be used
//! refuses the configuration. Reads only the files that the `SSL` block names.

use std::sync::Arc;

use hyper::Uri;
use hyper::http::uri::InvalidUri;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use xvs_model::health_checks::check::{Check, Http, Probe, Target, Url};
use xvs_model::health_checks::fault::{Fault, LeftOut, Place, Severity};
use xvs_model::health_checks::virtual_server::Configuration;

use crate::command;
use crate::command::{Program, RunLock, scripts};
use crate::fifo::reader;
use crate::initial_state::initial_state;
use crate::pattern::Search;
use crate::tls_config::{TlsConfigs, server_name};

/// A configuration whose checks are ready to run.
#[derive(Debug)]
pub struct Prepared {
    /// The configuration, with its faults.
    pub configuration: Configuration,
    /// The prepared data for each check, by virtual server, real server and check in the order of the file.
    pub(super) checks: Vec<Vec<Vec<PreparedCheck>>>,
}

impl Prepared {
    /// All scripts that the helper may be asked to run for it.
    pub fn scripts(&self) -> Vec<xvs_helper::request::Script> {
        let globals = &self.configuration.globals;
        let readers = globals.notify_fifo.iter().chain(&globals.lvs_notify_fifo).filter_map(reader);
        scripts(&self.configuration)
            .cloned()
            .chain(readers)
            .map(|script| Program::new(&script, globals, RunLock::default()).requested())
            .collect()
    }
}

/// Adds the faults of scripts that cannot run on this machine now. Looks up users and files, which may block. For a
/// file that comes into force, and for `xvs check`.
pub fn examine_scripts(configuration: &mut Configuration) {
    let found = command::faults(configuration);
    configuration.faults.extend(found);
    configuration.faults.sort_by(|a, b| a.place.cmp(&b.place));
}

/// The data that a check needs beside its configuration; `None` if there is none.
pub(super) type PreparedCheck = Option<Arc<PreparedHttp>>;

/// The data for an HTTP check.
#[derive(Debug)]
pub(super) struct PreparedHttp {
    /// The TLS settings for `SSL_GET`; `None` for `HTTP_GET`.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// The URLs, in the order of the file.
    pub(super) urls: Vec<PreparedUrl>,
}

/// The data for one URL.
#[derive(Debug)]
pub(super) struct PreparedUrl {
    /// The request target in the first line of the request.
    pub(super) request_target: Uri,
    /// The name for which the certificate must be valid: the name sent by SNI, otherwise the requested host, otherwise
    /// the address.
    pub(super) name: ServerName<'static>,
    /// Whether the name is sent (SNI).
    pub(super) sends_name: bool,
    /// The pattern for the body.
    pub(super) pattern: Option<Search>,
}

impl Prepared {
    /// Prepares the checks of a configuration. Adds its findings, and the director's refusals, to the faults of the
    /// configuration.
    ///
    /// # Errors
    ///
    /// The configuration cannot be used: at least one of its faults is an error.
    pub fn of(mut configuration: Configuration) -> Result<Self, Box<Configuration>> {
        let mut tls = TlsConfigs::default();
        let mut faults = Vec::new();
        let mut checks = Vec::new();
        for virtual_server in &configuration.virtual_servers {
            let mut of_servers = Vec::new();
            for server in &virtual_server.real_servers {
                let prepared = server.checks.iter().map(|check| match &check.probe {
                    Probe::Http(target, http) => {
                        PreparedHttp::of(check, target, http, &mut tls, &mut faults).map(Arc::new)
                    }
                    _ => None,
                });
                of_servers.push(prepared.collect());
            }
            checks.push(of_servers);
        }
        configuration.faults.extend(faults);
        let (state, refused) = initial_state(&configuration);
        for virtual_server in &configuration.virtual_servers {
            let services: Vec<_> = virtual_server
                .services
                .iter()
                .map(|(key, _)| *key)
                .filter(|key| state.service(key).is_none())
                .collect();
            if let Some(fault) = refused.iter().find(|fault| fault.place == virtual_server.place)
                && !services.is_empty()
            {
                configuration.left_out.push(LeftOut { fault: fault.clone(), services });
            }
        }
        configuration.faults.extend(refused);
        configuration.faults.sort_by(|a, b| a.place.cmp(&b.place));
        configuration.faults.dedup();
        if configuration.is_usable() {
            Ok(Self { configuration, checks })
        } else {
            Err(Box::new(configuration))
        }
    }
}

impl PreparedHttp {
    fn of(
        check: &Check,
        target: &Target,
        http: &Http,
        tls: &mut TlsConfigs,
        faults: &mut Vec<Fault>,
    ) -> Option<Self> {
        let config = http.tls.as_ref().map(|settings| tls.get(settings, check, faults));
        let urls: Vec<_> =
            http.urls.iter().map(|url| PreparedUrl::of(target, http, url, &check.place, faults)).collect();
        Some(Self {
            tls: config.map_or(Some(None), |config| config.map(Some))?,
            urls: urls.into_iter().collect::<Option<_>>()?,
        })
    }
}

impl PreparedUrl {
    /// `check` is the position of the check in the file.
    pub(super) fn of(
        target: &Target,
        http: &Http,
        url: &Url,
        check: &Place,
        faults: &mut Vec<Fault>,
    ) -> Option<Self> {
        let sent = url.server_name.as_ref().and_then(|name| {
            let sent = server_name(name);
            if sent.is_none() {
                let text = format!("`{name}` is not a name that TLS can send; none is sent");
                faults.push(Fault { place: check.clone(), severity: Severity::Warning, text });
            }
            sent
        });
        let sends_name = sent.is_some();
        let name = sent
            .or_else(|| server_name(url.host.as_ref().or(http.host.as_ref())?))
            .unwrap_or_else(|| ServerName::IpAddress(target.endpoint.ip().into()));
        let request_target = request_target(&url.path)
            .map_err(|error| {
                let text = format!("`{}` is not a path: {error}", url.path);
                faults.push(Fault { place: url.place.clone(), severity: Severity::Error, text });
            })
            .ok()?;
        let pattern = url.pattern.clone().map(Search::new).transpose().map_err(|error| {
            let text = error.to_string();
            faults.push(Fault { place: url.place.clone(), severity: Severity::Error, text });
        });
        Some(Self { request_target, name, sends_name, pattern: pattern.ok()? })
    }
}

/// The reason why a check cannot request this URL, or cannot search for its pattern; `None` if it can.
pub fn url_fault(url: &Url) -> Option<String> {
    if let Err(error) = request_target(&url.path) {
        return Some(format!("`{}` is not a path: {error}", url.path));
    }
    Search::new(url.pattern.clone()?).err().map(|error| error.to_string())
}

/// The request target for a path. Characters that it cannot carry are percent-encoded; `#` and the fragment after it
/// are not sent (RFC 9110, section 7.1).
fn request_target(path: &str) -> Result<Uri, InvalidUri> {
    let mut target = String::new();
    for byte in path.bytes() {
        match byte {
            b' ' | b'"' | b'<' | b'>' | b'\\' | b'`' | ..0x20 | 0x7f.. => target += &format!("%{byte:02X}"),
            _ => target.push(char::from(byte)),
        }
    }
    target.parse()
}
