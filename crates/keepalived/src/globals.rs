//! `global_defs` for health checks: the user of scripts, script security, FIFOs.
//!
//! Pure: whether users and programs exist is checked when they are used. Source: keepalived-behaviour, sections 5.5
//! and 5.8. Not here: timeouts (`lib.rs`), and the settings of VRRP.

use xvs_model::health_checks::virtual_server::{Fifo, Globals};

use crate::blocks::Block;
use crate::values::Faults;

/// Applies a statement. Returns whether it is one of these.
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
        "lvs_flush" => globals.lvs_flush = faults.switch(block).unwrap_or(false),
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
            let fifo = fifo(globals, keyword.trim_end_matches("_script"));
            faults.script_once(block, &mut fifo.script);
        }
        _ => return false,
    }
    true
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
    let mails = block.statements().iter().find(|statement| statement.keyword() == "notification_email");
    if let Some(mails) = mails.filter(|_| !block.statements().iter().any(disables_mail)) {
        let next = "use `notify_down` or an alert; `smtp_alert_checker off` disables this warning";
        let text = format!("`notification_email`: xvs sends no mail about real servers; {next}");
        faults.warn(&mails.place, text);
    }
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

fn disables_mail(statement: &Block) -> bool {
    match statement.keyword() {
        "no_checker_emails" => true,
        "smtp_alert_checker" => {
            statement.arguments().first().is_some_and(|word| matches!(&**word, "off" | "false" | "no"))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use crate::globals::*;
    use crate::testing::statement;

    /// The settings of these lines, and the number of faults.
    fn globals(lines: &[&str]) -> (Globals, usize) {
        let (mut globals, mut faults) = (Globals::default(), Faults::default());
        lines.iter().for_each(|line| _ = apply(&mut globals, &statement(line), &mut faults));
        check(&mut globals, &statement("global_defs"), &mut faults);
        (globals, faults.0.len())
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
        assert_eq!(globals(&lines), (want, 0));
        assert_eq!(globals(&["script_user", "enable_script_security perhaps"]), (Globals::default(), 2));
    }

    #[test]
    fn expected_mail_causes_a_warning_unless_it_is_disabled() {
        let faults = |more: &str| {
            let body = ["notification_email", more].map(statement).into();
            let mut faults = Faults::default();
            check(
                &mut Globals::default(),
                &Block { body: Some(body), ..statement("global_defs") },
                &mut faults,
            );
            faults.0.len()
        };
        let disabled = ["no_checker_emails", "smtp_alert_checker off"];
        assert_eq!(disabled.map(faults), [0, 0]);
        assert_eq!(["smtp_alert", "smtp_alert_checker on"].map(faults), [1, 1]);
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
