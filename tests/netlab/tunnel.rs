//! Forwarding by tunnel with real sockets: real servers decapsulate, have the VIP and reply themselves.
//!
//! An upload's full-sized segments do not fit the tunnel, so uploads also show that the client learns the
//! path MTU. Each test has a cluster of its own. Needs root. Not here: UDP (`udp.rs`).

use xvs::{Method, Workers, traffic};

#[test]
fn downloads_and_uploads_arrive_whole_with_one_worker() {
    traffic::tcp_whole_both_ways(Method::Tunnel, Workers::One);
}

#[test]
fn downloads_and_uploads_arrive_whole_with_two_workers() {
    traffic::tcp_whole_both_ways(Method::Tunnel, Workers::Two);
}

#[test]
fn two_hundred_parallel_connections_are_shared_evenly_with_one_worker() {
    traffic::two_hundred_connections_at_once(Method::Tunnel, Workers::One);
}

#[test]
fn two_hundred_parallel_connections_are_shared_evenly_with_two_workers() {
    traffic::two_hundred_connections_at_once(Method::Tunnel, Workers::Two);
}

#[test]
fn downloads_and_uploads_arrive_whole_by_gre() {
    traffic::tcp_whole_both_ways(Method::Gre, Workers::Two);
}

#[test]
fn downloads_and_uploads_arrive_whole_by_gre_with_a_checksum() {
    traffic::tcp_whole_both_ways(Method::GreSummed, Workers::One);
}

#[test]
fn downloads_and_uploads_arrive_whole_by_gue() {
    traffic::tcp_whole_both_ways(Method::Gue, Workers::Two);
}

#[test]
fn downloads_and_uploads_arrive_whole_by_gue_with_a_checksum() {
    traffic::tcp_whole_both_ways(Method::GueSummed, Workers::One);
}
