//! How much memory the machine has left, for the automatic defences.
//!
//! Read once a second while one of them is automatic: one small file. The figure is `MemAvailable`, the kernel's own
//! estimate of what can be had without swapping. Not here: what is done about it (`settings.rs`).

use std::{fs, io};

/// Pages of memory that are available.
///
/// # Errors
/// The system's, or `InvalidData` if `/proc/meminfo` does not say.
pub fn available_pages() -> io::Result<u32> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kibibytes = available_kibibytes(&text).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo has no line MemAvailable")
    })?;
    let page = rustix::param::page_size() as u64;
    Ok(u32::try_from(kibibytes.saturating_mul(1024) / page).unwrap_or(u32::MAX))
}

/// Source: proc_meminfo(5).
fn available_kibibytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use crate::memory::*;

    #[test]
    fn the_line_of_available_memory_is_found_among_the_others() {
        let text = "MemTotal:       16330612 kB\nMemFree:          813276 kB\nMemAvailable:    9876543 kB\n";
        assert_eq!(available_kibibytes(text), Some(9_876_543));
        assert_eq!(available_kibibytes("MemTotal:       16330612 kB\n"), None);
    }

    #[test]
    fn this_machine_says_how_much_it_has() {
        assert!(available_pages().unwrap() > 0);
    }
}
