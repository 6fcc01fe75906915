//! The log on stderr, which never delays or ends xvsd.
//!
//! One thread writes all lines. While stderr accepts no lines (a full disk, a pipe whose reader is gone or hangs), they
//! wait in a bounded queue. Lines that the full queue refuses, or that cannot be written, are lost and counted.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tracing::Subscriber;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry, reload};

use xvs_ctl::config::LogFormat;
use xvs_model::report::warning::{Warning, WarningKind};

use crate::lock::lock;

/// Lines that may wait, a few megabytes.
const WAITING: usize = 16_384;
/// A write that takes longer than this waits for a reader.
const STALLED: Duration = Duration::from_secs(1);

/// The log, for as long as it is written. Dropping it writes the lines that wait, for a second at most.
pub struct Log {
    losses: Losses,
    format: LogFormat,
    set: SetLog,
    writer: Option<WorkerGuard>,
}

/// Replaces filter and format of the log. Its error is a bug: the log has ended.
pub type SetLog = Arc<dyn Fn(EnvFilter, LogFormat) -> Result<(), reload::Error> + Send + Sync>;

/// The lines that the log has lost.
#[derive(Clone)]
pub struct Losses {
    writing: Arc<Mutex<Writing>>,
    overflowed: ErrorCounter,
}

impl Log {
    /// Sends events that `filter` lets through to stderr, and all panics; in colours if `ansi` and the format has them.
    ///
    /// # Errors
    /// stderr is closed.
    pub fn to_stderr(filter: EnvFilter, format: LogFormat, ansi: bool) -> io::Result<Self> {
        // Not `io::stderr`, whose lock the writing thread would hold while it waits for a reader.
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let writing = Arc::<Mutex<Writing>>::default();
        let sink = Sink { to: stderr, writing: writing.clone() };
        let (lines, writer) =
            NonBlockingBuilder::default().buffered_lines_limit(WAITING).thread_name("xvs-log").finish(sink);
        let losses = Losses { writing, overflowed: lines.error_counter() };
        let (filter, filter_handle) = reload::Layer::new(with_panics(filter));
        let (printer, printer_handle) = reload::Layer::new(printer(format, ansi, lines.clone()));
        registry().with(filter).with(printer).init();
        panic::set_hook(Box::new(|panic| {
            let backtrace = Backtrace::capture();
            match backtrace.status() {
                BacktraceStatus::Captured => tracing::error!(target: PANIC, "{panic}\n{backtrace}"),
                _ => tracing::error!(target: PANIC, "{panic}"),
            }
        }));
        Ok(Self {
            losses,
            format,
            set: Arc::new(move |filter, format| {
                filter_handle.reload(with_panics(filter))?;
                printer_handle.reload(self::printer(format, ansi, lines.clone()))
            }),
            writer: Some(writer),
        })
    }

    /// Replaces its filter and format.
    pub fn set(&self) -> SetLog {
        self.set.clone()
    }

    /// Logs why xvsd ends, whatever the filter, and ends the log. Returns `false` for a log of text: the caller prints
    /// the error.
    pub fn end(self, error: &dyn Error) -> bool {
        let is_json = self.format == LogFormat::Json;
        if is_json && (self.set)(EnvFilter::new("error"), self.format).is_ok() {
            tracing::error!(target: "xvsd", "{error}");
        }
        is_json
    }

    /// The lines that it has lost.
    pub fn losses(&self) -> Losses {
        self.losses.clone()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // Waiting for a reader that hangs would delay the end.
        if self.losses.is_stalled() {
            std::mem::forget(self.writer.take());
        }
    }
}

impl Losses {
    /// Lines lost since the start.
    pub fn lines(&self) -> u64 {
        lock(&self.writing).failed + self.overflowed.dropped_lines() as u64
    }

    /// The warning while lines cannot be written: what is wrong and the next step.
    pub fn warning(&self) -> Option<Warning> {
        let error = lock(&self.writing).error.as_ref().map(ToString::to_string);
        let why = match error {
            Some(error) => format!("{error}; free its disk, or restart xvsd with stderr elsewhere"),
            None if self.is_stalled() => {
                "its reader takes nothing; see which process reads the pipe".to_owned()
            }
            None => return None,
        };
        let text = format!("the log on stderr is not written, {} lines are lost: {why}", self.lines());
        Some(Warning::new(WarningKind::LogWrite, "", text))
    }

    fn is_stalled(&self) -> bool {
        lock(&self.writing).since.is_some_and(|since| since.elapsed() > STALLED)
    }
}

/// The target of panics in the log.
const PANIC: &str = "panic";

/// A filter that also lets panics through.
fn with_panics(filter: EnvFilter) -> EnvFilter {
    filter.add_directive(format!("{PANIC}=error").parse().expect("a target and a level"))
}

/// Prints events in a format, each as one line of JSON or some of text.
fn printer<S>(format: LogFormat, ansi: bool, lines: NonBlocking) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let printer = fmt::layer().with_writer(lines);
    match format {
        LogFormat::Text => printer.with_ansi(ansi).boxed(),
        LogFormat::Json => printer.json().flatten_event(true).boxed(),
    }
}

/// The state of writing lines.
#[derive(Default)]
struct Writing {
    /// When the write began that has not ended.
    since: Option<Instant>,
    /// Why the last line was lost, if it was.
    error: Option<io::Error>,
    failed: u64,
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
    use std::process::Command;
    use std::{env, thread};

    use super::*;

    /// The variable by which the test below starts itself as the process that panics.
    const PANICS: &str = "XVS_TEST_PANICS";

    #[test]
    fn as_json_a_panic_and_the_error_that_ends_xvsd_are_one_line_each_whatever_the_filter() {
        if env::var_os(PANICS).is_some() {
            let log = Log::to_stderr(EnvFilter::new("xvs_host=debug"), LogFormat::Json, true).unwrap();
            thread::spawn(|| panic!("two\nlines")).join().unwrap_err();
            tracing::info!("not let through");
            assert!(log.end(&io::Error::other("the \"end\"")));
            return;
        }
        let mut child = Command::new(env::current_exe().unwrap());
        let name = thread::current().name().unwrap().to_owned();
        child.args(["--exact", &name, "--nocapture"]).env(PANICS, "1").env("RUST_BACKTRACE", "1");
        let output = child.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let lines: Vec<serde_json::Value> = output
            .stderr
            .trim_ascii()
            .split(|byte| *byte == b'\n')
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        let messages: Vec<_> = lines.iter().map(|line| line["message"].as_str().unwrap()).collect();
        let [panic, end] = messages[..] else { panic!("{lines:?}") };
        assert!(panic.contains("two\nlines\n") && panic.contains("as_json_a_panic"), "{panic}");
        assert_eq!((end, &lines[1]["target"]), ("the \"end\"", &"xvsd".into()));
        assert!(lines.iter().all(|line| line["level"] == "ERROR"), "{lines:?}");
    }

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
        assert!(warning.text.contains("3 lines are lost: No space left on device"), "{warning}");

        Sink { to: io::sink(), writing }.write_all(b"a line\n").unwrap();
        assert_eq!((losses.warning(), losses.lines()), (None, 3));
    }
}
