//! The files that rules in etcd name. xvsd reads them with its own rights, so they must be in the directory that the
//! operator of this director has chosen.
//!
//! Checked before rules come into force. Anyone with permission to change links in that directory chooses the files
//! that are read.

use std::path::Path;

use xvs_ipvsadm::command_line;
use xvs_model::config::command::Command;

/// Refuses rules if one of them names a file outside the directory, even through a symbolic link in it.
///
/// # Errors
///
/// The first such line, and the next step.
pub(super) fn check(commands: &[Command], folder: Option<&Path>) -> Result<(), String> {
    for command in commands {
        let Command::Add(rule) = command else { continue };
        let Some(path) = rule.file() else { continue };
        let Some(folder) = folder else {
            return Err(format!(
                "{}: rules in etcd may name no file on this director; name a folder for them by files_folder in [fleet] of \
                 xvs.toml",
                command_line(command)
            ));
        };
        let is_inside = folder.canonicalize().and_then(|folder| Ok(path.canonicalize()?.starts_with(folder)));
        // The message has no reason, because a reason would reveal which files exist.
        if !is_inside.unwrap_or(false) {
            return Err(format!(
                "{}: there is no such file in {}, the files_folder in [fleet] of xvs.toml; put it there",
                command_line(command),
                folder.display()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use xvs_model::objects::Rule;
    use xvs_model::objects::list_file::ListFile;
    use xvs_model::objects::list_key::{ListKey, ListKind};
    use xvs_model::objects::quic::{QuicConfig, QuicRule, ServiceQuic};

    use super::*;

    fn rules(path: PathBuf) -> [Vec<Command>; 2] {
        let service = "UDP 198.51.100.1:443".parse().unwrap();
        let list = ListKey { kind: ListKind::Deny, service: Some(service) };
        let options = QuicConfig { server_id_length: 3, nonce_length: 4, key_file: Some(path.clone()) };
        let rule = QuicRule::Config { config: 0, options };
        let key = Command::Add(Rule::Quic(ServiceQuic { service, rule }));
        [vec![Command::Add(Rule::ListFile(ListFile { list, path }))], vec![key]]
    }

    #[test]
    fn rules_of_etcd_name_no_file_outside_of_the_folder_also_not_by_a_link() {
        let parent = std::env::temp_dir().join(format!("xvs-named-files-{}", std::process::id()));
        let folder = parent.join("lists");
        fs::create_dir_all(&folder).unwrap();
        fs::write(parent.join("secret"), "").unwrap();
        fs::write(folder.join("bad"), "").unwrap();
        symlink(parent.join("secret"), folder.join("link")).unwrap();
        symlink("bad", folder.join("inside")).unwrap();
        for name in ["lists/bad", "lists/inside", "lists/../lists/bad"] {
            for rules in rules(parent.join(name)) {
                assert_eq!(check(&rules, Some(&folder)), Ok(()), "{name}");
                let why = check(&rules, None).unwrap_err();
                assert!(why.contains("files_folder in [fleet] of xvs.toml"), "{why}");
            }
        }
        for name in ["secret", "lists/link", "lists/../secret", "lists/none", "lists-2/bad"] {
            for rules in rules(parent.join(name)) {
                let why = check(&rules, Some(&folder)).unwrap_err();
                assert!(why.contains("there is no such file in") && why.contains(name), "{why}");
            }
        }
        fs::remove_dir_all(&parent).unwrap();
    }
}
