//! Reading the daemon's keepalived.conf: prepares its checks, or refuses it with its errors.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use xvs_model::health_checks::fault::{Fault, Severity};

use xvs_ctl::config::{Config, ConfigError};
use xvs_health::prepare::Prepared;
use xvs_keepalived::{host, read};
use xvs_sched::ServiceKey;

/// The largest number of errors of a file that are printed individually.
const ERRORS_SHOWN: usize = 20;
/// The largest number of services that an error names.
const SERVICES_SHOWN: usize = 10;

/// Reads the keepalived.conf that `config` names; `None` if there is none.
///
/// # Errors
///
/// [`ConfigError::Keepalived`].
pub fn of(config: &Config) -> Result<Option<Prepared>, ConfigError> {
    let Some(path) = &config.keepalived.file else { return Ok(None) };
    read_usable(path, config.keepalived.config_id.as_deref())
        .map(Some)
        .map_err(|error| ConfigError::Keepalived { path: path.clone(), text: error.to_string() })
}

/// The reason why a keepalived.conf file cannot be used.
#[derive(Debug, Error)]
pub enum UnusableFile {
    /// It cannot be read.
    #[error("{path}: {error}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The OS error.
        error: io::Error,
    },
    /// The errors of the file, a line each.
    #[error("{}", shown(.0))]
    Faults(Vec<Fault>),
    /// It has no virtual servers, and some run.
    #[error("{path}: no virtual_server; restart xvsd to remove those that run", path = path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Services that the file served before would end because of its faults.
    #[error(
        "{faults}\n{path}: this would end {services}, which the file served before; correct these lines, or let the \
         services end with `--accept-loss` of `xvs reload` or `xvsd`", path = path.display(), faults = shown(faults),
        services = listed(services)
    )]
    Loses {
        /// The file.
        path: PathBuf,
        /// The faults, as errors.
        faults: Vec<Fault>,
        /// The services.
        services: Vec<ServiceKey>,
    },
}

/// What happens if faults of a file would end services that it served before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The file is refused.
    Refused,
    /// They end.
    Accepted,
}

/// Refuses a file that would end some of these services because of its faults.
///
/// # Errors
/// [`UnusableFile::Loses`].
pub fn keeps(
    read: Prepared,
    path: &Path,
    in_force: &[ServiceKey],
    loss: Loss,
) -> Result<Prepared, UnusableFile> {
    let (services, causes) = read.configuration.lost(in_force);
    if services.is_empty() || loss == Loss::Accepted {
        return Ok(read);
    }
    let faults =
        causes.into_iter().map(|fault| Fault { severity: Severity::Error, ..fault.clone() }).collect();
    Err(UnusableFile::Loses { path: path.to_owned(), faults, services })
}

/// The first of these services, and the number of the others.
fn listed(services: &[ServiceKey]) -> String {
    let first: Vec<_> = services.iter().take(SERVICES_SHOWN).map(ToString::to_string).collect();
    match services.len() - first.len() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// Reads a file; `config_id` selects its lines with `@`, by default the first label of the host name. Ignored
/// statements are among its faults.
///
/// # Errors
/// The file cannot be read, or has errors.
pub fn read_usable(path: &Path, config_id: Option<&str>) -> Result<Prepared, UnusableFile> {
    let read = read(path, &config_id.map_or_else(host, str::to_owned))
        .map_err(|error| UnusableFile::Unreadable { path: path.to_owned(), error })?;
    Prepared::of(read).map_err(|refused| UnusableFile::Faults(refused.faults))
}

/// The first errors among these faults, a line each, and the number of the others.
fn shown(faults: &[Fault]) -> String {
    let mut errors = faults.iter().filter(|fault| fault.severity == Severity::Error);
    let mut lines: Vec<_> = errors.by_ref().take(ERRORS_SHOWN).map(ToString::to_string).collect();
    match errors.count() {
        0 => {}
        more => lines.push(format!("and {more} more, see `xvs check --keepalived`")),
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_lost_a_service_by_a_fault_is_refused_with_line_service_and_flag() {
        let path = std::env::temp_dir().join(format!("xvs-conf-{}-loses", std::process::id()));
        let read = |addr: &str| {
            let service =
                |addr: &str| format!("virtual_server {addr} 80 {{\nreal_server 10.1.0.1 80 {{\n}}\n}}\n");
            fs::write(&path, service("10.0.0.1") + &service(addr)).unwrap();
            read_usable(&path, Some("lb1")).unwrap()
        };
        let servers = read("10.0.0.2").configuration.virtual_servers;
        let in_force: Vec<_> = servers.iter().flat_map(|one| &one.services).map(|(key, _)| *key).collect();
        let error = keeps(read("10.0.0.256"), &path, &in_force, Loss::Refused).unwrap_err().to_string();
        assert!(keeps(read("10.0.0.256"), &path, &in_force, Loss::Accepted).is_ok());
        assert!(keeps(read("10.0.0.256"), &path, &in_force[..1], Loss::Refused).is_ok());
        fs::remove_file(&path).unwrap();
        let [line, end] = error.lines().collect::<Vec<_>>()[..] else { panic!("{error}") };
        assert!(
            line.contains(":5: error: `virtual_server 10.0.0.256 80`: `10.0.0.256` is not an address"),
            "{line}"
        );
        assert!(end.contains("would end UDP 10.0.0.2:80, which") && end.contains("--accept-loss"), "{end}");
    }

    #[test]
    fn of_a_million_errors_the_first_are_printed_and_the_others_counted() {
        let path = std::env::temp_dir().join(format!("xvs-conf-{}-errors", std::process::id()));
        fs::write(&path, "}\n".repeat(1_000_000)).unwrap();
        let text = read_usable(&path, Some("lb1")).unwrap_err().to_string();
        fs::remove_file(path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 21);
        assert!(lines[19].ends_with(":20: error: a `}` without a `{` before it"), "{}", lines[19]);
        assert_eq!(lines[20], "and 999980 more, see `xvs check --keepalived`");
    }
}
