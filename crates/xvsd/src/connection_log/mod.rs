//! The log of connections: the thread that writes the records that workers have queued, as lines of JSON to a file and
//! as IPFIX to a collector.
//!
//! Runs only if xvs.toml has the section `[connection_log]`. Neither a full disk nor a dead collector delays workers or
//! ends xvsd: records that cannot be written are counted, by reason, and reported once. Cost: a check of the queue a
//! hundred times a second, because workers wake no thread. `conn/log.rs` in `dataplane` defines the records and their
//! queue.

mod collector;
mod dates;
mod file;
mod ipfix;
mod line;
mod sink;

use std::iter;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use xvs_ctl::config::connection_log::ConnectionLog as Section;
use xvs_dataplane::clock::{Clock, Millis};
use xvs_dataplane::conn::log::{ConnectionLog, LogRecord};
use xvs_model::report::status::ConnectionLogStatus;
use xvs_model::report::warning::Warning;

use self::collector::Collector;
use self::dates::Dates;
use self::file::LogFile;
use self::sink::Sink;
use crate::rights::seccomp::{Kind, limit_thread};
use crate::threads;

/// The interval of checking the queue.
const PAUSE: Duration = Duration::from_millis(10);
/// Records that are written at once.
const BATCH: usize = 512;
/// How long the records that wait may take at the end.
const LAST: Duration = Duration::from_secs(2);

/// The log as status and metrics see it.
pub(crate) struct Logged {
    pub(crate) log: Arc<ConnectionLog>,
    file: Option<Arc<Sink>>,
    collector: Option<Arc<Sink>>,
}

impl Logged {
    /// The counts of written and lost records.
    pub(crate) fn status(&self) -> ConnectionLogStatus {
        ConnectionLogStatus {
            file: self.file.as_ref().map(|sink| sink.status()),
            collector: self.collector.as_ref().map(|sink| sink.status()),
            lost_records: self.log.lost(),
        }
    }

    /// The warnings while records cannot be written.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = Warning> {
        self.file.iter().chain(&self.collector).filter_map(|sink| sink.warning())
    }
}

/// The thread; dropping this writes what waits, and ends it.
pub(crate) struct Logging {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Logging {
    /// Starts the thread for a log, as configured in the section. Files are opened later, and again while that fails.
    ///
    /// # Errors
    ///
    /// The system has no room for another thread.
    pub(crate) fn start(
        section: &Section,
        log: Arc<ConnectionLog>,
        clock: Arc<Clock>,
        notices: &Sender<String>,
    ) -> std::io::Result<(Self, Logged)> {
        let pause = Duration::from_secs(section.template_minutes * 60);
        let mut writer = Writer {
            begun: clock.now(),
            file: section
                .file
                .as_deref()
                .map(|path| (LogFile::new(path, section), Arc::new(Sink::new(path.display().to_string())))),
            collector: section
                .collector
                .map(|addr| (Collector::new(addr, pause), Arc::new(Sink::new(addr.to_string())))),
            lines: Vec::new(),
            log,
            clock,
        };
        let logged = Logged {
            log: writer.log.clone(),
            file: writer.file.as_ref().map(|(_, sink)| sink.clone()),
            collector: writer.collector.as_ref().map(|(_, sink)| sink.clone()),
        };
        let (stop, stopped) = bounded(0);
        let thread = threads::spawn("xvs-connections", notices, move || {
            limit_thread(Kind::Reader);
            writer.run(&stopped);
        })?;
        Ok((Self { stop: Some(stop), thread: Some(thread) }, logged))
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the log of connections had panicked");
        }
    }
}

struct Writer {
    log: Arc<ConnectionLog>,
    clock: Arc<Clock>,
    /// When the log began.
    begun: Millis,
    file: Option<(LogFile, Arc<Sink>)>,
    collector: Option<(Collector, Arc<Sink>)>,
    lines: Vec<u8>,
}

impl Writer {
    fn run(&mut self, stopped: &Receiver<()>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let is_last = stopped.recv_timeout(PAUSE) == Err(RecvTimeoutError::Disconnected);
            let since = Instant::now();
            loop {
                batch.clear();
                batch.extend(iter::from_fn(|| self.log.pop()).take(BATCH));
                if batch.is_empty() {
                    break;
                }
                if is_last && since.elapsed() > LAST {
                    self.give_up(batch.len() as u64);
                } else {
                    self.write(&batch);
                }
            }
            if is_last {
                return;
            }
        }
    }

    fn write(&mut self, batch: &[LogRecord]) {
        let dates = Dates::now(&self.clock, self.begun);
        if let Some((file, sink)) = &mut self.file {
            self.lines.clear();
            batch.iter().for_each(|record| line::add(&mut self.lines, record, dates));
            let records = batch.len() as u64;
            match file.write(&self.lines) {
                Ok(()) => sink.wrote(records),
                Err(failed) => {
                    sink.wrote(failed.lines);
                    let next = "free its disk, or correct the rights of its folder; xvsd tries again";
                    sink.lost(records - failed.lines, &failed.error, next);
                }
            }
        }
        if let Some((collector, sink)) = &mut self.collector {
            collector.send(batch, dates, sink);
        }
    }

    /// Counts records that xvsd has no time for at its end.
    fn give_up(&self, records: u64) {
        let late = std::io::Error::other("xvsd has ended");
        self.file
            .iter()
            .map(|(_, sink)| sink)
            .chain(self.collector.iter().map(|(_, sink)| sink))
            .for_each(|sink| sink.lost(records, &late, "see which disk or network is slow"));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::UdpSocket;

    use crossbeam::channel::unbounded;
    use xvs_dataplane::conn::log::LogSettings;
    use xvs_dataplane::conn::{Inserted, NewConnection, Spare, Table, TableConfig};
    use xvs_dataplane::shm::Memory;
    use xvs_proto::{Endpoint, Protocol};
    use xvs_sched::ForwardingMethod;

    use super::*;

    fn connection(port: u16) -> NewConnection {
        NewConnection {
            protocol: Protocol::TCP,
            client: Endpoint::new([192, 0, 2, 10], port),
            virtual_endpoint: Endpoint::new([198, 51, 100, 1], 80),
            dest: Endpoint::new([203, 0, 113, 11], 8080),
            local: None,
            method: ForwardingMethod::Nat,
            flags: xvs_dataplane::conn::Flags::NONE,
            state: 0,
            expires: Millis(60_000),
            spare: Spare::NONE,
            dest_ref: 0,
            mark: 0,
            controller: None,
        }
    }

    #[test]
    fn what_waits_at_the_end_is_written_to_the_file_and_sent_to_the_collector() {
        let folder = std::env::temp_dir().join(format!("xvs-connection-log-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("connections.json");
        let collector = UdpSocket::bind("127.0.0.1:0").unwrap();
        let section = Section {
            file: Some(path.clone()),
            collector: Some(collector.local_addr().unwrap()),
            ..Section::default()
        };
        let table = TableConfig { capacity: 100, workers: 1, memory: Memory::SmallPages };
        let table = Table::create(table).unwrap();
        let settings = LogSettings { begins: true, one_in: 1, queue: 100 };
        let log = Arc::new(ConnectionLog::new(settings, table.entries()).unwrap());
        table.set_log(log.clone());
        let (notices, _ended) = unbounded();
        let (logging, logged) = Logging::start(&section, log, Arc::new(Clock::Monotonic), &notices).unwrap();
        let mut worker = table.handle(0).unwrap();
        for port in 1..=10 {
            assert!(matches!(worker.insert(&connection(port)), Inserted::New(_)));
        }
        drop(logging);

        let text = fs::read_to_string(&path).unwrap();
        let ports: Vec<_> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["client"].clone())
            .collect();
        let expected: Vec<_> = (1..=10).map(|port| format!("192.0.2.10:{port}")).collect();
        assert_eq!(ports, expected);
        let status = logged.status();
        let counted =
            [status.file, status.collector].map(|sink| sink.map(|sink| (sink.records, sink.lost_records)));
        assert_eq!((counted, status.lost_records), ([Some((10, 0)), Some((10, 0))], 0));
        assert_eq!(logged.warnings().count(), 0);
        fs::remove_dir_all(&folder).unwrap();
    }
}
