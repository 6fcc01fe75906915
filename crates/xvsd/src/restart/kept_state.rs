//! The state that outlives xvsd: its directory, the connection table in it, and the numbers of destinations.
//!
//! Runs once, at the start. If the default directory cannot be used, xvsd continues without it, with a warning; if a
//! configured one cannot be used, the start fails. `serve.rs` determines the order of the start.
//!
//! The table goes through three types. A [`PreparedTable`] may still be in use by another process; no process uses a
//! [`PausedTable`]; [`SurveyedTable::own`] returns the [`Table`] itself. Workers, sweeper, listings and the sender of
//! synchronization need a [`Table`], so none of them runs earlier.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use xvs_ctl::config::{Config, ConfigError};
use xvs_ctl::control::Control;
use xvs_ctl::control::datapath::Datapath;
use xvs_ctl::registry::kept::{Found, Kept};
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::{
    AdoptError, Boot, ConnId, Connection, Flags, FormerTable, Repair, Survey, Table, TableConfig, TableFiles,
    random_secret,
};
use xvs_dataplane::shm::{Memory, allocate_huge};
use xvs_dataplane::snapshot::{Counts, DestinationId};
use xvs_host::notice::Notice;
use xvs_host::state_directory::{Others, StateDirectory, StateDirectoryError};
use xvs_host::{boot, instance};
use xvs_model::report::warning::{Warning, WarningKind};
use xvs_proto::HashSecret;

use crate::error::{DaemonError, system};
use crate::restart::take_over::TakeOver;

/// The state with which the daemon starts.
pub(crate) struct KeptState {
    /// The connection table.
    pub(crate) table: PreparedTable,
    /// The directory; `None` if nothing outlives the process.
    pub(crate) directory: Option<StateDirectory>,
    /// The warnings about them, which stay.
    pub(crate) warnings: Vec<Warning>,
}

impl KeptState {
    /// Opens the directory, and maps the table that an earlier process has left there, or makes one. `over` is the
    /// control group's limit that the full table exceeds.
    ///
    /// # Errors
    /// The configured directory, or that of the running process, cannot be used. Or there is no memory for the table.
    pub(crate) fn open(
        config: &Config,
        table: TableConfig,
        over: Option<ConfigError>,
        others: Others,
    ) -> Result<Self, DaemonError> {
        let may_do_without = others == Others::Ended && !config.is_given("state_directory");
        let parent = match (&config.state_directory, over) {
            (None, _) if others == Others::Run => {
                return Err(DaemonError::TakeOver("state_directory is \"\"".to_owned()));
            }
            (None, None) => return Self::in_memory(table, Vec::new()),
            (None, Some(over)) if table.memory != Memory::Resident => {
                let text = format!("once the table is full: {over}");
                return Self::in_memory(table, vec![Warning::new(WarningKind::MemoryLimit, "", text)]);
            }
            // In files all of it is allocated at once.
            (Some(_), Some(over)) if table.memory != Memory::Resident && may_do_without => {
                return Self::in_memory(table, vec![without(&over)]);
            }
            (_, Some(over)) => return Err(over.into()),
            (Some(parent), None) => parent,
        };
        let directory = match StateDirectory::open(parent, &instance::name_of(&config.socket), others) {
            Err(error) if may_do_without => return Self::in_memory(table, vec![without(&error)]),
            directory => directory?,
        };
        if let Some(left) = directory.left_by_others() {
            tracing::warn!("state_directory: {left}");
        }
        let (mut table, mut warnings) = match Self::table_in(&directory, table, others) {
            // There may still be room for the rest.
            Err(DaemonError::StateDirectory(error)) if may_do_without => {
                let Self { table, warnings, .. } = Self::in_memory(table, vec![without(&error)])?;
                (table, warnings)
            }
            found => {
                let (source, warnings) = found?;
                (PreparedTable { source, numbers: None }, warnings)
            }
        };
        table.numbers = Some(numbers(&directory)?);
        for Notice { object, text } in directory.all_set_aside() {
            warnings.push(Warning::new(WarningKind::FileSetAside, object, text));
        }
        Ok(Self { table, directory: Some(directory), warnings })
    }

    /// A new table that does not outlive the process.
    fn in_memory(table: TableConfig, warnings: Vec<Warning>) -> Result<Self, DaemonError> {
        let table = Table::create(table).map_err(system("the connection table"))?;
        let table = PreparedTable { source: Origin::New(table), numbers: None };
        Ok(Self { table, directory: None, warnings })
    }

    /// The table in this directory.
    fn table_in(
        directory: &StateDirectory,
        config: TableConfig,
        others: Others,
    ) -> Result<(Origin, Vec<Warning>), DaemonError> {
        let boot = Boot(boot::id().map_err(|error| failed(directory, error))?);
        let mut warnings = Vec::new();
        let files =
            TableFiles { connections: directory.file(CONNECTIONS)?, extensions: directory.file(EXTENSIONS)? };
        let is_new = [&files.connections, &files.extensions]
            .map(|file| Ok(file.metadata()?.len()))
            .into_iter()
            .all(|length: io::Result<u64>| length.is_ok_and(|bytes| bytes == 0));
        let source = match (FormerTable::map(&files, config, boot), others) {
            (Ok(table), Others::Ended) => Origin::Killed(table),
            (Ok(table), Others::Run) => {
                // Now, when the other process still forwards.
                table.touch();
                Origin::HandedOver(table)
            }
            (Err(AdoptError::Refused(why)), Others::Run) => {
                return Err(DaemonError::TakeOver(format!("its connection table is refused: {why}")));
            }
            (Err(AdoptError::Refused(why)), Others::Ended) => {
                if !is_new {
                    let path = directory.path().join(CONNECTIONS);
                    let path = path.display();
                    let text = format!(
                        "xvsd has begun with an empty connection table, because that of {path} is refused: {why}"
                    );
                    warnings.push(Warning::new(WarningKind::TableRefused, path, text));
                }
                Origin::New(new_table(directory, config, boot)?)
            }
            (Err(AdoptError::Kernel(error)), _) => return Err(failed(directory, error).into()),
        };
        Ok((source, warnings))
    }

    /// Lets the control plane return to the names and numbers of destinations.
    pub(crate) fn return_to<D: Datapath>(&self, control: &mut Control<D>, now: Millis) {
        if let Some(Numbers { found, .. }) = &self.table.numbers {
            control.return_to(found, now);
        }
    }
}

/// Creates a table in new files in this directory.
fn new_table(
    directory: &StateDirectory,
    config: TableConfig,
    boot: Boot,
) -> Result<Arc<Table>, StateDirectoryError> {
    let [connections, extensions] = config.file_bytes().map_err(|error| failed(directory, error))?;
    let mut are_huge = false;
    let connections = directory.new_file(CONNECTIONS, connections, |file| {
        are_huge = config.memory != Memory::SmallPages && allocate_huge(file);
    })?;
    let extensions = directory.new_file(EXTENSIONS, extensions, |file| {
        let _ = config.memory != Memory::SmallPages && allocate_huge(file);
    });
    // Half of a table would take room for nothing.
    let extensions = extensions.inspect_err(|_| _ = directory.remove(CONNECTIONS))?;
    let files = TableFiles { connections, extensions };
    let secret = random_secret().map_err(|error| failed(directory, error))?;
    let table = Table::create_in(&files, config, secret, boot).map_err(|error| failed(directory, error))?;
    table.note_huge_pages(are_huge);
    Ok(table)
}

/// Where a table comes from.
enum Origin {
    /// It is new and empty.
    New(Arc<Table>),
    /// A process that has ended has left it, perhaps in the middle of a change.
    Killed(FormerTable),
    /// A process that runs hands it over, in order.
    HandedOver(FormerTable),
}

/// The numbers of destinations and of services in their files.
struct Numbers {
    kept: Kept,
    found: Found,
    /// The directory of the files.
    path: PathBuf,
}

/// A table that another process may still use.
pub(crate) struct PreparedTable {
    source: Origin,
    /// `None` if they do not outlive this process.
    numbers: Option<Numbers>,
}

/// A table that no process uses.
pub(crate) struct PausedTable {
    prepared: PreparedTable,
    /// When it may still have been in use.
    since: Millis,
}

/// A table that no process uses, after it was read.
pub(crate) struct SurveyedTable {
    source: Origin,
    /// `None` if it is new.
    survey: Option<Survey>,
    numbers: Option<Numbers>,
    /// The connections of each destination, by number; `None` if the process that hands over leaves them.
    counts: Option<Vec<Counts>>,
    /// The connections that the limits of their clients count.
    limited: Vec<ConnId>,
}

impl PreparedTable {
    /// The secret that keys its hash.
    pub(crate) fn secret(&self) -> HashSecret {
        match &self.source {
            Origin::New(table) => *table.secret(),
            Origin::Killed(table) | Origin::HandedOver(table) => *table.secret(),
        }
    }

    /// The number of its entries.
    pub(crate) fn entries(&self) -> usize {
        match &self.source {
            Origin::New(table) => table.entries(),
            Origin::Killed(table) | Origin::HandedOver(table) => table.entries(),
        }
    }

    /// Lets a running xvsd close its sockets. If it has ended, this process already has the directory's lock.
    ///
    /// # Errors
    /// It does not answer, has given up, or does not hand the table over.
    pub(crate) fn pause(self, from: Option<&mut TakeOver>, now: Millis) -> Result<PausedTable, DaemonError> {
        match (&self.source, from) {
            (_, Some(from)) => from.pause()?,
            (Origin::HandedOver(_), None) => {
                return Err(DaemonError::TakeOver("it hands nothing over".to_owned()));
            }
            (Origin::New(_) | Origin::Killed(_), None) => {}
        }
        Ok(PausedTable { prepared: self, since: now })
    }
}

impl PausedTable {
    /// Reads the table, unless the process that hands over has left it in order, and repairs what a dead process has
    /// left in it. `progress` is called repeatedly.
    pub(crate) fn survey(self, now: Millis, progress: impl Fn() + Sync) -> SurveyedTable {
        let Self { prepared: PreparedTable { mut source, numbers }, since } = self;
        if let Origin::HandedOver(table) = &source
            && let Some(survey) = table.left_since(since)
        {
            return SurveyedTable {
                source,
                survey: Some(survey),
                numbers,
                counts: None,
                limited: Vec::new(),
            };
        }
        let known: BTreeSet<u32> = numbers.iter().flat_map(|numbers| numbers.found.numbers()).collect();
        if let Origin::Killed(table) = &mut source {
            let Repair { discarded, is_rebuilt } = table.repair(
                now,
                |number| known.contains(&number) || DestinationId(number) == DestinationId::NONE,
                &progress,
            );
            if discarded > 0 {
                tracing::warn!("connections: {discarded} incomplete ones are discarded");
            }
            if is_rebuilt {
                tracing::info!("connections: the index of their table was built anew");
            }
        }
        let mut counts = vec![Counts::default(); known.last().map_or(0, |last| *last as usize + 1)];
        let mut limited = Vec::new();
        let survey = match &source {
            Origin::New(_) => None,
            Origin::Killed(table) | Origin::HandedOver(table) => Some(table.survey(
                |connection: &Connection<'_>| {
                    if connection.flags().is_limited() {
                        limited.push(connection.id());
                    }
                    if let Some(counts) = counts.get_mut(connection.dest_ref() as usize) {
                        counts.count(connection);
                    }
                },
                progress,
            )),
        };
        SurveyedTable { source, survey, numbers, counts: Some(counts), limited }
    }
}

impl SurveyedTable {
    /// Takes the table, and lets the control plane continue with the numbers of destinations. From then on the former
    /// xvsd cannot simply continue.
    ///
    /// # Errors
    /// It does not answer, or has given up; then it continues.
    pub(crate) fn own<D: Datapath>(
        self,
        from: Option<&mut TakeOver>,
        control: &mut Control<D>,
    ) -> Result<Arc<Table>, DaemonError> {
        let Self { source, survey, numbers, counts, limited } = self;
        from.map(TakeOver::take_table).transpose()?;
        let is_handed_over = matches!(source, Origin::HandedOver(_));
        let table = match (source, survey) {
            (Origin::New(table), _) => table,
            (Origin::Killed(table) | Origin::HandedOver(table), survey) => {
                let survey = survey.expect("a former table was surveyed");
                tracing::info!("connections: {} are taken over", survey.live);
                table.take_over(&survey)
            }
        };
        if let Some(Numbers { mut kept, mut found, path }) = numbers {
            if is_handed_over {
                kept.read_numbers(&mut found).map_err(|error| StateDirectoryError::System { path, error })?;
            }
            control.resume(kept, found, counts.as_deref());
        }
        for connection in limited.into_iter().map(|id| table.surveyed(id)) {
            if !control.resume_client(&connection) {
                // Prevents it from being counted out at its end.
                let _ = connection.clear_flags(Flags::LIMITED);
            }
        }
        Ok(table)
    }
}

/// The warning that goes with a table in memory.
fn without(error: &dyn Display) -> Warning {
    let text = format!("a restart of xvsd will lose all connections: state_directory: {error}");
    Warning::new(WarningKind::StateDirectory, "", text)
}

fn numbers(directory: &StateDirectory) -> Result<Numbers, StateDirectoryError> {
    let (kept, found) = Kept::open(directory.file(DESTINATIONS)?, directory.file(SERVICES)?)
        .map_err(|error| failed(directory, error))?;
    Ok(Numbers { kept, found, path: directory.path().to_owned() })
}

fn failed(directory: &StateDirectory, error: io::Error) -> StateDirectoryError {
    StateDirectoryError::System { path: directory.path().to_owned(), error }
}

/// The files of the directory.
const CONNECTIONS: &str = "connections";
const EXTENSIONS: &str = "extensions";
const DESTINATIONS: &str = "destinations";
const SERVICES: &str = "services";

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{chown, symlink};
    use std::path::Path;

    use rustix::fs::{CWD, FileType, MemfdFlags, Mode, memfd_create, mknodat};
    use xvs_ctl::control::saving::Begun;
    use xvs_ctl::in_memory::MemoryDatapath;
    use xvs_ctl::journal::start::{Beginning, Files};
    use xvs_dataplane::conn::{Inserted, NewConnection, Spare};
    use xvs_dataplane::snapshot::Activity;
    use xvs_dataplane::snapshot::clients::ClientSettings;
    use xvs_ipvsadm::{SystemResolver, read_rules};
    use xvs_model::config::load_feedback::Feedback;
    use xvs_model::config::settings::Ipvs;
    use xvs_model::protocol::question::ControlRequest;
    use xvs_model::report::setting::Source;
    use xvs_model::report::warning::texts;
    use xvs_proto::{Endpoint, HashSecret, Protocol};
    use xvs_sched::{ForwardingMethod, Load};

    use crate::last_hour::LastHour;
    use crate::restart::kept_health::KeptHealth;
    use crate::restart::kept_hour::KeptHour;
    use crate::restart::kept_state::*;

    /// The state that a starting xvsd finds.
    struct Started {
        secret: [u64; 3],
        warnings: Vec<String>,
        /// Whether there are numbers of destinations, of a service, a journal and counts of the last hour.
        found: [bool; 4],
    }

    /// Starts with the state in this directory like xvsd, writes all files, and ends as if killed.
    fn start(parent: &Path) -> Started {
        let config = Config {
            state_directory: Some(parent.to_owned()),
            sources: [("state_directory".to_owned(), Source::Toml)].into(),
            ..Config::default()
        };
        let table = TableConfig { capacity: 1024, workers: 1, memory: Memory::OnDemand };
        let kept = KeptState::open(&config, table, None, Others::Ended).unwrap();
        let secret = kept.table.secret().0;
        let KeptState { table, directory, warnings } = kept;
        let mut warnings = texts(&warnings);
        let directory = directory.unwrap();
        let found = &table.numbers.as_ref().unwrap().found;
        let [destinations, services] = [found.numbers().count() > 0, found.services().count() > 0];
        let begin = Beginning::of_directory(directory.path(), Files::default(), directory.others()).unwrap();
        warnings.extend(begin.said);
        let mut control = control();
        control.begin_journal(Begun { journal: begin.journal, ..Begun::default() }, Millis(0)).unwrap();
        let table = table.pause(None, Millis(0)).unwrap().survey(Millis(0), || {});
        table.own(None, &mut control).unwrap();
        let health = KeptHealth::new(directory.path());
        health.write(&health.read());
        let hour = (KeptHour::new(directory.path()), LastHour::default());
        let counts = hour.0.read();
        let found = [destinations, services, begin.saved_at_millis.is_some(), counts.is_some()];
        hour.1.begin(Millis(0), counts, Vec::new, Vec::new);
        hour.0.write(&hour.1);
        Started { secret, warnings, found }
    }

    #[test]
    fn after_any_fault_of_any_file_xvsd_starts_names_the_file_and_keeps_its_state_again() {
        let parent = Path::new("/dev/shm").join(format!("xvs-test-{}-faults", std::process::id()));
        let _ = fs::remove_dir_all(&parent);
        let own = parent.join(instance::name_of(&Config::default().socket));
        start(&parent);
        let names =
            [CONNECTIONS, EXTENSIONS, DESTINATIONS, SERVICES, "journal", "health", "last_hour", "lock"];
        let faults =
            ["cut", "longer", "sparse", "empty", "missing", "directory", "link", "pipe", "another user's"];
        for (name, fault) in names.iter().flat_map(|name| faults.map(|fault| (*name, fault))) {
            let before = start(&parent);
            assert_eq!((&before.warnings[..], before.found), (&[][..], [true; 4]), "before {name}, {fault}");
            let path = own.join(name);
            let bytes = fs::metadata(&path).unwrap().len();
            let length = |bytes| File::options().write(true).open(&path).unwrap().set_len(bytes).unwrap();
            match fault {
                "cut" => length(bytes / 2 + 1),
                "longer" => length(bytes + 4097),
                "sparse" => length(1 << 50),
                "empty" => length(0),
                "another user's" => chown(&path, Some(65534), None).unwrap(),
                _ => fs::remove_file(&path).unwrap(),
            }
            match fault {
                "directory" => fs::create_dir_all(path.join("with a folder")).unwrap(),
                "link" => symlink("/etc/hostname", &path).unwrap(),
                "pipe" => mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap(),
                _ => {}
            }
            let first = start(&parent);
            let is_of_the_table = [CONNECTIONS, EXTENSIONS].contains(&name);
            let is_no_file = ["directory", "link", "pipe", "another user's"].contains(&fault);
            // A file that can be read again is not worth a warning in `xvs status`; the log has it.
            let is_named = is_of_the_table || is_no_file;
            let is_said = first.warnings.iter().any(|warning| warning.contains(name));
            assert!(!is_named || is_said, "{name}, {fault}: {:?}", first.warnings);
            let is_another_table = first.secret != before.secret;
            assert_eq!(is_another_table, is_of_the_table, "{name}, {fault}: {:?}", first.warnings);
            let again = start(&parent);
            assert_eq!(
                (&again.warnings[..], again.found, again.secret == first.secret),
                (&[][..], [true; 4], true),
                "after {name}, {fault}"
            );
        }
        fs::remove_dir_all(&parent).unwrap();
    }

    #[test]
    fn a_default_folder_that_another_user_has_made_first_costs_the_state_until_it_is_removed_as_the_warning_says()
     {
        let parent = Path::new("/dev/shm").join(format!("xvs-test-{}-squatted", std::process::id()));
        let config = Config { state_directory: Some(parent.clone()), ..Config::default() };
        let open = || {
            let table = TableConfig { capacity: 1024, workers: 1, memory: Memory::OnDemand };
            KeptState::open(&config, table, None, Others::Ended).unwrap()
        };
        let _ = fs::remove_dir_all(&parent);
        fs::create_dir(&parent).unwrap();
        chown(&parent, Some(65534), None).unwrap();
        let KeptState { directory, warnings, .. } = open();
        let step = format!("else `rm -r {}`; then restart xvsd", parent.display());
        assert!(
            directory.is_none() && warnings.len() == 1 && warnings[0].text.contains(&step),
            "{warnings:?}"
        );
        fs::remove_dir_all(&parent).unwrap();
        let KeptState { directory, warnings, .. } = open();
        assert!(directory.is_some() && warnings.is_empty(), "{warnings:?}");
        fs::remove_dir_all(&parent).unwrap();
    }

    const OVER: &str = "a limit";

    /// Opens with a table beyond the limit of a control group. Returns the warnings, or the error.
    fn open(
        directory: Option<&Path>,
        is_given: bool,
        memory: Memory,
        others: Others,
    ) -> Result<Vec<String>, String> {
        let key = ("state_directory".to_owned(), Source::Toml);
        let config = Config {
            state_directory: directory.map(Path::to_owned),
            sources: is_given.then_some(key).into_iter().collect(),
            ..Config::default()
        };
        let over = ConfigError::Value { key: OVER, value: String::new(), why: "" };
        let table = TableConfig { capacity: 1024, workers: 1, memory };
        let kept = KeptState::open(&config, table, Some(over), others).map_err(|error| error.to_string())?;
        assert!(kept.directory.is_none());
        Ok(texts(&kept.warnings))
    }

    fn empty_control() -> Control<MemoryDatapath> {
        Control::new(MemoryDatapath::default(), 1, Ipvs::default(), Feedback::default())
    }

    /// A control plane that has a service with one real server.
    fn control() -> Control<MemoryDatapath> {
        let mut control = empty_control();
        let rules = "-A -t 192.0.2.1:80 -s rr\n-a -t 192.0.2.1:80 -r 192.0.2.11:80 -m\n";
        let rules = read_rules(rules, &SystemResolver::default()).unwrap();
        let commands = rules.into_iter().map(|rule| rule.command).collect();
        control.handle(&ControlRequest::Restore(commands), Millis(0)).unwrap();
        control
    }

    /// An empty file.
    fn file() -> File {
        File::from(memfd_create("numbers", MemfdFlags::CLOEXEC).unwrap())
    }

    #[test]
    fn a_successor_begins_with_the_counts_that_a_table_was_left_with_and_does_not_walk_it() {
        let [destinations, services] = [file(), file()];
        let kept = || Kept::open(destinations.try_clone().unwrap(), services.try_clone().unwrap()).unwrap();
        let live = |control: &Control<MemoryDatapath>| {
            control.published().load().destinations.find(DestinationId(0)).unwrap().live.clone()
        };
        let mut former = control();
        let (new, found) = kept();
        former.resume(new, found, None);
        for (activity, number) in [(Activity::Active, 3), (Activity::Inactive, 2), (Activity::Template, 1)] {
            (0..number).for_each(|_| live(&former).increment(activity));
        }
        former.save_numbers();
        let counted = Counts { load: Load { active: 3, inactive: 2 }, templates: 1 };
        for (since, counts) in [(Millis(5), counted), (Millis(6), Counts::default())] {
            let mut successor = empty_control();
            let (kept, found) = kept();
            successor.return_to(&found, Millis(0));
            // None of the counted ones is in it, so a walk finds none.
            let table =
                Table::create(TableConfig { capacity: 1024, workers: 1, memory: Memory::OnDemand }).unwrap();
            table.leave(Millis(5));
            let source = Origin::HandedOver(FormerTable::left(table).unwrap());
            let numbers = Some(Numbers { kept, found, path: PathBuf::new() });
            let paused = PausedTable { prepared: PreparedTable { source, numbers }, since };
            paused.survey(Millis(6), || {}).own(None, &mut successor).unwrap();
            assert_eq!(live(&successor).counts(), counts, "{since:?}");
        }
    }

    #[test]
    fn after_a_restart_connections_whose_clients_found_no_place_count_for_no_limit() {
        let mut control = control();
        control.set_clients(ClientSettings { clients: 8, ..ClientSettings::default() }, HashSecret([1; 3]));
        let config = TableConfig { capacity: 1024, workers: 1, memory: Memory::OnDemand };
        let table = Table::create(config).unwrap();
        let mut worker = table.handle(0).unwrap();
        let connection = |client: u8, dest_ref| NewConnection {
            protocol: Protocol::TCP,
            client: Endpoint::new([203, 0, 113, client], 4000),
            virtual_endpoint: Endpoint::new([192, 0, 2, 1], 80),
            dest: Endpoint::new([192, 0, 2, 11], 80),
            local: None,
            method: ForwardingMethod::Nat,
            flags: Flags::LIMITED,
            state: 0,
            expires: Millis(60_000),
            spare: Spare::NONE,
            dest_ref,
            mark: 0,
            controller: None,
        };
        let snapshot = control.published().load_full();
        let is_known = |number: &u32| snapshot.destinations.find(DestinationId(*number)).is_some();
        let number = (0..).find(is_known).unwrap();
        for (client, dest_ref) in [(100, 1000)].into_iter().chain((0..9).map(|client| (client, number))) {
            assert!(matches!(worker.insert(&connection(client, dest_ref)), Inserted::New(_)));
        }
        drop(worker);
        let source = Origin::HandedOver(FormerTable::left(table).unwrap());
        let (kept, found) = Kept::open(file(), file()).unwrap();
        let numbers = Some(Numbers { kept, found, path: PathBuf::new() });
        let paused = PausedTable { prepared: PreparedTable { source, numbers }, since: Millis(0) };
        let surveyed = paused.survey(Millis(0), || {});
        let table = surveyed.own(None, &mut control).unwrap();
        let mut limited = Vec::new();
        let each = |connection: Connection<'_>| limited.push(connection.flags().is_limited());
        table.reader().unwrap().for_each(0..u32::MAX, each);
        let eight = [false, true, true, true, true, true, true, true, true, false];
        assert_eq!(limited, eight, "neither without the destination nor for the ninth client");
    }

    #[test]
    fn a_table_beyond_the_limit_is_in_memory_if_nobody_asked_for_files_and_is_refused_otherwise() {
        let default = Some(Path::new("/dev/shm/xvs"));
        let (on_demand, ended) = (Memory::OnDemand, Others::Ended);
        let begins = |directory, start: &str| {
            let warnings = open(directory, false, on_demand, ended).unwrap();
            assert!(warnings.len() == 1 && warnings[0].starts_with(start), "{warnings:?}");
            assert!(warnings[0].contains(OVER), "{warnings:?}");
        };
        begins(default, "a restart of xvsd will lose all connections: ");
        begins(None, "once the table is full: ");
        for (directory, is_given, memory, others) in [
            (default, true, on_demand, ended),
            (default, false, Memory::Resident, ended),
            (None, false, Memory::Resident, ended),
            (default, false, on_demand, Others::Run),
        ] {
            let error = open(directory, is_given, memory, others).unwrap_err();
            assert!(error.starts_with(OVER), "{error}");
        }
        let error = open(None, false, on_demand, Others::Run).unwrap_err();
        assert!(error.contains("cannot be taken over"), "{error}");
    }
}
