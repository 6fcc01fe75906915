//! The definitions to which virtual servers in a file refer: groups, tracked files, the `SSL` block.

use crate::blocks::Block;
use crate::files::Files;
use crate::groups::Groups;
use crate::ssl::Ssl;
use crate::values::Faults;

/// The definitions of a file.
#[derive(Default)]
pub(super) struct Definitions {
    pub(super) groups: Groups,
    pub(super) files: Files,
    pub(super) ssl: Ssl,
}

impl Definitions {
    /// Reads the definitions of a whole file: they may come after the statements that refer to them.
    pub(super) fn of(tree: &[Block], faults: &mut Faults) -> Self {
        let mut definitions = Self::default();
        for block in tree {
            match block.keyword() {
                "virtual_server_group" => definitions.groups.read(block, faults),
                "track_file" | "vrrp_track_file" => definitions.files.read(block, faults),
                "SSL" => definitions.ssl.read(block, faults),
                _ => {}
            }
        }
        definitions
    }
}
