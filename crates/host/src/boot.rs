//! The start of the machine: an identifier that distinguishes it from all other starts.

use std::{fs, io};

/// A random number that the kernel generates at each start of the machine.
///
/// # Errors
///
/// `/proc` is not mounted, or its file has another format.
pub fn id() -> io::Result<[u64; 2]> {
    let digits: String = fs::read_to_string(BOOT_ID)?.chars().filter(char::is_ascii_hexdigit).collect();
    let number =
        u128::from_str_radix(&digits, 16).map_err(|error| io::Error::other(format!("{BOOT_ID}: {error}")))?;
    Ok([number as u64, (number >> 64) as u64])
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[cfg(test)]
mod tests {
    #[test]
    fn the_machine_keeps_its_number_until_it_starts_again() {
        let id = super::id().unwrap();
        assert_ne!(id, [0, 0]);
        assert_eq!(super::id().unwrap(), id);
    }
}
