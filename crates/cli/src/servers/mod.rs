//! Real servers: their health, their way out of service and back, and the preparation of a machine as a real server.

pub(crate) mod drain;
pub(crate) mod health;
pub(crate) mod maintenance;
pub(crate) mod realserver;
