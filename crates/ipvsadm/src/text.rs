//! Columns of a table, and documents as text or JSON.

use std::io;
use std::io::Write;

use serde::Serialize;

/// The greatest number of characters in each column.
pub fn widths<'r, const N: usize>(rows: impl IntoIterator<Item = &'r [String; N]>) -> [usize; N] {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    widths
}

/// A row in columns of these widths, two blanks apart.
pub fn aligned<const N: usize>(row: &[String; N], widths: [usize; N]) -> String {
    let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
    cells.join("  ").trim_end().to_owned() + "\n"
}

/// Prints a document as JSON, or as the text that `screen` makes of it.
pub fn print<T: Serialize>(
    document: &T,
    json: bool,
    screen: impl FnOnce(&T) -> String,
    out: &mut dyn Write,
) -> io::Result<()> {
    match json {
        true => print_json(document, out),
        false => out.write_all(screen(document).as_bytes()),
    }
}

/// Prints the document of `--json`, indented, with a newline at the end.
pub fn print_json(document: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", serde_json::to_string_pretty(document)?)
}
