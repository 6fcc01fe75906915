//! The file of an access list: as a rule, and as text.
//!
//! `control/list_sources.rs` of `ctl` reads the file.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use xvs_proto::{Family, Prefix};

use crate::config::refusal::CommandError;
use crate::config::service_option::named;
use crate::objects::list_key::{ListKey, ListKind};
use crate::objects::listed::{AccessLists, read_prefix};
use crate::objects::noun::{Noun, Services};

/// The file of an access list of a service. It is read when the command is carried out, and at each reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListFile {
    /// The list.
    pub list: ListKey,
    /// The file.
    pub path: PathBuf,
}

impl Noun for ListFile {
    type Key = ListKey;
    type All = AccessLists;
    const IS_REPLACED: bool = false;

    fn key(&self) -> ListKey {
        self.list
    }

    fn check_add(&self, all: &AccessLists, _: &dyn Services) -> Result<(), CommandError> {
        let Self { list, path } = self;
        if list.service.is_none() {
            let key = list.kind.name();
            let why = format!("the file of the {list} is the key `{key}_file` of xvs.toml");
            return Err(CommandError::invalid(why));
        }
        if !path.is_absolute() || path.to_str().is_none_or(|path| path.contains(char::is_whitespace)) {
            let why = format!("{path:?}: xvsd reads it, so name the file by a path from / without blanks");
            return Err(CommandError::invalid(why));
        }
        all.check_room(*list)
    }

    fn check_delete(list: &ListKey, all: &AccessLists) -> Result<(), CommandError> {
        let has_file = all.get(list).is_some_and(|known| known.file.is_some());
        if has_file { Ok(()) } else { Err(CommandError::NoListFile(*list)) }
    }

    fn add(&self, all: &mut AccessLists) {
        all.edit(self.list, |list| list.file = Some(self.path.clone()));
    }

    fn delete(list: &ListKey, all: &mut AccessLists) {
        all.edit(*list, |list| list.file = None);
    }

    fn each(all: &AccessLists) -> impl Iterator<Item = Self> {
        all.iter().filter_map(|(&list, content)| Some(Self { list, path: content.file.clone()? }))
    }

    fn added(&self) -> String {
        let Self { list, path } = self;
        format!("{} file{} {}", list.kind.name(), named(list.service), path.display())
    }

    fn deleted(list: &ListKey) -> String {
        format!("{} no-file{}", list.kind.name(), named(list.service))
    }
}

/// The networks in a file: one per line; empty lines and text after `#` or `;` are skipped. Networks may overlap and
/// repeat.
///
/// # Errors
///
/// The number of the first line with a fault, from 1, and the fault. The line's text is left out, because whoever names
/// a file may not be allowed to read it. An allow list without networks would exclude all clients.
pub fn read_prefixes(text: &str, list: ListKey) -> Result<Vec<Prefix>, (usize, String)> {
    let mut prefixes = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.split(['#', ';']).next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        let prefix = read_prefix(text).map_err(|_| (line, NO_NETWORK.to_owned()))?;
        if let Some(service) = list.service
            && service.family() != Family::of(prefix.addr())
        {
            return Err((line, format!("a network of another family than {service}")));
        }
        if prefixes.len() == AccessLists::FILE_MAX {
            return Err((line, format!("a file has at most {} networks", AccessLists::FILE_MAX)));
        }
        prefixes.push(prefix);
    }
    if prefixes.is_empty() && list.kind == ListKind::Allow {
        return Err((1, "there is no network in it, so that no client could connect".to_owned()));
    }
    Ok(prefixes)
}

/// The fault of a line that is not a network.
const NO_NETWORK: &str = "no network such as 192.0.2.0/24 or 2001:db8::/32, without bits behind its length, not \
                          IPv4-mapped; the line is not shown, because not everybody may read the file";

#[cfg(test)]
mod tests {
    use super::*;

    const DENY: ListKey = ListKey { kind: ListKind::Deny, service: None };

    #[test]
    fn networks_of_a_file_are_read_line_by_line_and_may_overlap() {
        let text = "# office\n192.0.2.0/24\n\n192.0.2.7 ; one of them\r\n2001:db8::/32\n192.0.2.0/24\n";
        let read = read_prefixes(text, DENY).unwrap();
        let shown: Vec<_> = read.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["192.0.2.0/24", "192.0.2.7/32", "2001:db8::/32", "192.0.2.0/24"]);
    }

    #[test]
    fn a_fault_of_a_file_names_its_line_and_shows_nothing_of_it() {
        for (bad, what) in [
            ("203.0.113.300", "203.0.113.300"),
            ("203.0.113.0/33", "203.0.113.0/33"),
            ("203.0.113.1/24", "write 203.0.113.0/24"),
            ("2001:db8:7::1/48", "write 2001:db8:7::/48"),
            ("::ffff:203.0.113.0/120", "write 203.0.113.0/24"),
            ("::ffff:203.0.113.7", "write 203.0.113.7/32"),
            ("203.0.113.0 203.0.113.1", "203.0.113.0 203.0.113.1"),
            ("root:secret", "root:secret"),
        ] {
            let (line, why) =
                read_prefixes(&format!("192.0.2.0/24\n\n{bad}\n192.0.2.9\n"), DENY).unwrap_err();
            assert_eq!(line, 3, "{bad}");
            assert!(["203.0.113", "db8:7", "secret"].iter().all(|text| !why.contains(text)), "{why}");
            assert!(read_prefix(bad).unwrap_err().contains(what), "what a command has, it may be shown");
        }
    }

    #[test]
    fn an_allow_list_of_no_network_and_a_network_of_another_family_are_refused() {
        let service = "TCP 198.51.100.1:80".parse().unwrap();
        let allow = ListKey { kind: ListKind::Allow, service: Some(service) };
        assert!(read_prefixes("# none\n", allow).unwrap_err().1.contains("no client"));
        let family = "a network of another family than TCP 198.51.100.1:80".to_owned();
        assert_eq!(read_prefixes("192.0.2.0/24\n2001:db8::/32\n", allow), Err((2, family)));
        assert_eq!(read_prefixes("", DENY), Ok(Vec::new()));
    }
}
