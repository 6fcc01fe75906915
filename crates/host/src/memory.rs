//! Memory: the available amount, and the amount that the control groups of this process allow.
//!
//! Available memory is read once a second while a defence is automatic. Cost: the reading of one small file. The number
//! is `MemAvailable`, the kernel's estimate of the memory that processes can get without swapping.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// The memory limit of a control group. A process that needs more is killed without a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupLimit {
    /// The limit.
    pub bytes: u64,
    /// The file with this limit.
    pub file: PathBuf,
}

/// The smallest memory limit of this process's control group and the groups above it; `None` if there is none.
pub fn cgroup_limit() -> Option<CgroupLimit> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    limit_files(&mounts, &own)
        .into_iter()
        .filter_map(|file| {
            // `max` or a missing file means no limit; so does the number in version 1, which exceeds any memory.
            let bytes = fs::read_to_string(&file).ok()?.trim().parse().ok()?;
            (bytes < 1 << 60).then_some(CgroupLimit { bytes, file })
        })
        .min_by_key(|limit| limit.bytes)
}

/// The files with the memory limits that may apply, from the process's own control group up to the mount point.
/// `mounts` is /proc/self/mountinfo, `own` is /proc/self/cgroup. Sources: proc_pid_mountinfo(5), cgroups(7).
fn limit_files(mounts: &str, own: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for mount in mounts.lines() {
        let Some((before, after)) = mount.split_once(" - ") else { continue };
        let fields: Vec<_> = before.split(' ').collect();
        let &[_, _, _, root, point, ..] = &fields[..] else { continue };
        let options = after.split(' ').nth(2).unwrap_or_default();
        let (name, controllers) = match after.split(' ').next() {
            Some("cgroup2") => ("memory.max", ""),
            Some("cgroup") if options.split(',').any(|option| option == "memory") => {
                ("memory.limit_in_bytes", "memory")
            }
            _ => continue,
        };
        let path = own.lines().find_map(|line| {
            let (of, path) = line.split_once(':')?.1.split_once(':')?;
            of.split(',').any(|one| one == controllers).then_some(path)
        });
        let Some(below) = path.and_then(|path| Path::new(path).strip_prefix(root).ok()) else { continue };
        files.extend(below.ancestors().map(|group| Path::new(point).join(group).join(name)));
    }
    files
}

/// The reserved huge pages of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct HugePages {
    /// The size of each, in bytes.
    pub size_bytes: u64,
    /// How many there are.
    pub total: u64,
    /// The number of pages that no process has claimed. Their memory does not count for a control group.
    pub unclaimed: u64,
}

impl HugePages {
    /// Reads the numbers; without `/proc/meminfo` there are none.
    pub fn read() -> Self {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let [size_kib, total, free, claimed] =
            ["Hugepagesize:", "HugePages_Total:", "HugePages_Free:", "HugePages_Rsvd:"]
                .map(|name| number(&meminfo, name).unwrap_or(0));
        Self { size_bytes: size_kib << 10, total, unclaimed: free.saturating_sub(claimed) }
    }

    /// The memory in pages that no process has claimed, in bytes.
    pub fn unclaimed_bytes(self) -> u64 {
        self.unclaimed * self.size_bytes
    }
}

/// The number for a name in `/proc/meminfo`. Source: proc_meminfo(5).
fn number(meminfo: &str, name: &str) -> Option<u64> {
    meminfo.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// Available memory, in pages.
///
/// # Errors
/// `/proc/meminfo` cannot be read; `InvalidData` if it has no line `MemAvailable`.
pub fn available_pages() -> io::Result<u32> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kibibytes = number(&text, "MemAvailable:").ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo has no line MemAvailable")
    })?;
    let page = rustix::param::page_size() as u64;
    Ok(u32::try_from(kibibytes.saturating_mul(1024) / page).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use crate::memory::*;

    #[test]
    fn the_line_of_available_memory_is_found_among_others() {
        let text = "MemTotal:       16330612 kB\nMemFree:          813276 kB\nMemAvailable:    9876543 kB\n";
        assert_eq!(number(text, "MemAvailable:"), Some(9_876_543));
        assert_eq!(number("MemTotal:       16330612 kB\n", "MemAvailable:"), None);
    }

    #[test]
    fn limits_are_those_of_the_own_control_group_and_of_all_above_it_of_both_versions() {
        let names = |mounts: &str, own: &str| {
            let files = limit_files(mounts, own);
            files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>()
        };
        let v2 = "24 1 0:21 / /proc rw - proc proc rw\n31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let expected = ["system.slice/xvsd.service/", "system.slice/", ""];
        let expected = expected.map(|group| format!("/sys/fs/cgroup/{group}memory.max"));
        assert_eq!(names(v2, "0::/system.slice/xvsd.service\n"), expected);
        let v1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n35 31 0:32 /docker/7 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let own = "5:cpu:/docker/7\n4:memory:/docker/7/a\n0::/elsewhere\n";
        let expected = ["a/", ""].map(|group| format!("/sys/fs/cgroup/memory/{group}memory.limit_in_bytes"));
        assert_eq!(names(v1, own), expected);
        assert_eq!(names(v1, "4:memory:/outside\n"), [""; 0], "its control group is not below the mount");
    }

    #[test]
    fn this_machine_has_available_memory() {
        assert!(available_pages().unwrap() > 0);
    }
}
