//! The scripts that the helper may run: those in the keepalived.conf that xvsd's command line or xvs.toml names.
//!
//! Runs in the helper, which reads the files itself, so an attacker who controls xvsd cannot run anything else. A
//! script that was once in the file stays permitted, because xvsd uses the old file until a reload. An unknown script
//! costs a reading of the files, a known one a look-up.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex};

use clap::Parser;
use xvs_ctl::arguments::Arguments;
use xvs_helper::request::Script;

use crate::keepalived_conf;
use crate::lock::lock;

static KNOWN: LazyLock<Mutex<HashSet<Script>>> = LazyLock::new(Mutex::default);

/// Whether a script is, or was, in keepalived.conf.
pub fn permits(script: &Script) -> bool {
    if lock(&KNOWN).contains(script) {
        return true;
    }
    // Not under the lock: the file may be on a file system that hangs.
    let read = read().unwrap_or_default();
    let mut known = lock(&KNOWN);
    known.extend(read);
    known.contains(script)
}

/// `None` if the files now have errors.
fn read() -> Option<Vec<Script>> {
    let config = Arguments::try_parse().ok()?.config().ok()?;
    Some(keepalived_conf::of(&config).ok()??.scripts())
}
