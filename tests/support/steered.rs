//! The XDP program with the steering rules of a lab's director.
//!
//! For tests of where a frame goes, to the director or to the kernel. Needs the right to load a BPF program, and no
//! interface.

use xvs_cli::lab::Lab;
use xvs_dataplane::steering::{Steering, SteeringRules, Verdict};
use xvs_dataplane::verdict::DropReason;

/// The loaded program.
pub struct Steered {
    program: Steering,
    rules_loaded: SteeringRules,
}

impl Steered {
    /// Loads the program.
    ///
    /// # Panics
    /// Without the right to.
    #[expect(clippy::new_without_default, reason = "loading a program is no default")]
    pub fn new() -> Self {
        let program =
            Steering::load_for_test_runs().expect("CAP_BPF and CAP_NET_ADMIN: run the tests as root");
        Self { program, rules_loaded: SteeringRules::default() }
    }

    /// The program's verdict on a frame, with the lab's current rules.
    ///
    /// # Panics
    /// If the kernel refuses the rules or the frame.
    pub fn verdict(&mut self, lab: &mut Lab, frame: &[u8]) -> Verdict {
        self.verdict_by(lab.director.steering_rules(), frame)
    }

    /// The program's verdict on a frame, with these rules.
    ///
    /// # Panics
    /// As for [`Self::verdict`].
    pub fn verdict_by(&mut self, rules: &SteeringRules, frame: &[u8]) -> Verdict {
        if self.rules_loaded != *rules {
            self.program.update(rules).expect("the maps have room");
            self.rules_loaded.clone_from(rules);
        }
        self.program.test_run(frame).expect("the kernel runs the program")
    }
}

/// Whether a drop reason is that of a malformed frame, which the kernel drops as well.
pub fn unreadable(reason: &str) -> bool {
    DropReason::all().any(|known| matches!(known, DropReason::Malformed(_)) && known.name() == reason)
}
