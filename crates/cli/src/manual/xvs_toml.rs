//! The manual page xvs.toml(5), from the tables of keys in `docs/`.
//!
//! The page has each section up to the end of its table, so each key is described only once. `tests/documents/pages.rs`
//! checks that the tables have every key.

use clap_mangen::roff::{Inline, Roff, bold, roman};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::SOURCE;

/// Headings of the page, each with the section of a document that it has.
const SECTIONS: [(&str, &str, &str); 5] = [
    ("DESCRIPTION", CONFIGURE, "xvs.toml"),
    ("SETTINGS", CONFIGURE, "Settings"),
    ("WEIGHTS FROM LOAD", WEIGHTS, "Weights from load"),
    ("HEALTH CHECKS", HEALTH_CHECKS, "Run it"),
    ("LOG OF CONNECTIONS", CONNECTION_LOG, "Switch on"),
];
const CONFIGURE: &str = include_str!("../../../../docs/configure.md");
const WEIGHTS: &str = include_str!("../../../../docs/weights.md");
const CONNECTION_LOG: &str = include_str!("../../../../docs/connection-log.md");
const HEALTH_CHECKS: &str = include_str!("../../../../docs/health-checks.md");

/// The page.
pub(super) fn page() -> Roff {
    let mut roff = Roff::new();
    roff.control("TH", ["xvs.toml", "5", "", SOURCE, "xvs"]);
    roff.control("SH", ["NAME"]).text([roman("xvs.toml - configuration of xvsd")]);
    roff.control("SH", ["SYNOPSIS"]).text([bold("/etc/xvs/xvs.toml")]);
    for (heading, document, section) in SECTIONS {
        roff.control("SH", [heading]);
        let mut sections = document.split("\n## ").filter_map(|text| text.split_once('\n'));
        let text = sections.find(|(title, _)| *title == section).expect("the document has this section").1;
        write_to_end_of_table(&mut roff, text);
    }
    roff.control("SH", ["FILES"]).control("TP", []).text([bold("/usr/share/doc/xvs")]);
    roff.text([roman("The documentation that this page names, such as metrics.md.")]);
    roff.control("SH", ["SEE ALSO"]).text([roman("xvsd(8), xvs(8), xvsadm(8)")]);
    roff
}

/// Writes Markdown, up to its first table with that. Of links the text is kept.
fn write_to_end_of_table(roff: &mut Roff, markdown: &str) {
    let mut inlines = Vec::<Inline>::new();
    let mut cells = Vec::new();
    let mut is_strong = false;
    let mut is_code = false;
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        match event {
            Event::Text(text) if is_code => {
                for line in text.lines() {
                    roff.text([roman(line)]);
                }
            }
            Event::Text(text) if is_strong => inlines.push(bold(&*text)),
            Event::Text(text) => inlines.push(roman(&*text)),
            Event::Code(text) => inlines.push(bold(&*text)),
            Event::SoftBreak | Event::HardBreak => inlines.push(roman(" ")),
            Event::Start(Tag::Strong) => is_strong = true,
            Event::End(TagEnd::Strong) => is_strong = false,
            Event::Start(Tag::CodeBlock(_)) => {
                is_code = true;
                roff.control("PP", []).control("RS", ["4"]).control("nf", []);
            }
            Event::End(TagEnd::CodeBlock) => {
                is_code = false;
                roff.control("fi", []).control("RE", []);
            }
            Event::End(TagEnd::Paragraph) => {
                roff.control("PP", []).text(std::mem::take(&mut inlines));
            }
            Event::End(TagEnd::TableCell) => cells.push(std::mem::take(&mut inlines)),
            // The names of the columns.
            Event::End(TagEnd::TableHead) => cells.clear(),
            Event::End(TagEnd::TableRow) => write_key(roff, std::mem::take(&mut cells)),
            Event::End(TagEnd::Table) => break,
            _ => {}
        }
    }
}

/// Writes a row: key, default and meaning.
fn write_key(roff: &mut Roff, cells: Vec<Vec<Inline>>) {
    let [key, default, mut meaning] = <[_; 3]>::try_from(cells).expect("a table of keys has three columns");
    if !default.is_empty() {
        meaning.push(roman(" [default: "));
        meaning.extend(default);
        meaning.push(roman("]"));
    }
    roff.control("TP", []).text(key).text(meaning);
}
