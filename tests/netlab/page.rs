//! The status page in a real browser: a real server that dies, ten thousand services, a thousand viewers.
//!
//! Debian's Chromium runs without a window on the director's host. Needs root. Not here: answers of the HTTP server
//! (`crates/xvsd/src/metrics`), the content of the document (`crates/xvsd/src/status`).

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use xvs::browser::Browser;
use xvs::cluster::{VIP, real_server, succeed};
use xvs::exposition::ADDRESS;
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic, wait};

/// Starts a director with metrics, and switches its status page on by a reload.
fn director<'a>(cluster: &'a Cluster, more: &[&str]) -> Director<'a> {
    let file = cluster.state().join("xvs.toml");
    let write = |more: &str| {
        let text = format!("metrics_address = {ADDRESS:?}\n{more}");
        fs::write(&file, text).expect("the cluster's folder takes a file");
    };
    write("");
    let arguments = ["--config", file.to_str().expect("a plain path")];
    let director = Director::start_with(cluster, Workers::Two, &[&arguments, more].concat());
    let code = || {
        let mut curl = cluster.command(Host::Director, "curl");
        let arguments = ["--silent", "--output", "/dev/null", "--write-out", "%{http_code}"];
        succeed(curl.args(arguments).arg(format!("http://{ADDRESS}/")))
    };
    assert_eq!(code(), "404");
    write("status_page = true\n");
    assert_eq!(director.xvs("reload").lines().next(), Some("status_page: false -> true"));
    assert_eq!(code(), "200");
    director
}

fn opened(cluster: &Cluster, query: &str) -> Browser {
    let mut browser = Browser::start(cluster, Host::Director, (1400, 1000));
    browser.open(&format!("http://{ADDRESS}/{query}"));
    browser
}

/// JavaScript for the row of a real server.
fn row(number: u8) -> String {
    let server = format!("{}:80", real_server(number));
    format!(
        "[...document.querySelectorAll('#services tr')].find(tr => tr.cells[0].textContent === '{server}')"
    )
}

/// The colour of a row's state, as red, green and blue.
fn colour(browser: &mut Browser, number: u8) -> [i64; 3] {
    let state =
        format!("getComputedStyle({}.querySelector('.state')).color.match(/\\d+/g).map(Number)", row(number));
    let value = browser.value(&state);
    [0, 1, 2].map(|place| value[place].as_i64().expect("rgb(…)"))
}

#[test]
fn a_real_server_that_dies_turns_red_in_an_open_page_and_green_when_it_is_back() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let server = |number| {
        format!("real_server {} 80 {{\nTCP_CHECK {{\nconnect_timeout 1\n}}\n}}\n", real_server(number))
    };
    let file = cluster.state().join("keepalived.conf");
    let text = format!(
        "virtual_server {VIP} 80 {{\nlb_algo rr\nlb_kind NAT\nprotocol TCP\ndelay_loop 0.2\nwarmup 0\nretry 1\n\
         delay_before_retry 0.1\n{}{}}}\n",
        server(1),
        server(2)
    );
    fs::write(&file, text).expect("the cluster's folder takes a new file");
    let director = director(&cluster, &["--keepalived", &file.display().to_string()]);
    let mut browser = opened(&cluster, "");
    for number in [1, 2] {
        browser.until(&format!("{}?.dataset.state", row(number)), "up");
        let [red, green, _] = colour(&mut browser, number);
        assert!(green > red, "{red} {green}");
        browser.until(
            &format!("/^up for .+; passed in .+ ms$/.test({}.cells[1].textContent)", row(number)),
            true,
        );
    }
    browser.until("document.getElementById('state').textContent", "ok");
    browser
        .until("document.querySelector('#services tbody tr').cells[1].textContent.trim()", "2 of 2 usable");
    clients::pages(&cluster, &format!("http://{VIP}/"), 10);
    browser.until("Number(document.getElementById('connections').textContent) > 0", true);

    director.xvs(&format!("disable {}", real_server(1)));
    browser.until(&format!("{}.dataset.state", row(1)), "disabled");
    director.xvs(&format!("enable {}", real_server(1)));

    let nginx = fs::read_to_string(cluster.state().join("rs2/nginx.pid")).expect("nginx runs");
    let nginx = nginx.trim().parse().ok().and_then(Pid::from_raw).expect("a process");
    kill_process(nginx, Signal::TERM).expect("nginx runs");
    browser.until(&format!("{}.dataset.state", row(2)), "down");
    let [red, green, blue] = colour(&mut browser, 2);
    assert!(red > 2 * green && red > 2 * blue, "{red} {green} {blue}");
    let text = browser.value(&format!("{}.cells[1].textContent", row(2)));
    assert!(
        text.as_str().is_some_and(|text| text.starts_with("down ") && text.contains("refused")),
        "{text}"
    );
    browser.until("document.querySelector('#services tbody tr').className", "warn");

    let folder = cluster.state().join("rs2");
    let folder = folder.display();
    wait::until("nginx has ended", || fs::metadata(format!("{folder}/nginx.pid")).err());
    let mut nginx = cluster.command(Host::RealServer(2), "nginx");
    let arguments = format!("-e {folder}/error.log -p {folder} -c {folder}/nginx.conf");
    succeed(nginx.args(arguments.split(' ')));
    browser.until(&format!("{}.dataset.state", row(2)), "up");

    drop(director);
    browser.until("document.getElementById('state').textContent", "no answer");
    browser.until("document.getElementById('silent').checkVisibility()", true);
    let text = browser.value("document.getElementById('silent').textContent");
    assert!(
        text.as_str().is_some_and(|text| text.starts_with("xvsd does not answer. What you see")),
        "{text}"
    );
    browser.until(&format!("{}.dataset.state", row(1)), "up");
}

/// The number of services of the second test.
const SERVICES: usize = 10_000;

#[test]
fn ten_thousand_services_are_paged_and_searched_and_a_thousand_viewers_delay_no_command() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let service = |number: usize| format!("-t 203.0.{}.{}:80", number / 200, number % 200);
    let rules: String = (0..SERVICES)
        .map(|number| {
            let weight = usize::from(number != 7777);
            format!("-A {0} -s rr\n-a {0} -r {1}:80 -m -w {weight}\n", service(number), real_server(1))
        })
        .collect();
    let file = cluster.state().join("rules");
    fs::write(&file, rules).expect("the cluster's folder takes a new file");
    let director = director(&cluster, &["--rules", &file.display().to_string()]);
    let mut browser = opened(&cluster, "");
    browser.until("document.querySelectorAll('#services tbody').length > 100", true);
    let shown = "performance.now() - (performance.getEntriesByType('resource').at(-1)?.startTime ?? 0)";
    eprintln!("{SERVICES} services: shown, at the latest {} ms after the last request", browser.value(shown));
    browser.until("document.getElementById('of_services').textContent", "10,000 services");
    browser.until("document.getElementById('with_problem').textContent", "(1)");
    let pages = browser.value("document.getElementById('range').textContent");
    assert_eq!(pages, "page 1 of 67");

    let first = "document.querySelector('#services tbody th')?.textContent";
    browser.until(first, "TCP 203.0.0.0:80");
    browser.value("document.querySelector('[data-turn=\"1\"]').click()");
    browser.until(first, "TCP 203.0.0.150:80");
    browser.until("location.search", "?page=2");
    let search = |words: &str| {
        let set = "document.getElementById('search')";
        format!("{set}.focus(); {set}.value = '{words}'; {set}.dispatchEvent(new Event('input'))")
    };
    let names = "[...document.querySelectorAll('#services tbody')].map(one => one.rows[0].cells[0].textContent).join()";
    browser.value(&search("203.0.12.34:"));
    browser.until(names, "TCP 203.0.12.34:80");
    browser.until("document.activeElement.id", "search");
    browser.value(&search("Quiescent  TCP"));
    browser.until(names, "TCP 203.0.38.177:80");
    browser.value(&search("no such <b>"));
    browser.until("document.getElementById('none').textContent", "No service matches.");
    browser.value(&search(""));
    browser.value("document.getElementById('problems').click()");
    browser.until(names, "TCP 203.0.38.177:80");
    browser.open(&format!("http://{ADDRESS}/?search=203.0.49.199"));
    browser.until(names, "TCP 203.0.49.199:80");

    let answered = cluster.run(Host::Director, || {
        let mut viewers: Vec<_> = (0..1000)
            .map(|_| {
                let mut viewer = TcpStream::connect(ADDRESS).expect("xvsd listens");
                // It may have been closed for a later one.
                let _ = viewer.write_all(b"GET /status.json?search=203.0.49. HTTP/1.0\r\n\r\n");
                viewer
            })
            .collect();
        director.adm(&format!("-E {} -s wrr", service(0)));
        let whole = |viewer: &mut TcpStream| {
            let mut text = String::new();
            let read = viewer.read_to_string(&mut text).is_ok() && text.starts_with("HTTP/1.0 200");
            read && serde_json::from_str::<Value>(text.split_once("\r\n\r\n").expect("a body").1).is_ok()
        };
        viewers.iter_mut().filter_map(|viewer| whole(viewer).then_some(())).count()
    });
    assert!(answered > 0, "none of 1,000 was answered");
    eprintln!("{answered} of 1,000 viewers at once were answered");
    assert!(director.adm(&format!("-Ln {}", service(0))).contains("wrr"));
    browser.until(names, "TCP 203.0.49.199:80");
    browser.until("document.getElementById('state').textContent !== 'no answer'", true);
}
