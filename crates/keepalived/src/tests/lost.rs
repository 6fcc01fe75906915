//! Services that are lost because of faults in a file.

use xvs_health::prepare::Prepared;

use super::configuration;

#[test]
fn a_service_that_a_fault_would_end_is_told_from_one_that_was_removed() {
    let service = |head: &str, server: &str| {
        format!("virtual_server {head} {{\nprotocol TCP\nreal_server {server} {{\n}}\n}}\n")
    };
    let (a, b) = (service("10.0.0.1 80", "10.1.0.1 80"), service("10.0.0.2 80", "10.1.0.1 80"));
    let group = |lines: &str| {
        let server = service("group G", "10.1.0.1 80");
        format!("virtual_server_group G {{\n10.0.0.1 80\n{lines}\n}}\n{server}")
    };
    let in_force = |text: &str| {
        let servers = configuration(text).virtual_servers;
        servers.iter().flat_map(|one| &one.services).map(|(key, _)| *key).collect::<Vec<_>>()
    };
    let lost = |before: &str, after: &str| {
        let read = match Prepared::of(configuration(after)) {
            Ok(prepared) => prepared.configuration,
            Err(refused) => panic!("{:?}", refused.faults),
        };
        let (services, causes) = read.lost(&in_force(before));
        (services.len(), causes.iter().map(|fault| fault.place.line).collect::<Vec<_>>())
    };
    let both = format!("{a}{b}");
    for (what, before, after, want) in [
        ("nothing has changed", both.clone(), both.clone(), (0, vec![])),
        ("one was removed", both.clone(), b.clone(), (0, vec![])),
        (
            "its address",
            both.clone(),
            format!("{b}{}", service("10.0.0.300 80", "10.1.0.1 80")),
            (1, vec![6]),
        ),
        ("its port", both.clone(), format!("{b}{}", service("10.0.0.1 http", "10.1.0.1 80")), (1, vec![6])),
        ("its only server", both.clone(), format!("{b}{}", service("10.0.0.1 80", "rs1 80")), (1, vec![6])),
        (
            "a server of another one",
            b.clone(),
            format!("{b}{}", service("10.0.0.1 80", "rs1 80")),
            (0, vec![]),
        ),
        (
            "its keyword",
            both.clone(),
            format!("{b}{}", a.replacen("virtual_server", "virtual", 1)),
            (1, vec![6]),
        ),
        ("its include", both.clone(), format!("{b}include a.conf\n"), (1, vec![6])),
        ("an empty directory", both, format!("{b}include none.d/*.conf\n"), (0, vec![])),
        ("an address of its group", group("10.0.0.2 80"), group("10.0.0.2.1 80"), (1, vec![3])),
        ("another address of its group", group(""), group("10.0.0.2.1 80"), (0, vec![])),
        (
            "a family",
            group("fd00::1 80").replace("10.1.0.1 80 {", "10.1.0.1 80 {\nlvs_method TUN"),
            group("fd00::1 80"),
            (1, vec![5]),
        ),
    ] {
        assert_eq!(lost(&before, &after), want, "{what}");
    }
}
