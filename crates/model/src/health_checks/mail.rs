//! Settings for mails about changes of status, from `global_defs` in keepalived.conf.

/// Recipients, sender and server of mails. Source: keepalived.conf(5).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MailSettings {
    /// The recipients (`notification_email`), at least one.
    pub recipients: Vec<String>,
    /// The sender (`notification_email_from`).
    pub from: String,
    /// The name or address of the mail server (`smtp_server`).
    pub host: String,
    /// The port of the mail server.
    pub port: u16,
    /// The name by which this machine introduces itself (`smtp_helo_name`).
    pub helo: String,
    /// How long each step of a delivery may take, in seconds (`smtp_connect_timeout`).
    pub timeout_seconds: u32,
    /// The prefix of subjects, in brackets (`router_id`).
    pub router_id: String,
}
