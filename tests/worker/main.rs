//! The data plane's own worker over the port of the benches.

// Shared with the benches; the tests use a part.
#[allow(dead_code)]
#[path = "../../benches/rig/mod.rs"]
mod rig;

mod allocation;
mod load;
#[cfg(target_arch = "x86_64")]
mod shared_lines;
