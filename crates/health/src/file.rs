//! `FILE_CHECK`: the number that a file begins with.
//!
//! Each file is looked at once a second, however many checks ask for it, and told when it says something else. So it does
//! not matter how it is changed, replaced or removed, or whether its folder is there yet. What is not there, is empty or
//! begins with no number counts as 0. A file that is being written is empty for a moment, so that this counts when it is
//! seen twice. One that cannot be read says nothing. Cost: some system calls a second for each file, on a thread where they
//! may wait, since a file may be far away. Not here: what follows for the server.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;
use std::{fs, io};

use tokio::sync::watch;
use tokio::time::sleep;
use xvs_model::check::{FileWeight, Init, TrackFile};

use crate::blocking::run_blocking;
use crate::probe_result::ProbeResult;

/// The files that are watched, each for as long as a check watches it. Kept when the configuration is read again: what
/// `init_file` says is done once.
#[derive(Debug, Default)]
pub(super) struct Files(HashMap<PathBuf, Weak<watch::Sender<Option<Seen>>>>);

/// The number of a file, or why it cannot be known.
type Seen = Result<i64, String>;

impl Files {
    /// Watches a file for one check. Runs on the runtime.
    pub(super) fn watch(&mut self, file: &TrackFile) -> Watch {
        let tells = self.0.get(&file.path).and_then(Weak::upgrade).unwrap_or_else(|| {
            let tells = Arc::new(watch::Sender::new(None));
            self.0.insert(file.path.clone(), Arc::downgrade(&tells));
            tokio::spawn(look_again(file.path.clone(), file.init, Arc::downgrade(&tells)));
            tells
        });
        let mut seen = tells.subscribe();
        if seen.borrow().is_some() {
            // For this check it is new.
            seen.mark_changed();
        }
        Watch { seen, _tells: tells, path: file.path.clone(), weight: file.weight }
    }

    /// Forgets the names of those that no check asks for any more.
    pub(super) fn forget_unwatched(&mut self) {
        self.0.retain(|_, tells| tells.strong_count() > 0);
    }
}

/// A file as one check watches it.
#[derive(Debug)]
pub(super) struct Watch {
    seen: watch::Receiver<Option<Seen>>,
    /// While anybody has it, the file is looked at.
    _tells: Arc<watch::Sender<Option<Seen>>>,
    path: PathBuf,
    weight: FileWeight,
}

impl Watch {
    /// What the file says, as soon as that is known for the first time, and then each time it says something else.
    pub(super) async fn changed(&mut self) -> ProbeResult {
        // It has what tells itself, so that this is never closed.
        let _ = self.seen.changed().await;
        match &*self.seen.borrow_and_update() {
            Some(Ok(number)) => answer(self.weight, *number, &self.path),
            Some(Err(why)) => ProbeResult::NotRun(why.clone()),
            None => ProbeResult::NotRun(format!("{}: not looked at yet", self.path.display())),
        }
    }
}

/// What the number of a file means for its server.
fn answer(weight: FileWeight, number: i64, path: &Path) -> ProbeResult {
    let file = path.display();
    if weight.factor == 0 {
        let wants = if weight.is_reversed { "another number than 0" } else { "0" };
        return match (number == 0) == weight.is_reversed {
            true => ProbeResult::Failed(format!("{file} says {number}, and {wants} is wanted")),
            false => ProbeResult::Passed(0),
        };
    }
    let factor = if weight.is_reversed { -i64::from(weight.factor) } else { weight.factor.into() };
    match number.saturating_mul(factor) {
        change if change <= i32::MIN.into() => ProbeResult::Failed(format!("{file} says {number}")),
        change => ProbeResult::Passed(change.min(i32::MAX.into())),
    }
}

/// Looks at a file until nobody watches it.
async fn look_again(path: PathBuf, init: Option<Init>, tells: Weak<watch::Sender<Option<Seen>>>) {
    let path = Arc::new(path);
    if let Some(init) = init {
        let path = Arc::clone(&path);
        let _ = run_blocking(move || begin(&path, init)).await;
    }
    let mut was_empty = true;
    loop {
        let looked = Arc::clone(&path);
        let looked = run_blocking(move || look(&looked)).await;
        let Some(tells) = tells.upgrade() else { return };
        let looked = looked.unwrap_or_else(|error| Err(io::Error::other(error)));
        let is_empty = matches!(looked, Ok(None));
        if !is_empty || was_empty || tells.borrow().is_none() {
            let seen = looked.map(Option::unwrap_or_default);
            let seen = Some(seen.map_err(|error| format!("{}: {error}", path.display())));
            tells.send_if_modified(|last| {
                let is_other = *last != seen;
                *last = seen;
                is_other
            });
        }
        was_empty = is_empty;
        drop(tells);
        sleep(INTERVAL).await;
    }
}

/// From one look to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// Writes what a file holds at first.
fn begin(path: &Path, init: Init) {
    if path.exists() && !init.overwrites {
        return;
    }
    if let Err(error) = fs::write(path, format!("{}\n", init.value)) {
        tracing::error!("`init_file` of {}: {error}", path.display());
    }
}

/// The number of a file; `None`: it is there and empty.
fn look(path: &Path) -> io::Result<Option<i64>> {
    let metadata = match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(0)),
        metadata => metadata?,
    };
    if !metadata.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut begin = Vec::new();
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(0)),
        file => file?.take(BEGIN_BYTES).read_to_end(&mut begin)?,
    };
    Ok((!begin.is_empty()).then(|| number(&begin)))
}

/// More of a file is not read.
const BEGIN_BYTES: u64 = 64;

/// The number that a text begins with, behind blanks; 0 without any.
fn number(text: &[u8]) -> i64 {
    let text = text.trim_ascii_start();
    let (sign, digits) = match text {
        [b'-', rest @ ..] => (-1, rest),
        [b'+', rest @ ..] => (1, rest),
        _ => (1, text),
    };
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    let value =
        digits.fold(0, |value: i64, digit| value.saturating_mul(10).saturating_add((digit - b'0').into()));
    sign * value
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use crate::command::testing::Folder;
    use crate::file::*;

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
    fn with_weight_0_any_number_but_0_is_not_well_and_reversed_only_0() {
        let path = Path::new("/f");
        let is_well = |weight: FileWeight, number| answer(weight, number, path) == ProbeResult::Passed(0);
        let plain = weight(0, false);
        assert_eq!([-1, 0, 7].map(|number| is_well(plain, number)), [false, true, false]);
        let reversed = weight(0, true);
        assert_eq!([-1, 0, 7].map(|number| is_well(reversed, number)), [true, false, true]);
        let ProbeResult::Failed(why) = answer(plain, 7, path) else { panic!() };
        assert_eq!(why, "/f says 7, and 0 is wanted");
    }

    #[test]
    fn another_weight_multiplies_the_number_and_what_is_below_all_weights_is_not_well() {
        let answer = |weight: FileWeight, number| answer(weight, number, Path::new("/f"));
        assert_eq!(answer(weight(3, false), 5), ProbeResult::Passed(15));
        assert_eq!(answer(weight(3, true), 5), ProbeResult::Passed(-15));
        assert_eq!(answer(weight(1, false), -2_147_483_647), ProbeResult::Passed(-2_147_483_647));
        assert!(matches!(answer(weight(1, false), -2_147_483_648), ProbeResult::Failed(_)));
        assert!(matches!(answer(weight(i32::MAX, true), i64::MAX), ProbeResult::Failed(_)));
        assert_eq!(answer(weight(2, false), i64::MAX), ProbeResult::Passed(2_147_483_647));
    }

    #[test]
    fn a_number_stands_at_the_begin_and_what_is_none_is_0() {
        let texts = ["5\n", " -12 because", "+3", "7x", "x7", "-", "1.5", "99999999999999999999"];
        let numbers = texts.map(|text| number(text.as_bytes()));
        assert_eq!(numbers, [5, -12, 3, 7, 0, 0, 1, i64::MAX]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_may_come_change_be_replaced_and_go_again() {
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
    async fn a_file_that_cannot_be_read_says_nothing_until_it_can() {
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
    async fn what_is_empty_for_a_moment_is_being_written() {
        let folder = Folder::new();
        fs::write(folder.path("f"), "1").unwrap();
        let mut files = Files::default();
        let mut watch = files.watch(&file(&folder, weight(1, false)));
        assert_eq!(watch.changed().await, ProbeResult::Passed(1));
        fs::write(folder.path("f"), "").unwrap();
        // The first look is over within a second, the second comes later.
        assert!(tokio::time::timeout(Duration::from_millis(1500), watch.changed()).await.is_err());
        fs::write(folder.path("f"), "2").unwrap();
        assert_eq!(watch.changed().await, ProbeResult::Passed(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_of_several_checks_is_looked_at_for_all_and_tells_each_by_its_weight() {
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
    async fn what_a_file_holds_at_first_is_written_once_and_only_over_others_if_it_says_so() {
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
            "it is watched already"
        );
        drop(first);
        files.forget_unwatched();
        assert!(files.0.is_empty());
        assert_eq!(init(&mut files, false, 5).changed().await, ProbeResult::Passed(3));
        files.forget_unwatched();
        assert_eq!(init(&mut files, true, 6).changed().await, ProbeResult::Passed(6));
    }
}
