//! The process's metrics (`process_*`), with the names and meanings of Prometheus' client libraries.
//!
//! Read from /proc/self for each page; values that cannot be read are left out. After a take-over they describe the
//! successor. Cost: three small files.
//!
//! Source: «Writing client libraries», section «Process metrics», in Prometheus' documentation; proc(5).

use procfs::process::Process;
use procfs::{boot_time_secs, page_size, ticks_per_second};
use rustix::process::{Resource, getrlimit};

use super::text::{Kind, Text};

/// All these metrics.
pub(super) fn text(text: &mut Text) {
    let Ok(process) = Process::myself() else { return };
    let stat = process.stat().ok();
    let ticks = ticks_per_second() as f64;
    let cpu = stat.as_ref().map(|stat| (stat.utime + stat.stime) as f64 / ticks);
    let help = "Total user and system CPU time spent in seconds.";
    text.single("process_cpu_seconds_total", Kind::Counter, help, cpu);
    let resident = stat.as_ref().map(|stat| (stat.rss * page_size()) as f64);
    text.single("process_resident_memory_bytes", Kind::Gauge, "Resident memory size in bytes.", resident);
    let size = stat.as_ref().map(|stat| stat.vsize as f64);
    text.single("process_virtual_memory_bytes", Kind::Gauge, "Virtual memory size in bytes.", size);
    let files = process.fd_count().ok().map(|count| count as f64);
    text.single("process_open_fds", Kind::Gauge, "Number of open file descriptors.", files);
    let most = getrlimit(Resource::Nofile).current.map(|most| most as f64);
    text.single("process_max_fds", Kind::Gauge, "Maximum number of open file descriptors.", most);
    let booted = boot_time_secs().ok();
    let start = stat.as_ref().zip(booted).map(|(stat, booted)| booted as f64 + stat.starttime as f64 / ticks);
    let help = "Start time of the process since unix epoch in seconds.";
    text.single("process_start_time_seconds", Kind::Gauge, help, start);
    let threads = stat.map(|stat| stat.num_threads as f64);
    text.single("process_threads", Kind::Gauge, "Number of OS threads in the process.", threads);
}
