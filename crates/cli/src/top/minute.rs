//! The last minute of all services as sparklines, one character for each six seconds.
//!
//! `xvs top` computes it from the totals that it requests anyway: it needs no field of a reply, and its numbers agree
//! with the rows below. xvsd's history of the last hour is too coarse, with one value each ten seconds. It is empty
//! when `top` starts; a time without replies is blank. The rates are computed in `view.rs`.

use std::collections::VecDeque;
use std::env;

use xvs_model::report::traffic::Traffic;

use crate::top::view::{cut, drop_rate, short};

/// The characters of a line.
const CELLS: usize = 10;
const CELL_MILLIS: u64 = 60_000 / CELLS as u64;

/// The names of the lines: two columns of the table, and the line of drops.
const NAMES: [&str; 3] = ["CPS", "InPPS", "drops"];

/// The characters of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Charset {
    Utf8,
    Ascii,
}

impl Charset {
    /// The character set of the locale, chosen as the C library does: from the first of these variables that is set.
    pub(super) fn of_locale() -> Self {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()))
            .unwrap_or_default();
        Self::named(&locale)
    }

    fn named(locale: &str) -> Self {
        let locale = locale.to_ascii_lowercase();
        if locale.contains("utf-8") || locale.contains("utf8") { Self::Utf8 } else { Self::Ascii }
    }

    /// The character of a rate: the lowest for nothing, the highest for the highest rate.
    fn level(self, rate: f64, highest: f64) -> char {
        let levels = match self {
            Self::Utf8 => ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'],
            Self::Ascii => ['_', '.', ':', '-', '=', '+', '*', '#'],
        };
        let share = if highest > 0.0 { rate / highest } else { 0.0 };
        levels[((share * 8.0).ceil() as usize).clamp(1, 8) - 1]
    }
}

/// Sums of the cells of the last minute, the newest last.
#[derive(Debug)]
pub(super) struct Minute {
    charset: Charset,
    cells: VecDeque<Cell>,
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    /// The time since the machine's start, in cells.
    number: u64,
    /// The milliseconds for which the rates are known.
    millis: u64,
    /// The sums of the rates, weighted by milliseconds.
    sums: [f64; NAMES.len()],
}

impl Minute {
    pub(super) fn new(charset: Charset) -> Self {
        Self { charset, cells: VecDeque::new() }
    }

    /// Adds the rates between two samples; `connections` and `in_packets` are totals of all services.
    pub(super) fn add(&mut self, before: &Traffic, now: &Traffic, [connections, in_packets]: [f64; 2]) {
        let rates = [connections, in_packets, drop_rate(Some(before), now)];
        let last = now.at_millis.saturating_sub(1) / CELL_MILLIS;
        // Also handles a clock that restarts because the machine does.
        self.cells.retain(|cell| cell.number <= last && cell.number + CELLS as u64 > last);
        let first = (before.at_millis / CELL_MILLIS).max((last + 1).saturating_sub(CELLS as u64));
        for number in first..=last {
            let [from, to] = [number, number + 1].map(|number| number * CELL_MILLIS);
            let millis = now.at_millis.min(to).saturating_sub(before.at_millis.max(from));
            if self.cells.back().is_none_or(|cell| cell.number < number) {
                self.cells.push_back(Cell { number, millis: 0, sums: [0.0; NAMES.len()] });
            }
            let Some(cell) = self.cells.back_mut().filter(|cell| cell.number == number) else { continue };
            cell.millis += millis;
            cell.sums.iter_mut().zip(rates).for_each(|(sum, rate)| *sum += rate * millis as f64);
        }
    }

    /// The lines side by side, each with the highest rate of its cells.
    pub(super) fn line(&self, width: usize) -> String {
        let at_most = if self.charset == Charset::Utf8 { "≤" } else { "<=" };
        let mut lines = Vec::new();
        for (index, name) in NAMES.iter().enumerate() {
            let rates: Vec<_> = self.rates(index).collect();
            let highest = rates.iter().flatten().copied().fold(0.0, f64::max);
            let spark: String =
                rates.iter().map(|rate| rate.map_or(' ', |rate| self.charset.level(rate, highest))).collect();
            lines.push(format!("{name} {spark} {at_most}{}", short(highest)));
        }
        cut(&format!("minute   {}", lines.join("  ")), width)
    }

    /// The average rates of the cells up to the newest; `None` if unknown.
    fn rates(&self, index: usize) -> impl Iterator<Item = Option<f64>> {
        let last = self.cells.back().map_or(0, |cell| cell.number);
        (0..CELLS as u64).rev().map(move |ago| {
            let cell = self.cells.iter().find(|cell| cell.number + ago == last)?;
            (cell.millis > 0).then(|| cell.sums[index] / cell.millis as f64)
        })
    }
}

#[cfg(test)]
mod tests {
    use xvs_model::report::status::{Drops, StatusReport};
    use xvs_model::sample;

    use crate::top::minute::*;

    fn sample(at_millis: u64, dropped: u64) -> Traffic {
        let drops = Drops { reason: "no_route".to_owned(), packets: dropped, what: String::new() };
        let status = StatusReport {
            drops: vec![drops],
            lists: Vec::new(),
            syn_limits: Vec::new(),
            ..sample::status()
        };
        Traffic { at_millis, status, services: Vec::new() }
    }

    /// A minute with a sample each second, in which connections grow by one each second.
    fn growing(charset: Charset) -> Minute {
        let mut minute = Minute::new(charset);
        for second in 1..=60 {
            let (before, now) = (sample(second * 1000 + 59_000, 0), sample(second * 1000 + 60_000, 0));
            minute.add(&before, &now, [second as f64, 5000.0]);
        }
        minute
    }

    #[test]
    fn a_minute_has_a_character_for_each_six_seconds_and_the_highest_rate() {
        assert_eq!(
            growing(Charset::Utf8).line(80),
            "minute   CPS ▁▂▃▃▄▅▆▇██ ≤58  InPPS ██████████ ≤5.0k  drops ▁▁▁▁▁▁▁▁▁▁ ≤0"
        );
        assert_eq!(
            growing(Charset::Ascii).line(80),
            "minute   CPS _.::-=+*## <=58  InPPS ########## <=5.0k  drops __________ <=0"
        );
        assert_eq!(growing(Charset::Utf8).line(20), "minute   CPS ▁▂▃▃▄▅…");
    }

    #[test]
    fn a_time_without_answers_and_the_time_before_top_are_blank_and_the_oldest_cells_go() {
        let mut minute = Minute::new(Charset::Ascii);
        let blank = " ".repeat(CELLS);
        assert_eq!(
            minute.line(80),
            format!("minute   CPS {blank} <=0  InPPS {blank} <=0  drops {blank} <=0")
        );
        minute.add(&sample(60_000, 0), &sample(61_000, 80), [8.0, 0.0]);
        minute.add(&sample(75_000, 80), &sample(76_000, 90), [1.0, 0.0]);
        assert_eq!(
            minute.line(80),
            "minute   CPS        # _ <=8.0  InPPS        _ _ <=0  drops        # _ <=80"
        );
        minute.add(&sample(116_000, 90), &sample(120_500, 90), [4.0, 0.0]);
        assert_eq!(&minute.line(80)[..23], "minute   CPS  .      ##");
        // With one sample a minute or fewer, all cells have the average.
        minute.add(&sample(120_500, 90), &sample(200_000, 90), [4.0, 0.0]);
        assert_eq!(&minute.line(80)[..29], "minute   CPS ########## <=4.0");
        minute.add(&sample(0, 0), &sample(1000, 0), [4.0, 0.0]);
        assert_eq!(&minute.line(80)[..23], "minute   CPS          #");
    }

    #[test]
    fn the_longest_lines_fit_80_columns() {
        let mut minute = Minute::new(Charset::Utf8);
        minute.add(&sample(60_000, 0), &sample(61_000, 999_000), [999_000.0, 999_000.0]);
        assert!(minute.line(usize::MAX).chars().count() <= 80, "{}", minute.line(usize::MAX));
    }

    #[test]
    fn a_locale_with_utf_8_in_its_name_has_blocks() {
        for (locale, charset) in [
            ("C.UTF-8", Charset::Utf8),
            ("de_DE.utf8", Charset::Utf8),
            ("C", Charset::Ascii),
            ("de_DE.ISO-8859-1", Charset::Ascii),
            ("", Charset::Ascii),
        ] {
            assert_eq!(Charset::named(locale), charset, "{locale}");
        }
    }
}
