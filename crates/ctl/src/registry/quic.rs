//! The QUIC configurations of a service, as workers use them.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use xvs_dataplane::snapshot::Member;
use xvs_dataplane::snapshot::quic::Quic;
use xvs_model::config::desired_state::State;
use xvs_model::config::quic;
use xvs_proto::quic::Decoder;

use crate::registry::Registry;

/// The keys of QUIC configurations by their files, or why a file gives none.
pub(crate) type QuicKeys = BTreeMap<PathBuf, Result<[u8; 16], String>>;

impl Registry {
    /// Replaces the keys of QUIC configurations. [`Self::build`] enters them in the snapshot.
    pub(crate) fn set_quic_keys(&mut self, keys: QuicKeys, state: &State) {
        if keys != self.quic_keys {
            let services = state.quic().iter().map(|(key, _)| *key);
            self.unbuilt.extend(services.filter(|key| self.services.contains_key(key)));
            self.quic_keys = keys;
        }
    }
}

/// The configurations of a service whose keys are known, with those of its destinations that have IDs. `None`: there
/// is no such configuration.
pub(super) fn build(quic: &quic::Quic, keys: &QuicKeys, members: &[Member]) -> Option<Arc<Quic>> {
    let decoder = |(number, config): (&u8, &quic::QuicConfig)| {
        let key = match &config.key_file {
            Some(path) => Some(*keys.get(path)?.as_ref().ok()?),
            None => None,
        };
        Some((*number, Decoder::new(config.server_id_length, config.nonce_length, key)?))
    };
    let decoders: Vec<_> = quic.configs.iter().filter_map(decoder).collect();
    let positions: HashMap<_, _> = members.iter().map(|member| member.endpoint).zip(0..).collect();
    let ids = quic.servers.iter().filter_map(|(id, server)| Some((*id, *positions.get(server)?)));
    (!decoders.is_empty()).then(|| Arc::new(Quic::new(decoders, ids)))
}
