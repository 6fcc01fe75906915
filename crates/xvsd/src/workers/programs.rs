//! The XDP programs of the attached interfaces: in force, and pinned so that they outlive the process.

use xvs_dataplane::offload::former::FormerRecords;
use xvs_dataplane::steering::Steering;
use xvs_host::state_directory::Others;
use xvs_model::report::warning::{Warning, WarningKind};
use xvs_xdp::pins::Pins;
use xvs_xdp::{AttachError, Attached};

use super::Workers;
use crate::error::DaemonError;

impl Workers {
    /// The records of the pinned programs of an earlier xvsd. Called before [`Self::put_in_force`].
    pub(crate) fn former_records(&self) -> Vec<FormerRecords> {
        Steering::former_records(&self.attached)
    }

    /// Puts the programs in force on interfaces on which another process's program is pinned. Called when the first
    /// services are in force; frames that arrive before a queue has its socket are held.
    ///
    /// # Errors
    ///
    /// An interface that cannot be attached. In a take-over none is reattached, unless its mode changes: the running
    /// xvsd would lose its link.
    pub(crate) fn put_in_force(
        &mut self,
        steering: &mut Steering,
        others: Others,
    ) -> Result<(), DaemonError> {
        for attached in &mut self.attached {
            if attached.former_program().is_none() {
                continue;
            }
            let name = attached.interface().to_owned();
            match steering.put_in_force(attached) {
                Ok(()) => {
                    tracing::info!("{name}: this XDP program has replaced the pinned one of an earlier xvsd")
                }
                Err(source) if others == Others::Run => {
                    return Err(AttachError::Kernel { interface: name, source }.into());
                }
                Err(error) => {
                    tracing::warn!(
                        "{name}: the pinned XDP program cannot be replaced ({error}); it is attached anew"
                    );
                    steering
                        .attach_anew(attached)
                        .map_err(|source| AttachError::Kernel { interface: name, source })?;
                }
            }
        }
        Ok(())
    }

    /// Pins all programs, and removes the pins of other interfaces. Called when no other process needs them.
    pub(crate) fn pin_all(&mut self) {
        (0..self.attached.len()).for_each(|index| self.pin(index));
        if let Some(pins) = &self.pins {
            let names: Vec<_> = self.attached.iter().map(Attached::interface).collect();
            for gone in pins.keep_only(&names) {
                tracing::info!(
                    "{gone}: the pin of an earlier xvsd is removed, because the interface is not attached"
                );
            }
        }
    }

    /// Puts the programs of this process in force again, after a successor has replaced them and failed.
    pub(crate) fn restore_programs(&mut self, steering: &Steering) {
        for attached in &mut self.attached {
            // A successor that has changed the mode has detached the program.
            if let Err(error) = steering.restore(attached).or_else(|_| steering.attach_anew(attached)) {
                tracing::error!(
                    "{}: the XDP program cannot be put in force again: {error}",
                    attached.interface()
                );
            }
        }
    }

    /// Pins the program of the interface with this index.
    pub(super) fn pin(&mut self, index: usize) {
        let attached = &mut self.attached[index];
        let Some(pins) = &self.pins else { return };
        self.not_pinned.retain(|warning| warning.key.object != attached.interface());
        if let Err(error) = attached.pin(pins) {
            let name = attached.interface();
            let text = format!(
                "{name}: the XDP program cannot be pinned ({error}), so the kernel resets connections when xvsd ends; see \
                 whether /sys/fs/bpf is a bpffs, then restart xvsd"
            );
            self.not_pinned.push(Warning::new(WarningKind::ProgramNotPinned, name, text));
        }
    }

    /// Removes the pins: the kernel has all packets when this value is dropped.
    pub(crate) fn release(&mut self) {
        self.attached.iter_mut().for_each(Attached::release);
        if let Some(Err(error)) = self.pins.as_ref().map(Pins::release) {
            tracing::error!("a pin cannot be removed: {error}; `xvs stop --release` tries it again");
        }
    }
}
