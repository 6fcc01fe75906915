//! The lines of this process's memory that a thread changes.
//!
//! All memory that can be written is copied before and compared afterwards: the heap, static variables, the connection
//! table, stacks. Not seen: a store of the value that was there before, and what is only read.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::thread;

use rustix::thread::gettid;

/// The bytes of a line.
pub(super) const LINE: u64 = 64;
/// The bytes that are compared at a time.
const CHUNK: usize = 1 << 16;
/// More lines than a packet changes.
const LINES: usize = 1 << 14;
/// More bytes than this process writes.
const BYTES: usize = 1 << 28;

/// The stores of the calling thread between a beginning and an end. There is one, because copies are memory, too.
// On lines of its own, which are left out.
#[repr(align(64))]
pub(super) struct Stores {
    memory: File,
    parts: Vec<Range<u64>>,
    /// The memory at the beginning, and a chunk of it at the end.
    copy: Vec<u8>,
    changed: Vec<u64>,
}

impl Stores {
    pub(super) fn new() -> Self {
        let memory = File::open("/proc/self/mem").expect("the own memory");
        Self {
            memory,
            parts: Vec::new(),
            copy: Vec::with_capacity(BYTES),
            changed: Vec::with_capacity(LINES),
        }
    }

    /// Begins when all other threads sleep.
    pub(super) fn begin(&mut self) {
        await_other_threads();
        self.parts = writable(&[range_of(self), reserved(&self.copy), reserved(&self.changed)]);
        self.changed.clear();
        let bytes: usize = self.parts.iter().map(|part| (part.end - part.start) as usize).sum();
        assert!(CHUNK + bytes <= BYTES, "{bytes} bytes of memory");
        self.copy.resize(CHUNK + bytes, 0);
        let mut rest = &mut self.copy[CHUNK..];
        for part in &self.parts {
            let (copy, after) = rest.split_at_mut((part.end - part.start) as usize);
            self.memory.read_exact_at(copy, part.start).expect("the own memory");
            rest = after;
        }
    }

    /// The addresses of the lines that have changed.
    pub(super) fn end(&mut self) -> Vec<u64> {
        let (now, mut before) = self.copy.split_at_mut(CHUNK);
        for part in &self.parts {
            for start in part.clone().step_by(CHUNK) {
                let now = &mut now[..CHUNK.min((part.end - start) as usize)];
                self.memory.read_exact_at(now, start).expect("the own memory");
                let (then, after) = before.split_at_mut(now.len());
                before = after;
                if *now == *then {
                    continue;
                }
                let lines = now.chunks(LINE as usize).zip(then.chunks(LINE as usize));
                for (at, _) in
                    (start..).step_by(LINE as usize).zip(lines).filter(|(_, (now, then))| now != then)
                {
                    assert!(self.changed.len() < LINES, "a packet changes fewer lines");
                    self.changed.push(at);
                }
            }
        }
        self.changed.clone()
    }
}

/// Waits until all other threads sleep. What it allocates is freed when it returns, before anything is copied.
fn await_other_threads() {
    let mut before = Vec::new();
    loop {
        let others = other_threads();
        // Not one that only waits for a lock: it has gone to sleep anew when all seem to be asleep.
        if others == before && others.iter().all(|(state, _)| state == "S") {
            return;
        }
        before = others;
        thread::yield_now();
    }
}

/// The state of each other thread of this process, and how often it has gone to sleep.
fn other_threads() -> Vec<(String, String)> {
    let own = gettid().as_raw_nonzero().to_string();
    let tasks = fs::read_dir("/proc/self/task").expect("the own threads");
    let others = tasks.flatten().filter(|task| task.file_name() != *own);
    // A thread that has ended meanwhile has none.
    let statuses = others.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let word = |status: &str, name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()).unwrap_or_default().to_owned()
    };
    statuses.map(|status| (word(&status, "State:"), word(&status, "voluntary_ctxt_switches:"))).collect()
}

/// The memory that can be written, without these parts.
fn writable(without: &[Range<u64>]) -> Vec<Range<u64>> {
    let maps = fs::read_to_string("/proc/self/maps").expect("the own memory");
    let mut parts: Vec<_> = maps.lines().filter(|line| line.contains(" rw")).map(addresses).collect();
    for own in without {
        // Whole lines.
        let own = own.start / LINE * LINE..own.end.next_multiple_of(LINE);
        let rests = |part: Range<u64>| {
            let [before, after] = [part.start..part.end.min(own.start), part.start.max(own.end)..part.end];
            [before, after].into_iter().filter(|rest| !rest.is_empty())
        };
        parts = parts.into_iter().flat_map(rests).collect();
    }
    parts
}

/// The addresses of a line of `/proc/self/maps`.
pub(super) fn addresses(line: &str) -> Range<u64> {
    let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
    let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).expect("an address"));
    start..end
}

fn reserved<T>(list: &Vec<T>) -> Range<u64> {
    let start = list.as_ptr().addr() as u64;
    start..start + (list.capacity() * size_of::<T>()) as u64
}

/// The addresses of an object.
pub(super) fn range_of<T: ?Sized>(object: &T) -> Range<u64> {
    let start = std::ptr::from_ref(object).cast::<u8>().addr() as u64;
    start..start + size_of_val(object) as u64
}
