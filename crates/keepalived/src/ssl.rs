//! The `SSL` block: the certificate files for TLS checks.
//!
//! Pure. Not here: reading those files (`health/tls_config.rs`).

use xvs_model::health_checks::check::{Setting, Tls, Trust};

use crate::blocks::Block;
use crate::values::Faults;

/// The `SSL` block.
#[derive(Default)]
pub(super) struct Ssl(Tls);

impl Ssl {
    /// Reads all `SSL` blocks of a file.
    pub(super) fn of(tree: &[Block], faults: &mut Faults) -> Self {
        let mut ssl = Tls::default();
        for block in tree.iter().filter(|block| block.keyword() == "SSL") {
            faults.block(block);
            for statement in block.statements() {
                let setting = match statement.keyword() {
                    "ca" => &mut ssl.ca,
                    "certificate" => &mut ssl.certificate,
                    "key" => &mut ssl.key,
                    "password" => &mut ssl.password,
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
        Self(ssl)
    }

    /// The TLS settings of a check.
    pub(super) fn tls(&self, trust: Trust) -> Tls {
        Tls { trust, ..self.0.clone() }
    }
}
