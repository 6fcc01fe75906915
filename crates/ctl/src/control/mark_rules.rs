//! The mark rules in force, of the kernel and of `xvs mark`, compiled for the data plane.

use std::sync::Arc;

use xvs_dataplane::snapshot::Snapshot;
use xvs_host::netfilter::chain::Table;
use xvs_model::objects::Object;
use xvs_model::objects::mark::MarkRule;
use xvs_proto::network::Link;

use super::follow::{Change, Follow};
use crate::firewall_marks::{CompiledMarks, compile};

/// The mark rules of all sources.
#[derive(Default)]
pub(super) struct MarkRules {
    /// The kernel's rules.
    tables: Vec<Table>,
    /// The interfaces that packets of services use.
    pub(super) links: Vec<Link>,
    pub(super) compiled: CompiledMarks,
}

impl Follow for MarkRules {
    fn follow(&mut self, change: &mut Change<'_>) {
        if let Some(Object::Mark(_)) = change.command.object() {
            self.compile(change.state.marks());
            self.enter(change.snapshot);
        }
    }
}

impl MarkRules {
    /// Replaces the kernel's rules; `own` are the rules of `xvs mark`.
    pub(super) fn set_tables(&mut self, tables: Vec<Table>, own: &[MarkRule]) {
        self.tables = tables;
        self.compile(own);
    }

    /// Replaces the interfaces. Returns whether they differ from the former interfaces.
    pub(super) fn set_links(&mut self, links: &[Link], own: &[MarkRule]) -> bool {
        let differ = self.links != links;
        if differ {
            self.links = links.to_vec();
            self.compile(own);
        }
        differ
    }

    /// Enters the compiled rules in this snapshot.
    pub(super) fn enter(&self, snapshot: &mut Snapshot) {
        snapshot.marks = Arc::new(self.compiled.marks.clone());
    }

    /// Compiles the rules with these rules of `xvs mark`.
    fn compile(&mut self, own: &[MarkRule]) {
        self.compiled = self.with(own);
    }

    /// The compiled rules if `xvs mark` had these rules.
    pub(super) fn with(&self, own: &[MarkRule]) -> CompiledMarks {
        compile(&self.tables, own, &self.links)
    }
}
