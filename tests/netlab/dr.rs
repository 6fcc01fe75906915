//! Forwarding by direct routing with real sockets: real servers have the VIP and reply themselves.
//!
//! Each test has a cluster of its own. Needs root. Not here: UDP (`udp.rs`).

use xvs::{Method, Workers, traffic};

#[test]
fn downloads_and_uploads_arrive_whole_with_one_worker() {
    traffic::tcp_whole_both_ways(Method::DirectRouting, Workers::One);
}

#[test]
fn downloads_and_uploads_arrive_whole_with_two_workers() {
    traffic::tcp_whole_both_ways(Method::DirectRouting, Workers::Two);
}

#[test]
fn two_hundred_parallel_connections_are_shared_evenly_with_one_worker() {
    traffic::two_hundred_connections_at_once(Method::DirectRouting, Workers::One);
}

#[test]
fn two_hundred_parallel_connections_are_shared_evenly_with_two_workers() {
    traffic::two_hundred_connections_at_once(Method::DirectRouting, Workers::Two);
}

#[test]
fn ends_that_leave_checksums_to_their_veth_are_served() {
    traffic::checksums_are_completed(Method::DirectRouting);
}
