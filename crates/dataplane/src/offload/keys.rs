//! The keys of offloaded flows in the maps of the XDP program.
//!
//! Runs on a thread of its own, because a change of a map is a system call, which workers do not make. What it does is
//! queued by workers: keys to enter, and records to free. Removed keys may be in use by a program that runs at this
//! moment, so a record is used again a turn later.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use xvs_xdp::bpf::{KernelMap, Object};

use super::flow_key::{FlowKeys, Key, V4, V6};
use super::shared::{Job, Offload, map};
use crate::conn::{RECORDS, offloaded_word as word};

/// From turn to turn.
pub const TURN: Duration = Duration::from_millis(10);

/// The uses of a record until they are numbered anew: the values of the maps have so many bits for them.
const USES: u64 = 1 << (u32::BITS - 1 - RECORDS.ilog2());

/// The value of a key of a record's part (`XVS_FLOW_RECORD` and others in `bpf/maps.h`).
pub(crate) fn value(number: u32, part: u32, record: u32) -> u32 {
    number << (RECORDS.ilog2() + 1) | part << RECORDS.ilog2() | record
}

/// The keys that are in the maps.
pub struct Keys {
    offload: Arc<Offload>,
    v4: KernelMap,
    v6: KernelMap,
    /// By record.
    entered: Vec<FlowKeys>,
    /// Records without keys, to be used again after the next turn.
    resting: Vec<u32>,
}

impl Keys {
    /// The maps are those of `object`.
    ///
    /// # Errors
    /// The kernel's error.
    pub(crate) fn of(object: &Object, offload: Arc<Offload>) -> io::Result<Self> {
        let map = |name| KernelMap::of(object.map_descriptor(name)?.try_clone_to_owned()?);
        Ok(Self {
            offload,
            v4: map(map::FLOWS_V4)?,
            v6: map(map::FLOWS_V6)?,
            entered: vec![[None, None]; RECORDS],
            resting: Vec::new(),
        })
    }

    /// Enters and removes what workers have asked for. Returns the number of records.
    pub fn turn(&mut self) -> usize {
        for record in std::mem::take(&mut self.resting) {
            let _ = self.offload.free.push(record);
        }
        // What is queued meanwhile waits for the next turn, so that free records get to workers.
        let jobs = self.offload.jobs.len();
        for _ in 0..jobs {
            match self.offload.jobs.pop() {
                Some(Job::Enter(record, keys)) => self.enter(record, keys),
                Some(Job::Free(record)) => self.free(record),
                None => break,
            }
        }
        jobs
    }

    fn enter(&mut self, record: u32, keys: FlowKeys) {
        let state = &self.offload.flows.record(record)[word::STATE];
        let number = (state.load(Relaxed) >> 1) as u32;
        for (part, key) in keys.iter().enumerate() {
            let Some(key) = key else { continue };
            if self.set(key, value(number, part as u32, record)).is_err() {
                // Workers forward the connection, and one of them has the record freed.
                state.fetch_and(!1, Relaxed);
                self.offload.refused.fetch_add(1, Relaxed);
            }
        }
        self.entered[record as usize] = keys;
    }

    fn free(&mut self, record: u32) {
        for key in std::mem::take(&mut self.entered[record as usize]).iter().flatten() {
            // It may name a newer record by now. One that stays names a use that has ended.
            let _ = self.unset(key, record);
        }
        let state = &self.offload.flows.record(record)[word::STATE];
        let number = (state.load(Relaxed) >> 1) + 1;
        state.store((number % USES) << 1, Relaxed);
        self.resting.push(record);
    }

    fn set(&self, key: &Key, value: u32) -> io::Result<()> {
        match key {
            Key::V4(key) => self.v4.entries::<V4>()?.set(key, value),
            Key::V6(key) => self.v6.entries::<V6>()?.set(key, value),
        }
    }

    /// Removes a key, if it names this record.
    fn unset(&self, key: &Key, record: u32) -> io::Result<()> {
        let is_its = |value: Option<u32>| value.is_some_and(|value| value % RECORDS as u32 == record);
        match key {
            Key::V4(key) => {
                let map = self.v4.entries::<V4>()?;
                if is_its(map.get(key)?) { map.unset(key) } else { Ok(()) }
            }
            Key::V6(key) => {
                let map = self.v6.entries::<V6>()?;
                if is_its(map.get(key)?) { map.unset(key) } else { Ok(()) }
            }
        }
    }
}
