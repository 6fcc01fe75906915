//! The key that directors share. Its holder may fetch a director's connection table.

use std::path::Path;

use xvs_model::hexadecimal;

use xvs_ctl::secret_file;

use super::error::{HOW, SyncError};

/// A shared key.
#[derive(Clone)]
pub(crate) struct SyncKey(pub(super) [u8; 32]);

impl SyncKey {
    /// Reads a key: 64 hexadecimal digits, in a file that only its owner and group may access.
    ///
    /// # Errors
    /// [`SyncError::KeyFile`] or [`SyncError::NoKey`].
    pub(crate) fn read(path: &Path) -> Result<Self, SyncError> {
        let text = secret_file::read("sync_key_file", path, HOW)?;
        hexadecimal::decode(text.trim())
            .and_then(|key| key.try_into().ok())
            .map(Self)
            .ok_or_else(|| SyncError::NoKey(path.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_64_digits_in_a_file_that_not_everyone_may_read() {
        let path = std::env::temp_dir().join(format!("xvs-key-{}", std::process::id()));
        let read = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            SyncKey::read(&path)
                .map(|key| key.0)
                .map_err(|error| error.to_string().replace(path.to_str().unwrap(), "FILE"))
        };
        let digits = "0a".repeat(32);
        assert_eq!(read(&format!("{digits}\n"), 0o640), Ok([10; 32]));
        assert!(read(&digits, 0o644).unwrap_err().ends_with("; `chmod o= FILE`"));
        for wrong in ["", &digits[2..], &digits.replace('a', "g"), &digits.repeat(100)] {
            assert_eq!(
                read(wrong, 0o600).unwrap_err(),
                "sync_key_file FILE: not 64 hexadecimal digits; `openssl rand -hex 32` prints a key"
            );
        }
        fs::remove_file(&path).unwrap();
        assert!(SyncKey::read(&path).err().unwrap().to_string().contains("No such file"));
    }
}
