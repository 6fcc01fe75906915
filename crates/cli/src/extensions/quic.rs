//! `xvs quic`: the connection IDs with which QUIC connections keep their real server when clients change addresses.

use std::fmt::Write as _;
use xvs_ipvsadm::QuicLine;
use xvs_model::objects::quic::{QuicConfig, QuicConfigRow, QuicRow, ServerIdRow};
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question;

use super::{Listed, NoOptions};

impl Listed for QuicLine {
    type Options = NoOptions;
    type Report = Vec<QuicRow>;
    const HELP: &str = "Show the configurations and server IDs";

    fn report(_: &NoOptions, director: &mut dyn Director) -> Result<Vec<QuicRow>, Failure> {
        question::quic().ask(director)
    }

    fn screen(rows: &Vec<QuicRow>) -> String {
        let mut text = String::new();
        if rows.is_empty() {
            text += "no QUIC configurations; `xvs quic add --help` says how to add one\n";
        }
        for QuicRow { service, configs, server_ids } in rows {
            let _ = writeln!(text, "{service}");
            for QuicConfigRow { config, options, fault } in configs {
                let QuicConfig { server_id_length, nonce_length, key_file } = options;
                let key =
                    key_file.as_ref().map_or("not encrypted".to_owned(), |path| path.display().to_string());
                let fault =
                    fault.as_ref().map(|fault| format!("; not in force: {fault}")).unwrap_or_default();
                let _ = writeln!(
                    text,
                    "  configuration {config}: server ID {server_id_length} bytes, nonce {nonce_length}, {key}{fault}"
                );
            }
            for ServerIdRow { id, server, fault } in server_ids {
                let fault =
                    fault.as_ref().map(|fault| format!("; not in force: {fault}")).unwrap_or_default();
                let _ = writeln!(text, "  {id}  {server}{fault}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use xvs_proto::Endpoint;

    use super::*;

    #[test]
    fn the_listing_shows_each_service_with_its_configurations_and_the_servers_of_its_ids() {
        let config = |config, key_file: Option<&str>, fault: Option<&str>| QuicConfigRow {
            config,
            options: QuicConfig { server_id_length: 3, nonce_length: 13, key_file: key_file.map(Into::into) },
            fault: fault.map(str::to_owned),
        };
        let server = Endpoint::new([192, 0, 2, 1], 443);
        let row = QuicRow {
            service: "UDP 198.51.100.1:443".parse().unwrap(),
            configs: vec![
                config(0, None, None),
                config(6, Some("/etc/xvs/key"), Some("QUIC key /etc/xvs/key: gone")),
            ],
            server_ids: vec![
                ServerIdRow { id: "0a0b0c".parse().unwrap(), server, fault: None },
                ServerIdRow {
                    id: "0a0b".parse().unwrap(),
                    server,
                    fault: Some("no configuration has server IDs of 2 bytes".to_owned()),
                },
            ],
        };
        let expected = "\
UDP 198.51.100.1:443
  configuration 0: server ID 3 bytes, nonce 13, not encrypted
  configuration 6: server ID 3 bytes, nonce 13, /etc/xvs/key; not in force: QUIC key /etc/xvs/key: gone
  0a0b0c  192.0.2.1:443
  0a0b  192.0.2.1:443; not in force: no configuration has server IDs of 2 bytes
";
        assert_eq!(QuicLine::screen(&vec![row]), expected);
        assert!(QuicLine::screen(&Vec::new()).contains("`xvs quic add --help`"));
    }
}
