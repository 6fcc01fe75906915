//! Services owned by health checks: the desired state follows the wanted state of the checks.
//!
//! A change of the wanted state becomes commands, which are admitted like operators' commands and published in one
//! snapshot. Refused commands are tried again each second. Manual changes to owned services are drift: drift stays and
//! is reported, or is undone ([`Repair`]). Other services never change. Cost: a comparison of the named or changed
//! services, whatever the number of others. Not here: the source of the wanted state (`xvs_health`), the comparison of
//! two states (`xvs_model::config::difference`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::{mem, slice};

use xvs_dataplane::clock::Millis;
use xvs_ipvsadm::command_line;
use xvs_model::config::command::Command;
use xvs_model::config::difference::{Difference, commands_for, differences};
use xvs_model::config::reconcile::{OwnedService, ReconcileScope, Reconciled, Repair};
use xvs_model::config::refusal::CommandError;
use xvs_model::config::rules::DesiredRules;
use xvs_model::objects::Object;
use xvs_model::report::event::Kind;
use xvs_model::report::setting::Source;
use xvs_sched::ServiceKey;

use crate::control::Control;
use crate::control::datapath::Datapath;
use crate::control::owned_services::{ORIGIN, OwnedServices};
use crate::journal::format::Entry;

impl<D: Datapath> Control<D> {
    /// Replaces the wanted state of these services; `None` deletes a service and its destinations, if it is owned.
    /// All commands are published in one snapshot. Compares the named services; with [`ReconcileScope::Everything`] all
    /// owned services.
    ///
    /// # Errors
    /// None. Refused commands are in the result; a late worker becomes a warning.
    pub fn reconcile(
        &mut self,
        wanted: Vec<(ServiceKey, Option<OwnedService>)>,
        scope: ReconcileScope,
        now: Millis,
    ) -> Reconciled {
        let mut named: BTreeSet<_> = wanted.iter().map(|(key, _)| *key).collect();
        let before = self.owned.wanted.restricted_to(&named);
        for (key, service) in wanted {
            self.owned.wanted.set_limit(key, service.as_ref().and_then(|service| service.limit));
            self.owned.wanted.set_service(key, service.map(|service| Arc::new(service.into())));
        }
        // A service that is not owned is never deleted.
        named.retain(|key| [&before, &self.owned.wanted].iter().any(|state| state.service(key).is_some()));
        let differences = differences(&before, &DesiredRules::from(self.owned.wanted.restricted_to(&named)));
        for new in differences.iter().filter(|difference| difference.before.is_none()) {
            // A service or limit that becomes owned leaves the journal.
            if let Some(object @ (Object::Service(_) | Object::Limit(_))) = new.object() {
                let delete = Command::Delete(object);
                if self.state.check(&delete).is_ok() {
                    self.note_entry(|| Entry::Change(delete));
                }
            }
        }
        let changed: BTreeSet<_> = differences.iter().filter_map(Difference::object).collect();
        match scope {
            ReconcileScope::Everything => {
                named.extend(self.owned.services());
                self.owned.refused.clear();
            }
            ReconcileScope::Changes => self.owned.refused.retain(|object, _| !changed.contains(object)),
        }
        self.owned.dirty.extend(&named);
        let reconciled = self.restore(ORIGIN, self.restoring_commands(&named, scope, &changed), now);
        // A service may become owned without a change of the desired state.
        self.save();
        reconciled
    }

    /// Sets whether drift of owned services is undone.
    pub fn set_repair(&mut self, repair: Repair) {
        self.owned.repair = repair;
    }

    /// The commands that restore the wanted state of owned services, without refused ones. Compares the services that
    /// were changed since the last call or tick.
    pub fn drift(&mut self) -> Vec<Command> {
        self.update_drift();
        self.owned.drift.values().flatten().cloned().collect()
    }

    /// The commands of [`Self::drift`] as command lines, at most a second old.
    pub fn drift_lines(&self) -> &Arc<[String]> {
        &self.owned.drift_lines
    }

    /// Tries refused commands again, updates drift, and undoes it if [`Repair::Always`] is set.
    pub(super) fn maintain_owned(&mut self, now: Millis) {
        let refused: BTreeSet<_> = mem::take(&mut self.owned.refused).into_keys().collect();
        if !refused.is_empty() {
            let services: BTreeSet<_> = refused.iter().filter_map(Object::owned_with).collect();
            // A command that is no longer refused may be drift.
            self.owned.dirty.extend(&services);
            let commands = self.restoring_commands(&services, ReconcileScope::Changes, &refused);
            self.restore(ORIGIN, commands, now);
        }
        self.update_drift();
        if self.owned.repair == Repair::Always && !self.owned.drift.is_empty() {
            let commands = self.drift();
            self.restore("put back", commands, now);
            self.update_drift();
        }
    }

    fn update_drift(&mut self) {
        let dirty = mem::take(&mut self.owned.dirty);
        if dirty.is_empty() {
            return;
        }
        let owned = dirty.iter().copied().filter(|key| self.owned.wanted.service(key).is_some()).collect();
        let commands = self.restoring_commands(&owned, ReconcileScope::Everything, &BTreeSet::new());
        let OwnedServices { refused, drift, .. } = &mut self.owned;
        drift.retain(|key, _| !dirty.contains(key));
        for command in commands {
            let Some(object) = command.object() else { continue };
            // Destinations of a refused service wait with it.
            let waits_for_service = object.service().is_some_and(|key| {
                self.state.service(&key).is_none() && refused.contains_key(&Object::Service(key))
            });
            if !waits_for_service
                && !refused.contains_key(&object)
                && let Some(key) = object.owned_with()
            {
                drift.entry(key).or_default().push(command);
            }
        }
        self.owned.drift_lines = drift.values().flatten().map(command_line).collect();
    }

    /// The commands that bring these objects of services to their wanted state; with [`ReconcileScope::Everything`] all
    /// owned objects, too. A service that is added again gets all its destinations; one that stays deleted gets none.
    fn restoring_commands(
        &self,
        services: &BTreeSet<ServiceKey>,
        scope: ReconcileScope,
        objects: &BTreeSet<Object>,
    ) -> Vec<Command> {
        let running = self.state.restricted_to(services);
        let wanted = self.owned.wanted.restricted_to(services);
        let mut differences = differences(&running, &DesiredRules::from(wanted.clone()));
        differences.retain(|difference| {
            let object = match difference.object() {
                // A destination is deleted with its service.
                Some(Object::Destination { service, .. }) if wanted.service(&service).is_none() => None,
                Some(Object::Destination { service, .. }) if running.service(&service).is_none() => {
                    Some(Object::Service(service))
                }
                object => object,
            };
            object.is_some_and(|object| {
                objects.contains(&object)
                    || scope == ReconcileScope::Everything && self.owned.owns(Some(object))
            })
        });
        commands_for(&differences)
    }

    /// Carries out commands for owned objects, and keeps the refused ones.
    fn restore(&mut self, origin: &str, commands: Vec<Command>, now: Millis) -> Reconciled {
        let reconciled = self.carry_out_admitted(origin, commands, None, now);
        self.owned.refused.extend(
            reconciled.refused.iter().filter_map(|refused| Some((refused.0.object()?, refused.clone()))),
        );
        reconciled
    }

    /// Carries out the commands that are admitted, in one snapshot. Events and the log have them with their origin, the
    /// journal with their source, if they have one.
    pub(super) fn carry_out_admitted(
        &mut self,
        origin: &str,
        commands: Vec<Command>,
        source: Option<Source>,
        now: Millis,
    ) -> Reconciled {
        let services: BTreeSet<_> =
            commands.iter().filter_map(|command| command.object()?.owned_with()).collect();
        // Tried on a copy first, so that refused commands are not steered.
        let mut trial = self.state.restricted_to(&services);
        let mut admitted = Vec::new();
        let mut refused = Vec::new();
        for command in commands {
            match self.admit(&trial, &command).map(|accepted| trial.enter(accepted)) {
                Ok(()) => admitted.push(command),
                Err(error) => refused.push((command, error)),
            }
        }
        let has_room = self.extend_steering(&admitted).is_ok();
        let mut done = Vec::new();
        for command in admitted {
            // If steering has no room for all commands, each is tried by itself.
            let steered = if has_room { Ok(()) } else { self.extend_steering(slice::from_ref(&command)) };
            match steered.and_then(|()| self.prepare_and_carry_out(&command, now)) {
                Ok(()) => {
                    if let Some(source) = source {
                        self.note([&command], source);
                    }
                    done.push((format!("{origin}: {}", command_line(&command)), None));
                }
                Err(error) => refused.push((command, error)),
            }
        }
        // These destinations are added with their service once it is accepted.
        refused.retain(|(_, error)| !matches!(error, CommandError::ServiceNotDefined(_)));
        let changed = done.len();
        if changed > 0 {
            // A late worker becomes a warning.
            let _ = self.publish();
            done.iter().for_each(|(line, _)| tracing::info!("{line}"));
            self.events.record_all(Kind::Change, self.epoch(), None, done);
        }
        Reconciled { changed, refused }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;
    use xvs_model::config::destination::{Destination, DestinationOptions};
    use xvs_model::config::service::ServiceOptions;
    use xvs_model::objects::disabled::Disabled;
    use xvs_proto::Endpoint;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use xvs_ipvsadm::{SystemResolver, read_rules};
    use xvs_model::config::difference::rules_of;
    use xvs_model::objects::Rule;
    use xvs_model::protocol::question::{ControlRequest, Reply};
    use xvs_model::protocol::request::Verdict;
    use xvs_model::report::event::{Begin, EventQuery, Then};
    use xvs_model::report::warning::texts;
    use xvs_proto::Family;
    use xvs_sched::{ClientLimit, ForwardingMethod, Weight};

    use crate::control::reconcile::*;
    use crate::control::tests::{Machine, any_change, any_service, control, endpoint, network, options};

    const SECOND: Duration = Duration::from_secs(1);

    fn key(last: u8) -> ServiceKey {
        ServiceKey::tcp(Endpoint::new([192, 0, 2, last], 80))
    }

    /// A service with these real servers, each by last byte and weight.
    fn with(servers: &[(u8, u32)]) -> Option<OwnedService> {
        let server = |(last, weight): &(u8, u32)| {
            let options = DestinationOptions { weight: Weight(*weight), ..DestinationOptions::default() };
            (Endpoint::new([192, 0, 2, *last], 80), options)
        };
        let destinations = servers.iter().map(server).collect();
        Some(OwnedService { options: ServiceOptions::of(Family::V4), destinations, limit: None })
    }

    fn by_hand(control: &mut Control<Machine>, rules: &str) {
        let rules = read_rules(rules, &SystemResolver::default()).unwrap();
        let commands = rules.into_iter().map(|rule| rule.command).collect();
        let Ok(Reply::Restored(results)) = control.handle(&ControlRequest::Restore(commands), Millis(0))
        else {
            panic!("a restore has a result for each line")
        };
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }

    /// Last bytes and weights of a service's real servers, in the order of a listing.
    fn servers(control: &Control<Machine>, last: u8) -> Option<Vec<(u8, u32)>> {
        let service = control.state().service(&key(last))?;
        let server = |dest: &Destination| match dest.endpoint.addr {
            std::net::IpAddr::V4(addr) => (addr.octets()[3], dest.options.weight.0),
            std::net::IpAddr::V6(_) => unreachable!("no test has IPv6 servers"),
        };
        Some(service.destinations.iter().map(server).collect())
    }

    fn drift(control: &mut Control<Machine>) -> Vec<String> {
        control.drift().iter().map(command_line).collect()
    }

    fn changed(reconciled: Reconciled) -> usize {
        assert_eq!(reconciled.refused, []);
        reconciled.changed
    }

    #[test]
    fn a_wanted_state_is_published_in_one_snapshot_and_servers_are_added_in_the_given_order() {
        let mut control = control();
        let epoch = control.epoch();
        let wanted = vec![(key(100), with(&[(1, 1), (2, 2)])), (key(101), with(&[(3, 1)]))];
        assert_eq!(changed(control.reconcile(wanted, ReconcileScope::Changes, Millis(0))), 5);
        assert_eq!(control.epoch(), epoch + 1);
        assert_eq!(servers(&control, 100), Some(vec![(2, 2), (1, 1)]));
        let sorry = vec![(key(100), with(&[(9, 1)]))];
        assert_eq!(changed(control.reconcile(sorry.clone(), ReconcileScope::Changes, Millis(0))), 3);
        assert_eq!((control.epoch(), servers(&control, 100)), (epoch + 2, Some(vec![(9, 1)])));
        assert_eq!(changed(control.reconcile(sorry, ReconcileScope::Everything, Millis(0))), 0);
        assert_eq!(control.epoch(), epoch + 2, "without differences nothing is published");
    }

    #[test]
    fn servers_that_stay_or_come_back_keep_their_connections_and_counters() {
        let mut control = control();
        let mut lives = |servers: &[(u8, u32)]| {
            control.reconcile(vec![(key(100), with(servers))], ReconcileScope::Changes, Millis(0));
            let snapshot = control.published().load_full();
            let service = snapshot.services.iter().find(|service| service.key == key(100)).unwrap();
            let live = |last: &u8| {
                let endpoint = Endpoint::new([192, 0, 2, *last], 80);
                let member = service.members.iter().find(|member| member.endpoint == endpoint);
                member.map(|member| (member.id, member.live.clone()))
            };
            [1, 2].map(|last| live(&last).map(|(id, live)| (id, Arc::as_ptr(&live))))
        };
        let [one, two] = lives(&[(1, 1), (2, 1)]);
        assert_eq!(lives(&[(1, 1), (2, 7), (3, 1)]), [one, two]);
        assert_eq!(lives(&[(1, 1)]), [one, None]);
        assert_eq!(lives(&[(9, 1)]), [None, None]);
        assert_eq!(lives(&[(1, 1), (2, 1)]), [one, two]);
    }

    #[test]
    fn changes_by_hand_stay_until_the_wanted_state_of_the_same_server_changes() {
        let mut control = control();
        let want = |control: &mut Control<Machine>, servers: &[(u8, u32)], scope| {
            changed(control.reconcile(vec![(key(100), with(servers))], scope, Millis(0)))
        };
        want(&mut control, &[(1, 1), (2, 1), (3, 1)], ReconcileScope::Changes);
        by_hand(
            &mut control,
            "-e -t 192.0.2.100:80 -r 192.0.2.1 -w 0
-d -t 192.0.2.100:80 -r 192.0.2.2
-a -t 192.0.2.100:80 -r 192.0.2.8
",
        );
        assert_eq!(want(&mut control, &[(1, 1), (2, 1)], ReconcileScope::Changes), 1);
        assert_eq!(servers(&control, 100), Some(vec![(8, 1), (1, 0)]));
        assert_eq!(want(&mut control, &[(1, 5), (2, 5)], ReconcileScope::Changes), 2);
        assert_eq!(servers(&control, 100), Some(vec![(2, 5), (8, 1), (1, 5)]));
        assert_eq!(
            want(&mut control, &[(1, 5)], ReconcileScope::Changes)
                + want(&mut control, &[(1, 5), (8, 7)], ReconcileScope::Changes),
            2,
            "an existing server is edited"
        );
        assert_eq!(servers(&control, 100), Some(vec![(8, 7), (1, 5)]));
        by_hand(&mut control, "-d -t 192.0.2.100:80 -r 192.0.2.8\n");
        assert_eq!(
            want(&mut control, &[(1, 5)], ReconcileScope::Changes),
            0,
            "the server is deleted already"
        );
        by_hand(&mut control, "-E -t 192.0.2.100:80 -s sh\n-e -t 192.0.2.100:80 -r 192.0.2.1 -w 3\n");
        assert_eq!(want(&mut control, &[(1, 5)], ReconcileScope::Everything), 2);
        assert_eq!(drift(&mut control), [""; 0]);
    }

    #[test]
    fn a_wanted_limit_is_set_changed_and_ended_and_one_that_was_never_wanted_stays() {
        let mut control = control();
        let limited = |rate: Option<u32>| {
            let limit = rate.map(|rate| ClientLimit { rate, ..ClientLimit::default() });
            vec![(key(100), with(&[(1, 1)]).map(|service| OwnedService { limit, ..service }))]
        };
        let rate =
            |control: &Control<Machine>| control.state().limits().get(&key(100)).map(|limit| limit.rate);
        by_hand(&mut control, "#xvs limit set -t 192.0.2.100:80 --rate 3\n");
        control.reconcile(limited(None), ReconcileScope::Everything, Millis(0));
        assert_eq!(rate(&control), Some(3), "it is the operator's");
        for (wanted, scope) in [
            (Some(5), ReconcileScope::Everything),
            (Some(7), ReconcileScope::Changes),
            (Some(7), ReconcileScope::Everything),
        ] {
            control.reconcile(limited(wanted), scope, Millis(0));
            assert_eq!((rate(&control), drift(&mut control)), (wanted, vec![]));
        }
        by_hand(&mut control, "#xvs limit set -t 192.0.2.100:80 --rate 9\n");
        assert_eq!(drift(&mut control), ["xvs limit set -t 192.0.2.100:80 --rate 7"]);
        let rules =
            ControlRequest::Apply { rules: Vec::new(), confirm_within_seconds: None, keeps_locals: false };
        control.handle(&rules, Millis(0)).unwrap();
        assert_eq!(rate(&control), Some(9), "rules do not apply to it");
        assert_eq!(changed(control.reconcile(limited(None), ReconcileScope::Everything, Millis(0))), 1);
        assert_eq!((rate(&control), drift(&mut control)), (None, vec![]));
        control.reconcile(limited(Some(5)), ReconcileScope::Changes, Millis(0));
        control.reconcile(vec![(key(100), None)], ReconcileScope::Changes, Millis(0));
        assert_eq!((rate(&control), servers(&control, 100)), (None, None), "it ends with its service");
    }

    #[test]
    fn a_service_deleted_by_hand_is_restored_with_all_servers_or_not_at_all() {
        let mut control = control();
        control.reconcile(vec![(key(100), with(&[(1, 1), (2, 1)]))], ReconcileScope::Changes, Millis(0));
        by_hand(&mut control, "-D -t 192.0.2.100:80\n");
        let one_down = vec![(key(100), with(&[(2, 1)]))];
        assert_eq!(changed(control.reconcile(one_down, ReconcileScope::Changes, Millis(0))), 0);
        let back =
            ["xvsadm -A -t 192.0.2.100:80 -s wlc", "xvsadm -a -t 192.0.2.100:80 -r 192.0.2.2:80 -g -w 1"];
        assert_eq!(drift(&mut control), back);
        let mut other = with(&[(2, 1), (3, 1)]);
        if let Some(other) = &mut other {
            other.options.scheduler = "rr".to_owned();
        }
        assert_eq!(
            changed(control.reconcile(vec![(key(100), other)], ReconcileScope::Changes, Millis(0))),
            3
        );
        assert_eq!(servers(&control, 100), Some(vec![(3, 1), (2, 1)]));
    }

    #[test]
    fn a_service_that_is_not_owned_is_not_touched_and_a_deleted_one_loses_all_its_servers() {
        let mut control = control();
        by_hand(&mut control, "-A -t 192.0.2.101:80\n-a -t 192.0.2.101:80 -r 192.0.2.7\n");
        control.reconcile(vec![(key(100), with(&[(1, 1)]))], ReconcileScope::Everything, Millis(0));
        by_hand(&mut control, "-a -t 192.0.2.100:80 -r 192.0.2.8\n");
        let gone = vec![(key(100), None), (key(101), None), (key(102), None)];
        assert_eq!(changed(control.reconcile(gone.clone(), ReconcileScope::Changes, Millis(0))), 1);
        assert_eq!((servers(&control, 100), servers(&control, 101)), (None, Some(vec![(7, 1)])));
        by_hand(&mut control, "-A -t 192.0.2.100:80\n");
        assert_eq!(
            changed(control.reconcile(gone, ReconcileScope::Everything, Millis(0))),
            0,
            "the service added by hand is not owned"
        );
        assert_eq!(drift(&mut control), [""; 0]);
    }

    #[test]
    fn refused_commands_are_warned_of_block_no_others_and_are_tried_again_each_second() {
        let mut control = control();
        control.set_network(&network([192, 0, 2, 9], 25));
        control.datapath().full.insert([192, 0, 2, 101].into());
        let mut unknown = with(&[(5, 1)]);
        if let Some(unknown) = &mut unknown {
            unknown.options.scheduler = "nosuch".to_owned();
        }
        let wanted = vec![
            (key(100), with(&[(1, 1), (127, 1)])),
            (key(101), with(&[(2, 1), (3, 1)])),
            (key(102), unknown),
        ];
        let reconciled = control.reconcile(wanted, ReconcileScope::Everything, Millis(0));
        let refused: Vec<_> = reconciled.refused.iter().map(|(command, _)| command_line(command)).collect();
        let expected = [
            "xvsadm -A -t 192.0.2.102:80 -s nosuch",
            "xvsadm -a -t 192.0.2.100:80 -r 192.0.2.127:80 -g -w 1",
            "xvsadm -A -t 192.0.2.101:80 -s wlc",
        ];
        assert_eq!((reconciled.changed, &refused[..]), (2, &expected.map(str::to_owned)[..]));
        assert_eq!(control.warnings().len(), 3);
        let why = "health: xvsadm -A -t 192.0.2.102:80 -s nosuch: refused, and tried again each second: no scheduler";
        assert!(control.warnings()[1].text.starts_with(why), "{:?}", control.warnings());
        assert_eq!(drift(&mut control), [""; 0], "refused commands are no drift");
        let (epoch, steered) = (control.epoch(), control.datapath().steered.clone());
        control.tick(Millis(0) + SECOND).unwrap();
        assert_eq!((control.epoch(), &control.datapath().steered), (epoch, &steered), "nothing has changed");
        assert_eq!(control.warnings().len(), 3);
        control.datapath().full.clear();
        control.set_network(&network([192, 0, 2, 9], 24));
        control.tick(Millis(0) + 2 * SECOND).unwrap();
        assert_eq!(servers(&control, 100), Some(vec![(127, 1), (1, 1)]));
        assert_eq!(servers(&control, 101), Some(vec![(3, 1), (2, 1)]));
        assert_eq!(control.warnings().len(), 1);
        control.reconcile(vec![(key(102), None)], ReconcileScope::Changes, Millis(0));
        assert_eq!(texts(&control.warnings()), [""; 0]);
    }

    #[test]
    fn drift_is_warned_of_and_repaired_within_a_second() {
        let mut control = control();
        let wanted = vec![(key(100), with(&[(1, 1), (2, 1)])), (key(101), with(&[(3, 1)]))];
        control.reconcile(wanted, ReconcileScope::Changes, Millis(0));
        by_hand(&mut control, "-e -t 192.0.2.100:80 -r 192.0.2.1 -w 0\n-A -t 192.0.2.105:80\n");
        control.tick(Millis(0) + SECOND).unwrap();
        let back = "xvsadm -e -t 192.0.2.100:80 -r 192.0.2.1:80 -g -w 1";
        let warning =
            "services of the keepalived.conf were changed by hand; 1 command restores them: `xvs health`";
        assert_eq!(texts(&control.warnings()), [warning]);
        assert_eq!(control.drift_lines()[..], [back.to_owned()]);
        by_hand(&mut control, "-C\n");
        control.tick(Millis(0) + 2 * SECOND).unwrap();
        assert!(control.warnings()[0].text.contains("; 5 commands restore them"), "{:?}", control.warnings());
        assert_eq!(control.state().services().count(), 0);
        let mut events =
            control.events().listen(EventQuery { from: Begin::Now, then: Then::Follow }).unwrap();
        control.set_repair(Repair::Always);
        control.tick(Millis(0) + 3 * SECOND).unwrap();
        assert_eq!(texts(&control.warnings()), [""; 0]);
        assert_eq!(servers(&control, 100), Some(vec![(2, 1), (1, 1)]));
        assert_eq!(servers(&control, 101), Some(vec![(3, 1)]));
        assert_eq!(servers(&control, 105), None);
        let recorded = events.receive(Duration::ZERO).events;
        assert_eq!(recorded.len(), 5);
        assert!(recorded.iter().all(|event| event.kind == Kind::Change && event.by.is_none()));
        assert_eq!(recorded[0].what, "put back: xvsadm -A -t 192.0.2.100:80 -s wlc");
    }

    #[test]
    fn rules_leave_owned_services_alone_also_when_they_are_taken_back() {
        for verdict in [Some(Verdict::TakeBack), None] {
            let mut control = control();
            by_hand(&mut control, "-A -t 192.0.2.102:80\n");
            let before = [(1, 1), (2, 1)];
            control.reconcile(vec![(key(100), with(&before))], ReconcileScope::Changes, Millis(0));
            let rules = "-A -t 192.0.2.100:80 -s sh\n-A -t 192.0.2.101:80\n";
            let rules = read_rules(rules, &SystemResolver::default()).unwrap();
            let rules = rules.into_iter().map(|rule| rule.command).collect();
            let request =
                ControlRequest::Apply { rules, confirm_within_seconds: Some(10), keeps_locals: false };
            let Ok(Reply::Applied(differences)) = control.handle(&request, Millis(0)) else {
                panic!("the rules were not applied")
            };
            assert_eq!(differences.len(), 2, "{differences:?}");
            assert_eq!(servers(&control, 100), Some(vec![(2, 1), (1, 1)]));
            // One server fails; services that the rules added and deleted are owned by now.
            let wanted = [(100, [(2, 1)]), (101, [(3, 1)]), (102, [(4, 1)])];
            let wanted = wanted.map(|(last, servers)| (key(last), with(&servers))).to_vec();
            control.reconcile(wanted, ReconcileScope::Changes, Millis(0));
            match verdict {
                Some(verdict) => _ = control.handle(&ControlRequest::Confirm(verdict), Millis(0)).unwrap(),
                None => _ = control.tick(Millis(0) + 11 * SECOND).unwrap(),
            }
            assert_eq!(drift(&mut control), [""; 0]);
        }
    }

    #[test]
    fn a_disabled_server_has_weight_0_whatever_health_checks_want_until_it_is_enabled() {
        let mut control = control();
        let in_force = |control: &mut Control<Machine>| {
            let Ok(Reply::Services(rows)) = control.handle(&ControlRequest::ListServices, Millis(0)) else {
                panic!("the services were not listed")
            };
            rows[0].destinations.iter().map(|row| row.weight_in_force.0).collect::<Vec<_>>()
        };
        let want = |control: &mut Control<Machine>, servers: &[(u8, u32)], scope| {
            changed(control.reconcile(vec![(key(100), with(servers))], scope, Millis(0)));
        };
        control.set_repair(Repair::Always);
        want(&mut control, &[(1, 3), (2, 1)], ReconcileScope::Changes);
        by_hand(&mut control, "#xvs disable 192.0.2.1\n");
        assert_eq!(in_force(&mut control), [1, 0]);
        // It fails, comes back with another weight, the file is read again, and drift is undone.
        want(&mut control, &[(2, 1)], ReconcileScope::Changes);
        want(&mut control, &[(1, 5), (2, 1)], ReconcileScope::Changes);
        want(&mut control, &[(1, 5), (2, 1)], ReconcileScope::Everything);
        control.tick(Millis(0) + SECOND).unwrap();
        assert_eq!(
            (in_force(&mut control), servers(&control, 100)),
            (vec![0, 1], Some(vec![(1, 5), (2, 1)]))
        );
        assert_eq!(drift(&mut control), [""; 0], "disabling is no drift");
        let enable = Command::Delete(Object::Disabled(Disabled {
            server: "192.0.2.1".parse().unwrap(),
            service: None,
        }));
        control.run(enable).unwrap();
        assert_eq!(in_force(&mut control), [5, 1]);
    }

    #[test]
    fn a_load_report_outlives_an_edit_that_keeps_the_weight() {
        let mut control = control();
        control.reconcile(vec![(key(100), with(&[(1, 100)]))], ReconcileScope::Changes, Millis(0));
        let set = ControlRequest::Set { key: "feedback.services".to_owned(), value: "all".to_owned() };
        control.handle(&set, Millis(0)).unwrap();
        let report =
            ControlRequest::ReportLoad { server: "192.0.2.1:80".parse().unwrap(), load_percent: 100.0 };
        control.handle(&report, Millis(0)).unwrap();
        let in_force = |control: &mut Control<Machine>| {
            let Ok(Reply::Services(rows)) = control.handle(&ControlRequest::ListServices, Millis(0)) else {
                panic!("the services were not listed")
            };
            rows[0].destinations[0].weight_in_force
        };
        let moved = in_force(&mut control);
        assert!(moved < Weight(100));
        let mut nat = with(&[(1, 100)]);
        if let Some(nat) = &mut nat {
            nat.destinations[0].1.upper_threshold = 50;
        }
        assert_eq!(changed(control.reconcile(vec![(key(100), nat)], ReconcileScope::Changes, Millis(0))), 1);
        assert_eq!(in_force(&mut control), moved);
        control.reconcile(vec![(key(100), with(&[(1, 99)]))], ReconcileScope::Changes, Millis(0));
        assert_eq!(in_force(&mut control), Weight(99));
    }

    #[test]
    fn a_late_worker_is_named_the_change_is_made_and_the_warning_ends_when_the_worker_is_back() {
        let mut control = control();
        control.datapath().late = Some("worker 1".to_owned());
        let add = Command::Add(Rule::Service { key: key(101), options: ServiceOptions::of(Family::V4) });
        let late = CommandError::Late { who: "worker 1".to_owned() };
        assert_eq!(control.run(add.clone()), Err(late.clone()));
        let batch =
            ControlRequest::Restore(vec![Command::Delete(Object::Service(key(101))), add.clone(), add]);
        let exists = CommandError::ServiceExists(key(101));
        let expected = Reply::Restored(vec![Ok(()), Err(late), Err(exists)]);
        assert_eq!(control.handle(&batch, Millis(0)), Ok(expected));
        let wanted = vec![(key(100), with(&[(1, 1)]))];
        assert_eq!(changed(control.reconcile(wanted, ReconcileScope::Changes, Millis(0))), 2);
        control.tick(Millis(0) + SECOND).unwrap();
        let warnings = control.warnings();
        assert!(warnings.len() == 1 && warnings[0].text.starts_with("worker 1 has not"), "{warnings:?}");
        control.datapath().late = None;
        control.tick(Millis(0) + SECOND).unwrap();
        assert_eq!(texts(&control.warnings()), [""; 0]);
    }

    /// The wanted state of any service.
    fn any_wanted() -> impl Strategy<Value = (ServiceKey, Option<Vec<(Endpoint, DestinationOptions)>>)> {
        let weighed = (options(), 0..3_u32)
            .prop_map(|(options, weight)| DestinationOptions { weight: Weight(weight), ..options });
        (any_service(), prop::option::weighted(0.8, prop::collection::btree_map(endpoint(), weighed, 0..4)))
            .prop_map(|(key, wanted)| (key, wanted.map(|wanted| wanted.into_iter().collect())))
    }

    proptest! {
        #[test]
        fn owned_services_are_reconciled_after_any_changes_by_hand_and_no_others_are_touched(
            steps in vec((vec(any_wanted(), 0..3), any::<bool>(), vec(any_change(), 0..4)), 1..12),
        ) {
            let mut control = control();
            control.set_network(&network([192, 0, 2, 9], 24));
            let mut owned: BTreeMap<ServiceKey, OwnedService> = BTreeMap::new();
            let count = steps.len();
            for (step, (wanted, everything, by_hand)) in steps.into_iter().enumerate() {
                let _ = control.handle(&ControlRequest::Restore(by_hand), Millis(0));
                let before = control.state().clone();
                let were: BTreeSet<_> = owned.keys().copied().collect();
                let all = wanted.into_iter().map(|(key, destinations)| {
                    let options = ServiceOptions::of(key.family());
                    (key, destinations.map(|destinations| OwnedService { options, destinations, limit: None }))
                });
                let all: Vec<_> = all.collect();
                for (key, service) in &all {
                    match service {
                        Some(service) => _ = owned.insert(*key, service.clone()),
                        None => _ = owned.remove(key),
                    }
                }
                let everything = everything || step + 1 == count;
                let scope = if everything { ReconcileScope::Everything } else { ReconcileScope::Changes };
                control.reconcile(all, scope, Millis(0));
                for (key, _) in before.services().chain(control.state().services()) {
                    if !were.contains(key) && !owned.contains_key(key) {
                        prop_assert_eq!(before.service(key), control.state().service(key));
                    }
                }
                if everything {
                    prop_assert_eq!(control.drift(), vec![]);
                    for (key, wanted) in &owned {
                        let running = control.state().service(key).map(|service| (**service).clone());
                        let refused = &control.owned.refused;
                        prop_assert!(running.is_some() || refused.contains_key(&Object::Service(*key)));
                        for (endpoint, options) in &wanted.destinations {
                            let there = running.as_ref().and_then(|service| service.destination(*endpoint));
                            let is_refused = refused.contains_key(&Object::Destination { service: *key, endpoint: *endpoint });
                            prop_assert!(is_refused || there.map(|dest| &dest.options) == Some(options));
                        }
                        let wanted = |at| wanted.destinations.iter().any(|(endpoint, _)| *endpoint == at);
                        let others = running.iter().flat_map(|service| &service.destinations);
                        prop_assert!(others.into_iter().all(|dest| wanted(dest.endpoint)));
                    }
                }
                // Drift notices every change by hand.
                for at in [step, step + 1].map(|seconds| Millis(0) + seconds as u32 * SECOND) {
                    let seen = control.drift();
                    control.owned.dirty.extend(owned.keys());
                    prop_assert_eq!(seen, control.drift());
                    control.tick(at).unwrap();
                }
                // Steering equals that of a director on which the same state was restored by commands.
                let mut plain = crate::control::tests::control();
                plain.set_network(&network([192, 0, 2, 9], 24));
                plain.handle(&ControlRequest::Restore(rules_of(control.state()).into_iter().map(Command::Add).collect()), Millis(0)).unwrap();
                prop_assert_eq!(&control.datapath().steered, &plain.datapath().steered);
            }
        }
    }

    #[test]
    fn nat_to_the_director_itself_is_refused_to_health_checks_as_to_operators() {
        let mut control = control();
        control.set_network(&network([192, 0, 2, 9], 24));
        let mut wanted = with(&[(9, 1)]);
        if let Some(wanted) = &mut wanted {
            wanted.destinations[0].1.method = ForwardingMethod::Nat;
        }
        let ftp = "TCP 192.0.2.100:21".parse().unwrap();
        let reconciled = control.reconcile(vec![(ftp, wanted)], ReconcileScope::Changes, Millis(0));
        assert!(matches!(reconciled.refused[..], [(_, CommandError::NotSupported { .. })]));
    }
}
