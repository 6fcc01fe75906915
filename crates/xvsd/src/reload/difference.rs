//! The differences between the configuration in force and an xvs.toml that was read again.
//!
//! Pure. `config/keys.rs` in ctl determines how each key comes into force.

use std::collections::BTreeMap;

use serde_json::Value;
use xvs_model::config::load_feedback::PREFIX;
use xvs_model::report::setting::flattened;

use xvs_ctl::config::{Config, InForce};

/// A key with another value.
#[derive(Debug, PartialEq)]
pub(super) struct Difference {
    /// With its section.
    pub(super) key: String,
    old: Value,
    new: Value,
    pub(super) in_force: InForce,
}

impl Difference {
    /// The key, the value in force and the new one.
    pub(super) fn line(&self) -> String {
        format!("{}: {} -> {}", self.key, shown(&self.old), shown(&self.new))
    }

    /// The key as `xvs set` names it; `None` if it is not a setting.
    pub(super) fn setting(&self) -> Option<&str> {
        let is_feedback = self.key.starts_with(PREFIX);
        self.key.strip_prefix("ipvs.").or_else(|| is_feedback.then_some(self.key.as_str()))
    }
}

/// The keys that differ, in the order of their names.
pub(super) fn differences(old: &Config, new: &Config) -> Vec<Difference> {
    let mut new = values(new);
    values(old)
        .into_iter()
        .filter_map(|(key, old)| {
            let new = new.remove(&key).unwrap_or_default();
            // An unknown key would be a bug; a restart is always correct.
            let in_force = in_force(&key, &old, &new).unwrap_or(InForce::AtRestart);
            (old != new).then_some(Difference { key, old, new, in_force })
        })
        .collect()
}

/// How a key, which may be one of a section, changes between these values; `None`: there is no such key.
fn in_force(key: &str, old: &Value, new: &Value) -> Option<InForce> {
    match key {
        // The pins are made at the start.
        "hold" if old == "0s" || new == "0s" => Some(InForce::AtRestart),
        // Health checks begin at the start.
        "keepalived.file" if old.is_null() || new.is_null() => Some(InForce::BySuccessor),
        key => Config::in_force(key.split_once('.').map_or(key, |(section, _)| section)),
    }
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
            assert!(
                in_force(&key, &value, &value).is_some(),
                "{key}: a reload does not know how to change it"
            );
        }
        assert_eq!(in_force("no", &Value::Null, &Value::Null), None);
    }

    #[test]
    fn what_differs_is_listed_with_both_values_and_how_it_comes_into_force() {
        let old = config("workers = 1\n[ipvs]\nsloppy_tcp = 1\n");
        let new =
            config("interfaces = [\"wan\"]\nhold = \"2s\"\nstate_directory = \"\"\n[feedback]\nstep = 7\n");
        let found = differences(&old, &new);
        let lines: Vec<_> = found.iter().map(|one| (one.line(), one.in_force)).collect();
        let expected = [
            ("feedback.step: 5 -> 7", InForce::InPlace),
            ("hold: 10s -> 2s", InForce::InPlace),
            ("interfaces: [] -> [\"wan\"]", InForce::BySuccessor),
            ("ipvs.sloppy_tcp: 1 -> 0", InForce::InPlace),
            ("state_directory: /dev/shm/xvs -> \"\"", InForce::AtRestart),
            ("workers: 1 -> not set", InForce::BySuccessor),
        ];
        assert_eq!(lines, expected.map(|(line, in_force)| (line.to_owned(), in_force)));
        assert_eq!(
            found.iter().filter_map(Difference::setting).collect::<Vec<_>>(),
            ["feedback.step", "sloppy_tcp"]
        );
        assert_eq!(differences(&old, &old), []);
    }

    #[test]
    fn a_hold_that_begins_or_ends_needs_a_restart_and_health_checks_that_begin_or_end_a_successor() {
        let in_force = |old: &str, new: &str| differences(&config(old), &config(new))[0].in_force;
        let keepalived = |file: &str| format!("[keepalived]\nfile = \"{file}\"\n");
        assert_eq!(in_force("hold = \"0\"", ""), InForce::AtRestart);
        assert_eq!(in_force("", "hold = \"0\""), InForce::AtRestart);
        assert_eq!(in_force("", &keepalived("/a")), InForce::BySuccessor);
        assert_eq!(in_force(&keepalived("/a"), ""), InForce::BySuccessor);
        assert_eq!(in_force(&keepalived("/a"), &keepalived("/b")), InForce::InPlace);
    }
}
