//! Changes of an attached interface's settings while the workers run: more receive queues, a larger MTU.
//!
//! The kernel does not announce a changed number of queues, so the control thread compares the settings once a second,
//! and when a link changes. If the workers' sockets do not fit the settings, all sockets are opened again, and the
//! queues are redistributed among the same workers. If that fails, the workers continue with sockets for the former
//! settings, and a warning names the next step; a later change of the settings is another attempt. Cost of a
//! comparison: five requests to the kernel for each interface, and the same for each port of a bridge.

use std::fmt::Display;

use xvs_ctl::bonds::check_offloads;
use xvs_dataplane::steering::Steering;
use xvs_model::report::warning::{Warning, WarningKind};
use xvs_proto::network::Link;
use xvs_xdp::device::receive_queues_word;
use xvs_xdp::{AttachError, Settings};

use crate::error::DaemonError;
use crate::facts::WorkerFacts;
use crate::workers::{Workers, shares};

/// Settings of an interface that the workers have no sockets for.
pub(super) struct Unfit {
    /// The settings; `None` if they forbid attaching.
    settings: Option<Settings>,
    warning: Warning,
}

impl Unfit {
    /// Settings of this interface, and why there are no sockets for them.
    fn new(interface: &str, settings: Option<Settings>, why: String) -> Self {
        Self { settings, warning: Warning::new(WarningKind::SocketSettings, interface, why) }
    }
}

impl Workers {
    /// Opens all sockets again if they do not fit the present settings of the interface with this index. Returns the
    /// workers' facts if it did. Blocks as [`Self::attach`] does.
    pub(crate) fn follow_settings(
        &mut self,
        index: usize,
        steering: &Steering,
        links: &[Link],
    ) -> Option<Vec<WorkerFacts>> {
        let attached = &self.attached[index];
        let ports = check_offloads(attached.interface(), links)
            .err()
            .map(|refused| Unfit::new(attached.interface(), None, refused.to_string()));
        let settings = match attached.present_settings() {
            Ok(settings) => settings,
            Err(refused @ AttachError::Refused { .. }) => {
                self.unfit[index] = Some(Unfit::new(attached.interface(), None, refused.to_string()));
                return None;
            }
            // It is gone; the network's events report that.
            Err(_) => return None,
        };
        let former = attached.settings();
        if !settings.needs_new_sockets(former) {
            self.unfit[index] = ports;
            return None;
        }
        // Before there are threads, a former xvsd may still have its sockets.
        let has_sockets = !self.paused && !self.threads.is_empty();
        if !has_sockets || self.unfit[index].as_ref().is_some_and(|unfit| unfit.settings == Some(settings)) {
            return None;
        }
        match self.reopen(index, settings, steering) {
            Ok(facts) => {
                let refused = self.queues_refused.get(self.attached[index].interface());
                self.unfit[index] = refused.map(|error| self.unfit(index, settings, error)).or(ports);
                Some(facts)
            }
            Err(error) => {
                // If the former sockets cannot be opened again either, the workers stay paused, and it is tried again.
                let facts = if self.paused { self.reopen(index, former, steering).ok() } else { None };
                self.unfit[index] = Some(self.unfit(index, settings, &error));
                facts
            }
        }
    }

    /// The warning that the sockets are for other settings of an interface than these.
    fn unfit(&self, index: usize, settings: Settings, error: &dyn Display) -> Unfit {
        let attached = &self.attached[index];
        let name = attached.interface();
        let why = unfit_warning(name, attached.settings(), settings, receive_queues_word(name), error);
        Unfit::new(name, Some(settings), why)
    }

    /// The warnings about settings that the workers have no sockets for.
    pub(crate) fn unfit_warnings(&self) -> impl Iterator<Item = &Warning> {
        self.unfit.iter().flatten().map(|unfit| &unfit.warning)
    }

    /// Gives every worker new sockets for these settings.
    fn reopen(
        &mut self,
        index: usize,
        settings: Settings,
        steering: &Steering,
    ) -> Result<Vec<WorkerFacts>, DaemonError> {
        let former = self.attached[index].settings();
        self.attached[index].set_settings(settings);
        self.shares = shares(&self.attached, Some(self.threads.len()))
            .and_then(|shares| {
                steering.renew(&mut self.attached[index])?;
                Ok(shares)
            })
            .inspect_err(|_| self.attached[index].set_settings(former))?;
        self.pause()?;
        self.resume()
    }
}

/// The warning about an interface whose settings changed from the first to the second ones; `word` is `ethtool -L`'s.
fn unfit_warning(name: &str, served: Settings, present: Settings, word: &str, error: &dyn Display) -> String {
    let had = served.receive_queues;
    let now = present.receive_queues;
    if had == now {
        return format!(
            "{name} has an MTU of {}, and xvsd has packet memory for {}, so larger packets are lost ({error}); `ip link \
             set dev {name} mtu {}`, or correct the cause and restart xvsd",
            present.mtu, served.mtu, served.mtu
        );
    }
    format!(
        "{name} has {now} receive queues, and xvsd serves {had}, so packets on the others are not forwarded ({error}); \
         `ethtool -L {name} {word} {had}`, or correct the cause and restart xvsd"
    )
}
