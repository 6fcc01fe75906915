//! The desired state: the configuration that operators want.
//!
//! Only the control thread changes it, one command at a time. A command is validated as IPVS validates it; a refused
//! command changes nothing. Pure: no clock, no I/O, no live numbers (connections, counters), which the data plane owns.
//! Services are shared: a clone costs a reference count for each service, a change copies one service.
//!
//! It covers the whole model of IPVS.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use xvs_proto::{Endpoint, Family};
use xvs_sched::{Above, ClientLimit, ForwardingMethod, ServiceKey, SynProxy, Weight, scheduler};

use crate::config::command::Command;
use crate::config::destination::{Destination, DestinationOptions, Tunnel};
use crate::config::refusal::CommandError;
use crate::config::service::{Netmask, Service, ServiceOptions, check_key};
use crate::config::slow_start;
use crate::config::syn_proxy::{Proxied, check_proxied};
use crate::config::sync_daemon::SyncDaemon;
use crate::config::timeouts::Timeouts;
use crate::objects::disabled::DisabledServers;
use crate::objects::listed::AccessLists;
use crate::objects::local::LocalAddress;
use crate::objects::mark::MarkRule;
use crate::objects::noun::Services;
use crate::objects::quic::QuicServices;
use crate::objects::{Nouns, Object, Rule};

/// Every service with its destinations, the timeouts and the synchronization daemons.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    services: BTreeMap<ServiceKey, Arc<Service>>,
    timeouts: Timeouts,
    daemons: Vec<SyncDaemon>,
    nouns: Nouns,
}

impl Services for State {
    fn methods(&self, service: &ServiceKey) -> Vec<ForwardingMethod> {
        self.services
            .get(service)
            .map_or(&[][..], |known| &known.destinations)
            .iter()
            .map(|dest| dest.options.method)
            .collect()
    }
}

/// A command that a state has accepted: [`State::check`] has returned it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted<'a>(&'a Command);

impl<'a> Accepted<'a> {
    /// The command.
    pub fn command(self) -> &'a Command {
        self.0
    }
}

impl State {
    /// Checks a command and carries it out.
    ///
    /// # Errors
    /// The errors of [`check`](Self::check); nothing has changed.
    pub fn apply(&mut self, command: &Command) -> Result<(), CommandError> {
        let accepted = self.check(command)?;
        self.enter(accepted);
        Ok(())
    }

    /// Checks whether a command can be carried out; of several faults it reports the one that IPVS reports.
    ///
    /// # Errors
    /// The variant that corresponds to the kernel's errno for the same command in the same state.
    pub fn check<'a>(&self, command: &'a Command) -> Result<Accepted<'a>, CommandError> {
        match command {
            Command::Add(rule) => self.check_add(rule)?,
            Command::Delete(object) => self.check_delete(object)?,
            Command::EditService { key, options } => self.check_edited_service(key, options)?,
            Command::EditDestination { service, endpoint, options } => {
                let found = self.defined(service)?;
                self.check_destination(service, *endpoint, options)?;
                self.check_syn_proxy(service, &found.options, [options.method])?;
                check_present(found, service, *endpoint)?;
            }
            Command::Zero(Some(key)) => self.known(key)?,
            Command::Zero(None) | Command::Flush => {}
        }
        Ok(Accepted(command))
    }

    /// Carries out an accepted command. Since it was accepted, only other accepted commands have been carried out.
    pub fn enter(&mut self, accepted: Accepted<'_>) {
        match accepted.command() {
            Command::Add(rule) => self.add(rule),
            Command::Delete(object) => self.delete(object),
            Command::EditService { key, options } => {
                self.edit(key, |service| service.options = options.clone());
            }
            Command::EditDestination { service, endpoint, options } => self.edit(service, |service| {
                let edited = service.destinations.iter_mut().filter(|dest| dest.endpoint == *endpoint);
                edited.for_each(|dest| dest.options = options.clone());
            }),
            Command::Flush => self.services.clear(),
            Command::Zero(_) => {}
        }
    }

    fn check_add(&self, rule: &Rule) -> Result<(), CommandError> {
        match rule {
            Rule::Service { key, options } => {
                check_key(key)?;
                if self.services.contains_key(key) {
                    return Err(CommandError::ServiceExists(*key));
                }
                check_service(key, options)?;
                self.check_syn_proxy(key, options, [])
            }
            Rule::Destination { service, endpoint, options } => {
                let found = self.defined(service)?;
                self.check_destination(service, *endpoint, options)?;
                self.check_syn_proxy(service, &found.options, [options.method])?;
                if found.destination(*endpoint).is_some() {
                    return Err(CommandError::DestinationExists { service: *service, endpoint: *endpoint });
                }
                check_unicast(*endpoint)?;
                check_room(&found.options.scheduler, found.destinations.len() + 1)
            }
            Rule::Timeouts(timeouts) => timeouts.check(),
            Rule::Daemon(daemon) => self.check_daemon(daemon),
            noun => self.nouns.check_add(noun, self),
        }
    }

    fn check_delete(&self, object: &Object) -> Result<(), CommandError> {
        match object {
            Object::Service(key) => self.known(key),
            Object::Destination { service, endpoint } => {
                check_present(self.defined(service)?, service, *endpoint)
            }
            Object::Timeouts => {
                Err(CommandError::invalid("timeouts cannot be deleted; set them to other values"))
            }
            Object::Daemon(role) => {
                let is_running = self.daemons.iter().any(|daemon| daemon.role == *role);
                if is_running { Ok(()) } else { Err(CommandError::NoDaemon(*role)) }
            }
            noun => self.nouns.check_delete(noun),
        }
    }

    fn add(&mut self, rule: &Rule) {
        match rule {
            Rule::Service { key, options } => {
                let service = Service { options: options.clone(), destinations: Vec::new() };
                self.services.insert(*key, Arc::new(service));
            }
            Rule::Destination { service, endpoint, options } => {
                let added = Destination { endpoint: *endpoint, options: options.clone() };
                // IPVS puts a new destination in front of the others; rr, ties and hash tables depend on this order.
                self.edit(service, |service| service.destinations.insert(0, added));
            }
            Rule::Timeouts(timeouts) => self.timeouts.update(*timeouts),
            Rule::Daemon(daemon) => {
                self.daemons.push(daemon.admitted());
                self.daemons.sort_by_key(|running| running.role);
            }
            noun => self.nouns.add(noun),
        }
    }

    fn delete(&mut self, object: &Object) {
        match object {
            Object::Service(key) => _ = self.services.remove(key),
            Object::Destination { service, endpoint } => {
                self.edit(service, |service| service.destinations.retain(|dest| dest.endpoint != *endpoint));
            }
            Object::Timeouts => {}
            Object::Daemon(role) => self.daemons.retain(|running| running.role != *role),
            noun => self.nouns.delete(noun),
        }
    }

    /// The rules that create the nouns.
    pub(crate) fn nouns(&self) -> impl Iterator<Item = Rule> {
        self.nouns.rules()
    }

    /// All services in the order of their keys.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceKey, &Arc<Service>)> {
        self.services.iter()
    }

    /// One service.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// A state with these services and limits alone, and with the daemons, which commands about services depend on.
    pub fn restricted_to<'a>(&self, keys: impl IntoIterator<Item = &'a ServiceKey>) -> Self {
        let mut restricted = Self { daemons: self.daemons.clone(), ..Self::default() };
        for key in keys {
            restricted.set_service(*key, self.services.get(key).cloned());
            restricted.set_limit(*key, self.nouns.limits.get(key).copied());
        }
        restricted
    }

    /// Sets or, with `None`, removes a service, without validation.
    pub fn set_service(&mut self, key: ServiceKey, service: Option<Arc<Service>>) {
        self.services.remove(&key);
        self.services.extend(service.map(|service| (key, service)));
    }

    /// Sets or, with `None`, removes the limit of a service, without validation.
    pub fn set_limit(&mut self, key: ServiceKey, limit: Option<ClientLimit>) {
        self.nouns.limits.remove(&key);
        self.nouns.limits.extend(limit.map(|limit| (key, limit)));
    }

    /// Replaces the local addresses, without validation.
    pub(crate) fn set_locals(&mut self, locals: &[LocalAddress]) {
        self.nouns.locals = locals.to_vec();
    }

    /// The timeouts in force.
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// The synchronization daemons that run, the master first.
    pub fn daemons(&self) -> &[SyncDaemon] {
        &self.daemons
    }

    /// The mark rules, in the order in which they apply.
    pub fn marks(&self) -> &[MarkRule] {
        &self.nouns.marks
    }

    /// The local addresses, in the order of the commands.
    pub fn locals(&self) -> &[LocalAddress] {
        &self.nouns.locals
    }

    /// The disabled real servers.
    pub fn disabled(&self) -> &DisabledServers {
        &self.nouns.disabled
    }

    /// The limits for each client, by service.
    pub fn limits(&self) -> &BTreeMap<ServiceKey, ClientLimit> {
        &self.nouns.limits
    }

    /// Refuses the SYN proxy, of the service or of its clients' limit, where it cannot be.
    fn check_syn_proxy(
        &self,
        key: &ServiceKey,
        options: &ServiceOptions,
        methods: impl IntoIterator<Item = ForwardingMethod>,
    ) -> Result<(), CommandError> {
        let is_above = self.nouns.limits.get(key).is_some_and(|limit| limit.above == Above::SynProxy);
        match options.syn_proxy {
            SynProxy::Off if !is_above => Ok(()),
            SynProxy::Off => check_proxied(key, Proxied::AboveRate, methods),
            SynProxy::Auto | SynProxy::On => check_proxied(key, Proxied::Service, methods),
        }
    }

    /// The access lists.
    pub fn lists(&self) -> &AccessLists {
        &self.nouns.lists
    }

    /// The QUIC configurations and server IDs.
    pub fn quic(&self) -> &QuicServices {
        &self.nouns.quic
    }

    fn edit(&mut self, key: &ServiceKey, change: impl FnOnce(&mut Service)) {
        if let Some(service) = self.services.get_mut(key) {
            change(Arc::make_mut(service));
        }
    }

    fn known(&self, key: &ServiceKey) -> Result<(), CommandError> {
        self.services.get(key).map(|_| ()).ok_or(CommandError::NoSuchService(*key))
    }

    fn defined(&self, key: &ServiceKey) -> Result<&Service, CommandError> {
        self.services.get(key).map(Arc::as_ref).ok_or(CommandError::ServiceNotDefined(*key))
    }

    fn check_edited_service(&self, key: &ServiceKey, options: &ServiceOptions) -> Result<(), CommandError> {
        self.known(key)?;
        check_service(key, options)?;
        let methods = self.methods(key);
        let destinations = methods.len();
        self.check_syn_proxy(key, options, methods)?;
        check_room(&options.scheduler, destinations)
    }

    fn check_destination(
        &self,
        service: &ServiceKey,
        endpoint: Endpoint,
        options: &DestinationOptions,
    ) -> Result<(), CommandError> {
        if endpoint.family() != service.family() {
            if !self.daemons.is_empty() && options.method != ForwardingMethod::FullNat {
                let why = "the synchronization protocol cannot carry a destination of another family";
                return Err(CommandError::invalid(why));
            }
            if !matches!(options.method, ForwardingMethod::Tunnel | ForwardingMethod::FullNat) {
                let why = "only a tunnel or FULLNAT reaches a destination of another family";
                return Err(CommandError::invalid(why));
            }
        }
        if options.weight > Weight::MAX {
            return Err(CommandError::OutOfRange { what: format!("weight {}", options.weight.0) });
        }
        if options.lower_threshold > options.upper_threshold {
            let what = format!(
                "lower threshold {} above upper threshold {}",
                options.lower_threshold, options.upper_threshold
            );
            return Err(CommandError::OutOfRange { what });
        }
        if matches!(options.tunnel, Tunnel::Gue { port: 0, .. }) {
            return Err(CommandError::invalid("a gue tunnel needs a port"));
        }
        Ok(())
    }

    fn check_daemon(&self, daemon: &SyncDaemon) -> Result<(), CommandError> {
        let mixed = self.services.iter().any(|(key, service)| {
            service.destinations.iter().any(|dest| {
                dest.endpoint.family() != key.family() && dest.options.method != ForwardingMethod::FullNat
            })
        });
        if mixed {
            let why = "a tunnel to a destination of another family than its service cannot be synchronized";
            return Err(CommandError::invalid(why));
        }
        if self.daemons.iter().any(|running| running.role == daemon.role) {
            return Err(CommandError::DaemonRunning(daemon.role));
        }
        daemon
            .check_peers()
            .map_err(|why| CommandError::failed(format_args!("{} daemon: {why}", daemon.role.name())))
    }
}

fn check_service(key: &ServiceKey, options: &ServiceOptions) -> Result<(), CommandError> {
    if !scheduler::names().any(|name| name == options.scheduler) {
        return Err(CommandError::scheduler_not_found(&options.scheduler));
    }
    slow_start::check(key, options)?;
    if let Some(engine) = &options.persistence_engine
        && engine != "sip"
    {
        return Err(CommandError::SchedulerNotFound { name: engine.clone(), known: Vec::new() });
    }
    let mask_fits = match options.netmask {
        Netmask::V4(_) => key.family() == Family::V4,
        Netmask::V6(bits) => key.family() == Family::V6 && (1..=128).contains(&bits),
    };
    if !mask_fits {
        return Err(CommandError::invalid(format!("the netmask does not fit service {key}")));
    }
    Ok(())
}

/// Refuses more destinations than the scheduler's table can hold.
fn check_room(name: &str, destinations: usize) -> Result<(), CommandError> {
    let most = scheduler::destinations_max(name);
    let why = format!("scheduler {name} has room for {most} destinations");
    if destinations <= most { Ok(()) } else { Err(CommandError::invalid(why)) }
}

fn check_present(found: &Service, service: &ServiceKey, endpoint: Endpoint) -> Result<(), CommandError> {
    found
        .destination(endpoint)
        .map(|_| ())
        .ok_or(CommandError::NoSuchDestination { service: *service, endpoint })
}

/// Refuses addresses that are not unicast, with IPv4 also all of 0.0.0.0/8. The broadcast addresses of the director's
/// networks are not known here.
fn check_unicast(endpoint: Endpoint) -> Result<(), CommandError> {
    let unicast = match endpoint.addr {
        IpAddr::V4(addr) => addr.octets()[0] != 0 && !addr.is_broadcast() && !addr.is_multicast(),
        IpAddr::V6(addr) => {
            let mapped = addr.to_ipv4_mapped().is_some();
            !addr.is_unspecified() && !addr.is_multicast() && !addr.is_unicast_link_local() && !mapped
        }
    };
    let why = format!("destination {endpoint} is not a unicast address");
    if unicast { Ok(()) } else { Err(CommandError::invalid(why)) }
}

#[cfg(test)]
mod tests {
    use xvs_proto::Protocol;

    use crate::config::desired_state::*;
    use crate::config::sync_daemon::SyncRole;
    use crate::objects::local::LOCALS_MAX;
    use crate::objects::mark::MARKS_MAX;

    fn endpoint(last: u8) -> Endpoint {
        Endpoint::new([192, 0, 2, last], 80)
    }

    fn service() -> ServiceKey {
        ServiceKey::tcp(endpoint(100))
    }

    fn add_service(key: ServiceKey) -> Command {
        Command::Add(Rule::Service { key, options: ServiceOptions::of(key.family()) })
    }

    fn add(last: u8) -> Command {
        Command::Add(Rule::Destination {
            service: service(),
            endpoint: endpoint(last),
            options: DestinationOptions::default(),
        })
    }

    fn edit(last: u8, options: DestinationOptions) -> Command {
        Command::EditDestination { service: service(), endpoint: endpoint(last), options }
    }

    fn with_service() -> State {
        let mut state = State::default();
        state.apply(&add_service(service())).unwrap();
        state
    }

    fn order(state: &State) -> Vec<Endpoint> {
        state.service(&service()).unwrap().destinations.iter().map(|dest| dest.endpoint).collect()
    }

    #[test]
    fn a_new_destination_goes_to_the_front_an_edited_one_keeps_its_place_and_a_readded_one_moves() {
        let mut state = with_service();
        for last in [1, 2, 3] {
            state.apply(&add(last)).unwrap();
        }
        assert_eq!(order(&state), [endpoint(3), endpoint(2), endpoint(1)]);
        let heavier = DestinationOptions { weight: Weight(7), ..DestinationOptions::default() };
        state.apply(&edit(2, heavier.clone())).unwrap();
        assert_eq!(order(&state), [endpoint(3), endpoint(2), endpoint(1)]);
        assert_eq!(state.service(&service()).unwrap().destinations[1].options, heavier);
        let delete = Command::Delete(Object::Destination { service: service(), endpoint: endpoint(2) });
        assert_eq!(state.apply(&delete), Ok(()));
        state.apply(&add(2)).unwrap();
        assert_eq!(order(&state), [endpoint(2), endpoint(3), endpoint(1)]);
    }

    #[test]
    fn a_refused_command_changes_nothing_and_has_the_error_of_ipvs() {
        let mut state = with_service();
        state.apply(&add(1)).unwrap();
        let other = ServiceKey::udp(endpoint(100));
        let (key, there, gone) = (service(), endpoint(1), endpoint(9));
        let plain = DestinationOptions::default();
        let unknown = ServiceOptions { scheduler: "nosuch".to_owned(), ..ServiceOptions::of(Family::V4) };
        let mask = ServiceOptions { netmask: Netmask::V6(0), ..ServiceOptions::of(Family::V6) };
        let v6 = ServiceKey::tcp(Endpoint::new([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 80));
        let icmp = ServiceKey::Address { protocol: Protocol::ICMP, endpoint: there };
        let before = state.clone();
        for (command, error) in [
            (add_service(key), CommandError::ServiceExists(key)),
            (Command::Add(Rule::Service { key, options: unknown.clone() }), CommandError::ServiceExists(key)),
            (
                Command::Add(Rule::Service { key: other, options: unknown }),
                CommandError::scheduler_not_found("nosuch"),
            ),
            (add_service(icmp), CommandError::ProtocolNotSupported(Protocol::ICMP)),
            (
                Command::Add(Rule::Service { key: v6, options: mask }),
                CommandError::invalid(format!("the netmask does not fit service {v6}")),
            ),
            (
                Command::EditService { key: other, options: ServiceOptions::of(Family::V4) },
                CommandError::NoSuchService(other),
            ),
            (Command::Delete(Object::Service(other)), CommandError::NoSuchService(other)),
            (Command::Zero(Some(other)), CommandError::NoSuchService(other)),
            (
                Command::Add(Rule::Destination { service: other, endpoint: there, options: plain.clone() }),
                CommandError::ServiceNotDefined(other),
            ),
            (add(1), CommandError::DestinationExists { service: key, endpoint: there }),
            (edit(9, plain), CommandError::NoSuchDestination { service: key, endpoint: gone }),
            (
                Command::Delete(Object::Destination { service: key, endpoint: gone }),
                CommandError::NoSuchDestination { service: key, endpoint: gone },
            ),
            (
                edit(1, DestinationOptions { weight: Weight(1 << 31), ..DestinationOptions::default() }),
                CommandError::OutOfRange { what: "weight 2147483648".to_owned() },
            ),
            (Command::Delete(Object::Daemon(SyncRole::Master)), CommandError::NoDaemon(SyncRole::Master)),
        ] {
            assert_eq!(state.apply(&command), Err(error), "{command:?}");
            assert_eq!(state, before, "{command:?}");
        }
    }

    #[test]
    fn only_unicast_addresses_become_destinations() {
        let mut state = with_service();
        for address in [
            "0.0.0.0",
            "0.0.0.24",
            "255.255.255.255",
            "224.0.0.1",
            "ff02::1",
            "fe80::1",
            "::",
            "::ffff:192.0.2.1",
        ] {
            let options =
                DestinationOptions { method: ForwardingMethod::Tunnel, ..DestinationOptions::default() };
            let endpoint = Endpoint::new(address.parse::<IpAddr>().unwrap(), 80);
            let refused =
                state.apply(&Command::Add(Rule::Destination { service: service(), endpoint, options }));
            assert!(matches!(refused, Err(CommandError::InvalidOperation { .. })), "{address}: {refused:?}");
        }
    }

    fn backup_daemon() -> SyncDaemon {
        SyncDaemon {
            role: SyncRole::Backup,
            interface: "eth0".to_owned(),
            sync_id: 0,
            max_len_bytes: 1472,
            group: IpAddr::from([224, 0, 0, 81]),
            port: 8848,
            ttl: 1,
            peers: Vec::new(),
        }
    }

    #[test]
    fn nat_crosses_no_families_and_tunnels_do_not_while_a_daemon_runs() {
        let mut state = with_service();
        let add = |method| {
            Command::Add(Rule::Destination {
                service: service(),
                endpoint: Endpoint::new([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 80),
                options: DestinationOptions { method, ..DestinationOptions::default() },
            })
        };
        let daemon = Command::Add(Rule::Daemon(backup_daemon()));
        let invalid = |result| matches!(result, Err(CommandError::InvalidOperation { .. }));
        assert!(invalid(state.apply(&add(ForwardingMethod::Nat))));
        state.apply(&daemon).unwrap();
        assert_eq!(state.apply(&daemon), Err(CommandError::DaemonRunning(SyncRole::Backup)));
        assert!(invalid(state.apply(&add(ForwardingMethod::Tunnel))));
        state.apply(&Command::Delete(Object::Daemon(SyncRole::Backup))).unwrap();
        state.apply(&add(ForwardingMethod::Tunnel)).unwrap();
        assert!(invalid(state.apply(&daemon)));
    }

    #[test]
    fn a_daemon_with_a_peer_that_cannot_be_one_is_refused() {
        let peers = vec![IpAddr::from([224, 0, 0, 81])];
        let daemon = Command::Add(Rule::Daemon(SyncDaemon { peers, ..backup_daemon() }));
        let refused = with_service().check(&daemon).unwrap_err().to_string();
        assert!(
            refused.starts_with("xvs: backup daemon: peer 224.0.0.81 is a multicast address"),
            "{refused}"
        );
    }

    #[test]
    fn more_destinations_than_mh_has_slots_are_refused_and_other_schedulers_take_them() {
        let mut state = with_service();
        let with = |scheduler: &str| {
            let options =
                ServiceOptions { scheduler: scheduler.to_owned(), ..ServiceOptions::of(Family::V4) };
            Command::EditService { key: service(), options }
        };
        let add = |number: u16| {
            Command::Add(Rule::Destination {
                service: service(),
                endpoint: Endpoint::new([192, 0, 2, 1], number),
                options: DestinationOptions::default(),
            })
        };
        state.apply(&with("mh")).unwrap();
        (1..=4093).for_each(|number| assert!(state.apply(&add(number)).is_ok(), "{number}"));
        let full = state.clone();
        assert!(matches!(state.apply(&add(4094)), Err(CommandError::InvalidOperation { .. })));
        assert_eq!(state, full);
        state.apply(&with("sh")).unwrap();
        state.apply(&add(4094)).unwrap();
        let more = state.clone();
        assert!(matches!(state.apply(&with("mh")), Err(CommandError::InvalidOperation { .. })));
        assert_eq!(state, more);
    }

    #[test]
    fn a_timeout_of_0_keeps_the_value_in_force() {
        let mut state = State::default();
        let wanted = Timeouts { tcp_seconds: 0, tcp_fin_seconds: 60, udp_seconds: 0 };
        assert_eq!(state.apply(&Command::Add(Rule::Timeouts(wanted))), Ok(()));
        assert_eq!(state.timeouts(), Timeouts { tcp_seconds: 900, tcp_fin_seconds: 60, udp_seconds: 300 });
    }

    #[test]
    fn a_change_does_not_alter_clones_and_shares_the_services_that_it_does_not_touch() {
        let mut state = with_service();
        let other = ServiceKey::udp(endpoint(100));
        state.apply(&add_service(other)).unwrap();
        let before = state.clone();
        state.apply(&add(1)).unwrap();
        assert!(before.service(&service()).unwrap().destinations.is_empty());
        assert!(Arc::ptr_eq(before.service(&other).unwrap(), state.service(&other).unwrap()));
        assert_eq!(state.apply(&Command::Flush), Ok(()));
        assert_eq!((state.services().count(), before.services().count()), (0, 2));
    }

    #[test]
    fn a_mark_rule_is_added_once_and_their_number_is_limited() {
        let rule = |mark| MarkRule {
            dest: None,
            source: None,
            protocol: None,
            dest_ports: Vec::new(),
            interface: None,
            mark,
            mask: u32::MAX,
        };
        let mut state = State::default();
        state.apply(&Command::Add(Rule::Mark(rule(0)))).unwrap();
        assert!(matches!(state.check(&Command::Add(Rule::Mark(rule(0)))), Err(CommandError::MarkExists(_))));
        for mark in 1..MARKS_MAX as u32 {
            state.apply(&Command::Add(Rule::Mark(rule(mark)))).unwrap();
        }
        let refused = state.apply(&Command::Add(Rule::Mark(rule(5000)))).unwrap_err().to_string();
        assert!(refused.contains("delete one first"), "{refused}");
        state.apply(&Command::Delete(Object::Mark(rule(7)))).unwrap();
        assert!(matches!(
            state.check(&Command::Delete(Object::Mark(rule(7)))),
            Err(CommandError::NoSuchMark(_))
        ));
        assert_eq!(state.apply(&Command::Add(Rule::Mark(rule(5000)))), Ok(()));
        assert_eq!(state.marks().len(), MARKS_MAX);
    }

    #[test]
    fn a_local_address_is_added_once_and_their_number_is_limited() {
        let local = |number: u32| {
            let addr = IpAddr::V4((0x0a00_0001 + number).into());
            Command::Add(Rule::Local(LocalAddress {
                addr,
                first_port: 5000,
                last_port: 5999,
                standby: false,
            }))
        };
        let mut state = State::default();
        (0..LOCALS_MAX as u32).for_each(|number| assert!(state.apply(&local(number)).is_ok(), "{number}"));
        let refused = state.apply(&local(LOCALS_MAX as u32)).unwrap_err().to_string();
        assert!(refused.contains("delete one first"), "{refused}");
        let LocalAddress { addr, first_port, last_port, standby } = state.locals()[7];
        let exists = CommandError::LocalExists { addr, first_port, last_port, standby };
        assert_eq!(state.check(&local(7)), Err(exists));
        assert_eq!(state.apply(&Command::Delete(Object::Local(addr))), Ok(()));
        assert_eq!(state.check(&Command::Delete(Object::Local(addr))), Err(CommandError::NoSuchLocal(addr)));
        state.apply(&local(7)).unwrap();
    }

    #[test]
    fn a_mark_rule_has_at_most_the_ports_of_multiport_and_a_valid_interface_name() {
        let rule = |ports: &[std::ops::RangeInclusive<u16>], interface: Option<&str>| MarkRule {
            dest: None,
            source: None,
            protocol: Some(Protocol::TCP),
            dest_ports: ports.to_vec(),
            interface: interface.map(str::to_owned),
            mark: 1,
            mask: u32::MAX,
        };
        let check =
            |rule| State::default().apply(&Command::Add(Rule::Mark(rule))).map_err(|error| error.to_string());
        let ports: Vec<_> = (1..=13).map(|port| port..=port).chain([80..=90]).collect();
        assert_eq!(check(rule(&ports, Some("eth0"))), Ok(()));
        let many = [ports, vec![14..=14]].concat();
        assert!(check(rule(&many, None)).unwrap_err().contains("add two rules"));
        assert!(check(rule(&[], Some(""))).unwrap_err().contains("leave -i out"));
    }
}
