//! Statements in keepalived.conf that xvs does not use, outside of virtual servers.
//!
//! A statement that concerns VRRP, BFD or keepalived's own processes has no effect on checks and causes no warning. A
//! statement that keepalived would act on, and whose absence changes checks or services, causes a warning with the next
//! step. All other statements are unknown. Pure, except that a network namespace is compared with the process's.
//! Source: the manual keepalived.conf(5) of keepalived 2.4; docs/coming-from.md has the same lists.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::blocks::Block;
use crate::values::Faults;

/// Handles a statement outside of all blocks that xvs does not use.
pub(super) fn outside(block: &Block, faults: &mut Faults) {
    let name = block.arguments().first().map_or("", String::as_str);
    let why = match block.keyword() {
        "net_namespace" if !name.is_empty() && is_own(&Path::new("/run/netns").join(name)) => return,
        "net_namespace" => {
            let name = if name.is_empty() { "NAME" } else { name };
            &format!(
                "xvsd stays in the network namespace in which it is started, and `xvs check` looks at its own; start \
                 both by `ip netns exec {name} …`, or remove the line"
            )
        }
        "net_namespace_ipvs" => {
            "xvsd serves and checks in one network namespace; start it in one with routes to clients and to real \
             servers, and remove the line"
        }
        "instance" => {
            "xvsd reads one file; if several keepalived run here, name the files of all in one by `include`, or remove \
             the line"
        }
        keyword if OUTSIDE.contains(&keyword) => return,
        _ => return faults.unknown(block),
    };
    warn(block, why, faults);
}

/// Handles a statement in `global_defs` that xvs does not use. `runs_vrrp`: the file has VRRP, so keepalived runs, too.
pub(super) fn in_global_defs(block: &Block, runs_vrrp: bool, faults: &mut Faults) {
    let keyword = block.keyword();
    let why = match keyword {
        "lvs_sync_daemon" => match block.arguments().get(1).map(String::as_str) {
            None | Some("id" | "maxlen" | "port" | "ttl" | "group") => {
                "start the daemons of xvs by `xvsadm --start-daemon`"
            }
            Some(_) => {
                "with a VRRP instance keepalived exits if the kernel has no IPVS; remove it, and put the lines \
                 `--start-daemon` into the rules file of xvs"
            }
        },
        "startup_script" | "shutdown_script" if !runs_vrrp => {
            "xvsd does not run it; run it by ExecStartPre= and ExecStopPost= of xvsd's unit"
        }
        "reload_time_file" | "reload_repeat" => {
            "xvsd does not reload by itself; let a timer of systemd run `xvs reload`, and remove the line"
        }
        "reload_file" => {
            "xvsd does not write it; instead of it wait for the end of `xvs reload`, and remove the line"
        }
        "set_supplementary_groups" => {
            "scripts run with one group: write `script_user USER GROUP` with one that suffices, and remove the line"
        }
        "random_seed" => {
            "`${_RANDOM}` has another value at each reading; write the values themselves, and remove the line"
        }
        _ if IN_GLOBAL_DEFS.contains(&keyword) || OUTSIDE.contains(&keyword) => return,
        _ if ["vrrp_", "bfd_"].iter().any(|prefix| keyword.starts_with(prefix)) => return,
        _ => return faults.unknown(block),
    };
    warn(block, why, faults);
}

fn warn(block: &Block, why: &str, faults: &mut Faults) {
    faults.warn(&block.place, format!("`{}`: {why}", block.keyword()));
}

/// Whether this file of a network namespace refers to the process's namespace.
fn is_own(namespace: &Path) -> bool {
    let named = device_and_inode(namespace);
    named.is_some() && named == device_and_inode(Path::new("/proc/self/ns/net"))
}

fn device_and_inode(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).map(|known| (known.dev(), known.ino())).ok()
}

/// Blocks and statements outside of all blocks without effect on checks. `track_file` was read before.
const OUTSIDE: &[&str] = &[
    "vrrp_sync_group",
    "vrrp_script",
    "vrrp_track_process",
    "vrrp_track_file",
    "track_file",
    "track_group",
    "static_ipaddress",
    "static_routes",
    "static_rules",
    "static_track_group",
    "garp_group",
    "linkbeat_interfaces",
    "linkbeat_use_polling",
    "interface_up_down_delays",
    "bfd_instance",
    "namespace_with_ipsets",
    "use_pid_dir",
    "child_wait_time",
    "process_names",
    "parent_process_name",
    "checker_process_name",
    "process_name",
];

/// Statements in `global_defs` without effect on checks, besides those whose names begin with `vrrp_` or `bfd_`.
const IN_GLOBAL_DEFS: &[&str] = &[
    // Files and names of keepalived's processes.
    "tmp_config_directory",
    "config_save_dir",
    "use_symlink_paths",
    "umask",
    "data_use_instance",
    "state_file_location",
    "stats_file_location",
    "json_file_location",
    "json_version",
    "iproute_usr_dir",
    "iproute_etc_dir",
    "lvs_id",
    // VRRP and its interfaces.
    "default_interface",
    "dynamic_interfaces",
    "disable_local_igmp",
    "fifo_write_vrrp_states_on_reload",
    "log_unknown_vrids",
    "v3_checksum_as_v2",
    "vmac_prefix",
    "vmac_addr_prefix",
    // With VRRP keepalived runs them.
    "startup_script",
    "startup_script_timeout",
    "shutdown_script",
    "shutdown_script_timeout",
    // Mails about VRRP.
    "smtp_alert_vrrp",
    "no_email_faults",
    "email_faults",
    // xvs reports each failure, and checks a file before it reloads; an include that matches nothing is a warning.
    "checker_log_all_failures",
    "reload_check_config",
    "include_check",
    // Services of the file end with the file.
    "lvs_flush_on_stop",
    "lvs_flush_onstop",
    // Groups are separate services, without marks.
    "nftables",
    "nftables_priority",
    "nftables_counters",
    "nftables_ifindex",
    "nftables_ipvs",
    "nftables_ipvs_priority",
    "nftables_ipvs_start_fwmark",
    // Priorities, memory and sockets of the checker.
    "max_auto_priority",
    "min_auto_priority_delay",
    "checker_priority",
    "checker_no_swap",
    "checker_cpu_affinity",
    "checker_rt_priority",
    "checker_rlimit_rttime",
    "checker_rlimit_rtime",
    "lvs_netlink_cmd_rcv_bufs",
    "lvs_netlink_cmd_rcv_bufs_force",
    "lvs_netlink_monitor_rcv_bufs",
    "lvs_netlink_monitor_rcv_bufs_force",
    "process_monitor_rcv_bufs",
    "process_monitor_rcv_bufs_force",
    // SNMP and D-Bus: xvs has metrics.
    "snmp_socket",
    "enable_snmp_vrrp",
    "enable_snmp_checker",
    "enable_snmp_rfc",
    "enable_snmp_rfcv2",
    "enable_snmp_rfcv3",
    "enable_snmp_keepalived",
    "enable_traps",
    "snmp_vs_stats_update_interval",
    "snmp_rs_stats_update_interval",
    "enable_dbus",
    "dbus_service_name",
    "dbus_no_interface_name",
];

#[cfg(test)]
mod tests {
    use crate::testing::statement;
    use crate::unused::*;

    /// The warnings about a statement outside of all blocks.
    fn about(line: &str) -> Vec<String> {
        let mut faults = Faults::default();
        outside(&statement(line), &mut faults);
        faults.all.into_iter().map(|fault| fault.text).collect()
    }

    /// The warnings about a statement in `global_defs` in a file with or without VRRP.
    fn about_global(line: &str, runs_vrrp: bool) -> Vec<String> {
        let mut faults = Faults::default();
        in_global_defs(&statement(line), runs_vrrp, &mut faults);
        faults.all.into_iter().map(|fault| fault.text).collect()
    }

    #[test]
    fn what_moves_keepalived_elsewhere_causes_a_warning_with_the_step() {
        let [namespace] = &about("net_namespace director-ns")[..] else { panic!() };
        assert!(namespace.ends_with("start both by `ip netns exec director-ns …`, or remove the line"));
        assert!(
            about("net_namespace_ipvs")[0].contains("start it in one with routes to clients and to real")
        );
        assert!(about("instance two")[0].contains("by `include`"));
        assert!(is_own(Path::new("/proc/thread-self/ns/net")) && !is_own(Path::new("/proc/self/ns/mnt")));
    }

    #[test]
    fn statements_without_effect_are_silent_and_misspelt_ones_unknown() {
        for line in ["vrrp_sync_group G {", "use_pid_dir", "child_wait_time 7", "linkbeat_use_polling"] {
            assert_eq!(about(line), [""; 0], "{line}");
        }
        assert_eq!(about("net_namespaces x"), ["unknown keyword `net_namespaces`; it is left out"]);
        for line in
            ["email_faults", "vrrp_garp_master_delay 1", "enable_snmp_checker", "umask 0x22", "lvs_id x"]
        {
            assert_eq!(about_global(line, false), [""; 0], "{line}");
        }
        assert_eq!(
            about_global("script_usr nobody", false),
            ["unknown keyword `script_usr`; it is left out"]
        );
    }

    #[test]
    fn what_keepalived_would_do_beside_checks_causes_a_warning_unless_it_runs_for_vrrp() {
        let script = "startup_script /etc/keepalived/marks.sh";
        assert!(about_global(script, false)[0].contains("ExecStartPre="));
        assert_eq!(about_global(script, true), [""; 0]);
        for (line, step) in [
            ("reload_time_file /run/at", "let a timer of systemd run `xvs reload`"),
            ("reload_file", "wait for the end of `xvs reload`"),
            ("set_supplementary_groups", "write `script_user USER GROUP`"),
            ("random_seed 7", "write the values themselves"),
        ] {
            let [warning] = &about_global(line, true)[..] else { panic!("{line}") };
            assert!(warning.contains(step) && warning.ends_with("remove the line"), "{warning}");
        }
    }
}
