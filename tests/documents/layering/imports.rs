//! Imports among the files of a crate, read from their text: `use` trees and paths that begin with `crate`, `super`,
//! `self` or a child module.
//!
//! Comments, strings and items under `#[cfg(test)]` do not count. An import of a re-export is an import from the file
//! that re-exports it. Not seen: expansions of macros.

use std::collections::{BTreeMap, BTreeSet};

/// The path of a module from the crate's root.
type Module = Vec<String>;

/// The imports among the files of a crate, by module.
#[derive(Debug, Default)]
pub(crate) struct Imports {
    /// For each file the files that it imports, with one name imported from each.
    edges: BTreeMap<Module, BTreeMap<Module, String>>,
}

impl Imports {
    /// Reads files, each with its module and its text.
    pub(crate) fn of(files: &[(Module, String)]) -> Self {
        let parsed: Vec<_> = files.iter().map(|(module, text)| (module, Parsed::of(module, text))).collect();
        let mut homes: BTreeMap<Module, &Module> = BTreeMap::new();
        for (file, Parsed { modules, .. }) in &parsed {
            homes.extend(modules.iter().map(|module| (module.clone(), *file)));
        }
        let mut imports = Self::default();
        for (file, Parsed { paths, .. }) in &parsed {
            let edges = imports.edges.entry((*file).clone()).or_default();
            for (scope, path) in paths {
                let Some(path) = absolute(scope, path, &homes) else { continue };
                let Some(home) = (0..=path.len()).rev().find_map(|len| homes.get(&path[..len])) else {
                    continue;
                };
                if home != file {
                    edges.insert((*home).clone(), path.join("::"));
                }
            }
        }
        imports
    }

    /// Cycles: sets of files that import each other, directly or indirectly. Imports between a module and its children
    /// do not count. Each set is given as the imports within it.
    pub(crate) fn circles(&self) -> Vec<Vec<String>> {
        let reach: BTreeMap<_, _> = self.edges.keys().map(|file| (file, self.reached_from(file))).collect();
        let circle = |a: &Module, b: &Module| reach[a].contains(b) && reach[b].contains(a);
        let mut circles = Vec::new();
        let mut seen = BTreeSet::new();
        for file in self.edges.keys() {
            let set: BTreeSet<_> = self.edges.keys().filter(|other| circle(file, other)).collect();
            let related = |a: &Module, b: &Module| a.starts_with(b) || b.starts_with(a);
            if set.iter().all(|a| set.iter().all(|b| related(a, b))) || !seen.insert(set.clone()) {
                continue;
            }
            let within =
                set.iter().flat_map(|from| self.edges[*from].iter().map(move |(to, name)| (from, to, name)));
            let within = within.filter(|(_, to, _)| set.contains(to));
            circles.push(
                within.map(|(from, to, name)| format!("{} → {} ({name})", shown(from), shown(to))).collect(),
            );
        }
        circles
    }

    fn reached_from(&self, file: &Module) -> BTreeSet<&Module> {
        let (mut reached, mut next) = (BTreeSet::new(), vec![file]);
        while let Some(from) = next.pop() {
            for to in self.edges.get(from).into_iter().flat_map(BTreeMap::keys) {
                if reached.insert(to) {
                    next.push(to);
                }
            }
        }
        reached
    }
}

fn shown(module: &Module) -> String {
    if module.is_empty() { "the root".into() } else { module.join("::") }
}

/// The absolute form of a path; `None` for a path to another crate or to an item of the file itself.
fn absolute(scope: &Module, path: &[String], homes: &BTreeMap<Module, &Module>) -> Option<Module> {
    let mut base = scope.clone();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => (base, rest) = (Vec::new(), &path[1..]),
        "self" | "super" => {
            while let [first, others @ ..] = rest
                && ["self", "super"].contains(&first.as_str())
            {
                if first == "super" {
                    base.pop()?;
                }
                rest = others;
            }
        }
        child => {
            let module = [&scope[..], &[child.to_owned()]].concat();
            homes.get(&module)?;
        }
    }
    Some([&base[..], rest].concat())
}

/// The modules and paths in a file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Parsed {
    /// Its module, and its inline modules.
    modules: Vec<Module>,
    /// Each path with the module that contains it.
    paths: Vec<(Module, Vec<String>)>,
}

impl Parsed {
    fn of(file: &Module, text: &str) -> Self {
        let tokens = tokens(text);
        let mut parsed = Self { modules: vec![file.clone()], paths: Vec::new() };
        // The enclosing inline modules, each with the depth of its braces.
        let (mut scope, mut open, mut depth) = (file.clone(), Vec::new(), 0);
        let mut at = 0;
        while at < tokens.len() {
            let token = |ahead: usize| tokens.get(at + ahead).map_or("", String::as_str);
            match token(0) {
                "#" if is_test(&tokens[at..]) => {
                    at = end_of_item(&tokens, at);
                    continue;
                }
                "pub" if token(1) == "(" => at = closing(&tokens, at + 1),
                "use" => {
                    let end = at + tokens[at..].iter().position(|token| token == ";").unwrap_or(0);
                    let leaves = leaves(&tokens[at + 1..end]);
                    parsed.paths.extend(leaves.into_iter().map(|path| (scope.clone(), path)));
                    at = end;
                }
                "mod" if token(2) == "{" => {
                    scope.push(token(1).to_owned());
                    parsed.modules.push(scope.clone());
                    open.push(depth);
                    depth += 1;
                    at += 2;
                }
                "{" => depth += 1,
                "}" => {
                    depth -= 1;
                    if open.last() == Some(&depth) {
                        open.pop();
                        scope.pop();
                    }
                }
                first if is_name(first) && token(1) == "::" && (at == 0 || tokens[at - 1] != "::") => {
                    let mut path = vec![first.to_owned()];
                    while tokens.get(at + 1).is_some_and(|token| token == "::")
                        && tokens.get(at + 2).is_some_and(|token| is_name(token))
                    {
                        path.push(tokens[at + 2].clone());
                        at += 2;
                    }
                    parsed.paths.push((scope.clone(), path));
                }
                _ => {}
            }
            at += 1;
        }
        parsed
    }
}

/// Whether an attribute limits its item to tests.
fn is_test(tokens: &[String]) -> bool {
    ["#", "[", "cfg", "(", "test", ")", "]"].iter().zip(tokens).all(|(wanted, token)| wanted == token)
}

/// The end of the item whose attributes begin at `at`, which is the start of the next item.
fn end_of_item(tokens: &[String], mut at: usize) -> usize {
    while at < tokens.len() {
        match tokens[at].as_str() {
            ";" => return at + 1,
            "{" => return closing(tokens, at) + 1,
            "(" | "[" => at = closing(tokens, at) + 1,
            _ => at += 1,
        }
    }
    at
}

/// The position of the bracket that closes the one at `at`.
pub(crate) fn closing(tokens: &[String], at: usize) -> usize {
    let mut depth = 0;
    for (place, token) in tokens.iter().enumerate().skip(at) {
        match token.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return place;
        }
    }
    tokens.len()
}

/// The paths of a `use` tree. A path to a module itself ends without `self`.
fn leaves(tree: &[String]) -> Vec<Vec<String>> {
    let mut path = Vec::new();
    for (place, token) in tree.iter().enumerate() {
        match token.as_str() {
            "{" => {
                let parts = parts(&tree[place + 1..closing(tree, place)]).into_iter().flat_map(leaves);
                return parts.map(|rest| without_self([&path[..], &rest].concat())).collect();
            }
            "as" => break,
            "::" => {}
            name => path.push(name.to_owned()),
        }
    }
    vec![without_self(path)]
}

/// The parts of a list between commas.
fn parts(list: &[String]) -> Vec<&[String]> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0);
    for (place, token) in list.iter().enumerate() {
        match token.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 0 => {
                parts.push(&list[start..place]);
                start = place + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[start..]);
    parts.retain(|part| !part.is_empty());
    parts
}

fn without_self(mut path: Vec<String>) -> Vec<String> {
    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    path
}

pub(crate) fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Names, `::` and single other characters; without comments, and with `""` for each literal of characters.
pub(crate) fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let begins = |at: usize, what: &str| {
        what.chars().enumerate().all(|(ahead, wanted)| chars.get(at + ahead) == Some(&wanted))
    };
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let start = at;
        match chars[at] {
            _ if begins(at, "//") => at = find(&chars, at, '\n'),
            _ if begins(at, "/*") => {
                let mut depth = 0;
                loop {
                    if begins(at, "/*") {
                        (depth, at) = (depth + 1, at + 2);
                    } else if begins(at, "*/") {
                        (depth, at) = (depth - 1, at + 2);
                    } else {
                        at += 1;
                    }
                    if depth == 0 || at >= chars.len() {
                        break;
                    }
                }
            }
            'r' | 'b' | 'c' if raw_string(&chars, at).is_some() => {
                at = raw_string(&chars, at).unwrap_or(at + 1);
                tokens.push("\"\"".into());
            }
            '"' => {
                at = end_of_literal(&chars, at, '"');
                tokens.push("\"\"".into());
            }
            // A character, not a lifetime.
            '\'' if begins(at + 1, "\\") || chars.get(at + 2) == Some(&'\'') => {
                at = end_of_literal(&chars, at, '\'');
                tokens.push("\"\"".into());
            }
            _ if begins(at, "::") => {
                at += 2;
                tokens.push("::".into());
            }
            first if first.is_alphanumeric() || first == '_' => {
                while chars.get(at).is_some_and(|char| char.is_alphanumeric() || *char == '_') {
                    at += 1;
                }
                tokens.push(chars[start..at].iter().collect());
            }
            char => {
                at += 1;
                if !char.is_whitespace() {
                    tokens.push(char.into());
                }
            }
        }
    }
    tokens
}

fn find(chars: &[char], from: usize, wanted: char) -> usize {
    chars[from..].iter().position(|char| *char == wanted).map_or(chars.len(), |ahead| from + ahead)
}

/// The position after a literal that begins and ends with `quote`.
fn end_of_literal(chars: &[char], start: usize, quote: char) -> usize {
    let mut at = start + 1;
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            char if char == quote => return at + 1,
            _ => at += 1,
        }
    }
    at
}

/// The position after a raw string, if one begins at `start`: `r"…"`, `br#"…"#`.
fn raw_string(chars: &[char], start: usize) -> Option<usize> {
    let prefix = chars[start..].iter().take_while(|char| ['r', 'b', 'c'].contains(char)).count();
    if !chars[start..start + prefix].contains(&'r') || start > 0 && chars[start - 1].is_alphanumeric() {
        return None;
    }
    let hashes = chars[start + prefix..].iter().take_while(|char| **char == '#').count();
    let open = start + prefix + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let mut at = open + 1;
    loop {
        at = find(chars, at, '"') + 1;
        let closed = chars.get(at..at + hashes).is_none_or(|behind| behind.iter().all(|char| *char == '#'));
        if closed {
            return Some((at + hashes).min(chars.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(path: &str) -> Module {
        path.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    fn circles(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let files: Vec<_> = files.iter().map(|(path, text)| (module(path), (*text).to_owned())).collect();
        Imports::of(&files).circles()
    }

    #[test]
    fn siblings_that_import_each_other_are_a_circle_in_every_notation() {
        for (one, other) in [
            ("use crate::b::B;", "use crate::a::A;"),
            ("use super::b::{self, B};", "fn f() { crate::a::g(); }"),
            ("use crate::{b::B, c};", "use super::{a::A as Other};"),
            ("fn f() -> super::b::B { super::b::B }", "mod inner { use super::super::a::*; }"),
        ] {
            assert_eq!(circles(&[("a", one), ("b", other), ("c", "")]).len(), 1, "{one} {other}");
        }
    }

    #[test]
    fn siblings_that_reach_each_other_through_their_parent_are_a_circle() {
        let parent = "mod a; mod b; pub use self::a::A; pub use b::B;";
        assert_eq!(
            circles(&[("p", parent), ("p::a", "use super::B;"), ("p::b", "use crate::p::A;")]).len(),
            1
        );
        assert_eq!(circles(&[("p", parent), ("p::a", "use super::B;"), ("p::b", "")]).len(), 0);
    }

    #[test]
    fn a_module_and_its_children_may_import_each_other() {
        let files = [
            ("p", "mod c; use c::C; struct P;"),
            ("p::c", "mod d; use super::P; use d::D;"),
            ("p::c::d", "use crate::p::c::C; use super::super::P;"),
        ];
        assert_eq!(circles(&files).len(), 0);
    }

    #[test]
    fn comments_literals_tests_and_other_crates_import_nothing() {
        let text = r##"
            // use crate::a::A;
            /* crate::a::f() /* crate::a::g() */ */
            const TEXT: &str = "crate::a::h()"; const RAW: &str = r#"crate::a::"#; const C: char = '"';
            use std::a::A; pub(in crate::a) fn f<'a>(x: &'a str) {}
            #[cfg(test)]
            #[cfg(not(loom))]
            mod tests { use crate::a::A; }
            #[cfg(test)]
            use crate::a::A;
        "##;
        assert_eq!(circles(&[("a", "use crate::b::B;"), ("b", text)]).len(), 0);
    }
}
