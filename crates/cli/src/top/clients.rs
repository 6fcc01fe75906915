//! `xvs top --clients`: the clients that limits refuse most often, with the refusals since the last sample.
//!
//! Drawn like the screen of services.

use std::collections::HashMap;

use ratatui::Frame;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::style::Modifier;
use ratatui::text::Line;
use ratatui::widgets::Paragraph;
use xvs_model::objects::limit::LimitReport;
use xvs_model::protocol::client::{Client, Failure};
use xvs_model::protocol::question;
use xvs_proto::Prefix;
use xvs_sched::ServiceKey;

use crate::top::terminal::{After, View};
use crate::top::view::cut;

/// Maximum number of clients in a sample.
const CLIENTS: u32 = 1000;

/// The state of the screen.
pub(super) struct Clients {
    before: HashMap<(ServiceKey, Prefix), u64>,
    now: LimitReport,
    /// Why there is no newer sample.
    trouble: Option<String>,
    filter: String,
    /// The first row that is shown.
    first: usize,
}

pub(super) fn sample(client: &mut Client) -> Result<LimitReport, Failure> {
    question::limits(CLIENTS).ask(client)
}

impl Clients {
    pub(super) fn new(now: LimitReport, filter: &str) -> Self {
        Self { before: refused(&now).collect(), now, trouble: None, filter: filter.to_lowercase(), first: 0 }
    }

    /// The title and a line for each client.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines =
            vec![line(["Client", "Connections", "Refused", "Newly", "Service"].map(str::to_owned))];
        for row in &self.now.clients {
            let before = self.before.get(&(row.service, row.client)).copied().unwrap_or(0);
            let line = line([
                row.client.to_string(),
                row.connections.to_string(),
                row.refused.to_string(),
                // A client that was forgotten and is known again begins at 0.
                row.refused.checked_sub(before).unwrap_or(row.refused).to_string(),
                row.service.to_string(),
            ]);
            if line.to_lowercase().contains(&self.filter) {
                lines.push(line);
            }
        }
        lines
    }
}

fn line([client, connections, refused, newly, service]: [String; 5]) -> String {
    format!("{client:<24} {connections:>11} {refused:>9} {newly:>8}  {service}")
}

impl View for Clients {
    type Sample = LimitReport;

    fn take(&mut self, sample: Result<LimitReport, Failure>) {
        match sample {
            Ok(sample) => {
                self.before = refused(&self.now).collect();
                self.now = sample;
                self.trouble = None;
            }
            Err(trouble) => self.trouble = Some(trouble.to_string()),
        }
    }

    fn handle(&mut self, event: &Event) -> After {
        let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) = event else {
            return After::GoOn;
        };
        match code {
            KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => return After::Quit,
            KeyCode::Char('q') | KeyCode::Esc => return After::Quit,
            KeyCode::Up => self.first = self.first.saturating_sub(1),
            KeyCode::Down => self.first += 1,
            KeyCode::Home => self.first = 0,
            _ => {}
        }
        After::GoOn
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let width = usize::from(area.width);
        let height = usize::from(area.height);
        let summary = match &self.trouble {
            Some(trouble) => trouble.clone(),
            None => format!(
                "{} services with limits, {} connections without one because the table of clients was full",
                self.now.limits.len(),
                self.now.unlimited
            ),
        };
        let rows = self.lines();
        self.first = self.first.min(rows.len().saturating_sub(height.saturating_sub(2)));
        let mut lines = vec![Line::styled(cut(&summary, width), Modifier::BOLD)];
        lines.extend(rows.first().map(|title| Line::styled(cut(title, width), Modifier::REVERSED)));
        lines.extend(rows.iter().skip(1 + self.first).map(|row| Line::from(cut(row, width))));
        lines.truncate(height);
        frame.render_widget(Paragraph::new(lines), area);
    }
}

fn refused(report: &LimitReport) -> impl Iterator<Item = ((ServiceKey, Prefix), u64)> {
    report.clients.iter().map(|row| ((row.service, row.client), row.refused))
}

#[cfg(test)]
mod tests {
    use xvs_model::objects::limit::ClientRow;

    use crate::top::clients::*;

    #[test]
    fn each_client_is_shown_with_what_was_refused_since_the_last_sample() {
        let client = |text: &str, refused| ClientRow {
            client: text.parse().unwrap(),
            service: "TCP 198.51.100.1:80".parse().unwrap(),
            connections: 7,
            refused,
        };
        let report = |clients| LimitReport { limits: Vec::new(), clients, unlimited: 0 };
        let mut screen = Clients::new(report(vec![client("192.0.2.1/32", 100)]), "");
        screen.take(Ok(report(vec![client("192.0.2.1/32", 130), client("2001:db8::/64", 20)])));
        let expected = [
            "Client                   Connections   Refused    Newly  Service",
            "192.0.2.1/32                       7       130       30  TCP 198.51.100.1:80",
            "2001:db8::/64                      7        20       20  TCP 198.51.100.1:80",
        ];
        assert_eq!(screen.lines(), expected);
        screen.filter = "2001".to_owned();
        assert_eq!(screen.lines(), [expected[0], expected[2]]);
    }
}
