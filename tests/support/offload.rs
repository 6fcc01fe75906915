//! The steering program as the kernel runs it on the frames of a lab, with offloaded flows.

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::Arc;

use xvs_cli::lab::Lab;
use xvs_ctl::in_memory::Program;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::offload::{Ends, Offload, Settings};
use xvs_dataplane::steering::{MapSizes, Steering, SteeringRules};

/// The interface on which the kernel runs programs for tests: loopback.
const LOOPBACK: u32 = 1;
/// The most connections at once.
pub const RECORDS: u32 = 64;

/// With this variable in the environment, tests of labs have a double whose flows are offloaded ([`crate::BothPaths`]).
const VARIABLE: &str = "XVS_OFFLOAD";

thread_local! {
    static FORWARDED: Cell<u64> = const { Cell::new(0) };
    static OFFLOAD: RefCell<Option<Arc<Offload>>> = const { RefCell::new(None) };
}

/// Whether labs of tests have a double whose flows are offloaded.
pub fn is_wanted() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// The packets that programs of this thread's labs have forwarded.
pub fn forwarded() -> u64 {
    FORWARDED.get()
}

/// The offload of this thread's last lab.
///
/// # Panics
/// If there is none.
pub fn last() -> Arc<Offload> {
    OFFLOAD.with_borrow(|last| last.clone().expect("a lab whose flows are offloaded"))
}

/// A lab whose flows are offloaded after this number of packets of a client. Needs root.
///
/// # Panics
/// If the kernel refuses the program.
pub fn offloading(after: u32) -> Lab {
    let mut lab = Lab::new();
    let steering =
        Steering::load_for_offloaded_runs(MapSizes::default()).expect("the kernel takes the program of root");
    let made = lab.director.offload(|table| {
        let settings = Settings { after, records: RECORDS, ingress: Some(LOOPBACK) };
        let offload = steering.offload(table.entries(), settings)?;
        offload.set_table(table);
        offload.set_on(true);
        OFFLOAD.set(Some(offload.clone()));
        let kernel = Kernel { steering, offload: offload.clone() };
        Ok::<(_, Box<dyn Program>), io::Error>((offload, Box::new(kernel)))
    });
    made.expect("the maps can be mapped");
    lab
}

struct Kernel {
    steering: Steering,
    offload: Arc<Offload>,
}

impl Program for Kernel {
    fn steer(&mut self, rules: &SteeringRules) {
        self.steering.update(rules).expect("the maps have room");
    }

    fn forward(&mut self, frame: &[u8], now: Millis) -> Option<(u32, Vec<u8>)> {
        // The kernel runs no frames that are shorter or longer.
        if !(14..=3500).contains(&frame.len()) {
            return None;
        }
        self.offload.set_clock(now);
        let before: Vec<_> = self.offload.sent().collect();
        let after = self.steering.test_run_offloaded(frame).expect("the program runs")?;
        let mut counted = self.offload.sent().zip(before).filter(|(now, before)| now.1 != before.1);
        let ((to, _), _) = counted.next().expect("what is forwarded is counted");
        assert_eq!(counted.next(), None, "at one record");
        FORWARDED.set(FORWARDED.get() + 1);
        Some((to, after))
    }

    fn end(&mut self, ends: &Ends) {
        self.offload.end(ends);
    }
}
