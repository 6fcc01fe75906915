//! The tables of docs/json.md, made from the types that `--json` prints.
//!
//! A row has the path of a field, its type, and the field's doc comment. With `XVS_WRITE_PAGES=1` in the environment
//! the test writes the tables; otherwise it compares them. Titles and the text between tables are written by hand.

use std::fmt::Write;
use std::{env, fs};

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::Value;
use xvs_model::config::load_feedback::FeedbackRow;
use xvs_model::config::rules::Fault;
use xvs_model::config::sync_daemon::SyncDaemon;
use xvs_model::config::timeouts::Timeouts;
use xvs_model::objects::limit::LimitReport;
use xvs_model::objects::listed::ListRow;
use xvs_model::objects::local::LocalReport;
use xvs_model::objects::mark::MarkRow;
use xvs_model::objects::note::ServiceNote;
use xvs_model::objects::quic::QuicRow;
use xvs_model::report::capture::CapturedPacket;
use xvs_model::report::connection::ConnectionRow;
use xvs_model::report::explain::Report;
use xvs_model::report::fleet::FleetReport;
use xvs_model::report::health::HealthReport;
use xvs_model::report::history::LastHour;
use xvs_model::report::listing::ServiceRow;
use xvs_model::report::page::StatusPage;
use xvs_model::report::setting::Setting;
use xvs_model::report::status::StatusReport;
use xvs_model::report::warning::WarningKind;

use crate::check::keepalived;
use crate::rules::plan;
use crate::{connections, doctor, events};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/json.md");

/// The tables by the titles of their sections.
fn tables() -> Vec<(&'static str, Vec<Row>)> {
    let mut events = rows::<events::Object<'_>>();
    events.extend(rows::<events::Missed>());
    vec![
        ("xvs status", without(rows::<StatusReport>(), "fleet.")),
        ("GET /status.json", without(rows::<StatusPage<'_>>(), "status.")),
        ("GET /history.json", rows::<LastHour>()),
        ("xvs health", rows::<HealthReport>()),
        ("xvs connections", rows::<Vec<ConnectionRow>>()),
        ("xvs connections --count", rows::<connections::Count>()),
        ("xvs counters", rows::<std::collections::BTreeMap<String, u64>>()),
        ("xvs events", events),
        ("xvs explain", rows::<Report>()),
        ("xvs capture", rows::<CapturedPacket>()),
        ("xvs check", rows::<Vec<Fault>>()),
        ("xvs check --keepalived", rows::<keepalived::Document<'_>>()),
        ("xvs plan, xvs apply", rows::<Vec<plan::Row>>()),
        ("xvs fleet", rows::<FleetReport>()),
        ("xvs mark list", rows::<Vec<MarkRow>>()),
        ("xvs laddr list", rows::<LocalReport>()),
        ("xvs limit list", rows::<LimitReport>()),
        ("xvs quic list", rows::<Vec<QuicRow>>()),
        ("xvs note list", rows::<Vec<ServiceNote>>()),
        ("xvs deny list, xvs allow list", rows::<Vec<ListRow>>()),
        ("xvs get", rows::<Vec<Setting>>()),
        ("xvs feedback", rows::<Vec<FeedbackRow>>()),
        ("xvs doctor", rows::<doctor::Document<'_>>()),
        ("xvs doctor --report", rows::<doctor::report::Document>()),
        ("xvs realserver status", rows::<Vec<xvs_realserver::status::Status>>()),
        ("xvsadm -L", rows::<Vec<ServiceRow>>()),
        ("xvsadm -L -c", without(rows::<Vec<ConnectionRow>>(), "[].detail")),
        ("xvsadm -L --timeout", rows::<Timeouts>()),
        ("xvsadm -L --daemon", rows::<Vec<SyncDaemon>>()),
    ]
}

/// A field.
struct Row {
    path: String,
    kind: String,
    meaning: String,
}

/// The fields of a document.
fn rows<T: JsonSchema>() -> Vec<Row> {
    let mut rows = Vec::new();
    fields(&schema::<T>(), "", &mut rows);
    rows
}

fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let schema: Schema = settings.into_generator().into_root_schema_for::<T>();
    schema.to_value()
}

/// The rows but those below a field that another section describes.
fn without(rows: Vec<Row>, prefix: &str) -> Vec<Row> {
    rows.into_iter().filter(|row| !row.path.starts_with(prefix)).collect()
}

/// Adds a row for each field below a value.
fn fields(schema: &Value, path: &str, rows: &mut Vec<Row>) {
    if let Some(items) = items(schema) {
        fields(items, &format!("{path}[]"), rows);
    }
    if let Some(value) = schema.get("additionalProperties").filter(|value| value.is_object()) {
        // It has no comment of its own.
        add(
            &merged(value, "description", schema["description"].clone()),
            joined(path, "<name>"),
            Presence::Always,
            rows,
        );
    }
    let required: Vec<_> = array(schema, "required").filter_map(Value::as_str).collect();
    for (name, value) in schema["properties"].as_object().into_iter().flatten() {
        let is_there = required.contains(&name.as_str());
        add(value, joined(path, name), if is_there { Presence::Always } else { Presence::Sometimes }, rows);
    }
    for alternative in array(schema, "anyOf") {
        fields(alternative, path, rows);
    }
    // For an enumeration, a variant's field is present if the value is that variant.
    for variant in array(schema, "oneOf") {
        for (name, value) in variant["properties"].as_object().into_iter().flatten() {
            let described = match variant.get("description") {
                Some(text) => merged(value, "description", text.clone()),
                None => value.clone(),
            };
            add(&described, joined(path, name), Presence::Sometimes, rows);
        }
    }
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Whether a field is always in its object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Always,
    Sometimes,
}

/// Adds the row of a field, and those below it.
fn add(value: &Value, path: String, presence: Presence, rows: &mut Vec<Row>) {
    let mut element = value;
    let mut shown = path.clone();
    while let Some(items) = items(element) {
        element = items;
        shown += "[]";
    }
    let mut all = kinds(element);
    if presence == Presence::Sometimes {
        // It is left out instead.
        all.retain(|kind| kind != "null");
        all.push("absent".to_owned());
    }
    let mut meaning = Some(sentence(value)).filter(|text| !text.is_empty()).unwrap_or("the value".to_owned());
    for (name, text) in variants(element) {
        let _ = write!(meaning, "; `{name}`: {text}");
    }
    if presence == Presence::Sometimes {
        meaning = meaning.replace("; null: ", "; absent: ");
    }
    rows.push(Row { path: shown, kind: listed(&all), meaning });
    fields(value, &path, rows);
}

fn items(schema: &Value) -> Option<&Value> {
    schema.get("items").filter(|items| items.is_object())
}

fn array<'s>(schema: &'s Value, key: &str) -> impl Iterator<Item = &'s Value> {
    schema[key].as_array().into_iter().flatten()
}

fn merged(value: &Value, key: &str, with: Value) -> Value {
    let mut value = value.clone();
    value[key] = with;
    value
}

/// The types and constants that a value may have, null as the last.
fn kinds(schema: &Value) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(constant) = schema["const"].as_str() {
        all.push(format!("`{constant}`"));
    } else if let Some(values) = schema["enum"].as_array() {
        all.extend(values.iter().filter_map(Value::as_str).map(|value| format!("`{value}`")));
    } else if let Some(format) = schema["format"].as_str().filter(|_| is_text(schema)) {
        all.push(if format.starts_with("ip") { "address" } else { format }.to_owned());
    }
    let types = schema["type"].as_str().into_iter().chain(array(schema, "type").filter_map(Value::as_str));
    let is_text = !all.is_empty();
    all.extend(types.filter(|kind| *kind == "null" || !is_text || *kind != "string").map(str::to_owned));
    for alternative in array(schema, "anyOf").chain(array(schema, "oneOf")) {
        for kind in kinds(alternative) {
            if !all.contains(&kind) {
                all.push(kind);
            }
        }
    }
    if all.is_empty() {
        all.push("any".to_owned());
    }
    all.sort_by_key(|kind| kind == "null");
    all
}

/// Whether a value may be a string.
fn is_text(schema: &Value) -> bool {
    schema["type"] == "string" || array(schema, "type").any(|kind| kind == "string")
}

/// The names of an enumeration's plain variants, with their meanings.
fn variants(schema: &Value) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for alternative in array(schema, "anyOf").chain(array(schema, "oneOf")) {
        if let Some(name) = alternative["const"].as_str().filter(|_| alternative.get("description").is_some())
        {
            all.push((name.to_owned(), sentence(alternative)));
        }
        all.extend(variants(alternative));
    }
    all
}

/// A description in the form of a table's cell.
fn sentence(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    let words: Vec<_> = text.split_whitespace().collect();
    let text =
        words.join(" ").replace("[`", "`").replace("`]", "`").replace("`None`", "null").replace('|', "\\|");
    let text = text.trim_end_matches('.');
    let mut characters = text.chars();
    let first = characters.next();
    let stays = text.chars().nth(1).is_some_and(|second| !second.is_lowercase() && second != ' ');
    match first {
        Some(first) if !stays => first.to_lowercase().chain(characters).collect(),
        _ => text.to_owned(),
    }
}

/// `a`, `a or b`, `a, b or c`.
fn listed(all: &[String]) -> String {
    match all {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// The table of a document's fields.
fn table(rows: &[Row]) -> String {
    let mut text = "| field | type | meaning |\n|---|---|---|\n".to_owned();
    for Row { path, kind, meaning } in rows {
        let _ = writeln!(text, "| `{path}` | {kind} | {meaning} |");
    }
    text
}

/// The table of the kinds of warnings.
fn warning_kinds() -> String {
    let mut text = "| kind | meaning |\n|---|---|\n".to_owned();
    for (name, meaning) in variants(&schema::<WarningKind>()) {
        let _ = writeln!(text, "| `{name}` | {meaning} |");
    }
    text
}

/// The page with these tables in the place of those that it has.
fn with_tables(page: &str, tables: &[(&str, String)]) -> String {
    let mut text = String::new();
    let mut lines = page.lines().peekable();
    let mut missing: Vec<_> = tables.iter().map(|(title, _)| *title).collect();
    while let Some(line) = lines.next() {
        text += line;
        text.push('\n');
        let Some(title) = line.strip_prefix("## ") else { continue };
        let Some((_, table)) = tables.iter().find(|(known, _)| *known == title) else { continue };
        missing.retain(|known| *known != title);
        while let Some(prose) = lines.next_if(|line| !line.starts_with(['|', '#'])) {
            text += prose;
            text.push('\n');
        }
        while lines.next_if(|line| line.starts_with('|')).is_some() {}
        text += table;
    }
    assert!(missing.is_empty(), "docs/json.md has no section for {missing:?}");
    text
}

#[test]
fn the_page_has_every_field_of_the_types_that_are_printed_and_every_kind_of_warning() {
    let page = fs::read_to_string(PAGE).expect("docs/json.md");
    let mut tables: Vec<_> = tables().iter().map(|(title, rows)| (*title, table(rows))).collect();
    tables.push(("Kinds of warnings", warning_kinds()));
    let made = with_tables(&page, &tables);
    if env::var_os("XVS_WRITE_PAGES").is_some() {
        fs::write(PAGE, &made).expect("docs/json.md can be written");
        return;
    }
    for (line, (written, made)) in (1..).zip(page.lines().zip(made.lines())) {
        assert_eq!(
            written, made,
            "docs/json.md:{line}: XVS_WRITE_PAGES=1 cargo test -p xvs-cli writes the tables"
        );
    }
    assert_eq!(
        page.lines().count(),
        made.lines().count(),
        "docs/json.md: XVS_WRITE_PAGES=1 writes the tables"
    );
}
