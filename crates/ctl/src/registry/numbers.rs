//! The numbers of services and destinations in files that outlive the process: the number by which connections refer to
//! a destination, totals, and the positions of schedulers.
//!
//! A record has a fixed size: numbers, and the text of a name. A destination is recorded before workers can use its
//! number; totals are recorded each time that the counters are sampled, and completely when the daemon stops. Only the
//! control thread writes, from a copy in memory, and only changed records. A failed write (the tmpfs is full) is
//! repeated with the next write.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The bytes of a record.
const RECORD: usize = 512;
/// The numbers of a record.
pub(super) const NUMBERS: usize = 12;
/// The offset of the text: its length, then its bytes.
const TEXT: usize = 8 * NUMBERS;
/// The first record, which identifies the file. A change of the records needs another version, here and in the
/// connection table, whose entries refer to destinations by these numbers.
const HEAD: &[u8] = b"xvs numbers, version 1\n";

/// Maximum length of a file that is read, with two million records. Memory is needed for all of it.
const LONGEST: u64 = 1 << 30;

/// A file of records.
#[derive(Debug)]
pub(super) struct Records {
    file: File,
    /// The contents; the first record is [`HEAD`].
    image: Vec<u8>,
    /// The records that are not written yet, a bit for each, with the first one.
    changed: Vec<u64>,
    /// Whether the file may have other content, which the first write removes.
    is_new: bool,
}

/// Records with their indices.
pub(super) type Placed<N> = Vec<(u32, Record<N>)>;

/// The contents of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record<N> {
    pub(super) name: N,
    pub(super) numbers: [u64; NUMBERS],
}

impl Records {
    /// Reads the records of a file, each with its index. Those that cannot be read are left out. A file of another kind
    /// has none, nor has one that is longer than xvsd writes.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub(super) fn read<N: DeserializeOwned>(file: File) -> io::Result<(Self, Placed<N>)> {
        let length = Some(file.metadata()?.len()).filter(|length| *length <= LONGEST).unwrap_or(0);
        let mut image = vec![0; length as usize / RECORD * RECORD];
        file.read_exact_at(&mut image, 0)?;
        if !image.starts_with(HEAD) {
            image = vec![0; RECORD];
            image[..HEAD.len()].copy_from_slice(HEAD);
        }
        let records = (0..)
            .zip(image[RECORD..].chunks_exact(RECORD))
            .filter_map(|(place, bytes)| Some((place, read(bytes)?)))
            .collect();
        let is_new = image.len() == RECORD;
        Ok((Self { file, image, changed: vec![u64::from(is_new)], is_new }, records))
    }

    /// Reads the numbers of these records again, which another process has since changed, but no name.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub(super) fn read_numbers<N>(&mut self, records: &mut Placed<N>) -> io::Result<()> {
        if !self.is_new {
            self.file.read_exact_at(&mut self.image, 0)?;
        }
        for (place, record) in records {
            record.numbers = numbers(&self.image[(*place as usize + 1) * RECORD..]);
        }
        Ok(())
    }

    /// Enters a record, possibly replacing another.
    pub(super) fn set<N: Serialize>(&mut self, place: u32, record: &Record<N>) {
        let mut bytes = [0; RECORD];
        bytes[..TEXT].copy_from_slice(record.numbers.map(u64::to_le_bytes).as_flattened());
        // A name is at most a service's key and an endpoint; a longer name would not be kept.
        if let Ok(text) = serde_json::to_vec(&record.name)
            && text.len() <= RECORD - TEXT - 2
        {
            bytes[TEXT..TEXT + 2].copy_from_slice(&(text.len() as u16).to_le_bytes());
            bytes[TEXT + 2..][..text.len()].copy_from_slice(&text);
        }
        self.put(place, &bytes);
    }

    /// Changes the numbers of a record.
    pub(super) fn set_numbers(&mut self, place: u32, numbers: [u64; NUMBERS]) {
        self.put(place, numbers.map(u64::to_le_bytes).as_flattened());
    }

    /// Removes a record.
    pub(super) fn clear(&mut self, place: u32) {
        self.put(place, &[0; RECORD]);
    }

    /// Writes the changed records.
    ///
    /// # Errors
    ///
    /// They cannot be written; the next call tries again.
    pub(super) fn write(&mut self) -> io::Result<()> {
        if self.is_new {
            self.file.set_len(0)?;
            self.is_new = false;
        }
        let mut run: Option<Range<usize>> = None;
        for record in records_of(&self.changed) {
            match &mut run {
                Some(run) if record - run.end < FEW_RECORDS => run.end = record + 1,
                _ => {
                    run.into_iter().try_for_each(|run| self.write_run(run))?;
                    run = Some(record..record + 1);
                }
            }
        }
        run.into_iter().try_for_each(|run| self.write_run(run))?;
        self.changed.fill(0);
        Ok(())
    }

    fn write_run(&self, Range { start, end }: Range<usize>) -> io::Result<()> {
        let (start, end) = (start * RECORD, end * RECORD);
        self.file.write_all_at(&self.image[start..end], start as u64)
    }

    fn put(&mut self, place: u32, bytes: &[u8]) {
        let start = (place as usize + 1) * RECORD;
        let end = start + bytes.len();
        if self.image.len() < (place as usize + 2) * RECORD {
            self.image.resize((place as usize + 2) * RECORD, 0);
        }
        if self.image[start..end] == *bytes {
            return;
        }
        self.image[start..end].copy_from_slice(bytes);
        let word = start / RECORD / 64;
        if self.changed.len() <= word {
            self.changed.resize(word + 1, 0);
        }
        self.changed[word] |= 1 << (start / RECORD % 64);
    }
}

/// The records whose bits are set, in order.
fn records_of(bits: &[u64]) -> impl Iterator<Item = usize> {
    bits.iter()
        .enumerate()
        .filter(|(_, word)| **word != 0)
        .flat_map(|(at, word)| (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| 64 * at + bit))
}

/// Unchanged records between two changed ones are written, too, if they are fewer than this: a system call costs more.
const FEW_RECORDS: usize = 8;

/// A record; `None` if there is none, or another program wrote it.
fn read<N: DeserializeOwned>(bytes: &[u8]) -> Option<Record<N>> {
    let length = usize::from(u16::from_le_bytes([bytes[TEXT], bytes[TEXT + 1]]));
    let text = bytes[TEXT + 2..].get(..length).filter(|text| !text.is_empty())?;
    Some(Record { name: serde_json::from_slice(text).ok()?, numbers: numbers(bytes) })
}

/// The numbers of a record, at its beginning.
fn numbers(bytes: &[u8]) -> [u64; NUMBERS] {
    std::array::from_fn(|at| u64::from_le_bytes(std::array::from_fn(|byte| bytes[8 * at + byte])))
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    fn file(name: &str) -> File {
        let path = std::env::temp_dir().join(format!("xvs-numbers-{}-{name}", process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }

    fn record(name: &str, number: u64) -> Record<String> {
        Record { name: name.to_owned(), numbers: [number; NUMBERS] }
    }

    #[test]
    fn records_are_read_back_with_their_places_until_they_are_cleared() {
        let file = file("back");
        let (mut records, before) = Records::read::<String>(file.try_clone().unwrap()).unwrap();
        assert_eq!(before, []);
        records.set(3, &record("three", 3));
        records.set(0, &record("zero", 0));
        records.write().unwrap();
        records.set_numbers(3, [u64::MAX; NUMBERS]);
        records.clear(0);
        records.set(1, &record("one", 1));
        records.write().unwrap();
        let (_, after) = Records::read::<String>(file).unwrap();
        assert_eq!(after, [(1, record("one", 1)), (3, record("three", u64::MAX))]);
    }

    #[test]
    fn of_many_records_those_that_have_changed_are_written_and_those_between_them_are_not() {
        let file = file("apart");
        let (mut records, _) = Records::read::<String>(file.try_clone().unwrap()).unwrap();
        (0..1000).for_each(|place| records.set(place, &record("x", 1)));
        records.write().unwrap();
        // Bytes that no other code would write, so that a written record is noticed.
        file.write_all_at(&vec![0; 1001 * RECORD], 0).unwrap();
        for place in [0, 2, 63, 500, 999] {
            records.set_numbers(place, [2; NUMBERS]);
        }
        records.write().unwrap();
        let mut written = vec![0; 1001 * RECORD];
        file.read_exact_at(&mut written, 0).unwrap();
        let places = written.chunks(RECORD).skip(1).enumerate().filter(|(_, bytes)| bytes[0] != 0);
        // The record between two that have changed is written with them.
        assert_eq!(places.map(|(place, _)| place).collect::<Vec<_>>(), [0, 1, 2, 63, 500, 999]);
        records.write().unwrap();
    }

    #[test]
    fn numbers_that_another_process_has_changed_meanwhile_are_read_again() {
        let file = file("again");
        let reopened = || Records::read::<String>(file.try_clone().unwrap()).unwrap();
        let (mut former, _) = reopened();
        (0..3).for_each(|place| former.set(place, &record("x", 1)));
        former.write().unwrap();
        let (mut records, mut found) = reopened();
        former.set_numbers(1, [2; NUMBERS]);
        former.write().unwrap();
        records.read_numbers(&mut found).unwrap();
        assert_eq!(found, [(0, record("x", 1)), (1, record("x", 2)), (2, record("x", 1))]);
        records.set_numbers(1, [1; NUMBERS]);
        records.write().unwrap();
        assert_eq!(reopened().1[1], (1, record("x", 1)), "what was read is not taken for what is written");
    }

    #[test]
    fn a_file_of_another_kind_and_damaged_records_are_left_out() {
        let file = file("damaged");
        file.write_all_at(&[0xff; 4 * RECORD], 0).unwrap();
        let (mut records, before) = Records::read::<String>(file.try_clone().unwrap()).unwrap();
        assert_eq!(before, []);
        (0..3).for_each(|place| records.set(place, &record("x", 5)));
        records.write().unwrap();
        file.write_all_at(&[0xff; 2], (2 * RECORD + TEXT) as u64).unwrap();
        file.write_all_at(b"?", (3 * RECORD + TEXT + 2) as u64).unwrap();
        let (_, after) = Records::read::<String>(file.try_clone().unwrap()).unwrap();
        assert_eq!(after, [(0, record("x", 5))]);
        // Sparse: it needs no room, but memory for all of it.
        file.set_len(1 << 43).unwrap();
        let (mut records, before) = Records::read::<String>(file.try_clone().unwrap()).unwrap();
        assert_eq!(before, []);
        records.write().unwrap();
        assert_eq!(file.metadata().unwrap().len(), RECORD as u64);
    }
}
