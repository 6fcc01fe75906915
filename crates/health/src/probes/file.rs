//! `FILE_CHECK`: the number at the start of a file.
//!
//! Each file is read once a second, for all its checks together; a change of its number is a result for each of them.
//! The file may therefore be changed, replaced or removed in any manner, and its directory may be missing. A file that
//! does not exist, is empty or does not start with a number counts as 0. A file that is being written is empty for a
//! moment, so an empty file counts only when two reads in a row see it. A file that cannot be read gives no result for
//! the server. Cost: some system calls a second for each file, on a blocking thread, because the file system may be
//! remote.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;
use std::{fs, io};

use tokio::sync::watch;
use tokio::time::sleep;
use xvs_model::health_checks::check::{FileWeight, Init, TrackFile};

use crate::blocking::run_blocking;
use crate::probes::probe_result::ProbeResult;

/// The watched files. Kept over a reload, so that `init_file` is done once for a file that stays watched.
#[derive(Debug, Default)]
pub(crate) struct Files(HashMap<PathBuf, Weak<watch::Sender<Option<Seen>>>>);

/// The number of a file, or why it cannot be read.
type Seen = Result<i64, String>;

impl Files {
    /// Watches a file for one check. Must be called on the health runtime.
    pub(crate) fn watch(&mut self, file: &TrackFile) -> Watch {
        let sender = self.0.get(&file.path).and_then(Weak::upgrade).unwrap_or_else(|| {
            let sender = Arc::new(watch::Sender::new(None));
            self.0.insert(file.path.clone(), Arc::downgrade(&sender));
            tokio::spawn(poll_file(Arc::new(file.path.clone()), file.init, Arc::downgrade(&sender)));
            sender
        });
        let mut seen = sender.subscribe();
        if seen.borrow().is_some() {
            // The check is new, so the current number is a change for it.
            seen.mark_changed();
        }
        Watch { seen, _sender: sender, path: file.path.clone(), weight: file.weight }
    }

    /// Forgets the files that no check watches any more.
    pub(crate) fn forget_unwatched(&mut self) {
        self.0.retain(|_, sender| sender.strong_count() > 0);
    }
}

/// A file as one check watches it.
#[derive(Debug)]
pub(crate) struct Watch {
    seen: watch::Receiver<Option<Seen>>,
    /// The file is read while a copy of this sender exists.
    _sender: Arc<watch::Sender<Option<Seen>>>,
    path: PathBuf,
    weight: FileWeight,
}

impl Watch {
    /// Waits for the first result of the file, and then for each change of it.
    pub(crate) async fn changed(&mut self) -> ProbeResult {
        // `_sender` keeps the channel open, so this never fails.
        let _ = self.seen.changed().await;
        match &*self.seen.borrow_and_update() {
            Some(Ok(number)) => result(self.weight, *number, &self.path),
            Some(Err(why)) => ProbeResult::NotRun(why.clone()),
            None => ProbeResult::NotRun(format!("{}: not read yet", self.path.display())),
        }
    }
}

/// The probe result of a number.
fn result(weight: FileWeight, number: i64, path: &Path) -> ProbeResult {
    let file = path.display();
    if weight.factor == 0 {
        let expected = if weight.is_reversed { "another number than 0" } else { "0" };
        return match (number == 0) == weight.is_reversed {
            true => ProbeResult::Failed(format!("{file} contains {number}, expected {expected}")),
            false => ProbeResult::Passed(0),
        };
    }
    let factor = if weight.is_reversed { -i64::from(weight.factor) } else { weight.factor.into() };
    match number.saturating_mul(factor) {
        change if change <= i32::MIN.into() => ProbeResult::Failed(format!("{file} contains {number}")),
        change => ProbeResult::Passed(change.min(i32::MAX.into())),
    }
}

/// Reads a file every second until no check watches it.
async fn poll_file(path: Arc<PathBuf>, init: Option<Init>, sender: Weak<watch::Sender<Option<Seen>>>) {
    if let Some(init) = init {
        let path = Arc::clone(&path);
        let _ = run_blocking(move || write_initial(&path, init)).await;
    }
    let mut was_empty = true;
    loop {
        let shared = Arc::clone(&path);
        let number = run_blocking(move || read_number(&shared))
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)));
        let Some(sender) = sender.upgrade() else { return };
        let is_empty = matches!(number, Ok(None));
        if !is_empty || was_empty || sender.borrow().is_none() {
            let seen = Some(
                number.map(Option::unwrap_or_default).map_err(|error| format!("{}: {error}", path.display())),
            );
            sender.send_if_modified(|last| {
                let has_changed = *last != seen;
                *last = seen;
                has_changed
            });
        }
        was_empty = is_empty;
        drop(sender);
        sleep(INTERVAL).await;
    }
}

/// From one read to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// Writes the initial number to a file (`init_file`).
fn write_initial(path: &Path, init: Init) {
    if path.exists() && !init.overwrites {
        return;
    }
    if let Err(error) = fs::write(path, format!("{}\n", init.value)) {
        tracing::error!("`init_file` of {}: {error}", path.display());
    }
}

/// The number in a file; `None` if the file exists and is empty.
fn read_number(path: &Path) -> io::Result<Option<i64>> {
    let metadata = match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(0)),
        metadata => metadata?,
    };
    if !metadata.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut start = Vec::new();
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(0)),
        file => file?.take(START_BYTES).read_to_end(&mut start)?,
    };
    Ok((!start.is_empty()).then(|| number(&start)))
}

/// The number of bytes that are read from a file.
const START_BYTES: u64 = 64;

/// The number at the start of a text, after white space; 0 if there is none.
fn number(text: &[u8]) -> i64 {
    let text = text.trim_ascii_start();
    let (sign, digits) = match text {
        [b'-', rest @ ..] => (-1, rest),
        [b'+', rest @ ..] => (1, rest),
        _ => (1, text),
    };
    let value = digits
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0, |value: i64, digit| value.saturating_mul(10).saturating_add((digit - b'0').into()));
    sign * value
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use crate::command::testing::Folder;
    use crate::probes::file::*;

    fn weight(factor: i32, is_reversed: bool) -> FileWeight {
        FileWeight { factor, is_reversed }
    }

    fn file(folder: &Folder, weight: FileWeight) -> TrackFile {
        TrackFile { name: "f".to_owned(), path: folder.path("f"), weight, init: None }
    }

    /// Replaces a file as a whole.
    fn replace(folder: &Folder, text: &str) {
        fs::write(folder.path("new"), text).unwrap();
        fs::rename(folder.path("new"), folder.path("f")).unwrap();
    }

    #[test]
    fn with_weight_0_any_number_but_0_fails_and_reversed_only_0_fails() {
        let path = Path::new("/f");
        let passes = |weight: FileWeight, number| result(weight, number, path) == ProbeResult::Passed(0);
        let plain = weight(0, false);
        assert_eq!([-1, 0, 7].map(|number| passes(plain, number)), [false, true, false]);
        let reversed = weight(0, true);
        assert_eq!([-1, 0, 7].map(|number| passes(reversed, number)), [true, false, true]);
        let ProbeResult::Failed(why) = result(plain, 7, path) else { panic!() };
        assert_eq!(why, "/f contains 7, expected 0");
    }

    #[test]
    fn another_weight_multiplies_the_number_and_a_result_below_all_weights_fails() {
        let result = |weight: FileWeight, number| result(weight, number, Path::new("/f"));
        assert_eq!(result(weight(3, false), 5), ProbeResult::Passed(15));
        assert_eq!(result(weight(3, true), 5), ProbeResult::Passed(-15));
        assert_eq!(result(weight(1, false), -2_147_483_647), ProbeResult::Passed(-2_147_483_647));
        assert!(matches!(result(weight(1, false), -2_147_483_648), ProbeResult::Failed(_)));
        assert!(matches!(result(weight(i32::MAX, true), i64::MAX), ProbeResult::Failed(_)));
        assert_eq!(result(weight(2, false), i64::MAX), ProbeResult::Passed(2_147_483_647));
    }

    #[test]
    fn the_number_is_at_the_start_and_a_text_without_one_is_0() {
        let texts = ["5\n", " -12 because", "+3", "7x", "x7", "-", "1.5", "99999999999999999999"];
        let numbers = texts.map(|text| number(text.as_bytes()));
        assert_eq!(numbers, [5, -12, 3, 7, 0, 0, 1, i64::MAX]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_may_be_created_changed_replaced_and_removed() {
        let folder = Folder::new();
        let mut files = Files::default();
        let mut watch = files.watch(&file(&folder, weight(1, false)));
        assert_eq!(watch.changed().await, ProbeResult::Passed(0));
        for (text, want) in [("1", 1), ("22\n", 22)] {
            fs::write(folder.path("f"), text).unwrap();
            assert_eq!(watch.changed().await, ProbeResult::Passed(want));
        }
        replace(&folder, "3");
        assert_eq!(watch.changed().await, ProbeResult::Passed(3));
        fs::remove_file(folder.path("f")).unwrap();
        assert_eq!(watch.changed().await, ProbeResult::Passed(0));
        fs::write(folder.path("other"), "4").unwrap();
        symlink("other", folder.path("f")).unwrap();
        assert_eq!(watch.changed().await, ProbeResult::Passed(4));
        fs::write(folder.path("other"), "").unwrap();
        assert_eq!(watch.changed().await, ProbeResult::Passed(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_cannot_be_read_counts_as_not_run() {
        let folder = Folder::new();
        fs::create_dir(folder.path("f")).unwrap();
        let mut files = Files::default();
        let mut watch = files.watch(&file(&folder, weight(1, false)));
        let ProbeResult::NotRun(why) = watch.changed().await else { panic!() };
        assert_eq!(why, format!("{}: not a file", folder.path("f").display()));
        fs::remove_dir(folder.path("f")).unwrap();
        assert_eq!(watch.changed().await, ProbeResult::Passed(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_empty_for_a_moment_is_being_written() {
        let folder = Folder::new();
        fs::write(folder.path("f"), "1").unwrap();
        let mut files = Files::default();
        let mut watch = files.watch(&file(&folder, weight(1, false)));
        assert_eq!(watch.changed().await, ProbeResult::Passed(1));
        fs::write(folder.path("f"), "").unwrap();
        // The first read of the empty file is within a second; the second one is later.
        assert!(tokio::time::timeout(Duration::from_millis(1500), watch.changed()).await.is_err());
        fs::write(folder.path("f"), "2").unwrap();
        assert_eq!(watch.changed().await, ProbeResult::Passed(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_of_several_checks_is_read_once_and_each_check_applies_its_weight() {
        let folder = Folder::new();
        fs::write(folder.path("f"), "5").unwrap();
        let mut files = Files::default();
        let mut first = files.watch(&file(&folder, weight(1, false)));
        assert_eq!(first.changed().await, ProbeResult::Passed(5));
        let mut second = files.watch(&file(&folder, weight(2, true)));
        assert_eq!(second.changed().await, ProbeResult::Passed(-10));
        assert_eq!(files.0.len(), 1);
        fs::write(folder.path("f"), "6").unwrap();
        assert_eq!(
            (first.changed().await, second.changed().await),
            (ProbeResult::Passed(6), ProbeResult::Passed(-12))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_initial_number_is_written_once_and_overwrites_only_if_configured() {
        let folder = Folder::new();
        let mut files = Files::default();
        let init = |files: &mut Files, overwrites, value| {
            let init = Some(Init { value, overwrites });
            files.watch(&TrackFile { init, ..file(&folder, weight(1, false)) })
        };
        let mut first = init(&mut files, false, 3);
        assert_eq!(first.changed().await, ProbeResult::Passed(3));
        assert_eq!(folder.read("f"), "3\n");
        files.forget_unwatched();
        assert_eq!(
            init(&mut files, true, 4).changed().await,
            ProbeResult::Passed(3),
            "the file is watched already"
        );
        drop(first);
        files.forget_unwatched();
        assert!(files.0.is_empty());
        assert_eq!(init(&mut files, false, 5).changed().await, ProbeResult::Passed(3));
        files.forget_unwatched();
        assert_eq!(init(&mut files, true, 6).changed().await, ProbeResult::Passed(6));
    }
}
