//! The schema of a service as listings print it, for the page of the documents of `--json`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// A service as text.
pub(crate) struct ServiceText;

impl JsonSchema for ServiceText {
    fn schema_name() -> Cow<'static, str> {
        "service".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "service" })
    }
}
