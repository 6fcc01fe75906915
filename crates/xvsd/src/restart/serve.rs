//! The start of forwarding: the order of a start, and of a take-over from a running xvsd.
//!
//! 1. *Prepared.* The programs are loaded and the services entered; another process may still forward and use the
//!    connection table. At the end of this stage, the running xvsd closes its sockets, which it can open again.
//! 2. *Paused.* No process forwards or uses the table; the XDP program holds the frames of services. The table is read,
//!    the sockets are opened, and the programs of this process come into force. This begins a new hold, which excludes
//!    the time of the preparation. Beats continue while the table is read, so reading may take longer than the hold; a
//!    process that hangs does not beat.
//! 3. *Owning.* The table belongs to this process. Only now do workers, the sweeper, listings and the sender of
//!    synchronization get handles of the table. The former xvsd can continue only after a new start.
//!
//! After a failure in the first two stages, the running xvsd continues with its programs. Not here: the hand-over by
//! the running xvsd (`hand_over.rs`), the table's types (`kept_state.rs`).

use std::thread::{self, ScopedJoinHandle};
use std::{io, panic};

use xvs_ctl::sweep::Sweeper;
use xvs_dataplane::clock::Clock;
use xvs_dataplane::offload::former::{FormerRecords, UsedRecords};
use xvs_dataplane::steering::hold::Hold;
use xvs_host::state_directory::Others;

use crate::control_thread::ControlThread;
use crate::error::{DaemonError, system};
use crate::facts::WorkerFacts;
use crate::restart::kept_state::{PausedTable, SurveyedTable};
use crate::restart::take_over::TakeOver;
use crate::sweeping::Sweeping;
use crate::workers::system::SystemDatapath;

impl ControlThread {
    /// Begins to forward. Every step that the kernel may refuse comes before the table is taken from a running xvsd.
    pub(crate) fn serve(&mut self, mut take_over: Option<TakeOver>) -> Result<Option<TakeOver>, DaemonError> {
        let Some((start, table)) = self.start.take() else { return Ok(take_over) };
        if take_over.is_some() {
            // The running xvsd still has the contents of list files that have a fault now.
            self.control.require_list_files().map_err(DaemonError::Lists)?;
        }
        let former = self.control.datapath().workers.former_records();
        let hold = start.hold.clone();
        let clock = start.clock.clone();
        let table = table.pause(take_over.as_mut(), clock.now())?;

        let SystemDatapath { workers, steering, .. } = self.control.datapath();
        let (opened, table, former) = match &take_over {
            // The kernel frees the queues in the meantime.
            Some(_) => thread::scope(|scope| {
                let survey = thread::Builder::new()
                    .spawn_scoped(scope, || surveyed(table, &hold, &clock))
                    .map_err(system("a thread"))?;
                let former = thread::Builder::new()
                    .spawn_scoped(scope, || used_records(former))
                    .map_err(system("a thread"))?;
                workers.put_in_force(steering, Others::Run)?;
                Ok::<_, DaemonError>((workers.open_ports()?, result(survey), result(former)))
            })?,
            // Sockets first: a socket that fails at each start must not prolong the hold.
            None => {
                let ports = workers.open_ports()?;
                workers.put_in_force(steering, Others::Ended)?;
                (ports, surveyed(table, &hold, &clock), used_records(former))
            }
        };
        let (ports, worker_facts) = opened.into_iter().unzip();

        let table = table.own(take_over.as_mut(), &mut self.control)?;
        hold.beat(clock.elapsed());
        if let Some(logged) = &self.shared.connection_log {
            table.set_log(logged.log.clone());
        }
        self.shared.own(table.clone());
        let sweeper = Sweeper::new(
            table.reader().expect("a table has handles for a listing and the sweeper"),
            start.published.clone(),
            table.secret().0[1],
        )
        .sharing(self.shared.swept.clone(), self.shared.sweeping.clone());
        self.control.datapath().own(&table).map_err(io::Error::other).map_err(system("the master daemon"))?;
        let notices = start.notices.clone();
        let uncounted = former.iter().flat_map(UsedRecords::take).collect();
        start.start(&table, ports, uncounted, &mut self.control.datapath().workers)?;
        take_over.iter_mut().for_each(TakeOver::forwards);
        self.sweeping = Some(Sweeping::start(sweeper, clock, &notices).map_err(system("a thread"))?);

        let SystemDatapath { workers, steering, .. } = self.control.datapath();
        workers.pin_all();
        workers.redirect_own(steering);
        self.show_workers(worker_facts);
        let links: Vec<_> = self.control.egress().links().map(|(_, link)| link.ifindex).collect();
        self.control.datapath().adopt_neighbours(&links);
        // Since the sockets are open, it is certain whether frames are copied.
        self.update_network();
        Ok(take_over)
    }

    /// Lets other threads see the workers, and how their interfaces are attached.
    fn show_workers(&mut self, worker_facts: Vec<WorkerFacts>) {
        let workers = &mut self.control.datapath().workers;
        let mut facts = self.shared.facts_mut();
        facts.workers = worker_facts;
        for (index, interface) in facts.interfaces.iter_mut().enumerate() {
            let attached = workers.attached_at(index);
            interface.pinned = attached.is_pinned();
            // The mode differs from the configured one if the driver has refused a change.
            interface.mode = attached.mode().to_string();
            interface.why_not_native = attached.native_refused().map(ToString::to_string);
        }
    }
}

/// Reads the table, with beats that prolong the hold.
fn surveyed(table: PausedTable, hold: &Hold, clock: &Clock) -> SurveyedTable {
    table.survey(clock.now(), || hold.beat(clock.elapsed()))
}

fn used_records(former: Vec<FormerRecords>) -> Vec<UsedRecords> {
    former.into_iter().map(FormerRecords::find_used).collect()
}

/// Waits for a thread, and returns its result.
fn result<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
}
