//! The helper: the only process of xvsd that executes programs, and that performs tasks which need more rights than
//! xvsd has with `user`.
//!
//! xvsd starts it before anything else (`process.rs`), so it keeps the rights with which xvsd was started when xvsd
//! gives up its rights. It accepts only the requests in `request.rs`, over a socket that only xvsd has. There are three
//! processes: xvsd; the keeper, which only starts the helper again when the helper ends; and the helper. A program
//! other than xvsd, such as `xvs check` or a test, carries out the same requests on a separate thread, with its own
//! rights.
//!
//! Cost: two processes that sleep; a thread of the helper while a program runs. A program starts without a copy of
//! xvsd's page tables.

pub mod client;
mod message;
pub mod process;
pub mod request;
mod script;
mod server;
pub mod task;

pub use script::{AccountError, account};
