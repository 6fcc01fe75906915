//! The QUIC configurations of services, as workers use them.

use std::collections::HashMap;
use std::sync::Arc;

use xvs_dataplane::snapshot::Service;
use xvs_dataplane::snapshot::quic::Quic;
use xvs_model::config::desired_state::State;
use xvs_proto::quic::Decoder;

use crate::quic_key::QuicKeys;
use crate::registry::Registry;

impl Registry {
    /// Replaces the keys of QUIC configurations. [`Self::build`] enters them in the snapshot.
    pub(crate) fn set_quic_keys(&mut self, keys: QuicKeys, state: &State) {
        if keys != self.quic_keys {
            let services = state.quic().iter().map(|(key, _)| *key);
            self.unbuilt.extend(services.filter(|key| self.services.contains_key(key)));
            self.quic_keys = keys;
        }
    }

    /// The service's configurations whose keys are known, with its destinations that have server IDs. `None` if no key
    /// is known.
    pub(super) fn quic(&self, state: &State, service: &Service) -> Option<Arc<Quic>> {
        let quic = state.quic().get(&service.key)?;
        let decoders: Vec<_> = quic
            .configs
            .iter()
            .filter_map(|(number, config)| {
                let key = match &config.key_file {
                    Some(path) => Some(*self.quic_keys.get(path)?.as_ref().ok()?),
                    None => None,
                };
                Some((*number, Decoder::new(config.server_id_length, config.nonce_length, key)?))
            })
            .collect();
        let positions: HashMap<_, _> =
            service.members.iter().map(|member| member.endpoint).zip(0..).collect();
        let ids = quic.servers.iter().filter_map(|(id, server)| Some((*id, *positions.get(server)?)));
        (!decoders.is_empty()).then(|| Arc::new(Quic::new(decoders, ids)))
    }
}
