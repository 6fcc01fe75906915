//! A writer of Prometheus' text format 0.0.4, line by line.
//!
//! Used for each scrape. `metrics-exporter-prometheus` formats help lines and labels; its registry, which would keep
//! all metrics in memory, is not used. The caller must write all lines of a family together. Not here: names and help
//! texts (`director.rs`, `health.rs`, `services.rs`).
//!
//! Source: «Exposition formats» in Prometheus' documentation.

use std::fmt::{Display, Write};
use std::ops::Range;

use metrics_exporter_prometheus::formatting::{sanitize_label_value, write_help_line, write_type_line};

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A value that only grows.
    Counter,
    /// A value that grows and shrinks.
    Gauge,
    /// Counts by size, with the sum of the sizes.
    Histogram,
}

/// A metric family: all lines with one name. `items` select the objects that have a line, and read their values.
pub(super) struct Family<Items> {
    pub(super) kind: Kind,
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) items: Items,
}

/// Families in the order of the page, each with its type, its name, its help and its items.
macro_rules! families {
    ($($kind:ident $name:literal $help:literal $items:expr;)*) => {
        [$(Family { kind: Kind::$kind, name: $name, help: $help, items: $items }),*]
    };
}
pub(super) use families;

impl<Items> Family<Items> {
    /// Writes the header of the family: help and type.
    pub(super) fn begin(&self, text: &mut Text) {
        let kind = match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        write_help_line(&mut text.0, self.name, None, None, self.help);
        write_type_line(&mut text.0, self.name, None, None, kind);
    }

    /// Writes a family of one line; nothing without a value.
    pub(super) fn single(&self, text: &mut Text, value: Option<impl Display>) {
        if let Some(value) = value {
            self.begin(text);
            text.sample(self.name, &[], value);
        }
    }
}

/// A label: name and value.
pub(super) type Label<'a> = (&'static str, &'a dyn Display);

/// The lines of a page that are written so far.
#[derive(Default)]
pub(super) struct Text(String);

impl Text {
    /// Writes a line.
    pub(super) fn sample(&mut self, name: &str, labels: &[Label], value: impl Display) {
        self.line(&[name], labels, value);
    }

    /// Writes the lines of a histogram, with buckets at 2^`exponents`. A unit of the metric is `scale` units of the
    /// ranges of `counts`; `sum` is in the metric's unit.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        labels: &[Label],
        counts: &[u64],
        sum: f64,
        exponents: Range<usize>,
        scale: f64,
    ) {
        let all: u64 = counts.iter().sum();
        for exponent in exponents {
            let bound = (1_u64 << exponent) as f64 / scale;
            self.line(
                &[name, "_bucket"],
                &[labels, &[("le", &bound)]].concat(),
                counts[..=exponent].iter().sum::<u64>(),
            );
        }
        self.line(&[name, "_bucket"], &[labels, &[("le", &"+Inf")]].concat(), all);
        self.line(&[name, "_sum"], labels, sum);
        self.line(&[name, "_count"], labels, all);
    }

    /// The length in bytes.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn line(&mut self, name: &[&str], labels: &[Label], value: impl Display) {
        self.0.extend(name.iter().copied());
        let mut before = "{";
        for (name, value) in labels {
            for part in [before, name, "=\"", &sanitize_label_value(&value.to_string()), "\""] {
                self.0.push_str(part);
            }
            before = ",";
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        writeln!(self.0, " {value}").expect("writing to a string never fails");
    }
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.0
    }
}

#[cfg(test)]
mod tests {
    use xvs_dataplane::counters::Histogram;

    use super::*;

    #[test]
    fn special_characters_of_a_label_are_escaped_and_others_are_unchanged() {
        let mut text = Text::default();
        Family { kind: Kind::Gauge, name: "a_b", help: "What it is.", items: () }.begin(&mut text);
        text.sample("a_b", &[], 1.5);
        text.sample("a_b", &[("x", &"C:\\ \"no\"\n"), ("y", &7)], 18_446_744_073_709_551_615_u64);
        let expected = concat!(
            "# HELP a_b What it is.\n# TYPE a_b gauge\na_b 1.5\n",
            "a_b{x=\"C:\\\\ \\\"no\\\"\\n\",y=\"7\"} 18446744073709551615\n"
        );
        assert_eq!(String::from(text), expected);
    }

    #[test]
    fn a_histogram_counts_up_to_each_bound_in_the_metrics_unit() {
        let histogram = Histogram::<24>::default();
        [100, 128, 129, 3000, 1 << 40].into_iter().for_each(|value| histogram.count(value));
        let mut text = Text::default();
        let sum = histogram.sum.value() as f64 / 1e6;
        text.histogram("t_seconds", &[("kind", &"x")], &histogram.counts(), sum, 7..9, 1e6);
        let expected = concat!(
            "t_seconds_bucket{kind=\"x\",le=\"0.000128\"} 2\n",
            "t_seconds_bucket{kind=\"x\",le=\"0.000256\"} 3\n",
            "t_seconds_bucket{kind=\"x\",le=\"+Inf\"} 5\n",
            "t_seconds_sum{kind=\"x\"} 1099511.631133\n",
            "t_seconds_count{kind=\"x\"} 5\n",
        );
        assert_eq!(String::from(text), expected);
    }
}
