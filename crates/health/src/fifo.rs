//! `notify_fifo` and `lvs_notify_fifo`: a FIFO that gets one line for each change, and the program that reads it.
//!
//! A line is written whole and without waiting. When the FIFO is full (64 KiB) because no program reads it, lines are
//! lost, counted and logged. xvs creates the FIFO if it does not exist, and at the end removes a FIFO that it has
//! created. The reader program is ended when the FIFO is closed; a program that ends by itself is not restarted. Cost:
//! one system call for each line. `virtual_server/notice.rs` formats the lines.

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::time::Duration;
use std::{fs, io};

use rustix::fs::{CWD, Mode, OFlags, mkfifoat};
use rustix::io::ioctl_fionread;
use thiserror::Error;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use xvs_helper::{AccountError, account};
use xvs_model::health_checks::check::Script;
use xvs_model::health_checks::virtual_server::{Fifo as FifoSettings, Globals};

use crate::command::{Program, RunLock};

/// An open FIFO.
#[derive(Debug)]
pub(super) struct Fifo {
    path: String,
    pipe: File,
    /// Device and inode number, if xvs has created the FIFO.
    created: Option<(u64, u64)>,
    /// The number of lines lost since the last line that was written.
    lost: u64,
    reader: Option<(Program, JoinHandle<()>)>,
}

/// Why a FIFO cannot be used.
#[derive(Debug, Error)]
pub(super) enum FifoError {
    /// The FIFO cannot be created or opened, or its settings cannot be changed.
    #[error("{path}: {error}")]
    Io { path: String, error: io::Error },
    #[error("{0} exists and is no FIFO")]
    OtherFile(String),
    /// The user or group does not exist.
    #[error(transparent)]
    NoAccount(AccountError),
}

impl Fifo {
    /// Opens a FIFO and starts its reader. Must be called on the health runtime.
    ///
    /// # Errors
    ///
    /// The file cannot be created or opened, is not a FIFO, or its user or group does not exist.
    pub(super) fn open(fifo: &FifoSettings, globals: &Globals) -> Result<Self, FifoError> {
        let path = fifo.path.clone();
        let is_new = create(&path).map_err(|error| FifoError::Io { path: path.clone(), error })?;
        let (metadata, pipe) = open_pipe(&path)
            .and_then(|pipe| Ok((pipe.metadata()?, pipe)))
            .map_err(|error| FifoError::Io { path: path.clone(), error })?;
        if !metadata.file_type().is_fifo() {
            return Err(FifoError::OtherFile(path));
        }
        let created = is_new.then_some((metadata.dev(), metadata.ino()));
        let mut opened = Self { created, path, pipe, lost: 0, reader: None };
        if is_new {
            opened.set_access(fifo)?;
        }
        if let Some(script) = reader(fifo) {
            let program = Program::new(&script, globals, RunLock::default());
            opened.reader = Some((program.clone(), tokio::spawn(run_reader(program, script.text))));
        }
        Ok(opened)
    }

    /// Sets the permissions and the owner of a new FIFO.
    fn set_access(&self, fifo: &FifoSettings) -> Result<(), FifoError> {
        self.pipe
            .set_permissions(Permissions::from_mode(FIFO_MODE.bits()))
            .map_err(|error| FifoError::Io { path: self.path.clone(), error })?;
        let Some(user) = &fifo.user else { return Ok(()) };
        let (user, group) = account(user, fifo.group.as_deref()).map_err(FifoError::NoAccount)?;
        fchown(&self.pipe, Some(user), Some(group))
            .map_err(|error| FifoError::Io { path: self.path.clone(), error })
    }

    /// Writes a line, given without its line feed.
    pub(super) fn write(&mut self, line: &str) {
        match self.pipe.write_all(format!("{line}\n").as_bytes()) {
            Ok(()) if self.lost > 0 => {
                tracing::warn!("{}: {} lines are lost that were not read in time", self.path, self.lost);
                self.lost = 0;
            }
            Ok(()) => {}
            Err(error) => {
                if self.lost == 0 {
                    tracing::warn!("{}: {error}; lines are lost until a program reads them", self.path);
                }
                self.lost += 1;
            }
        }
    }

    /// Waits at most [`READ_TIME`] until the reader has read all lines, then ends it and waits for its end.
    pub(super) async fn close(mut self) {
        if let Some((program, reading)) = self.reader.take() {
            let is_read = async {
                while !reading.is_finished() && ioctl_fionread(&self.pipe).is_ok_and(|bytes| bytes > 0) {
                    sleep(POLL_INTERVAL).await;
                }
            };
            let _ = timeout(READ_TIME, is_read).await;
            reading.abort();
            let _ = timeout(END_TIME, program.wait_until_ended()).await;
        }
    }
}

/// Creates a FIFO. Returns `false` if the file exists.
fn create(path: &str) -> io::Result<bool> {
    match mkfifoat(CWD, path, FIFO_MODE) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Also opens the file for reading, so that the FIFO stays open without a reader.
fn open_pipe(path: &str) -> io::Result<File> {
    File::options().read(true).write(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)
}

impl Drop for Fifo {
    fn drop(&mut self) {
        if let Some((_, reading)) = &self.reader {
            reading.abort();
        }
        let there = fs::symlink_metadata(&self.path).ok().map(|there| (there.dev(), there.ino()));
        if self.created.is_some() && self.created == there {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The program that reads a FIFO, whose path is its last argument.
pub(super) fn reader(fifo: &FifoSettings) -> Option<Script> {
    let mut script = fifo.script.clone()?;
    script.text = format!("{} '{}'", script.text, fifo.path);
    script.argv.push(fifo.path.clone());
    Some(script)
}

/// Runs a reader without a time limit.
async fn run_reader(program: Program, name: String) {
    let outcome = program.run(Instant::now() + FOREVER).await;
    tracing::error!("`{name}` has ended: {outcome}; it is started again when the settings of a FIFO change");
}

/// Readable for all, writable for the owner.
const FIFO_MODE: Mode = Mode::from_raw_mode(0o644);

/// The time that a reader has to read the last lines, and the interval at which this is checked.
const READ_TIME: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The time for a reader to end; longer than the time from SIGTERM to SIGKILL.
const END_TIME: Duration = Duration::from_secs(3);

/// A deadline that is never reached.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use std::io::Read;

    use crate::command::testing::{Folder, runs, until, written};
    use crate::fifo::*;

    fn fifo(folder: &Folder) -> FifoSettings {
        FifoSettings { path: folder.path("fifo").display().to_string(), ..FifoSettings::default() }
    }

    fn open(fifo: &FifoSettings) -> Result<Fifo, FifoError> {
        Fifo::open(fifo, &Globals::default())
    }

    /// All bytes that are in the FIFO now.
    fn read_now(folder: &Folder) -> String {
        let flags = OFlags::NONBLOCK.bits() as i32;
        let mut pipe = File::options().read(true).custom_flags(flags).open(folder.path("fifo")).unwrap();
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_fifo_is_created_with_its_mode_and_owner_and_removed_at_the_end() {
        let folder = Folder::new();
        let (user, group) = (Some("nobody".to_owned()), Some("daemon".to_owned()));
        let fifo = FifoSettings { user, group, ..fifo(&folder) };
        let opened = open(&fifo).unwrap();
        let metadata = fs::metadata(&fifo.path).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o644, 65534, 1));
        drop(opened);
        assert!(!fs::exists(&fifo.path).unwrap());
    }

    #[test]
    fn an_existing_fifo_stays_and_a_path_that_is_no_fifo_is_refused_and_left_alone() {
        let folder = Folder::new();
        let fifo = fifo(&folder);
        mkfifoat(CWD, &fifo.path, Mode::from_raw_mode(0o600)).unwrap();
        let mut opened = open(&fifo).unwrap();
        opened.write("VS [10.0.0.1]:tcp:80 UP");
        assert_eq!(read_now(&folder), "VS [10.0.0.1]:tcp:80 UP\n");
        drop(opened);
        assert_eq!(fs::metadata(&fifo.path).unwrap().mode() & 0o7777, 0o600);
        fs::remove_file(&fifo.path).unwrap();
        fs::write(&fifo.path, "text").unwrap();
        assert_eq!(open(&fifo).unwrap_err().to_string(), format!("{} exists and is no FIFO", fifo.path));
        assert_eq!(folder.read("fifo"), "text");
        let nowhere = FifoSettings { path: "/nonexistent/fifo".to_owned(), ..fifo };
        assert!(open(&nowhere).unwrap_err().to_string().starts_with("/nonexistent/fifo: No such file"));
    }

    #[test]
    fn lines_wait_for_a_reader_and_lines_that_do_not_fit_are_lost_whole() {
        let folder = Folder::new();
        let mut fifo = open(&fifo(&folder)).unwrap();
        let line = "RS [10.1.0.1]:tcp:80 [10.0.0.1]:tcp:80 DOWN";
        let (mut written, mut lost) = (0, 0);
        while lost < 10 {
            fifo.write(line);
            match fifo.lost {
                0 => written += 1,
                number => lost = number,
            }
        }
        let read = read_now(&folder);
        assert_eq!(read, format!("{line}\n").repeat(written));
        assert!(read.len() > 60_000);
        fifo.write("VS [10.0.0.1]:tcp:80 DOWN");
        assert_eq!((fifo.lost, read_now(&folder).as_str()), (0, "VS [10.0.0.1]:tcp:80 DOWN\n"));
    }

    #[tokio::test]
    async fn a_reader_gets_the_path_as_its_last_argument_and_every_line_and_ends_with_the_fifo() {
        let folder = Folder::new();
        let text =
            "#!/bin/sh\necho $$ >\"$1/pid\"\nwhile read line; do echo \"$line\" >>\"$1/out\"; done <\"$2\"\n";
        let script = folder.write("reader", 0o755, text);
        let script = Some(written(&format!("{} {}", script.display(), folder.0.display())));
        let mut fifo = open(&FifoSettings { script, ..fifo(&folder) }).unwrap();
        let lines = ["RS a b DOWN", "VS b DOWN", "RS a b UP", "VS b UP"];
        lines.iter().for_each(|line| fifo.write(line));
        until(|| folder.read("out").lines().eq(lines)).await;
        fifo.close().await;
        assert!(!runs(&folder.read("pid")));
        assert!(!folder.path("fifo").exists());
    }

    #[tokio::test]
    async fn a_reader_reads_the_lines_written_before_it_is_ended() {
        let folder = Folder::new();
        let text = "#!/bin/sh\nwhile read line; do sleep 0.01; echo \"$line\" >>\"$1/out\"; done <\"$2\"\n";
        let script = folder.write("reader", 0o755, text);
        let script = Some(written(&format!("{} {}", script.display(), folder.0.display())));
        let mut fifo = open(&FifoSettings { script, ..fifo(&folder) }).unwrap();
        let lines = ["RS a b DOWN", "VS b DOWN", "RS c b DOWN"];
        lines.iter().chain(&["the line in progress"]).for_each(|line| fifo.write(line));
        fifo.close().await;
        assert_eq!(folder.read("out").lines().take(3).collect::<Vec<_>>(), lines);
    }

    #[tokio::test]
    async fn a_reader_that_cannot_run_or_ends_leaves_the_lines_unread_and_harms_nothing_else() {
        let folder = Folder::new();
        let script = Some(written("/nonexistent/reader"));
        let mut fifo = open(&FifoSettings { script, ..fifo(&folder) }).unwrap();
        fifo.write("VS b UP");
        let (_, reading) = fifo.reader.take().unwrap();
        reading.await.unwrap();
        fifo.write("VS b DOWN");
        assert_eq!(read_now(&folder), "VS b UP\nVS b DOWN\n");
    }
}
