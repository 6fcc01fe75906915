//! Real servers that answer no client, and the likely cause.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use xvs_proto::Endpoint;
use xvs_sched::{ForwardingMethod, ServiceKey};

/// The number of connections in a row from which on a real server is reported.
pub const REPORTED: u32 = 3;

/// A real server whose last connections were not answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unanswered {
    /// The service.
    pub service: ServiceKey,
    /// The real server.
    pub endpoint: Endpoint,
    /// How packets reach it.
    pub method: ForwardingMethod,
    /// TCP connections whose clients repeated their SYN, since the last one that was established.
    pub connections: u32,
}

impl Unanswered {
    /// The warning: what is wrong, the likely cause, and the next step.
    pub fn warning(&self) -> String {
        let Self { service, endpoint, method, connections } = self;
        let server = endpoint.addr;
        let vip = match service {
            ServiceKey::Address { endpoint, .. } => endpoint.addr.to_string(),
            ServiceKey::Mark { .. } => "VIP".to_owned(),
        };
        let cause = likely_cause(server, *method, &vip);
        format!("{service}: {endpoint}: {connections} connections, none answered; {cause}")
    }
}

/// Why a real server with this method probably answers no connection to a virtual address, and the next step.
pub fn likely_cause(server: IpAddr, method: ForwardingMethod, vip: &str) -> String {
    match method {
        ForwardingMethod::Nat => format!(
            "its replies probably do not pass this director; on {server} see `ip route get CLIENT`, and make the director its gateway, or use FULLNAT"
        ),
        ForwardingMethod::FullNat => format!(
            "its firewall, or its route to the addresses of `xvs laddr list`, probably stops it; see both on {server}"
        ),
        ForwardingMethod::DirectRouting => {
            format!("it probably has not the virtual address; on {server}: `xvs realserver up --vip {vip}`")
        }
        ForwardingMethod::Tunnel => format!(
            "it probably has not the virtual address, or does not decapsulate; on {server}: `xvs realserver up --vip {vip} --method tunnel`"
        ),
        ForwardingMethod::Local => {
            "nothing on the director answers there; see `ss -ltn` and the firewall".to_owned()
        }
    }
}
