//! UDP with real sockets and each forwarding method: flows take turns, each keeps its real server.
//!
//! Each test has a cluster of its own. Needs root. Not here: TCP (`nat.rs` and its siblings).

use xvs::{Method, Workers, traffic};

#[test]
fn datagrams_by_nat_are_answered_from_the_vip_with_one_worker() {
    traffic::udp_both_ways(Method::Nat, Workers::One);
}

#[test]
fn datagrams_by_nat_are_answered_from_the_vip_with_two_workers() {
    traffic::udp_both_ways(Method::Nat, Workers::Two);
}

#[test]
fn datagrams_by_direct_routing_are_answered_from_the_vip_with_one_worker() {
    traffic::udp_both_ways(Method::DirectRouting, Workers::One);
}

#[test]
fn datagrams_by_direct_routing_are_answered_from_the_vip_with_two_workers() {
    traffic::udp_both_ways(Method::DirectRouting, Workers::Two);
}

#[test]
fn datagrams_by_tunnel_are_answered_from_the_vip_with_one_worker() {
    traffic::udp_both_ways(Method::Tunnel, Workers::One);
}

#[test]
fn datagrams_by_tunnel_are_answered_from_the_vip_with_two_workers() {
    traffic::udp_both_ways(Method::Tunnel, Workers::Two);
}
