//! The events of `xvs events`: changes, with their time and origin.
//!
//! The control thread records an event as it carries out the change, so events are in the order in which changes came
//! into force. The last [`KEPT`] events are one queue for all listeners, which each listener reads at its own pace. A
//! listener that falls further behind misses the oldest events, and gets their number. Recording never waits for a
//! listener.

use std::collections::{BTreeSet, VecDeque};
use std::iter;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use xvs_model::config::difference::{Difference, commands_for};
use xvs_model::config::refusal::CommandError;
use xvs_model::foreign_text::escape_control;
use xvs_model::protocol::question::{ControlRequest, Reply};
use xvs_model::protocol::request::Verdict;
use xvs_model::report::event::{Begin, Event, EventBatch, EventQuery, KEPT, Kind, PART, Requester, Then};
use xvs_model::report::warning::{Warning, WarningKey};

use xvs_ipvsadm::command_line;

/// All events of a daemon.
#[derive(Debug)]
pub struct Events {
    /// The date, in milliseconds since 1970.
    date_millis: fn() -> u64,
    recorded: Mutex<Recorded>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Recorded {
    /// The last events; their numbers have no gap.
    kept: VecDeque<Event>,
    /// The number of the last event; 0 if there was none.
    last: u64,
    listeners: usize,
}

impl Recorded {
    /// The number of the first stored event, or of the next event if none is stored.
    fn first(&self) -> u64 {
        self.last + 1 - self.kept.len() as u64
    }
}

impl Events {
    /// No events yet. `date_millis` reads the date, in milliseconds since 1970.
    pub fn new(date_millis: fn() -> u64) -> Self {
        Self { date_millis, recorded: Mutex::default(), more: Condvar::new() }
    }

    /// Records an event without a requester.
    pub fn record(&self, kind: Kind, epoch: u64, what: String) {
        self.record_all(kind, epoch, None, [(what, None)]);
    }

    /// Logs and records which of these warnings have begun since the former ones, and which of those have ended. A
    /// warning with the same kind and object is the same one, whatever its text.
    pub fn record_warnings(&self, epoch: u64, former: &[Warning], present: &[Warning]) {
        if former == present {
            return;
        }
        let begun = without(present, former);
        begun.iter().for_each(|warning| tracing::warn!("{warning}"));
        self.push(Kind::Warning, epoch, None, begun.into_iter().map(event_of));
        let over = without(former, present);
        over.iter().for_each(|warning| tracing::info!("over: {warning}"));
        self.push(Kind::Over, epoch, None, over.into_iter().map(event_of));
    }

    /// Records the changes of one request, each with its refusal, if it was refused. After the first [`AT_ONCE`]
    /// changes, one event has the number of the others.
    pub fn record_all(
        &self,
        kind: Kind,
        epoch: u64,
        by: Option<&Requester>,
        all: impl IntoIterator<Item = (String, Option<String>), IntoIter: ExactSizeIterator>,
    ) {
        self.push(kind, epoch, by, all.into_iter().map(|(what, refused)| (what, refused, None)));
    }

    fn push(
        &self,
        kind: Kind,
        epoch: u64,
        by: Option<&Requester>,
        all: impl ExactSizeIterator<Item = (String, Option<String>, Option<WarningKey>)>,
    ) {
        let left = match all.len().saturating_sub(AT_ONCE) {
            0 => None,
            left => Some((format!("… and {left} more at once; the log has each"), None, None)),
        };
        let at_millis = (self.date_millis)();
        let mut recorded = self.recorded();
        for (what, refused, warning) in all.take(AT_ONCE).chain(left) {
            recorded.last += 1;
            let number = recorded.last;
            let by = by.cloned();
            recorded.kept.push_back(Event { number, at_millis, epoch, by, kind, what, refused, warning });
            if recorded.kept.len() > KEPT {
                recorded.kept.pop_front();
            }
        }
        drop(recorded);
        self.more.notify_all();
    }

    /// Adds a listener.
    ///
    /// # Errors
    ///
    /// There already are [`LISTENERS`] listeners.
    pub fn listen(self: &Arc<Self>, query: EventQuery) -> Result<Listener, CommandError> {
        let mut recorded = self.recorded();
        if recorded.listeners >= LISTENERS {
            return Err(CommandError::failed(format_args!(
                "{LISTENERS} listeners receive events already, the largest number; end one"
            )));
        }
        recorded.listeners += 1;
        let next = match query.from {
            Begin::Now => recorded.last + 1,
            Begin::Last(count) => recorded.first().max((recorded.last + 1).saturating_sub(count as u64)),
            Begin::Since(millis) => recorded
                .kept
                .iter()
                .find(|event| event.at_millis >= millis)
                .map_or(recorded.last + 1, |event| event.number),
        };
        Ok(Listener { events: self.clone(), next, then: query.then })
    }

    /// Ignores poisoning: no panic leaves the list inconsistent.
    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Events at the beginning of 1970.
impl Default for Events {
    fn default() -> Self {
        Self::new(|| 0)
    }
}

/// A listener for events. Dropping it makes room for another one.
#[derive(Debug)]
pub struct Listener {
    events: Arc<Events>,
    /// The number of the next event.
    next: u64,
    then: Then,
}

impl Listener {
    /// Whether it waits for further events.
    pub fn follows(&self) -> bool {
        self.then == Then::Follow
    }

    /// The next events; empty if none is recorded within this time.
    pub fn receive(&mut self, within: Duration) -> EventBatch {
        let (recorded, _) = self
            .events
            .more
            .wait_timeout_while(self.events.recorded(), within, |recorded| recorded.last < self.next)
            .unwrap_or_else(PoisonError::into_inner);
        let missed = recorded.first().saturating_sub(self.next);
        let begin = (self.next + missed).saturating_sub(recorded.first()) as usize;
        let events: Vec<_> = recorded.kept.iter().skip(begin).take(PART).cloned().collect();
        self.next += missed + events.len() as u64;
        EventBatch { missed, events }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.events.recorded().listeners -= 1;
    }
}

/// Changes: each command as typed, and its refusal, if it was refused.
pub type Changes<'a> = Box<dyn ExactSizeIterator<Item = (String, Option<String>)> + 'a>;

/// The changes of a request. Empty for a request that changes nothing.
pub fn changes<'a>(request: &'a ControlRequest, answer: &'a Result<Reply, CommandError>) -> Changes<'a> {
    let refused = answer.as_ref().err().and_then(refusal);
    match (request, answer) {
        (ControlRequest::Restore(commands), Ok(Reply::Restored(results))) => {
            let refused = results.iter().map(move |result| result.as_ref().err().and_then(refusal));
            Box::new(commands.iter().map(command_line).zip(refused))
        }
        (ControlRequest::Restore(commands), _) => {
            Box::new(commands.iter().map(move |command| (command_line(command), refused.clone())))
        }
        (ControlRequest::Change(command), _) => Box::new(iter::once((command_line(command), refused))),
        (ControlRequest::Set { key, value }, _) => {
            Box::new(iter::once((escape_control(&format!("xvs set {key} {value}")), refused)))
        }
        (ControlRequest::Apply { .. }, Ok(Reply::Applied(differences))) => applied("xvs apply", differences),
        (ControlRequest::Apply { .. }, _) => Box::new(iter::once(("xvs apply".to_owned(), refused))),
        (ControlRequest::Confirm(Verdict::TakeBack), Ok(Reply::Applied(differences))) => {
            applied("xvs confirm --take-back", differences)
        }
        (ControlRequest::Confirm(Verdict::Keep), _) => {
            Box::new(iter::once(("xvs confirm".to_owned(), refused)))
        }
        (ControlRequest::Confirm(Verdict::TakeBack), _) => {
            Box::new(iter::once(("xvs confirm --take-back".to_owned(), refused)))
        }
        _ => Box::new(iter::empty()),
    }
}

/// Logs changes, their requester and the results: one line for each command, also in a batch.
pub fn log_changes(changes: impl IntoIterator<Item = (String, Option<String>)>, requester: &Requester) {
    for (line, refused) in changes {
        match refused {
            None => tracing::info!("{requester}: {line}"),
            Some(error) => tracing::info!("{requester}: {line}: refused: {error}"),
        }
    }
}

/// The warnings whose keys others do not have.
fn without<'w>(warnings: &'w [Warning], others: &[Warning]) -> Vec<&'w Warning> {
    let others: BTreeSet<_> = others.iter().map(|other| &other.key).collect();
    warnings.iter().filter(|warning| !others.contains(&warning.key)).collect()
}

/// The text and key of a warning, as an event without a refusal.
fn event_of(warning: &Warning) -> (String, Option<String>, Option<WarningKey>) {
    (warning.text.clone(), None, Some(warning.key.clone()))
}

fn refusal(error: &CommandError) -> Option<String> {
    error.refusal().map(ToString::to_string)
}

/// The commands that removed these differences, as typed, each prefixed with the cause.
pub(crate) fn applied(why: &'static str, differences: &[Difference]) -> Changes<'static> {
    Box::new(
        commands_for(differences)
            .into_iter()
            .map(move |command| (format!("{why}: {}", command_line(&command)), None)),
    )
}

/// The largest number of listeners.
pub const LISTENERS: usize = 40;
/// Maximum number of changes in one request, such as a restore, that are recorded individually.
pub const AT_ONCE: usize = 256;

#[cfg(test)]
mod tests {
    use xvs_model::report::warning::WarningKind;

    use super::*;

    fn record(events: &Events, numbers: impl Iterator<Item = u64>) {
        numbers.for_each(|number| events.record(Kind::Link, 7, number.to_string()));
    }

    fn listen(events: &Arc<Events>, from: Begin) -> Listener {
        events.listen(EventQuery { from, then: Then::Follow }).unwrap()
    }

    /// The number of events that the listener has missed, and the numbers of those that it receives now.
    fn received(listener: &mut Listener) -> (u64, Vec<u64>) {
        let (mut missed, mut numbers) = (0, Vec::new());
        loop {
            let batch = listener.receive(Duration::ZERO);
            if batch.is_empty() {
                return (missed, numbers);
            }
            assert!(batch.events.len() <= PART);
            missed += batch.missed;
            for event in batch.events {
                assert_eq!(event.what, event.number.to_string());
                numbers.push(event.number);
            }
        }
    }

    #[test]
    fn a_listener_receives_every_event_once_in_order_from_the_requested_start() {
        let events = Arc::new(Events::default());
        let mut from_now = listen(&events, Begin::Now);
        record(&events, 1..=200);
        let mut last = listen(&events, Begin::Last(3));
        assert_eq!(received(&mut from_now), (0, (1..=200).collect()));
        assert_eq!(received(&mut last), (0, vec![198, 199, 200]));
        assert_eq!(received(&mut listen(&events, Begin::Last(5000))).1.len(), 200);
        assert_eq!(received(&mut listen(&events, Begin::Now)), (0, vec![]));
        record(&events, 201..=201);
        assert_eq!((received(&mut from_now), received(&mut last)), ((0, vec![201]), (0, vec![201])));
    }

    #[test]
    fn events_since_a_time_begin_with_the_first_that_is_not_older() {
        let events = Arc::new(Events::default());
        record(&events, 1..=3);
        for (event, at_millis) in events.recorded().kept.iter_mut().zip([10, 20, 30]) {
            event.at_millis = at_millis;
        }
        for (since, expected) in [(5, vec![1, 2, 3]), (20, vec![2, 3]), (21, vec![3]), (31, vec![])] {
            assert_eq!(received(&mut listen(&events, Begin::Since(since))), (0, expected), "{since}");
        }
    }

    /// The events of warnings that became others: kind, object and text of each.
    fn changed(former: &[Warning], present: &[Warning]) -> Vec<(Kind, String, String)> {
        let events = Arc::new(Events::default());
        events.record_warnings(7, former, present);
        let batch = listen(&events, Begin::Last(KEPT)).receive(Duration::ZERO);
        batch
            .events
            .into_iter()
            .map(|event| (event.kind, event.warning.unwrap().object, event.what))
            .collect()
    }

    #[test]
    fn a_number_that_changes_inside_a_warning_neither_ends_nor_begins_it() {
        let lost = |lines| Warning::new(WarningKind::LogWrite, "", format!("{lines} lines are lost"));
        assert_eq!(changed(&[lost(1)], &[lost(2)]), []);
        let over = (Kind::Over, String::new(), "2 lines are lost".to_owned());
        assert_eq!(changed(&[lost(2)], &[]), [over], "with the last text");
    }

    #[test]
    fn a_warning_that_ends_and_another_of_its_kind_for_another_object_that_begins_are_two_events() {
        let left = |name: &str| Warning::new(WarningKind::BondLeft, name, format!("{name} has left"));
        let event = |kind, name: &str| (kind, name.to_owned(), format!("{name} has left"));
        let expected = [event(Kind::Warning, "eth1"), event(Kind::Over, "eth0")];
        assert_eq!(changed(&[left("eth0"), left("eth2")], &[left("eth1"), left("eth2")]), expected);
    }

    #[test]
    fn a_listener_that_falls_behind_misses_the_oldest_and_gets_their_number() {
        let events = Arc::new(Events::default());
        let mut slow = listen(&events, Begin::Now);
        record(&events, 1..=KEPT as u64 + 10);
        assert_eq!(received(&mut slow), (10, (11..=KEPT as u64 + 10).collect()));
        assert_eq!(
            received(&mut listen(&events, Begin::Last(9999))).0,
            0,
            "a later listener has missed nothing"
        );
    }

    #[test]
    fn of_a_large_batch_the_first_changes_are_events_and_one_more_event_counts_the_others() {
        let events = Arc::new(Events::default());
        let who = Requester { uid: 0, pid: 4711, program: "xvsadm".to_owned() };
        let all: Vec<_> = (1..=10_000).map(|number| (number.to_string(), None)).collect();
        events.record_all(Kind::Change, 3, Some(&who), all);
        let recorded = events.recorded();
        assert_eq!(recorded.last, AT_ONCE as u64 + 1);
        assert_eq!(recorded.kept[AT_ONCE].what, "… and 9744 more at once; the log has each");
        assert!(recorded.kept.iter().all(|event| event.by.as_ref() == Some(&who) && event.epoch == 3));
    }

    #[test]
    fn the_number_of_listeners_is_limited_and_a_dropped_one_makes_room() {
        let events = Arc::new(Events::default());
        let mut all: Vec<_> = (0..LISTENERS).map(|_| listen(&events, Begin::Now)).collect();
        let query = EventQuery { from: Begin::Now, then: Then::End };
        assert!(events.listen(query).is_err_and(|error| error.to_string().contains("end one")));
        all.pop();
        assert!(events.listen(query).is_ok());
    }

    #[test]
    fn a_listener_that_waits_is_woken_by_the_next_event() {
        let events = Arc::new(Events::default());
        let mut listener = listen(&events, Begin::Now);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| listener.receive(Duration::from_secs(60)));
            record(&events, 1..=1);
            assert_eq!(waiting.join().unwrap().events.len(), 1);
        });
    }

    #[test]
    fn each_command_of_a_batch_has_its_own_refusal() {
        let commands =
            vec![xvs_model::config::command::Command::Flush, xvs_model::config::command::Command::Zero(None)];
        let results = vec![Ok(()), Err(CommandError::PermissionDenied)];
        let (request, answer) = (ControlRequest::Restore(commands), Ok(Reply::Restored(results)));
        let lines: Vec<_> = changes(&request, &answer).collect();
        assert_eq!(lines[0], ("xvsadm -C".to_owned(), None));
        assert_eq!((lines[1].0.as_str(), lines[1].1.is_some()), ("xvsadm -Z", true));
        assert_eq!(changes(&ControlRequest::ListServices, &Ok(Reply::Done)).len(), 0);
    }
}
