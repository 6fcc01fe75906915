//! The configuration: services, destinations, settings and rules, and the commands that change them.

pub mod destination;
pub mod firewall_mark;
pub mod hold;
pub mod list_key;
pub mod load_feedback;
pub mod load_report;
pub mod local_address;
pub mod maintenance;
pub mod quic;
pub mod quic_rule;
pub mod service;
mod setting_table;
pub mod settings;
pub mod slow_start;
mod syn_proxy;
pub mod sync_daemon;
pub mod timeouts;

pub mod access_list;
pub mod client_limit;
pub mod command;
pub mod desired_state;
pub mod difference;
pub mod reconcile;
pub mod refusal;
pub mod rule;
pub mod rules;
pub mod unknown_name;
