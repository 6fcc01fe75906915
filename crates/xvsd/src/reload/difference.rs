//! What differs between the configuration in force and an xvs.toml that was read again, and how each key changes.
//!
//! Pure. Not here: carrying it out (`mod.rs`).

use std::collections::BTreeMap;

use serde_json::Value;
use xvs_model::config::load_feedback::PREFIX;
use xvs_model::report::setting::flattened;

use xvs_ctl::config::Config;

/// How a running director takes a new value over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The process changes it.
    InPlace,
    /// A successor begins with it, and takes over.
    Successor,
    /// Only a start begins with it.
    Restart,
    /// Its file is loaded by `xvs apply`, or at the next start.
    Rules,
}

/// A key with another value.
#[derive(Debug, PartialEq)]
pub(super) struct Difference {
    /// With its section.
    pub(super) key: String,
    old: Value,
    new: Value,
    pub(super) way: Way,
}

impl Difference {
    /// The key, the value in force and the new one.
    pub(super) fn line(&self) -> String {
        format!("{}: {} -> {}", self.key, shown(&self.old), shown(&self.new))
    }

    /// The key as `xvs set` names it; `None`: it is none of its settings.
    pub(super) fn setting(&self) -> Option<&str> {
        let is_feedback = self.key.starts_with(PREFIX);
        self.key.strip_prefix("ipvs.").or_else(|| is_feedback.then_some(self.key.as_str()))
    }
}

/// The keys that differ, in the order of their names.
pub(super) fn differences(old: &Config, new: &Config) -> Vec<Difference> {
    let (old, mut new) = (values(old), values(new));
    let differing = old.into_iter().filter_map(|(key, old)| {
        let new = new.remove(&key).unwrap_or_default();
        // An unknown key would be a bug; a restart is always right.
        let way = way(&key, &old, &new).unwrap_or(Way::Restart);
        (old != new).then_some(Difference { key, old, new, way })
    });
    differing.collect()
}

/// How a key changes between these values; `None`: there is no such key.
fn way(key: &str, old: &Value, new: &Value) -> Option<Way> {
    let either = |value: &Value| old == value || new == value;
    let way = match key {
        "interfaces" | "workers" | "receive_ring" | "transmit_ring" | "sip_calls" | "conn_table_memory"
        | "sync_key_file" | "user" | "offload" | "offload_after" | "offload_excluded" | "limits.clients"
        | "limits.ipv4_prefix" | "limits.ipv6_prefix" => Way::Successor,
        key if key.starts_with("fleet.") => Way::Successor,
        "conn_table_size" | "socket" | "state_directory" => Way::Restart,
        "rules" => Way::Rules,
        // The pins are made at the start.
        "hold" if either(&Value::from("0s")) => Way::Restart,
        // Health checks begin at the start.
        "keepalived.file" if either(&Value::Null) => Way::Successor,
        "metrics_address"
        | "metrics_destinations"
        | "metrics_certificate"
        | "metrics_private_key"
        | "metrics_token_file"
        | "status_page"
        | "status_page_names"
        | "deny_file"
        | "allow_file"
        | "log"
        | "log_format"
        | "socket_mode"
        | "hold" => Way::InPlace,
        "keepalived.file" | "keepalived.config_id" | "keepalived.repair" => Way::InPlace,
        key if key.starts_with("ipvs.") || key.starts_with(PREFIX) => Way::InPlace,
        _ => return None,
    };
    Some(way)
}

fn values(config: &Config) -> BTreeMap<String, Value> {
    // No value of a configuration is refused.
    flattened("", serde_json::to_value(config).unwrap_or_default()).into_iter().collect()
}

/// A value as text.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "not set".to_owned(),
        Value::String(text) if !text.is_empty() => text.clone(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn each_key_of_xvs_toml_has_a_way_to_change() {
        let all = values(&Config::default());
        assert!(all.len() > 40, "{all:?}");
        for (key, value) in all {
            assert!(way(&key, &value, &value).is_some(), "{key}: a reload does not know how to change it");
        }
        assert_eq!(way("no", &Value::Null, &Value::Null), None);
    }

    #[test]
    fn what_differs_is_listed_with_both_values_and_its_way() {
        let old = config("workers = 1\n[ipvs]\nsloppy_tcp = 1\n");
        let new =
            config("interfaces = [\"wan\"]\nhold = \"2s\"\nstate_directory = \"\"\n[feedback]\nstep = 7\n");
        let found = differences(&old, &new);
        let lines: Vec<_> = found.iter().map(|one| (one.line(), one.way)).collect();
        let expected = [
            ("feedback.step: 5 -> 7", Way::InPlace),
            ("hold: 10s -> 2s", Way::InPlace),
            ("interfaces: [] -> [\"wan\"]", Way::Successor),
            ("ipvs.sloppy_tcp: 1 -> 0", Way::InPlace),
            ("state_directory: /dev/shm/xvs -> \"\"", Way::Restart),
            ("workers: 1 -> not set", Way::Successor),
        ];
        assert_eq!(lines, expected.map(|(line, way)| (line.to_owned(), way)));
        assert_eq!(
            found.iter().filter_map(Difference::setting).collect::<Vec<_>>(),
            ["feedback.step", "sloppy_tcp"]
        );
        assert_eq!(differences(&old, &old), []);
    }

    #[test]
    fn a_hold_that_begins_or_ends_needs_a_restart_and_health_checks_that_begin_or_end_a_successor() {
        let way = |old: &str, new: &str| differences(&config(old), &config(new))[0].way;
        let keepalived = |file: &str| format!("[keepalived]\nfile = \"{file}\"\n");
        assert_eq!(way("hold = \"0\"", ""), Way::Restart);
        assert_eq!(way("", "hold = \"0\""), Way::Restart);
        assert_eq!(way("", &keepalived("/a")), Way::Successor);
        assert_eq!(way(&keepalived("/a"), ""), Way::Successor);
        assert_eq!(way(&keepalived("/a"), &keepalived("/b")), Way::InPlace);
    }
}
