//! The log on stderr. It delays nothing and ends nothing.
//!
//! One thread writes all lines. While stderr takes none (a full disk, a pipe whose reader is closed or stands still),
//! lines wait in a bounded queue. Lines that find the queue full, or that cannot be written, are lost and counted.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, reload};

/// Lines that may wait, a few megabytes.
const WAITING: usize = 16_384;
/// A write that takes longer than this waits for a reader.
const STALLED: Duration = Duration::from_secs(1);

/// The log, for as long as it is written. Dropping it writes the lines that wait, for a second at most.
pub struct Log {
    losses: Losses,
    filter: SetFilter,
    writer: Option<WorkerGuard>,
}

/// Replaces the filter of the log. Its error is a bug: the log has ended.
pub type SetFilter = Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

/// The lines that the log has lost.
#[derive(Clone)]
pub struct Losses {
    writing: Arc<Mutex<Writing>>,
    overflowed: ErrorCounter,
}

impl Log {
    /// Sends events that `filter` lets through to stderr, and panics too.
    ///
    /// # Errors
    /// stderr is closed.
    pub fn to_stderr(filter: EnvFilter, ansi: bool) -> io::Result<Self> {
        // Not `io::stderr`, whose lock the writing thread would hold while it waits for a reader.
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let writing = Arc::new(Mutex::new(Writing::default()));
        let sink = Sink { to: stderr, writing: writing.clone() };
        let builder = NonBlockingBuilder::default().buffered_lines_limit(WAITING).thread_name("xvs-log");
        let (lines, writer) = builder.finish(sink);
        let losses = Losses { writing, overflowed: lines.error_counter() };
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(lines);
        let log = log.with_filter_reloading();
        let handle = log.reload_handle();
        log.init();
        panic::set_hook(Box::new(|panic| {
            let backtrace = Backtrace::capture();
            match backtrace.status() {
                BacktraceStatus::Captured => tracing::error!("{panic}\n{backtrace}"),
                _ => tracing::error!("{panic}"),
            }
        }));
        let filter: SetFilter = Arc::new(move |filter| handle.reload(filter));
        Ok(Self { losses, filter, writer: Some(writer) })
    }

    /// Replaces its filter.
    pub fn filter(&self) -> SetFilter {
        self.filter.clone()
    }

    /// The lines that it has lost.
    pub fn losses(&self) -> Losses {
        self.losses.clone()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // Waiting for a reader that stands still would delay the end.
        if self.losses.is_stalled() {
            std::mem::forget(self.writer.take());
        }
    }
}

impl Losses {
    /// Lines lost since the start.
    pub fn lines(&self) -> u64 {
        let failed = lock(&self.writing).failed;
        failed + self.overflowed.dropped_lines() as u64
    }

    /// The warning while lines cannot be written: what is wrong and the next step.
    pub fn warning(&self) -> Option<String> {
        let error = lock(&self.writing).error.as_ref().map(ToString::to_string);
        let why = match error {
            Some(error) => format!("{error}; free its disk, or restart xvsd with stderr elsewhere"),
            None if self.is_stalled() => {
                "its reader takes nothing; see which process reads the pipe".to_owned()
            }
            None => return None,
        };
        Some(format!("the log on stderr is not written, {} lines are lost: {why}", self.lines()))
    }

    fn is_stalled(&self) -> bool {
        lock(&self.writing).since.is_some_and(|since| since.elapsed() > STALLED)
    }
}

/// How the writing of lines stands.
#[derive(Default)]
struct Writing {
    /// When the write began that has not ended.
    since: Option<Instant>,
    /// Why the last line was lost, if it was.
    error: Option<io::Error>,
    failed: u64,
}

fn lock(writing: &Mutex<Writing>) -> MutexGuard<'_, Writing> {
    writing.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A writer of whole lines that never fails, and counts the lines that `to` refuses.
struct Sink<W> {
    to: W,
    writing: Arc<Mutex<Writing>>,
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        lock(&self.writing).since = Some(Instant::now());
        let error = self.to.write_all(line).err();
        let mut writing = lock(&self.writing);
        writing.failed += u64::from(error.is_some());
        (writing.since, writing.error) = (None, error);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_cannot_be_written_are_counted_until_one_can() {
        let (lines, _writer) = NonBlockingBuilder::default().finish(io::sink());
        let writing = Arc::new(Mutex::new(Writing::default()));
        let losses = Losses { writing: writing.clone(), overflowed: lines.error_counter() };
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut sink = Sink { to: full, writing: writing.clone() };
        for _ in 0..3 {
            sink.write_all(b"a line\n").unwrap();
        }
        let warning = losses.warning().unwrap();
        assert!(warning.contains("3 lines are lost: No space left on device"), "{warning}");

        Sink { to: io::sink(), writing }.write_all(b"a line\n").unwrap();
        assert_eq!((losses.warning(), losses.lines()), (None, 3));
    }
}
