//! The tables that former versions have left (`tests/kept`): taken over, or refused with a sentence, never misread.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use rustix::fs::{MemfdFlags, memfd_create};
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::{Boot, FormerTable, Repair, TableConfig, TableFiles};
use xvs_dataplane::shm::Memory;

const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/kept/0.2.0/");

fn unpacked(name: &str) -> File {
    let bytes = Command::new("gzip").args(["-dc", &format!("{KEPT}{name}.gz")]).output().unwrap().stdout;
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(&bytes, 0).unwrap();
    file
}

#[test]
fn the_table_of_0_2_0_is_taken_over_with_each_connection_that_it_has_listed() {
    let boot: String = fs::read_to_string(format!("{KEPT}boot_id")).unwrap();
    let digits: String = boot.chars().filter(char::is_ascii_hexdigit).collect();
    let boot = u128::from_str_radix(&digits, 16).unwrap();
    let files = TableFiles { connections: unpacked("connections"), extensions: unpacked("extensions") };
    let config = TableConfig { capacity: 1024, workers: 1, memory: Memory::OnDemand };
    let mut left = FormerTable::map(&files, config, Boot([boot as u64, (boot >> 64) as u64])).unwrap();
    let repair = left.repair(Millis(7_000_000), |number| number < 4, || {});
    assert_eq!(repair, Repair { discarded: 0, is_rebuilt: false });
    let mut found = Vec::new();
    let survey = left.survey(
        |connection| {
            let (client, dest) = (connection.client(), connection.dest());
            found.push(format!("{client} {} {dest}", connection.virtual_endpoint()));
        },
        || {},
    );
    let listing = fs::read_to_string(format!("{KEPT}listing")).unwrap();
    let mut listed: Vec<_> = listing
        .lines()
        .skip(2)
        .map(|line| line.split_whitespace().skip(3).collect::<Vec<_>>().join(" "))
        .collect();
    listed.sort_unstable();
    found.sort_unstable();
    assert_eq!((survey.live, found), (5, listed));
    assert_eq!(left.take_over(&survey).live(), 5);
}
