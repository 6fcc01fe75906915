//! The key `interfaces` of xvs.toml: names, or a section for each interface.

use std::fmt;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xvs_xdp::Wanted;

/// The interfaces of a director, each with its settings. A list of names keeps its order, and all have the defaults;
/// sections are in the order of their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interfaces(Vec<(String, Wanted)>);

impl Interfaces {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The interfaces with their settings.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Wanted)> {
        self.0.iter().map(|(name, settings)| (name.as_str(), *settings))
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(name, _)| name)
    }

    /// The interfaces with these names. Those that are in this value, too, have its settings.
    pub fn chosen(&self, names: Vec<String>) -> Self {
        let chosen = names.into_iter().map(|name| {
            let settings = self
                .iter()
                .find(|(other, _)| *other == name)
                .map(|(_, settings)| settings)
                .unwrap_or_default();
            (name, settings)
        });
        Self(chosen.collect())
    }
}

impl Serialize for Interfaces {
    /// As a list if all have the defaults.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.iter().all(|(_, settings)| settings == Wanted::default()) {
            return to.collect_seq(self.names());
        }
        let mut map = to.serialize_map(Some(self.0.len()))?;
        for (name, settings) in self.iter() {
            map.serialize_entry(name, &settings)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Interfaces {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(NamesOrSections)
    }
}

struct NamesOrSections;

impl<'de> Visitor<'de> for NamesOrSections {
    type Value = Interfaces;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of names such as [\"eth0\", \"eth1\"], or sections such as [interfaces.eth0]")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Interfaces, A::Error> {
        let mut all = Vec::new();
        while let Some(name) = list.next_element()? {
            all.push((name, Wanted::default()));
        }
        Ok(Interfaces(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut sections: A) -> Result<Interfaces, A::Error> {
        let mut all = Vec::new();
        while let Some(section) = sections.next_entry()? {
            all.push(section);
        }
        Ok(Interfaces(all))
    }
}

#[cfg(test)]
mod tests {
    use xvs_xdp::WantedMode;

    use super::*;
    use crate::config::Config;

    fn read(text: &str) -> Result<Interfaces, String> {
        toml::from_str::<Config>(text).map(|config| config.interfaces).map_err(|error| error.to_string())
    }

    fn with_mode(name: &str, mode: WantedMode) -> (String, Wanted) {
        (name.to_owned(), Wanted { mode, queues: None })
    }

    #[test]
    fn interfaces_are_a_list_of_names_or_a_section_each() {
        let listed = read("interfaces = [\"wan\", \"lan\"]").unwrap();
        assert_eq!(listed.names().collect::<Vec<_>>(), ["wan", "lan"]);
        let sections = read("[interfaces.wan]\nmode = \"copy\"\n[interfaces.lan]\n").unwrap();
        let mut expected = vec![with_mode("wan", WantedMode::Copy), with_mode("lan", WantedMode::Auto)];
        expected.sort_by(|one, other| one.0.cmp(&other.0));
        let mut all = sections.0.clone();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        assert_eq!(all, expected);
    }

    #[test]
    fn an_unknown_mode_or_key_is_refused_with_those_that_exist() {
        let error = read("[interfaces.wan]\nmode = \"fast\"\n").unwrap_err();
        for mode in ["auto", "zero-copy", "copy", "generic"] {
            assert!(error.contains(&format!("`{mode}`")), "{error}");
        }
        let error = read("[interfaces.wan]\nspeed = 1\n").unwrap_err();
        assert!(error.contains("unknown field `speed`, expected `mode` or `queues`"), "{error}");
        let error = read("interfaces = 1\n").unwrap_err();
        assert!(error.contains("[interfaces.eth0]"), "{error}");
    }

    #[test]
    fn printed_interfaces_are_read_as_the_same_ones() {
        for text in ["interfaces = [\"wan\", \"lan\"]", "[interfaces.wan]\nmode = \"generic\"\n"] {
            let all = read(text).unwrap();
            let json = serde_json::to_value(&all).unwrap();
            assert_eq!(serde_json::from_value::<Interfaces>(json).unwrap(), all);
        }
    }

    #[test]
    fn interfaces_of_the_command_line_keep_the_settings_of_the_file() {
        let file = read("[interfaces.wan]\nmode = \"generic\"\n").unwrap();
        let chosen = file.chosen(vec!["lan".to_owned(), "wan".to_owned()]);
        assert_eq!(chosen.0, [with_mode("lan", WantedMode::Auto), with_mode("wan", WantedMode::Generic)]);
    }
}
