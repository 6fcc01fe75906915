//! Libraries in Cargo.lock, by the rules of deny.toml: licences, where they come from, versions.
//!
//! Reads the lists that `cargo deny check` reads too, and asks cargo for the libraries of the same targets. Not here:
//! advisories.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use spdx::{Expression, LicenseReq, Licensee, ParseMode};

/// deny.toml.
fn rules() -> Value {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml"));
    toml::from_str(&text.expect("deny.toml is there")).expect("deny.toml is TOML")
}

/// The strings of a list of deny.toml.
fn strings<'a>(rules: &'a Value, section: &str, list: &str) -> Vec<&'a str> {
    let list =
        rules[section][list].as_array().unwrap_or_else(|| panic!("deny.toml has no list {section}.{list}"));
    list.iter().map(|value| value.as_str().expect("a string")).collect()
}

/// What cargo prints.
fn cargo(arguments: &[&str]) -> String {
    let root = env!("CARGO_MANIFEST_DIR");
    let output = Command::new(env!("CARGO")).current_dir(root).args(arguments).output().expect("cargo runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints UTF-8")
}

/// The packages that are built for the targets of deny.toml, ours and those of tests among them.
fn packages(rules: &Value) -> Vec<Value> {
    let targets = strings(rules, "graph", "targets");
    // The metadata have optional packages, too, that no feature asks for.
    let mut built = BTreeSet::new();
    for target in &targets {
        let tree = ["tree", "--locked", "--workspace", "--all-features", "--prefix=none", "--no-dedupe"];
        let lines = cargo(&[&tree[..], &["--format={p}", "--target", target]].concat());
        let named = lines.lines().filter_map(|line| line.split_once(" v"));
        built.extend(named.map(|(name, rest)| {
            format!("{name}@{}", rest.split(' ').next().expect("split has a first part"))
        }));
    }
    let platforms: Vec<_> = targets.iter().map(|target| format!("--filter-platform={target}")).collect();
    let mut arguments = vec!["metadata", "--locked", "--all-features", "--format-version=1"];
    arguments.extend(platforms.iter().map(String::as_str));
    let metadata: Value = serde_json::from_str(&cargo(&arguments)).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let packages: Vec<_> =
        packages.iter().filter(|package| built.contains(&name(package))).cloned().collect();
    assert_eq!(packages.len(), built.len(), "{built:?}");
    packages
}

/// `name@version`, as deny.toml writes it.
fn name(package: &Value) -> String {
    let text = |key: &str| package[key].as_str().expect("each package has it").to_owned();
    format!("{}@{}", text("name"), text("version"))
}

/// Whether one alternative of an expression consists of allowed licences.
fn is_allowed(expression: &str, allowed: &[Licensee]) -> bool {
    let accepts = |wanted: &LicenseReq| allowed.iter().any(|one| one.satisfies(wanted));
    // Older packages write a slash for OR.
    Expression::parse_mode(expression, ParseMode::LAX).is_ok_and(|parsed| parsed.evaluate(accepts))
}

fn licensees(rules: &Value) -> Vec<Licensee> {
    let allowed = strings(rules, "licenses", "allow");
    allowed
        .iter()
        .map(|name| Licensee::parse(name).unwrap_or_else(|error| panic!("{name}: {error}")))
        .collect()
}

#[test]
fn an_expression_needs_one_alternative_whose_licences_are_all_allowed() {
    let allowed = ["MIT", "ISC"].map(|name| Licensee::parse(name).expect("a licence"));
    for accepted in ["MIT", "GPL-2.0 OR MIT", "GPL-2.0/MIT", "MIT AND ISC", "(GPL-2.0 OR MIT) AND ISC"] {
        assert!(is_allowed(accepted, &allowed), "{accepted}");
    }
    for refused in ["GPL-2.0", "GPL-2.0 AND MIT", "(GPL-2.0 OR MIT) AND Zlib", "no licence", ""] {
        assert!(!is_allowed(refused, &allowed), "{refused}");
    }
}

#[test]
fn every_library_has_an_allowed_licence() {
    let rules = rules();
    let allowed = licensees(&rules);
    for package in packages(&rules) {
        let licence = package["license"].as_str().unwrap_or_default();
        let name = name(&package);
        assert!(
            is_allowed(licence, &allowed),
            "{name} is under {licence:?}; see licenses.allow in deny.toml"
        );
    }
}

#[test]
fn every_library_is_of_an_allowed_registry_or_of_this_tree() {
    let rules = rules();
    let registries = strings(&rules, "sources", "allow-registry");
    for package in packages(&rules) {
        let name = name(&package);
        match package["source"].as_str() {
            Some(source) => {
                let registry = source.strip_prefix("registry+").unwrap_or(source);
                assert!(registries.contains(&registry), "{name} is from {source}; see sources in deny.toml");
            }
            None => {
                let file = package["manifest_path"].as_str().expect("each package has a manifest");
                assert!(Path::new(file).starts_with(env!("CARGO_MANIFEST_DIR")), "{name} is in {file}");
            }
        }
    }
}

#[test]
fn no_dependency_of_ours_accepts_every_version() {
    for package in packages(&rules()).iter().filter(|package| package["source"].is_null()) {
        for dependency in package["dependencies"].as_array().expect("a list of dependencies") {
            let is_wildcard = dependency["req"] == "*" && dependency["path"].is_null();
            assert!(!is_wildcard, "{}: {} has no version", name(package), dependency["name"]);
        }
    }
}

#[test]
fn two_versions_of_a_library_are_listed_with_the_reason() {
    let rules = rules();
    let skipped = rules["bans"]["skip"].as_array().expect("deny.toml has a list bans.skip");
    let mut listed: Vec<_> = skipped.iter().map(|one| one["crate"].as_str().expect("a crate")).collect();
    assert!(skipped.iter().all(|one| one["reason"].as_str().is_some_and(|reason| !reason.is_empty())));
    let mut versions = BTreeMap::<String, Vec<String>>::new();
    for package in packages(&rules) {
        versions.entry(package["name"].to_string()).or_default().push(name(&package));
    }
    for same in versions.values().filter(|same| same.len() > 1) {
        let others: Vec<_> = same.iter().filter(|one| !listed.contains(&one.as_str())).collect();
        assert!(others.len() <= 1, "{others:?}: update one, or see bans.skip in deny.toml");
        listed.retain(|one| !same.iter().any(|known| known == one));
    }
    assert!(listed.is_empty(), "{listed:?} have one version; remove them from bans.skip in deny.toml");
}

/// The first two numbers of a version of Rust.
fn rust_version(package: &Value) -> Option<(u32, u32)> {
    let mut numbers =
        package["rust_version"].as_str()?.split('.').map(|number| number.parse().expect("a number"));
    Some((numbers.next()?, numbers.next().unwrap_or(0)))
}

#[test]
fn no_library_needs_a_later_rust_than_xvs() {
    let packages = packages(&rules());
    let ours = packages.iter().find(|package| package["name"] == "xvs").and_then(rust_version);
    let ours = ours.expect("the root package names its version of Rust");
    for package in &packages {
        let needs = rust_version(package);
        assert!(needs <= Some(ours), "{} needs Rust {needs:?}, and xvs promises {ours:?}", name(package));
    }
}
