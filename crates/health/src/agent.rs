//! The replies of an agent (HAProxy's agent-check), and the share of its weight that a real server gets.
//!
//! A reply is a line of keywords in any order and case, separated by blanks and commas; the last of several keywords of
//! one kind counts. A kind of keyword that a reply omits keeps its earlier value. Pure. Source: HAProxy 2.6,
//! configuration manual, `agent-check`. `probes/agent.rs` handles the connection.

use serde::{Deserialize, Serialize};
use xvs_model::report::health::AgentMode;
use xvs_sched::Weight;

/// The meaning of one line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// `75%`.
    percent: Option<u32>,
    /// `ready`, `drain`, `maint`.
    mode: Option<AgentMode>,
    /// `up`; `down`, `fail`, `failed`, `stopped`.
    pub(crate) is_up: Option<bool>,
    /// The line in printable characters, shortened.
    pub(crate) text: String,
    /// The first unknown keyword.
    pub(crate) unknown: Option<String>,
}

impl Answer {
    /// Parses a line without its line ending. Text after `#` is a description.
    pub(crate) fn read(line: &[u8]) -> Self {
        let mut answer = Self { text: shown(line), ..Self::default() };
        let words = line.split(|byte| *byte == b'#').next().unwrap_or_default();
        for word in words.split(|byte| b" \t,".contains(byte)).filter(|word| !word.is_empty()) {
            match word.to_ascii_lowercase().as_slice() {
                b"up" => answer.is_up = Some(true),
                b"down" | b"fail" | b"failed" | b"stopped" => answer.is_up = Some(false),
                b"ready" => answer.mode = Some(AgentMode::Ready),
                b"drain" => answer.mode = Some(AgentMode::Drain),
                b"maint" => answer.mode = Some(AgentMode::Maint),
                other => match (number(other, b"", b"%"), number(other, b"maxconn:", b"")) {
                    (Some(percent), _) => answer.percent = Some(percent),
                    // xvs has no queue, and IPVS's threshold also counts connections that have ended.
                    (_, Some(_)) => {}
                    _ => answer.unknown = answer.unknown.or_else(|| Some(shown(word))),
                },
            }
        }
        answer
    }
}

/// The number between a prefix and a suffix.
fn number(word: &[u8], prefix: &[u8], suffix: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(word.strip_prefix(prefix)?.strip_suffix(suffix)?).ok()?;
    if digits.starts_with('+') { None } else { digits.parse().ok() }
}

/// The start of a text in printable characters.
pub(crate) fn shown(text: &[u8]) -> String {
    text[..text.len().min(SHOWN_BYTES)].trim_ascii().escape_ascii().to_string()
}

/// The maximum share that counts. An agent that demands more is at fault or hostile: without a limit one server could
/// take all connections. HAProxy limits the weight itself to 256.
const PERCENT_MAX: u32 = 256;

/// The number of bytes of a reply that are shown.
const SHOWN_BYTES: usize = 80;

/// The share of a real server's weight that an agent grants, according to all its replies until now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentWeight {
    /// The percentage in the agent's reply; [`Self::granted_percent`] is the granted one.
    pub(crate) percent: u32,
    /// In any mode but ready the weight is 0.
    pub(crate) mode: AgentMode,
}

/// The whole weight.
impl Default for AgentWeight {
    fn default() -> Self {
        Self { percent: 100, mode: AgentMode::Ready }
    }
}

impl AgentWeight {
    /// Applies an answer.
    pub(crate) fn apply(&mut self, answer: &Answer) {
        self.percent = answer.percent.unwrap_or(self.percent);
        self.mode = answer.mode.unwrap_or(self.mode);
    }

    /// The percentage that counts.
    pub(crate) fn granted_percent(self) -> u32 {
        self.percent.min(PERCENT_MAX)
    }

    /// The agent's demand, if it exceeds the maximum.
    pub(crate) fn excessive_percent(self) -> Option<u32> {
        (self.percent > PERCENT_MAX).then_some(self.percent)
    }

    /// This share of a weight, rounded. It is 0 only if the weight, the share or the mode demands it.
    pub(crate) fn of(self, weight: Weight) -> Weight {
        let percent = if self.mode == AgentMode::Ready { u64::from(self.granted_percent()) } else { 0 };
        let hundredfold = u64::from(weight.0) * percent;
        let share = ((hundredfold + 50) / 100).clamp(u64::from(hundredfold > 0), Weight::MAX.0.into());
        Weight(u32::try_from(share).unwrap_or(Weight::MAX.0))
    }
}

#[cfg(test)]
mod tests {
    use crate::agent::*;

    fn read(line: &str) -> Answer {
        Answer::read(line.as_bytes())
    }

    /// Percent, mode and state.
    fn meaning(line: &str) -> (Option<u32>, Option<AgentMode>, Option<bool>) {
        let Answer { percent, mode, is_up, unknown, .. } = read(line);
        assert_eq!(unknown, None, "{line}");
        (percent, mode, is_up)
    }

    #[test]
    fn the_words_of_an_agent_mean_what_haproxys_manual_says() {
        for (line, want) in [
            ("75%", (Some(75), None, None)),
            ("0%", (Some(0), None, None)),
            ("150%", (Some(150), None, None)),
            ("ready", (None, Some(AgentMode::Ready), None)),
            ("drain", (None, Some(AgentMode::Drain), None)),
            ("maint", (None, Some(AgentMode::Maint), None)),
            ("up", (None, None, Some(true))),
            ("down", (None, None, Some(false))),
            ("fail", (None, None, Some(false))),
            ("failed", (None, None, Some(false))),
            ("stopped #for the 75% of backups, drain", (None, None, Some(false))),
            ("down#disk full", (None, None, Some(false))),
            ("UP Ready\t50%,maxconn:30", (Some(50), Some(AgentMode::Ready), Some(true))),
            (" ,, up ready down 10% 20%", (Some(20), Some(AgentMode::Ready), Some(false))),
            ("maxconn:30", (None, None, None)),
            ("", (None, None, None)),
        ] {
            assert_eq!(meaning(line), want, "{line}");
        }
    }

    #[test]
    fn a_word_without_a_meaning_is_shown_and_the_others_count() {
        for (line, unknown) in [
            ("perhaps 75%", "perhaps"),
            ("75% 75", "75"),
            ("75% %", "%"),
            ("75% -1%", "-1%"),
            ("75% +1%", "+1%"),
            ("75% 1.5%", "1.5%"),
            ("75% 5000000000%", "5000000000%"),
            ("75% maxconn:", "maxconn:"),
            ("75% upp\x1b\u{e9}", "upp\\x1b\\xc3\\xa9"),
        ] {
            let answer = read(line);
            assert_eq!((answer.percent, answer.unknown.as_deref()), (Some(75), Some(unknown)), "{line}");
        }
        let long = Answer::read(&[b'x'; 1000]);
        assert_eq!((long.text.len(), long.unknown.map(|word| word.len())), (80, Some(80)));
    }

    #[test]
    fn what_an_answer_does_not_say_stays_and_only_ready_ends_a_drain() {
        let mut weight = AgentWeight::default();
        let mut shares = |lines: &[&str]| -> Vec<u32> {
            let share = |line: &&str| {
                weight.apply(&read(line));
                weight.of(Weight(100)).0
            };
            lines.iter().map(share).collect()
        };
        assert_eq!(shares(&["up", "75%", "down", "drain", "50%", "ready"]), [100, 75, 75, 0, 0, 50]);
        assert_eq!(shares(&["maint", "up", "ready", "perhaps"]), [0, 0, 50, 50]);
    }

    #[test]
    fn a_share_is_rounded_and_never_becomes_0_by_rounding_nor_too_large() {
        let share = |percent, weight| AgentWeight { percent, ..AgentWeight::default() }.of(Weight(weight)).0;
        assert_eq!([share(75, 1), share(1, 1), share(50, 3), share(0, 3), share(50, 0)], [1, 1, 2, 0, 0]);
        assert_eq!([share(200, 7), share(200, Weight::MAX.0)], [14, Weight::MAX.0]);
    }

    #[test]
    fn a_share_above_256_percent_counts_as_256_percent_and_is_known_until_the_agent_says_another() {
        let mut weight = AgentWeight::default();
        let mut seen = |line: &str| {
            weight.apply(&read(line));
            (weight.of(Weight(100)).0, weight.excessive_percent())
        };
        assert_eq!(seen("256%"), (256, None));
        assert_eq!(seen("4294967295%"), (256, Some(u32::MAX)));
        assert_eq!(seen("up"), (256, Some(u32::MAX)));
        assert_eq!(seen("100%"), (100, None));
    }
}
