//! The simulated network of the tests, and the engine in it.

use xvs_model::objects::Rule;

use super::*;

/// The behaviour of a simulated server when it is probed.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Server {
    Passes,
    Refuses,
    /// No reply until the deadline.
    Hangs,
    /// No reply until the deadline, and xvsd notices that late by this time.
    Late(Duration),
    /// Passes after this time.
    Slow(Duration),
    /// The probe cannot run.
    CannotRun,
    /// The probe panics.
    Panics,
}

/// The simulated environment; servers by the address of a real server.
#[derive(Default)]
pub(super) struct World {
    pub(super) servers: Mutex<HashMap<String, Server>>,
    pub(super) probed: Mutex<Vec<(String, Instant)>>,
    pub(super) probing: AtomicUsize,
    pub(super) most_probing: AtomicUsize,
    pub(super) is_here: AtomicBool,
    pub(super) is_stuck: AtomicBool,
    pub(super) has_no_port: AtomicBool,
    pub(super) expects_vip_probes: AtomicBool,
    pub(super) timeouts: Mutex<Timeouts>,
    pub(super) reconciled: Mutex<Vec<DesiredServices>>,
    pub(super) emitted: Mutex<Vec<(String, Instant)>>,
    pub(super) kept: Mutex<View>,
}

impl World {
    pub(super) fn set(&self, server: &str, what: Server) {
        self.servers.lock().unwrap().insert(server.to_owned(), what);
    }

    /// The times of the probes of a server since the last call.
    pub(super) fn probed(&self, server: &str) -> Vec<Instant> {
        let mut probes = self.probed.lock().unwrap();
        let times = probes.iter().filter(|(one, _)| one == server).map(|(_, at)| *at).collect();
        probes.retain(|(one, _)| one != server);
        times
    }

    /// The time of the last emitted line with this start.
    pub(super) fn emitted(&self, what: &str) -> Instant {
        let emitted = self.emitted.lock().unwrap();
        emitted
            .iter()
            .rfind(|(text, _)| text.starts_with(what))
            .unwrap_or_else(|| panic!("{what}: {emitted:?}"))
            .1
    }

    /// The weights of the last service in the last request.
    pub(super) fn weights(&self) -> Vec<(String, u32)> {
        let reconciled = self.reconciled.lock().unwrap();
        let (_, service) = reconciled.last().unwrap().last().unwrap();
        let destinations = service.as_ref().unwrap().destinations.iter();
        destinations.map(|(at, options)| (at.addr.to_string(), options.weight.0)).collect()
    }
}

pub(super) struct Probing<'a>(&'a AtomicUsize);

impl Drop for Probing<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Environment for Arc<World> {
    fn probe_vip(
        &self,
        _: Endpoint,
        _: Option<IpAddr>,
        _: &RealServer,
    ) -> Result<Box<dyn VipProbe>, VipProbeError> {
        unreachable!("probes are simulated as a whole")
    }

    fn expect_vip_probes(&self, expected: bool) -> Result<(), CommandError> {
        if expected && self.has_no_port.load(Ordering::Relaxed) {
            return Err(CommandError::Failed { why: "no port".to_owned() });
        }
        self.expects_vip_probes.store(expected, Ordering::Relaxed);
        Ok(())
    }

    async fn probe(&self, check: CheckRef, _: usize, deadline: Instant) -> ProbeResult {
        let server = check.real_server().endpoint.addr.to_string();
        self.probed.lock().unwrap().push((server.clone(), Instant::now()));
        let now = self.probing.fetch_add(1, Ordering::Relaxed) + 1;
        let _probing = Probing(&self.probing);
        self.most_probing.fetch_max(now, Ordering::Relaxed);
        let what = self.servers.lock().unwrap().get(&server).copied();
        match what.unwrap_or(Server::Passes) {
            Server::Passes => ProbeResult::Passed(0),
            Server::Refuses => ProbeResult::Failed("connection refused".to_owned()),
            Server::Hangs => {
                sleep_until(deadline).await;
                ProbeResult::Failed("no answer".to_owned())
            }
            Server::Late(time) => {
                sleep_until(deadline + time).await;
                ProbeResult::Failed("no answer".to_owned())
            }
            Server::Slow(time) => {
                sleep(time).await;
                ProbeResult::Passed(0)
            }
            Server::CannotRun => ProbeResult::NotRun("no socket".to_owned()),
            Server::Panics => panic!("a fault of this test"),
        }
    }

    fn owns_address_of(&self, _: &VirtualServer) -> bool {
        self.is_here.load(Ordering::Relaxed)
    }

    fn reconcile(&self, wanted: DesiredServices, _: ReconcileScope) -> Result<Reconciled, CommandError> {
        if self.is_stuck.load(Ordering::Relaxed) {
            return Err(CommandError::Failed { why: "stuck".to_owned() });
        }
        self.reconciled.lock().unwrap().push(wanted);
        Ok(Reconciled::default())
    }

    fn timeouts(&self) -> Result<Timeouts, CommandError> {
        Ok(*self.timeouts.lock().unwrap())
    }

    fn execute(&self, command: Command) -> Result<(), CommandError> {
        if let Command::Add(Rule::Timeouts(wanted)) = command {
            self.timeouts.lock().unwrap().update(wanted);
        }
        Ok(())
    }

    fn keep(&self, view: &View) {
        self.kept.lock().unwrap().clone_from(view);
    }

    fn emit(&self, lines: Vec<String>) {
        self.emitted.lock().unwrap().extend(lines.into_iter().map(|line| (line, Instant::now())));
    }
}

/// The engine with a configuration.
pub(super) struct Health {
    pub(super) world: Arc<World>,
    pub(super) results: Arc<SharedResults>,
    pub(super) manager: UnboundedSender<Message>,
}

impl Health {
    pub(super) async fn start(text: &str, at_once: usize) -> Self {
        Self::resume(text, at_once, View::default()).await
    }

    /// Starts with the view of an earlier process.
    pub(super) async fn resume(text: &str, at_once: usize, former: View) -> Self {
        let health = Self::waiting(former);
        health.begin(at_once);
        health.load(text).await.unwrap();
        health
    }

    /// The engine while an earlier process still runs.
    pub(super) fn waiting(former: View) -> Self {
        let world = Arc::new(World { is_here: AtomicBool::new(true), ..World::default() });
        let results = Arc::new(SharedResults::default());
        let (changed, changes) = unbounded_channel();
        let (manager, messages) = unbounded_channel();
        let runner = Runner {
            environment: world.clone(),
            permits: Semaphore::new(0),
            changed,
            view_changed: Notify::new(),
        };
        tokio::spawn(Manager::new(results.clone(), Arc::new(runner), changes, messages, former).run());
        Self { world, results, manager }
    }

    pub(super) fn begin(&self, probes: usize) {
        self.manager.send(Message::Begin { probes }).ok().unwrap();
    }

    pub(super) async fn load(&self, text: &str) -> Result<String, CommandError> {
        let (answer, answered) = oneshot::channel();
        self.manager.send(Message::Load(Box::new(file(text)), answer)).ok().unwrap();
        answered.await.unwrap()
    }

    pub(super) fn report(&self) -> HealthReport {
        self.results.report()
    }

    /// The one check of the first real server.
    pub(super) fn check(&self) -> CheckHealth {
        self.report().virtual_servers[0].real_servers[0].checks[0].clone()
    }
}
