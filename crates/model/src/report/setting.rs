//! Settings in force, each with its source, as `xvs get` and `xvs status --json` show them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A setting in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Setting {
    /// Its name: for `xvs set`, or in xvs.toml, with its section in front unless that is `ipvs`.
    pub key: String,
    /// Its value as in xvs.toml; null: it is not set, and has no default.
    pub value: Value,
    /// Where the value comes from.
    pub source: Source,
}

/// Where the value of a setting comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Source {
    /// Nothing sets it.
    #[default]
    #[serde(rename = "default")]
    Default,
    /// The file xvs.toml.
    #[serde(rename = "xvs.toml")]
    Toml,
    /// xvsd's command line.
    #[serde(rename = "command line")]
    CommandLine,
    /// A rules file, at the start, by `xvs apply` or by `xvsadm -R`.
    #[serde(rename = "rules file")]
    RulesFile,
    /// The keepalived.conf.
    #[serde(rename = "keepalived.conf")]
    KeepalivedConf,
    /// `xvs set`.
    #[serde(rename = "xvs set")]
    XvsSet,
    /// `xvsadm --set`.
    #[serde(rename = "xvsadm --set")]
    XvsadmSet,
}

/// The settings in a document, each with its key: names of objects below `prefix`, joined by dots.
pub fn flattened(prefix: &str, document: Value) -> Vec<(String, Value)> {
    match document {
        Value::Object(object) => {
            let below = |(key, value): (String, Value)| match prefix {
                "" => flattened(&key, value),
                prefix => flattened(&format!("{prefix}.{key}"), value),
            };
            object.into_iter().flat_map(below).collect()
        }
        value => vec![(prefix.to_owned(), value)],
    }
}
