//! `xvsadm -R` restores what `xvsadm -S` saves: any state, by numbers and by names.
//!
//! Random commands configure a lab; an empty lab restores what it saves. Then both list the same, except for what rules
//! in ipvsadm's form do not contain: thresholds, in which order a service's real servers were added, a netmask without
//! persistence, and flag 3 of `sh` and `mh`. Marks from 2^31 on are saved as by ipvsadm, in a form that cannot be read.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};
use xvs::LabCluster;
use xvs::lab_cluster::{server, server6};

fn service() -> impl Strategy<Value = &'static str> {
    select(vec![
        "-t 198.51.100.1:80",
        "-t 198.51.100.1:0",
        "-t 198.51.100.1:21",
        "-u 198.51.100.1:53",
        "-u 198.51.100.2:5060",
        "--sctp-service 198.51.100.1:9899",
        "-t [2001:db8:51::1]:443",
        "-u [2001:db8:51::1]:0",
        "-f 1",
        "-f 2147483647",
        "-f 1 -6",
    ])
}

/// Options of a service; some are invalid for it, and the command is refused.
fn service_options() -> impl Strategy<Value = String> {
    let scheduler = select(vec![
        "",
        "-s rr",
        "-s wrr",
        "-s lblcr",
        "-s sh -b sh-port",
        "-s sh -b sh-fallback",
        "-s mh -b mh-fallback,mh-port",
        "-s dh -b flag-1,flag-3",
        "-s none",
    ]);
    let others = subsequence(vec!["-p 300", "-o", "--pe sip", "--client-address proxy"], 0..=3);
    let mask = select(vec!["", "-M 255.255.255.0", "-M 255.0.255.0", "-M 64"]);
    (scheduler, others, mask)
        .prop_map(|(scheduler, others, mask)| format!("{scheduler} {} {mask}", others.join(" ")))
}

fn destination() -> impl Strategy<Value = String> {
    let methods = vec![
        "-m",
        "-g",
        "",
        "-i",
        "-i --tun-type gue --tun-port 6080",
        "-i --tun-type gue --tun-port 6080 --tun-remcsum",
        "-i --tun-type gre --tun-csum",
        "--fullnat",
    ];
    let port = select(vec!["", ":80", ":8080", ":443"]);
    let more = select(vec!["", "-w 0", "-w 7", "-w 2147483647", "-x 10 -y 5"]);
    (1u8..4, any::<bool>(), port, select(methods), more).prop_map(|(number, other, port, method, more)| {
        let (v4, v6) = (server(number).to_string(), server6(number).to_string());
        let v6 = if port.is_empty() { v6 } else { format!("[{v6}]{port}") };
        // Servers of both families are tried for each service; the other family is valid only for tunnels and FULLNAT.
        let addr = if other { v6 } else { format!("{v4}{port}") };
        format!("-r {addr} {method} {more}")
    })
}

fn command() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (service(), service_options()).prop_map(|(service, options)| format!("-A {service} {options}")),
        1 => (service(), service_options()).prop_map(|(service, options)| format!("-E {service} {options}")),
        12 => (service(), destination()).prop_map(|(service, dest)| format!("-a {service} {dest}")),
        2 => (service(), destination()).prop_map(|(service, dest)| format!("-e {service} {dest}")),
        1 => service().prop_map(|service| format!("-D {service}")),
    ]
}

/// Options that ipvsadm does not have.
fn extra() -> impl Strategy<Value = &'static str> {
    select(vec![
        "mark add -d 198.51.100.7 -p tcp --dports 80,443 --set-mark 1",
        "mark add -s 192.0.2.0/24 --set-mark 0x2/0xf",
        "laddr add 203.0.113.1 --ports 5000-5999",
        "laddr add 2001:db8:2::1",
    ])
}

fn run(cluster: &mut LabCluster, line: &str, stdin: &str) -> (i64, String) {
    let words: Vec<_> = line.split_whitespace().collect();
    let answer = cluster.ask(json!({ "adm": words, "stdin": stdin }));
    let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
    (answer["exit"].as_i64().unwrap_or(-1), text("stderr") + &text("stdout"))
}

/// The configuration, as far as rules in ipvsadm's form contain it.
fn state(cluster: &mut LabCluster) -> Value {
    let (exit, listed) = run(cluster, "-Ln --json", "");
    assert_eq!(exit, 0, "{listed}");
    let mut rows: Value = serde_json::from_str(&listed).expect("JSON");
    for row in rows.as_array_mut().into_iter().flatten() {
        if row["options"]["persistence_timeout_seconds"].is_null() {
            row["options"]["netmask"] = Value::Null;
        }
        for dest in row["destinations"].as_array_mut().into_iter().flatten() {
            dest["options"]["upper_threshold"] = json!(0);
            dest["options"]["lower_threshold"] = json!(0);
        }
    }
    let ours = ["mark", "laddr"].map(|kind| cluster.xvs(&format!("{kind} list")));
    json!([rows, ours])
}

proptest! {
    // Each case creates three directors.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_saved_rules_are_restored_and_saved_again_the_same(
        commands in vec(command(), 1..40),
        extras in vec(extra(), 0..4),
    ) {
        let mut cluster = LabCluster::new();
        for command in &commands {
            run(&mut cluster, command, "");
        }
        for extra in extras {
            cluster.xvs_reading(extra);
        }
        for form in ["-Sn", "-S"] {
            let (exit, saved) = run(&mut cluster, form, "");
            prop_assert_eq!(exit, 0, "{}", saved);
            let mut restored = LabCluster::new();
            let (exit, complaint) = run(&mut restored, "-R", &saved);
            prop_assert_eq!((exit, complaint.as_str()), (0, ""), "of\n{}", saved);
            prop_assert_eq!(state(&mut restored), state(&mut cluster), "of\n{}", saved);
            prop_assert_eq!(run(&mut restored, form, "").1, saved);
        }
    }
}
