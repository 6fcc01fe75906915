//! Follows the rules of the kernel's IPVS: a thread reads them, and the control thread puts changes in force.
//!
//! The kernel announces no changes, so they are read every half second, or less often if reading takes long: at most
//! 10 % of a core. A reading is not one moment, so a change is believed when a second reading has it, too. An empty
//! table may be that of a keepalived that restarts, and is believed after three seconds. Not here: reading
//! (`xvs_host::ipvs`), the effect of rules (`follow_kernel.rs` of `ctl`).

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};
use xvs_ctl::kernel_rules::{CONNTRACK, KernelRules};
use xvs_host::ipvs;
use xvs_model::config::settings::Ipvs;

use crate::handle::Handle;
use crate::threads::spawn_stoppable;

/// The shortest interval of readings.
const INTERVAL: Duration = Duration::from_millis(500);
/// The interval is at least as many times as long as the CPU time of a reading.
const SHARE: u32 = 10;
/// How long an empty table is not believed.
const EMPTY: Duration = Duration::from_secs(3);
/// After this time services that were left to the kernel are tried again: there may be room now.
const RETRY: Duration = Duration::from_secs(60);

/// The running thread; dropping it ends it.
pub(crate) struct FollowingKernel {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FollowingKernel {
    /// Starts to follow. The kernel's rules are in force when this returns, if they can be read.
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub(crate) fn start(daemon: Handle) -> io::Result<Self> {
        // An error: xvsd is ending.
        let _ = daemon.run(|thread| {
            thread.control.begin_to_follow_kernel();
            Ok(())
        });
        let mut seen = Seen::default();
        let mut pause = round(&daemon, &mut seen);
        let (stop, stopped) = bounded(0);
        let thread = spawn_stoppable("xvs-kernel", move || {
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                pause = round(&daemon, &mut seen);
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for FollowingKernel {
    fn drop(&mut self) {
        drop(self.stop.take());
        // Its panic was reported.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Reads the rules, and puts them in force if they have changed. Returns the pause until the next reading.
fn round(daemon: &Handle, seen: &mut Seen) -> Duration {
    let mut used = Duration::ZERO;
    let mut step = seen.see(read(&mut used), Instant::now());
    if matches!(step, Step::ReadAgain) {
        step = seen.see(read(&mut used), Instant::now());
    }
    if let Step::Take(rules) = step {
        let taken = daemon.run(|thread| Ok(thread.follow_kernel(rules)));
        seen.has_left = taken.is_ok_and(|left| left > 0);
    }
    INTERVAL.max(used * SHARE)
}

/// Reads the rules, and adds the CPU time that this took.
fn read(used: &mut Duration) -> Result<KernelRules, String> {
    let (table, cpu_time) = ipvs::read().map_err(|error| error.to_string())?;
    *used += cpu_time;
    let names = Ipvs::keys();
    let settings = ipvs::settings(names.iter().map(String::as_str).chain([CONNTRACK]));
    Ok(KernelRules::of(&table, settings))
}

/// What was read.
#[derive(Default)]
struct Seen {
    /// The rules in force, and when they were put in force.
    in_force: Option<(Arc<KernelRules>, Instant)>,
    /// Other rules that the last reading has found.
    next: Option<KernelRules>,
    /// Since when there are no services.
    empty_since: Option<Instant>,
    /// Why the last reading has failed.
    failure: Option<String>,
    /// Whether services were left to the kernel when the rules were put in force.
    has_left: bool,
}

/// The next action.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nothing.
    Keep,
    /// The rules are read again at once.
    ReadAgain,
    /// The rules, or the reason why there are none, go to the control thread.
    Take(Result<Arc<KernelRules>, String>),
}

impl Seen {
    /// Enters a reading. Returns the next action.
    fn see(&mut self, read: Result<KernelRules, String>, now: Instant) -> Step {
        let rules = match read {
            Ok(rules) => rules,
            Err(why) if self.failure.as_ref() == Some(&why) => return Step::Keep,
            Err(why) => {
                self.failure = Some(why.clone());
                return Step::Take(Err(why));
            }
        };
        let had_failed = self.failure.is_some();
        if let Some((in_force, since)) = &mut self.in_force
            && **in_force == rules
        {
            (self.next, self.empty_since, self.failure) = (None, None, None);
            if had_failed || self.has_left && now.duration_since(*since) >= RETRY {
                *since = now;
                return Step::Take(Ok(in_force.clone()));
            }
            return Step::Keep;
        }
        if self.next.as_ref() != Some(&rules) {
            self.next = Some(rules);
            return Step::ReadAgain;
        }
        if !rules.services.is_empty() || !rules.left.is_empty() {
            self.empty_since = None;
        } else if now.duration_since(*self.empty_since.get_or_insert(now)) < EMPTY {
            return Step::Keep;
        }
        self.failure = None;
        self.next = None;
        let (in_force, _) = self.in_force.insert((Arc::new(rules), now));
        Step::Take(Ok(in_force.clone()))
    }
}

#[cfg(test)]
mod tests {
    use xvs_model::config::service::{Service, ServiceOptions};
    use xvs_proto::{Endpoint, Family};
    use xvs_sched::ServiceKey;

    use super::*;

    /// Rules with a service at this port.
    fn rules(port: u16) -> KernelRules {
        let key = ServiceKey::tcp(Endpoint::new([192, 0, 2, 1], port));
        let service = Service { options: ServiceOptions::of(Family::V4), destinations: Vec::new() };
        KernelRules { services: [(key, service)].into(), ..KernelRules::default() }
    }

    fn taken(rules: KernelRules) -> Step {
        Step::Take(Ok(Arc::new(rules)))
    }

    /// What has these rules in force.
    fn seen(in_force: KernelRules, now: Instant) -> Seen {
        let mut seen = Seen::default();
        assert_eq!(seen.see(Ok(in_force.clone()), now), Step::ReadAgain);
        assert_eq!(seen.see(Ok(in_force.clone()), now), taken(in_force));
        seen
    }

    #[test]
    fn a_change_is_taken_when_two_readings_agree_on_it() {
        let now = Instant::now();
        let mut seen = seen(rules(80), now);
        assert_eq!(seen.see(Ok(rules(80)), now), Step::Keep);
        assert_eq!(seen.see(Ok(rules(81)), now), Step::ReadAgain);
        assert_eq!(seen.see(Ok(rules(82)), now), Step::ReadAgain, "it has changed meanwhile");
        assert_eq!(seen.see(Ok(rules(80)), now), Step::Keep, "the reading before was wrong");
        assert_eq!(seen.see(Ok(rules(82)), now), Step::ReadAgain);
        assert_eq!(seen.see(Ok(rules(82)), now), taken(rules(82)));
    }

    #[test]
    fn an_empty_table_is_taken_after_three_seconds_without_a_service() {
        let now = Instant::now();
        let mut seen = seen(rules(80), now);
        let none = || Ok(KernelRules::default());
        assert_eq!(seen.see(none(), now), Step::ReadAgain);
        assert_eq!(seen.see(none(), now), Step::Keep);
        assert_eq!(seen.see(Ok(rules(80)), now + EMPTY), Step::Keep, "the keepalived is back");
        assert_eq!(seen.see(none(), now + EMPTY), Step::ReadAgain);
        assert_eq!(seen.see(none(), now + EMPTY), Step::Keep);
        assert_eq!(seen.see(none(), now + 2 * EMPTY), taken(KernelRules::default()));
        assert_eq!(seen.see(none(), now + 2 * EMPTY), Step::Keep);
    }

    #[test]
    fn a_failed_reading_keeps_the_rules_and_is_reported_until_the_next_one_succeeds() {
        let now = Instant::now();
        let mut seen = seen(rules(80), now);
        let why = || "no IPVS".to_owned();
        assert_eq!(seen.see(Err(why()), now), Step::Take(Err(why())));
        assert_eq!(seen.see(Err(why()), now), Step::Keep);
        assert_eq!(seen.see(Ok(rules(80)), now), taken(rules(80)));
        assert_eq!(seen.see(Ok(rules(80)), now), Step::Keep);
        assert_eq!(seen.see(Err(why()), now), Step::Take(Err(why())), "another failure is reported");
    }

    #[test]
    fn services_that_were_left_to_the_kernel_are_tried_again_after_a_minute() {
        let now = Instant::now();
        let mut seen = seen(rules(80), now);
        assert_eq!(seen.see(Ok(rules(80)), now + RETRY), Step::Keep);
        seen.has_left = true;
        assert_eq!(seen.see(Ok(rules(80)), now + RETRY / 2), Step::Keep);
        assert_eq!(seen.see(Ok(rules(80)), now + RETRY), taken(rules(80)));
        assert_eq!(seen.see(Ok(rules(80)), now + RETRY), Step::Keep);
    }
}
