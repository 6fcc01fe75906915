//! Keys of QUIC configurations: read from files when a configuration is added, when xvsd starts and at each reload.
//!
//! A file without a key makes a command or a reload fail, but not a start: after a start, the configurations of such a
//! file choose no real server, with a warning, until a reload finds the file correct.

use std::path::Path;

use xvs_model::config::command::Command;
use xvs_model::config::refusal::CommandError;
use xvs_model::hexadecimal;
use xvs_model::objects::quic::{QuicRow, ServerIdRow};
use xvs_model::report::warning::{Warning, WarningKind};

use crate::control::Control;
use crate::control::datapath::Datapath;
use crate::quic_key::{HOW, QuicKeyError, QuicKeys};
use crate::secret_file;

impl<D: Datapath> Control<D> {
    /// Reads the key file of a configuration that a command adds, if it names one.
    ///
    /// # Errors
    /// The file gives no key; during a start that is no error.
    pub(super) fn read_quic_key(&self, command: &Command) -> Result<QuicKeys, CommandError> {
        let Command::Add(rule) = command else { return Ok(QuicKeys::new()) };
        rule.key_file()
            .map(|path| match read_key(path) {
                Err(fault) if !self.lists.starting => Err(failed(fault)),
                key => Ok((path.to_owned(), key)),
            })
            .into_iter()
            .collect()
    }

    /// Enters the key of a configuration that was added; a former key stays if the file now has a fault. Forgets keys
    /// that no configuration uses any more.
    pub(super) fn enter_quic_keys(&mut self, read: QuicKeys) {
        let mut keys = self.registry.quic_keys.clone();
        for (path, key) in read {
            if let Err(fault) = &key {
                tracing::error!("{fault}");
            }
            if key.is_ok() || !keys.contains_key(&path) {
                keys.insert(path, key);
            }
        }
        keys.retain(|path, _| self.state.quic().key_files().any(|known| known == path));
        self.registry.set_quic_keys(keys, &self.state);
    }

    /// The keys in the current files.
    ///
    /// # Errors
    /// The first file with a fault.
    pub(super) fn read_quic_keys(&self) -> Result<QuicKeys, CommandError> {
        self.state
            .quic()
            .key_files()
            .map(|path| Ok((path.to_owned(), Ok(read_key(path).map_err(failed)?))))
            .collect()
    }

    /// The configurations and server IDs, as `xvs quic list` shows them.
    pub(super) fn quic_rows(&self) -> Vec<QuicRow> {
        let keys = &self.registry.quic_keys;
        self.state.quic().rows(
            |path| keys.get(path)?.as_ref().err().map(ToString::to_string),
            |key, server| {
                self.state.service(key).is_some_and(|service| service.destination(server).is_some())
            },
        )
    }

    /// The warnings about keys that cannot be used, and about server IDs that choose no real server although the
    /// service has a real server with this address.
    pub(super) fn quic_warnings(&self) -> impl Iterator<Item = Warning> {
        let of_keys = self.registry.quic_keys.iter().filter_map(|(path, key)| {
            let fault = key.as_ref().err()?;
            let text = format!(
                "{fault}; its QUIC configurations choose no real server until `xvs reload` finds the file correct"
            );
            Some(Warning::new(WarningKind::QuicKey, path.display(), text))
        });
        let of_ids = self.quic_rows().into_iter().flat_map(|QuicRow { service, server_ids, .. }| {
            let destinations = self.state.service(&service).map_or(&[][..], |state| &state.destinations);
            server_ids
                .into_iter()
                .filter(|row| destinations.iter().any(|dest| dest.endpoint.addr == row.server.addr))
                .filter_map(move |ServerIdRow { id, server, fault }| {
                    let why = fault?;
                    let text = format!(
                        "{service}: QUIC server ID {id} of {server} chooses no real server: {why}; see `xvs quic list`"
                    );
                    Some(Warning::new(
                        WarningKind::QuicServerId,
                        format_args!("{service} {server} {id}"),
                        text,
                    ))
                })
        });
        of_keys.chain(of_ids)
    }
}

/// Reads a key: 32 hexadecimal digits, in a file that only its owner and group may access.
///
/// # Errors
/// The file cannot be used.
pub fn read_key(path: &Path) -> Result<[u8; 16], QuicKeyError> {
    let text = secret_file::read("QUIC key", path, HOW)?;
    hexadecimal::decode(text.trim())
        .and_then(|key| key.try_into().ok())
        .ok_or_else(|| QuicKeyError::NotHexadecimal(path.to_owned()))
}

fn failed(error: QuicKeyError) -> CommandError {
    CommandError::failed(format_args!("{error}; nothing has changed"))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::{env, process};
    use xvs_model::objects::quic::{QuicKey, ServiceQuic};

    use xvs_dataplane::clock::Millis;
    use xvs_model::config::service::ServiceOptions;
    use xvs_model::protocol::question::{ControlRequest, Reply};
    use xvs_proto::Endpoint;
    use xvs_sched::ServiceKey;

    use xvs_model::objects::quic::{QuicConfig, QuicObject, QuicRule};
    use xvs_model::objects::{Object, Rule};
    use xvs_model::report::warning::texts;

    use super::*;
    use crate::control::tests::control;

    fn service() -> ServiceKey {
        "UDP 198.51.100.1:443".parse().unwrap()
    }

    fn add(path: &Path) -> Command {
        let options = QuicConfig { server_id_length: 3, nonce_length: 4, key_file: Some(path.to_owned()) };
        let rule = QuicRule::Config { config: 0, options };
        Command::Add(Rule::Quic(ServiceQuic { service: service(), rule }))
    }

    fn path(name: &str) -> PathBuf {
        env::temp_dir().join(format!("xvs-quic-key-{}-{name}", process::id()))
    }

    fn write(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }

    /// Whether workers read connection IDs of the service.
    fn is_in_force<D: Datapath>(control: &Control<D>) -> bool {
        let snapshot = control.published().load_full();
        snapshot.services.find(&service()).unwrap().quic.is_some()
    }

    fn fault<D: Datapath>(control: &mut Control<D>) -> Option<String> {
        match control.handle(&ControlRequest::Quic, Millis(0)) {
            Ok(Reply::Quic(rows)) => rows[0].configs[0].fault.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn xvsd_starts_without_a_key_and_a_reload_brings_it_in_force_or_is_refused() {
        let (mut control, path) = (control(), path("start"));
        control.keep_lists_without_files();
        let options = ServiceOptions::of(service().family());
        let start = vec![Command::Add(Rule::Service { key: service(), options }), add(&path)];
        let reply = control.handle(&ControlRequest::Restore(start), Millis(0));
        assert_eq!(reply, Ok(Reply::Restored(vec![Ok(()), Ok(())])));
        control.lists.starting = false;
        assert!(!is_in_force(&control));
        assert!(fault(&mut control).unwrap().contains("No such file"));
        assert!(control.warnings().iter().any(|warning| warning.text.contains("until `xvs reload` finds")));
        assert!(control.require_list_files().is_err(), "a take-over would lose the key of the running xvsd");
        let reload = |control: &mut Control<_>| control.set_list_files(Default::default());
        assert!(reload(&mut control).is_err());

        write(&path, &"0a".repeat(16));
        assert_eq!(reload(&mut control), Ok(vec![format!("QUIC key {}: read again", path.display())]));
        assert!(is_in_force(&control) && control.warnings().is_empty());
        assert_eq!((fault(&mut control), control.require_list_files()), (None, Ok(())));
        write(&path, "no key");
        assert!(reload(&mut control).is_err(), "nothing has changed");
        assert!(is_in_force(&control) && control.warnings().is_empty());
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_server_id_of_another_length_or_port_is_a_warning_and_one_of_a_removed_server_is_none() {
        let mut control = control();
        let server = |host, port| Endpoint::new([192, 0, 2, host], port);
        let id = |server, id: &str| {
            let rule = QuicRule::ServerId { server, id: id.parse().unwrap() };
            Command::Add(Rule::Quic(ServiceQuic { service: service(), rule }))
        };
        let plain = QuicConfig { server_id_length: 3, nonce_length: 4, key_file: None };
        let commands = vec![
            Command::Add(Rule::Service { key: service(), options: ServiceOptions::of(service().family()) }),
            Command::Add(Rule::Destination {
                service: service(),
                endpoint: server(11, 443),
                options: Default::default(),
            }),
            Command::Add(Rule::Quic(ServiceQuic {
                service: service(),
                rule: QuicRule::Config { config: 0, options: plain },
            })),
            id(server(11, 443), "0a0b01"),
            id(server(11, 443), "0a0b"),
            id(server(11, 444), "0a0b02"),
            id(server(12, 443), "0a0b03"),
        ];
        control.handle(&ControlRequest::Restore(commands), Millis(0)).unwrap();
        let of = |id, server, why| {
            format!(
                "UDP 198.51.100.1:443: QUIC server ID {id} of {server} chooses no real server: {why}; see `xvs quic list`"
            )
        };
        let expected = [
            of("0a0b", "192.0.2.11:443", "no configuration has server IDs of 2 bytes"),
            of("0a0b02", "192.0.2.11:444", "the service does not have this real server now"),
        ];
        assert_eq!(texts(&control.warnings()), expected);
    }

    #[test]
    fn a_configuration_without_a_key_is_refused_and_a_key_that_none_has_is_forgotten() {
        let (mut control, path) = (control(), path("change"));
        let mut change = |command: &Command| control.run(command.clone());
        assert!(change(&add(&path)).is_err());
        write(&path, &"0b".repeat(16));
        assert_eq!(change(&add(&path)), Ok(Reply::Done));
        let object = QuicObject::Config { config: 0 };
        let delete = Command::Delete(Object::Quic(QuicKey { service: service(), object }));
        assert_eq!(change(&delete), Ok(Reply::Done));
        assert!(control.registry.quic_keys.is_empty() && control.state().quic().get(&service()).is_none());
        fs::remove_file(&path).unwrap();
    }
}
