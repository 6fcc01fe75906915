//! Real servers: their health, their way out of service and back, and the preparation of a machine that is one.

pub(crate) mod drain;
pub(crate) mod health;
pub(crate) mod maintenance;
pub(crate) mod realserver;
