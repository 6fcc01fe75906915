//! The exporter of metrics and the status page, with the settings that a reload changes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use xvs_ctl::config::Config;
use xvs_model::config::refusal::CommandError;

use crate::date::date_millis;
use crate::handle::Handle;
use crate::metrics;
use crate::metrics::Destinations;
use crate::metrics::admission::Admission;
use crate::metrics::exporter::{Exporter, ExporterError, Listener, StatusPage};
use crate::reload::unchanged;
use crate::status::page::Viewers;

/// The exporter, and its settings. Another address has another one.
pub(super) struct Metrics {
    /// `None` without an address, and in a successor whose address was in use.
    pub(super) exporter: Option<Exporter>,
    admission: Arc<ArcSwap<Admission>>,
    destinations: Arc<ArcSwap<Destinations>>,
    /// Whether the status page is served.
    status_page: Arc<AtomicBool>,
}

impl Metrics {
    /// Serves metrics at this address.
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub(super) fn start(
        daemon: &Handle,
        config: &Config,
        listener: Option<Listener>,
        admission: Arc<Admission>,
    ) -> io::Result<Self> {
        let mut this = Self {
            exporter: None,
            admission: Arc::new(admission.into()),
            destinations: Arc::new(ArcSwap::from_pointee(destinations(config))),
            status_page: Arc::new(config.status_page.into()),
        };
        if let Some(listener) = listener {
            let (metrics_of, document_of) = (daemon.clone(), daemon.clone());
            let destinations = this.destinations.clone();
            let viewers = Viewers::default();
            let status = StatusPage {
                is_on: this.status_page.clone(),
                document: Box::new(move |document, query| {
                    viewers.document(document_of.shared(), document, query, date_millis())
                }),
            };
            let page = move || metrics::page(metrics_of.shared(), **destinations.load());
            this.exporter = Some(listener.serve(page, status, this.admission.clone())?);
        }
        Ok(this)
    }

    /// Puts the settings of a configuration with the same address in force.
    pub(super) fn set(&self, config: &Config, admission: Arc<Admission>) {
        self.admission.store(admission);
        self.destinations.store(Arc::new(destinations(config)));
        self.status_page.store(config.status_page, Ordering::Relaxed);
    }
}

fn destinations(config: &Config) -> Destinations {
    Destinations { most: config.metrics_destinations, response_times: config.metrics_response_times }
}

/// Binds the new address of metrics.
pub(super) fn listener(old: &Config, new: &Config) -> Result<Option<Listener>, CommandError> {
    new.metrics_address.map(Listener::bind).transpose().map_err(|error| match error {
        ExporterError::InUse(address)
            if old.metrics_address.map(|own| own.port()) == Some(address.port()) =>
        {
            unchanged(format!(
                "metrics_address {address}: xvsd serves this port; restart it, or choose another port"
            ))
        }
        error => unchanged(error),
    })
}

/// The line about files whose content may have changed without a changed key.
pub(super) fn files_line(config: &Config) -> Option<String> {
    let given: Vec<_> = [
        ("metrics_certificate", &config.metrics_certificate),
        ("metrics_private_key", &config.metrics_private_key),
        ("metrics_token_file", &config.metrics_token_file),
    ]
    .into_iter()
    .filter_map(|(key, file)| file.as_ref().map(|_| key))
    .collect();
    (!given.is_empty()).then(|| format!("{}: read again", given.join(", ")))
}
