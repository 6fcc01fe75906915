//! Checks of the documents: links, lengths of pages, complete tables.
//!
//! Names that operators look up (settings, keys of xvs.toml, drop reasons, metrics, subcommands) are read from the
//! code, so a new name without a row fails here. Not here: the truth of a page; `lab/limits.rs` has the tests of
//! limits.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use serde_json::{Value, json};
use xvs_cli::Cli;
use xvs_cli::lab::Lab;
use xvs_ctl::config::Config;
use xvs_dataplane::verdict::DropReason;

/// Documents outside `docs/`, each with its greatest number of lines.
const DOCUMENTS: [(&str, usize); 5] = [
    ("README.md", 105),
    ("ARCHITECTURE.md", 260),
    ("CHANGELOG.md", usize::MAX),
    ("CONTRIBUTING.md", 150),
    ("SECURITY.md", 50),
];

/// The greatest number of lines of a page of `docs/`.
const PAGE_LINES: usize = 300;

/// Pages of `docs/` that are tables, which may be longer.
const TABLES: [&str; 2] = ["docs/limits-all.md", "docs/json.md"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(super) fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// All documents, by their paths from the root.
pub(super) fn documents() -> Vec<String> {
    let pages = fs::read_dir(root().join("docs")).expect("docs/");
    let pages = pages.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    let pages = pages.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}"));
    DOCUMENTS.iter().map(|(name, _)| (*name).to_owned()).chain(pages).collect()
}

/// The text without blocks of code, and the headings in it.
pub(super) fn prose(text: &str) -> (String, Vec<String>) {
    let (mut prose, mut headings, mut code) = (String::new(), Vec::new(), false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        } else if !code {
            let heading = line.trim_start_matches('#');
            if line.starts_with('#') && heading.starts_with(' ') {
                headings.push(heading.trim().to_owned());
            }
            prose += line;
            prose += "\n";
        }
    }
    (prose, headings)
}

/// The anchors of headings, as GitHub makes them: letters, digits, hyphens and underscores stay, blanks become hyphens.
fn anchors(headings: &[String]) -> BTreeSet<String> {
    let anchor = |heading: &String| {
        let kept = heading.to_lowercase();
        let kept = kept.chars().filter(|char| char.is_alphanumeric() || "-_ ".contains(*char));
        kept.map(|char| if char == ' ' { '-' } else { char }).collect()
    };
    headings.iter().map(anchor).collect()
}

/// The targets of links in prose.
fn links(prose: &str) -> Vec<String> {
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.trim().to_owned()).collect()
}

/// The fault of a link of a document; `None` if its target exists or is a web page.
fn broken(document: &str, link: &str) -> Option<String> {
    if link.starts_with("http://") || link.starts_with("https://") {
        return None;
    }
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let target = match path {
        "" => root().join(document),
        path => root().join(document).parent().map(PathBuf::from).unwrap_or_default().join(path),
    };
    let Ok(text) = fs::read_to_string(&target) else {
        return (!target.exists()).then(|| format!("{document}: there is no {link}"));
    };
    let anchor = anchor?;
    let known = anchors(&prose(&text).1);
    (!known.contains(anchor)).then(|| format!("{document}: {link}: there are {known:?}"))
}

/// The names in a text: runs of ASCII letters, digits and underscores.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_').collect()
}

/// The wanted names that a page does not have in its code spans.
fn missing(page: &str, wanted: impl IntoIterator<Item = String>) -> Vec<String> {
    let text = read(page);
    let code: String = text.split('`').skip(1).step_by(2).flat_map(|code| [code, " "]).collect();
    let known = names(&code);
    wanted.into_iter().filter(|name| !known.contains(name.as_str())).collect()
}

#[test]
fn every_link_and_every_anchor_exists() {
    let mut broken_links = Vec::new();
    let mut count = 0;
    for document in documents() {
        let links = links(&prose(&read(&document)).0);
        count += links.len();
        broken_links.extend(links.iter().filter_map(|link| broken(&document, link)));
    }
    assert!(count > 50, "the documents' form has changed: {count} links");
    assert!(broken_links.is_empty(), "{broken_links:#?}");
}

#[test]
fn links_are_found_in_prose_and_checked() {
    let page = "# A page: `one` & two\n\n```\n# [no](heading.md)\n```\n[there](README.md#two-commands) and [not\nthere](no.md)\n";
    let (prose, headings) = prose(page);
    assert_eq!(anchors(&headings), BTreeSet::from(["a-page-one--two".to_owned()]));
    assert_eq!(links(&prose), ["README.md#two-commands", "no.md"]);
    assert_eq!(broken("README.md", "README.md#two-commands"), None);
    for link in ["no.md", "README.md#no-such-heading", "#no-such-heading"] {
        assert!(broken("README.md", link).is_some(), "{link}");
    }
}

#[test]
fn the_tests_of_each_attack_exist() {
    let page = read("docs/security.md");
    let table =
        page.split("\n## ").find(|section| section.starts_with("What an outsider")).expect("a section");
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with('|')).skip(2).collect();
    assert!(rows.len() > 15, "{rows:?}");
    for row in rows {
        let tests: Vec<_> = row.rsplit('|').nth(1).expect("a cell").split('`').skip(1).step_by(2).collect();
        let exists =
            |name: &str| ["tests", "crates"].iter().any(|folder| root().join(folder).join(name).is_file());
        assert!(!tests.is_empty() && tests.iter().all(|name| exists(name)), "{row}");
    }
}

#[test]
fn pages_have_at_most_their_number_of_lines() {
    for document in documents() {
        let lines = read(&document).lines().count();
        let listed = DOCUMENTS.iter().find(|(name, _)| *name == document);
        let most = listed.map_or(PAGE_LINES, |(_, most)| *most);
        let table = TABLES.contains(&document.as_str());
        assert!(table || lines <= most, "{document} has {lines} lines, and may have {most}");
    }
}

#[test]
fn every_page_is_reachable_from_the_readme() {
    let links = links(&prose(&read("README.md")).0);
    let lost: Vec<_> =
        documents().into_iter().filter(|page| page != "README.md" && !links.contains(page)).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

/// The lab's answer.
fn ask(request: &Value) -> Value {
    serde_json::from_str(&Lab::new().answer(&request.to_string())).expect("the lab answers JSON")
}

#[test]
fn every_subcommand_of_xvs_is_on_a_page() {
    let xvs = Cli::command();
    let commands: Vec<_> = xvs.get_subcommands().map(|command| command.get_name()).collect();
    assert!(commands.len() > 20, "{commands:?}");
    let pages: String =
        documents().iter().filter(|name| name.starts_with("docs/")).map(|name| read(name)).collect();
    let lost = commands.iter().filter(|command| !pages.contains(&format!("xvs {command}")));
    assert_eq!(lost.collect::<Vec<_>>(), [&""; 0]);
}

#[test]
fn every_setting_has_a_row() {
    let answer = ask(&json!({ "set": { "no_such_setting": 1 } }));
    let refusal = answer["error"].as_str().expect("a refusal that lists all settings");
    let settings = names(refusal).into_iter().filter(|name| name.contains('_') && *name != "no_such_setting");
    let settings: Vec<_> = settings.map(str::to_owned).collect();
    assert!(settings.len() > 20, "{refusal}");
    assert_eq!(missing("docs/weights.md", missing("docs/configure.md", settings)), [""; 0]);
}

#[test]
fn every_key_of_the_configuration_has_a_row() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("documents-xvs.toml");
    for (section, page) in [
        ("", "docs/configure.md"),
        ("[ipvs]", "docs/configure.md"),
        ("[feedback]", "docs/weights.md"),
        ("[keepalived]", "docs/health-checks.md"),
        ("[connection_log]", "docs/connection-log.md"),
    ] {
        fs::write(&file, format!("{section}\nnosuchkey = 1\n")).expect("the tests' folder takes a file");
        let refusal = Config::read(&file).expect_err("there is no such key").to_string();
        let keys = refusal.split("expected").nth(1).unwrap_or_else(|| panic!("{refusal}"));
        let keys: Vec<_> = keys.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert!(keys.len() > 2, "{refusal}");
        assert_eq!(missing(page, keys), [""; 0], "{section} in {page}");
    }
}

#[test]
fn every_drop_reason_has_a_row() {
    let reasons = DropReason::all().map(|reason| reason.name().to_owned());
    assert_eq!(missing("docs/troubleshoot.md", reasons), [""; 0]);
}

#[test]
fn every_metric_has_a_row() {
    let listed = Command::new("git").current_dir(root()).args(["ls-files", "crates/*metrics*.rs"]).output();
    let files = String::from_utf8(listed.expect("git runs").stdout).expect("names are UTF-8");
    let sources = files.lines().map(read);
    let code: String =
        sources.flat_map(|text| text.split("#[cfg(test)]").next().map(str::to_owned)).collect();
    let is_metric =
        |text: &&str| ["xvs_", "node_ipvs_", "process_"].iter().any(|start| text.starts_with(start));
    let quoted = code.split('"').filter(is_metric);
    let metrics = quoted.filter(|text| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
    let metrics: BTreeSet<_> = metrics.map(str::to_owned).collect();
    assert!(metrics.len() > 80, "the metrics' form has changed: {metrics:?}");
    assert_eq!(missing("docs/metrics.md", metrics), [""; 0]);
}
