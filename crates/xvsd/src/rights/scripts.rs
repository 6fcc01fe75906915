//! The scripts that the helper may run: those of the keepalived.conf of xvsd's command line and xvs.toml.
//!
//! Runs in the helper, which reads the files itself, so that who controls xvsd cannot have it run anything else. What
//! was in the file once stays permitted, because xvsd runs by it until a reload. A script that is not known costs a
//! reading of the files; the others cost a look-up.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};

use clap::Parser;
use xvs_ctl::arguments::Arguments;
use xvs_helper::request::Script;

use crate::keepalived_conf;

static KNOWN: LazyLock<Mutex<HashSet<Script>>> = LazyLock::new(Mutex::default);

/// Whether a script is, or was, in the keepalived.conf.
pub fn permits(script: &Script) -> bool {
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if known().contains(script) {
        return true;
    }
    // Not under the lock: the file may be on a file system that hangs.
    let read = read().unwrap_or_default();
    known().extend(read);
    known().contains(script)
}

/// `None`: the files are wrong now.
fn read() -> Option<Vec<Script>> {
    let config = Arguments::try_parse().ok()?.config().ok()?;
    Some(keepalived_conf::of(&config).ok()??.scripts())
}
