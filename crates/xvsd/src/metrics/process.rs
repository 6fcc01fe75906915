//! The process's metrics (`process_*`), with the names and meanings of Prometheus' client libraries.
//!
//! Read from /proc/self for each page; values that cannot be read are left out. After a take-over they are those of the
//! successor. Cost: three small files.
//!
//! Source: «Writing client libraries», section «Process metrics», in Prometheus' documentation; proc(5).

use procfs::process::{Process, Stat};
use procfs::{boot_time_secs, page_size, ticks_per_second};
use rustix::process::{Resource, getrlimit};

use super::text::{Family, Kind, Text, families};

/// Writes the metrics of the process.
pub(super) fn text(text: &mut Text) {
    let Ok(process) = Process::myself() else { return };
    let stat = process.stat().ok();
    for family in FAMILIES {
        family.single(text, (family.items)(&process, stat.as_ref()));
    }
}

/// The value of a family; `None`: it cannot be read.
type Value = fn(&Process, Option<&Stat>) -> Option<f64>;

static FAMILIES: &[Family<Value>] = &families! {
    Counter "process_cpu_seconds_total" "Total user and system CPU time spent in seconds."
        |_, stat| stat.map(|stat| seconds(stat.utime + stat.stime));
    Gauge "process_resident_memory_bytes" "Resident memory size in bytes."
        |_, stat| stat.map(|stat| (stat.rss * page_size()) as f64);
    Gauge "process_virtual_memory_bytes" "Virtual memory size in bytes."
        |_, stat| stat.map(|stat| stat.vsize as f64);
    Gauge "process_open_fds" "Number of open file descriptors."
        |process, _| process.fd_count().ok().map(|count| count as f64);
    Gauge "process_max_fds" "Maximum number of open file descriptors."
        |_, _| getrlimit(Resource::Nofile).current.map(|most| most as f64);
    Gauge "process_start_time_seconds" "Start time of the process since unix epoch in seconds."
        |_, stat| Some(boot_time_secs().ok()? as f64 + seconds(stat?.starttime));
    Gauge "process_threads" "Number of OS threads in the process."
        |_, stat| stat.map(|stat| stat.num_threads as f64);
};

/// The kernel's clock ticks as seconds.
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / ticks_per_second() as f64
}
