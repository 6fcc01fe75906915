//! The configuration: services, destinations, settings, and the commands that change them.

pub mod destination;
pub mod hold;
pub mod load_feedback;
pub mod load_report;
pub mod service;
pub mod service_option;
mod setting_table;
pub mod settings;
pub mod slow_start;
pub(crate) mod syn_proxy;
pub mod sync_daemon;
pub mod timeouts;

pub mod command;
pub mod desired_state;
pub mod difference;
pub mod reconcile;
pub mod refusal;
pub mod rules;
pub mod unknown_name;
