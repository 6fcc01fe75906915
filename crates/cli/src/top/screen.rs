//! The screen of `xvs top`: the visible section of the view, and the keys that change it.
//!
//! Drawn ten times a second; ratatui writes the changed cells. Rows are recomputed only for new totals or after a key
//! that changes them.

use ratatui::Frame;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::style::Modifier;
use ratatui::text::Line;
use ratatui::widgets::Paragraph;
use xvs_model::protocol::client::Failure;
use xvs_model::report::traffic::Traffic;

use crate::top::KEYS;
use crate::top::minute::{Charset, Minute};
use crate::top::terminal::{After, View};
use crate::top::view::{Columns, Level, Rows, SORT_KEYS, Sort, cut, header};

/// The state of the screen.
pub(super) struct Screen {
    before: Option<Traffic>,
    now: Traffic,
    minute: Minute,
    /// Why there are no newer totals.
    trouble: Option<String>,
    sort: Sort,
    filter: String,
    typing: Typing,
    rows: Rows,
    /// The first row that is shown.
    first: usize,
    /// Number of rows on the last drawn screen.
    height: usize,
}

/// The use of typed letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Typing {
    Commands,
    Filter,
    /// Any key closes the help.
    Help,
}

impl Screen {
    /// A screen of the first totals, without rates.
    pub(super) fn new(now: Traffic, sort: Sort, filter: String, charset: Charset) -> Self {
        let rows = Rows::new(None, &now, sort, &filter);
        Self {
            before: None,
            now,
            minute: Minute::new(charset),
            trouble: None,
            sort,
            filter,
            typing: Typing::Commands,
            rows,
            first: 0,
            height: 1,
        }
    }

    fn renew(&mut self) {
        self.rows = Rows::new(self.before.as_ref(), &self.now, self.sort, &self.filter);
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Char(char) => self.filter.push(char),
            KeyCode::Backspace => _ = self.filter.pop(),
            KeyCode::Enter => self.typing = Typing::Commands,
            KeyCode::Esc => {
                self.filter.clear();
                self.typing = Typing::Commands;
            }
            _ => return,
        }
        self.first = 0;
        self.renew();
    }

    fn command(&mut self, code: KeyCode) -> After {
        let page = self.height.max(1);
        match code {
            KeyCode::Char('q') | KeyCode::Esc => return After::Quit,
            KeyCode::Char('/') => self.typing = Typing::Filter,
            KeyCode::Char('?') => self.typing = Typing::Help,
            KeyCode::Char(char) => {
                if let Some((_, sort)) = SORT_KEYS.iter().find(|(key, _)| *key == char) {
                    self.sort = *sort;
                    self.first = 0;
                    self.renew();
                }
            }
            KeyCode::Up => self.first = self.first.saturating_sub(1),
            KeyCode::Down => self.first += 1,
            KeyCode::PageUp => self.first = self.first.saturating_sub(page),
            KeyCode::PageDown => self.first += page,
            KeyCode::Home => self.first = 0,
            KeyCode::End => self.first = usize::MAX,
            _ => {}
        }
        After::GoOn
    }

    fn foot(&self) -> String {
        match self.typing {
            Typing::Commands => {}
            Typing::Filter => return format!("filter: {}_   Enter keeps it, Esc clears it", self.filter),
            Typing::Help => return "any key closes the help".to_owned(),
        }
        let filter =
            if self.filter.is_empty() { "/ filter".to_owned() } else { format!("/ filter: {}", self.filter) };
        let all = self.rows.rows.len();
        let last = (self.first + self.height).min(all);
        format!("{}-{last} of {all}   ? help   sort: cpbairn   {filter}   q quit", (self.first + 1).min(all))
    }
}

impl View for Screen {
    type Sample = Traffic;

    fn take(&mut self, sample: Result<Traffic, Failure>) {
        match sample {
            Ok(sample) => {
                let before = std::mem::replace(&mut self.now, sample);
                let had_answered = self.trouble.take().is_none();
                self.before = Some(before);
                self.renew();
                // Only the sum is known for a time without replies.
                if let Some(before) = self.before.as_ref().filter(|_| had_answered) {
                    let rates = &self.rows.total.rates;
                    self.minute.add(before, &self.now, [rates.connections, rates.in_packets]);
                }
            }
            Err(trouble) => self.trouble = Some(trouble.to_string()),
        }
    }

    fn handle(&mut self, event: &Event) -> After {
        let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) = event else {
            return After::GoOn;
        };
        if modifiers.contains(KeyModifiers::CONTROL) {
            return if *code == KeyCode::Char('c') { After::Quit } else { After::GoOn };
        }
        match self.typing {
            Typing::Filter => {
                self.type_filter(*code);
                After::GoOn
            }
            Typing::Commands => self.command(*code),
            Typing::Help => {
                self.typing = Typing::Commands;
                After::GoOn
            }
        }
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let width = usize::from(area.width);
        let height = usize::from(area.height);
        let mut lines: Vec<Line<'_>> =
            header(self.before.as_ref(), &self.now, width).into_iter().map(Line::from).collect();
        if let Some(trouble) = &self.trouble {
            lines[0] = Line::styled(cut(trouble, width), Modifier::BOLD);
        }
        lines.push(Line::from(self.minute.line(width)));
        let columns = Columns::within(width, &self.rows, self.sort);
        lines.push(Line::styled(columns.titles(), Modifier::REVERSED));
        lines.push(Line::from(self.rows.total.line(&columns)));
        // One line is for the foot.
        self.height = height.saturating_sub(lines.len() + 1);
        self.first = self.first.min(self.rows.rows.len().saturating_sub(self.height));
        for row in self.rows.rows.iter().skip(self.first).take(self.height) {
            let style = if row.level == Level::Service { Modifier::BOLD } else { Modifier::empty() };
            lines.push(Line::styled(row.line(&columns), style));
        }
        if self.typing == Typing::Help {
            lines = KEYS.lines().map(|line| Line::from(cut(line, width))).collect();
        }
        lines.resize(height.saturating_sub(1), Line::default());
        lines.push(Line::styled(cut(&self.foot(), width), Modifier::DIM));
        frame.render_widget(Paragraph::new(lines), area);
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use crate::top::screen::*;
    use xvs_model::report::listing::Stats;
    use xvs_model::report::status::StatusReport;
    use xvs_model::report::traffic::ServiceTraffic;
    use xvs_model::sample;

    /// Services of ports from 1 on, whose later ones have more connections.
    fn sample(at_millis: u64, services: u16) -> Traffic {
        let service = |port| ServiceTraffic {
            key: format!("TCP 198.51.100.1:{port}").parse().unwrap(),
            stats: Stats { connections: u64::from(port) * at_millis / 1000, ..Stats::default() },
            down: 0,
            destinations: Vec::new(),
        };
        let status = StatusReport { warnings: Vec::new(), ..sample::status() };
        Traffic { at_millis, status, services: (1..=services).map(service).collect() }
    }

    /// The lines drawn on a terminal with this size.
    fn drawn(screen: &mut Screen, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(row).collect()
    }

    fn press(screen: &mut Screen, keys: &str) -> After {
        let keys = keys.chars().map(|char| match char {
            '\n' => KeyCode::Enter,
            '\u{1b}' => KeyCode::Esc,
            char => KeyCode::Char(char),
        });
        keys.map(|key| screen.handle(&Event::Key(key.into()))).last().unwrap_or(After::GoOn)
    }

    fn screen() -> Screen {
        let mut screen = Screen::new(sample(1000, 40), Sort::Connections, String::new(), Charset::Utf8);
        screen.take(Ok(sample(2000, 40)));
        screen
    }

    #[test]
    fn the_screen_fills_the_terminal_and_names_the_rows_it_shows() {
        let mut screen = screen();
        let lines = drawn(&mut screen, 80, 24);
        // Forty services with as many new connections in the second as their ports say: 820.
        assert!(
            lines[3].starts_with("minute   CPS          █ ≤820  InPPS          ▁ ≤0  drops "),
            "{lines:#?}"
        );
        assert!(
            lines[6].starts_with("TCP 198.51.100.1:40 ") && lines[22].starts_with("TCP 198.51.100.1:24 ")
        );
        assert!(lines[23].starts_with("1-17 of 40   ? help   sort: "), "{lines:#?}");
        for (code, first) in
            [(KeyCode::PageDown, 23), (KeyCode::End, 17), (KeyCode::Up, 18), (KeyCode::Home, 40)]
        {
            screen.handle(&Event::Key(code.into()));
            assert!(
                drawn(&mut screen, 80, 24)[6].starts_with(&format!("TCP 198.51.100.1:{first} ")),
                "{code:?}"
            );
        }
        assert_eq!(drawn(&mut screen, 120, 50)[45].split_whitespace().nth(1), Some("198.51.100.1:1"));
        for (width, height) in [(80, 1), (1, 24), (9, 3), (2, 2)] {
            drawn(&mut screen, width, height);
        }
    }

    #[test]
    fn keys_sort_filter_and_quit_and_letters_typed_in_a_filter_belong_to_it() {
        let mut screen = screen();
        assert_eq!(press(&mut screen, "n"), After::GoOn);
        assert!(drawn(&mut screen, 80, 24)[6].starts_with("TCP 198.51.100.1:1 "));
        assert_eq!(press(&mut screen, "/:4"), After::GoOn);
        let lines = drawn(&mut screen, 80, 24);
        assert!(lines[23].starts_with("filter: :4_"), "{lines:#?}");
        assert!(lines[6].starts_with("TCP 198.51.100.1:4 ") && lines[8].trim().is_empty(), "{lines:#?}");
        assert_eq!(press(&mut screen, "q"), After::GoOn);
        assert!(drawn(&mut screen, 80, 24)[6].trim().is_empty(), "no row has «:4q»");
        assert_eq!(press(&mut screen, "\u{1b}"), After::GoOn);
        assert!(drawn(&mut screen, 80, 24)[23].starts_with("1-17 of 40 "));
        press(&mut screen, "/:40\nc");
        assert!(drawn(&mut screen, 80, 24)[23].contains("/ filter: :40 "));
        assert_eq!(press(&mut screen, "q"), After::Quit);
        assert_eq!(press(&mut screen, "\u{1b}"), After::Quit);
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(screen.handle(&Event::Key(control_c)), After::Quit);
    }

    #[test]
    fn sixty_columns_show_a_long_service_whole_beside_its_rate() {
        let key = "TCP [2001:db8:1:0:1111:2222:3333:4444]:8080";
        let sample = |at_millis| {
            let mut sample = sample(at_millis, 1);
            sample.services[0].key = key.parse().unwrap();
            sample
        };
        let mut screen = Screen::new(sample(1000), Sort::Connections, String::new(), Charset::Utf8);
        screen.take(Ok(sample(2000)));
        let lines = drawn(&mut screen, 60, 24);
        assert!(lines[4].ends_with("   >CPS Active"), "{lines:#?}");
        assert!(lines[6].starts_with(key) && lines[6].ends_with("    1.0      0"), "{lines:#?}");
    }

    #[test]
    fn a_question_mark_lists_the_keys_and_any_key_returns_to_the_rows() {
        let mut screen = screen();
        let before = drawn(&mut screen, 60, 24);
        assert!(
            before[23].starts_with("1-17 of 40   ? help   sort: cpbairn   / filter   q quit"),
            "{before:#?}"
        );
        for key in ["q", "n", "?", "\u{1b}", "\n"] {
            assert_eq!(press(&mut screen, "?"), After::GoOn);
            let lines = drawn(&mut screen, 60, 24);
            for (line, shown) in KEYS.lines().zip(&lines) {
                assert_eq!(shown.trim_end(), line);
            }
            assert!(lines[23].starts_with("any key closes the help"), "{lines:#?}");
            assert_eq!(press(&mut screen, key), After::GoOn);
            assert_eq!(drawn(&mut screen, 60, 24), before, "{key}");
        }
        press(&mut screen, "?");
        drawn(&mut screen, 20, 3);
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(screen.handle(&Event::Key(control_c)), After::Quit);
        // In a filter it is a character.
        screen.typing = Typing::Commands;
        press(&mut screen, "/?");
        assert!(drawn(&mut screen, 60, 24)[23].starts_with("filter: ?_"));
    }

    #[test]
    fn the_first_line_shows_the_error_until_the_daemon_answers() {
        let mut screen = screen();
        screen.take(Err(Failure::Transport("no xvsd listens".to_owned())));
        assert!(drawn(&mut screen, 80, 24)[0].starts_with("no xvsd listens"));
        screen.take(Ok(sample(100, 1)));
        screen.take(Ok(sample(7000, 1)));
        screen.take(Err(Failure::Transport("no xvsd listens".to_owned())));
        screen.take(Ok(sample(19_000, 1)));
        screen.take(Ok(sample(20_000, 1)));
        let lines = drawn(&mut screen, 80, 24);
        // 820 in the first second; then one a second, with a time without answers.
        assert!(lines[3].starts_with("minute   CPS       █▁ ▁ ≤120 "), "{lines:#?}");
        assert!(lines[0].starts_with("ok   ") && lines[23].starts_with("1-1 of 1 "), "{lines:#?}");
    }
}
