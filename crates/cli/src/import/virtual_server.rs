//! A virtual server in ldirectord.cf: its first line, its settings followed by the global ones, and names.
//!
//! Pure, except for look-ups of names. Source: the manual ldirectord(8) 4.12.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use xvs_ipvsadm::Resolver;
use xvs_proto::{Endpoint, Family, Protocol};
use xvs_sched::ServiceKey;

use crate::import::lines::{Section, Setting};
use crate::import::printer::Page;
use crate::import::values::HostAndPort;

/// A virtual server whose first line was read.
pub(super) struct VirtualServer<'a> {
    pub(super) section: &'a Section,
    globals: &'a [Setting],
    names: &'a dyn Resolver,
    pub(super) key: ServiceKey,
    /// The protocol; TCP for a firewall mark.
    pub(super) protocol: Protocol,
}

impl<'a> VirtualServer<'a> {
    pub(super) fn read(
        section: &'a Section,
        globals: &'a [Setting],
        names: &'a dyn Resolver,
    ) -> Result<Self, String> {
        let family = if section.head.key == "virtual6" { Family::V6 } else { Family::V4 };
        let value = section.head.value.as_str();
        let protocol = last(&section.settings, "protocol").map(|setting| setting.value.as_str());
        let mut server = Self {
            section,
            globals,
            names,
            key: ServiceKey::Mark { mark: 0, family },
            protocol: if protocol == Some("udp") { Protocol::UDP } else { Protocol::TCP },
        };
        if value.bytes().all(|byte| byte.is_ascii_digit()) {
            let mark = value
                .parse()
                .ok()
                .filter(|mark| *mark != 0)
                .ok_or("a firewall mark is a number from 1 to 4294967295; correct it")?;
            if protocol.is_some_and(|protocol| protocol != "fwm") {
                return Err("a firewall mark has `protocol = fwm`; correct it".to_owned());
            }
            server.key = ServiceKey::Mark { mark, family };
            return Ok(server);
        }
        let written = HostAndPort::of(value);
        let addr = server.address(written.host)?;
        let port = server.port(written.port.ok_or("it names no port; write ADDRESS:PORT")?)?;
        match protocol {
            None if port == 53 => server.protocol = Protocol::UDP,
            None | Some("tcp" | "udp") => {}
            Some(_) => {
                return Err(
                    "a virtual server with an address has `protocol = tcp` or `udp`; correct it".to_owned()
                );
            }
        }
        server.key = ServiceKey::Address { protocol: server.protocol, endpoint: Endpoint::new(addr, port) };
        Ok(server)
    }

    /// The port; 0 for a firewall mark.
    pub(super) fn virtual_port(&self) -> u16 {
        match self.key {
            ServiceKey::Address { endpoint, .. } => endpoint.port,
            ServiceKey::Mark { .. } => 0,
        }
    }

    /// A setting of the virtual server itself.
    pub(super) fn own(&self, key: &str) -> Option<&'a Setting> {
        last(&self.section.settings, key)
    }

    /// A setting of the virtual server, otherwise the global one.
    pub(super) fn setting(&self, key: &str) -> Option<&'a Setting> {
        self.own(key).or_else(|| last(self.globals, key))
    }

    /// The number in a setting.
    pub(super) fn number(
        &self,
        setting: Option<&Setting>,
        range: RangeInclusive<u32>,
        page: &mut Page,
    ) -> Option<u32> {
        let Setting { line, key, value } = setting?;
        let number = value.parse().ok().filter(|number| range.contains(number));
        page.accept(
            *line,
            number.ok_or_else(|| {
                format!("`{key}` is a number from {} to {}; correct it", range.start(), range.end())
            }),
        )
    }

    /// Whether a setting is `yes`; `None` if it is neither `yes` nor `no`.
    pub(super) fn switch(&self, key: &str, page: &mut Page) -> Option<bool> {
        let setting = self.setting(key)?;
        let is_on = match setting.value.as_str() {
            "yes" => Ok(true),
            "no" => Ok(false),
            _ => Err(format!("`{key}` is yes or no; correct it")),
        };
        page.accept(setting.line, is_on)
    }

    /// Seconds from the end of one round of checks to the next.
    pub(super) fn interval(&self, page: &mut Page) -> u32 {
        let mut setting = last(self.globals, "checkinterval");
        if let Some(own) = self.own("checkinterval") {
            if last(self.globals, "fork").is_some_and(|fork| fork.value == "yes") {
                setting = Some(own);
            } else {
                page.leave_out(
                    own.line,
                    "without `fork = yes` ldirectord ignores it and uses the global one; remove one of them",
                );
            }
        }
        self.number(setting, 1..=u32::MAX, page).unwrap_or(10)
    }

    /// The endpoint of a server. Only NAT to another machine can change the port.
    pub(super) fn endpoint(&self, addr: IpAddr, written_port: u16, method: &str) -> Endpoint {
        let changes_port = method == "NAT" && !addr.is_loopback() && written_port != 0;
        Endpoint::new(addr, if changes_port { written_port } else { self.virtual_port() })
    }

    /// The address of a host, of the virtual server's family.
    pub(super) fn address(&self, host: &str) -> Result<IpAddr, String> {
        let is_v6 = self.key.family() == Family::V6;
        let is_name = host.contains(|char: char| char.is_ascii_alphabetic())
            && host.chars().all(|char| char.is_ascii_alphanumeric() || ".-_".contains(char));
        match host.parse::<IpAddr>() {
            Ok(addr) if !is_unicast(addr) => {
                Err(format!("xvs serves no address such as `{host}`; use a unicast address"))
            }
            Ok(addr) if addr.is_ipv6() == is_v6 => Ok(addr),
            Ok(_) if is_v6 => Err(format!("`{host}` is no IPv6 address; correct it")),
            Ok(_) => Err(format!("`{host}` is no IPv4 address; use `virtual6`, `real6` and `fallback6`")),
            Err(_) if is_v6 => Err(format!("`{host}` is no IPv6 address; write one in brackets")),
            Err(_) if is_name => self
                .names
                .address(host)
                .map(IpAddr::V4)
                .ok_or_else(|| format!("this machine finds no address of `{host}`; write the address")),
            Err(_) => Err(format!("`{host}` is no address; correct it")),
        }
    }

    /// A port by its number or name.
    pub(super) fn port(&self, text: &str) -> Result<u16, String> {
        let port = match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse().ok().filter(|port| *port != 0),
            false => self.names.port(text, self.protocol),
        };
        port.ok_or_else(|| format!("`{text}` is no port; write a number from 1 to 65535"))
    }
}

/// Whether xvs accepts this address of a destination; with IPv6, a link-local address would need an interface.
fn is_unicast(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.octets()[0] != 0 && !addr.is_broadcast() && !addr.is_multicast(),
        IpAddr::V6(addr) => {
            let is_special = addr.is_unspecified() || addr.is_multicast() || addr.is_unicast_link_local();
            !is_special && addr.to_ipv4_mapped().is_none()
        }
    }
}

/// The last setting with this key, which takes effect.
pub(super) fn last<'a>(settings: &'a [Setting], key: &str) -> Option<&'a Setting> {
    settings.iter().rfind(|setting| setting.key == key)
}
