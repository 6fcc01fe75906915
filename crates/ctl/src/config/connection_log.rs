//! The section `[connection_log]` of xvs.toml: the destinations and the content of the log of connections.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use xvs_dataplane::conn::log::LogSettings;

use crate::config::error::{ConfigError, wrong};

/// The section `[connection_log]`: a record of each connection for audits and accounting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConnectionLog {
    /// The file that gets a line of JSON for each record; a path from `/`. Default: none.
    pub file: Option<PathBuf>,
    /// The size in MiB at which another file begins, from 1 to 65536.
    pub file_mib: u64,
    /// The number of full files that are kept beside it, as `FILE.1` to `FILE.N`, from 0 to 1000.
    pub files_kept: u32,
    /// The IPFIX collector that gets each record by UDP, `ADDRESS:PORT`. Default: none.
    pub collector: Option<SocketAddr>,
    /// The time in minutes after which the collector gets the templates again, from 1 to 1440.
    pub template_minutes: u64,
    /// Whether the begin of a connection is logged, too, not only its end.
    pub begins: bool,
    /// One connection in this many is logged, from 1 to 1000000.
    pub one_in: u64,
}

impl Default for ConnectionLog {
    fn default() -> Self {
        Self {
            file: None,
            file_mib: 100,
            files_kept: 9,
            collector: None,
            template_minutes: 10,
            begins: false,
            one_in: 1,
        }
    }
}

/// The records that may wait: those of a second at 65,000 a second.
const QUEUE: usize = 65_536;

impl ConnectionLog {
    /// What the data plane logs; `None`: the log goes nowhere.
    pub fn settings(&self) -> Option<LogSettings> {
        let is_on = self.file.is_some() || self.collector.is_some();
        is_on.then_some(LogSettings { begins: self.begins, one_in: self.one_in, queue: QUEUE })
    }

    /// Checks paths and ranges.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.settings().is_none() && self != &Self::default() {
            let why = "nothing is logged without `file` or `collector`; name one, or remove the section";
            return wrong("connection_log.file", "", why);
        }
        for (key, value, range, why) in [
            ("connection_log.file_mib", self.file_mib, 1..=65_536, "from 1 to 65536 MiB"),
            ("connection_log.files_kept", self.files_kept.into(), 0..=1000, "from 0 to 1000 files"),
            ("connection_log.template_minutes", self.template_minutes, 1..=1440, "from 1 to 1440 minutes"),
            ("connection_log.one_in", self.one_in, 1..=1_000_000, "from 1 to 1000000"),
        ] {
            if !range.contains(&value) {
                return wrong(key, value, why);
            }
        }
        if let Some(file) =
            self.file.as_ref().filter(|file| !file.is_absolute() || file.file_name().is_none())
        {
            let why = "the path of a file from / is needed, such as /var/log/xvs/connections.json";
            return wrong("connection_log.file", file, why);
        }
        match self.collector {
            Some(collector) if collector.port() == 0 || collector.ip().is_unspecified() => {
                let why = "an address and a port are needed, such as 192.0.2.9:4739";
                wrong("connection_log.collector", collector, why)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_needs_a_place_and_values_within_their_ranges() {
        let error = |text: &str| {
            let log: ConnectionLog = toml::from_str(text).unwrap();
            log.check().err().map(|error| error.to_string()).unwrap_or_default()
        };
        let file = "file = \"/var/log/xvs/connections.json\"\n";
        assert_eq!([error(""), error(file), error("collector = \"[2001:db8::9]:4739\"")], ["", "", ""]);
        for (text, begin) in [
            ("begins = true", "connection_log.file = \"\": nothing is logged without"),
            ("file = \"connections.json\"", "connection_log.file = \"connections.json\": the path of a file"),
            ("file = \"/\"", "connection_log.file = \"/\": the path of a file"),
            ("collector = \"192.0.2.9:0\"", "connection_log.collector = 192.0.2.9:0: an address and"),
        ] {
            assert!(error(text).starts_with(begin), "{}", error(text));
        }
        for (key, value) in
            [("file_mib", "0"), ("files_kept", "1001"), ("template_minutes", "0"), ("one_in", "0")]
        {
            let begin = format!("connection_log.{key} = {value}: from ");
            let text = error(&format!("{file}{key} = {value}"));
            assert!(text.starts_with(&begin), "{text}");
        }
    }

    #[test]
    fn the_log_is_off_until_it_has_a_place() {
        assert_eq!(ConnectionLog::default().settings(), None);
        let log =
            ConnectionLog { collector: Some("192.0.2.9:4739".parse().unwrap()), ..ConnectionLog::default() };
        assert_eq!(log.settings(), Some(LogSettings { begins: false, one_in: 1, queue: QUEUE }));
    }
}
