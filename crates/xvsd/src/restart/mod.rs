//! State that outlives a process, and its transfer to the next process. Read in this order:
//!
//! 1. `pins.rs`: where XDP programs stay pinned, and hold packets of services while no xvsd runs.
//! 2. `kept_state.rs`: the connection table in memory that outlives the process, and its next owner.
//! 3. `kept_health.rs`: the results of health checks, in a file.
//! 4. `kept_hour.rs`: the counts of the last hour, in a file.
//! 5. `successor.rs`: a successor that `xvs reload` or a new xvsd starts beside the running one.
//! 6. `take_over.rs`: the successor's steps.
//! 7. `hand_over.rs`: the former process's steps, on its control thread.
//! 8. `handing_over.rs`: the hand-over that is under way, for other threads.
//! 9. `serve.rs`: the order of all these steps, at a start and at a take-over.
//!
//! Not here: the directory that one process owns at a time (`state_directory.rs` of `xvs-host`), the configuration that
//! a start begins with (`journal/` of `xvs-ctl`), when it is written (`control/saving.rs` there), numbers of real
//! servers and totals (`registry/kept.rs` there), the layout of the table in memory (`conn/adopt.rs` of the data
//! plane).

pub(crate) mod hand_over;
pub(crate) mod handing_over;
pub(crate) mod kept_health;
pub(crate) mod kept_hour;
pub(crate) mod kept_state;
pub(crate) mod pins;
mod serve;
pub mod successor;
pub mod take_over;
