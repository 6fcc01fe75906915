//! JSON schemas for the strings that represent addresses, for the page about `--json`.
//!
//! Each is a string with a format, which the page explains.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::{Endpoint, Prefix, Protocol};

macro_rules! text {
    ($($kind:ty: $format:literal;)*) => {
        $(impl JsonSchema for $kind {
            fn schema_name() -> Cow<'static, str> {
                $format.into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "format": $format })
            }
        })*
    };
}

text! {
    Endpoint: "endpoint";
    Prefix: "network";
    Protocol: "protocol";
}
