//! The record of this director in etcd: its rules and its state, under a lease that ends when the director is gone.
//!
//! Written when it changes, its figures at most every five seconds. In between only the lease is renewed, which adds
//! nothing to etcd's history. The record's key contains the director's name. If the record's random digits show that
//! another director has the key, this director appends its own digits to the name, so that both are visible.

use std::mem;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use xvs_ctl::config::fleet::host_name;
use xvs_ctl::registry::estimator::totals;
use xvs_ipvsadm::command_line;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::difference::{differences, rules_of};
use xvs_model::config::rules::{DesiredRules, RuleLine};
use xvs_model::foreign_text::ForeignText;
use xvs_model::objects::Rule;
use xvs_model::report::fleet::FleetDirector;
use xvs_model::report::listing::Stats;

use crate::fleet::answer::{Entry, cut};
use crate::fleet::etcd::{Etcd, EtcdError, Keys};
use crate::handle::Handle;
use crate::status;

/// The lease of a record: the time after which the record of a director that has ended disappears.
const LEASE: Duration = Duration::from_secs(10);
/// Interval of prolonging the lease.
const ALIVE: Duration = Duration::from_secs(3);
/// Interval of updating the director's figures, and the pause after a refused write.
const LOOK: Duration = Duration::from_secs(5);
/// Maximum number of warnings in a record.
const WARNINGS: usize = 5;
/// Maximum length of a record that is read, in bytes. Records of this version have at most a third of that.
const RECORD_MAX_BYTES: usize = 32 << 10;

/// The separator between the name of a director and its digits.
const SAME_NAME: char = '@';

/// The writer of the record.
#[derive(Default)]
pub(super) struct Record {
    name: String,
    instance: String,
    /// The director's figures, without the rules.
    figures: FleetDirector,
    looked: Option<Instant>,
    /// The totals of all services at that time.
    total: Stats,
    /// The configuration whose rules were compared last.
    compared: Option<u64>,
    /// The lease of the key that was written last, and when it was prolonged.
    lease: Option<(u64, Instant)>,
    /// The director's name, after `directors/`.
    key: String,
    written: Option<FleetDirector>,
    /// Earliest time of the next write after a refused one.
    not_before: Option<Instant>,
}

impl Record {
    pub(super) fn new(name: String, instance: String) -> Self {
        Self { name, instance, ..Self::default() }
    }

    /// Updates the director's figures if that is due, or if its rules have just changed. `rules` are the commands in
    /// force, if known.
    pub(super) fn look(&mut self, daemon: &Handle, rules: Option<&[Command]>, changed: bool) {
        if !changed && self.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return;
        }
        let shared = daemon.shared();
        let mut warnings = status::warnings(shared, shared.health().as_ref());
        // Without warnings about the rules in etcd, which follow from the rest of the record.
        let own = shared.fleet.get().map(|fleet| fleet.warnings()).unwrap_or_default();
        warnings.retain(|warning| !own.contains(warning));
        let total = totals(shared.total.sum());
        let seconds = self.looked.map_or(0.0, |looked| looked.elapsed().as_secs_f64());
        // The totals of a former process come some moments after the start.
        let rates = match seconds > 0.5 && self.total != Stats::default() {
            true => total.rates_since(&self.total, seconds).rounded(),
            false => self.figures.rates,
        };
        if seconds > 0.5 || self.looked.is_none() {
            self.looked = Some(Instant::now());
            self.total = total;
        }
        let epoch = shared.published.load().epoch;
        let mut figures = mem::take(&mut self.figures);
        // All figures of the rules are of one state. Without an answer of the control thread they do not change.
        if (changed || self.compared != Some(epoch))
            && let Ok((running, owned)) = daemon.rules()
        {
            figures.differences = rules.and_then(|rules| wanted(rules, &running)).map(|mut wanted| {
                wanted.keep_running(&running, owned);
                differences(&running, &wanted).len() as u64
            });
            figures.digest = digest(&running).into();
            figures.services = running.services().count() as u64;
            figures.destinations =
                running.services().map(|(_, service)| service.destinations.len() as u64).sum();
            self.compared = Some(epoch);
        }
        self.figures = FleetDirector {
            name: ForeignText::default(),
            instance: self.instance.as_str().into(),
            host: host_name().into(),
            version: env!("CARGO_PKG_VERSION").into(),
            warning_count: warnings.len() as u64,
            warnings: warnings.into_iter().take(WARNINGS).map(|warning| cut(warning.text).into()).collect(),
            connections: shared.fill().0 as u64,
            rates,
            ..figures
        };
    }

    /// The current record, without rules.
    pub(super) fn present(&self) -> FleetDirector {
        let name = if self.key.is_empty() { &self.name } else { &self.key };
        FleetDirector { name: name.as_str().into(), ..self.figures.clone() }
    }

    /// Writes a record if it has changed, and renews its lease if that is due.
    ///
    /// # Errors
    /// Why the directors of the fleet do not see the record.
    pub(super) async fn write(
        &mut self,
        etcd: &mut Etcd,
        keys: &Keys,
        record: &FleetDirector,
    ) -> Result<(), EtcdError> {
        if self.waits() {
            return Ok(());
        }
        let begun = Instant::now();
        self.write_now(etcd, keys, record).await.inspect_err(|_| self.not_before = Some(begun + LOOK))
    }

    async fn write_now(
        &mut self,
        etcd: &mut Etcd,
        keys: &Keys,
        record: &FleetDirector,
    ) -> Result<(), EtcdError> {
        let (name, holder) = self.key(&keys.directors);
        if name != self.key {
            self.end(etcd).await;
            self.key = name.clone();
        }
        if let Some((lease, prolonged)) = self.lease
            && prolonged.elapsed() >= ALIVE
        {
            self.lease = etcd.keep_alive(lease).await?.then(|| (lease, Instant::now()));
        }
        if self.lease.is_some() && holder.is_some() && self.written.as_ref() == Some(record) {
            return Ok(());
        }
        let (lease, _) = match self.lease {
            Some(lease) => lease,
            None => *self.lease.insert((etcd.grant(LEASE).await?, Instant::now())),
        };
        let key = format!("directors/{name}");
        let value =
            serde_json::to_vec(&FleetDirector { name: name.into(), ..record.clone() }).unwrap_or_default();
        let compare = etcd.has_revision(&key, holder);
        let put = etcd.put(&key, &value, lease);
        // If the comparison fails, the next round finds the director that has the key.
        if etcd.commit(&[compare], &[put]).await?.done {
            self.written = Some(record.clone());
        }
        Ok(())
    }

    /// Whether a write was refused, and is tried again later.
    pub(super) fn waits(&self) -> bool {
        self.not_before.is_some_and(|time| Instant::now() < time)
    }

    /// Ends the lease, with the record.
    pub(super) async fn end(&mut self, etcd: &mut Etcd) {
        self.written = None;
        if let Some((lease, _)) = self.lease.take() {
            // Without an answer the lease ends by itself.
            let _ = etcd.revoke(lease).await;
        }
    }

    /// The key for the record, and its revision if it is this director's already.
    fn key(&self, directors: &[Entry]) -> (String, Option<u64>) {
        match directors.iter().find(|entry| entry.name == self.name) {
            Some(holder) if !self.wrote(holder) => {
                let own_digits = self.own_digits();
                let revision =
                    directors.iter().find(|entry| entry.name == own_digits).map(|entry| entry.revision);
                (own_digits, revision)
            }
            holder => (self.name.clone(), holder.map(|entry| entry.revision)),
        }
    }

    /// Whether this director has written an entry, or the process before it.
    pub(super) fn wrote(&self, entry: &Entry) -> bool {
        // A copy of the state's directory has the same digits.
        let is_own = entry.name == self.name || entry.name == self.own_digits();
        is_own && director_of(entry).instance.raw() == self.instance
    }

    /// The name of the record's key if another director has the same name.
    fn own_digits(&self) -> String {
        format!("{}{SAME_NAME}{}", self.name, self.instance)
    }

    /// The directors with the same name.
    pub(super) fn of_same_name<'a>(
        &'a self,
        directors: &'a [Entry],
    ) -> impl Iterator<Item = FleetDirector> + 'a {
        directors
            .iter()
            .filter(|entry| {
                let rest = entry.name.strip_prefix(self.name.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(SAME_NAME)) && !self.wrote(entry)
            })
            .map(director_of)
    }
}

/// The record of an entry. An unreadable record has only its name, and reports that it is unreadable.
pub(super) fn director_of(entry: &Entry) -> FleetDirector {
    let name = ForeignText::from(entry.name.as_str());
    let record = match entry.value.len() {
        ..=RECORD_MAX_BYTES => serde_json::from_slice(&entry.value).map_err(|error| error.to_string()),
        _ => Err(format!("it has more than {RECORD_MAX_BYTES} bytes")),
    };
    match record {
        Ok(record) => FleetDirector { name, ..record },
        Err(why) => FleetDirector {
            name,
            warnings: vec![format!("its record in etcd cannot be read: {why}").into()],
            warning_count: 1,
            ..FleetDirector::default()
        },
    }
}

/// The state that rules request from this director.
fn wanted(rules: &[Command], running: &State) -> Option<DesiredRules> {
    let lines: Vec<_> =
        (1..).zip(rules.iter().cloned()).map(|(number, command)| RuleLine { number, command }).collect();
    let mut wanted = DesiredRules::of(&lines).ok()?;
    wanted.keep_locals(running);
    Some(wanted)
}

/// A digest of services and destinations, with their order.
fn digest(state: &State) -> String {
    let mut digest = Sha256::new();
    for rule in rules_of(state) {
        if matches!(rule, Rule::Service { .. } | Rule::Destination { .. }) {
            digest.update(command_line(&Command::Add(rule)));
            digest.update("\n");
        }
    }
    format!("{:x}", digest.finalize())[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use xvs_ipvsadm::{SystemResolver, read_wanted};
    use xvs_model::config::difference::state_of;

    use super::*;

    fn entry(name: &str, instance: &str, revision: u64) -> Entry {
        let record = FleetDirector { instance: instance.into(), ..FleetDirector::default() };
        Entry { name: name.to_owned(), revision, value: serde_json::to_vec(&record).unwrap() }
    }

    #[test]
    fn the_later_of_two_directors_with_one_name_writes_another_key_and_both_see_each_other() {
        let record = |instance: &str| Record::new("lb1".to_owned(), instance.to_owned());
        let (earlier, later) = (record("11"), record("22"));
        let key = |record: &Record, entries: &[Entry]| record.key(entries);
        assert_eq!(key(&later, &[]), ("lb1".to_owned(), None));
        let both = [entry("lb1", "11", 5), entry("lb1@22", "22", 7), entry("lb10", "33", 6)];
        assert_eq!(key(&earlier, &both), ("lb1".to_owned(), Some(5)));
        assert_eq!(key(&later, &both[..1]), ("lb1@22".to_owned(), None));
        assert_eq!(key(&later, &both), ("lb1@22".to_owned(), Some(7)));
        assert_eq!(key(&later, &both[1..]), ("lb1".to_owned(), None), "the name is free");
        let others = |record: &Record| record.of_same_name(&both).map(|one| one.name).collect::<Vec<_>>();
        assert_eq!((others(&earlier), others(&later)), (vec!["lb1@22".into()], vec!["lb1".into()]));
        assert!(earlier.wrote(&both[0]) && later.wrote(&both[1]));
        assert!(!earlier.wrote(&entry("lb2", "11", 9)), "another director with a copy of the state");
    }

    fn commands(rules: &str) -> Vec<Command> {
        read_wanted(rules, &SystemResolver::default()).unwrap().0
    }

    #[test]
    fn the_digest_has_services_real_servers_weights_and_order_and_nothing_that_is_a_directors_own() {
        let of = |rules: &str| digest(&state_of(commands(rules)).unwrap());
        let service = "-A -t 192.0.2.1:80 -s rr\n";
        let [a, b] = [11, 12].map(|host| format!("-a -t 192.0.2.1:80 -r 192.0.2.{host}:80 -m -w 1\n"));
        let both = of(&format!("{service}{a}{b}"));
        assert_eq!(both, of(&format!("#xvs laddr add 192.0.2.9\n{service}{a}{b}--set 1 2 3\n")));
        for other in [
            format!("{service}{b}{a}"),
            format!("{service}{a}"),
            format!("{service}{a}{b}").replace("-w 1", "-w 2"),
        ] {
            assert_ne!(both, of(&other), "{other}");
        }
    }

    #[test]
    fn rules_without_local_addresses_leave_those_of_the_director() {
        let running = commands("#xvs laddr add 192.0.2.9\n-A -t 192.0.2.1:80 -s rr\n");
        let count = |rules: &str| {
            let running_state = state_of(running.clone()).unwrap();
            differences(&running_state, &wanted(&commands(rules), &running_state).unwrap()).len()
        };
        assert_eq!(count("-A -t 192.0.2.1:80 -s rr\n"), 0);
        assert_eq!(count("#xvs laddr add 192.0.2.8\n-A -t 192.0.2.1:80 -s rr\n"), 2);
        assert_eq!(count("-A -t 192.0.2.1:80 -s wrr\n"), 1);
    }

    #[test]
    fn a_record_that_is_too_long_is_not_read_and_says_so() {
        let dense = format!(r#"{{"warnings":[{}""]}}"#, r#""","#.repeat(1_000_000));
        let entry = Entry { name: "lb9".to_owned(), revision: 1, value: dense.into_bytes() };
        let warning = "its record in etcd cannot be read: it has more than 32768 bytes".to_owned();
        let FleetDirector { name, warnings, .. } = director_of(&entry);
        assert_eq!((name, warnings), ("lb9".into(), vec![warning.into()]));
    }
}
