//! Tests of whole rules files: their faults, the state that they describe, its differences from the running state.

use xvs_model::config::difference::*;
use xvs_model::config::rules::*;
use xvs_model::objects::Rule;

use crate::{SystemResolver, read_wanted, rule_lines};

fn faults(text: &str) -> Vec<String> {
    let read = read_wanted(text, &SystemResolver::default());
    read.unwrap_err().iter().map(ToString::to_string).collect()
}

fn wanted(text: &str) -> DesiredRules {
    read_wanted(text, &SystemResolver::default()).unwrap().1
}

#[test]
fn every_fault_of_a_file_is_reported_with_its_line_and_a_duplicate_with_both_lines() {
    let text = "\
-A -t 192.0.2.1:80 -s rr
-a -t 192.0.2.1:80 -r 192.0.2.11:80 -m

-A -t 192.0.2.1:80 -s nonsense
-A -t 192.0.2.1:80 -s wrr
# a comment
-a -t 192.0.2.1:80 -r 192.0.2.11 -g
-a -t 192.0.2.1:81 -r 192.0.2.11:80 -m
-A -t nonsense:
#xvs mark add --set-mark 1
#xvs mark add --set-mark 2
#xvs mark add --set-mark 1
#xvs laddr add 192.0.2.1
#xvs laddr add 192.0.2.1 --ports 5000-6000
#xvs laddr add 224.0.0.1
-L
-Z
--start-daemon backup --mcast-interface eth0
add a service
";
    let found = faults(text);
    let expected = [
        "line 4: line 1 adds virtual service TCP 192.0.2.1:80 already",
        "line 5: line 4 adds virtual service TCP 192.0.2.1:80 already",
        "line 7: line 2 adds real server 192.0.2.11:80 of virtual service TCP 192.0.2.1:80 already",
        "line 8: no virtual service TCP 192.0.2.1:81; add it before its destinations",
        "line 9: illegal virtual server address[:port] specified",
        "line 12: line 10 adds mark rule --set-mark 1 already",
        "line 14: line 13 adds local address 192.0.2.1 already",
        "line 15: invalid: real servers cannot reply to 224.0.0.1",
        "line 16: only what changes services can stand here",
        "line 17: invalid: rules do not zero counters; `xvsadm -Z` does",
    ];
    assert_eq!(found[..10], expected);
    assert_eq!(found[10..], ["line 19: it does not begin with a command of ipvsadm, such as -A or -a"]);
}

#[test]
fn a_wrong_line_of_xvs_is_one_line_with_what_is_wrong_and_the_next_step() {
    for (line, want) in [
        ("laddr add", "laddr add: it needs <ADDRESS>; `xvs laddr add --help` shows its form"),
        (
            "laddr add 192.0.2.1 --ports 80",
            "laddr add: invalid value '80' for '--ports <LOW-HIGH>': ports are two numbers up to 65535: LOW-HIGH; \
             `xvs laddr add --help` shows its form",
        ),
        ("laddr ad 192.0.2.1", "laddr: unrecognized subcommand 'ad'; `xvs laddr --help` shows its form"),
        (
            "laddr",
            "laddr: 'laddr' requires a subcommand but one was not provided [subcommands: add, delete, help]; \
             `xvs laddr --help` shows its form",
        ),
        (
            "limit set -t 192.0.2.1:80",
            "limit set: it needs <--connections <N>|--rate <N>|--syn-rate <N>>; \
             `xvs limit set --help` shows its form",
        ),
        ("disable", "disable: it needs <ADDRESS[:PORT]>; `xvs disable --help` shows its form"),
        ("deny 192.0.2.1 for", "deny: it needs <TIME>; `xvs deny --help` shows its form"),
        ("mark list", "mark list changes nothing; remove the line"),
        (
            "status",
            "behind `#xvs` stands mark, laddr, disable, limit, deny, allow, quic, or a command of xvsadm such as -E",
        ),
    ] {
        assert_eq!(faults(&format!("# a comment\n#xvs {line}\n")), [format!("line 2: {want}")]);
    }
}

#[test]
fn later_lines_of_a_file_override_earlier_ones() {
    let text = "-A -t 192.0.2.1:81\n-C\n-A -t 192.0.2.1:80 -s rr\n-E -t 192.0.2.1:80 -s wrr\n--set 0 0 5\n";
    let other = "--set 0 0 5\n-A -t 192.0.2.1:80 -s wrr\n";
    assert_eq!(wanted(text), wanted(other));
    assert_ne!(wanted(text), wanted("-A -t 192.0.2.1:80 -s wrr\n"));
}

#[test]
fn equal_mark_rules_at_the_front_stay_and_the_others_are_added_behind() {
    let rules = |numbers: &[u32]| -> Vec<Rule> {
        let line = |number: &u32| format!("#xvs mark add --set-mark {number}\n");
        wanted(&numbers.iter().map(line).collect::<String>())
            .state()
            .marks()
            .iter()
            .cloned()
            .map(Rule::Mark)
            .collect()
    };
    for (running, new, changes) in [
        (&[1, 2, 3][..], &[1, 3, 2][..], 2),
        (&[1, 2], &[1, 2], 0),
        (&[1, 2], &[3, 1, 2], 5),
        (&[1, 2], &[2], 1),
    ] {
        let (mut state, text) = (state_of(rules(running)).unwrap(), rules(new));
        let wanted = DesiredRules::from(state_of(text).unwrap());
        let differences = differences(&state, &wanted);
        assert_eq!(differences.len(), changes, "{running:?} to {new:?}");
        for command in commands_for(&differences) {
            state.apply(&command).unwrap();
        }
        assert_eq!(state, *wanted.state());
    }
}

#[test]
fn a_rules_file_with_other_quic_configurations_makes_the_running_ones_equal() {
    let running = "#xvs quic add -u 192.0.2.1:443 --config 0 --server-id-length 3 --nonce-length 4
#xvs quic server-id -u 192.0.2.1:443 -r 192.0.2.11:443 0a0b0c
#xvs quic server-id -u 192.0.2.1:443 -r 192.0.2.12:443 0a0b0d
#xvs quic add -f 7 -6 --config 6 --server-id-length 1 --nonce-length 18 --key-file /etc/xvs/key
#xvs quic server-id -f 7 -6 -r [2001:db8::1]:443 ff
";
    // The last ID is of a former configuration.
    let other = "#xvs quic add -u 192.0.2.1:443 --config 0 --server-id-length 4 --nonce-length 4
#xvs quic server-id -u 192.0.2.1:443 -r 192.0.2.11:443 0a0b0c0d
#xvs quic server-id -u 192.0.2.1:443 -r 192.0.2.13:443 0a0b0e0f
#xvs quic server-id -u 192.0.2.1:443 -r 192.0.2.11:443 0a0b
";
    for (before, after) in
        [(running, other), (other, running), (running, ""), ("", running), (running, running)]
    {
        let (before, after) = (wanted(before), wanted(after));
        let mut state = before.state().clone();
        for command in commands_for(&differences(&state, &after)) {
            state.apply(&command).unwrap();
        }
        assert_eq!(state.quic(), after.state().quic());
        let lines: Vec<_> = rules_of(&state).into_iter().flat_map(|rule| rule_lines(&rule.into())).collect();
        assert_eq!(wanted(&lines.join("\n")).state(), &state, "{lines:?}");
    }
    let faults = faults(&running.replace("0a0b0d", "0a0b0c"));
    assert!(faults[0].starts_with("line 3: ") && faults[0].contains("192.0.2.11:443 has it"), "{faults:?}");
    assert_eq!(faults.len(), 1);
}
