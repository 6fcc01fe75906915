//! The command of a script: its user, its program, its environment.
//!
//! A program is executed without a shell; any other command runs under `sh -c`. Looks up users and files, which may
//! block.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::unistd::{Group, User};
use rustix::process::{getegid, geteuid};

use crate::request::Script;

/// Why a script cannot be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScriptError {
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error("it has no words")]
    Empty,
    #[error("there is no file {0}")]
    NoFile(String),
    #[error("{0} is not executable; `chmod +x` it")]
    NotExecutable(String),
    #[error(
        "`{0}` is no program; with `enable_script_security` root runs only programs, no lines for a shell"
    )]
    NotAProgram(String),
    #[error("{}: {error}", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{}: too many links", .0.display())]
    TooManyLinks(PathBuf),
    #[error(
        "{}: others than root may change it, so with `enable_script_security` root does not run what is in it; \
         `chown root` and `chmod go-w` it, or move the script",
        .0.display()
    )]
    NotOnlyRoots(PathBuf),
}

/// Why a user or a group has no ID.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// There is no such user.
    #[error("there is no user `{0}`")]
    NoUser(String),
    /// There is no such group.
    #[error("there is no group `{0}`")]
    NoGroup(String),
    /// The system cannot look it up.
    #[error("looking up `{name}`: {error}")]
    LookUp {
        /// The name of the user or group.
        name: String,
        /// The system's error.
        error: Errno,
    },
}

/// The command to execute for a script.
pub(crate) fn command(script: &Script) -> Result<Command, ScriptError> {
    let account = account_of(script)?;
    let mut command = program_of(script, account.is_none_or(|(user, _)| user == 0))?;
    // The environment of the helper may contain secrets, and names that change which code a program runs.
    command.env_clear().envs(ENVIRONMENT);
    if let Some((user, group)) = account {
        command.uid(user).gid(group);
    }
    Ok(command)
}

/// The IDs of the user and the group that run a script; `None` means those of this process.
fn account_of(script: &Script) -> Result<Option<(u32, u32)>, AccountError> {
    let account = match &script.user {
        Some(user) => account(user, script.group.as_deref())?,
        None => match user(DEFAULT_USER)? {
            Some(user) => (user.uid.as_raw(), user.gid.as_raw()),
            None => return Ok(None),
        },
    };
    // Without a change of user the start need not copy the page tables.
    Ok((account != (geteuid().as_raw(), getegid().as_raw())).then_some(account))
}

fn program_of(script: &Script, is_root: bool) -> Result<Command, ScriptError> {
    let name = script.argv.first().ok_or(ScriptError::Empty)?;
    let is_checked = script.is_checked && is_root;
    let Some(program) = program(name) else {
        if is_checked {
            return Err(missing(script).unwrap_or_else(|| ScriptError::NotAProgram(name.clone())));
        }
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(&script.text);
        return Ok(shell);
    };
    if is_checked {
        require_root_only(&program, LINKS_MAX)?;
    }
    let mut command = Command::new(program);
    command.arg0(name).args(&script.argv[1..]);
    Ok(command)
}

/// The environment of a command: that of a system service, with the directories that systemd and Debian's root search.
const ENVIRONMENT: [(&str, &str); 2] = [("LANG", "C"), ("PATH", PATH)];
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The default user of scripts, if it exists.
const DEFAULT_USER: &str = "keepalived_script";

/// The length of a chain of symbolic links.
const LINKS_MAX: u32 = 16;

/// The IDs of a user and of a group; without a group name, the user's own group.
///
/// # Errors
///
/// There is no such user or group, or it cannot be looked up.
pub fn account(name: &str, group: Option<&str>) -> Result<(u32, u32), AccountError> {
    let user = user(name)?.ok_or_else(|| AccountError::NoUser(name.to_owned()))?;
    let group = match group {
        None => user.gid,
        Some(name) => {
            Group::from_name(name)
                .map_err(|error| AccountError::LookUp { name: name.to_owned(), error })?
                .ok_or_else(|| AccountError::NoGroup(name.to_owned()))?
                .gid
        }
    };
    Ok((user.uid.as_raw(), group.as_raw()))
}

fn user(name: &str) -> Result<Option<User>, AccountError> {
    User::from_name(name).map_err(|error| AccountError::LookUp { name: name.to_owned(), error })
}

/// The executable with a name: a path, or found in [`PATH`].
fn program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| is_program(path));
    }
    std::env::split_paths(PATH).map(|folder| folder.join(name)).find(|path| is_program(path))
}

/// The reason why the file of a script's first word cannot be executed, which its shell would find only when it runs;
/// `None` if it can, or the word is not an absolute path.
pub(crate) fn missing(script: &Script) -> Option<ScriptError> {
    let name = script.argv.first()?;
    let is_plain = name.chars().all(|char| char.is_alphanumeric() || "/._-+".contains(char));
    if !name.starts_with('/') || !is_plain {
        return None;
    }
    match Path::new(name).metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(ScriptError::NoFile(name.clone())),
        Ok(metadata) if !is_executable(&metadata) => Some(ScriptError::NotExecutable(name.clone())),
        _ => None,
    }
}

/// Whether it is a file that a user may execute.
fn is_executable(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt;
    metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
}

/// Whether a file is executable, and starts with `#!` or as ELF.
fn is_program(path: &Path) -> bool {
    use std::io::Read;
    if !path.metadata().is_ok_and(|metadata| is_executable(&metadata)) {
        return false;
    }
    let mut begin = [0; 4];
    // An executable that cannot be read is assumed to be a program.
    let Ok(mut file) = std::fs::File::open(path) else { return true };
    let length = file.read(&mut begin).unwrap_or(0);
    begin[..length].starts_with(b"#!") || begin == *b"\x7fELF"
}

/// Refuses a file that users other than root can change or replace. Checks the file, each directory above it, and each
/// symbolic link.
fn require_root_only(path: &Path, links: u32) -> Result<(), ScriptError> {
    use std::os::unix::fs::MetadataExt;
    for part in std::path::absolute(path).map_err(|error| unreadable(path, error))?.ancestors() {
        let metadata = part.symlink_metadata().map_err(|error| unreadable(part, error))?;
        if metadata.is_symlink() {
            let links = links.checked_sub(1).ok_or_else(|| ScriptError::TooManyLinks(part.to_owned()))?;
            let around = part.parent().unwrap_or(part);
            let target = part.read_link().map_err(|error| unreadable(part, error))?;
            require_root_only(&around.join(target), links)?;
            continue;
        }
        let mode = metadata.mode();
        if metadata.uid() != 0 || mode & 0o002 != 0 || mode & 0o020 != 0 && metadata.gid() != 0 {
            return Err(ScriptError::NotOnlyRoots(part.to_owned()));
        }
    }
    Ok(())
}

fn unreadable(path: &Path, error: io::Error) -> ScriptError {
    ScriptError::Unreadable { path: path.to_owned(), error }
}
