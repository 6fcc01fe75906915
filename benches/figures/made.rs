//! All files that follow from the data files: the pictures, and the documents with their tables.
//!
//! Not here: whether a figure is good.

use std::fs;
use std::path::{Path, PathBuf};

use crate::data::Part;
use crate::pictures::PICTURES;
use crate::tables;

/// The documents that have tables.
const DOCUMENTS: [&str; 3] = ["docs/performance.md", "docs/offload.md", "docs/restart.md"];

/// The folder of the data files and pictures.
pub(crate) fn folder() -> PathBuf {
    root().join("docs/figures")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files, by their paths, with the text that they should have. A picture whose part was not measured is none.
///
/// # Errors
/// A data file that cannot be read, or a table whose part was not measured.
pub(crate) fn all() -> Result<Vec<(PathBuf, String)>, String> {
    let read = |part: &str| Part::read(&folder(), part);
    let mut all = Vec::new();
    for (name, part, draw) in PICTURES {
        if folder().join(format!("{part}.json")).exists() {
            all.push((folder().join(format!("{name}.svg")), draw(&read(part)?)));
        }
    }
    for name in DOCUMENTS {
        let file = root().join(name);
        let text = fs::read_to_string(&file).map_err(|error| format!("{name}: {error}"))?;
        let text = tables::renewed(&text, |table| tables::lines(table, read));
        all.push((file, text.map_err(|error| format!("{name}: {error}"))?));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::PARTS;

    /// A page with a picture loads at once over any line.
    const MOST_BYTES: usize = 30 << 10;

    fn files(ending: &str) -> Vec<PathBuf> {
        // Without a measured part there is no folder.
        let paths = fs::read_dir(folder()).into_iter().flatten().map(|entry| entry.expect("an entry").path());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == ending)).collect()
    }

    #[test]
    fn pictures_and_tables_are_those_of_the_data_files() {
        let all = all().expect("the data files are good");
        for (file, text) in &all {
            let is_same = fs::read_to_string(file).is_ok_and(|found| found == *text);
            assert!(
                is_same,
                "{}: `scripts/figures --draw` makes it from docs/figures/*.json",
                file.display()
            );
            assert!(file.extension().is_none_or(|extension| extension != "svg") || text.len() <= MOST_BYTES);
        }
        let known: Vec<_> = all.iter().map(|(file, _)| file).collect();
        for picture in files("svg") {
            assert!(known.contains(&&picture), "{}: no data file is drawn as this", picture.display());
        }
    }

    #[test]
    fn the_data_files_are_of_one_commit_and_of_the_parts_that_scripts_figures_measures() {
        let read = |file: PathBuf| {
            let part = file.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
            assert!(PARTS.contains(&part.as_str()), "{part}");
            Part::read(&folder(), &part).expect("a data file").commit
        };
        let mut commits: Vec<_> = files("json").into_iter().map(read).collect();
        commits.dedup();
        assert!(
            commits.len() <= 1,
            "{commits:?}: `scripts/figures` measures the parts of former commits again"
        );
        let script = fs::read_to_string(root().join("scripts/figures")).expect("a script");
        assert!(script.contains(&format!("all=({})", PARTS.join(" "))));
    }
}
