//! `xvs doctor --fleet`: whether the directors of a fleet choose the same real server for each connection.
//!
//! Routers spread flows over the directors, and move some of them when the fleet changes. A flow then continues if its
//! connection was synchronized, or if the other director makes the same choice. So the fields of each director's
//! `/status.json` on which a choice depends are compared with those of the first director that answers. Nothing is
//! changed.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::IpAddr;

use serde::Deserialize;
use xvs_ipvsadm::{fallback_command, scheduler_command};
use xvs_model::config::sync_daemon::SyncRole;
use xvs_model::foreign_text::ForeignText;
use xvs_model::report::status::{SyncStatus, SyncTable};

use crate::doctor::finding::Finding;

/// The fields of a director's `/status.json` that are compared.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Page {
    pub pages: usize,
    status: Status,
    sloppy_tcp: bool,
    local_addresses: Vec<IpAddr>,
    standby_addresses: Vec<IpAddr>,
    pub services: Vec<Service>,
}

#[derive(Debug, Clone, Deserialize)]
struct Status {
    version: ForeignText,
    sync: Vec<SyncStatus>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Service {
    service: ForeignText,
    rule: ForeignText,
    servers: Vec<Server>,
}

#[derive(Debug, Clone, Deserialize)]
struct Server {
    server: ForeignText,
    state: ForeignText,
    /// `None` if it is not in the service.
    method: Option<ForeignText>,
    weight: Option<u32>,
}

/// Why a director has no page, as a clause.
pub(super) type NoPage = Box<dyn Error + Send + Sync>;

/// A director as it was named, and its page, or why there is none.
pub(super) type Asked = (String, Result<Page, NoPage>);

/// A director as it was named, and its page.
type Answered<'a> = (&'a str, &'a Page);

/// Compares the directors.
pub(super) fn examine(directors: &[Asked]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut answered: Vec<Answered<'_>> = Vec::new();
    for (name, page) in directors {
        findings.push(match page {
            Ok(page) => {
                answered.push((name, page));
                Finding::of("director", name).ok(format!(
                    "xvsd {} with {} services",
                    page.status.version,
                    page.services.len()
                ))
            }
            Err(why) => Finding::of("director", name).fail(why),
        });
    }
    findings.extend(services(&answered));
    findings.extend(sloppy_tcp(&answered));
    findings.extend(local_addresses(&answered));
    findings.extend(synchronization(&answered));
    findings
}

/// The services of all directors.
fn services(directors: &[Answered<'_>]) -> Vec<Finding> {
    let mut all: BTreeMap<&ForeignText, Vec<(&str, &Service)>> = BTreeMap::new();
    for (name, page) in directors {
        for service in &page.services {
            all.entry(&service.service).or_default().push((name, service));
        }
    }
    let mut findings = Vec::new();
    for (key, there) in all {
        let before = findings.len();
        let (first, service) = there[0];
        for (name, _) in directors.iter().filter(|(name, _)| !there.iter().any(|(has, _)| has == name)) {
            findings.push(Finding::of(SERVICE, key).fail(format!(
                "{name} does not have it, {first} does; `xvs apply` the rules of {first} on {name}, but with \
                 the lines `laddr` of {name}"
            )));
        }
        for (name, other) in &there[1..] {
            findings.extend(compare(key, (first, service), (name, other)));
        }
        findings.extend(masqueraded(key, &there));
        if findings.len() == before {
            findings.push(Finding::of(SERVICE, key).ok("equal on all directors"));
        }
        findings.extend(scheduler(key, service));
    }
    findings
}

/// The differences between a service on two directors.
fn compare(key: &ForeignText, (first, a): (&str, &Service), (second, b): (&str, &Service)) -> Vec<Finding> {
    let subject = Finding::of(SERVICE, key);
    let mut findings = Vec::new();
    if a.rule != b.rule {
        findings.push(
            subject
                .fail(format!("`{}` on {second}, `{}` on {first}", b.rule, a.rule))
                .mend_on(second, format!("xvsadm -E {}", a.rule)),
        );
    }
    let mut here = a.members();
    let mut there = b.members();
    for (has, lacks, of, in_other) in [(first, second, &here, &there), (second, first, &there, &here)] {
        for server in of.iter().filter(|server| in_other.iter().all(|other| other.server != server.server)) {
            findings.push(Finding::of(SERVER, format!("{key} {}", server.server)).fail(format!(
                "{lacks} does not have it in the service, {has} does; give both the same rules, and with \
                 checks `inhibit_on_failure`, so that it stays in the service while it is down"
            )));
        }
    }
    here.retain(|server| there.iter().any(|other| other.server == server.server));
    there.retain(|server| here.iter().any(|other| other.server == server.server));
    for server in &here {
        let other = there.iter().find(|other| other.server == server.server).expect("it was retained above");
        let subject = Finding::of(SERVER, format!("{key} {}", server.server));
        if server.method != other.method {
            let [one, two] = [server, other].map(|server| server.method.clone().unwrap_or_default());
            findings.push(subject.fail(format!("by {two} on {second}, by {one} on {first}; use one method")));
        }
        if server.weight != other.weight {
            let [one, two] = [server, other].map(|server| server.weight.unwrap_or_default());
            findings.push(subject.fail(format!(
                "weight {two} ({}) on {second}, {one} ({}) on {first}; if checks disagree, see `xvs health` \
                 on both, else give it one weight",
                other.state, server.state
            )));
        }
    }
    let [one, two] = [&here, &there]
        .map(|servers| servers.iter().map(|server| server.server.to_string()).collect::<Vec<_>>().join(", "));
    if one != two {
        findings.push(subject.fail(format!(
            "the real servers have another order: {two} on {second}, {one} on {first}; delete them on \
             {second} and add them again, from the last to the first of the list of {first}"
        )));
    }
    findings
}

/// A service whose replies one gateway alone can get.
fn masqueraded(key: &ForeignText, there: &[(&str, &Service)]) -> Option<Finding> {
    let (name, server) = there.iter().find_map(|(name, service)| {
        Some((name, service.members().into_iter().find(|server| server.has_method("Masq"))?))
    })?;
    Some(Finding::of(SERVICE, key).fail(format!(
        "{} is served by NAT on {name}: this real server sends all replies to one gateway, whichever \
         director has the flow; use FULLNAT, direct routing or a tunnel",
        server.server
    )))
}

/// A scheduler that does not choose by what is in the packet, or leaves real servers that cannot be used their share.
fn scheduler(key: &ForeignText, service: &Service) -> Option<Finding> {
    // Escaped, because the operator copies it.
    let rule = service.rule.to_string();
    let subject = Finding::of(SERVICE, key);
    let finding = match rule.split(' ').skip_while(|word| *word != "-s").nth(1).unwrap_or_default() {
        "dh" => return None,
        scheduler @ ("mh" | "sh") => subject
            .warn(format!(
                "scheduled by {scheduler} without `{scheduler}-fallback`: while a real server is down or has \
                 weight 0, its share of new connections is refused"
            ))
            .mend_on(EACH, fallback_command(&rule)?),
        scheduler => subject
            .warn(format!(
                "scheduled by {scheduler}, which is no hash: a connection whose flow moves before it was \
                 synchronized gets another real server, and ends"
            ))
            .mend_on(EACH, scheduler_command(&rule, "-s mh -b mh-fallback,mh-port")),
    };
    Some(finding)
}

/// Whether a director that does not know a connection takes it over midway.
fn sloppy_tcp(directors: &[Answered<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, _) in directors.iter().filter(|(_, page)| !page.sloppy_tcp) {
        findings.push(
            Finding::of(SLOPPY, name)
                .warn("off: a connection whose flow moves to it before it was synchronized ends")
                .mend_on(name, "xvs set sloppy_tcp 1"),
        );
    }
    if findings.is_empty() && !directors.is_empty() {
        findings.push(Finding::of(SLOPPY, "").ok("on, on all directors"));
    }
    findings
}

/// The local addresses of FULLNAT, if there are such real servers.
fn local_addresses(directors: &[Answered<'_>]) -> Vec<Finding> {
    if !directors.iter().any(|(_, page)| page.services.iter().any(Service::is_fullnat)) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (at, (name, page)) in directors.iter().enumerate() {
        if page.local_addresses.is_empty() {
            findings.push(
                Finding::of(LOCAL, name)
                    .fail("it has no local address of its own, so FULLNAT refuses new connections")
                    .mend_on(name, "xvs laddr add ADDRESS"),
            );
        }
        for addr in &page.local_addresses {
            let subject = Finding::of(LOCAL, addr);
            for (other, page) in &directors[at + 1..] {
                if page.local_addresses.contains(addr) {
                    findings.push(subject.fail(format!(
                        "new connections use it on {name} and on {other}, so replies go astray; give each \
                         director an address of its own"
                    )));
                }
            }
            for (other, page) in directors.iter().filter(|(other, _)| other != name) {
                if !page.local_addresses.contains(addr) && !page.standby_addresses.contains(addr) {
                    findings.push(
                        subject
                            .warn(format!(
                                "connections from it end with {name}: {other} does not take them over"
                            ))
                            .mend_on(other, format!("xvs laddr add {addr} --standby")),
                    );
                }
            }
        }
    }
    if findings.is_empty() {
        findings.push(
            Finding::of(LOCAL, "").ok("each director has one of its own, and those of the others as standby"),
        );
    }
    findings
}

/// Whether each director knows the connections of the others.
fn synchronization(directors: &[Answered<'_>]) -> Vec<Finding> {
    let masters: Vec<_> = directors.iter().map(|(_, page)| page.daemon(SyncRole::Master)).collect();
    let mut findings = Vec::new();
    for ((name, page), master) in directors.iter().zip(&masters) {
        let sync = Finding::of(SYNC, name);
        let Some((master, backup)) = master.zip(page.daemon(SyncRole::Backup)) else {
            findings.push(sync.seen("docs/failover.md, Connections").warn(
                "it does not run both daemons, so a connection ends when its flow moves and another real \
                     server is chosen",
            ));
            continue;
        };
        let own = backup.sync_id;
        if let Some(other) = masters.iter().flatten().find(|other| own != 0 && other.sync_id != own) {
            findings.push(sync.fail(format!(
                "its backup daemon accepts sync id {own}, its master sends {}, and another director sends \
                 {}; start all daemons with one `--syncid`",
                master.sync_id, other.sync_id
            )));
        }
        let (whole, behind): (Vec<_>, Vec<_>) =
            backup.peers.iter().partition(|peer| peer.table == SyncTable::Whole);
        let others = directors.len() - 1;
        if whole.len() < others || !behind.is_empty() {
            let mut found = format!("in sync with {} of {others} other directors", whole.len());
            for peer in behind {
                let why = ForeignText::from(peer.why.as_deref().unwrap_or("its table is being fetched"));
                found += &format!("; not with {}: {why}", peer.address);
            }
            findings.push(sync.warn(found + "; see `xvs status` there"));
        }
    }
    if findings.is_empty() && !directors.is_empty() {
        findings.push(Finding::of(SYNC, "").ok("all directors send and receive connections"));
    }
    findings
}

impl Page {
    fn daemon(&self, role: SyncRole) -> Option<&SyncStatus> {
        self.status.sync.iter().find(|daemon| daemon.role == role)
    }
}

impl Server {
    fn has_method(&self, name: &str) -> bool {
        self.method.as_ref().is_some_and(|method| method.raw() == name)
    }
}

impl Service {
    /// The real servers that are in the service, in its order.
    fn members(&self) -> Vec<&Server> {
        self.servers.iter().filter(|server| server.method.is_some()).collect()
    }

    fn is_fullnat(&self) -> bool {
        self.servers.iter().any(|server| server.has_method("FullNat"))
    }
}

const SERVICE: &str = "service";
const SERVER: &str = "real server";
const EACH: &str = "each director";
const SLOPPY: &str = "sloppy_tcp";
const LOCAL: &str = "local address";
const SYNC: &str = "sync";

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::doctor::finding::Level;

    /// The beginning of the one finding, and the change of the second director that leads to it.
    type Case = (&'static str, fn(&mut Value));

    /// A director of the fleet with this number, as it should be.
    fn page(number: u8) -> Value {
        let daemon = |role: &str, peers: Value| {
            json!({ "role": role, "interface": "lan", "sync_id": 5, "messages": 0, "failed_messages": 0,
                "connections": 0, "lost_connections": 0, "peers": peers })
        };
        let peer = json!([{ "address": "192.0.2.9", "silent_seconds": 0, "table": "whole", "connections": 0,
            "of": 0, "why": null }]);
        let server = |last: u8| json!({ "server": format!("192.0.2.{last}:80"), "state": "up", "method": "FullNat", "weight": 1 });
        json!({
            "pages": 1,
            "status": { "version": "0.2.0", "sync": [daemon("master", json!([])), daemon("backup", peer)] },
            "sloppy_tcp": true,
            "local_addresses": [format!("203.0.113.{number}")],
            "standby_addresses": [format!("203.0.113.{}", 3 - number)],
            "services": [{
                "service": "TCP 198.51.100.1:80", "rule": "-t 198.51.100.1:80 -s mh -b mh-fallback,mh-port",
                "servers": [server(12), server(11)],
            }],
        })
    }

    /// The findings that are not in order, as text, after a change of the second of two directors.
    fn faults(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let (first, mut second) = (page(1), page(2));
        change(&mut second);
        let parsed = |page| Ok(serde_json::from_value(page).unwrap());
        let findings = examine(&[("a:1".to_owned(), parsed(first)), ("b:1".to_owned(), parsed(second))]);
        let bad = findings.into_iter().filter(|finding| finding.level != Level::Ok);
        bad.map(|finding| finding.to_string().split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn equal_directors_with_their_own_local_addresses_have_no_fault() {
        assert_eq!(faults(|_| ()), [""; 0]);
    }

    #[test]
    fn each_difference_names_director_service_and_real_server_and_what_to_do() {
        let service = |page: &mut Value, change: fn(&mut Value)| change(&mut page["services"][0]);
        let cases: [Case; 5] = [
            (
                "fail service TCP 198.51.100.1:80: `-t 198.51.100.1:80 -s mh` on b:1, `-t 198.51.100.1:80 -s mh -b \
                 mh-fallback,mh-port` on a:1 fix on b:1: xvsadm -E -t 198.51.100.1:80 -s mh -b mh-fallback,mh-port",
                |service| service["rule"] = json!("-t 198.51.100.1:80 -s mh"),
            ),
            (
                "fail real server TCP 198.51.100.1:80 192.0.2.11:80: b:1 does not have it in the service, a:1 does;",
                // The checks have removed it.
                |service| service["servers"][1]["method"] = Value::Null,
            ),
            (
                "fail real server TCP 198.51.100.1:80 192.0.2.11:80: by Tunnel on b:1, by FullNat on a:1; use one",
                |service| service["servers"][1]["method"] = json!("Tunnel"),
            ),
            (
                "fail real server TCP 198.51.100.1:80 192.0.2.12:80: weight 0 (down) on b:1, 1 (up) on a:1; if checks",
                |service| {
                    service["servers"][0]["weight"] = json!(0);
                    service["servers"][0]["state"] = json!("down");
                },
            ),
            (
                "fail service TCP 198.51.100.1:80: the real servers have another order: 192.0.2.11:80, 192.0.2.12:80 \
                 on b:1, 192.0.2.12:80, 192.0.2.11:80 on a:1;",
                |service| service["servers"].as_array_mut().unwrap().reverse(),
            ),
        ];
        for (start, change) in cases {
            let found = faults(|page| service(page, change));
            assert!(found.len() == 1 && found[0].starts_with(start), "{start}: {found:#?}");
        }
        let found = faults(|page| page["services"] = json!([]));
        let missing = "fail service TCP 198.51.100.1:80: b:1 does not have it, a:1 does; `xvs apply` the rules of a:1 \
                       on b:1, but with the lines `laddr` of b:1";
        assert_eq!(found, [missing]);
    }

    #[test]
    fn nat_is_refused_and_a_scheduler_that_is_no_hash_is_a_warning() {
        let found = faults(|page| {
            let service = json!({ "service": "UDP 198.51.100.1:53", "rule": "-u 198.51.100.1:53 -s wlc -p 300",
                "servers": [{ "server": "192.0.2.11:53", "state": "up", "method": "Masq", "weight": 1 }] });
            page["services"].as_array_mut().unwrap().push(service);
        });
        let starts = [
            "fail service UDP 198.51.100.1:53: a:1 does not have it, b:1 does",
            "fail service UDP 198.51.100.1:53: 192.0.2.11:53 is served by NAT on b:1: this real server sends",
            "warn service UDP 198.51.100.1:53: scheduled by wlc, which is no hash",
        ];
        assert!(
            found.len() == 3 && found.iter().zip(starts).all(|(text, start)| text.starts_with(start)),
            "{found:#?}"
        );
        assert!(found[2].ends_with(
            "fix on each director: xvsadm -E -u 198.51.100.1:53 -s mh -b mh-fallback,mh-port -p 300"
        ));
    }

    #[test]
    fn a_hash_without_fallback_is_a_warning_and_its_command_keeps_all_other_options() {
        for (rule, command) in [
            ("-t [2001:db8::1]:80 -s mh", "xvsadm -E -t [2001:db8::1]:80 -s mh -b mh-fallback"),
            (
                "-f 7 -s sh -p 300 -b sh-port --syn-proxy on",
                "xvsadm -E -f 7 -s sh -b sh-fallback,sh-port -p 300 --syn-proxy on",
            ),
        ] {
            let service = Service { service: "".into(), rule: rule.into(), servers: Vec::new() };
            let finding = scheduler(&service.service, &service).expect("a warning");
            assert!(finding.found.contains("without `"), "{finding:?}");
            assert_eq!(finding.mend.map(|mend| mend.command).as_deref(), Some(command));
        }
    }

    #[test]
    fn settings_local_addresses_and_daemons_that_break_a_fleet_are_named_with_their_director() {
        let cases: [Case; 8] = [
            ("warn sloppy_tcp b:1: off: a connection", |page| page["sloppy_tcp"] = json!(false)),
            (
                "warn local address 203.0.113.1: connections from it end with a:1: b:1 does not take them over fix on \
              b:1: xvs laddr add 203.0.113.1 --standby",
                |page| page["standby_addresses"] = json!([]),
            ),
            ("fail local address 203.0.113.1: new connections use it on a:1 and on b:1", |page| {
                page["local_addresses"] = json!(["203.0.113.1"]);
            }),
            ("fail local address b:1: it has no local address of its own", |page| {
                page["local_addresses"] = json!([]);
            }),
            ("warn sync b:1: it does not run both daemons", |page| {
                page["status"]["sync"].as_array_mut().unwrap().pop();
            }),
            ("fail sync b:1: its backup daemon accepts sync id 6, its master sends 5", |page| {
                page["status"]["sync"][1]["sync_id"] = json!(6);
            }),
            ("warn sync b:1: in sync with 0 of 1 other directors; see `xvs status` there", |page| {
                page["status"]["sync"][1]["peers"] = json!([]);
            }),
            (
                "warn sync b:1: in sync with 0 of 1 other directors; not with 192.0.2.9: another key; see",
                |page| {
                    let peer = &mut page["status"]["sync"][1]["peers"][0];
                    (peer["table"], peer["why"]) = (json!("none"), json!("another key"));
                },
            ),
        ];
        for (start, change) in cases {
            let found = faults(change);
            assert!(found.len() == 1 && found[0].starts_with(start), "{start}: {found:#?}");
        }
    }

    #[test]
    fn a_director_that_does_not_answer_is_named_and_the_others_are_compared() {
        let page = serde_json::from_value(page(1)).unwrap();
        let findings =
            examine(&[("a:1".to_owned(), Err("the URL has no host".into())), ("b:1".to_owned(), Ok(page))]);
        assert_eq!(findings[0], Finding::of("director", "a:1").fail("the URL has no host"));
        assert!(findings[1..].iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
    }
}
