//! What is followed of the kernel's IPVS, the changes that are therefore refused, and the warnings.

use std::collections::BTreeMap;
use std::sync::Arc;

use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::refusal::CommandError;
use xvs_model::objects::{Object, Rule};
use xvs_model::report::status::KernelStatus;
use xvs_model::report::warning::{Warning, WarningKind};
use xvs_sched::ServiceKey;

use crate::kernel_rules::KernelRules;

/// What is followed.
#[derive(Default)]
pub(super) struct FollowedKernel {
    /// The rules of the last call; `None`: the kernel is not followed.
    pub(super) rules: Option<Arc<KernelRules>>,
    /// The services that are left to the kernel, each with the reason.
    pub(super) left: BTreeMap<ServiceKey, String>,
    /// Why settings are not in force, by their names.
    pub(super) refused_settings: BTreeMap<String, String>,
    /// Why the rules could not be read the last time.
    pub(super) unread: Option<String>,
}

impl FollowedKernel {
    /// Refuses a change of what the kernel's IPVS decides.
    pub(super) fn admit(&self, state: &State, command: &Command) -> Result<(), CommandError> {
        let is_followed = match command {
            _ if self.rules.is_none() => false,
            Command::Flush | Command::EditDestination { .. } => true,
            // The options that only xvs has are no rules of the kernel.
            Command::EditService { key, options } => {
                state.service(key).is_none_or(|service| service.options.of_ipvsadm() != options.of_ipvsadm())
            }
            Command::Add(rule) => {
                matches!(rule, Rule::Service { .. } | Rule::Destination { .. } | Rule::Timeouts(_))
            }
            Command::Delete(object) => matches!(object, Object::Service(_) | Object::Destination { .. }),
            Command::Zero(_) => false,
        };
        if is_followed { Err(refusal("services, real servers and timeouts", "ipvsadm")) } else { Ok(()) }
    }

    /// Refuses a change of a setting that the kernel's IPVS has.
    pub(super) fn admit_setting(&self, key: &str) -> Result<(), CommandError> {
        match &self.rules {
            Some(rules) if rules.settings.contains_key(key) => {
                Err(refusal(key, &format!("sysctl net.ipv4.vs.{key}=VALUE")))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn status(&self) -> Option<KernelStatus> {
        let rules = self.rules.as_ref()?;
        let all = rules.services.len() + rules.left.len();
        let left = self.left.len();
        Some(KernelStatus { services: (all - left) as u64, services_left: left as u64 })
    }

    /// The warnings about rules that are not read or not followed.
    pub(super) fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        if let Some(why) = &self.unread {
            let text = format!(
                "the rules of the kernel's IPVS cannot be read, so the last ones stay in force: {why}"
            );
            warnings.push(Warning::new(WarningKind::KernelRulesUnread, "", text));
        }
        for (key, why) in self.left.iter().take(NAMED) {
            let text = format!("service {key} is left to the kernel's IPVS: {why}");
            warnings.push(Warning::new(WarningKind::KernelNotFollowed, key, text));
        }
        if let more @ 1.. = self.left.len().saturating_sub(NAMED) {
            let text = format!("{more} more services are left to the kernel's IPVS; see the log");
            warnings.push(Warning::new(WarningKind::KernelNotFollowed, "", text));
        }
        for (key, why) in &self.refused_settings {
            let text = format!("net.ipv4.vs.{key} of the kernel is not followed: {why}");
            warnings.push(Warning::new(WarningKind::KernelNotFollowed, key, text));
        }
        warnings
    }
}

fn refusal(what: &str, how: &str) -> CommandError {
    CommandError::failed(format_args!(
        "{what}: xvs follows the kernel's IPVS ([kernel] rules = \"follow\" in xvs.toml); change them there: `{how}`"
    ))
}

/// The number of services that are left with a warning each.
const NAMED: usize = 8;
