//! Charts as SVG, readable on a light and on a dark page: bars, lines, and small charts of lines side by side.
//!
//! The reader's colour scheme selects the colours. Not here: what is drawn (`pictures.rs`).

use std::error::Error;
use std::fmt::Write as _;
use std::ops::Range;

use plotters::chart::{ChartBuilder, ChartContext, SeriesLabelPosition};
use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::types::RangedCoordf64;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{PathElement, Rectangle, Text};
use plotters::prelude::SVGBackend;
use plotters::series::LineSeries;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, RGBColor, TRANSPARENT, TextStyle};

const WIDTH: u32 = 760;
/// The height of a chart of lines, and of a small one.
const HEIGHT: u32 = 340;
const SMALL: u32 = 190;
const COLUMNS: usize = 2;

const INK: RGBColor = RGBColor(0x1f, 0x23, 0x28);
const GRID: RGBColor = RGBColor(0xd8, 0xde, 0xe4);
/// In the order of [`Tint`].
const TINTS: [RGBColor; 5] = [
    RGBColor(0x1b, 0x6e, 0xc2),
    RGBColor(0x8a, 0x94, 0x9e),
    RGBColor(0xc8, 0x59, 0x0e),
    RGBColor(0x1a, 0x7f, 0x5a),
    RGBColor(0x8e, 0x4e, 0xc6),
];
/// On a dark page: text, grid, and those of [`TINTS`].
const DARK: [&str; 7] = ["#e6edf3", "#3d444d", "#58a6ff", "#9198a1", "#f0883e", "#3fb98a", "#bc8cff"];

/// The colour of a bar or line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tint {
    Blue,
    Grey,
    Orange,
    Green,
    Violet,
}

impl Tint {
    fn colour(self) -> RGBColor {
        TINTS[self as usize]
    }
}

/// A bar, with a whisker from the least to the greatest, and two texts behind it: its value and its ratio.
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) value: f64,
    pub(crate) range: (f64, f64),
    pub(crate) texts: [String; 2],
    pub(crate) tint: Tint,
}

/// Bars below a title, with a scale of their own.
pub(crate) struct Group {
    pub(crate) title: String,
    pub(crate) bars: Vec<Bar>,
}

/// A line.
pub(crate) struct Line {
    pub(crate) label: String,
    pub(crate) tint: Tint,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Lines with one pair of axes.
pub(crate) struct Lines {
    pub(crate) title: String,
    pub(crate) across: Axis,
    pub(crate) up: Axis,
    pub(crate) lines: Vec<Line>,
}

/// An axis.
pub(crate) struct Axis {
    pub(crate) label: String,
    pub(crate) range: Range<f64>,
    pub(crate) scale: Scale,
}

/// What has the same length everywhere on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    Unit,
    Decade,
}

impl Axis {
    /// An axis on which equal differences have the same length.
    pub(crate) fn linear(label: &str, range: Range<f64>) -> Self {
        Self { label: label.to_owned(), range, scale: Scale::Unit }
    }

    /// The place of a value.
    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Unit => value,
            Scale::Decade => value.log10(),
        }
    }

    fn places(&self) -> Range<f64> {
        self.place(self.range.start)..self.place(self.range.end)
    }

    /// The label of a place.
    fn label_of(&self, place: f64) -> String {
        grouped(match self.scale {
            Scale::Unit => place,
            Scale::Decade => 10_f64.powf(place),
        })
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn = Result<(), Box<dyn Error>>;

/// Horizontal bars.
pub(crate) fn bars(groups: &[Group]) -> String {
    const TITLE: i32 = 34;
    const ROW: i32 = 24;
    /// Where bars begin and may end, and where the texts behind them end.
    const SPAN: (i32, i32) = (240, 600);
    const TEXTS: [i32; 2] = [660, 730];
    let height = groups.iter().map(|group| TITLE + ROW * group.bars.len() as i32).sum::<i32>();
    drawn(height as u32 + 6, |area| {
        let mut top = 0;
        for group in groups {
            area.draw(&Text::new(group.title.clone(), (8, top + TITLE / 2), bold().pos(beside(HPos::Left))))?;
            top += TITLE;
            let most = group.bars.iter().map(|bar| bar.range.1).fold(0.0, f64::max);
            let place = |value: f64| SPAN.0 + (f64::from(SPAN.1 - SPAN.0) * value / most).round() as i32;
            for bar in &group.bars {
                let middle = top + ROW / 2;
                let right = plain().pos(beside(HPos::Right));
                area.draw(&Text::new(bar.label.clone(), (SPAN.0 - 8, middle), right.clone()))?;
                let corners = [(SPAN.0, middle - 7), (place(bar.value), middle + 7)];
                area.draw(&Rectangle::new(corners, bar.tint.colour().filled()))?;
                let whisker = vec![(place(bar.range.0), middle), (place(bar.range.1), middle)];
                area.draw(&PathElement::new(whisker, INK.stroke_width(1)))?;
                for (text, right_end) in bar.texts.iter().zip(TEXTS) {
                    area.draw(&Text::new(text.clone(), (right_end, middle), right.clone()))?;
                }
                top += ROW;
            }
        }
        Ok(())
    })
}

/// A chart of lines, with their labels.
pub(crate) fn lines(lines: &Lines) -> String {
    drawn(HEIGHT, |area| {
        let mut chart = chart(area, lines)?;
        let mut labels = chart.configure_series_labels();
        labels.position(SeriesLabelPosition::UpperLeft).label_font(plain());
        labels.border_style(TRANSPARENT).background_style(TRANSPARENT).draw()?;
        Ok(())
    })
}

/// Small charts of lines, two in a row, below the labels of the first one's lines, which are those of all.
pub(crate) fn panels(panels: &[Lines]) -> String {
    const LABELS: u32 = 30;
    let rows = panels.len().div_ceil(COLUMNS);
    drawn(LABELS + SMALL * rows as u32, |area| {
        let (labels, area) = area.split_vertically(LABELS);
        let mut left = 66;
        for line in &panels[0].lines {
            let middle = LABELS as i32 / 2;
            let dash = vec![(left, middle), (left + 16, middle)];
            labels.draw(&PathElement::new(dash, line.tint.colour().stroke_width(2)))?;
            let text = plain().pos(beside(HPos::Left));
            labels.draw(&Text::new(line.label.clone(), (left + 22, middle), text))?;
            left += 200;
        }
        for (area, lines) in area.split_evenly((rows, COLUMNS)).iter().zip(panels) {
            chart(area, lines)?;
        }
        Ok(())
    })
}

fn chart<'a, 'b>(area: &'a Area<'b>, lines: &Lines) -> Result<Chart<'a, 'b>, Box<dyn Error>> {
    let Lines { title, across, up, lines } = lines;
    let mut builder = ChartBuilder::on(area);
    builder.margin(8).margin_right(40).x_label_area_size(38).y_label_area_size(58);
    let mut chart = builder.caption(title, bold()).build_cartesian_2d(across.places(), up.places())?;
    let (label_across, label_up) = (|at: &f64| across.label_of(*at), |at: &f64| up.label_of(*at));
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT).bold_line_style(GRID).axis_style(GRID);
    mesh.label_style(plain()).x_desc(&across.label).y_desc(&up.label).x_labels(6).y_labels(4);
    mesh.x_label_formatter(&label_across).y_label_formatter(&label_up).draw()?;
    for Line { label, tint, points } in lines {
        let style = tint.colour().stroke_width(2);
        let points = points.iter().map(|(x, y)| (across.place(*x), up.place(*y)));
        chart
            .draw_series(LineSeries::new(points, style))?
            .label(label)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
    }
    Ok(chart)
}

fn drawn(height: u32, draw: impl FnOnce(&Area<'_>) -> Drawn) -> String {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
    draw(&area).expect("a string takes all");
    area.present().expect("a string takes all");
    drop(area);
    in_both_schemes(&svg)
}

/// The same picture, whose colours follow the reader's scheme. All texts have one style, which is written once.
fn in_both_schemes(svg: &str) -> String {
    const TEXT: &str = "text{font:11px sans-serif;fill:#1f2328}[font-weight]{font:bold 12px sans-serif}";
    let light = [INK, GRID].into_iter().chain(TINTS);
    let dark =
        light.zip(DARK).fold("text{fill:#e6edf3}".to_owned(), |mut rules, (RGBColor(r, g, b), dark)| {
            for property in ["fill", "stroke"] {
                let _ = write!(rules, "[{property}=\"#{r:02X}{g:02X}{b:02X}\"]{{{property}:{dark}}}");
            }
            rules
        });
    let mut lines = svg.lines();
    let head = lines.next().expect("an SVG begins with its element");
    let mut all = format!("{head}\n<style>{TEXT}@media (prefers-color-scheme:dark){{{dark}}}</style>\n");
    // Of the grid only the lines, which are no polylines: marks beside labels would take a third of the file.
    let is_mark = |line: &&str| line.starts_with("<polyline") && line.contains("\"#D8DEE4\"");
    for line in lines.filter(|line| !is_mark(line)) {
        let line = match (line.split_once(" font-family="), line.split_once(" fill=\"#1F2328\"")) {
            (Some((before, _)), Some((_, after))) => format!("{before}{after}"),
            _ => line.replace(" opacity=\"1\"", ""),
        };
        all += &line;
        all += if line.starts_with("<text") || !line.starts_with('<') { "" } else { "\n" };
    }
    all
}

fn plain() -> TextStyle<'static> {
    ("sans-serif", 13).into_font().color(&INK)
}

fn bold() -> TextStyle<'static> {
    ("sans-serif", 14, plotters::style::FontStyle::Bold).into_font().color(&INK)
}

fn beside(place: HPos) -> Pos {
    Pos::new(place, VPos::Center)
}

/// A number, its thousands apart, with the decimals that it needs.
pub(crate) fn grouped(value: f64) -> String {
    let rounded = (value * 100.0).round() / 100.0;
    let text = rounded.to_string();
    let (whole, decimals) =
        text.split_once('.').map_or((&text[..], ""), |(whole, _)| (whole, &text[whole.len()..]));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut apart = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            apart.push(',');
        }
        apart.push(digit);
    }
    format!("{sign}{apart}{decimals}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_thousands_apart_and_two_decimals_at_most() {
        let texts = [0.0, 0.256, 12.0, 1234.5, 1e7, -2000.0].map(grouped);
        assert_eq!(texts, ["0", "0.26", "12", "1,234.5", "10,000,000", "-2,000"]);
    }

    #[test]
    fn a_chart_has_its_texts_and_each_of_its_colours_for_a_dark_page() {
        let bar = |label: &str, tint| Bar {
            label: label.to_owned(),
            value: 2.0,
            range: (1.0, 3.0),
            texts: ["2 ns", "1.00 ×"].map(str::to_owned),
            tint,
        };
        let tints = [Tint::Blue, Tint::Grey, Tint::Orange, Tint::Green, Tint::Violet];
        let group = Group { title: "A & B".to_owned(), bars: tints.map(|tint| bar("one", tint)).into() };
        let line = |tint| Line { label: "a line".to_owned(), tint, points: vec![(1.0, 1.0), (1e3, 2.0)] };
        let across = Axis { label: "x".to_owned(), range: 1.0..1e3, scale: Scale::Decade };
        let up = Axis::linear("y", 0.0..2.0);
        let chart = Lines { title: "Lines".to_owned(), across, up, lines: tints.map(line).into() };
        for (svg, text) in
            [(bars(&[group]), "A &amp; B"), (lines(&chart), "1,000"), (panels(&[chart]), "a line")]
        {
            assert!(svg.contains(text), "{svg}");
            let (style, drawn) = svg.split_once("</style>").expect("a style");
            for property in ["fill", "stroke"] {
                let attribute = format!(" {property}=\"#");
                for colour in drawn.split(&attribute).skip(1).map(|rest| &rest[..6]) {
                    assert!(style.contains(&format!("[{property}=\"#{colour}\"]")), "{colour}");
                }
            }
        }
    }
}
