//! The section `[kernel]` of xvs.toml: what xvs has to do with the kernel's IPVS.

use serde::{Deserialize, Serialize};

/// The section `[kernel]`: the kernel's IPVS beside xvs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kernel {
    /// Whether the rules of the kernel's IPVS are in force: `"follow"`, as whatever writes them there changes them;
    /// `"off"`. Default: `"off"`.
    pub rules: KernelMode,
}

/// What the rules of the kernel's IPVS are for xvs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelMode {
    /// They are not read.
    #[default]
    Off,
    /// They are in force.
    Follow,
}
