//! Available memory, for the automatic defences.
//!
//! Read once a second while a defence is automatic; costs the reading of one small file. The number is `MemAvailable`,
//! the kernel's estimate of what processes can get without swapping. Not here: the defences (`control/settings.rs` of
//! `ctl`).

use std::{fs, io};

/// Available memory, in pages.
///
/// # Errors
/// `/proc/meminfo` cannot be read; `InvalidData` if it has no line `MemAvailable`.
pub fn available_pages() -> io::Result<u32> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kibibytes = available_kibibytes(&text).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo has no line MemAvailable")
    })?;
    let page = rustix::param::page_size() as u64;
    Ok(u32::try_from(kibibytes.saturating_mul(1024) / page).unwrap_or(u32::MAX))
}

/// The value of `MemAvailable`, in KiB. Source: proc_meminfo(5).
fn available_kibibytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use crate::memory::*;

    #[test]
    fn the_line_of_available_memory_is_found_among_others() {
        let text = "MemTotal:       16330612 kB\nMemFree:          813276 kB\nMemAvailable:    9876543 kB\n";
        assert_eq!(available_kibibytes(text), Some(9_876_543));
        assert_eq!(available_kibibytes("MemTotal:       16330612 kB\n"), None);
    }

    #[test]
    fn this_machine_has_available_memory() {
        assert!(available_pages().unwrap() > 0);
    }
}
