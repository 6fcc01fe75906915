//! The figures of the documents: data files, pictures, and tables between marks.
//!
//! ```text
//! figures collect PART HEAD LINES      writes docs/figures/PART.json
//! figures draw                         writes docs/figures/*.svg and the tables of the pages, of all parts there are
//! ```
//!
//! HEAD is a file with a JSON object: commit, date, machine, kernel, load. LINES is a file that benches have written
//! (`data.rs`). `scripts/figures` calls both; `made.rs` tests that nothing else has changed the
//! pictures and tables. Not here: measuring.

mod chart;
mod data;
mod made;
mod pictures;
mod tables;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use data::{PARTS, Part};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["collect", part, head, lines] if PARTS.contains(&part) => collect(part, head, lines),
        ["draw"] => draw(),
        _ => {
            eprintln!("usage: figures collect PART HEAD LINES | draw; a PART is one of {}", PARTS.join(", "));
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("figures: {why}");
            ExitCode::FAILURE
        }
    }
}

fn collect(part: &str, head: &str, lines: &str) -> Result<(), String> {
    let read = |file: &str| fs::read_to_string(file).map_err(|error| format!("{file}: {error}"));
    let in_file = |file: &str, error: &dyn std::fmt::Display| format!("{file}: {error}");
    let rows = data::rows(&read(lines)?).map_err(|error| in_file(lines, &error))?;
    if rows.is_empty() {
        return Err(format!(
            "{lines} has no row; the part {part} writes none to the file that XVS_FIGURES names"
        ));
    }
    let mut value: Value = serde_json::from_str(&read(head)?).map_err(|error| in_file(head, &error))?;
    value["rows"] = json!(rows);
    let all: Part = serde_json::from_value(value).map_err(|error| in_file(head, &error))?;
    write(&made::folder().join(format!("{part}.json")), &all.text())
}

fn draw() -> Result<(), String> {
    for (file, text) in made::all()? {
        write(&file, &text)?;
        println!("{}", file.display());
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))
}
