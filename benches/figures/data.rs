//! What a part of `scripts/bench` has measured, as a file: `docs/figures/PART.json`.
//!
//! A bench appends a row to the file that `XVS_FIGURES` names, a line of JSON; `scripts/figures` makes the part of
//! them. Pure, but for reading files. Not here: what is drawn (`pictures.rs`) and listed (`tables.rs`) of it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The parts, by the names of the options of `scripts/bench`.
pub(crate) const PARTS: [&str; 5] = ["offload", "memory", "requests", "latency", "disturbances"];

/// Where and when a part was measured, and its rows.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Part {
    pub(crate) commit: String,
    pub(crate) date: String,
    pub(crate) machine: String,
    pub(crate) kernel: String,
    /// Load averages of five minutes, before and after.
    pub(crate) load: [f64; 2],
    pub(crate) rows: Vec<Row>,
}

/// A row of a bench's table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    pub(crate) table: String,
    pub(crate) name: String,
    pub(crate) unit: String,
    /// What each round has measured: one value, or a list of the same length in all rounds.
    pub(crate) rounds: Vec<Vec<f64>>,
}

impl Part {
    /// Reads the file of a part.
    ///
    /// # Errors
    /// What is wrong with it, with its name.
    pub(crate) fn read(folder: &Path, part: &str) -> Result<Self, String> {
        let file = folder.join(format!("{part}.json"));
        let named = |error: String| format!("{}: {error}", file.display());
        let text = fs::read_to_string(&file).map_err(|error| named(error.to_string()))?;
        serde_json::from_str(&text).map_err(|error| named(error.to_string()))
    }

    /// The file's text: a line for each row.
    pub(crate) fn text(&self) -> String {
        let mut head = serde_json::to_value(Self { rows: Vec::new(), ..self.clone() }).expect("plain values");
        head.as_object_mut().expect("a struct").remove("rows");
        let mut text = String::from("{\n");
        for (name, value) in head.as_object().expect("a struct") {
            let _ = writeln!(text, "  {name:?}: {value},");
        }
        let rows = self.rows.iter().map(|row| serde_json::to_string(row).expect("plain values"));
        let rows: Vec<_> = rows.map(|row| format!("    {row}")).collect();
        text + "  \"rows\": [\n" + &rows.join(",\n") + "\n  ]\n}\n"
    }

    /// A row.
    ///
    /// # Panics
    ///
    /// If it was not measured.
    pub(crate) fn row(&self, table: &str, name: &str) -> &Row {
        let is_it = |row: &&Row| row.table == table && row.name == name;
        self.rows.iter().find(is_it).unwrap_or_else(|| panic!("«{table}» has no row «{name}»"))
    }
}

impl Row {
    /// The median of the rounds.
    pub(crate) fn median(&self) -> f64 {
        self.sorted(0)[(self.rounds.len() - 1) / 2]
    }

    /// Of a list: the median of each place.
    pub(crate) fn medians(&self) -> Vec<f64> {
        (0..self.rounds[0].len()).map(|place| self.sorted(place)[(self.rounds.len() - 1) / 2]).collect()
    }

    /// The least and the greatest of the rounds.
    pub(crate) fn range(&self) -> (f64, f64) {
        let sorted = self.sorted(0);
        (sorted[0], sorted[sorted.len() - 1])
    }

    fn sorted(&self, place: usize) -> Vec<f64> {
        let mut values: Vec<f64> = self.rounds.iter().map(|round| round[place]).collect();
        values.sort_by(f64::total_cmp);
        values
    }
}

/// The rows that benches have appended, a line of JSON each.
///
/// # Errors
/// A line that is no row, or a row without a round or with rounds of different lengths.
pub(crate) fn rows(lines: &str) -> Result<Vec<Row>, String> {
    let row = |line: &str| {
        let row: Row = serde_json::from_str(line).map_err(|error| format!("{error}: {line}"))?;
        let length = row.rounds.first().map_or(0, Vec::len);
        match length > 0 && row.rounds.iter().all(|round| round.len() == length) {
            true => Ok(row),
            false => Err(format!("its rounds have not the same number of values: {line}")),
        }
    };
    lines.lines().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = r#"{"table":"a","name":"x","unit":"ns","rounds":[[3.5],[1],[2]]}
{"table":"b","name":"x","unit":"ns","rounds":[[1,20],[3,10],[2,30]]}"#;

    #[test]
    fn rows_have_medians_and_ranges_of_their_rounds() {
        let rows = rows(LINES).expect("rows");
        assert_eq!((rows[0].median(), rows[0].range()), (2.0, (1.0, 3.5)));
        assert_eq!(rows[1].medians(), [2.0, 20.0]);
    }

    #[test]
    fn a_line_that_is_no_row_is_refused() {
        for line in [
            "",
            "{}",
            r#"{"table":"a","name":"x","unit":"ns","rounds":[]}"#,
            r#"{"table":"a","name":"x","unit":"ns","rounds":[[1],[1,2]]}"#,
            r#"{"table":"a","name":"x","unit":"ns","rounds":[[1]],"more":1}"#,
        ] {
            assert!(rows(&format!("{LINES}\n{line}\n")).is_err(), "{line}");
        }
    }

    #[test]
    fn the_text_of_a_part_reads_as_the_part_and_has_a_line_for_each_row() {
        let part = Part {
            commit: "1234abc".to_owned(),
            date: "2026-01-01".to_owned(),
            machine: "2 cores".to_owned(),
            kernel: "6.1".to_owned(),
            load: [0.5, 1.0],
            rows: rows(LINES).expect("rows"),
        };
        let text = part.text();
        assert_eq!(serde_json::from_str::<Part>(&text).expect("JSON"), part);
        assert_eq!(text.lines().filter(|line| line.contains("rounds")).count(), 2);
        // scripts/figures looks for it.
        assert!(text.contains("\"commit\": \"1234abc\""));
    }
}
