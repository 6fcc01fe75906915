//! The daemon's view of the machine, for `xvs doctor`.

use xvs_dataplane::snapshot::MssClamp;
use xvs_model::report::daemon_facts::DaemonFacts;
use xvs_model::report::warning::{Warning, texts};

use crate::shared::Shared;

/// The current facts of the daemon. Reads no memory that workers write often.
pub(crate) fn daemon_facts(shared: &Shared, warnings: &[Warning]) -> DaemonFacts {
    let facts = shared.facts();
    let snapshot = shared.published.load();
    let now = shared.now();
    DaemonFacts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        interfaces: facts.interfaces,
        workers: facts.workers.len(),
        pages: shared.table().pages().to_string(),
        mss_clamp: match snapshot.settings.mss_clamp {
            MssClamp::Off => "off",
            MssClamp::Tunnels => "tunnels",
            MssClamp::All => "all",
        }
        .to_owned(),
        path_mtus: snapshot
            .destinations
            .iter()
            .map(|dest| (dest.endpoint.addr, dest.path_mtu.at(now)))
            .filter(|(_, mtu)| *mtu != u32::MAX)
            .collect(),
        warnings: texts(warnings),
    }
}
