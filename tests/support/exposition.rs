//! A page of metrics, read as strictly as Prometheus' text format 0.0.4 is written down.
//!
//! Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>. Stricter where names are concerned: each has its
//! help and type before its values, all in one place, and a counter ends in `_total`.

use std::collections::{BTreeMap, BTreeSet};

/// Labels of a value, by name.
pub type Labels = BTreeMap<String, String>;

/// Every value of a page, by name and labels.
#[derive(Debug)]
pub struct Page(BTreeMap<(String, Labels), f64>);

impl Page {
    /// Reads a page.
    ///
    /// # Panics
    ///
    /// With the line that is wrong.
    pub fn read(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line has no end");
        let (mut values, mut helped, mut seen) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        // The name that values may have now, and whether they only grow.
        let mut current = (String::new(), false);
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect(line);
                assert!(!help.is_empty() && helped.insert(name.to_owned()), "{line}");
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect(line);
                assert!(helped.contains(name) && seen.insert(name.to_owned()), "{line}");
                assert!(is_name(name) && name.starts_with("xvs_"), "{line}");
                assert!(["counter", "gauge"].contains(&kind), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                current = (name.to_owned(), kind == "counter");
            } else {
                let (name, labels, value) = value(line);
                assert_eq!(name, current.0, "{line}: under another name's type");
                assert!(!current.1 || value >= 0.0 && value.fract() == 0.0, "{line}");
                assert!(values.insert((name, labels), value).is_none(), "{line}: twice");
            }
        }
        assert_eq!(helped, seen);
        Self(values)
    }

    /// The sum of all values of a name whose labels have these among them; `None` if there is none.
    pub fn sum(&self, name: &str, among: &[(&str, &str)]) -> Option<f64> {
        let fits = |labels: &Labels| {
            among.iter().all(|(key, value)| labels.get(*key).is_some_and(|label| label == value))
        };
        let found = self.0.iter().filter(|((of, labels), _)| of == name && fits(labels));
        found.map(|(_, value)| *value).reduce(|sum, value| sum + value)
    }
}

/// `name{key="value",…} 1`
fn value(line: &str) -> (String, Labels, f64) {
    let (series, value) = line.rsplit_once(' ').expect(line);
    let value = value.parse().expect(line);
    let Some((name, rest)) = series.split_once('{') else {
        assert!(is_name(series), "{line}");
        return (series.to_owned(), Labels::new(), value);
    };
    assert!(is_name(name), "{line}");
    let (mut labels, mut rest) = (Labels::new(), rest);
    loop {
        let (key, quoted) = rest.split_once("=\"").expect(line);
        assert!(is_name(key) && !key.contains(':'), "{line}");
        let (text, behind) = unquote(quoted).expect(line);
        assert!(labels.insert(key.to_owned(), text).is_none(), "{line}: a label twice");
        match behind.strip_prefix(',') {
            Some(next) => rest = next,
            None => {
                assert_eq!(behind, "}", "{line}");
                return (name.to_owned(), labels, value);
            }
        }
    }
}

/// What stands before the closing quote, without escapes, and what follows it.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let (mut text, mut letters) = (String::new(), quoted.char_indices());
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((text, &quoted[at + 1..])),
            '\\' => text.push(match letters.next()?.1 {
                'n' => '\n',
                escaped @ ('\\' | '"') => escaped,
                _ => return None,
            }),
            letter => text.push(letter),
        }
    }
    None
}

fn is_name(name: &str) -> bool {
    let first = |letter: char| letter.is_ascii_alphabetic() || letter == '_' || letter == ':';
    name.starts_with(first) && name.chars().all(|letter| first(letter) || letter.is_ascii_digit())
}
