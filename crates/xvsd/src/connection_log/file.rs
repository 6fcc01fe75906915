//! The file of the log: whole lines, rotation at a size, and no end of xvsd when the disk is full.
//!
//! Lines are appended (O_APPEND), so a successor may write to the same file while its predecessor ends. A file that was
//! moved or removed is noticed once a second, and replaced with a new one. A directory of another user is refused, and
//! no link is followed: with them a user could have root's xvsd write to another file.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use xvs_ctl::config::connection_log::ConnectionLog as Section;
use xvs_host::own_folder::{self, FolderError, Writers};

/// The interval of checking whether the file still exists.
const LOOK: Duration = Duration::from_secs(1);

/// The file and those that are kept beside it.
pub(super) struct LogFile {
    path: PathBuf,
    max_bytes: u64,
    kept: u32,
    open: Option<Open>,
}

struct Open {
    file: File,
    bytes: u64,
    looked: Instant,
    /// The last line has no end, because the disk was full and the line could not be taken back.
    is_torn: bool,
}

/// Lines that were not written.
#[derive(Debug)]
pub(super) struct Failed {
    /// The whole lines before them, which were written.
    pub(super) lines: u64,
    pub(super) error: io::Error,
}

impl LogFile {
    pub(super) fn new(path: &Path, section: &Section) -> Self {
        Self {
            path: path.to_owned(),
            max_bytes: section.file_mib << 20,
            kept: section.files_kept,
            open: None,
        }
    }

    /// Appends whole lines, in a new file if the present one would become too large.
    pub(super) fn write(&mut self, lines: &[u8]) -> Result<(), Failed> {
        let open = self.ready(lines.len() as u64).map_err(|error| Failed { lines: 0, error })?;
        match open.append(lines) {
            Ok(()) => Ok(()),
            Err(failed) => {
                // Opened again, in case that the file itself is the fault.
                if open.bytes == 0 {
                    self.open = None;
                }
                Err(failed)
            }
        }
    }

    /// The file, with room for this many bytes.
    fn ready(&mut self, more: u64) -> io::Result<&mut Open> {
        if self.open.as_mut().is_some_and(|open| open.is_gone(&self.path)) {
            self.open = None;
        }
        let bytes = match &self.open {
            Some(open) => open.bytes,
            None => self.open.insert(Open::of(&self.path)?).bytes,
        };
        if bytes > 0 && bytes + more > self.max_bytes {
            let full = self.open.take();
            // Another program may have moved it since the last check; the current file, if any, is not full.
            if full.is_some_and(|full| full.is_at(&self.path)) {
                self.rotate()?;
            }
        }
        match &mut self.open {
            Some(open) => Ok(open),
            none => Ok(none.insert(Open::of(&self.path)?)),
        }
    }

    /// Gives the file and those beside it their next names; the last one is removed.
    fn rotate(&self) -> io::Result<()> {
        // Another program may move or remove files at the same time.
        let unless_gone = |done: io::Result<()>| match done {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        if self.kept == 0 {
            return unless_gone(fs::remove_file(&self.path));
        }
        for number in (1..self.kept).rev() {
            unless_gone(fs::rename(self.older(number), self.older(number + 1)))?;
        }
        unless_gone(fs::rename(&self.path, self.older(1)))
    }

    fn older(&self, number: u32) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!(".{number}"));
        path.into()
    }
}

impl Open {
    fn of(path: &Path) -> io::Result<Self> {
        let (parent, name) = path.parent().zip(path.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
        let folder = match own_folder::open(parent, Writers::Group) {
            Err(FolderError::System(error)) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o750).create(parent)?;
                own_folder::open(parent, Writers::Group)
            }
            opened => opened,
        }
        .map_err(|error| match error {
            FolderError::System(error) => error,
            refused => io::Error::other(refused),
        })?;
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Addresses of clients are not for every user.
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
        let file = openat(&folder, name, flags, mode).map(File::from).map_err(|error| match error {
            Errno::LOOP => io::Error::other("it is a symbolic link; name the file itself"),
            error => error.into(),
        })?;
        Ok(Self { bytes: file.metadata()?.len(), file, looked: Instant::now(), is_torn: false })
    }

    /// Whether its path now refers to another file, or to none.
    fn is_gone(&mut self, path: &Path) -> bool {
        if self.looked.elapsed() < LOOK {
            return false;
        }
        self.looked = Instant::now();
        !self.is_at(path)
    }

    /// Whether it is the file at a path.
    fn is_at(&self, path: &Path) -> bool {
        let own = self.file.metadata().map(|about| (about.dev(), about.ino())).ok();
        let found = fs::metadata(path).map(|about| (about.dev(), about.ino())).ok();
        own == found
    }

    fn append(&mut self, lines: &[u8]) -> Result<(), Failed> {
        if self.is_torn {
            self.file.write_all(b"\n").map_err(|error| Failed { lines: 0, error })?;
            (self.is_torn, self.bytes) = (false, self.bytes + 1);
        }
        let mut written = 0;
        let error = loop {
            match self.file.write(&lines[written..]) {
                Ok(0) => break io::ErrorKind::WriteZero.into(),
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error,
            }
            if written == lines.len() {
                self.bytes += written as u64;
                return Ok(());
            }
        };
        let whole = lines[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let before = self.bytes;
        self.bytes += written as u64;
        if whole < written {
            // Only if no other process has written after it.
            let is_alone = self.file.metadata().is_ok_and(|about| about.len() == self.bytes);
            if is_alone && self.file.set_len(before + whole as u64).is_ok() {
                self.bytes = before + whole as u64;
            } else {
                self.is_torn = true;
            }
        }
        let lines = lines[..whole].iter().filter(|byte| **byte == b'\n').count() as u64;
        Err(Failed { lines, error })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    /// A directory that is removed on drop.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("xvs-log-file-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        fn file(&self, max_bytes: u64, kept: u32) -> LogFile {
            LogFile { path: self.0.join("log"), max_bytes, kept, open: None }
        }

        fn read(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.0.join(name)).ok()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_full_file_is_kept_under_the_next_name_and_the_oldest_is_removed() {
        let folder = Folder::new("rotation");
        let mut file = folder.file(8, 2);
        for line in ["one\n", "two\n", "three\n", "four\n", "five\n", "six\n"] {
            file.write(line.as_bytes()).unwrap();
        }
        let found = ["log", "log.1", "log.2", "log.3"].map(|name| folder.read(name));
        assert_eq!(
            found,
            [Some("six\n"), Some("five\n"), Some("four\n"), None].map(|text| text.map(str::to_owned))
        );
        let mut file = folder.file(8, 0);
        file.write(b"seven\n").unwrap();
        assert_eq!(folder.read("log").as_deref(), Some("seven\n"));
    }

    #[test]
    fn a_file_is_continued_after_a_restart_and_begun_anew_where_it_was_moved_away() {
        let folder = Folder::new("moved");
        folder.file(100, 1).write(b"before\n").unwrap();
        let mut file = folder.file(100, 1);
        file.write(b"after\n").unwrap();
        assert_eq!(folder.read("log").as_deref(), Some("before\nafter\n"));
        fs::rename(folder.0.join("log"), folder.0.join("moved")).unwrap();
        let open = file.open.as_mut().unwrap();
        open.looked = open.looked.checked_sub(2 * LOOK).unwrap();
        file.write(b"anew\n").unwrap();
        assert_eq!(folder.read("log").as_deref(), Some("anew\n"));
    }

    /// Needs root.
    #[test]
    fn a_folder_of_another_user_and_a_link_are_refused_with_the_step_and_nothing_is_written_behind_them() {
        let folder = Folder::new("refused");
        let target = folder.0.join("precious");
        fs::write(&target, "precious").unwrap();
        let refused = || folder.file(100, 1).write(b"line\n").unwrap_err().error.to_string();
        symlink(&target, folder.0.join("log")).unwrap();
        assert_eq!(refused(), "it is a symbolic link; name the file itself");
        chown(&folder.0, Some(65534), None).unwrap();
        let why = refused();
        assert!(why.contains("belongs to user 65534") && why.contains("`chown -R 0: /"), "{why}");
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    }

    #[test]
    fn a_full_file_that_another_program_has_just_moved_costs_no_line_and_no_older_file() {
        for kept in [0, 2] {
            let folder = Folder::new(&format!("raced-{kept}"));
            let mut file = folder.file(8, kept);
            file.write(b"one\n").unwrap();
            // As logrotate does without and with `create`.
            fs::rename(folder.0.join("log"), folder.0.join("log.1")).unwrap();
            file.write(b"second\n").unwrap();
            assert_eq!(
                [folder.read("log"), folder.read("log.1")],
                [Some("second\n".into()), Some("one\n".into())]
            );
            fs::rename(folder.0.join("log"), folder.0.join("moved")).unwrap();
            fs::write(folder.0.join("log"), "").unwrap();
            file.write(b"third\n").unwrap();
            assert_eq!(
                [folder.read("log"), folder.read("log.1")],
                [Some("third\n".into()), Some("one\n".into())]
            );
        }
    }

    #[test]
    fn a_full_disk_costs_lines_and_not_the_writer() {
        let mut file = LogFile { path: "/dev/full".into(), max_bytes: 100, kept: 1, open: None };
        for _ in 0..2 {
            let failed = file.write(b"one\ntwo\n").unwrap_err();
            assert_eq!((failed.lines, failed.error.kind()), (0, io::ErrorKind::StorageFull));
        }
        let mut file = LogFile { path: "/dev/null/log".into(), max_bytes: 100, kept: 1, open: None };
        assert_eq!(file.write(b"one\n").unwrap_err().error.kind(), io::ErrorKind::NotADirectory);
    }
}
