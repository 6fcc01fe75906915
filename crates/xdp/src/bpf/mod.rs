//! libbpf, as far as it is used here, behind safe calls.
//!
//! Set-up and control only. libbpf itself reports on stderr why the kernel's verifier refused a program.

mod call;
mod hook;
mod info;
mod object;

pub use self::hook::{Direction, attach_tc, attach_xdp, detach, prepare_tc, set_xdp};
pub use self::info::{KernelMap, ProgramInfo, XdpState, program_info, query_xdp};
pub use self::object::{Map, Object, test_run};
