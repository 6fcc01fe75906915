//! `docs/first-hour.md`, played as it stands on machines that are made of this machine's files.
//!
//! `scripts/soak first-hour` plays it on bare ones. Needs root.

use xvs::first_hour::{SECTIONS, play};
use xvs::machine::Machine;

#[test]
fn the_cluster_of_the_first_hour_by_direct_routing_serves_by_the_commands_as_they_are_printed() {
    play(SECTIONS[0], Machine::new);
}

#[test]
fn the_two_directors_of_the_first_hour_serve_and_fail_over_by_the_commands_as_they_are_printed() {
    play(SECTIONS[1], Machine::new);
}
