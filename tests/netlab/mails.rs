//! Mails about real servers, as a keepalived.conf wants them, to a real mail server.
//!
//! The cluster is the test's own. Needs root. Not here: the queue, pauses and summaries (`crates/health/src/mail.rs`).

use std::fs;
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use xvs::cluster::{VIP, real_server, succeed};
use xvs::servers::Sink;
use xvs::{Cluster, Director, Host, Method, Workers, traffic, wait};

use super::fullnat::Started;

/// The port of the checks; the end of a sink there takes its real server down.
const LIFE: u16 = 9000;
/// The port of the mail server, on the first real server.
const MAIL: u16 = 2525;

/// A mail server that takes mails by STARTTLS alone, and its log, which has the mails.
fn mail_server(cluster: &Cluster) -> (PathBuf, Started) {
    let [certificate, key, log] = ["mail.crt", "mail.key", "mails"].map(|name| cluster.state().join(name));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=another.example.org"]);
    succeed(openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate));
    // Debian's Python, which has Debian's module.
    let mut command = cluster.command(Host::RealServer(1), "/usr/bin/python3");
    command.args(["-u", "-m", "aiosmtpd", "-n", "-l", &format!("{}:{MAIL}", real_server(1))]);
    command.arg("--tlscert").arg(certificate).arg("--tlskey").arg(key);
    command.stdout(File::create(&log).expect("the cluster's folder takes a new file"));
    (log, Started(command.spawn().expect("python3 is installed")))
}

#[test]
fn a_mail_tells_each_recipient_that_a_real_server_is_down_also_by_a_server_that_was_away_and_that_it_is_up() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _first = Sink::start(&cluster, Host::RealServer(1), LIFE);
    let second = Sink::start(&cluster, Host::RealServer(2), LIFE);
    let [first_addr, second_addr] = [1, 2].map(real_server);
    let of = |addr| format!("real_server {addr} 80 {{\nTCP_CHECK {{\nconnect_port {LIFE}\n}}\n}}\n");
    let text = format!(
        "global_defs {{\nnotification_email {{\nops@example.org\nnoc@example.org\n}}\n\
         notification_email_from lvs@example.org\nsmtp_server {first_addr} {MAIL}\nrouter_id LB1\n}}\n\
         virtual_server {VIP} 80 {{\nlb_algo rr\nlb_kind NAT\nprotocol TCP\ndelay_loop 0.2\nwarmup 0\n\
         connect_timeout 1\nretry 1\ndelay_before_retry 0.1\n{}{}}}\n",
        of(first_addr),
        of(second_addr)
    );
    let file = cluster.state().join("keepalived.conf");
    fs::write(&file, text).expect("the cluster's folder takes a new file");
    let director =
        Director::start_with(&cluster, Workers::One, &["--keepalived", &file.display().to_string()]);
    let is_up = |wanted: bool| {
        let server = format!("{second_addr}:80");
        wait::until("the state of the second server", || {
            (director.adm("-Sn").contains(&server) == wanted).then_some(())
        });
    };
    is_up(true);
    drop(second);
    is_up(false);
    let (log, _server) = mail_server(&cluster);
    let subject = |status: &str| {
        format!(
            "Subject: [LB1] Realserver [{second_addr}]:tcp:80 of virtual server [{VIP}]:tcp:80 - {status}"
        )
    };
    // A long header field is folded (RFC 5322, section 2.2.3).
    let mails = || fs::read_to_string(&log).unwrap_or_default().replace("\n ", " ");
    let await_mail = |subject: &str| wait::until(subject, || mails().contains(subject).then_some(()));
    await_mail(&subject("DOWN"));
    let reason = format!("{second_addr}:80 of {VIP} 80 is down: TCP {second_addr}:{LIFE}: ");
    for part in ["From: lvs@example.org", "To: ops@example.org, noc@example.org", &reason] {
        assert!(mails().contains(part), "{part}:\n{}", mails());
    }
    let _second = Sink::start(&cluster, Host::RealServer(2), LIFE);
    await_mail(&subject("UP"));
    assert!(!mails().contains("Virtualserver"), "{}", mails());
}
