//! The program `xvs` from outside.

mod healthy;
mod json_fields;
