//! A page of metrics, parsed strictly by Prometheus' text format 0.0.4.
//!
//! Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>. Stricter for names: each has its help and
//! type before its values, all in one place, and a counter ends in `_total`.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::{Cluster, Host, succeed};

/// Where the directors of tests serve metrics.
pub const ADDRESS: &str = "127.0.0.1:9112";

/// Labels of a value, by name.
pub type Labels = BTreeMap<String, String>;

/// Every value of a page, by name and labels.
#[derive(Debug)]
pub struct Page(BTreeMap<(String, Labels), f64>);

impl Page {
    /// The page of a host's director that serves metrics at [`ADDRESS`].
    ///
    /// # Panics
    ///
    /// With curl's message, or as [`Self::read`].
    pub fn of(cluster: &Cluster, host: Host) -> Self {
        let mut curl = cluster.command(host, "curl");
        let url = format!("http://{ADDRESS}/metrics");
        Self::read(&succeed(curl.args(["--silent", "--show-error", "--fail", &url])))
    }

    /// Parses a page.
    ///
    /// # Panics
    ///
    /// With the first wrong line.
    pub fn read(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line has no end");
        let (mut values, mut helped, mut seen) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        // The name of the current group of values, and its kind.
        let mut current = (String::new(), String::new());
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect(line);
                assert!(!help.is_empty() && helped.insert(name.to_owned()), "{line}");
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect(line);
                assert!(helped.contains(name) && seen.insert(name.to_owned()), "{line}");
                let ours = ["xvs_", "node_ipvs_", "process_"].iter().any(|prefix| name.starts_with(prefix));
                assert!(is_name(name) && ours, "{line}");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                current = (name.to_owned(), kind.to_owned());
            } else {
                let (name, labels, value) = value(line);
                let part = name.strip_prefix(&current.0).unwrap_or_else(|| panic!("{line}: of another name"));
                let fits = match current.1.as_str() {
                    "histogram" => ["_bucket", "_sum", "_count"].contains(&part) && value >= 0.0,
                    "counter" if name.ends_with("_seconds_total") => part.is_empty() && value >= 0.0,
                    "counter" => part.is_empty() && value >= 0.0 && value.fract() == 0.0,
                    _ => part.is_empty(),
                };
                assert!(fits, "{line}: no {}", current.1);
                assert!(values.insert((name, labels), value).is_none(), "{line}: twice");
            }
        }
        assert_eq!(helped, seen);
        let this = Self(values);
        this.check_histograms();
        this
    }

    /// Checks that buckets are cumulative, and that the last, `+Inf`, equals the count.
    fn check_histograms(&self) {
        for ((name, labels), all) in &self.0 {
            let Some(of) = name.strip_suffix("_count") else { continue };
            let bucket = |bound: f64| (bound, self.bucket(of, labels, bound));
            let bounds = self.0.keys().filter(|(name, _)| *name == format!("{of}_bucket"));
            let bounds = bounds.map(|(_, labels)| labels["le"].parse().expect("a bound is a number"));
            let mut buckets: Vec<_> = bounds.map(bucket).collect();
            buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
            assert!(buckets.is_sorted_by(|one, other| one.1 <= other.1), "{name} {labels:?}: {buckets:?}");
            assert_eq!(buckets.last(), Some(&(f64::INFINITY, *all)), "{name} {labels:?}");
        }
    }

    fn bucket(&self, of: &str, labels: &Labels, bound: f64) -> f64 {
        let fits = |(name, other): &&(String, Labels)| {
            let mut other = other.clone();
            let same = other.remove("le").is_some_and(|le| le.parse() == Ok(bound));
            same && *name == format!("{of}_bucket") && other == *labels
        };
        let key = self.0.keys().find(fits).unwrap_or_else(|| panic!("{of} {labels:?}: no bucket {bound}"));
        self.0[key]
    }

    /// The sum of all values of a name whose labels include `among`; `None` if there is none.
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

/// The unescaped text before the closing quote, and the text after it.
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
