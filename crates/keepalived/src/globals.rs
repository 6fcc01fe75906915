//! `global_defs` for health checks: the user of scripts, script security, FIFOs, mails.
//!
//! Pure: whether users and programs exist is checked when they are used. Source: keepalived-behaviour, sections 5.5 and
//! 5.8.

use xvs_model::health_checks::mail::MailSettings;
use xvs_model::health_checks::virtual_server::{Fifo, Globals};

use crate::blocks::Block;
use crate::values::{Faults, decimal};

/// Applies a statement. Returns whether it belongs here.
pub(super) fn apply(globals: &mut Globals, block: &Block, faults: &mut Faults) -> bool {
    let words = block.arguments();
    match block.keyword() {
        "script_user" => {
            if let Some(user) = faults.argument(block) {
                globals.script_user = Some((user.to_owned(), words.get(1).cloned()));
            }
        }
        "enable_script_security" => {
            globals.enable_script_security = faults.switch(block).unwrap_or(false);
        }
        "rs_init_notifies" => globals.rs_init_notifies = faults.switch(block).unwrap_or(false),
        "lvs_flush" => {
            globals.lvs_flush = faults.switch(block).unwrap_or(false);
            if globals.lvs_flush {
                faults.warn_of(
                    block,
                    "each start of xvsd, also a take-over, removes the services of `rules` and of `xvsadm`; remove the \
                     line, for no service that left this file comes back without it",
                );
            }
        }
        keyword @ ("notify_fifo" | "lvs_notify_fifo") => {
            let Some(path) = faults.argument(block).map(str::to_owned) else { return true };
            let fifo = fifo(globals, keyword);
            if fifo.path.is_empty() {
                fifo.path = path;
                fifo.user = words.get(1).cloned();
                fifo.group = words.get(2).cloned();
            } else {
                faults.refuse(block, "already defined");
            }
        }
        keyword @ ("notify_fifo_script" | "lvs_notify_fifo_script") => {
            faults.script_once(block, &mut fifo(globals, keyword.trim_end_matches("_script")).script);
        }
        _ => return apply_mail(globals, block, faults),
    }
    true
}

/// Applies a statement about mails. Returns whether it is one.
fn apply_mail(globals: &mut Globals, block: &Block, faults: &mut Faults) -> bool {
    let words = block.arguments();
    match block.keyword() {
        "notification_email" => {
            for line in block.statements() {
                let (usable, others): (Vec<_>, Vec<_>) =
                    line.words.iter().cloned().partition(|word| is_mail_address(word));
                mail(globals).recipients.extend(usable);
                for other in others {
                    faults.warn(
                        &line.place,
                        format!("`{other}` is not a mail address, such as ops@example.org; it is left out"),
                    );
                }
            }
        }
        "notification_email_from" => match faults.argument(block) {
            Some(from) if is_mail_address(from) => from.clone_into(&mut mail(globals).from),
            Some(_) => faults.refuse(block, "not a mail address, such as ops@example.org"),
            None => {}
        },
        "smtp_server" => {
            if let Some(host) = faults.argument(block) {
                host.clone_into(&mut mail(globals).host);
                match words.get(1).map(|port| decimal(port).filter(|port: &u16| *port > 0)) {
                    Some(Some(port)) => mail(globals).port = port,
                    Some(None) => faults.warn_of(block, "a port is a number from 1 to 65535; 25 is used"),
                    None => {}
                }
            }
        }
        "smtp_helo_name" => {
            if let Some(name) = faults.argument(block) {
                name.clone_into(&mut mail(globals).helo);
            }
        }
        "smtp_connect_timeout" | "smtp_connection_timeout" => {
            mail(globals).timeout_seconds = faults.number(block, 1..=3600).unwrap_or(TIMEOUT_SECONDS);
        }
        "router_id" => {
            if let Some(name) = faults.argument(block) {
                name.clone_into(&mut mail(globals).router_id);
            }
        }
        "smtp_alert" => globals.smtp_alert = globals.smtp_alert.or(faults.switch(block)),
        "smtp_alert_checker" => globals.smtp_alert = faults.switch(block).or(globals.smtp_alert),
        "no_checker_emails" => globals.smtp_alert = Some(false),
        _ => return false,
    }
    true
}

fn mail(globals: &mut Globals) -> &mut MailSettings {
    globals.mail.get_or_insert_default()
}

/// The default port of a mail server.
const PORT: u16 = 25;
/// The default time for each step of a delivery.
const TIMEOUT_SECONDS: u32 = 30;

/// Whether a text is a mail address without quotes: atoms and a domain, each divided by dots (RFC 5322, dot-atom).
pub fn is_mail_address(text: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty()
            && word.chars().all(|char| char.is_ascii_alphanumeric() || "!#%&'*+-/=?^_`{|}~".contains(char))
    };
    let is_label = |label: &str| {
        !label.is_empty() && label.chars().all(|char| char.is_ascii_alphanumeric() || char == '-')
    };
    text.len() <= 254
        && text.split_once('@').is_some_and(|(user, domain)| {
            user.len() <= 64 && user.split('.').all(is_word) && domain.split('.').all(is_label)
        })
}

/// The FIFO that a keyword configures.
fn fifo<'a>(globals: &'a mut Globals, keyword: &str) -> &'a mut Fifo {
    let fifo = match keyword {
        "notify_fifo" => &mut globals.notify_fifo,
        _ => &mut globals.lvs_notify_fifo,
    };
    fifo.get_or_insert_default()
}

/// Removes contradictory settings, after the block was read.
pub(super) fn check(globals: &mut Globals, block: &Block, faults: &mut Faults) {
    for (name, fifo) in
        [("notify_fifo", &mut globals.notify_fifo), ("lvs_notify_fifo", &mut globals.lvs_notify_fifo)]
    {
        if fifo.take_if(|fifo| fifo.path.is_empty()).is_some() {
            faults.warn(&block.place, format!("`{name}_script` without `{name}`; it is left out"));
        }
    }
    let path = globals.lvs_notify_fifo.as_ref().map(|fifo| &fifo.path);
    if path.is_some() && path == globals.notify_fifo.as_ref().map(|fifo| &fifo.path) {
        let why = "`notify_fifo` and `lvs_notify_fifo` have the same path; the second is left out";
        faults.warn(&block.place, why);
        globals.lvs_notify_fifo = None;
    }
}

/// The settings of mails with their defaults, after the whole file was read. Without recipients there are none.
pub(super) fn finish_mail(globals: &mut Globals, host: &str) {
    globals.mail.take_if(|mail| mail.recipients.is_empty());
    let Some(mail) = &mut globals.mail else { return };
    let fill = |text: &mut String, default: &str| {
        if text.is_empty() {
            default.clone_into(text);
        }
    };
    fill(&mut mail.from, &format!("keepalived@{host}"));
    fill(&mut mail.host, "127.0.0.1");
    fill(&mut mail.helo, host);
    fill(&mut mail.router_id, host);
    mail.port = if mail.port == 0 { PORT } else { mail.port };
    mail.timeout_seconds = if mail.timeout_seconds == 0 { TIMEOUT_SECONDS } else { mail.timeout_seconds };
}

#[cfg(test)]
mod tests {
    use crate::globals::*;
    use crate::testing::statement;

    /// The settings from these lines, and the number of faults.
    fn globals(lines: &[&str]) -> (Globals, usize) {
        let (mut globals, mut faults) = (Globals::default(), Faults::default());
        lines.iter().for_each(|line| _ = apply(&mut globals, &statement(line), &mut faults));
        check(&mut globals, &statement("global_defs"), &mut faults);
        (globals, faults.all.len())
    }

    #[test]
    fn users_security_and_switches_are_read() {
        let lines = ["script_user nobody nogroup", "enable_script_security", "rs_init_notifies", "lvs_flush"];
        let want = Globals {
            script_user: Some(("nobody".to_owned(), Some("nogroup".to_owned()))),
            enable_script_security: true,
            rs_init_notifies: true,
            lvs_flush: true,
            ..Globals::default()
        };
        assert_eq!(globals(&lines), (want, 1), "a warning of lvs_flush");
        assert_eq!(globals(&["script_user", "enable_script_security perhaps"]), (Globals::default(), 2));
    }

    /// The settings from these statements, as xvsd uses them, and the number of faults.
    fn read_mail(lines: &[&str], recipients: &[&str]) -> (Option<MailSettings>, usize) {
        let (mut globals, mut faults) = (Globals::default(), Faults::default());
        let body = Some(recipients.iter().map(|line| statement(line)).collect());
        apply(&mut globals, &Block { body, ..statement("notification_email") }, &mut faults);
        lines.iter().for_each(|line| _ = apply(&mut globals, &statement(line), &mut faults));
        finish_mail(&mut globals, "lb1");
        (globals.mail, faults.all.len())
    }

    #[test]
    fn mails_go_to_the_recipients_by_the_server_of_the_file_or_that_of_this_machine() {
        let recipients = ["ops@example.org", "noc@example.org"];
        let want = MailSettings {
            recipients: recipients.map(str::to_owned).into(),
            from: "keepalived@lb1".to_owned(),
            host: "127.0.0.1".to_owned(),
            port: 25,
            helo: "lb1".to_owned(),
            timeout_seconds: 30,
            router_id: "lb1".to_owned(),
        };
        assert_eq!(read_mail(&[], &recipients), (Some(want.clone()), 0));
        let lines = [
            "notification_email_from lvs@example.org",
            "smtp_server 192.0.2.25 2525",
            "smtp_helo_name lb1.example.org",
            "smtp_connect_timeout 5",
            "router_id DIRECTOR",
        ];
        let other = MailSettings {
            from: "lvs@example.org".to_owned(),
            host: "192.0.2.25".to_owned(),
            port: 2525,
            helo: "lb1.example.org".to_owned(),
            timeout_seconds: 5,
            router_id: "DIRECTOR".to_owned(),
            ..want
        };
        assert_eq!(read_mail(&lines, &recipients), (Some(other), 0));
        assert_eq!(read_mail(&lines, &[]), (None, 0), "without recipients");
        assert_eq!(read_mail(&[], &["root", "a@b@c", "<a@b>", "a..b@c", "a@[192.0.2.1]", "a@b."]), (None, 6));
        let wrong = ["smtp_server 192.0.2.25 port", "smtp_connect_timeout 0", "notification_email_from root"];
        assert_eq!(read_mail(&wrong, &recipients).1, 3);
    }

    #[test]
    fn the_switch_for_checks_decides_before_the_one_for_all_mails() {
        let switch = |lines: &[&str]| globals(lines).0.smtp_alert;
        assert_eq!(switch(&[]), None);
        assert_eq!(switch(&["smtp_alert"]), Some(true));
        assert_eq!(switch(&["smtp_alert", "smtp_alert_checker off"]), Some(false));
        assert_eq!(switch(&["smtp_alert_checker off", "smtp_alert"]), Some(false));
        assert_eq!(switch(&["no_checker_emails", "smtp_alert"]), Some(false));
    }

    #[test]
    fn a_fifo_has_a_path_an_owner_and_a_reader_each_defined_once() {
        let (read, faults) = globals(&[
            "lvs_notify_fifo_script \"/x/read.sh 'a b'\" nobody",
            "lvs_notify_fifo /run/lvs.fifo root adm",
            "lvs_notify_fifo /run/other.fifo",
        ]);
        let fifo = read.lvs_notify_fifo.unwrap();
        assert_eq!((fifo.path.as_str(), fifo.group.as_deref()), ("/run/lvs.fifo", Some("adm")));
        assert_eq!(fifo.script.unwrap().argv, ["/x/read.sh", "a b"]);
        assert_eq!(faults, 1);
        assert_eq!(globals(&["notify_fifo_script /x/read.sh"]), (Globals::default(), 1));
        let (read, faults) = globals(&["notify_fifo /run/a", "lvs_notify_fifo /run/a"]);
        assert_eq!((read.notify_fifo.is_some(), read.lvs_notify_fifo, faults), (true, None, 1));
    }
}
