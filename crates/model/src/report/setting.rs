//! Settings in force, each with its source, as `xvs get` and `xvs status --json` show them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A setting in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Setting {
    /// The name of the setting, as for `xvs set`; of others the key of xvs.toml, with its section in front, such as
    /// `limits.clients`.
    pub key: String,
    /// The value in force, as in xvs.toml; null: it is not set, and has no default.
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
    /// The configuration file.
    #[serde(rename = "xvs.toml")]
    Toml,
    /// The options of xvsd.
    #[serde(rename = "command line")]
    CommandLine,
    /// Rules, at the start, by `xvs apply` or by `xvsadm -R`.
    #[serde(rename = "rules file")]
    RulesFile,
    /// The file of health checks.
    #[serde(rename = "keepalived.conf")]
    KeepalivedConf,
    /// An operator, by this command.
    #[serde(rename = "xvs set")]
    XvsSet,
    /// An operator, by this command, which sets timeouts.
    #[serde(rename = "xvsadm --set")]
    XvsadmSet,
    /// The kernel's IPVS, which xvs follows.
    #[serde(rename = "kernel")]
    Kernel,
}

/// The settings in a document, each with its key: names of objects below `prefix`, joined by dots.
pub fn flattened(prefix: &str, document: Value) -> Vec<(String, Value)> {
    match document {
        Value::Object(object) => object
            .into_iter()
            .flat_map(|(key, value)| match prefix {
                "" => flattened(&key, value),
                prefix => flattened(&format!("{prefix}.{key}"), value),
            })
            .collect(),
        value => vec![(prefix.to_owned(), value)],
    }
}
