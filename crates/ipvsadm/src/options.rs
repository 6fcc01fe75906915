//! Services and destinations as options of ipvsadm.

use xvs_model::destination::{DestinationOptions, Tunnel, TunnelChecksum};
use xvs_model::service::{Netmask, ServiceOptions};
use xvs_proto::{Family, Protocol};
use xvs_sched::{ForwardingMethod, ServiceKey};

use crate::listing::{Naming, netmask};
use crate::values::flag_names;

/// The option that names a service.
pub(crate) fn service_option(key: &ServiceKey, names: &Naming<'_>) -> String {
    match *key {
        ServiceKey::Address { protocol, endpoint } => {
            let option = match protocol {
                Protocol::UDP => "-u",
                Protocol::SCTP => "--sctp-service",
                _ => "-t",
            };
            format!("{option} {}", names.endpoint(endpoint, Some(protocol)))
        }
        // Signed, as ipvsadm saves it.
        ServiceKey::Mark { mark, family: Family::V4 } => format!("-f {}", mark as i32),
        ServiceKey::Mark { mark, family: Family::V6 } => format!("-f {} -6", mark as i32),
    }
}

/// What is said of a service, as far as `-S` says it.
pub(crate) fn service_rule(key: &ServiceKey, options: &ServiceOptions) -> String {
    let mut text = format!(" -s {}", options.scheduler);
    if let Some(seconds) = options.persistence_timeout_seconds {
        text += &format!(" -p {seconds}");
        if options.netmask != Netmask::host(key.family()) {
            text += &format!(" -M {}", netmask(options.netmask));
        }
    }
    if let Some(engine) = &options.persistence_engine {
        text += &format!(" --pe {engine}");
    }
    if options.one_packet {
        text += " -o";
    }
    if options.flags.0 != 0 {
        text += &format!(" -b {}", flag_names(options.flags, &options.scheduler));
    }
    text
}

/// What is said of a destination, as far as `-S` says it.
pub(crate) fn destination_rule(options: &DestinationOptions) -> String {
    let method = match options.method {
        ForwardingMethod::Nat => "-m",
        ForwardingMethod::Tunnel => "-i",
        ForwardingMethod::FullNat => "--fullnat",
        ForwardingMethod::DirectRouting | ForwardingMethod::Local => "-g",
    };
    let mut text = format!(" {method} -w {}", options.weight.0);
    if options.method == ForwardingMethod::Tunnel {
        let sums = |checksum| match checksum {
            TunnelChecksum::Without => "--tun-nocsum",
            TunnelChecksum::Full => "--tun-csum",
            TunnelChecksum::Remote => "--tun-remcsum",
        };
        text += &match options.tunnel {
            Tunnel::Ipip => " --tun-type ipip".to_owned(),
            Tunnel::Gue { port, checksum } => {
                format!(" --tun-type gue --tun-port {port} {}", sums(checksum))
            }
            Tunnel::Gre { checksum } => format!(" --tun-type gre {}", sums(checksum)),
        };
    }
    text
}

/// All that is said of a destination, thresholds too.
pub(crate) fn destination(options: &DestinationOptions) -> String {
    let mut text = destination_rule(options);
    for (option, threshold) in [("-x", options.upper_threshold), ("-y", options.lower_threshold)] {
        if threshold > 0 {
            text += &format!(" {option} {threshold}");
        }
    }
    text
}
