//! The floor plan: which crate may use which, that files import each other one way, where unsafe code may stand, and how
//! long a file may be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

#[path = "layering/imports.rs"]
mod imports;

use imports::Imports;

/// Crates whose files must not import each other in circles.
const WITHOUT_CIRCLES: [&str; 4] = ["proto", "sched", "xdp", "dataplane"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files that git tracks or would track, below a folder.
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

#[test]
fn crates_depend_only_on_crates_to_their_left() {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["metadata", "--no-deps", "--format-version=1"])
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let order = [
        "xvs-proto",
        "xvs-sched",
        "xvs-xdp",
        "xvs-dataplane",
        "xvs-model",
        "xvs-ipvsadm",
        "xvs-keepalived",
        "xvs-health",
        "xvs-ctl",
        "xvs-cli",
    ];
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let Some(place) = order.iter().position(|known| *known == name) else { continue };
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            if let Some(other) = order.iter().position(|known| *known == on) {
                assert!(other < place, "{name} depends on {on}, which stands to its right");
            }
        }
    }
}

/// The module that a file of `src/` is; `None` for a program, which nothing imports.
fn module(file: &Path) -> Option<Vec<String>> {
    let names = file.with_extension("");
    let mut names: Vec<_> = names.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    if ["mod", "lib"].contains(&names.last()?.as_str()) {
        names.pop();
    }
    (names.first().map(String::as_str) != Some("bin")).then_some(names)
}

#[test]
fn no_file_imports_one_that_imports_it_but_a_module_and_those_below_it() {
    let mut circles = Vec::new();
    for name in WITHOUT_CIRCLES {
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
fn unsafe_code_stands_only_where_the_kernel_and_shared_memory_are_touched() {
    for path in files("crates") {
        let text = path.to_string_lossy().into_owned();
        let allowed = text.starts_with("crates/xdp/") || text.starts_with("crates/dataplane/src/shm/");
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
fn no_source_file_is_longer_than_six_hundred_lines_before_its_tests() {
    for path in files("crates").iter().chain(&files("tests")) {
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = read(path);
        let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
        assert!(lines <= 600, "{} has {lines} lines before its tests", path.display());
    }
}
