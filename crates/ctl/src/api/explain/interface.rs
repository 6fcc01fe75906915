//! The name of an interface, by its link id.

use xvs_dataplane::egress::Egress;
use xvs_proto::LinkId;

pub(super) fn name_of(link: LinkId, egress: &Egress) -> String {
    egress.link(link).map_or_else(|| format!("link {}", link.0), |info| info.name.clone())
}
