//! What the operator chooses of an interface, `[interfaces.wan]`: its mode, its queues; and how workers wait, `poll`.
//!
//! Each test has a cluster of its own, with veth interfaces, which have native mode and no zero-copy. Needs root.

use std::fs;
use std::path::PathBuf;

use xvs::clients::HalfUpload;
use xvs::cluster::{REAL_SERVERS, Wan, complete, succeed};
use xvs::director::{Protocol, program};
use xvs::servers::Sink;
use xvs::{Cluster, Director, Host, Layout, Method, Workers, traffic, wait};

const UPLOAD: u16 = 9000;

/// Writes an xvs.toml with these lines before the sections, and of `wan`.
fn write(cluster: &Cluster, keys: &str, of_wan: &str) -> PathBuf {
    let file = cluster.state().join("xvs.toml");
    let sections = format!("[interfaces.wan]\n{of_wan}\n[interfaces.lan]\n");
    fs::write(&file, format!("hold = \"1min\"\n{keys}\n{sections}")).expect("the folder takes files");
    file
}

fn mode(of_wan: &str) -> String {
    format!("mode = \"{of_wan}\"")
}

fn start_with<'a>(cluster: &'a Cluster, keys: &str, of_wan: &str) -> Director<'a> {
    let file = write(cluster, keys, of_wan);
    Director::start_on(cluster, Host::Director, &["--config", file.to_str().expect("a plain path")])
}

fn start<'a>(cluster: &'a Cluster, of_wan: &str) -> Director<'a> {
    start_with(cluster, "workers = 2", &mode(of_wan))
}

fn reload_with(cluster: &Cluster, keys: &str, of_wan: &str) {
    write(cluster, keys, of_wan);
    succeed(cluster.command(Host::Director, program("xvs")).arg("reload"));
}

fn reload(cluster: &Cluster, of_wan: &str) {
    reload_with(cluster, "workers = 2", &mode(of_wan));
}

/// What defers the interrupts of both interfaces: how often, and for how many nanoseconds.
fn deferral(cluster: &Cluster) -> String {
    let files = ["wan", "lan"].map(|name| {
        ["napi_defer_hard_irqs", "gro_flush_timeout"].map(|file| format!("/sys/class/net/{name}/{file}"))
    });
    // The folder of the director's namespace.
    let command = "mount -t sysfs sysfs /sys && exec cat \"$@\"";
    let output =
        succeed(cluster.command(Host::Director, "sh").args(["-c", command, "sh"]).args(files.as_flattened()));
    output.split_whitespace().collect::<Vec<_>>().join(" ")
}

const IMMEDIATE: &str = "0 0 0 0";
const DEFERRED: &str = "2 200007 2 200007";

/// Waits until the status has a text, its lines joined.
fn shows(cluster: &Cluster, text: &str) {
    wait::until(text, || {
        let output = complete(cluster.command(Host::Director, program("xvs")).arg("status"));
        let words: Vec<_> = str::from_utf8(&output.stdout).ok()?.split_whitespace().collect();
        words.join(" ").contains(text).then_some(())
    });
}

#[test]
fn a_mode_is_chosen_at_the_start_and_changed_by_a_reload_while_a_connection_goes_on() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, UPLOAD));
    // In generic mode the kernel would strip tags.
    succeed(cluster.command(Host::Director, "ethtool").args(["-K", "wan", "rxvlan", "off"]));
    let mut director = start(&cluster, "generic");
    director.add_service(Protocol::Tcp, UPLOAD, Method::Nat);
    shows(&cluster, "wan: up, generic XDP, 2 queues");
    shows(&cluster, "lan: up, native XDP");
    shows(&cluster, "copy (because of wan)");
    let status = director.status();
    assert!(status.starts_with("ok ") && !status.contains("native refused"), "as wanted: {status}");
    let half = HalfUpload::begin(&cluster, UPLOAD);
    reload(&cluster, "copy");
    shows(&cluster, "wan: up, native XDP");
    reload(&cluster, "generic");
    shows(&cluster, "wan: up, generic XDP");
    director.is_taken_over();
    half.finish();
}

#[test]
fn a_driver_that_refuses_the_native_mode_of_a_reload_goes_on_in_generic_mode() {
    let cluster = Cluster::up(Layout { wan: Wan::Macvlan, ..Default::default() });
    let mut director = start(&cluster, "generic");
    reload(&cluster, "copy");
    shows(&cluster, "wan: up, generic XDP (native refused: ");
    director.is_taken_over();
}

#[test]
fn zero_copy_that_an_interface_cannot_have_is_a_warning_that_names_it_and_copies_serve() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, UPLOAD));
    let director = start(&cluster, "zero-copy");
    director.add_service(Protocol::Tcp, UPLOAD, Method::Nat);
    shows(
        &cluster,
        "wan has mode = \"zero-copy\" in xvs.toml, and its packets are copied because the driver of lan has no zero-copy",
    );
    HalfUpload::begin(&cluster, UPLOAD).finish();
    assert_eq!(director.xvs("get interfaces.wan.mode"), "interfaces.wan.mode  zero-copy  xvs.toml\n");
}

#[test]
fn workers_that_poll_serve_and_defer_interrupts_until_they_end_or_until_the_next_start_after_a_kill() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, UPLOAD));
    let mut director = start_with(&cluster, "poll = \"busy\"", "");
    director.add_service(Protocol::Tcp, UPLOAD, Method::Nat);
    assert_eq!(deferral(&cluster), DEFERRED);
    let half = HalfUpload::begin(&cluster, UPLOAD);
    director.kill();
    assert_eq!(deferral(&cluster), DEFERRED, "nobody could put them back");
    let mut director = start_with(&cluster, "poll = \"sleep\"", "");
    assert_eq!(deferral(&cluster), IMMEDIATE);
    half.finish();
    let half = HalfUpload::begin(&cluster, UPLOAD);
    reload_with(&cluster, "poll = \"adaptive\"", "");
    director.is_taken_over();
    half.finish();
    reload_with(&cluster, "poll = \"busy\"", "");
    assert_eq!(deferral(&cluster), DEFERRED, "a former process leaves them to its successor");
    HalfUpload::begin(&cluster, UPLOAD).finish();
    shows(&cluster, "busy polling");
    director.xvs("stop");
    wait::until("an end puts them back", || (deferral(&cluster) == IMMEDIATE).then_some(()));
}

#[test]
fn a_number_of_queues_is_set_by_a_reload_while_a_connection_goes_on() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, UPLOAD));
    // A veth with XDP needs as many queues as its other end sends by.
    succeed(cluster.command(Host::Client, "ethtool").args(["-L", "wan", "tx", "1"]));
    let mut director = start_with(&cluster, "workers = 1", "queues = 2");
    director.add_service(Protocol::Tcp, UPLOAD, Method::Nat);
    shows(&cluster, "wan: up, native XDP, 2 queues");
    let half = HalfUpload::begin(&cluster, UPLOAD);
    reload_with(&cluster, "workers = 1", "queues = 1");
    shows(&cluster, "wan: up, native XDP, 1 queue");
    director.is_taken_over();
    half.finish();
    // As by `ethtool -L` of somebody else.
    succeed(cluster.command(Host::Director, "ethtool").args(["-L", "wan", "rx", "2"]));
    wait::until("the wanted number is restored", || {
        let listed = succeed(cluster.command(Host::Director, "ethtool").args(["-l", "wan"]));
        listed
            .lines()
            .rev()
            .find_map(|line| line.strip_prefix("RX:"))
            .filter(|now| now.trim() == "1")
            .map(|_| ())
    });
    HalfUpload::begin(&cluster, UPLOAD).finish();
    write(&cluster, "workers = 1", "queues = 3000");
    let refused = complete(cluster.command(Host::Director, program("xvs")).arg("reload"));
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        error.contains("wan can have at most") && error.contains("set `queues` of `[interfaces.wan]` to"),
        "{error}"
    );
}
