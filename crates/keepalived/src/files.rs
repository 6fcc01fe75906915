//! `track_file`: the files from which a `FILE_CHECK` reads a number.
//!
//! Pure: whether a file exists is not checked. Source: keepalived-behaviour, section 4.12.

use std::collections::HashMap;
use std::path::PathBuf;

use xvs_model::health_checks::check::{FileWeight, Init, TrackFile};

use crate::blocks::Block;
use crate::timing::set;
use crate::values::Faults;

/// The tracked files, by name.
#[derive(Debug, Default)]
pub struct Files(HashMap<String, TrackFile>);

impl Files {
    /// The file with this name.
    pub fn find(&self, name: &str) -> Option<&TrackFile> {
        self.0.get(name)
    }

    /// Reads a `track_file`.
    pub fn read(&mut self, block: &Block, faults: &mut Faults) {
        faults.block(block);
        let Some(name) = faults.argument(block) else { return };
        if self.0.contains_key(name) {
            return faults.warn(
                &block.place,
                format!("the file `{name}` is already defined; the first definition is used"),
            );
        }
        let mut path = None;
        let mut weight = None;
        let mut init = None;
        for line in block.statements() {
            let mut known = true;
            match line.keyword() {
                "file" => set(&mut path, faults.argument(line).map(PathBuf::from)),
                "weight" => set(&mut weight, file_weight(line, faults)),
                "init_file" => set(&mut init, init_of(line, faults)),
                _ => known = false,
            }
            faults.line(line, known);
        }
        let Some(path) = path else {
            return faults.warn(&block.place, format!("`track_file {name}` has no `file`; it is left out"));
        };
        self.0.insert(
            name.to_owned(),
            TrackFile {
                name: name.to_owned(),
                path,
                weight: weight.unwrap_or(FileWeight { factor: 1, is_reversed: false }),
                init,
            },
        );
    }
}

/// Reads `init_file [NUMBER] [overwrite]`.
fn init_of(block: &Block, faults: &mut Faults) -> Option<Init> {
    let mut init = Init { value: 0, overwrites: false };
    for word in block.arguments() {
        match (word.as_str(), word.parse()) {
            ("overwrite", _) => init.overwrites = true,
            (_, Ok(value)) => init.value = value,
            _ => {
                faults.refuse(block, "expected a number, optionally followed by `overwrite`");
                return None;
            }
        }
    }
    Some(init)
}

/// Reads `weight NUMBER [reverse]`.
pub(super) fn file_weight(block: &Block, faults: &mut Faults) -> Option<FileWeight> {
    let number = faults.argument(block)?.parse::<i32>().ok().filter(|factor| *factor != i32::MIN);
    match (number, &block.arguments()[1..]) {
        (Some(factor), []) => Some(FileWeight { factor, is_reversed: false }),
        (Some(factor), [word]) if word == "reverse" => Some(FileWeight { factor, is_reversed: true }),
        _ => {
            faults.refuse(block, "expected a number, optionally followed by `reverse`");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::files::*;
    use crate::testing::statement;

    /// The file from these lines, and the number of faults.
    fn file(lines: &[&str]) -> (Option<TrackFile>, usize) {
        let body = lines.iter().map(|line| statement(line)).collect();
        let block = Block { body: Some(body), ..statement("track_file drain") };
        let (mut files, mut faults) = (Files::default(), Faults::default());
        files.read(&block, &mut faults);
        (files.find("drain").cloned(), faults.all.len())
    }

    #[test]
    fn the_default_weight_of_a_file_is_1() {
        let want = |factor, is_reversed, init| TrackFile {
            name: "drain".to_owned(),
            path: "/run/drain".into(),
            weight: FileWeight { factor, is_reversed },
            init,
        };
        let path = "file /run/drain";
        assert_eq!(file(&[path]), (Some(want(1, false, None)), 0));
        assert_eq!(file(&[path, "weight -5 reverse"]), (Some(want(-5, true, None)), 0));
        let init = Some(Init { value: 3, overwrites: true });
        assert_eq!(file(&[path, "weight 0", "init_file 3 overwrite"]), (Some(want(0, false, init)), 0));
        let init = Some(Init { value: 0, overwrites: false });
        assert_eq!(file(&[path, "init_file"]), (Some(want(1, false, init)), 0));
        for line in ["weight x", "weight 1 back", "weight -2147483648", "init_file x", "colour red"] {
            assert_eq!(file(&[path, line]), (Some(want(1, false, None)), 1), "{line}");
        }
        assert_eq!(file(&["weight 1"]), (None, 1));
    }
}
