//! Follows the kernel's IPVS: its services, timeouts and settings are in force, and whatever writes them there goes on.
//!
//! A change of the kernel's rules becomes commands, which are admitted like an operator's. A service with a refused
//! command is left to the kernel as a whole, because its other real servers would get all of its packets. What only xvs
//! has stays: options of services, limits, lists, notes. Not here: when the rules are read (`xvsd`), their meaning
//! (`kernel_rules.rs`), what others may change (`followed_kernel.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use xvs_dataplane::clock::Millis;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::destination::Destination;
use xvs_model::config::service::{Service, ServiceOptions};
use xvs_model::objects::{Object, Rule};
use xvs_model::report::setting::Source;
use xvs_model::report::status::KernelStatus;
use xvs_sched::ServiceKey;

use crate::control::Control;
use crate::control::datapath::Datapath;
use crate::kernel_rules::KernelRules;

impl<D: Datapath> Control<D> {
    /// From now on the kernel's rules are followed: others may not change them, also before they are read.
    pub fn begin_to_follow_kernel(&mut self) {
        self.kernel.rules.get_or_insert_default();
    }

    /// What is followed; `None`: the kernel is not followed.
    pub fn kernel_status(&self) -> Option<KernelStatus> {
        self.kernel.status()
    }

    /// Puts the rules of the kernel in force, or notes why they cannot be read; then the last ones stay. Returns the
    /// number of services that are left to the kernel.
    pub fn follow_kernel(&mut self, read: Result<Arc<KernelRules>, String>, now: Millis) -> usize {
        let rules = match read {
            Ok(rules) => rules,
            Err(why) => {
                self.kernel.unread = Some(why);
                return self.kernel.left.len();
            }
        };
        self.kernel.unread = None;
        let mut left = rules.left.clone();
        left.extend(self.refused_by_kernel_rules(&rules, &left));
        let changes = commands(&self.state, &rules, &left);
        let refused = self.carry_out_admitted(ORIGIN, changes, Some(Source::Kernel), now).refused;
        if !refused.is_empty() {
            left.extend(
                refused
                    .iter()
                    .filter_map(|(command, error)| Some((command.object()?.service()?, error.to_string()))),
            );
            // What was begun of a service whose command only the packet path has refused.
            let rest = commands(&self.state, &rules, &left);
            self.carry_out_admitted(ORIGIN, rest, Some(Source::Kernel), now);
        }
        for (key, why) in left.iter().filter(|(key, _)| !self.kernel.left.contains_key(key)) {
            tracing::warn!("{ORIGIN}: service {key} is left to the kernel: {why}");
        }
        self.follow_kernel_settings(&rules, now);
        self.kernel.left = left;
        self.kernel.rules = Some(rules);
        self.kernel.left.len()
    }

    /// The services of which a command is refused, each with the reason.
    fn refused_by_kernel_rules(
        &self,
        rules: &KernelRules,
        left: &BTreeMap<ServiceKey, String>,
    ) -> Vec<(ServiceKey, String)> {
        let changes = commands(&self.state, rules, left);
        let services: BTreeSet<_> =
            changes.iter().filter_map(|command| command.object()?.service()).collect();
        let mut trial = self.state.restricted_to(&services);
        let mut refused = Vec::new();
        for command in &changes {
            match self.admit(&trial, command) {
                Ok(accepted) => trial.enter(accepted),
                Err(error) => {
                    refused.extend(
                        command.object().and_then(|object| Some((object.service()?, error.to_string()))),
                    );
                }
            }
        }
        // The first reason of each; others follow from it.
        refused.reverse();
        refused
    }

    /// Sets the settings that have changed in the kernel. Others may have changed by themselves, as defences do.
    fn follow_kernel_settings(&mut self, rules: &KernelRules, now: Millis) {
        let former = self.kernel.rules.clone().unwrap_or_default();
        let mut has_changed = false;
        for (key, value) in &rules.settings {
            if former.settings.get(key) == Some(value) {
                continue;
            }
            match self.settings.set(key, value, Source::Kernel) {
                Ok(()) => {
                    has_changed = true;
                    self.kernel.refused_settings.remove(key);
                }
                Err(error) => _ = self.kernel.refused_settings.insert(key.clone(), error.to_string()),
            }
        }
        if has_changed {
            self.settings.tune(&self.registry.tuning);
            let moved = self.registry.review_reports(&self.settings.feedback, now);
            // A late worker becomes a warning.
            let _ = self.publish_with_weights(&moved);
        }
    }
}

/// The commands that give the running state the kernel's services and timeouts, except for services that are left. Each
/// is one that the kernel carried out or could have: a destination that has moved was deleted and added there.
fn commands(running: &State, rules: &KernelRules, left: &BTreeMap<ServiceKey, String>) -> Vec<Command> {
    let followed = |key| rules.services.get(key).filter(|_| !left.contains_key(key));
    let mut commands: Vec<_> = running
        .services()
        .filter(|(key, _)| followed(key).is_none())
        .map(|(key, _)| Command::Delete(Object::Service(*key)))
        .collect();
    for (&key, service) in rules.services.iter().filter(|(key, _)| !left.contains_key(key)) {
        let before = running.service(&key);
        match before {
            None => commands.push(Command::Add(Rule::Service { key, options: service.options.clone() })),
            Some(before) if before.options.of_ipvsadm() != service.options => {
                let options = with_own(&service.options, &before.options);
                commands.push(Command::EditService { key, options });
            }
            Some(_) => {}
        }
        let destinations = before.map_or(&[][..], |before| &before.destinations);
        if destinations != service.destinations {
            destination_commands(key, destinations, service, &mut commands);
        }
    }
    let mut timeouts = running.timeouts();
    timeouts.update(rules.timeouts);
    if timeouts != running.timeouts() {
        commands.push(Command::Add(Rule::Timeouts(timeouts)));
    }
    commands
}

/// The commands that give a service these destinations in this order, in which the one added last comes first.
fn destination_commands(
    service: ServiceKey,
    before: &[Destination],
    after: &Service,
    commands: &mut Vec<Command>,
) {
    let delete = |endpoint| Command::Delete(Object::Destination { service, endpoint });
    for gone in before.iter().filter(|dest| after.destination(dest.endpoint).is_none()) {
        commands.push(delete(gone.endpoint));
    }
    // From the end on, those that are in order stay. The others were added after them.
    let mut stays = before;
    let mut is_in_order = true;
    for dest in after.destinations.iter().rev() {
        let place = stays.iter().rposition(|stay| stay.endpoint == dest.endpoint);
        match place.filter(|_| is_in_order) {
            Some(place) => {
                if stays[place].options != dest.options {
                    commands.push(Command::EditDestination {
                        service,
                        endpoint: dest.endpoint,
                        options: dest.options.clone(),
                    });
                }
                stays = &stays[..place];
            }
            None => {
                is_in_order = false;
                if before.iter().any(|known| known.endpoint == dest.endpoint) {
                    commands.push(delete(dest.endpoint));
                }
                commands.push(Command::Add(Rule::Destination {
                    service,
                    endpoint: dest.endpoint,
                    options: dest.options.clone(),
                }));
            }
        }
    }
}

/// The kernel's options, with those that only xvs has.
fn with_own(kernel: &ServiceOptions, own: &ServiceOptions) -> ServiceOptions {
    let ServiceOptions { client_address, syn_proxy, slow_start_seconds, .. } = *own;
    ServiceOptions { client_address, syn_proxy, slow_start_seconds, ..kernel.clone() }
}

/// The origin of these commands in events, the log and warnings.
const ORIGIN: &str = "kernel";

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use xvs_model::config::destination::DestinationOptions;
    use xvs_model::objects::disabled::Disabled;
    use xvs_model::objects::limit::ServiceLimit;
    use xvs_model::protocol::question::{ControlRequest, Reply};
    use xvs_model::report::warning::texts;
    use xvs_proto::{Endpoint, Family};
    use xvs_sched::{ClientLimit, Weight};

    use crate::control::follow_kernel::*;
    use crate::control::tests::{Machine, control};

    fn key(port: u16) -> ServiceKey {
        ServiceKey::tcp(Endpoint::new([198, 51, 100, 1], port))
    }

    fn server(last: u8) -> Endpoint {
        Endpoint::new([192, 0, 2, last], 80)
    }

    /// A service with these real servers, each by last byte and weight.
    fn with(servers: &[(u8, u32)]) -> Service {
        let destinations = servers.iter().map(|&(last, weight)| Destination {
            endpoint: server(last),
            options: DestinationOptions { weight: Weight(weight), ..DestinationOptions::default() },
        });
        Service { options: ServiceOptions::of(Family::V4), destinations: destinations.collect() }
    }

    fn rules<const N: usize>(services: [(ServiceKey, Service); N]) -> Arc<KernelRules> {
        Arc::new(KernelRules { services: services.into(), ..KernelRules::default() })
    }

    fn follow(control: &mut Control<Machine>, rules: &Arc<KernelRules>) {
        control.follow_kernel(Ok(rules.clone()), Millis(0));
    }

    /// The services in force.
    fn services(control: &Control<Machine>) -> BTreeMap<ServiceKey, Service> {
        control.state().services().map(|(key, service)| (*key, Service::clone(service))).collect()
    }

    /// One change of the destinations of a service, as ipvsadm makes it.
    #[derive(Debug, Clone)]
    enum Change {
        Add(u8, u32),
        Edit(usize, u32),
        Delete(usize),
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (1..9u8, 0..3u32).prop_map(|(last, weight)| Change::Add(last, weight)),
            (0..8usize, 0..3u32).prop_map(|(place, weight)| Change::Edit(place, weight)),
            (0..8usize).prop_map(Change::Delete),
        ]
    }

    fn carry_out(change: &Change, servers: &mut Vec<(u8, u32)>) {
        match *change {
            Change::Add(last, weight) if servers.iter().all(|(known, _)| *known != last) => {
                servers.insert(0, (last, weight));
            }
            Change::Edit(place, weight) => {
                servers.iter_mut().skip(place).take(1).for_each(|one| one.1 = weight)
            }
            Change::Delete(place) if place < servers.len() => _ = servers.remove(place),
            _ => {}
        }
    }

    proptest! {
        #[test]
        fn the_services_in_force_equal_the_kernels_in_order_whatever_has_changed_between_two_readings(
            readings in vec(vec(change(), 0..6), 1..12)
        ) {
            let (mut control, mut servers) = (control(), Vec::new());
            for changes in &readings {
                changes.iter().for_each(|change| carry_out(change, &mut servers));
                let kernel = rules([(key(80), with(&servers))]);
                follow(&mut control, &kernel);
                prop_assert_eq!(services(&control), kernel.services.clone());
            }
        }
    }

    #[test]
    fn a_service_that_the_kernel_no_longer_has_ends_and_one_whose_options_change_is_edited() {
        let mut control = control();
        follow(&mut control, &rules([(key(80), with(&[(1, 1)])), (key(81), with(&[(2, 1)]))]));
        let mut edited = with(&[(2, 1)]);
        edited.options.scheduler = "rr".to_owned();
        let kernel = rules([(key(81), edited)]);
        follow(&mut control, &kernel);
        assert_eq!(services(&control), kernel.services);
        assert_eq!(control.kernel_status(), Some(KernelStatus { services: 1, services_left: 0 }));
    }

    #[test]
    fn a_service_with_a_rule_that_xvs_has_not_is_left_to_the_kernel_as_a_whole_until_it_can_be_followed() {
        let mut control = control();
        let good = with(&[(1, 1), (2, 1)]);
        follow(&mut control, &rules([(key(80), good.clone()), (key(81), good.clone())]));
        let mut unknown = good.clone();
        unknown.options.scheduler = "of-tomorrow".to_owned();
        follow(&mut control, &rules([(key(80), unknown), (key(81), good.clone())]));
        assert_eq!(services(&control), BTreeMap::from([(key(81), good.clone())]));
        let warnings = texts(&control.warnings());
        let begin = "service TCP 198.51.100.1:80 is left to the kernel's IPVS: no scheduler";
        assert!(warnings.len() == 1 && warnings[0].starts_with(begin), "{warnings:?}");
        assert_eq!(control.kernel_status(), Some(KernelStatus { services: 1, services_left: 1 }));
        let all = rules([(key(80), good.clone()), (key(81), good)]);
        follow(&mut control, &all);
        assert_eq!((services(&control), texts(&control.warnings())), (all.services.clone(), vec![]));
    }

    #[test]
    fn a_service_that_the_packet_path_has_no_room_for_is_left_with_all_of_its_real_servers() {
        let mut control = control();
        control.datapath().full.insert([198, 51, 100, 1].into());
        follow(&mut control, &rules([(key(80), with(&[(1, 1)]))]));
        assert_eq!(services(&control), BTreeMap::new());
        assert_eq!(control.warnings().len(), 1, "{:?}", control.warnings());
    }

    #[test]
    fn what_the_kernel_has_is_not_changed_by_others_and_what_only_xvs_has_stays_with_its_service() {
        let mut control = control();
        let kernel = rules([(key(80), with(&[(1, 1)]))]);
        follow(&mut control, &kernel);
        let mut run = |command| control.handle(&ControlRequest::Change(command), Millis(0));
        let options = ServiceOptions { slow_start_seconds: Some(9), ..ServiceOptions::of(Family::V4) };
        let edit = |options| Command::EditService { key: key(80), options };
        assert_eq!(run(edit(options.clone())), Ok(Reply::Done));
        let limit = ClientLimit { connections: 7, ..ClientLimit::default() };
        let limit = ServiceLimit { service: key(80), limit };
        assert_eq!(run(Command::Add(Rule::Limit(limit))), Ok(Reply::Done));
        let disabled = Disabled { server: "192.0.2.1".parse().unwrap(), service: None };
        assert_eq!(run(Command::Add(Rule::Disabled(disabled))), Ok(Reply::Done));
        for command in [
            Command::Flush,
            edit(ServiceOptions { scheduler: "rr".to_owned(), ..options.clone() }),
            Command::Delete(Object::Service(key(80))),
            Command::Delete(Object::Destination { service: key(80), endpoint: server(1) }),
            Command::Add(Rule::Service { key: key(81), options: options.clone() }),
        ] {
            let refused = run(command).unwrap_err().to_string();
            assert!(
                refused.contains("follows the kernel's IPVS") && refused.contains("`ipvsadm`"),
                "{refused}"
            );
        }
        let mut edited = with(&[(2, 1)]);
        edited.options.scheduler = "rr".to_owned();
        follow(&mut control, &rules([(key(80), edited)]));
        let service = control.state().service(&key(80)).unwrap();
        assert_eq!(service.options, ServiceOptions { scheduler: "rr".to_owned(), ..options });
        assert!(control.state().limits().contains_key(&key(80)));
    }

    #[test]
    fn timeouts_and_settings_are_the_kernels_and_a_setting_that_has_not_changed_there_stays() {
        let mut control = control();
        let set = |value: &str| {
            let settings = [("drop_entry".to_owned(), value.to_owned())].into();
            Arc::new(KernelRules { settings, ..KernelRules::default() })
        };
        let drop_entry = |control: &mut Control<Machine>| {
            let all = control.settings_in_force().iter();
            let mut found = all.filter(|setting| setting.key == "drop_entry");
            found.next().map(|setting| (setting.value.as_u64(), setting.source))
        };
        follow(&mut control, &set("1"));
        assert_eq!(drop_entry(&mut control), Some((Some(1), Source::Kernel)));
        let mut refused = |key: &str| {
            let request = ControlRequest::Set { key: key.to_owned(), value: "3".to_owned() };
            control.handle(&request, Millis(0)).err().map(|error| error.to_string())
        };
        assert!(
            refused("drop_entry").is_some_and(|why| why.contains("`sysctl net.ipv4.vs.drop_entry=VALUE`"))
        );
        assert_eq!(refused("conn_reuse_mode"), None, "an older kernel has not this setting");
        follow(&mut control, &set("9"));
        assert_eq!(drop_entry(&mut control), Some((Some(1), Source::Kernel)));
        let warnings = texts(&control.warnings());
        assert!(warnings.len() == 1 && warnings[0].contains("net.ipv4.vs.drop_entry"), "{warnings:?}");
        let timeouts = xvs_model::config::timeouts::Timeouts { tcp_seconds: 7, ..Default::default() };
        follow(&mut control, &Arc::new(KernelRules { timeouts, ..KernelRules::default() }));
        assert_eq!(control.state().timeouts(), timeouts);
    }

    #[test]
    fn rules_that_cannot_be_read_stay_in_force_with_a_warning_that_names_the_reason() {
        let mut control = control();
        let kernel = rules([(key(80), with(&[(1, 1)]))]);
        follow(&mut control, &kernel);
        control.follow_kernel(Err("the kernel has no IPVS here".to_owned()), Millis(0));
        assert_eq!(services(&control), kernel.services);
        assert!(texts(&control.warnings())[0].ends_with("the kernel has no IPVS here"));
        follow(&mut control, &kernel);
        assert_eq!(texts(&control.warnings()), [""; 0]);
    }
}
