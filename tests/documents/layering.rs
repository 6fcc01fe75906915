//! Rules of the layout: permitted dependencies of crates, no import cycles among files, places of unsafe code, lengths
//! of files and of comment lines, no macros that panic where they cannot print, code that is read from the top.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

mod imports;

use imports::{Imports, closing, is_name, tokens};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below a folder that git tracks or does not ignore.
fn files(under: &str) -> Vec<PathBuf> {
    let output = Command::new("git")
        .current_dir(root())
        .args(["ls-files", "--cached", "--others", "--exclude-standard", under])
        .output()
        .expect("git runs");
    let text = String::from_utf8(output.stdout).expect("git prints UTF-8");
    text.lines().map(PathBuf::from).filter(|path| root().join(path).exists()).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines before the tests, with their numbers. A module of tests in a file of its own (`mod tests;`) ends nothing.
fn before_tests(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines: Vec<_> = text.lines().collect();
    let opens_tests = |at: &usize| {
        let mut item = lines[*at..].iter().skip_while(|line| line.starts_with("#["));
        lines[*at].starts_with("#[cfg(test)]")
            && item.next().is_some_and(|line| line.contains("mod ") && line.ends_with('{'))
    };
    let end = (0..lines.len()).find(opens_tests).unwrap_or(lines.len());
    (1..).zip(lines).take(end)
}

/// The crates, each with our crates that it may use; permission for a crate includes the crates below it.
const MAY_USE: [(&str, &[&str]); 14] = [
    ("proto", &[]),
    ("sched", &["proto"]),
    ("xdp", &["proto", "helper"]),
    ("dataplane", &["proto", "sched", "xdp"]),
    ("model", &["proto", "sched"]),
    ("helper", &[]),
    ("host", &["proto", "helper"]),
    // Both have lines that begin with `#xvs `.
    ("keepalived", &["model", "ipvsadm"]),
    ("health", &["model", "helper"]),
    ("ipvsadm", &["model"]),
    ("realserver", &["proto", "xdp", "host"]),
    // xvsd reads rules files in ipvsadm's grammar, and writes changes as its command lines.
    ("ctl", &["dataplane", "model", "host", "ipvsadm"]),
    ("xvsd", &["ctl", "health", "keepalived"]),
    ("cli", &["model", "ipvsadm", "keepalived", "health", "realserver", "host", "ctl"]),
];

/// All crates that a crate may use, directly or indirectly.
fn reach(name: &str) -> BTreeSet<&'static str> {
    let direct = MAY_USE.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, direct)| direct);
    direct.iter().flat_map(|on| reach(on).into_iter().chain([*on])).collect()
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["metadata", "--no-deps", "--format-version=1"])
        .output()
        .expect("cargo runs");
    serde_json::from_slice(&output.stdout).expect("cargo prints JSON")
}

#[test]
fn cargo_build_builds_every_program() {
    let metadata = metadata();
    let built = metadata["workspace_default_members"].as_array().unwrap();
    let mut programs = BTreeSet::new();
    for package in metadata["packages"].as_array().unwrap() {
        for target in package["targets"].as_array().unwrap() {
            if target["kind"] == json!(["bin"]) {
                programs.insert(target["name"].as_str().unwrap());
                assert!(built.contains(&package["id"]), "cargo build leaves out {}", target["name"]);
            }
        }
    }
    assert_eq!(programs, BTreeSet::from(["xvs", "xvsadm", "xvsd"]));
}

/// The name in [`MAY_USE`] of a package or dependency, if it is one of our crates.
fn layer(package: &Value) -> Option<&str> {
    let name = package["name"].as_str()?;
    name.strip_prefix("xvs-").or((name == "xvsd").then_some(name))
}

#[test]
fn crates_depend_only_on_permitted_crates() {
    let metadata = metadata();
    let mut seen = BTreeSet::new();
    for package in metadata["packages"].as_array().unwrap() {
        // The root package has tests and benches of all crates.
        let Some(name) = layer(package) else { continue };
        assert!(MAY_USE.iter().any(|(known, _)| *known == name), "{name} stands in no layer");
        seen.insert(name.to_owned());
        let may = reach(name);
        for dependency in package["dependencies"].as_array().unwrap() {
            // Tests of a crate may use any crate.
            if let Some(on) = layer(dependency).filter(|_| dependency["kind"] != "dev") {
                assert!(may.contains(on), "{name} depends on {on}, and may use {may:?}");
            }
        }
    }
    assert_eq!(seen.len(), MAY_USE.len(), "{seen:?}");
}

/// The module of a file of `src/`; `None` for a program, which cannot be imported.
fn module(file: &Path) -> Option<Vec<String>> {
    let names = file.with_extension("");
    let mut names: Vec<_> = names.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    if ["mod", "lib"].contains(&names.last()?.as_str()) {
        names.pop();
    }
    (names.first().map(String::as_str) != Some("bin")).then_some(names)
}

#[test]
fn no_files_import_each_other_except_a_module_and_its_children() {
    let mut circles = Vec::new();
    for (name, _) in MAY_USE {
        let src = format!("crates/{name}/src");
        let paths = files(&src).into_iter().filter(|path| path.extension().is_some_and(|end| end == "rs"));
        let sources = paths.filter_map(|path| {
            let module = module(path.strip_prefix(&src).expect("a file below src"))?;
            Some((module, read(&path)))
        });
        let imports = Imports::of(&sources.collect::<Vec<_>>());
        circles.extend(imports.circles().into_iter().map(|edges| format!("{name}: {}", edges.join("; "))));
    }
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn a_note_at_a_service_is_in_at_most_five_files_of_the_program() {
    let names = ["ServiceNote", "NoteChange", "Rule::Note", "Object::Note"];
    let mut named = Vec::new();
    for file in files("crates") {
        let is_src = file.components().any(|part| part.as_os_str() == "src");
        let is_of_tests = file.file_name().is_some_and(|name| name == "tests.rs");
        if is_src
            && !is_of_tests
            && before_tests(&read(&file)).any(|(_, line)| names.iter().any(|name| line.contains(name)))
        {
            named.push(file);
        }
    }
    assert!((2..=5).contains(&named.len()), "{named:?}");
}

#[test]
fn unsafe_code_is_only_in_xdp_and_in_shared_memory() {
    for path in files("crates") {
        let text = path.to_string_lossy().into_owned();
        let places = ["crates/xdp/", "crates/dataplane/src/shm/"];
        let allowed = places.iter().any(|place| text.starts_with(place));
        if allowed || path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        for (number, line) in read(&path).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let found = ["unsafe {", "unsafe fn", "unsafe impl", "allow(unsafe_code)"];
            let found = found.iter().find(|word| code.contains(**word));
            assert!(found.is_none(), "{text}:{}: {line}", number + 1);
        }
    }
}

#[test]
fn no_program_prints_by_a_macro_that_panics_if_the_stream_cannot_be_written() {
    for path in files("crates") {
        let text = path.to_string_lossy().into_owned();
        if !text.ends_with(".rs") || !text.contains("/src/") {
            continue;
        }
        for (number, line) in before_tests(&read(&path)) {
            let found = ["println!(", "print!("].iter().any(|name| line.contains(name));
            assert!(!found, "{text}:{number}: use `writeln!`, and decide on its error: {line}");
        }
    }
}

/// The files that read the machine's date, for times that a person sees, for the ends of entries of access lists, which
/// last over a restart, and for signatures. All timeouts are of the monotonic clock, so a date that jumps changes none.
const READ_THE_DATE: [&str; 9] = [
    "crates/cli/src/doctor/clocks.rs",
    "crates/cli/src/events.rs",
    "crates/cli/src/servers/health.rs",
    "crates/dataplane/src/capture/watched.rs",
    "crates/health/src/mail.rs",
    "crates/health/src/manager.rs",
    "crates/health/src/runner.rs",
    "crates/model/src/report/event.rs",
    "crates/xvsd/src/date.rs",
];

#[test]
fn the_date_is_read_only_for_times_that_a_person_sees() {
    for path in files("crates") {
        let text = path.to_string_lossy().into_owned();
        if !text.ends_with(".rs") || !text.contains("/src/") || READ_THE_DATE.contains(&text.as_str()) {
            continue;
        }
        for (number, line) in before_tests(&read(&path)) {
            let found = ["SystemTime", "Realtime", "UNIX_EPOCH"].iter().any(|name| line.contains(name));
            assert!(!found, "{text}:{number}: reads the date; use Instant: {line}");
        }
    }
}

#[test]
fn the_control_plane_opens_no_socket_starts_no_thread_and_reads_no_clock() {
    for path in files("crates/ctl/src") {
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        for (number, line) in before_tests(&read(&path)) {
            let code = line.split("//").next().unwrap_or_default();
            let outside = [
                "thread::",
                "UdpSocket",
                "TcpStream",
                "TcpListener",
                "UnixStream",
                "UnixListener",
                "Instant",
            ];
            let found = outside.iter().find(|name| code.contains(**name));
            assert!(found.is_none(), "{}:{number}: belongs to xvsd: {line}", path.display());
        }
    }
}

#[test]
fn no_source_file_is_longer_than_six_hundred_lines_before_its_tests() {
    for path in files("crates").iter().chain(&files("tests")) {
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let lines = before_tests(&read(path)).count();
        assert!(lines <= 600, "{} has {lines} lines before its tests", path.display());
    }
}

#[test]
fn no_comment_line_is_longer_than_a_hundred_and_twenty_characters() {
    let files = ["crates", "tests", "benches", "fuzz"].into_iter().flat_map(files);
    for path in files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")) {
        for (number, line) in read(&path).lines().enumerate() {
            let is_long = line.trim_start().starts_with("//") && line.chars().count() > 120;
            assert!(!is_long, "{}:{}: {line}", path.display(), number + 1);
        }
    }
}

/// The most named closures (`let f = |x| …`) in all crates. A closure that is used once stands at its use; one that is
/// used more often is a function below its caller.
const CLOSURES_MAX: usize = 80;

/// The most tuples that a `let` takes apart at once (`let (a, b) = (x, y);`) in all crates.
const TUPLE_LETS_MAX: usize = 60;

#[test]
fn code_is_read_from_the_top_with_few_named_closures_and_tuples_that_are_taken_apart() {
    let mut closures = Vec::new();
    let mut tuples = Vec::new();
    for path in files("crates").into_iter().filter(|path| path.extension().is_some_and(|end| end == "rs")) {
        let place = path.display().to_string();
        let is_of_tests = place.ends_with("/tests.rs") || place.contains("/tests/");
        if is_of_tests || !place.contains("/src/") {
            continue;
        }
        let lines: Vec<_> = before_tests(&read(&path)).map(|(_, line)| line.to_owned()).collect();
        let tokens = tokens(&lines.join("\n"));
        for at in (0..tokens.len()).filter(|at| tokens[*at] == "let") {
            if is_closure(&tokens[at + 1..]) {
                closures.push(format!("{place}: {}", tokens[at + 1]));
            }
            if is_tuple(&tokens[at + 1..]) {
                tuples.push(format!("{place}: {}", tokens[at..at + 6].concat()));
            }
        }
    }
    assert!(closures.len() <= CLOSURES_MAX, "{}: {closures:#?}", closures.len());
    assert!(tuples.len() <= TUPLE_LETS_MAX, "{}: {tuples:#?}", tuples.len());
}

/// Whether a closure gets a name here: these are the tokens behind `let`.
fn is_closure(tokens: &[String]) -> bool {
    let tokens = if tokens.first().is_some_and(|token| token == "mut") { &tokens[1..] } else { tokens };
    let Some(end) = tokens.iter().position(|token| token == "=" || token == ";") else { return false };
    let begins = |wanted: &[&str]| wanted.iter().zip(&tokens[end..]).all(|(wanted, token)| wanted == token);
    tokens.first().is_some_and(|name| is_name(name)) && (begins(&["=", "|"]) || begins(&["=", "move", "|"]))
}

/// Whether a tuple is made and taken apart here: these are the tokens behind `let`.
fn is_tuple(tokens: &[String]) -> bool {
    if tokens.first().is_none_or(|token| token != "(") {
        return false;
    }
    let Some(end) = tokens.iter().position(|token| token == "=") else { return false };
    tokens.get(end + 1).is_some_and(|token| token == "(")
        && tokens.get(closing(tokens, end + 1) + 1).is_some_and(|token| token == ";")
}

#[test]
fn closures_and_tuples_are_counted_where_a_reader_sees_them() {
    for (text, closure, tuple) in [
        ("f = |x| x;", true, false),
        ("mut f = move || 1;", true, false),
        ("f: fn(u8) -> u8 = |x| x;", true, false),
        ("f = list.map(|x| x);", false, false),
        ("(a, mut b) = (1, f(2));", false, true),
        ("(a, b) = pair();", false, false),
        ("(a, b) = (x).split();", false, false),
        ("a = (1, 2);", false, false),
    ] {
        let tokens = tokens(text);
        assert_eq!((is_closure(&tokens), is_tuple(&tokens)), (closure, tuple), "{text}");
    }
}

/// A file of the kernel, or a placeholder for a name.
fn is_of_ours(name: &str) -> bool {
    !name.contains("NAME")
        && !["linux/", "net/", "kernel/", "drivers/", "include/"].iter().any(|at| name.starts_with(at))
}

#[test]
fn a_comment_names_only_files_that_are_there() {
    let all = files(".");
    let there = |name: &str| {
        let parts: Vec<_> = name.split('/').collect();
        all.iter().any(|path| {
            let path = path.to_string_lossy();
            path.ends_with(name)
                || path.rsplit('/').next() == parts.last().copied()
                    && parts.iter().all(|part| path.split('/').any(|at| at == *part))
        })
    };
    let sources = all.iter().filter(|path| path.extension().is_some_and(|end| end == "rs" || end == "md"));
    for path in sources.filter(|path| !path.ends_with("CHANGELOG.md")) {
        for (number, line) in read(path).lines().enumerate() {
            let is_prose =
                path.extension().is_some_and(|end| end == "md") || line.trim_start().starts_with("//");
            let quoted = line.split('`').skip(1).step_by(2).filter(|_| is_prose);
            let named = quoted.filter(|name| {
                [".rs", ".bpf.c", ".h"].iter().any(|end| name.ends_with(end))
                    && !name.contains([' ', '*', ':'])
            });
            for name in named.filter(|name| is_of_ours(name)) {
                assert!(there(name), "{}:{}: there is no {name}", path.display(), number + 1);
            }
        }
    }
}
