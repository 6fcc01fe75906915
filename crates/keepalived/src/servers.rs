//! `real_server` blocks.
//!
//! A block is read at its position, because the method that statements before it set applies to it. It is completed
//! when the whole virtual server has been read. Pure. Source: keepalived-behaviour, sections 2.3 and 3.

use std::net::SocketAddr;

use xvs_model::config::destination::DestinationOptions;
use xvs_model::health_checks::check::Script;
use xvs_model::health_checks::virtual_server::RealServer;
use xvs_proto::Endpoint;
use xvs_sched::Weight;

use crate::blocks::Block;
use crate::checkers;
use crate::checkers::CheckerContext;
use crate::definitions::Definitions;
use crate::groups::Entry;
use crate::head::{Head, NAT, endpoint, family, in_services};
use crate::settings::Settings;
use crate::timing::{TimingOptions, set};
use crate::values::{Faults, Method};

/// The statements of a real server.
pub(super) struct Draft<'a> {
    block: &'a Block,
    /// The endpoint as it is written.
    pub(super) endpoint: Endpoint,
    /// The server's own method, or the method that statements before the block set.
    pub(super) method: Option<Method>,
    timing: TimingOptions,
    weight: Option<u32>,
    thresholds: (u32, u32),
    inhibit: Option<bool>,
    notify_up: Option<Script>,
    notify_down: Option<Script>,
    smtp_alert: Option<bool>,
    host: Option<String>,
    checkers: Vec<&'a Block>,
}

impl<'a> Draft<'a> {
    /// Reads a `real_server`; `None` if it has no valid address and is left out.
    pub(super) fn read(block: &'a Block, settings: &mut Settings, faults: &mut Faults) -> Option<Self> {
        faults.block(block);
        let found = endpoint(block, faults);
        let mut draft = Self {
            block,
            // The other faults of a server that is left out are found, too.
            endpoint: found.unwrap_or(Endpoint::new([0; 4], 0)),
            method: None,
            timing: TimingOptions::default(),
            weight: None,
            thresholds: (0, 0),
            inhibit: None,
            notify_up: None,
            notify_down: None,
            smtp_alert: None,
            host: None,
            checkers: Vec::new(),
        };
        for statement in block.statements() {
            if checkers::is_checker(statement.keyword()) {
                draft.checkers.push(statement);
            } else {
                let known = draft.timing.apply(statement, 1, faults) || draft.apply(statement, faults);
                faults.line(statement, known);
            }
        }
        found?;
        draft.method = draft.method.or(settings.method);
        settings.family = settings.family.or(family(draft.endpoint, draft.method));
        Some(draft)
    }

    fn apply(&mut self, block: &Block, faults: &mut Faults) -> bool {
        let (upper, lower) = &mut self.thresholds;
        match block.keyword() {
            "weight" => set(&mut self.weight, faults.number(block, 0..=i32::MAX as u32)),
            "lvs_method" => set(&mut self.method, faults.method(block)),
            "lb_kind" => {
                let text = "`lb_kind` of a real server: keepalived ignores it; xvs reads it as `lvs_method`";
                faults.warn(&block.place, text);
                set(&mut self.method, faults.method(block));
            }
            "uthreshold" => *upper = faults.number(block, 0..=u32::MAX).unwrap_or(*upper),
            "lthreshold" => *lower = faults.number(block, 0..=u32::MAX).unwrap_or(*lower),
            "inhibit_on_failure" => set(&mut self.inhibit, faults.switch(block)),
            "notify_up" => faults.script_once(block, &mut self.notify_up),
            "notify_down" => faults.script_once(block, &mut self.notify_down),
            "virtualhost" => set(&mut self.host, faults.value(block).map(str::to_owned)),
            "smtp_alert" => set(&mut self.smtp_alert, faults.switch(block)),
            // Only SNMP uses it.
            "snmp_name" => {}
            _ => return false,
        }
        true
    }

    /// Creates the real server, after the whole virtual server was read.
    pub(super) fn finish(
        self,
        settings: &Settings,
        head: &Head,
        definitions: &Definitions,
        faults: &mut Faults,
    ) -> RealServer {
        let (method, tunnel) = self.method.or(settings.method).unwrap_or(NAT);
        let endpoint = in_services(self.endpoint, method, head, self.block, faults);
        // In a firewall-mark service packets keep their port; the checks use the configured one.
        let probed = if endpoint.port == 0 { self.endpoint } else { endpoint };
        let context = CheckerContext {
            endpoint: SocketAddr::new(probed.addr, probed.port),
            method,
            virtual_endpoints: head
                .entries
                .iter()
                .filter_map(|entry| match *entry {
                    Entry::Address(addr, port) => Some(Endpoint { addr, port }),
                    Entry::Mark(..) => None,
                })
                .collect(),
            timing: self.timing.or(settings.timing),
            service_interval: settings.timing.interval,
            host: self.host.or_else(|| settings.host.clone()),
            service_host: settings.host.clone(),
            definitions,
        };
        RealServer {
            checks: self
                .checkers
                .iter()
                .flat_map(|checker| checkers::read(checker, &context, faults))
                .collect(),
            place: self.block.place.clone(),
            endpoint,
            options: DestinationOptions {
                method,
                weight: Weight(self.weight.or(settings.weight).unwrap_or(1)),
                upper_threshold: self.thresholds.0,
                lower_threshold: self.thresholds.1,
                tunnel,
            },
            inhibit_on_failure: self.inhibit.unwrap_or(settings.inhibit_on_failure),
            notify_up: self.notify_up,
            notify_down: self.notify_down,
            smtp_alert: self.smtp_alert,
        }
    }
}
