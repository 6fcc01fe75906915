//! The status page in a real browser: sizes and colours, a real server that dies, the last hour, ten thousand services,
//! a thousand viewers.
//!
//! Debian's Chromium runs without a window on the director's host. Needs root. Not here: answers of the HTTP server
//! (`crates/xvsd/src/metrics`), the content of the document (`crates/xvsd/src/status`).

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use rustix::system::uname;
use serde_json::{Value, json};
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

/// JavaScript that shows the director's document with long names and sentences, and returns what is wrong with the
/// page: it scrolls sideways, a word is broken that is no address, a row is taller than the limit, a text has too
/// little contrast (WCAG 2, 4.5), a line of the last hour has too little (3), no gap, or no words.
const FAULTS: &str = r#"(async limit => {
  const page = await (await fetch('status.json')).json(), ipv6 = page.services[1];
  const sentence = 'for 12 s; TCP [2001:db8:2:1111:2222:3333:4444:5555]:8080: no connection within 5 s; see `xvs status`';
  const states = ['up', 'down', 'failing', 'unanswered', 'unreachable', 'overloaded', 'disabled', 'quiescent', 'sorry'];
  const server = ipv6.servers[0], endpoint = place => `[2001:db8:2:1111:2222:3333:4444:${5550 + place}]:8080`;
  Object.assign(server, { active: 123456, inactive: 987654 });
  ipv6.servers = states.map((state, place) => ({ ...server, state, server: endpoint(place), words: sentence }));
  Object.assign(ipv6, { state: 'down', why: `has no quorum: live weight 0, quorum 1; its sorry server ${endpoint(0)} serves` });
  const host = 'director-with-a-long-name-1.rack17.example.com', rates = page.totals;
  const director = { name: host, instance: '1', runs: null, refused: { revision: 7, why: sentence }, warnings: [], connections: 7, rates };
  Object.assign(page.status, { host, warnings: [`${ipv6.service}: ${sentence}`] });
  page.status.fleet = { fleet: 'frankfurt', director: 'lb1', rules: 7, directors: [director], settling: [] };
  page.status.drops.push({ reason: 'kernel_fill_ring_empty', packets: 1234567, what: sentence });
  show(page);
  const counts = Array.from({ length: 360 }, (_, place) => place > 320 && place < 340 ? null : 123456789 + 1e8 * (place % 9));
  const [connections, in_packets, out_packets, dropped_packets] = Array(4).fill(counts);
  const names = page.services.map(one => [one.service, counts.slice(-60)]);
  showHour({ totals: { step_seconds: 10, connections, in_packets, out_packets, dropped_packets },
    services: { step_seconds: 60, connections: Object.fromEntries(names) } });

  const faults = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  if (document.documentElement.scrollWidth > innerWidth) faults.push(`${document.documentElement.scrollWidth} pixels wide`);
  for (const row of document.querySelectorAll('tr')) {
    const { height } = row.getBoundingClientRect();
    if (height >= limit) faults.push(`${row.cells[0].textContent} is ${height} pixels high`);
  }
  const rgba = text => (([r, g, b, a = 1]) => [r, g, b, a])(text.match(/[\d.]+/g).map(Number));
  const light = colour => rgba(colour).slice(0, 3).map(part => part / 255)
    .map(part => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4).reduce((sum, part, place) => sum + part * [.2126, .7152, .0722][place], 0);
  const contrast = (node, colour) => {
    let back = node;
    while (rgba(getComputedStyle(back).backgroundColor)[3] === 0) back = back.parentElement;
    const [dark, bright] = [colour, getComputedStyle(back).backgroundColor].map(light).sort((one, other) => one - other);
    return (bright + .05) / (dark + .05);
  };
  while (texts.nextNode()) {
    const text = texts.currentNode, parent = text.parentElement;
    if (!parent.checkVisibility() || parent.closest('script, noscript, caption')) continue;
    for (const { 0: word, index } of text.data.matchAll(/[^\s/-]+/g)) {
      const range = document.createRange();
      range.setStart(text, index);
      range.setEnd(text, index + word.length);
      const lines = new Set([...range.getClientRects()].map(rect => Math.round(rect.top)));
      if (lines.size > 1 && !/^[\[\]0-9a-f:.,;]+$/.test(word)) faults.push(`${word} is broken`);
    }
    if (!text.data.trim() || parent.closest(':disabled')) continue;
    const seen = contrast(parent, getComputedStyle(parent).color);
    if (seen < 4.5) faults.push(`${text.data} has a contrast of ${seen}`);
  }
  const lines = document.querySelectorAll('.plot path:not(.area), .spark path:not(.area)');
  if (lines.length !== 4 + page.services.length) faults.push(`${lines.length} lines`);
  for (const line of lines) {
    const title = line.parentNode.querySelector('title').textContent, seen = contrast(line, getComputedStyle(line).stroke);
    if (seen < 3) faults.push(`${title} has a contrast of ${seen}`);
    if (line.getAttribute('d').split('M').length !== 3) faults.push(`${title}: ${line.getAttribute('d')}`);
    const words = line.closest('.plot') ? /now [\d.]+.M, lowest .+, highest .+; 3 min missing$/ : /now [\d.]+.M, lowest .+, highest .+, 19 min missing$/;
    if (!words.test(title)) faults.push(`${title} does not say the numbers`);
  }
  return faults;
})"#;

#[test]
fn the_page_names_its_director_and_fits_phones_and_desktops_in_light_and_dark() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let (ipv6, long) =
        ("[2001:db8:1:1111:2222:3333:4444:5555]:8080", "[2001:db8:2:1111:2222:3333:4444:5555]:8080");
    let rules = format!(
        "-A -t {VIP}:80 -s rr\n-a -t {VIP}:80 -r {}:80 -m\n\
         #xvs limit set -t {VIP}:80 --connections 50 --rate 1000 --syn-rate 5000\n\
         -A -t {ipv6} -s rr\n-a -t {ipv6} -r {long} -m -x 100000 -y 75000\n",
        real_server(1)
    );
    let file = cluster.state().join("rules");
    fs::write(&file, rules).expect("the cluster's folder takes a new file");
    let _director = director(&cluster, &["--rules", &file.display().to_string()]);
    let mut browser = opened(&cluster, "");
    let host = uname().nodename().to_string_lossy().into_owned();
    browser.until("document.getElementById('host')?.textContent", host.as_str());
    browser.until(&format!("document.title.includes(' – {host} – ')"), true);

    clients::pages(&cluster, &format!("http://{VIP}/"), 10);
    let shown = |row: &str, column: &str| {
        format!("[...{row}.cells].find(cell => cell.dataset.name === '{column}')?.firstChild.textContent")
    };
    let all = "document.querySelector('#services thead').rows[1]";
    browser.value("document.getElementById('totals').click()");
    for row in [all, "document.querySelector('#services tbody').rows[0]", &row(1)] {
        browser.until(&shown(row, "Conns"), "10");
    }
    let title = "document.querySelector('#services thead th:nth-child(7)').textContent";
    browser.until(title, "Conns");
    browser.until("location.search", "?totals=");
    browser.value("document.getElementById('totals').click()");
    browser.until(title, "New\u{a0}/\u{2060}s");
    let limits = "[...document.querySelectorAll('.active small')].map(small => small.textContent).join('')";
    browser.until(limits, "upper\u{a0}100,000, lower\u{a0}75,000");
    browser.until(
        "document.querySelector('#services tbody .words').textContent",
        "limit of a client: 50 connections, 1,000 new\u{a0}/\u{2060}s; limit of all: 5,000 SYNs\u{a0}/\u{2060}s",
    );

    for (width, is_phone, highest_row) in [(400, true, 130), (800, false, 120), (1400, false, 100)] {
        for scheme in ["light", "dark"] {
            browser.look((width, 900), is_phone, scheme);
            let faults = browser.value(&format!("{FAULTS}({highest_row})"));
            assert_eq!(faults, json!([]), "{width} pixels, {scheme}");
        }
    }
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
    let options = ["--keepalived", &file.display().to_string(), "--hold", "10s"];
    let mut director = director(&cluster, &options);
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
    browser.until("document.querySelector('#services tbody tr .state').textContent", "2 of 2 usable");
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
    // Those of the README, made anew by `XVS_PICTURES=docs/pictures` and this test.
    if let Some(folder) = std::env::var_os("XVS_PICTURES") {
        browser.call("Emulation.setScrollbarsHidden", json!({ "hidden": true }));
        for scheme in ["light", "dark"] {
            browser.look((1100, 790), false, scheme);
            browser.value(
                "(async () => { const page = await (await fetch('status.json')).json(); \
                 page.status.host = 'lb1'; show(page); })()",
            );
            let file = Path::new(&folder).join(format!("status-page-{scheme}.png"));
            fs::write(file, browser.picture()).expect("the folder takes a picture");
        }
    }

    let folder = cluster.state().join("rs2");
    let folder = folder.display();
    wait::until("nginx has ended", || fs::metadata(format!("{folder}/nginx.pid")).err());
    let mut nginx = cluster.command(Host::RealServer(2), "nginx");
    let arguments = format!("-e {folder}/error.log -p {folder} -c {folder}/nginx.conf");
    succeed(nginx.args(arguments.split(' ')));
    browser.until(&format!("{}.dataset.state", row(2)), "up");

    // The successor goes on with the lines, without a gap.
    let fetched = "(async () => (await (await fetch('history.json')).json()).totals.connections)()";
    let counted = |browser: &mut Browser| {
        let counts = browser.value(fetched);
        counts.as_array().expect("counts").iter().map(Value::as_u64).collect::<Vec<_>>()
    };
    let before = wait::until("a step with connections is over", || {
        clients::pages(&cluster, &format!("http://{VIP}/"), 2);
        Some(counted(&mut browser)).filter(|counts| counts.last().is_some_and(|count| *count > Some(0)))
    });
    browser.value("asked = undefined; refreshHour()");
    let title = "document.querySelector('.plot title').textContent";
    browser.until(
        &format!("/second in the last hour: now .*[1-9], lowest .*, highest .*[1-9]/.test({title})"),
        true,
    );
    let config = cluster.state().join("xvs.toml");
    let config = ["--config", config.to_str().expect("a plain path")];
    let successor = Director::take_over(&cluster, Workers::Two, &[&config[..], &options[..]].concat());
    let successor = successor.unwrap_or_else(|log| panic!("{log}"));
    assert!(director.has_ended().success(), "{}", director.log());
    let after = counted(&mut browser);
    assert_eq!(after[..before.len()], before);
    assert!(after.iter().all(Option::is_some), "no gap: {after:?}");

    drop(successor);
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
    let past =
        "performance.getEntriesByType('resource').find(one => one.name.includes('history')).decodedBodySize";
    eprintln!("its last hour: {} bytes", browser.value(past));
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
