//! systemd's watchdog (`WatchdogSec=`): notified while all threads make progress.
//!
//! A thread checks liveness like `xvs healthy`, twice in the watchdog's interval, and notifies systemd after each
//! success. After a failure it checks again sooner, so that a single failure does not end the daemon. Cost: that of the
//! check (`liveness.rs`).

use std::fmt::Display;
use std::io;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use sd_notify::NotifyState;

use crate::daemon::liveness;
use crate::handle::Handle;
use crate::threads::spawn_stoppable;

/// Notifies systemd's watchdog until it is dropped.
pub struct Watchdog {
    _end: Sender<()>,
}

impl Watchdog {
    /// Starts the thread if there is a watchdog.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub fn start(daemon: Handle) -> io::Result<Option<Self>> {
        let Some(time) = daemon.shared().watchdog else { return Ok(None) };
        let (end, ended) = bounded(0);
        spawn_stoppable("xvs-watchdog", move || {
            keep_notified(time / 2, &ended, |patience| liveness::check(&daemon, patience), notify);
        })?;
        Ok(Some(Self { _end: end }))
    }
}

/// The time of the watchdog: `WATCHDOG_USEC` of systemd, or inherited from the previous process.
pub(crate) fn time(inherited: Option<Duration>) -> Option<Duration> {
    sd_notify::watchdog_enabled().or(inherited).filter(|time| !time.is_zero())
}

fn notify() {
    if let Err(error) = sd_notify::notify(&[NotifyState::Watchdog]) {
        tracing::warn!("systemd's watchdog could not be notified: {error}");
    }
}

/// Notifies after each successful check, and only then.
fn keep_notified<E: Display>(
    interval: Duration,
    ended: &Receiver<()>,
    mut check: impl FnMut(Duration) -> Result<(), E>,
    mut notify: impl FnMut(),
) {
    loop {
        let wait = match check(interval / 2) {
            Ok(()) => {
                notify();
                interval
            }
            Err(why) => {
                tracing::error!("systemd's watchdog is not notified: {why}");
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
    fn the_watchdog_is_notified_after_successful_checks_only() {
        let (end, ended) = bounded(0);
        let mut end = Some(end);
        let mut results = [true, false, false, true, false].into_iter();
        let mut notified = 0;
        let check = |_| match results.next() {
            Some(true) => Ok(()),
            Some(false) => Err("worker 0 makes no progress".to_owned()),
            None => {
                drop(end.take());
                Err("it ends".to_owned())
            }
        };
        keep_notified(Duration::from_millis(1), &ended, check, || notified += 1);
        assert_eq!(notified, 2);
    }
}
