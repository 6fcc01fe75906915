//! The `SSL` block: the certificate files for TLS checks.
//!
//! Pure. `tls_config.rs` in `health` reads the files.

use xvs_model::health_checks::check::{Setting, Tls, Trust};

use crate::blocks::Block;
use crate::values::Faults;

/// The `SSL` block.
#[derive(Default)]
pub(super) struct Ssl(Tls);

impl Ssl {
    /// Reads an `SSL` block.
    pub(super) fn read(&mut self, block: &Block, faults: &mut Faults) {
        faults.block(block);
        for statement in block.statements() {
            let setting = match statement.keyword() {
                "ca" => &mut self.0.ca,
                "certificate" => &mut self.0.certificate,
                "key" => &mut self.0.key,
                "password" => &mut self.0.password,
                _ => {
                    faults.unknown(statement);
                    continue;
                }
            };
            faults.line(statement, true);
            if let Some(value) = faults.argument(statement) {
                *setting = Some(Setting {
                    place: statement.place.clone(),
                    text: statement.text.clone(),
                    value: value.to_owned(),
                });
            }
        }
    }

    /// The TLS settings of a check.
    pub(super) fn tls(&self, trust: Trust) -> Tls {
        Tls { trust, ..self.0.clone() }
    }
}
