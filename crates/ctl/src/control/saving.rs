//! The changes that the journal keeps.
//!
//! A change is noted once it is carried out, and written before it is published and answered. Objects owned by health
//! checks, and the timeouts of a keepalived.conf, are not noted: xvsd reads them from that file again. An object that
//! becomes owned leaves the journal. Not here: the file (`journal/`).

use xvs_dataplane::clock::Millis;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::refusal::CommandError;
use xvs_model::config::sync_daemon::SyncDaemon;
use xvs_model::objects::Rule;
use xvs_model::report::setting::Source;

use crate::control::Control;
use crate::control::datapath::Datapath;
use crate::control::owned_services::OwnedServices;
use crate::journal::Journal;
use crate::journal::format::Entry;
use crate::journal::replay::{TimeoutsBySource, rules_without_timeouts};

/// The state with which a daemon begins, beside rules.
#[derive(Default)]
pub struct Begun {
    /// The timeouts of an earlier daemon.
    pub timeouts: TimeoutsBySource,
    /// The settings of `xvs set` that were carried out.
    pub settings: Vec<(String, String)>,
    /// Synchronization daemons that could not start, which are tried again.
    pub refused: Vec<(SyncDaemon, CommandError)>,
    /// The journal that is written from now on.
    pub journal: Option<Journal>,
}

impl<D: Datapath> Control<D> {
    /// Takes over the timeouts of an earlier daemon, and begins a journal with the current state.
    ///
    /// # Errors
    /// The timeouts are refused. A journal that cannot be written becomes a warning.
    pub fn begin_journal(&mut self, begun: Begun, now: Millis) -> Result<(), CommandError> {
        self.lists.starting = false;
        for (timeouts, source) in begun.timeouts.iter() {
            let command = Command::Add(Rule::Timeouts(timeouts));
            self.prepare_and_carry_out(&command, now)?;
            self.settings.note_timeouts(&command, source);
        }
        for (daemon, why) in begun.refused {
            self.await_daemon(daemon, &why);
        }
        if let Some(mut journal) = begun.journal {
            for (timeouts, source) in self.settings.sourced_timeouts(self.state.timeouts()) {
                if source != Source::Default {
                    journal.note(&Entry::Timeouts(timeouts, source));
                }
            }
            for (key, value) in begun.settings {
                journal.note(&Entry::Set { key, value });
            }
            journal.write_anew(entries(&self.state, &self.owned));
            self.journal = Some(journal);
        }
        // A late worker becomes a warning.
        let _ = self.publish();
        Ok(())
    }

    /// Notes commands that were carried out, and the source of the timeouts that they set: keepalived.conf sets its
    /// timeouts again.
    pub(super) fn note<'a>(&mut self, commands: impl IntoIterator<Item = &'a Command>, source: Source) {
        for command in commands {
            self.settings.note_timeouts(command, source);
            let Some(journal) = &mut self.journal else { continue };
            match command {
                Command::Zero(_) => {}
                Command::Add(Rule::Timeouts(_)) if source == Source::KeepalivedConf => {}
                Command::Add(Rule::Timeouts(timeouts)) => journal.note(&Entry::Timeouts(*timeouts, source)),
                _ if self.owned.owns(command.object()) => {}
                _ => journal.note(&Entry::Change(command.clone())),
            }
        }
    }

    /// Notes rules that were applied and are not confirmed yet.
    pub(super) fn note_unconfirmed(&mut self, commands: &[Command]) {
        commands.iter().for_each(|command| self.settings.note_timeouts(command, Source::RulesFile));
        self.note_entry(|| Entry::Unconfirmed(commands.to_vec()));
    }

    /// Notes the timeouts in force with their sources.
    pub(super) fn note_timeout_sources(&mut self) {
        for (timeouts, source) in self.settings.sourced_timeouts(self.state.timeouts()) {
            self.note_entry(|| Entry::Timeouts(timeouts, source));
        }
    }

    /// Notes one line.
    pub(super) fn note_entry(&mut self, entry: impl FnOnce() -> Entry) {
        if let Some(journal) = &mut self.journal {
            journal.note(&entry());
        }
    }

    /// Writes changes that could not be written before, if there is room again. For a successor, which begins with the
    /// journal.
    ///
    /// # Errors
    /// The journal lacks changes that are in force.
    pub fn complete_journal(&mut self) -> Result<(), CommandError> {
        let Self { journal: Some(journal), state, owned, unconfirmed, .. } = self else { return Ok(()) };
        if journal.warning().is_some() && unconfirmed.is_none() {
            journal.write_anew(entries(state, owned));
        }
        journal.warning().map_or(Ok(()), |why| {
            Err(CommandError::failed(format_args!("it would lose changes of the configuration: {why}")))
        })
    }

    /// Writes the noted changes.
    pub(super) fn save(&mut self) {
        let Self { journal: Some(journal), state, owned, unconfirmed, .. } = self else { return };
        // While rules wait to be confirmed, the journal must also have the state before them.
        journal.save(|| unconfirmed.is_none().then(|| entries(state, owned)));
    }
}

/// The changes that give a state from an empty one, without objects owned by health checks.
fn entries(state: &State, owned: &OwnedServices) -> Vec<Entry> {
    rules_without_timeouts(state)
        .filter(|rule| !owned.owns(Some(rule.object())))
        .map(Command::Add)
        .map(Entry::Change)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::time::Duration;
    use std::{env, fs, process};
    use xvs_model::objects::Object;
    use xvs_model::objects::limit::ServiceLimit;
    use xvs_sched::{ClientLimit, ServiceKey};

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;
    use xvs_model::config::reconcile::{OwnedService, ReconcileScope, Repair};
    use xvs_model::config::service::ServiceOptions;
    use xvs_model::config::timeouts::Timeouts;
    use xvs_model::objects::disabled::Disabled;
    use xvs_model::objects::note::ServiceNote;
    use xvs_model::protocol::question::ControlRequest;
    use xvs_model::protocol::request::Verdict;
    use xvs_model::report::warning::texts;

    use crate::control::reload_settings::Reloaded;
    use crate::control::saving::*;
    use crate::control::tests::{Machine, any_change, any_service, control, endpoint, options};
    use crate::journal::format::{Contents, FileRecord, Header};
    use crate::journal::replay::Replayed;

    /// A directory that is removed when this is dropped.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("xvs-journal-{}-{name}", process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn journal(&self) -> PathBuf {
            self.0.join("journal")
        }

        /// A control plane without services that keeps its state here.
        fn control(&self) -> Control<Machine> {
            let mut control = control();
            let journal = Journal::new(&self.0, &Header::new(None, None, Vec::new()));
            control.begin_journal(Begun { journal: Some(journal), ..Begun::default() }, Millis(0)).unwrap();
            control
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    const SERVICE: &str = "TCP 192.0.2.100:80";

    /// Adds a service.
    fn add(key: &str) -> Command {
        let key: ServiceKey = key.parse().unwrap();
        Command::Add(Rule::Service { key, options: ServiceOptions::of(key.family()) })
    }

    fn timeouts(tcp_seconds: u32) -> Command {
        Command::Add(Rule::Timeouts(Timeouts { tcp_seconds, ..Timeouts::UNSET }))
    }

    /// A step of a director's life.
    #[derive(Debug, Clone)]
    enum Step {
        Request(ControlRequest),
        Reconcile(ServiceKey, Option<OwnedService>),
        Time,
    }

    fn command() -> impl Strategy<Value = Command> {
        let server = |text: &str| Disabled { server: text.parse().unwrap(), service: None };
        let servers = vec![server("192.0.2.1"), server("192.0.2.1:80"), server("192.0.2.2:0")];
        let timeouts = (select(vec![0, 60, 900]), select(vec![0, 5]), select(vec![0, 7]));
        let timeouts = timeouts.prop_map(|(tcp_seconds, tcp_fin_seconds, udp_seconds)| Timeouts {
            tcp_seconds,
            tcp_fin_seconds,
            udp_seconds,
        });
        prop_oneof![
            12 => any_change(),
            1 => select(servers.clone()).prop_map(|servers| Command::Add(Rule::Disabled(servers))),
            1 => select(servers).prop_map(|servers| Command::Delete(Object::Disabled(servers))),
            1 => (any_service(), select(vec!["shop", "mail"])).prop_map(|(service, text)| {
                Command::Add(Rule::Note(ServiceNote { service, text: text.to_owned() }))
            }),
            1 => any_service().prop_map(|service| Command::Delete(Object::Note(service))),
            1 => timeouts.prop_map(|timeouts| Command::Add(Rule::Timeouts(timeouts))),
            1 => Just(Command::Zero(None)),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        let settings =
            vec![("sloppy_tcp", "1"), ("sloppy_tcp", "0"), ("feedback.services", "all"), ("no", "1")];
        let confirm = prop::option::weighted(0.5, Just(5_u32));
        let owned = prop::option::weighted(0.7, vec((endpoint(), options()), 0..2));
        let rate = |rate| ClientLimit { rate, ..ClientLimit::default() };
        let limit = prop::option::weighted(0.5, select(vec![rate(5), rate(7)]));
        let by_hand = (any_service(), limit.clone()).prop_map(|(service, limit)| match limit {
            Some(limit) => Command::Add(Rule::Limit(ServiceLimit { service, limit })),
            None => Command::Delete(Object::Limit(service)),
        });
        prop_oneof![
            2 => by_hand.prop_map(|command| Step::Request(ControlRequest::Change(command))),
            8 => command().prop_map(|command| Step::Request(ControlRequest::Change(command))),
            4 => vec(command(), 2..8).prop_map(|commands| Step::Request(ControlRequest::Restore(commands))),
            2 => (vec(command(), 0..6), confirm).prop_map(|(rules, confirm_within_seconds)| {
                Step::Request(ControlRequest::Apply { rules, confirm_within_seconds, keeps_locals: false })
            }),
            1 => select(vec![Verdict::Keep, Verdict::TakeBack]).prop_map(|verdict| Step::Request(ControlRequest::Confirm(verdict))),
            1 => select(settings).prop_map(|(key, value)| {
                Step::Request(ControlRequest::Set { key: key.to_owned(), value: value.to_owned() })
            }),
            2 => (any_service(), owned, limit.clone()).prop_map(|(key, destinations, limit)| {
                let options = ServiceOptions::of(key.family());
                Step::Reconcile(key, destinations.map(|destinations| OwnedService { options, destinations, limit }))
            }),
            1 => Just(Step::Time),
        ]
    }

    fn read(journal: &Path) -> Contents {
        Contents::read(journal).unwrap().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn after_any_steps_the_journal_gives_the_state_without_owned_services(steps in vec(step(), 1..60)) {
            let directory = Directory::new("steps");
            let mut control = directory.control();
            let mut now = Millis(0);
            for step in steps {
                match &step {
                    Step::Request(request) => _ = control.handle(request, now),
                    Step::Reconcile(key, wanted) => {
                        control.reconcile(vec![(*key, wanted.clone())], ReconcileScope::Changes, now);
                    }
                    Step::Time => now = now + Duration::from_secs(2),
                }
                control.tick(now).unwrap();
                let contents = read(&directory.journal());
                let replayed = Replayed::of(&contents.entries);
                prop_assert_eq!(&replayed.refused, &[""; 0], "after {:?}", step);
                prop_assert!(!contents.is_cut && contents.entries.len() <= 500);
                if control.unconfirmed_until().is_some() {
                    continue;
                }
                let entries_of_journal: Vec<_> =
                    rules_without_timeouts(&replayed.state).map(Command::Add).map(Entry::Change).collect();
                prop_assert_eq!(entries(control.state(), &control.owned), entries_of_journal, "after {:?}", step);
                prop_assert_eq!(control.state().timeouts(), replayed.state.timeouts());
                let sources = control.settings.sourced_timeouts(control.state().timeouts());
                for (timeouts, source) in sources {
                    let has = |(mut set, of): (Timeouts, Source)| {
                        let before = set;
                        set.update(timeouts);
                        of == source && set == before
                    };
                    prop_assert!(source == Source::Default || replayed.timeouts.iter().any(has));
                }
                let set = control.settings_in_force().iter().filter(|setting| setting.source == Source::XvsSet).count();
                prop_assert_eq!(set, replayed.settings.len());
            }
        }
    }

    #[test]
    fn a_journal_that_is_cut_anywhere_gives_a_prefix_of_its_changes() {
        let directory = Directory::new("cut");
        let mut control = directory.control();
        for service in ["TCP 192.0.2.100:80", "UDP [2001:db8::1]:53", "FWM 7"] {
            control.run(add(service)).unwrap();
        }
        let set = ControlRequest::Set { key: "sloppy_tcp".to_owned(), value: "1".to_owned() };
        control.handle(&set, Millis(0)).unwrap();
        let bytes = fs::read(directory.journal()).unwrap();
        let whole = Contents::parse(&bytes, 0).unwrap();
        assert_eq!((whole.entries.len(), whole.is_cut), (4, false));
        let header = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for end in 0..bytes.len() {
            let cut = Contents::parse(&bytes[..end], 0);
            match cut {
                Ok(cut) => {
                    assert!(end >= header && whole.entries.starts_with(&cut.entries), "{end}");
                    assert_eq!(cut.is_cut, bytes[end - 1] != b'\n', "{end}");
                }
                Err(why) => assert!(end < header && why.to_string().contains("first line"), "{end}: {why}"),
            }
        }
    }

    #[test]
    fn a_journal_of_outdated_lines_is_written_anew_and_holds_the_same() {
        let directory = Directory::new("anew");
        let mut control = directory.control();
        let add = add(SERVICE);
        let delete = Command::Delete(Object::Service(SERVICE.parse().unwrap()));
        let mut longest = 0;
        for round in 0..200 {
            let command = if round % 2 == 0 { add.clone() } else { delete.clone() };
            control.run(command).unwrap();
            longest = longest.max(read(&directory.journal()).entries.len());
        }
        control.run(add).unwrap();
        assert!((10..=100).contains(&longest), "{longest} lines");
        assert_eq!(&Replayed::of(&read(&directory.journal()).entries).state, control.state());
    }

    #[test]
    fn the_journal_has_the_file_of_the_last_reload_and_the_settings_that_it_left() {
        let directory = Directory::new("reload");
        let mut control = directory.control();
        for key in ["sloppy_tcp", "sloppy_sctp"] {
            let set = ControlRequest::Set { key: key.to_owned(), value: "1".to_owned() };
            control.handle(&set, Millis(0)).unwrap();
        }
        let toml = Some(FileRecord::of(Path::new("/etc/xvs/xvs.toml"), b"[ipvs]"));
        let new = Reloaded {
            changed: vec!["sloppy_tcp".to_owned()],
            ipvs: control.ipvs(),
            feedback: control.feedback().clone(),
            repair: Repair::Never,
            settings: Vec::new(),
            toml: toml.clone(),
        };
        assert_eq!(control.reload(new, Millis(0)), ["sloppy_tcp"]);
        let add = add(SERVICE);
        let delete = Command::Delete(Object::Service(SERVICE.parse().unwrap()));
        // At the end the journal was written anew.
        for round in 0..200 {
            let Contents { header, entries, .. } = read(&directory.journal());
            let settings: Vec<_> = Replayed::of(&entries).settings.into_keys().collect();
            assert_eq!((header.toml, settings), (toml.clone(), vec!["sloppy_sctp".to_owned()]), "{round}");
            let command = if round % 2 == 0 { add.clone() } else { delete.clone() };
            control.run(command).unwrap();
        }
    }

    #[test]
    fn a_journal_that_cannot_be_written_refuses_no_change_and_has_all_of_them_later() {
        let directory = Directory::new("unwritable");
        let mut control = directory.control();
        let change = |last: u8| add(&format!("TCP 192.0.2.{last}:80"));
        // A device that is always full, in the place of the file.
        control
            .journal
            .as_mut()
            .unwrap()
            .append_to(fs::File::options().write(true).open("/dev/full").unwrap());
        fs::create_dir(directory.0.join("journal.new")).unwrap();
        for last in [100, 101] {
            control.run(change(last)).unwrap();
            let warnings = control.warnings();
            assert!(
                warnings.len() == 1
                    && warnings[0].text.starts_with(&directory.journal().display().to_string()),
                "{warnings:?}"
            );
        }
        fs::remove_dir(directory.0.join("journal.new")).unwrap();
        control.run(change(102)).unwrap();
        assert_eq!(texts(&control.warnings()), [""; 0]);
        assert_eq!(&Replayed::of(&read(&directory.journal()).entries).state, control.state());
    }

    #[test]
    fn a_successor_gets_no_journal_that_lacks_changes_and_gets_a_complete_one_once_there_is_room() {
        let directory = Directory::new("incomplete");
        let mut control = directory.control();
        assert_eq!(control.complete_journal(), Ok(()));
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        control.journal.as_mut().unwrap().append_to(full);
        fs::create_dir(directory.0.join("journal.new")).unwrap();
        control.run(add(SERVICE)).unwrap();
        let refused = control.complete_journal().unwrap_err().to_string();
        assert!(refused.contains("would lose changes") && refused.contains("make room"), "{refused}");
        fs::remove_dir(directory.0.join("journal.new")).unwrap();
        assert_eq!((control.complete_journal(), control.warnings()), (Ok(()), vec![]));
        assert_eq!(&Replayed::of(&read(&directory.journal()).entries).state, control.state());
    }

    #[test]
    fn rules_that_wait_to_be_confirmed_are_taken_back_at_a_restart_and_confirmed_ones_stay() {
        let directory = Directory::new("unconfirmed");
        let mut control = directory.control();
        control.run(timeouts(100)).unwrap();
        let before = control.state().clone();
        let rules = vec![add(SERVICE), timeouts(200)];
        control
            .handle(
                &ControlRequest::Apply { rules, confirm_within_seconds: Some(60), keeps_locals: false },
                Millis(0),
            )
            .unwrap();
        let replayed = Replayed::of(&read(&directory.journal()).entries);
        assert_eq!((&replayed.state, replayed.taken_back.len()), (&before, 2));
        assert!(replayed.timeouts.iter().all(|(_, source)| source == Source::XvsadmSet));
        control.handle(&ControlRequest::Confirm(Verdict::Keep), Millis(0)).unwrap();
        let replayed = Replayed::of(&read(&directory.journal()).entries);
        assert_eq!((&replayed.state, replayed.taken_back.len()), (control.state(), 0));
        assert!(replayed.timeouts.iter().all(|(_, source)| source == Source::RulesFile));
    }

    #[test]
    fn timeouts_of_the_keepalived_conf_are_not_kept_and_the_former_ones_are() {
        let directory = Directory::new("keepalived");
        let mut control = directory.control();
        control.run(timeouts(100)).unwrap();
        control.change(&timeouts(200), Source::KeepalivedConf, Millis(0)).unwrap();
        assert_eq!(control.state().timeouts().tcp_seconds, 200);
        assert_eq!(Replayed::of(&read(&directory.journal()).entries).state.timeouts().tcp_seconds, 100);
        control.change(&Command::Flush, Source::KeepalivedConf, Millis(0)).unwrap();
        assert_eq!(read(&directory.journal()).entries.last(), Some(&Entry::Change(Command::Flush)));
    }
}
