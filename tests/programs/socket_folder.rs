//! The folder of the control socket: who may own it, and what becomes of group and mode in a race. Needs root.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are tests too")]

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, thread};

use xvsd::socket::{Server, Settings, StartError};

use crate::socket::{Folder, Recorder, is_root};

#[test]
fn a_folder_of_another_user_is_refused_with_the_step_and_so_is_one_in_which_others_can_replace_the_socket() {
    if !is_root() {
        return eprintln!("skipped: giving a folder to another user needs root");
    }
    let folder = Folder::new("others");
    let refused = || {
        let refused = Server::start(Settings::of(folder.socket()), Arc::new(Recorder::default()));
        let Err(StartError::Folder(why)) = refused else { panic!("{refused:?}") };
        why.to_string()
    };
    chown(&folder.0, Some(65534), None).unwrap();
    let why = refused();
    let step = format!("`chown -R 0: {}`", folder.0.display());
    assert!(why.contains("belongs to user 65534") && why.contains(&step), "{why}");
    chown(&folder.0, Some(0), None).unwrap();
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(refused().contains("mode 0777"), "another user could replace the socket");
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0, "neither a lock nor a socket is left");
}

#[test]
fn group_and_mode_are_those_of_the_socket_even_if_its_name_leads_to_another_file_meanwhile() {
    let folder = Folder::new("raced");
    let precious = folder.0.join("precious");
    fs::write(&precious, "").unwrap();
    fs::set_permissions(&precious, fs::Permissions::from_mode(0o600)).unwrap();
    let new = folder.socket().with_added_extension("new");
    let started = AtomicBool::new(false);
    // As the folder's owner could until the folder was refused: the name that was bound becomes a link.
    thread::scope(|scope| {
        scope.spawn(|| {
            while !started.load(Ordering::Relaxed) {
                if fs::remove_file(&new).is_ok() {
                    let _ = symlink(&precious, &new);
                }
            }
        });
        for _ in 0..300 {
            let settings = Settings { mode: 0o666, ..Settings::of(folder.socket()) };
            let _ = Server::start(settings, Arc::new(Recorder::default()));
            let _ = fs::remove_file(&new);
        }
        started.store(true, Ordering::Relaxed);
    });
    assert_eq!(fs::metadata(&precious).unwrap().permissions().mode() & 0o777, 0o600);
}
