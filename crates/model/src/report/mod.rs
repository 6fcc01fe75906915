//! Reports of a running director, which programs show.

pub mod capture;
pub mod connection;
pub mod daemon_facts;
pub mod event;
pub mod explain;
pub mod fleet;
pub mod health;
pub mod history;
pub mod listing;
pub mod page;
pub mod response;
pub mod setting;
pub mod status;
pub mod traffic;
pub mod unanswered;
pub mod warning;
