//! The operator's choice of an interface's mode, `[interfaces.wan] mode`.
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

/// Writes an xvs.toml with this mode of `wan`.
fn write(cluster: &Cluster, mode: &str) -> PathBuf {
    let file = cluster.state().join("xvs.toml");
    let sections = format!("[interfaces.wan]\nmode = \"{mode}\"\n[interfaces.lan]\n");
    fs::write(&file, format!("workers = 2\nhold = \"1min\"\n{sections}")).expect("the folder takes files");
    file
}

fn start<'a>(cluster: &'a Cluster, mode: &str) -> Director<'a> {
    let file = write(cluster, mode);
    Director::start_on(cluster, Host::Director, &["--config", file.to_str().expect("a plain path")])
}

fn reload(cluster: &Cluster, mode: &str) {
    write(cluster, mode);
    succeed(cluster.command(Host::Director, program("xvs")).arg("reload"));
}

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
    shows(&cluster, "wan has mode = \"zero-copy\" in xvs.toml, and its packets are copied because of lan");
    HalfUpload::begin(&cluster, UPLOAD).finish();
    assert_eq!(director.xvs("get interfaces.wan.mode"), "interfaces.wan.mode  zero-copy  xvs.toml\n");
}
