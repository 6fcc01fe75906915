//! The name of a director on this machine, derived from its socket's path: it keeps the state and the pins of several
//! directors apart.

use std::path::{Path, PathBuf};

/// The name for a socket: its path, with `-` for each `/`, and `--` for each `-`. No two sockets have the same name.
pub fn name_of(socket: &Path) -> String {
    let path = socket.to_string_lossy();
    path.trim_start_matches('/').replace('-', "--").replace('/', "-")
}

/// The socket for a name, if its path begins at the root.
pub fn socket_of(name: &str) -> PathBuf {
    let parts: Vec<_> = name.split("--").map(|part| part.replace('-', "/")).collect();
    PathBuf::from(format!("/{}", parts.join("-")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_socket_has_a_name_of_its_own_without_a_slash() {
        let names = ["/run/xvs/xvsd.sock", "/run/xvs-xvsd.sock", "/run/xvs--xvsd.sock"]
            .map(|path| name_of(path.as_ref()));
        assert_eq!(names, ["run-xvs-xvsd.sock", "run-xvs--xvsd.sock", "run-xvs----xvsd.sock"]);
    }

    #[test]
    fn the_name_of_a_socket_names_its_path() {
        for path in ["/run/xvs/xvsd.sock", "/run/xvs-2/xvsd.sock", "/run/a--b/c-.sock"] {
            assert_eq!(socket_of(&name_of(path.as_ref())), PathBuf::from(path));
        }
    }
}
