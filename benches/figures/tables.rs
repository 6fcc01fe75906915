//! The tables of the documents, between marks: `<!-- figures: NAME -->` and `<!-- end -->`.
//!
//! A table has the figures of a picture, and says where and when they were measured. Not here: the pictures.

use crate::chart::grouped;
use crate::data::Part;
use crate::pictures::{BASE, DISTURBANCES, FLOODS, PACKETS, REQUESTS};

/// A table: the name in its mark, its part, and its lines.
pub(crate) type Table = (&'static str, &'static str, fn(&Part) -> Vec<String>);

pub(crate) const TABLES: [Table; 5] = [
    ("packets", "offload", packets),
    ("connections", "memory", connections),
    ("requests", "requests", requests),
    ("round trips", "latency", round_trips),
    ("disturbances", "disturbances", disturbances),
];

/// The rows of the part memory that the table has, the base first.
const CONNECTIONS: [&str; 18] = [
    "port and MAC addresses (base)",
    "base and a lean table",
    "DR",
    "DR, small pages",
    "DR TCP",
    "DR, 10000 services",
    "NAT",
    "NAT, replies",
    "FULLNAT",
    "IPIP",
    "DR IPv6",
    "NAT IPv6",
    "FULLNAT to IPv6",
    "DR, fragments",
    "DR, first packet",
    "NAT, first packet",
    "FULLNAT, first packet",
    "DR, expiry",
];

const BEGIN: &str = "<!-- figures: ";
const END: &str = "<!-- end -->";

/// A document with its tables made anew by `make`, which returns the lines of the table of a name.
///
/// # Errors
/// A mark without an end.
pub(crate) fn renewed(
    text: &str,
    mut make: impl FnMut(&str) -> Result<Vec<String>, String>,
) -> Result<String, String> {
    let mut all = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(BEGIN) {
        let (name, inside) = after.split_once(" -->\n").ok_or("a mark has no end")?;
        let (_, after) =
            inside.split_once(END).ok_or_else(|| format!("«{BEGIN}{name} -->» has no «{END}»"))?;
        all += &format!("{before}{BEGIN}{name} -->\n{}\n{END}", make(name)?.join("\n"));
        rest = after;
    }
    Ok(all + rest)
}

/// The lines of the table of a name.
///
/// # Errors
/// If there is none.
pub(crate) fn lines(name: &str, read: impl Fn(&str) -> Result<Part, String>) -> Result<Vec<String>, String> {
    let table = TABLES.iter().find(|(known, ..)| *known == name);
    let (_, part, make) = table.ok_or_else(|| format!("there is no table «{name}»"))?;
    let part = read(part)?;
    let mut lines = make(&part);
    lines.extend([String::new(), source(&part)]);
    Ok(lines)
}

/// Where and when.
fn source(part: &Part) -> String {
    let Part { commit, date, machine, kernel, load: [before, after], rows } = part;
    let rounds = rows.first().map_or(0, |row| row.rounds.len());
    format!(
        "Commit {commit}, {date}, {machine}, Linux {kernel}, load averages of {before:.1} before and {after:.1} after; \
         {rounds} rounds, medians."
    )
}

fn packets(part: &Part) -> Vec<String> {
    ratios(part, &PACKETS.map(|(table, _)| table), "| CPU ns a packet, and × nftables' DNAT | ", 1.0)
}

fn requests(part: &Part) -> Vec<String> {
    ratios(part, &REQUESTS.map(|(table, _)| table), "| CPU µs a request, and × nftables' DNAT | ", 1e-3)
}

/// A column for each of these tables of the bench, with the ratios to its base and the range of the rounds.
fn ratios(part: &Part, tables: &[&str], corner: &str, scale: f64) -> Vec<String> {
    let heads: Vec<_> = tables.iter().map(|table| counted(table)).collect();
    let mut lines = vec![format!("{corner}{} |", heads.join(" | ")), rule(tables.len())];
    for row in part.rows.iter().filter(|row| row.table == tables[0]) {
        let cell = |table: &&str| {
            let row = part.row(table, &row.name);
            let (least, most) = row.range();
            let value =
                |ns: f64| grouped(if scale < 1.0 { (ns * scale * 10.0).round() / 10.0 } else { ns.round() });
            let ratio = row.median() / part.row(table, BASE).median();
            format!("{}, {ratio:.2} ({} to {})", value(row.median()), value(least), value(most))
        };
        lines.push(format!("| {} | {} |", row.name, tables.iter().map(cell).collect::<Vec<_>>().join(" | ")));
    }
    lines
}

/// A text in which numbers of more than three digits have their thousands apart.
fn counted(text: &str) -> String {
    let apart =
        |word: &str| word.parse::<u32>().map_or_else(|_| word.to_owned(), |number| grouped(number.into()));
    text.split(' ').map(apart).collect::<Vec<_>>().join(" ")
}

fn rule(columns: usize) -> String {
    format!("|---|{}", "---|".repeat(columns))
}

/// Ratios to the base, by the number of connections.
fn connections(part: &Part) -> Vec<String> {
    let mut sizes: Vec<&str> = part.rows.iter().map(|row| row.table.as_str()).collect();
    // The bench reports one number after the other.
    sizes.dedup();
    let base = CONNECTIONS[0];
    let heads: Vec<_> = sizes.iter().map(|size| counted(size)).collect();
    let mut lines = vec![format!("| × base, by connections | {} |", heads.join(" | ")), rule(sizes.len())];
    for name in CONNECTIONS {
        let cell = |size: &&str| {
            let row = part.rows.iter().find(|row| row.table == *size && row.name == name);
            match row {
                Some(row) if name == base => format!("{:.1} ns", row.median()),
                Some(row) => format!("{:.1}", row.median() / part.row(size, base).median()),
                None => String::new(),
            }
        };
        lines.push(format!("| {name} | {} |", sizes.iter().map(cell).collect::<Vec<_>>().join(" | ")));
    }
    lines
}

fn round_trips(part: &Part) -> Vec<String> {
    const PERCENTS: [usize; 3] = [50, 90, 99];
    let heads = PERCENTS.map(|percent| format!("{percent} %")).join(" | ");
    let mut lines = vec![format!("| answered within µs | {heads} |"), rule(PERCENTS.len())];
    for row in &part.rows {
        let times = row.medians();
        let cells = PERCENTS.map(|percent| format!("{:.0}", times[percent - 1] / 1e3)).join(" | ");
        lines.push(format!("| {} | {cells} |", row.name));
    }
    lines
}

fn disturbances(part: &Part) -> Vec<String> {
    let mut lines = vec![
        "| | longest time without any answer, s | longest wait of a lasting connection, s | of 100 lasting connections lost | new connections failed |"
            .to_owned(),
        rule(4),
    ];
    for event in DISTURBANCES.into_iter().chain(FLOODS) {
        let cell = |name: &str, digits: usize| {
            let row = part.row(event, name);
            let (least, most) = row.range();
            format!("{:.digits$} ({least:.digits$} to {most:.digits$})", row.median())
        };
        let cells = [cell("gap", 2), cell("longest wait", 2), cell("lost", 0), cell("failed", 0)];
        lines.push(format!("| {event} | {} |", cells.join(" | ")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Row;

    #[test]
    fn what_is_between_marks_is_replaced_and_all_else_stays() {
        let make = |name: &str| Ok(vec![format!("| {name} |"), "|---|".to_owned()]);
        let text = "before\n<!-- figures: a -->\nformer\n<!-- end -->\nbetween\n<!-- figures: b c -->\n<!-- end -->\nafter\n";
        let new = renewed(text, make).expect("marks have ends");
        assert_eq!(
            new,
            "before\n<!-- figures: a -->\n| a |\n|---|\n<!-- end -->\nbetween\n<!-- figures: b c -->\n| b c |\n|---|\n\
             <!-- end -->\nafter\n"
        );
        assert_eq!(renewed(&new, make).as_ref(), Ok(&new), "drawn twice, it is the same");
        assert!(renewed("<!-- figures: a -->\nwithout an end\n", make).is_err());
    }

    #[test]
    fn connections_are_compared_with_the_base_of_their_number() {
        let row = |table: &str, name: &str, ns| Row {
            table: table.to_owned(),
            name: name.to_owned(),
            unit: "ns".to_owned(),
            rounds: vec![vec![ns]],
        };
        let base = CONNECTIONS[0];
        let rows = vec![row("1000", base, 10.0), row("1000", "DR", 25.0), row("1000000", base, 20.0)];
        let lines = connections(&Part { rows, ..Part::default() });
        assert_eq!(lines[0], "| × base, by connections | 1,000 | 1,000,000 |");
        assert_eq!(lines[2], format!("| {base} | 10.0 ns | 20.0 ns |"));
        assert!(lines.contains(&"| DR | 2.5 |  |".to_owned()), "{lines:?}");
    }
}
