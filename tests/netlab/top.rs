//! `xvs top` in a real terminal of 80 columns and 24 lines, provided by tmux, with a running daemon.
//!
//! Each test has a cluster of its own. Needs root. Not here: every key and column (`crates/cli/src/top/`).

use std::fs;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use xvs::cluster::{VIP, complete, real_server, succeed};
use xvs::director::{Protocol, program};
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic, wait};

/// A terminal on the director in which `xvs top` runs; afterwards a shell prints its exit code.
struct Terminal<'a> {
    cluster: &'a Cluster,
}

impl<'a> Terminal<'a> {
    fn start(cluster: &'a Cluster) -> Self {
        let terminal = Self { cluster };
        let script = format!(
            "LC_ALL=C.UTF-8 {} top; code=$?; stty -a; echo ended $code; cat",
            program("xvs").display()
        );
        let size = ["-x", "80", "-y", "24"];
        succeed(
            terminal.tmux(&["-f", "/dev/null", "new-session", "-d"]).args(size).args(["sh", "-c", &script]),
        );
        terminal
    }

    fn tmux(&self, words: &[&str]) -> Command {
        let socket = self.cluster.state().join("tmux");
        let mut command = self.cluster.command(Host::Director, "tmux");
        command.arg("-u").arg("-S").arg(socket).args(words);
        command
    }

    fn press(&self, keys: &[&str]) {
        succeed(self.tmux(&["send-keys"]).args(keys));
    }

    /// The lines of the screen.
    fn lines(&self) -> Vec<String> {
        let text = succeed(&mut self.tmux(&["capture-pane", "-p"]));
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until `found` is true of the screen, and returns the screen.
    #[track_caller]
    fn until(&self, what: &str, found: impl Fn(&[String]) -> bool) -> Vec<String> {
        wait::until(what, || Some(self.lines()).filter(|lines| found(lines)))
    }

    /// A variable of tmux about the terminal.
    fn knows(&self, name: &str) -> String {
        succeed(&mut self.tmux(&["display-message", "-p", &format!("#{{{name}}}")])).trim().to_owned()
    }

    /// Waits until `xvs top` has ended with this exit code, and asserts that the terminal is restored.
    #[track_caller]
    fn ended(&self, with: &str) {
        let screen = self.until("its end", |lines| lines.iter().any(|line| line.starts_with("ended ")));
        assert!(screen.contains(&format!("ended {with}")), "{screen:#?}");
        let settings = screen.join(" ");
        for setting in ["icanon", "echo", "isig", "opost"] {
            assert!(settings.split([' ', ';']).any(|word| word == setting), "{setting}: {screen:#?}");
        }
        assert_eq!((self.knows("alternate_on"), self.knows("cursor_flag")), ("0".to_owned(), "1".to_owned()));
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let _ = complete(&mut self.tmux(&["kill-server"]));
    }
}

/// The words of the row of this service or real server.
fn row(lines: &[String], name: &str) -> Option<Vec<String>> {
    let line = lines.iter().find(|line| line.contains(name))?;
    Some(line.split_whitespace().map(str::to_owned).collect())
}

fn served(cluster: &Cluster) -> Director<'_> {
    let director = Director::start(cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    director.add_service(Protocol::Udp, 53, Method::Nat);
    director
}

#[test]
fn services_and_rates_fit_80_by_24_and_keys_sort_filter_and_quit() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = served(&cluster);
    let terminal = Terminal::start(&cluster);
    let (web, dns) = (format!("TCP {VIP}:80"), format!("UDP {VIP}:53"));
    let lines = wait::until("rates of the service that has clients", || {
        clients::pages(&cluster, &format!("http://{VIP}/"), 8);
        let lines = terminal.lines();
        let rate: f64 = row(&lines, &web)?.get(2)?.parse().ok()?;
        (rate > 0.0).then_some(lines)
    });
    assert!(lines.len() <= 24 && lines.iter().all(|line| line.chars().count() <= 80), "{lines:#?}");
    assert!(lines[0].contains(", xvsd "), "{lines:#?}");
    assert!(lines[1].starts_with("workers  0: ") && lines[2].starts_with("drops/s  "), "{lines:#?}");
    let minute = &lines[3];
    assert!(
        minute.starts_with("minute   CPS ") && minute.contains('█') && minute.contains(" drops "),
        "{lines:#?}"
    );
    assert!(lines[4].contains(">CPS"), "{lines:#?}");
    assert!(lines[6].starts_with(&web), "the one with connections is first: {lines:#?}");
    assert!(row(&lines, &format!("{}:80 Masq 1", real_server(1))).is_some(), "{lines:#?}");

    terminal.press(&["n"]);
    terminal.until("sorted by name", |lines| lines[4].starts_with(">Service") && lines[6].starts_with(&web));
    terminal.press(&["b"]);
    terminal.until("sorted by bytes", |lines| lines[4].contains(">InBPS"));
    terminal.press(&["/", "u", "d", "p"]);
    terminal.until("filtered while it is typed", |lines| {
        lines[6].starts_with(&dns) && row(lines, &web).is_none() && lines[23].starts_with("filter: udp_")
    });
    terminal.press(&["Enter"]);
    terminal.until("the filter is kept", |lines| {
        lines[23].contains("1-3 of 3") && lines[23].contains("filter: udp")
    });
    terminal.press(&["/", "Escape"]);
    terminal.until("all are back", |lines| lines[23].contains("of 6"));

    succeed(&mut terminal.tmux(&["resize-window", "-x", "100", "-y", "12"]));
    let lines = terminal.until("the smaller screen", |lines| lines.len() == 12 && lines[11].contains("of 6"));
    assert!(
        lines[4].trim_end().ends_with("Resp99") && lines[4].trim_end().chars().count() == 100,
        "{lines:#?}"
    );
    terminal.press(&["q"]);
    terminal.ended("0");
    drop(director);
}

#[test]
fn a_signal_ends_top_and_restores_the_terminal() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _director = served(&cluster);
    let terminal = Terminal::start(&cluster);
    terminal.until("the first screen", |lines| lines.first().is_some_and(|line| line.contains("xvsd ")));
    assert_eq!(terminal.knows("alternate_on"), "1");
    let shell = terminal.knows("pane_pid");
    let children =
        fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).expect("the shell runs");
    let top = children.trim().parse().ok().and_then(Pid::from_raw).expect("one child");
    kill_process(top, Signal::TERM).expect("it runs");
    terminal.ended("143");
}

#[test]
fn the_end_of_the_daemon_is_reported_and_a_new_daemon_is_shown() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let mut director = served(&cluster);
    let terminal = Terminal::start(&cluster);
    terminal.until("services", |lines| row(lines, "UDP").is_some());
    assert!(director.stop().success());
    terminal.until("there is no daemon", |lines| lines[0].starts_with("no xvsd listens on "));
    let _again = Director::start(&cluster, Workers::One);
    terminal.until("its services", |lines| lines[0].starts_with("ok   ") && row(lines, "UDP").is_some());
    terminal.press(&["C-c"]);
    terminal.ended("0");
}

#[test]
fn without_a_terminal_top_names_the_next_step_and_can_print_one_frame() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = served(&cluster);
    let refused = complete(cluster.command(Host::Director, program("xvs")).arg("top"));
    assert_eq!(refused.status.code(), Some(1));
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(message.contains("`xvs top --once`") && message.contains("`xvs status`"), "{message}");
    let frame = director.xvs("top --once --sort name --filter :53");
    let lines: Vec<_> = frame.lines().map(str::to_owned).collect();
    assert!(lines[0].contains("xvsd ") && lines[3].starts_with(">Service"), "{frame}");
    assert!(
        lines[4].starts_with("all services ") && lines[5].starts_with(&format!("UDP {VIP}:53 ")),
        "{frame}"
    );
    assert_eq!(lines.len(), 8, "the service and its two servers: {frame}");
    assert!(!frame.contains('\u{1b}') && lines.iter().all(|line| line.chars().count() <= 94), "{frame}");
}
