//! Access for the models in `tests/loom_offload/`: the memory of the XDP program, and single steps of a worker.

use loom::sync::atomic::AtomicU64;
use xvs_proto::{LinkId, Packet};

use super::begin::begin;
use super::former::{FormerRecords, Uncounted};
use super::shared::{LAYOUT_KNOWN, Offload, Settings};
use crate::burst::context::Context;
use crate::burst::flows::Flows;
use crate::burst::state;
use crate::conn::{ConnId, Direction, Offloaded, Table};
use crate::shm::words::{Rows, Words};

impl Offload {
    /// An offload with this number of records, at most two, for a table.
    pub fn of_model(records: u32, table: &Table) -> Self {
        let flows = Offloaded::new(Rows::of(2), Words::default(), table.entries());
        let settings = Settings { records, ..Settings::default() };
        Self::over(Words::default(), Rows::of(1), flows, settings)
            .expect("a model's random numbers are fixed")
    }

    /// The words of a record.
    pub fn record(&self, number: u32) -> &[AtomicU64] {
        self.flows.record(number)
    }

    /// The words of `struct xvs_moves`.
    pub fn moves(&self) -> &[AtomicU64] {
        &**self.flows.words().1
    }

    /// The record of a connection.
    pub fn record_of(&self, id: ConnId) -> Option<u32> {
        self.flows.of(id)
    }

    /// Writes nothing. Loom interleaves this thread between two accesses of another one only if it writes what the
    /// later of them reads, and has not read it before.
    pub fn touch(&self, id: ConnId) {
        self.flows.unbind(id, u32::MAX - 1);
    }

    /// Seals a record: the first step of a worker that takes a connection back.
    pub fn seal(&self, record: u32) {
        self.flows.seal(record);
    }

    /// Leaves a connection in the state of its entry: the next xvsd's table has no records.
    pub fn leave(&self, id: ConnId) {
        if let Some(record) = self.flows.of(id) {
            self.flows.unbind(id, record);
        }
    }

    /// The contents that the next xvsd takes from the records.
    pub fn uncounted(&self) -> Vec<Uncounted> {
        FormerRecords::of_model(self.flows.words().0.clone(), LAYOUT_KNOWN).find_used().take()
    }
}

impl Flows {
    /// Offloads a connection whose requests arrive on this link. Returns `false` if no record is free.
    pub fn begin_offload(&mut self, id: ConnId, link: LinkId, cx: Context<'_>) -> bool {
        !begin(self, id, link, cx)
    }

    /// Processes the effect of a segment on the state of a connection: as a look-up, the stage `state` and the end of
    /// the burst do.
    pub fn process(&mut self, id: ConnId, packet: &Packet, direction: Direction, cx: Context<'_>) {
        state::take_back(self, id, packet, direction, cx.snapshot);
        self.advance(id, packet, direction, cx);
    }

    /// Like [`Self::process`], for a worker that has looked up the connection before it was offloaded.
    pub fn advance(&mut self, id: ConnId, packet: &Packet, direction: Direction, cx: Context<'_>) {
        let destination = cx.snapshot.destinations.of(&self.table.connection(id));
        state::advance(self, id, packet, direction, destination, cx);
        self.deferred.end(&cx.snapshot.destinations);
    }
}
