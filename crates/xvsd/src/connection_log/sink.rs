//! The state of writing to one destination of the log: its counts, and its fault, which is logged once.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use xvs_model::report::status::LogSinkStatus;
use xvs_model::report::warning::{Warning, WarningKind};

use crate::lock::lock;

/// The file or the collector. Written by the log's thread.
pub(super) struct Sink {
    /// A path or an address.
    name: String,
    records: AtomicU64,
    lost: AtomicU64,
    /// Why the last records were lost, with the next step, if they were.
    fault: Mutex<Option<String>>,
}

impl Sink {
    pub(super) fn new(name: String) -> Self {
        Self { name, records: AtomicU64::new(0), lost: AtomicU64::new(0), fault: Mutex::default() }
    }

    /// Counts records that were written. The fault is over.
    pub(super) fn wrote(&self, records: u64) {
        if records == 0 {
            return;
        }
        self.records.fetch_add(records, Relaxed);
        if lock(&self.fault).take().is_some() {
            let lost = self.lost.load(Relaxed);
            tracing::info!("connection_log: {} is written again; {lost} records are lost so far", self.name);
        }
    }

    /// Counts records that were lost, and logs the first of a series.
    pub(super) fn lost(&self, records: u64, error: &io::Error, next: &str) {
        self.lost.fetch_add(records, Relaxed);
        let fault = format!("{error}; {next}");
        let mut known = lock(&self.fault);
        if known.is_none() {
            tracing::error!("connection_log: {}: records are lost: {fault}", self.name);
        }
        *known = Some(fault);
    }

    /// The warning while records are lost.
    pub(super) fn warning(&self) -> Option<Warning> {
        let fault = lock(&self.fault).clone()?;
        let lost = self.lost.load(Relaxed);
        let text = format!("connection_log: {} is not written, {lost} records are lost: {fault}", self.name);
        Some(Warning::new(WarningKind::ConnectionLog, &self.name, text))
    }

    pub(super) fn status(&self) -> LogSinkStatus {
        LogSinkStatus {
            name: self.name.clone(),
            records: self.records.load(Relaxed),
            lost_records: self.lost.load(Relaxed),
        }
    }
}
