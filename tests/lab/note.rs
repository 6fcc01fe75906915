//! Notes at services (`xvs note`): written, listed, saved, planned, applied and deleted.

use xvs::LabCluster;
use xvs::lab_cluster::VIP;

fn cluster() -> LabCluster {
    let mut cluster = LabCluster::new();
    cluster.configure(&[&format!("-A -t {VIP}:80 -s rr")]);
    cluster.xvs(&format!("note set -t {VIP}:80 shop of ACME,  call Anna"));
    cluster
}

#[test]
fn a_note_is_listed_saved_and_restored_and_stays_when_its_service_is_deleted() {
    let mut cluster = cluster();
    let line = format!("#xvs note set -t {VIP}:80 shop of ACME, call Anna\n");
    let saved = cluster.adm("-S -n");
    assert!(saved.contains(&line), "{saved}");
    assert_eq!(
        cluster.xvs("note list"),
        format!("{:<40} shop of ACME, call Anna\n", format!("TCP {VIP}:80"))
    );
    cluster.adm("-C");
    assert!(cluster.adm("-S -n").contains(&line));
    cluster.xvs(&format!("note set -t {VIP}:80 ipvsadm wrote this"));
    cluster.xvs("note set -f 7 -6 by mark");
    let notes: serde_json::Value = serde_json::from_str(&cluster.xvs("note list --json")).unwrap();
    let expected = serde_json::json!([
        {"service": format!("TCP {VIP}:80"), "text": "ipvsadm wrote this"},
        {"service": "FWM 7 IPv6", "text": "by mark"},
    ]);
    assert_eq!(notes, expected);
    let saved = cluster.adm("-S -n");
    let mut other = LabCluster::new();
    let answer = other.ask(serde_json::json!({ "adm": ["-R"], "stdin": saved }));
    assert_eq!(answer["exit"], 0, "{answer}");
    assert_eq!(other.adm("-S -n"), saved);
}

#[test]
fn a_wrong_note_is_refused_with_its_reason_and_the_former_one_stays() {
    let mut cluster = cluster();
    let long = "x".repeat(201);
    for (note, reason) in [(long.as_str(), "has 201 bytes"), ("\u{202e}x", "is no single line of words")] {
        let (exit, why) = cluster.xvs_reading(&format!("note set -t {VIP}:80 {note}"));
        assert!(exit != 0 && why.contains(reason), "{why}");
    }
    assert!(cluster.xvs("note list").contains("call Anna"));
    cluster.xvs(&format!("note delete -t {VIP}:80"));
    let (exit, why) = cluster.xvs_reading(&format!("note delete -t {VIP}:80"));
    assert!(exit != 0 && why.contains("has no note; `xvs note list`"), "{why}");
    assert_eq!(cluster.xvs("note list"), "no notes; `xvs note set --help` says how to write one\n");
}
