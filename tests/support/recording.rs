//! The network, mark rules, settings and synchronization messages of a recording of the kernel's IPVS, as requests of
//! the lab.
//!
//! The network is made before a recording is replayed. Not here: scripts of setup steps (`setup`), and other frames and
//! commands, which each test passes to the lab itself.

use std::net::{IpAddr, SocketAddr};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use serde_json::{Value, json};

use crate::frames::{hex, unhex};

/// The requests that build a recording's `topology` in a lab: links, neighbours, the clients' gateway. The recordings
/// were made with the kernel's limit of ICMP errors off.
///
/// # Panics
/// If it does not have the shape of recordings.
pub fn network(topology: &Value) -> Vec<Value> {
    let mut requests = Vec::new();
    let vips = strings(&topology["vips"]);
    for (name, link) in entries(&topology["director"]) {
        let mut addresses = strings(&link["addr"]);
        if name == "cl0" {
            addresses
                .extend(vips.iter().map(|vip| format!("{vip}/{}", if vip.contains(':') { 128 } else { 32 })));
        }
        let mtu = &topology["mtu"][name];
        requests.push(json!({ "link": name, "mac": link["mac"], "addresses": addresses, "mtu": mtu }));
    }
    for (_, host) in entries(&topology["hosts"]) {
        for addr in strings(&host["addr"]) {
            requests.push(json!({ "neighbor": addr, "mac": host["mac"], "link": host["dev"] }));
        }
    }
    let gateway = &topology["default_gateway"];
    for addr in strings(&gateway["addr"]) {
        requests.push(json!({ "neighbor": addr, "mac": gateway["mac"], "link": gateway["dev"] }));
        let route = if addr.contains(':') { "::/0" } else { "default" };
        requests.push(json!({ "route": route, "via": addr, "link": gateway["dev"] }));
    }
    requests.push(json!({ "set": { "icmp_msgs_per_sec": 0 } }));
    requests
}

/// The request that adds the mark rule of a step.
pub fn mark(step: &Value) -> Value {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut words = vec!["mark".to_owned(), "add".to_owned(), "-d".to_owned(), text(&step["dst"])];
    if !step["proto"].is_null() {
        words.extend(["-p".to_owned(), text(&step["proto"])]);
    }
    let ports: Vec<_> = match &step["dport"] {
        Value::Null => Vec::new(),
        Value::Array(ports) => ports.iter().map(text).collect(),
        port => vec![text(port)],
    };
    if !ports.is_empty() {
        words.extend(["--dports".to_owned(), ports.join(",")]);
    }
    words.extend(["--set-mark".to_owned(), text(&step["mark"])]);
    json!({ "xvs": words })
}

/// The request that sets a kernel setting by its name.
///
/// # Errors
/// If it is not a setting of IPVS, because the lab has no others.
pub fn setting(name: &str, value: &Value) -> Result<Value, String> {
    let key = name.strip_prefix("net.ipv4.vs.").ok_or_else(|| format!("the lab has no setting {name}"))?;
    Ok(json!({ "set": { key: value } }))
}

/// The group and port of a frame that holds a synchronization message of another director, which is UDP from the `peer`
/// to a multicast group, and the request for it. `None` for any other frame.
pub fn sync_message(step: &Value) -> Option<(SocketAddr, Value)> {
    if step["from"] != "peer" {
        return None;
    }
    let frame = unhex(step["in"].as_str()?);
    let packet = SlicedPacket::from_ethernet(&frame).ok()?;
    let group: IpAddr = match packet.net? {
        NetSlice::Ipv4(ip) => ip.header().destination_addr().into(),
        NetSlice::Ipv6(ip) => ip.header().destination_addr().into(),
        NetSlice::Arp(_) => return None,
    };
    match packet.transport? {
        TransportSlice::Udp(udp) if group.is_multicast() => {
            let request = json!({ "sync": hex(udp.payload()), "link": step["port"] });
            Some((SocketAddr::new(group, udp.destination_port()), request))
        }
        _ => None,
    }
}

/// The texts of a list; none if there is no list.
///
/// # Panics
/// If an element is not a text.
pub fn strings(value: &Value) -> Vec<String> {
    let texts = value.as_array().map(Vec::as_slice).unwrap_or_default();
    texts.iter().map(|text| text.as_str().expect("a text").to_owned()).collect()
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_udp_from_the_peer_to_a_multicast_group_is_a_synchronization_message() {
        let udp = |from: &str, dest: [u8; 4]| {
            let mut frame = Vec::new();
            let packet = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 3, 0, 2], dest, 1);
            packet.udp(40_000, 8848).write(&mut frame, &[0xab, 0xcd]).expect("in memory");
            json!({ "from": from, "port": "sy0", "in": hex(&frame) })
        };
        let group = SocketAddr::from(([224, 0, 0, 81], 8848));
        let message = json!({ "sync": "abcd", "link": "sy0" });
        assert_eq!(sync_message(&udp("peer", [224, 0, 0, 81])), Some((group, message)));
        assert_eq!(sync_message(&udp("peer", [10, 3, 0, 1])), None);
        assert_eq!(sync_message(&udp("client", [224, 0, 0, 81])), None);
    }
}
