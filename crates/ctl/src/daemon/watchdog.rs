//! systemd's watchdog (`WatchdogSec=`), fed while the director moves.
//!
//! A thread judges at half the watchdog's time, as `xvs healthy` does, and feeds it if all is well; else it judges again
//! sooner, so that one bad judgement alone does not end the daemon. Costs what a judgement costs. Not here: the judgement
//! (`liveness.rs`), what systemd does when it is not fed.

use std::time::Duration;
use std::{io, thread};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use sd_notify::NotifyState;

use crate::control::thread::Handle;
use crate::daemon::liveness;

/// Feeds systemd's watchdog until it is dropped.
pub struct Watchdog {
    _end: Sender<()>,
}

impl Watchdog {
    /// Begins to feed it, if systemd has asked for that by `WATCHDOG_USEC`.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub fn start(daemon: Handle) -> io::Result<Option<Self>> {
        let Some(time) = sd_notify::watchdog_enabled().filter(|time| !time.is_zero()) else {
            return Ok(None);
        };
        let (end, ended) = bounded(0);
        let check = move |patience| liveness::check(&daemon, patience);
        let feed = || {
            if let Err(error) = sd_notify::notify(&[NotifyState::Watchdog]) {
                tracing::warn!("systemd's watchdog was not fed: {error}");
            }
        };
        thread::Builder::new()
            .name("xvs-watchdog".to_owned())
            .spawn(move || keep_fed(time / 2, &ended, check, feed))?;
        Ok(Some(Self { _end: end }))
    }
}

/// Feeds at each interval, and never without a good judgement since the last time.
fn keep_fed(
    interval: Duration,
    ended: &Receiver<()>,
    mut check: impl FnMut(Duration) -> Result<(), String>,
    mut feed: impl FnMut(),
) {
    loop {
        let wait = match check(interval / 2) {
            Ok(()) => {
                feed();
                interval
            }
            Err(why) => {
                tracing::error!("systemd's watchdog is not fed: {why}");
                interval / 8
            }
        };
        if ended.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::daemon::watchdog::*;

    #[test]
    fn the_watchdog_is_fed_after_good_judgements_alone() {
        let (end, ended) = bounded(0);
        let mut end = Some(end);
        let mut judgements = [true, false, false, true, false].into_iter();
        let mut fed = 0;
        let check = |_| match judgements.next() {
            Some(true) => Ok(()),
            Some(false) => Err("worker 0 does not move".to_owned()),
            None => {
                drop(end.take());
                Err("it ends".to_owned())
            }
        };
        keep_fed(Duration::from_millis(1), &ended, check, || fed += 1);
        assert_eq!(fed, 2);
    }
}
