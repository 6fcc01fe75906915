//! Safe wrappers for libbpf calls.
//!
//! For set-up and control only. If the kernel's verifier refuses a program, libbpf prints the reason to stderr.

mod call;
mod hook;
mod info;
mod key;
mod link;
mod object;
mod sets;
mod words;

pub(super) use self::call::check;
pub use self::call::repeated;
pub use self::hook::{
    AttachTc, DetachTc, Direction, attach_tc, attach_xdp, attached_tc, detach, follow_tracepoint, prepare_tc,
    replace_xdp, set_xdp,
};
pub use self::info::{KernelMap, ProgramInfo, XdpState, program_info, query_xdp};
pub use self::key::Key;
pub use self::link::{LinkInfo, open_link, pin_link};
pub use self::object::{Map, Object, ObjectFile, run_live, test_run, test_run_repeated};
pub use self::sets::{KeySet, MakeKeySet, Sets};
pub use self::words::{Rows, Words};
