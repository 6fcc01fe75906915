//! QUIC configurations and server IDs, with which a service's connection IDs name real servers.
//!
//! They belong to a service and its real servers whether or not these exist now, so health checks may remove and add
//! them. Keys are in files that xvsd reads; a configuration has only their paths. Connection IDs are decoded in
//! `xvs_proto::quic`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xvs_proto::quic::{CONFIGURATIONS, Decoder, ServerId};
use xvs_proto::{Endpoint, Protocol};
use xvs_sched::ServiceKey;

use crate::config::refusal::CommandError;
use crate::config::service_option::{as_listed, named_service};
use crate::objects::noun::{Noun, Services, Turn};

/// How a configuration encodes server IDs in connection IDs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct QuicConfig {
    /// The length of its server IDs, in bytes.
    pub server_id_length: u8,
    /// The length of the nonce after a server ID, in bytes.
    pub nonce_length: u8,
    /// The file of the key; `None`: nothing is encrypted.
    pub key_file: Option<PathBuf>,
}

/// A QUIC configuration or a server ID of a service, with its options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum QuicRule {
    /// A configuration; no error if the service has an equal one. Its key is read when the command is carried out, and
    /// at each reload.
    #[serde(rename = "add")]
    Config {
        /// The number.
        config: u8,
        /// How it encodes server IDs.
        options: QuicConfig,
    },
    /// A server ID of a real server, whether or not that exists now; no error if the real server has it.
    #[serde(rename = "add_id")]
    ServerId {
        /// The real server.
        server: Endpoint,
        /// The ID.
        id: ServerId,
    },
}

/// Which configuration or server ID of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum QuicObject {
    /// A configuration. Its deletion leaves the server IDs.
    #[serde(rename = "delete")]
    Config {
        /// The number.
        config: u8,
    },
    /// A server ID.
    #[serde(rename = "delete_id")]
    ServerId {
        /// The ID.
        id: ServerId,
    },
}

impl QuicRule {
    /// The object that it describes.
    pub(crate) fn object(&self) -> QuicObject {
        match *self {
            Self::Config { config, .. } => QuicObject::Config { config },
            Self::ServerId { id, .. } => QuicObject::ServerId { id },
        }
    }
}

/// A QUIC configuration or a server ID of a service, whether or not the service exists now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceQuic {
    /// The service.
    pub service: ServiceKey,
    /// The configuration or the server ID.
    #[serde(rename = "change")]
    pub rule: QuicRule,
}

/// Which configuration or server ID of which service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QuicKey {
    /// The service.
    pub service: ServiceKey,
    /// The configuration or the server ID.
    #[serde(rename = "change")]
    pub object: QuicObject,
}

impl Noun for ServiceQuic {
    type Key = QuicKey;
    type All = QuicServices;
    const IS_REPLACED: bool = true;

    fn key(&self) -> QuicKey {
        QuicKey { service: self.service, object: self.rule.object() }
    }

    fn check_add(&self, all: &QuicServices, _: &dyn Services) -> Result<(), CommandError> {
        match self.rule {
            QuicRule::Config { config, ref options } => all.check_config(self.service, config, options),
            QuicRule::ServerId { server, id } => all.check_id(self.service, server, id),
        }
    }

    fn check_delete(&QuicKey { service, object }: &QuicKey, all: &QuicServices) -> Result<(), CommandError> {
        match (object, all.get(&service)) {
            (QuicObject::Config { config }, Some(quic)) if quic.configs.contains_key(&config) => Ok(()),
            (QuicObject::ServerId { id }, Some(quic)) if quic.servers.contains_key(&id) => Ok(()),
            (QuicObject::Config { config }, _) => Err(CommandError::NoSuchQuic { service, config }),
            (QuicObject::ServerId { id }, _) => Err(CommandError::NoSuchServerId { service, id }),
        }
    }

    fn add(&self, all: &mut QuicServices) {
        let quic = all.0.entry(self.service).or_default();
        match &self.rule {
            QuicRule::Config { config, options } => _ = quic.configs.insert(*config, options.clone()),
            QuicRule::ServerId { server, id } => _ = quic.servers.insert(*id, *server),
        }
    }

    /// A service that has nothing then is left out.
    fn delete(QuicKey { service, object }: &QuicKey, all: &mut QuicServices) {
        let Some(quic) = all.0.get_mut(service) else { return };
        match object {
            QuicObject::Config { config } => _ = quic.configs.remove(config),
            QuicObject::ServerId { id } => _ = quic.servers.remove(id),
        }
        if *quic == Quic::default() {
            all.0.remove(service);
        }
    }

    fn each(all: &QuicServices) -> impl Iterator<Item = Self> {
        all.iter().flat_map(|(&service, quic)| quic.rules().map(move |rule| Self { service, rule }))
    }

    fn added(&self) -> String {
        let service = named_service(&self.service);
        match &self.rule {
            QuicRule::Config { config, options } => {
                let QuicConfig { server_id_length, nonce_length, key_file } = options;
                let key = key_file.as_ref().map(|path| format!(" --key-file {}", path.display()));
                format!(
                    "quic add {service} --config {config} --server-id-length {server_id_length} \
                     --nonce-length {nonce_length}{}",
                    key.unwrap_or_default()
                )
            }
            QuicRule::ServerId { server, id } => format!("quic server-id {service} -r {server} {id}"),
        }
    }

    fn deleted(QuicKey { service, object }: &QuicKey) -> String {
        let service = named_service(service);
        match object {
            QuicObject::Config { config } => format!("quic delete {service} --config {config}"),
            QuicObject::ServerId { id } => format!("quic delete-server-id {service} {id}"),
        }
    }

    fn turn(&self) -> Turn {
        match self.rule {
            QuicRule::Config { .. } => Turn::Any,
            QuicRule::ServerId { .. } => Turn::Dependent,
        }
    }
}

/// The QUIC configurations and server IDs of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Quic {
    /// The configurations by their numbers.
    pub configs: BTreeMap<u8, QuicConfig>,
    /// The real servers by their IDs. An ID is for all configurations of its length.
    pub servers: BTreeMap<ServerId, Endpoint>,
}

/// The QUIC configurations of a service, as `xvs quic list` shows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct QuicRow {
    /// A service with QUIC configurations or server IDs.
    #[serde(with = "as_listed")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::ServiceText"))]
    pub service: ServiceKey,
    /// The configurations of the service.
    pub configs: Vec<QuicConfigRow>,
    /// The server IDs of the service.
    pub server_ids: Vec<ServerIdRow>,
}

/// A configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct QuicConfigRow {
    /// The number of the configuration.
    pub config: u8,
    /// The options.
    #[serde(flatten)]
    pub options: QuicConfig,
    /// Why the file has given no key, so that the configuration is not in force; `None`: it is in force.
    pub fault: Option<String>,
}

/// A server ID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ServerIdRow {
    /// The server ID, in hexadecimal digits.
    pub id: ServerId,
    /// The real server that the ID names.
    pub server: Endpoint,
    /// Why the ID chooses no real server now; `None`: it does.
    pub fault: Option<String>,
}

impl From<&QuicRow> for Quic {
    fn from(row: &QuicRow) -> Self {
        Self {
            configs: row.configs.iter().map(|row| (row.config, row.options.clone())).collect(),
            servers: row.server_ids.iter().map(|row| (row.id, row.server)).collect(),
        }
    }
}

impl Quic {
    /// The rows of the server IDs. `has` says whether the service has a real server now.
    fn rows(&self, has: impl Fn(Endpoint) -> bool) -> impl Iterator<Item = ServerIdRow> {
        self.servers.iter().map(move |(&id, &server)| {
            let length = id.as_bytes().len();
            let mut lengths = self.configs.values().map(|config| usize::from(config.server_id_length));
            let fault = match () {
                () if !has(server) => Some("the service does not have this real server now".to_owned()),
                () if !lengths.any(|known| known == length) => {
                    Some(format!("no configuration has server IDs of {length} bytes"))
                }
                () => None,
            };
            ServerIdRow { id, server, fault }
        })
    }

    /// The server IDs, and the configurations after them.
    pub fn rules(&self) -> impl Iterator<Item = QuicRule> {
        let ids = self.servers.iter().map(|(&id, &server)| QuicRule::ServerId { server, id });
        let configs = self
            .configs
            .iter()
            .map(|(&config, options)| QuicRule::Config { config, options: options.clone() });
        ids.chain(configs)
    }
}

/// The QUIC configurations and server IDs by service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QuicServices(BTreeMap<ServiceKey, Quic>);

impl QuicServices {
    /// The configurations and server IDs of a service.
    pub fn get(&self, service: &ServiceKey) -> Option<&Quic> {
        self.0.get(service)
    }

    /// All, in the order of their services.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceKey, &Quic)> {
        self.0.iter()
    }

    /// The rows of all services. `fault` says why the file of a configuration gives no key, `has` whether a service has
    /// a real server now.
    pub fn rows(
        &self,
        fault: impl Fn(&Path) -> Option<String>,
        has: impl Fn(&ServiceKey, Endpoint) -> bool,
    ) -> Vec<QuicRow> {
        self.0
            .iter()
            .map(|(service, quic)| {
                let configs = quic.configs.iter().map(|(number, options)| QuicConfigRow {
                    config: *number,
                    options: options.clone(),
                    fault: options.key_file.as_deref().and_then(&fault),
                });
                QuicRow {
                    service: *service,
                    configs: configs.collect(),
                    server_ids: quic.rows(|server| has(service, server)).collect(),
                }
            })
            .collect()
    }

    /// The files of keys.
    pub fn key_files(&self) -> impl Iterator<Item = &Path> {
        self.0.values().flat_map(|quic| quic.configs.values()).filter_map(|config| config.key_file.as_deref())
    }

    /// Refuses a configuration that is wrong in itself, or whose number the service uses already.
    fn check_config(
        &self,
        service: ServiceKey,
        number: u8,
        options: &QuicConfig,
    ) -> Result<(), CommandError> {
        let QuicConfig { server_id_length, nonce_length, key_file } = options;
        let there = self.get(&service).and_then(|quic| quic.configs.get(&number));
        let why = match () {
            () if usize::from(number) >= CONFIGURATIONS => {
                format!("the number is 0 to {}", CONFIGURATIONS - 1)
            }
            () if Decoder::new(*server_id_length, *nonce_length, None).is_none() => format!(
                "a server ID of {server_id_length} bytes and a nonce of {nonce_length}; an ID has at least 1 byte, a \
                 nonce at least 4, both together at most 19"
            ),
            () if key_file.as_deref().is_some_and(|path| !is_absolute_word(path)) => {
                "xvsd reads the key, so name its file by a path from / without blanks".to_owned()
            }
            () if there.is_some_and(|there| there != options) => {
                "it exists already with other options; rotate keys by another number, or delete it first"
                    .to_owned()
            }
            () => return self.check_service(service),
        };
        Err(CommandError::invalid(format!("QUIC configuration {number} of service {service}: {why}")))
    }

    /// Refuses a server ID that another real server of the service has, and one more than fit.
    fn check_id(&self, service: ServiceKey, server: Endpoint, id: ServerId) -> Result<(), CommandError> {
        let Some(quic) = self.get(&service) else { return self.check_service(service) };
        let why = match quic.servers.get(&id) {
            Some(other) if *other == server => return Ok(()),
            Some(other) => {
                format!(
                    "real server {other} has it; choose another one, or `xvs quic delete-server-id` it first"
                )
            }
            None if quic.servers.len() >= IDS_MAX => {
                format!("the service has {IDS_MAX} IDs already, the largest number; delete one first")
            }
            None => return Ok(()),
        };
        Err(CommandError::invalid(format!(
            "server ID {id} for real server {server} of service {service}: {why}"
        )))
    }

    /// Refuses a service that no QUIC packet belongs to, and one more than fit.
    fn check_service(&self, service: ServiceKey) -> Result<(), CommandError> {
        match service {
            _ if self.0.len() >= SERVICES_MAX && self.get(&service).is_none() => {
                Err(CommandError::invalid(format!(
                    "{SERVICES_MAX} services have QUIC configurations already, the largest number; delete those of \
                     one"
                )))
            }
            ServiceKey::Address { protocol: Protocol::UDP, .. } => Ok(()),
            ServiceKey::Mark { mark, .. } if mark > 0 => Ok(()),
            _ => Err(CommandError::NotSupported {
                object: format!("service {service}"),
                what: "QUIC over another protocol than UDP is".to_owned(),
                next: "name a service by -u or -f".to_owned(),
            }),
        }
    }
}

/// Whether a path is absolute and is a single argument of a line.
fn is_absolute_word(path: &Path) -> bool {
    path.is_absolute() && path.to_str().is_some_and(|path| !path.contains(char::is_whitespace))
}

/// The largest number of services with QUIC configurations.
const SERVICES_MAX: usize = 1024;
/// The largest number of server IDs of a service.
const IDS_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use crate::config::command::Command;
    use crate::config::desired_state::State;
    use crate::objects::quic::*;
    use crate::objects::{Object, Rule};

    fn service() -> ServiceKey {
        "UDP 198.51.100.1:443".parse().unwrap()
    }

    fn config(server_id_length: u8, nonce_length: u8) -> QuicConfig {
        QuicConfig { server_id_length, nonce_length, key_file: None }
    }

    fn add_to(service: ServiceKey, config: u8, options: QuicConfig) -> Command {
        Command::Add(Rule::Quic(ServiceQuic { service, rule: QuicRule::Config { config, options } }))
    }

    fn add(config: u8, options: QuicConfig) -> Command {
        add_to(service(), config, options)
    }

    fn id(last: u8, id: &str) -> Command {
        let rule =
            QuicRule::ServerId { server: Endpoint::new([192, 0, 2, last], 443), id: id.parse().unwrap() };
        Command::Add(Rule::Quic(ServiceQuic { service: service(), rule }))
    }

    fn delete(object: QuicObject) -> Command {
        Command::Delete(Object::Quic(QuicKey { service: service(), object }))
    }

    fn with(commands: &[Command]) -> State {
        let mut state = State::default();
        commands.iter().for_each(|command| state.apply(command).unwrap());
        state
    }

    #[test]
    fn what_contradicts_the_draft_or_itself_is_refused_with_service_object_and_next_step() {
        let state = with(&[add(0, config(3, 4)), id(1, "0a0b0c")]);
        let key = |path: &str| QuicConfig { key_file: Some(path.into()), ..config(3, 4) };
        for (command, expected) in [
            (add(7, config(3, 4)), "configuration 7 of service UDP 198.51.100.1:443: the number is 0 to 6"),
            (add(1, config(0, 8)), "a server ID of 0 bytes and a nonce of 8; an ID has at least 1 byte"),
            (add(1, config(3, 3)), "a nonce of 3;"),
            (add(1, config(15, 5)), "both together at most 19"),
            (add(1, key("key")), "by a path from /"),
            (add(1, key("/etc/my key")), "without blanks"),
            (add(0, config(3, 5)), "exists already with other options; rotate keys by another number"),
            (id(2, "0a0b0c"), "server ID 0a0b0c for real server 192.0.2.2:443 of service UDP"),
            (id(2, "0a0b0c"), "real server 192.0.2.1:443 has it; choose another one"),
            (delete(QuicObject::Config { config: 1 }), "has no QUIC configuration 1; `xvs quic list`"),
            (delete(QuicObject::ServerId { id: "0a0b0d".parse().unwrap() }), "has no server ID 0a0b0d"),
        ] {
            let message = state.check(&command).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        for other in ["TCP 198.51.100.1:443", "SCTP 198.51.100.1:443"] {
            let refused = state.check(&add_to(other.parse().unwrap(), 0, config(3, 4))).unwrap_err();
            assert!(refused.to_string().contains("than UDP is not supported yet; name a service by -u"));
        }
        for again in [add(0, config(3, 4)), id(1, "0a0b0c")] {
            assert!(state.check(&again).is_ok(), "{again:?}");
        }
        assert!(state.check(&add_to("FWM 7".parse().unwrap(), 0, config(3, 4))).is_ok());
    }

    #[test]
    fn the_rules_of_a_service_give_it_again_even_with_an_id_of_a_former_length() {
        let first = delete(QuicObject::Config { config: 0 });
        let state =
            with(&[add(0, config(3, 4)), id(1, "0a0b0c"), add(1, config(2, 4)), id(1, "0a0b"), first]);
        let rules: Vec<_> = state.nouns().collect();
        // As in the journal.
        let text = serde_json::to_string(&rules).unwrap();
        let commands: Vec<Command> = serde_json::from_str(&text).unwrap();
        assert_eq!(with(&commands), state);
        let mut state = state;
        for rule in rules {
            state.apply(&Command::Delete(rule.object())).unwrap();
        }
        assert_eq!(state, State::default());
    }
}
