//! Notes at services: what an operator wants to know of a service, such as whose it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xvs_sched::ServiceKey;

use crate::config::refusal::CommandError;
use crate::config::service::check_key;
use crate::config::service_option::{as_listed, named_service};
use crate::foreign_text::escape_control;
use crate::objects::noun::{Noun, Services};

/// A note at a service, whether or not the service exists now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ServiceNote {
    /// The service.
    #[serde(with = "as_listed")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::ServiceText"))]
    pub service: ServiceKey,
    /// The note, one line.
    pub text: String,
}

impl Noun for ServiceNote {
    type Key = ServiceKey;
    type All = BTreeMap<ServiceKey, String>;
    const IS_REPLACED: bool = false;

    fn key(&self) -> ServiceKey {
        self.service
    }

    fn check_add(&self, _: &Self::All, _: &dyn Services) -> Result<(), CommandError> {
        check_key(&self.service)?;
        let Self { service, text } = self;
        let why = if text.is_empty() {
            "is empty; `xvs note delete` ends one".to_owned()
        } else if text.len() > TEXT_MAX {
            format!("has {} bytes; it can have {TEXT_MAX}, so shorten it", text.len())
        } else if text.starts_with('-') {
            "begins with a hyphen, as an option does; begin it with a word".to_owned()
        } else if escape_control(text) != *text || text.split(' ').any(str::is_empty) {
            "is no single line of words with a blank between them; write it as one".to_owned()
        } else {
            return Ok(());
        };
        Err(CommandError::invalid(format!("the note at service {service} {why}")))
    }

    fn check_delete(service: &ServiceKey, all: &Self::All) -> Result<(), CommandError> {
        if all.contains_key(service) {
            return Ok(());
        }
        Err(CommandError::failed(format_args!(
            "service {service} has no note; `xvs note list` shows those that can be deleted"
        )))
    }

    fn add(&self, all: &mut Self::All) {
        all.insert(self.service, self.text.clone());
    }

    fn delete(service: &ServiceKey, all: &mut Self::All) {
        all.remove(service);
    }

    fn each(all: &Self::All) -> impl Iterator<Item = Self> {
        all.iter().map(|(service, text)| Self { service: *service, text: text.clone() })
    }

    fn added(&self) -> String {
        format!("note set {} {}", named_service(&self.service), self.text)
    }

    fn deleted(service: &ServiceKey) -> String {
        format!("note delete {}", named_service(service))
    }
}

/// The largest number of bytes of a note.
const TEXT_MAX: usize = 200;
