//! The helper: the only process of xvsd that executes programs, and does tasks that need more rights than xvsd has with
//! `user`.
//!
//! xvsd starts it before anything else (`process.rs`), so it keeps the rights that xvsd was started with when xvsd
//! gives up its rights. It takes the requests of `request.rs` and no others, over a socket that xvsd alone has. There
//! are three processes: xvsd; the keeper, which only starts the helper again when the helper ends; and the helper. A
//! program other than xvsd, such as `xvs check` or a test, carries out the same requests on a thread of its own, with
//! its own rights.
//!
//! Cost: two processes that sleep; a thread of the helper while a program runs. A program starts without a copy of
//! xvsd's page tables. Not here: the occasion for a program, and the meaning of its result.

pub mod client;
mod message;
pub mod process;
pub mod request;
mod script;
mod server;
pub mod task;

pub use script::{AccountError, account};
