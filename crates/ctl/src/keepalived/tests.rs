//! Whole files: what each comes to before any check was made, and how much is wrong with it.
//!
//! Each was given to `keepalived -t` 2.2.7 too: what that takes, leaves out or complains of is so here, but for what
//! docs/limits.md names. Lines are those of `ipvsadm -Sn`.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use xvs_sched::ForwardingMethod;

use super::checks::{Check, Pattern, Probe, Udp};
use super::values::Script;
use super::{Configuration, read};
use crate::adm::saved;
use crate::message::Command;
use crate::state::Timeouts;

/// A file that is read on the machine lb1.
fn configuration(text: &str) -> Configuration {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("xvs-conf-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let path: PathBuf = std::env::temp_dir().join(name);
    fs::write(&path, text).unwrap();
    let read = read(&path, "lb1").unwrap();
    fs::remove_file(path).unwrap();
    read
}

/// Its rules, apart by ` ; `, and its faults with their lines, at last those of a director that takes it; ` … ` is any
/// text.
#[track_caller]
fn assert_comes_to(text: &str, rules: &str, faults: &[&str]) -> Configuration {
    let configuration = configuration(text);
    let (state, refused) = configuration.outcome();
    let lines: BTreeSet<_> = saved(&state).into_iter().collect();
    let want: BTreeSet<_> = rules.split(" ; ").filter(|line| !line.is_empty()).map(str::to_owned).collect();
    assert_eq!(lines, want);
    let told: Vec<_> = configuration
        .faults
        .iter()
        .chain(&refused)
        .map(|fault| format!("{}: {:?}: {}", fault.place.line, fault.severity, fault.text))
        .collect();
    let all = told.iter().zip(faults).all(|(told, fault)| {
        told.starts_with(fault.split(" … ").next().unwrap())
            && fault.split(" … ").all(|part| told.contains(part))
    });
    assert!(all && told.len() == faults.len(), "{told:#?}");
    configuration
}

/// The checks of all real servers.
fn checks(configuration: &Configuration) -> Vec<&Check> {
    configuration
        .virtual_servers
        .iter()
        .flat_map(|server| &server.real_servers)
        .flat_map(|server| &server.checks)
        .collect()
}

#[test]
fn old_words_and_checkers_on_one_line_are_understood() {
    assert_comes_to(
        r#"virtual_server 10.0.0.1 80 {
lb_algo rr
lb_kind DR
protocol TCP
real_server 10.1.0.1 80 { TCP_CHECK { connect_timeout 3 } }
real_server 10.1.0.2 80 { weight 2
TCP_CHECK { connect_port 81 } } }"#,
        "-A -t 10.0.0.1:80 -s rr ; \
         -a -t 10.0.0.1:80 -r 10.1.0.1:80 -g -w 1 ; \
         -a -t 10.0.0.1:80 -r 10.1.0.2:80 -g -w 2",
        &[],
    );
}

#[test]
fn wlc_and_nat_are_taken_if_nothing_is_said_and_a_hash_in_quotes_is_no_comment() {
    assert_comes_to(
        r#"virtual_server 10.0.0.1 443 {
delay_loop 6
protocol TCP
persistence_timeout 50
persistence_granularity 255.255.255.0
real_server 10.1.0.1 8443 { HTTP_GET { url { path "/ok?a=1#b"
status_code 200-204 301 }
retry 2
delay_before_retry 1.5 } } }"#,
        "-A -t 10.0.0.1:443 -s wlc -p 50 -M 255.255.255.0 ; \
         -a -t 10.0.0.1:443 -r 10.1.0.1:8443 -m -w 1",
        &["1: Warning: … no scheduler: wlc", "1: Warning: … no method: NAT"],
    );
}

#[test]
fn a_server_that_begins_down_and_is_inhibited_is_there_with_weight_0() {
    assert_comes_to(
        r#"virtual_server 10.0.0.53 53 {
lvs_sched wrr
lvs_method NAT
protocol udp
ops
alpha
real_server 10.1.0.1 5353 { inhibit_on_failure
DNS_CHECK { type a
name example.com } } }"#,
        "-A -u 10.0.0.53:53 -s wrr -o ; \
         -a -u 10.0.0.53:53 -r 10.1.0.1:5353 -m -w 0",
        &[],
    );
}

#[test]
fn a_mark_behind_a_tunnel_has_no_port_and_persistence_without_a_time_has_six_minutes() {
    assert_comes_to(
        r#"virtual_server fwmark 7 {
lvs_sched sh
sh-port
lvs_method TUN
persistence_timeout
real_server 10.1.0.1 80 { weight 3
} }"#,
        "-A -f 7 -s sh -p 360 -b sh-port ; \
         -a -f 7 -r 10.1.0.1:0 -i -w 3 --tun-type ipip",
        &["6: Warning: … its own is left out"],
    );
}

#[test]
fn a_group_is_a_service_for_each_of_its_addresses_and_marks() {
    assert_comes_to(
        r#"virtual_server_group G {
10.0.0.8-9 80
10.0.1.0/31 443
fwmark 5
}
virtual_server group G {
lvs_method DR
protocol TCP
real_server 10.1.0.1 {
} }"#,
        "-A -t 10.0.0.8:80 -s wlc ; \
         -a -t 10.0.0.8:80 -r 10.1.0.1:80 -g -w 1 ; \
         -A -t 10.0.1.0:443 -s wlc ; \
         -a -t 10.0.1.0:443 -r 10.1.0.1:443 -g -w 1 ; \
         -A -f 5 -s wlc ; \
         -a -f 5 -r 10.1.0.1:0 -g -w 1 ; \
         -A -t 10.0.0.9:80 -s wlc ; \
         -a -t 10.0.0.9:80 -r 10.1.0.1:80 -g -w 1 ; \
         -A -t 10.0.1.1:443 -s wlc ; \
         -a -t 10.0.1.1:443 -r 10.1.0.1:443 -g -w 1",
        &["6: Warning: … no scheduler: wlc"],
    );
}

#[test]
fn a_tunnel_crosses_families_and_a_plain_one_of_a_server_is_ip_in_ip() {
    assert_comes_to(
        r#"virtual_server 2001:db8::1 80
{
lvs_sched mh
mh-port
mh-fallback
lvs_method TUN type gue port 6080 csum
protocol TCP
real_server 10.1.0.1 80 { weight 1
}
real_server 2001:db8:1::2 80 { lvs_method TUN
} }"#,
        "-A -t [2001:db8::1]:80 -s mh -b mh-fallback,mh-port ; \
         -a -t [2001:db8::1]:80 -r 10.1.0.1:80 -i -w 1 --tun-type gue --tun-port 6080 --tun-csum ; \
         -a -t [2001:db8::1]:80 -r [2001:db8:1::2]:80 -i -w 1 --tun-type ipip",
        &[],
    );
}

#[test]
fn a_sorry_server_serves_while_the_quorum_is_not_there() {
    assert_comes_to(
        r#"virtual_server 10.0.0.1 80 {
lvs_sched wlc
lvs_method DR
protocol TCP
quorum 2
alpha
quorum_up "/x/q.sh up" root
sorry_server 10.1.0.99 80
sorry_server_inhibit
real_server 10.1.0.1 80 { weight 2
inhibit_on_failure
MISC_CHECK { misc_path "/bin/true 'a b'"
misc_timeout 4
misc_dynamic } } }"#,
        "-A -t 10.0.0.1:80 -s wlc ; \
         -a -t 10.0.0.1:80 -r 10.1.0.1:80 -g -w 0 ; \
         -a -t 10.0.0.1:80 -r 10.1.0.99:80 -g -w 1",
        &[],
    );
}

#[test]
fn parameters_of_several_lines_and_loops_make_servers() {
    assert_comes_to(
        r#"$VIP=10.0.0
$RS= \
real_server 10.1.0.${N} 80 { \
weight ${N} \
}
virtual_server ${VIP}.1 80 {
lvs_sched wrr
lvs_method DR
protocol TCP
~SEQ(N, 1, 2) $RS
}"#,
        "-A -t 10.0.0.1:80 -s wrr ; \
         -a -t 10.0.0.1:80 -r 10.1.0.1:80 -g -w 1 ; \
         -a -t 10.0.0.1:80 -r 10.1.0.2:80 -g -w 2",
        &[],
    );
}

#[test]
fn blocks_of_vrrp_are_skipped_whatever_braces_are_quoted_in_them() {
    assert_comes_to(
        r#"! VRRP part is skipped
vrrp_instance VI_1 {
state MASTER # {
interface eth0
virtual_router_id 51
virtual_ipaddress { 10.0.0.1/32 dev eth0 }
notify_master "/bin/true { # }"
}
virtual_server 10.0.0.1 25 {
lvs_sched sed
lvs_method DR
protocol TCP
real_server 10.1.0.1 25 { SMTP_CHECK { helo_name "lb.example" } } }"#,
        "-A -t 10.0.0.1:25 -s sed ; \
         -a -t 10.0.0.1:25 -r 10.1.0.1:25 -g -w 1",
        &[],
    );
}

#[test]
fn old_files_mean_what_they_meant_and_each_line_of_no_effect_is_told() {
    assert_comes_to(
        r#"virtual_server 10.0.0.1 80 {
lb_algo wlc
lb_kind DR
persistence_timeout 0
nat_mask 255.255.255.0
protocol TCP
real_server 10.1.0.1 8080 { weight 0
}
real_server 10.1.0.2 80 { uthreshold 100
lthreshold 80 } }"#,
        "-A -t 10.0.0.1:80 -s wlc ; \
         -a -t 10.0.0.1:80 -r 10.1.0.1:80 -g -w 0 ; \
         -a -t 10.0.0.1:80 -r 10.1.0.2:80 -g -w 1",
        &[
            "4: Warning: `persistence_timeout 0`",
            "5: Warning: unknown keyword `nat_mask`",
            "7: Warning: … the virtual server's, 80",
        ],
    );
}

#[test]
fn conditional_lines_are_for_this_machine_and_an_include_may_match_nothing() {
    assert_comes_to(
        r#"@lb1  $W=5
@^lb1 $W=1
include conf.d/*.none
virtual_server 10.0.0.1 80 {
lvs_sched wrr
lvs_method NAT
protocol TCP
real_server 10.1.0.1 8080 { weight $W
} }"#,
        "-A -t 10.0.0.1:80 -s wrr ; \
         -a -t 10.0.0.1:80 -r 10.1.0.1:8080 -m -w 5",
        &[],
    );
}

#[test]
fn several_checkers_of_sctp_and_a_file_are_understood() {
    assert_comes_to(
        r#"SSL { ca /etc/ssl/ca.pem }
track_file T { file /run/t
weight 0
}
virtual_server 10.0.0.1 443 {
lvs_sched lblcr
lvs_method NAT
protocol SCTP
real_server 10.1.0.1 443 {
SSL_GET { enable_sni
virtualhost a.example
url { path /h
digest 0123456789abcdef0123456789abcdef } }
FILE_CHECK { track_file T }
UDP_CHECK { payload 01 02
require_reply 0x } } }"#,
        "-A --sctp-service 10.0.0.1:443 -s lblcr ; \
         -a --sctp-service 10.0.0.1:443 -r 10.1.0.1:443 -m -w 1",
        &[],
    );
}

#[test]
fn an_unknown_block_is_left_out_as_a_whole_and_what_surrounds_it_stays() {
    assert_comes_to(
        r"virtual_server 10.0.0.1 80 {
lvs_sched rr
lvs_method NAT
protocol TCP
dpvs_block {
weight 9
inner { lvs_sched sh }
}
real_server 10.1.0.1 80 {
weight 2
future_check { retry 1 }
}
}
mystery { virtual_server 10.9.9.9 80 { real_server 10.1.0.1 80 { } } }",
        "-A -t 10.0.0.1:80 -s rr ; \
         -a -t 10.0.0.1:80 -r 10.1.0.1:80 -m -w 2",
        &[
            "5: Warning: unknown block `dpvs_block`",
            "11: Warning: unknown block `future_check`",
            "14: Warning: unknown block `mystery`",
        ],
    );
}

#[test]
fn a_brace_behind_a_keyword_that_begins_no_block_is_an_error() {
    let read = assert_comes_to(
        r"virtual_server 10.0.0.1 80 {
lvs_sched rr
lvs_method NAT
protocol TCP
real_server 10.1.0.1 80 {
weight 1 TCP_CHECK {
connect_timeout 3
}
}
}",
        "-A -t 10.0.0.1:80 -s rr ; \
         -a -t 10.0.0.1:80 -r 10.1.0.1:80 -m -w 1",
        &["6: Error: `weight 1 TCP_CHECK`"],
    );
    assert!(!read.is_usable());
}

#[test]
fn a_body_whose_head_is_for_another_machine_is_an_error() {
    assert_comes_to(
        r"@lb2 virtual_server 10.0.0.1 80 {
lvs_sched rr
real_server 10.1.0.1 80 { weight 1
}
}",
        "",
        &[
            "2: Warning: unknown keyword `lvs_sched`",
            "3: Warning: unknown block `real_server`",
            "5: Error: a `}` without",
        ],
    );
}

#[test]
fn a_block_without_its_brace_and_a_keyword_without_its_value_are_errors() {
    assert_comes_to(
        r"virtual_server 10.0.0.1 80
{
lvs_sched rr
lvs_method DR
protocol TCP
real_server 10.1.0.1 80
TCP_CHECK
}
}
lvs_sched",
        "-A -t 10.0.0.1:80 -s rr ; \
         -a -t 10.0.0.1:80 -r 10.1.0.1:80 -g -w 1",
        &[
            "6: Error: `real_server 10.1.0.1 80` has no `{`",
            "7: Warning: unknown keyword `TCP_CHECK`",
            "9: Error: a `}` without",
            "10: Warning: unknown keyword `lvs_sched`",
        ],
    );
}

#[test]
fn a_server_has_the_method_that_was_said_before_it_or_else_the_last_one() {
    let read = assert_comes_to(
        r"virtual_server 10.0.0.1 80 {
lvs_sched rr
protocol TCP
real_server 10.1.0.1 80 { weight 1
}
lb_kind NAT
real_server 10.1.0.2 8080 { weight 1
}
real_server 10.1.0.3 80 { lb_kind TUN
}
sorry_server 10.1.0.9 8080
lb_kind DR
real_server 10.1.0.4 80 { weight 1
}
alpha
}",
        "-A -t 10.0.0.1:80 -s rr ; \
         -a -t 10.0.0.1:80 -r 10.1.0.1:80 -g -w 1 ; \
         -a -t 10.0.0.1:80 -r 10.1.0.2:8080 -m -w 1 ; \
         -a -t 10.0.0.1:80 -r 10.1.0.3:80 -i -w 1 --tun-type ipip ; \
         -a -t 10.0.0.1:80 -r 10.1.0.4:80 -g -w 1",
        &["9: Warning: `lb_kind` of a real server"],
    );
    let sorry = read.virtual_servers[0].sorry_server.as_ref().unwrap();
    assert_eq!((sorry.endpoint.port, sorry.options.method), (8080, ForwardingMethod::Nat));
}

#[test]
fn port_0_is_any_port_of_a_persistent_service_and_a_name_is_no_port() {
    let read = assert_comes_to(
        r"virtual_server 10.0.0.1 {
lvs_sched rr
lvs_method DR
protocol TCP
real_server 10.1.0.1 { TCP_CHECK { connect_timeout 3
} }
real_server 10.1.0.2 80 { TCP_CHECK { connect_port 81
} }
}
virtual_server 10.0.0.1 http {
real_server 10.1.0.1 80 { weight 1
}
}
virtual_server 10.0.0.2 80 {
lvs_sched rr
lvs_method NAT
protocol TCP
real_server 10.1.0.1 { TCP_CHECK { connect_timeout 3
} }
}",
        "-A -t 10.0.0.1:0 -s rr -p 360 ; \
         -a -t 10.0.0.1:0 -r 10.1.0.1:0 -g -w 1 ; \
         -a -t 10.0.0.1:0 -r 10.1.0.2:0 -g -w 1 ; \
         -A -t 10.0.0.2:80 -s rr ; \
         -a -t 10.0.0.2:80 -r 10.1.0.1:80 -m -w 1",
        &[
            "1: Warning: … for persistent services",
            "5: Warning: `TCP_CHECK`: it asks port 0",
            "7: Warning: … the virtual server's, 0",
            "10: Warning: … the virtual server is left out",
        ],
    );
    let asked: Vec<_> = checks(&read).iter().map(|check| check.probe.to_string()).collect();
    assert_eq!(asked, ["TCP 10.1.0.1:0", "TCP 10.1.0.2:81", "TCP 10.1.0.1:80"]);
}

#[test]
fn groups_may_be_shared_by_protocols_and_lines_of_them_that_mean_nothing_are_left_out() {
    assert_comes_to(
        r"virtual_server_group G {
10.0.0.1 80
fwmark 5
10.0.0.2/31 443
10.0.0.1/24 80
}
virtual_server_group E {
fwmark 0
}
virtual_server_group M {
10.0.0.8 80
2001:db8::8 80
fwmark 6
}
virtual_server group G {
lvs_sched rr
lvs_method NAT
protocol TCP
real_server 10.1.0.1 8080 { weight 1
}
real_server 10.1.0.2 { lvs_method DR
}
}
virtual_server group G {
lvs_sched rr
lvs_method NAT
protocol UDP
ha_suspend
real_server 10.1.0.1 8080 { weight 1
}
}
virtual_server group E { real_server 10.1.0.1 80 { weight 1
} }
virtual_server group M { real_server 10.1.0.1 80 { weight 1
} }
virtual_server group N { real_server 10.1.0.1 80 { weight 1
} }",
        "-A -t 10.0.0.1:80 -s rr ; \
         -a -t 10.0.0.1:80 -r 10.1.0.1:8080 -m -w 1 ; \
         -a -t 10.0.0.1:80 -r 10.1.0.2:80 -g -w 1 ; \
         -A -t 10.0.0.2:443 -s rr ; \
         -a -t 10.0.0.2:443 -r 10.1.0.1:8080 -m -w 1 ; \
         -a -t 10.0.0.2:443 -r 10.1.0.2:443 -g -w 1 ; \
         -A -t 10.0.0.3:443 -s rr ; \
         -a -t 10.0.0.3:443 -r 10.1.0.1:8080 -m -w 1 ; \
         -a -t 10.0.0.3:443 -r 10.1.0.2:443 -g -w 1 ; \
         -A -u 10.0.0.1:80 -s rr ; \
         -a -u 10.0.0.1:80 -r 10.1.0.1:8080 -m -w 1 ; \
         -A -u 10.0.0.2:443 -s rr ; \
         -a -u 10.0.0.2:443 -r 10.1.0.1:8080 -m -w 1 ; \
         -A -u 10.0.0.3:443 -s rr ; \
         -a -u 10.0.0.3:443 -r 10.1.0.1:8080 -m -w 1 ; \
         -A -f 5 -s rr ; \
         -a -f 5 -r 10.1.0.1:8080 -m -w 1 ; \
         -a -f 5 -r 10.1.0.2:0 -g -w 1",
        &[
            "5: Warning: `10.0.0.1/24 80`",
            "8: Warning: `fwmark 0`",
            "10: Warning: the group `M` has addresses of both families",
            "24: Warning: … `ha_suspend`",
            "24: Warning: … FWM 5 is there already … the first holds",
            "32: Warning: … no group `E`",
            "34: Warning: … no group `M`",
            "36: Warning: … no group `N`",
        ],
    );
}

#[test]
fn servers_of_another_family_are_left_out_unless_a_tunnel_leads_to_them() {
    assert_comes_to(
        r"virtual_server 2001:db8::1 80 {
lvs_sched rr
lvs_method NAT
protocol TCP
ip_family inet
persistence_granularity 255.255.255.0
real_server 10.1.0.1 80 { weight 1
}
real_server 2001:db8:1::1 80 { weight 1
}
sorry_server 10.1.0.9 80
}
virtual_server fwmark 1 {
lvs_sched rr
lvs_method TUN
protocol TCP
real_server 2001:db8:1::1 { weight 1
}
}
virtual_server fwmark 2 {
lvs_sched rr
lvs_method TUN
ip_family inet6
real_server 10.1.0.1 { weight 1
}
}
virtual_server fwmark 3 {
lvs_sched rr
lvs_method NAT
persistence_granularity 64
real_server 10.1.0.1 80 { weight 1
}
real_server 2001:db8:1::1 80 { weight 1
}
}",
        "-A -t [2001:db8::1]:80 -s rr ; \
         -a -t [2001:db8::1]:80 -r [2001:db8:1::1]:80 -m -w 1 ; \
         -A -f 1 -6 -s rr ; \
         -a -f 1 -6 -r [2001:db8:1::1]:0 -i -w 1 --tun-type ipip ; \
         -A -f 2 -6 -s rr ; \
         -a -f 2 -6 -r 10.1.0.1:0 -i -w 1 --tun-type ipip ; \
         -A -f 3 -6 -s rr -p 360 -M 64 ; \
         -a -f 3 -6 -r [2001:db8:1::1]:80 -m -w 1",
        &[
            "5: Warning: `ip_family inet`",
            "6: Warning: `persistence_granularity",
            "7: Warning: 10.1.0.1 is of another family",
            "11: Warning: 10.1.0.9 is of another family",
            "13: Warning: … a mark has no protocol",
            "31: Warning: 10.1.0.1 is of another family",
        ],
    );
}

#[test]
fn quorum_and_hysteresis_are_capped_and_a_sorry_server_serves_where_nobody_has_weight() {
    let read = assert_comes_to(
        r"virtual_server 10.0.0.1 80 {
lvs_sched rr
lvs_method DR
protocol TCP
quorum 9
hysteresis 9
sorry_server_inhibit
sorry_server 10.1.0.1 80
sorry_server_inhibit
real_server 10.1.0.1 80 { weight 2
}
real_server 10.1.0.2 80 { inhibit_on_failure
TCP_CHECK { alpha
} }
}
virtual_server 10.0.0.2 80 {
lvs_sched rr
lvs_method DR
protocol TCP
sorry_server 10.1.0.9 80
weight 3
real_server 10.1.0.1 80 { weight 0
}
}
virtual_server 10.0.0.3 80 {
lvs_sched rr
lvs_method DR
protocol TCP
quorum 0
hysteresis 1
sorry_server 10.1.0.9 80
sorry_server_inhibit
weight 3
real_server 10.1.0.1 80 {
}
}",
        "-A -t 10.0.0.1:80 -s rr ; \
         -a -t 10.0.0.1:80 -r 10.1.0.1:80 -g -w 1 ; \
         -a -t 10.0.0.1:80 -r 10.1.0.2:80 -g -w 0 ; \
         -A -t 10.0.0.2:80 -s rr ; \
         -a -t 10.0.0.2:80 -r 10.1.0.9:80 -g -w 1 ; \
         -A -t 10.0.0.3:80 -s rr ; \
         -a -t 10.0.0.3:80 -r 10.1.0.1:80 -g -w 3 ; \
         -a -t 10.0.0.3:80 -r 10.1.0.9:80 -g -w 0",
        &[
            "1: Warning: … lowered to 3",
            "1: Warning: … hysteresis of 9 … lowered to 2",
            "1: Warning: … it can never be well",
            "7: Warning: `sorry_server_inhibit`",
            "8: Warning: … it is a real server too",
            "16: Warning: … lowered to 0",
            "25: Warning: … hysteresis of 1 … lowered to 0",
            "29: Warning: `quorum 0`",
        ],
    );
    let quorums: Vec<_> =
        read.virtual_servers.iter().map(|server| (server.quorum, server.hysteresis)).collect();
    assert_eq!(quorums, [(3, 2), (0, 0), (1, 0)]);
}

#[test]
fn persistence_and_flags_hold_as_far_as_they_go_with_the_service() {
    assert_comes_to(
        r"virtual_server 10.0.0.1 80 {
lvs_sched rr
lvs_method DR
protocol TCP
persistence_granularity 255.255.0.0
persistence_timeout 0
real_server 10.1.0.1 80 {
}
}
virtual_server 10.0.0.2 80 {
lvs_sched rr
lvs_method DR
protocol TCP
ops
hashed
sh-port
flag-3
persistence_timeout 12abc
persistence_engine sip
real_server 10.1.0.1 80 {
}
}
virtual_server 10.0.0.3 80 {
lvs_sched mh
mh-port
lvs_sched nosuch
lvs_method dr
protocol icmp
persistence_engine sip
ops
real_server 10.1.0.1 80 {
}
}
virtual_server 10.0.0.4 80 {
lvs_sched rr
lvs_method DR
protocol UDP
persistence_timeout 9999999
persistence_granularity 64
real_server 10.1.0.1 80 {
}
}",
        "-A -t 10.0.0.1:80 -s rr -p 360 -M 255.255.0.0 ; \
         -a -t 10.0.0.1:80 -r 10.1.0.1:80 -g -w 1 ; \
         -A -t 10.0.0.2:80 -s rr -p 12 --pe sip -b flag-3 ; \
         -a -t 10.0.0.2:80 -r 10.1.0.1:80 -g -w 1 ; \
         -A -u 10.0.0.3:80 -s mh -o -b mh-port ; \
         -a -u 10.0.0.3:80 -r 10.1.0.1:80 -m -w 1 ; \
         -A -u 10.0.0.4:80 -s rr ; \
         -a -u 10.0.0.4:80 -r 10.1.0.1:80 -g -w 1",
        &[
            "6: Warning: `persistence_timeout 0`",
            "10: Warning: … `ops` is for UDP",
            "15: Warning: `hashed`",
            "16: Warning: `sh-port`",
            "18: Warning: … taken for 12",
            "23: Warning: … no protocol: UDP",
            "23: Warning: … no method: NAT",
            "26: Warning: `lvs_sched nosuch`",
            "27: Warning: `lvs_method dr`",
            "28: Warning: `protocol icmp`",
            "38: Warning: `persistence_timeout 9999999`",
            "39: Warning: `persistence_granularity 64`",
        ],
    );
}

#[test]
fn times_and_alpha_are_the_checkers_own_or_of_what_surrounds_it() {
    let read = assert_comes_to(
        r"virtual_server 10.0.0.1 80 {
lvs_sched rr
lvs_method DR
protocol TCP
alpha off
inhibit_on_failure no
delay_loop 10
retry 4
warmup 0
real_server 10.1.0.1 80 {
TCP_CHECK {
}
}
real_server 10.1.0.2 80 {
alpha off
inhibit_on_failure no
delay_loop 1.5
TCP_CHECK {
retry 0
connect_timeout 2.0000004
delay_before_retry 2
}
DNS_CHECK {
alpha off
delay_loop 7
}
}
real_server 10.1.0.3 80 {
alpha no
PING_CHECK {
alpha
}
MISC_CHECK {
misc_path /bin/true
delay_loop 3
}
}
real_server 10.1.0.4 80 {
retry 0
weight 1
}
}",
        "-A -t 10.0.0.1:80 -s rr ; \
         -a -t 10.0.0.1:80 -r 10.1.0.1:80 -g -w 0 ; \
         -a -t 10.0.0.1:80 -r 10.1.0.2:80 -g -w 1 ; \
         -a -t 10.0.0.1:80 -r 10.1.0.3:80 -g -w 0 ; \
         -a -t 10.0.0.1:80 -r 10.1.0.4:80 -g -w 1",
        &["20: Warning: … rounded to a microsecond", "39: Warning: `retry 0`"],
    );
    let timings: Vec<_> = checks(&read)
        .iter()
        .map(|Check { timing, .. }| {
            let seconds = [timing.interval, timing.retry_interval, timing.timeout, timing.warmup];
            (seconds.map(|time| time.as_secs_f64()), timing.fall, timing.begins_down)
        })
        .collect();
    assert_eq!(
        timings,
        [
            ([10.0, 1.0, 5.0, 0.0], 5, true),
            ([1.5, 2.0, 2.0, 0.0], 1, false),
            ([7.0, 7.0, 5.0, 0.0], 5, false),
            ([10.0, 1.0, 5.0, 0.0], 5, true),
            // A script may take as long as the virtual server's interval, whatever its own is.
            ([3.0, 1.0, 10.0, 0.0], 5, false),
        ]
    );
}

#[test]
fn objects_are_asked_for_by_host_status_digest_and_pattern_and_checkers_of_a_kind_stand_side_by_side() {
    let read = assert_comes_to(
        r#"virtual_server 10.0.0.1 443 {
lvs_sched rr
lvs_method DR
protocol TCP
virtualhost vs.example
real_server 10.1.0.1 443 {
virtualhost rs.example
SSL_GET {
enable_sni
http_protocol 1.1
url {
path /a
status_code 200-204 301 99 400-300
status_code 404
digest 0123456789abcdef0123456789abcdef
digest xyz
}
url {
path "/b c"
virtualhost url.example
regex_no_match
regex "a\d+ b"
regex_options caseless nosuch
regex_min_offset 5
}
url {
status_code 200
}
}
HTTP_GET {
nb_get_retry 3
enable_sni
connect_port 80
}
TCP_CHECK {
connect_port 0
bindto 2001:db8::1
}
TCP_CHECK {
connect_ip 10.1.0.7
fwmark 3
bind_if eth1
}
}
}"#,
        "-A -t 10.0.0.1:443 -s rr ; \
         -a -t 10.0.0.1:443 -r 10.1.0.1:443 -g -w 1",
        &[
            "13: Warning: `status_code",
            "16: Warning: `digest xyz`: there is one already",
            "23: Warning: … no option nosuch",
            "26: Warning: `url` has no `path`",
            "30: Warning: `HTTP_GET` has no `url`",
            "31: Warning: `nb_get_retry`",
            "35: Warning: `bindto`",
            "36: Warning: `connect_port 0`",
        ],
    );
    let checks = checks(&read);
    let [Probe::Http(target, http), Probe::Tcp(plain), Probe::Tcp(other)] =
        [&checks[0], &checks[1], &checks[2]].map(|check| &check.probe)
    else {
        panic!("{checks:?}")
    };
    assert_eq!(target.endpoint, "10.1.0.1:443".parse().unwrap());
    assert!(http.is_tls && http.is_1_1 && http.closes);
    assert_eq!(http.host.as_deref(), Some("rs.example"));
    let [first, second] = &http.urls[..] else { panic!("{http:?}") };
    assert_eq!(first.statuses, [200..=204, 301..=301, 404..=404]);
    assert_eq!(first.digest.unwrap()[..3], [0x01, 0x23, 0x45]);
    // The host of a real server is asked for, but no name of a handshake.
    assert_eq!((first.host.as_deref(), first.server_name.as_deref()), (None, Some("vs.example")));
    assert_eq!((second.path.as_str(), second.server_name.as_deref()), ("/b c", Some("url.example")));
    let pattern = Pattern {
        text: "ad+ b".to_owned(),
        is_unwanted: true,
        options: vec!["caseless".to_owned()],
        least_offset: 5,
        most_offset: None,
    };
    assert_eq!(second.pattern, Some(pattern));
    assert_eq!((plain.endpoint, plain.source), ("10.1.0.1:443".parse().unwrap(), None));
    assert_eq!((other.endpoint, other.mark), ("10.1.0.7:443".parse().unwrap(), 3));
    assert_eq!(other.interface.as_deref(), Some("eth1"));
}

#[test]
fn commands_are_the_first_word_and_checkers_that_can_ask_nothing_are_left_out() {
    let read = assert_comes_to(
        r#"virtual_server 10.0.0.1 80 {
lvs_sched rr
lvs_method DR
protocol TCP
delay_loop 6
quorum_up /x/up.sh a b c
quorum_up "/x/other.sh"
real_server 10.1.0.1 80 {
notify_up "/x/s.sh 'a b' c" root wheel
notify_down /x/s.sh\ a
MISC_CHECK {
misc_path /x/check.sh a b
misc_dynamic
user nobody nogroup
retry 2
delay_loop 2
}
MISC_CHECK {
misc_path "/bin/true 'a b'"
misc_timeout 0
connect_timeout 3
}
MISC_CHECK {
misc_timeout 3
}
FILE_CHECK { track_file nosuch }
BFD_CHECK { name x }
UDP_CHECK { payload 0102 f 0g }
UDP_CHECK {
payload 0102 f
require_reply xa 0X
}
SMTP_CHECK { helo_name }
}
}"#,
        "-A -t 10.0.0.1:80 -s rr ; \
         -a -t 10.0.0.1:80 -r 10.1.0.1:80 -g -w 1",
        &[
            "6: Warning: … put it in quotes",
            "7: Warning: … there is one already",
            "12: Warning: `misc_path /x/check.sh a b`",
            "21: Warning: unknown keyword `connect_timeout`",
            "23: Warning: … no `misc_path`",
            "26: Warning: no `track_file nosuch`",
            "27: Warning: `BFD_CHECK`",
            "28: Warning: `payload 0102 f 0g`",
            "33: Error: `helo_name` needs a value",
        ],
    );
    let [server] = &read.virtual_servers[..] else { panic!("{read:?}") };
    let argv = |script: &Option<Script>| script.as_ref().unwrap().argv.clone();
    assert_eq!(server.quorum_up.as_ref().unwrap().to_string(), "/x/up.sh (as a:b)");
    assert_eq!(argv(&server.real_servers[0].notify_up), ["/x/s.sh", "a b", "c"]);
    let asked: Vec<_> = checks(&read).iter().map(|check| check.probe.to_string()).collect();
    let udp = "UDP 10.1.0.1:80";
    assert_eq!(
        asked,
        ["script /x/check.sh (as nobody:nogroup)", "script /bin/true a b", udp, udp, "SMTP 10.1.0.1:80"]
    );
    let Probe::Udp(_, Udp { payload, reply }) = &checks(&read)[3].probe else { panic!("{asked:?}") };
    assert_eq!(payload.as_deref(), Some(&[1, 2, 0xf][..]));
    assert_eq!(reply.as_ref().unwrap().pattern, [(0x0a, 0x0f), (0x00, 0xf0)]);
    let times: Vec<_> = checks(&read).iter().map(|check| check.timing.timeout.as_secs()).collect();
    assert_eq!(times[..2], [6, 6]);
}

#[test]
fn of_what_is_said_twice_the_first_holds() {
    assert_comes_to(
        r"virtual_server_group G {
10.0.0.1 80
}
virtual_server_group G {
10.0.0.2 80
}
virtual_server group G {
lvs_sched rr
lvs_method DR
protocol TCP
real_server 10.1.0.1 80 {
weight 1
}
real_server 10.1.0.1 8080 {
weight 2
}
real_server 10.1.0.1 80 {
weight 3
}
}
virtual_server 10.0.0.1 80 {
lvs_sched rr
lvs_method DR
protocol TCP
real_server 10.1.0.9 80 {
}
}
virtual_server 10.0.0.5 80 {
lvs_sched rr
lvs_method DR
protocol TCP
real_server 10.1.0.1 80 {
weight 1
}
real_server 10.1.0.1 {
weight 2
}
}",
        "-A -t 10.0.0.1:80 -s rr ; \
         -a -t 10.0.0.1:80 -r 10.1.0.1:80 -g -w 1 ; \
         -A -t 10.0.0.5:80 -s rr ; \
         -a -t 10.0.0.5:80 -r 10.1.0.1:80 -g -w 1",
        &[
            "4: Warning: the group `G`",
            "14: Warning: … each service of the group",
            "17: Warning: 10.1.0.1:80 is a real server already",
            "21: Warning: … TCP 10.0.0.1:80 is there already … :7; the first holds",
            "35: Warning: 10.1.0.1:80 is a real server already",
            "14: Warning: xvs refuses it",
        ],
    );
}

#[test]
fn conditions_and_includes_are_carried_out_before_braces_are_counted() {
    assert_comes_to(
        r"$W=4
@lb2 $W=9
include inc.d/*.conf
@^lb1 virtual_server 10.0.0.2 80 {
@lb1 virtual_server 10.0.0.1 80 {
lvs_sched rr
lvs_method DR
protocol TCP
@lb2 real_server 10.1.0.2 80 { weight 1
@lb2 }
real_server 10.1.0.1 80 { weight $W
}
}",
        "-A -t 10.0.0.1:80 -s rr ; \
         -a -t 10.0.0.1:80 -r 10.1.0.1:80 -g -w 4",
        &[],
    );
}

#[test]
fn what_a_director_refuses_is_told_where_it_stands_and_timeouts_are_set() {
    let read = assert_comes_to(
        r"global_defs {
lvs_timeouts tcp 7200 udp 30
lvs_sync_daemon eth0 VI_1
router_id lb1
lvs_flush true
}
virtual_server 10.0.0.1 80 {
lvs_sched rr
lvs_method DR
protocol TCP
persistence_timeout
persistence_engine sap
real_server 10.1.0.1 80 {
}
}
virtual_server 10.0.0.2 80 {
lvs_sched
lvs_method TUN type gue port 0
protocol TCP
real_server 10.1.0.1 80 {
uthreshold 5
lthreshold 9
}
real_server 224.0.0.1 80 {
}
real_server 10.1.0.2 80 {
}
real_server rs.example 80 {
}
}",
        "-A -t 10.0.0.1:80 -s rr -p 360 ; \
         -a -t 10.0.0.1:80 -r 10.1.0.1:80 -g -w 1 ; \
         -A -t 10.0.0.2:80 -s wlc ; \
         -a -t 10.0.0.2:80 -r 10.1.0.2:80 -i -w 1 --tun-type ipip",
        &[
            "3: Warning: `lvs_sync_daemon`: with a VRRP instance",
            "12: Warning: `persistence_engine sap`",
            "16: Warning: … no scheduler: wlc",
            "17: Error: `lvs_sched` needs a value",
            "18: Warning: … taken for TUN type ipip",
            "28: Warning: `real_server rs.example 80`",
            "20: Warning: xvs refuses it: lower threshold 9",
            "24: Warning: xvs refuses it: … not a unicast address",
        ],
    );
    let timeouts = Timeouts { tcp_seconds: 7200, tcp_fin_seconds: 0, udp_seconds: 30 };
    assert_eq!(read.begin()[0], Command::SetTimeouts(timeouts));
}

#[test]
fn a_sorry_server_has_the_virtual_servers_port_and_is_there_once_if_it_is_a_real_server_too() {
    assert_comes_to(
        r"virtual_server 10.0.0.1 80 {
alpha
lvs_sched rr
lvs_method NAT
protocol TCP
sorry_server 10.1.0.9
real_server 10.1.0.1 80 { TCP_CHECK {
} }
}
virtual_server 10.0.0.2 80 {
alpha
inhibit_on_failure
lvs_sched rr
lvs_method DR
protocol TCP
sorry_server 10.1.0.1 80
sorry_server_inhibit
real_server 10.1.0.1 80 { TCP_CHECK {
} }
real_server 10.1.0.2 80 { TCP_CHECK {
} }
}",
        "-A -t 10.0.0.1:80 -s rr ; -a -t 10.0.0.1:80 -r 10.1.0.9:80 -m -w 1 ; -A -t 10.0.0.2:80 -s rr ; \
         -a -t 10.0.0.2:80 -r 10.1.0.1:80 -g -w 1 ; -a -t 10.0.0.2:80 -r 10.1.0.2:80 -g -w 0",
        &[],
    );
}
