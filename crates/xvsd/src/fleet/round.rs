//! One query of etcd and its consequences: rules are read and put in force, the record is written, warnings begin and
//! end.
//!
//! Runs once a second on the thread `xvs-fleet`. The control thread applies the rules as `xvs apply` does: all or
//! nothing. A trial has a separate time limit there, so it ends even if this thread or etcd does not respond.

use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::geteuid;
use sha2::{Digest, Sha256};
use xvs_ctl::config::fleet::Fleet;
use xvs_ctl::events::{changes, log_changes};
use xvs_ipvsadm::{SystemResolver, read_wanted};
use xvs_model::config::command::Command;
use xvs_model::config::refusal::CommandError;
use xvs_model::duration;
use xvs_model::protocol::question::{ControlRequest, Reply};
use xvs_model::protocol::request::Verdict;
use xvs_model::report::event::Requester;
use xvs_model::report::fleet::{FleetDirector, FleetReport, RefusedRules, RunningRules, Silence, Trial};
use xvs_model::report::warning::Warning;
use xvs_model::report::warning::WarningKind::*;

use crate::fleet::answer::cut;
use crate::fleet::etcd::{Etcd, EtcdError, Keys};
use crate::fleet::follow::{Followed, Key, RunningTrial, Step};
use crate::fleet::kept::{Kept, KeptFile};
use crate::fleet::named_files;
use crate::fleet::record::{Record, director_of};
use crate::fleet::settling::Settling;
use crate::fleet_view::{FleetView, State};
use crate::handle::Handle;

/// Maximum duration of a trial. `xvs` requests no longer one; other programs may write the key with a lease of any
/// length.
const TRIAL_MAX: Duration = Duration::from_secs(31 * 86_400);
/// The time after the end of a trial in etcd until a director without answers of etcd ends the trial.
const TRIAL_GRACE: Duration = Duration::from_secs(3);
/// The time after the end of a trial in etcd until the control thread ends the trial, in case this thread is delayed.
const CONTROL_GRACE_SECONDS: u32 = 5;
/// The number of queries without a response before there is a warning. A restart of a member causes one.
const FAILURES: u32 = 2;

/// The follower of the rules in etcd.
pub(super) struct Follower {
    pub(super) etcd: Etcd,
    daemon: Handle,
    view: Arc<FleetView>,
    fleet: String,
    director: String,
    files_folder: Option<PathBuf>,
    file: KeptFile,
    kept: Kept,
    followed: Followed,
    /// The commands of the rules in force; `None` if their text is not read yet.
    rules: Option<Vec<Command>>,
    record: Record,
    /// The last answer of etcd.
    keys: Keys,
    /// The number of queries without a response since the last answer.
    failures: u32,
    /// When etcd answered last, or the follower was created.
    heard: Instant,
    silent: Option<Silence>,
    /// Why the record is not written.
    unwritten: Option<String>,
    /// Whether rules from etcd wait because rules applied by hand wait to be confirmed.
    is_held_up: bool,
    settling: Settling,
}

impl Follower {
    /// A follower with the facts in `file` of an earlier process, and whether the rules of that process are in force.
    pub(super) fn new(
        fleet: &Fleet,
        (file, is_as_kept): (KeptFile, bool),
        daemon: Handle,
        view: Arc<FleetView>,
    ) -> Self {
        let name = fleet.name.clone().unwrap_or_default();
        let mut kept = file.read(&name);
        if !is_as_kept {
            kept.runs = None;
        }
        let mut followed = Followed::default();
        followed.runs.clone_from(&kept.runs);
        followed.ended_trial = kept.ended_trial;
        (followed.seen.cluster, followed.seen.revision) = (kept.cluster, kept.revision);
        let director = fleet.director();
        Self {
            etcd: Etcd::new(fleet),
            daemon,
            view,
            fleet: name,
            record: Record::new(director.clone(), kept.instance.clone()),
            director,
            files_folder: fleet.files_folder.clone(),
            file,
            kept,
            followed,
            rules: None,
            keys: Keys::default(),
            failures: 0,
            heard: Instant::now(),
            silent: None,
            unwritten: None,
            is_held_up: false,
            settling: Settling::default(),
        }
    }

    /// Queries etcd once, and acts on the result. Returns whether it responds.
    pub(super) async fn round(&mut self) -> bool {
        let before = self.rules_state();
        match self.look().await {
            Ok(()) => (self.failures, self.silent, self.heard) = (0, None, Instant::now()),
            Err(why) => self.has_failed(&why),
        }
        let changed = before != self.rules_state();
        self.record.look(&self.daemon, self.rules.as_deref(), changed);
        if self.failures == 0 {
            let record = self.present();
            self.unwritten = match self.record.write(&mut self.etcd, &self.keys, &record).await {
                Err(why) => Some(why.to_string()),
                // The record stays unwritten until the next attempt.
                Ok(()) => self.unwritten.take().filter(|_| self.record.waits()),
            };
        }
        self.keep();
        self.show();
        self.failures == 0
    }

    /// The state of the rules for other directors, if it has changed.
    fn rules_state(&self) -> (Option<RunningRules>, Option<RefusedRules>, bool) {
        (self.followed.in_force().cloned(), self.followed.refused().cloned(), self.rules.is_some())
    }

    /// Ends the record.
    pub(super) async fn end(&mut self) {
        // An answer may be under way on it.
        self.etcd.disconnect();
        self.record.end(&mut self.etcd).await;
    }

    async fn look(&mut self) -> Result<(), EtcdError> {
        self.keys = self.etcd.keys().await?;
        self.is_held_up = false;
        match self.followed.see(self.keys.seen, Instant::now()) {
            Step::Keep if self.has_unread_rules() => self.take(Key::Rules).await,
            Step::Keep => Ok(()),
            Step::EndTrial => {
                self.end_trial("its time is over");
                Ok(())
            }
            Step::Take(key) => self.take(key).await,
        }
    }

    /// Whether the text of the rules in force was not read yet: after a restart, or a trial.
    fn has_unread_rules(&self) -> bool {
        let Followed { seen, trial, .. } = &self.followed;
        let refused = self.followed.refused().map(|refused| refused.revision);
        self.rules.is_none() && seen.rules.is_some() && trial.is_none() && seen.rules != refused
    }

    fn has_failed(&mut self, why: &EtcdError) {
        self.failures += 1;
        if self.followed.trial_is_over(Instant::now()) {
            self.end_trial("its time is over, and etcd does not answer");
        }
        if self.failures >= FAILURES || self.keys.seen.revision == 0 {
            self.silent = Some(Silence { why: why.to_string(), seconds: self.heard.elapsed().as_secs() });
        }
    }

    /// Reads the text of a key, and puts it in force unless it already is.
    async fn take(&mut self, key: Key) -> Result<(), EtcdError> {
        let name = if key == Key::Trial { "trial" } else { "rules" };
        let Some((revision, text)) = self.etcd.text(name).await? else { return Ok(()) };
        let rules = RunningRules { revision, sha256: format!("{:x}", Sha256::digest(&text)) };
        if let Some(trial) = &self.followed.trial {
            if key == Key::Rules && trial.rules.sha256 == rules.sha256 && self.is_confirmed(trial) {
                tracing::info!("etcd: the rules of revision {revision} are confirmed");
                self.followed.trial = None;
                self.followed.takes(rules);
                return Ok(());
            }
            self.end_trial("others have taken its place");
        }
        let now = Instant::now();
        let commands = match parsed(&text) {
            Ok(commands) => commands,
            Err(why) => {
                self.followed.refuses(revision, cut(why), now);
                return Ok(());
            }
        };
        if key == Key::Rules && self.followed.runs.as_ref().is_some_and(|runs| runs.sha256 == rules.sha256) {
            // Changes by hand stay, as after a restart without a fleet.
            self.rules = Some(commands);
            self.followed.takes(rules);
            return Ok(());
        }
        // Rules that are already in force, since before an upgrade or a change of the directory, stay.
        if let Err(why) = named_files::check(&commands, self.files_folder.as_deref()) {
            self.followed.refuses(revision, cut(why), now);
            return Ok(());
        }
        if self.daemon.shared().facts().unconfirmed_until.is_some() {
            self.is_held_up = true;
            return Ok(());
        }
        let left = match key {
            Key::Rules => None,
            Key::Trial => match self.etcd.time_left(self.keys.trial_lease).await? {
                Duration::ZERO => return Ok(()),
                left => Some(left),
            },
        };
        self.apply(rules, commands, left, now);
        Ok(())
    }

    /// Applies rules; with a time, as a trial.
    fn apply(&mut self, rules: RunningRules, commands: Vec<Command>, left: Option<Duration>, now: Instant) {
        let left = left.map(|left| left.min(TRIAL_MAX));
        let has_changed = match self.request(ControlRequest::Apply {
            rules: commands.clone(),
            confirm_within_seconds: left.map(control_seconds),
            keeps_locals: true,
        }) {
            Ok(Reply::Applied(differences)) => !differences.is_empty(),
            Ok(_) => false,
            Err(error) => match error.refusal() {
                Some(refusal) => {
                    return self.followed.refuses(rules.revision, cut(refusal.to_string()), now);
                }
                // The rules are published, and a worker is late.
                None => true,
            },
        };
        let RunningRules { revision, sha256 } = &rules;
        let for_a_time = left.map(|left| format!(" for {} s", left.as_secs())).unwrap_or_default();
        tracing::info!("etcd: the rules of revision {revision} are in force{for_a_time}; SHA-256 {sha256}");
        self.rules = Some(commands);
        match left {
            None => self.followed.takes(rules),
            Some(left) => {
                let until = now + left + TRIAL_GRACE;
                self.followed.trial = Some(RunningTrial { rules, until, waits: has_changed });
            }
        }
    }

    /// Whether the trial's rules stay from now on.
    fn is_confirmed(&self, trial: &RunningTrial) -> bool {
        !trial.waits || self.request(ControlRequest::Confirm(Verdict::Keep)).is_ok()
    }

    /// Returns to the rules before the trial.
    fn end_trial(&mut self, why: &str) {
        let Some(trial) = self.followed.trial.take() else { return };
        tracing::warn!("etcd: the trial of revision {} has ended: {why}", trial.rules.revision);
        if trial.waits && self.request(ControlRequest::Confirm(Verdict::TakeBack)).is_err() {
            // The control thread has already taken the trial back, or an operator has confirmed it on this director.
            self.followed.runs = None;
        }
        self.rules = None;
    }

    /// A change of the control thread, with its lines in log and events.
    fn request(&self, request: ControlRequest) -> Result<Reply, CommandError> {
        let by = Requester {
            uid: geteuid().as_raw(),
            pid: process::id().try_into().unwrap_or(0),
            program: "xvs-fleet".to_owned(),
        };
        let answer = self.daemon.request_by(request.clone(), Some(by.clone()));
        log_changes(changes(&request, &answer), &by);
        answer
    }

    fn keep(&mut self) {
        let Followed { seen, runs, ended_trial, .. } = &self.followed;
        if (&self.kept.runs, self.kept.ended_trial) != (runs, *ended_trial) {
            (self.kept.cluster, self.kept.revision) = (seen.cluster, seen.revision);
            (self.kept.runs, self.kept.ended_trial) = (runs.clone(), *ended_trial);
        }
        self.file.write(&self.kept);
    }

    /// The current record of this director.
    fn present(&self) -> FleetDirector {
        FleetDirector {
            runs: self.followed.in_force().cloned(),
            refused: self.followed.refused().cloned(),
            ..self.record.present()
        }
    }

    /// Updates the view of other threads.
    fn show(&mut self) {
        let warnings = self.found_warnings();
        let shared = self.daemon.shared();
        let epoch = shared.published.load().epoch;
        shared.events.record_warnings(epoch, &self.view.state().warnings, &warnings);
        let present = self.present();
        let director = present.name.raw().to_owned();
        let mut directors: Vec<_> =
            self.keys.directors.iter().filter(|entry| !self.record.wrote(entry)).map(director_of).collect();
        directors.push(present);
        directors.sort_by(|one, other| one.name.cmp(&other.name));
        let now = Instant::now();
        let running = self.followed.trial.as_ref();
        let mut report = FleetReport {
            fleet: self.fleet.clone(),
            director,
            etcd: (self.keys.seen.revision > 0).then(|| self.etcd.url().to_owned()),
            silent: self.silent.clone(),
            rules: self.keys.seen.rules,
            trial: self.keys.seen.trial.map(|revision| Trial {
                revision,
                seconds_left: running.map(|trial| trial.until.saturating_duration_since(now).as_secs()),
            }),
            // The view adds the warnings of the state.
            warnings: Vec::new(),
            directors,
            settling: Vec::new(),
        };
        report.settling = self.settling.look(&report, now);
        *self.view.state() = State { report, warnings, looked: now };
    }

    /// The current warnings.
    fn found_warnings(&self) -> Vec<Warning> {
        let mut all = Vec::new();
        let mut warn = |kind, object: &str, text| all.push(Warning::new(kind, object, text));
        let Self { fleet, director, .. } = self;
        let seen = self.keys.seen;
        let (services, _) = self.daemon.shared().published.load().configured();
        let stays = match self.followed.in_force() {
            _ if services == 0 => "no rules are in force",
            Some(_) => "the last rules stay in force",
            None => "the rules that xvsd began with stay in force",
        };
        if let Some(Silence { why, seconds }) = &self.silent {
            let time = duration::in_words(*seconds);
            let text = format!(
                "etcd has not answered for {time}, and {stays}: {why}; start it there, or correct `etcd` in [fleet] of \
                 xvs.toml"
            );
            warn(EtcdSilent, "", text);
        } else if seen.rules.is_none() && seen.trial.is_none() {
            let text = format!(
                "etcd has no rules for fleet {fleet}, and {stays}; `xvs fleet apply FILE` writes them"
            );
            warn(FleetRulesMissing, "", text);
        }
        if let Some(RefusedRules { revision, why }) = self.followed.refused() {
            let stays = match self.followed.in_force() {
                Some(runs) => format!("those of revision {} stay", runs.revision),
                None => "the former ones stay".to_owned(),
            };
            let text = format!(
                "the rules of revision {revision} in etcd are refused, and {stays} in force: {why}; correct that, and \
                 `xvs fleet apply FILE`"
            );
            warn(FleetRulesRefused, &revision.to_string(), text);
        }
        if self.is_held_up {
            let text = "new rules in etcd wait, because rules applied by hand wait to be confirmed; `xvs confirm` or `xvs \
                        confirm --take-back` ends that";
            warn(FleetRulesWait, "", text.to_owned());
        }
        if let Some((before, after)) = self.followed.rolled_back {
            let text = format!(
                "etcd was restored from a backup, or is another one: it had revision {before} and then {after}; its \
                 rules are in force as they are there now; `xvs fleet apply FILE` writes the newest"
            );
            warn(FleetRolledBack, "", text);
        }
        for other in self.record.of_same_name(&self.keys.directors) {
            let text = format!(
                "another director of fleet {fleet} has the name {director} too, on {}; give one of them another name: \
                 `director` in [fleet] of xvs.toml",
                other.host
            );
            warn(FleetNameTaken, &other.instance.to_string(), text);
        }
        if let Some(why) = &self.unwritten {
            let text = format!(
                "other directors do not see this one as it is, because its record is not written: {why}"
            );
            warn(FleetRecordUnwritten, "", text);
        }
        all
    }
}

/// The number of seconds after which the control thread ends a trial that has this time left.
fn control_seconds(left: Duration) -> u32 {
    u32::try_from(left.as_secs()).unwrap_or(u32::MAX).saturating_add(CONTROL_GRACE_SECONDS)
}

/// The commands of a rules file.
///
/// # Errors
/// The faults in the text.
fn parsed(text: &[u8]) -> Result<Vec<Command>, String> {
    // A comment may be in any encoding.
    match read_wanted(&String::from_utf8_lossy(text), &SystemResolver::default()) {
        Ok((commands, _)) if commands.is_empty() => {
            Err("there are no rules in them; to delete all services, write the line -C".to_owned())
        }
        Ok((commands, _)) => Ok(commands),
        Err(faults) => Err(faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_thread_never_ends_a_trial_before_its_time() {
        for seconds in [0, 60, u64::from(u32::MAX) - 2, u64::MAX] {
            let control = control_seconds(Duration::from_secs(seconds));
            assert!(u64::from(control) >= seconds.min(u32::MAX.into()), "{seconds}: {control}");
        }
        let left = Duration::from_secs(u64::MAX).min(TRIAL_MAX);
        assert!(Instant::now().checked_add(left + TRIAL_GRACE).is_some(), "of any lease");
    }

    #[test]
    fn a_text_without_rules_or_with_faults_is_refused_with_its_lines() {
        assert_eq!(parsed(b"-A -t 192.0.2.1:80 -s rr\n").map(|commands| commands.len()), Ok(1));
        assert!(parsed(b"# nothing\n").unwrap_err().starts_with("there are no rules in them"));
        assert!(parsed(b"-C\n").is_ok());
        let why = parsed(b"-A -t 192.0.2.1:80 -s rr\n-X\n-A -t 192.0.2.1:80 -s rr\n").unwrap_err();
        assert!(why.starts_with("line 2: ") && why.contains("; line 3: "), "{why}");
        assert!(parsed(b"\xff\xfe").is_err());
    }
}
