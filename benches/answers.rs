//! HTTP requests while something happens to the director: the load of `scripts/bench --disturbances`.
//!
//! ```text
//! answers 198.51.100.100:80 8
//! ```
//!
//! Arguments: the destination; seconds. Opens 100 lasting connections, each with a request every 50 ms once its former
//! one is answered, prints `begins`, and opens 100 new connections a second with a request each. A lost lasting
//! connection is replaced at once. At the end it prints a line for each of: the answers over lasting connections in
//! each tenth of a second; those over new connections; the longest time without any answer, the longest time from when
//! a request of a lasting connection was due to its answer (of a connection that replaces it, too), both in seconds;
//! lasting connections that were lost, without those that replace them; new ones that were refused or had no answer
//! within three seconds. Not here: what happens.

use std::cell::RefCell;
use std::error::Error;
use std::io::{self, ErrorKind, Write as _};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

const USAGE: &str = "usage: answers ADDRESS:PORT SECONDS";
const LASTING: usize = 100;
/// From one request of a lasting connection to the next.
const INTERVAL: Duration = Duration::from_millis(50);
/// From one new connection to the next.
const NEW_INTERVAL: Duration = Duration::from_millis(10);
/// A connection that was refused is tried again after this.
const RETRY: Duration = Duration::from_millis(20);
/// How long all lasting connections may take to open.
const PATIENCE: Duration = Duration::from_secs(10);
/// A new connection has its answer within this: its SYN was repeated once.
const IN_TIME: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(100);
/// The ends of a request that keeps the connection, and of one that ends it.
const ENDS: [&str; 2] = ["\r\n\r\n", "\r\nConnection: close\r\n\r\n"];

/// What was seen since the begin.
struct Seen {
    begin: Instant,
    /// Over lasting connections and over new ones, by [`STEP`].
    answers: [Vec<u32>; 2],
    answered_at: Instant,
    longest_gap: Duration,
    longest_wait: Duration,
    /// Since when each lasting connection waits for an answer.
    waiting: Vec<Option<Instant>>,
    /// Lasting connections that have had an answer.
    opened: usize,
    lost: u32,
    failed: u32,
}

impl Seen {
    fn new(begin: Instant, waiting: Vec<Option<Instant>>) -> Self {
        Self {
            begin,
            answers: [Vec::new(), Vec::new()],
            answered_at: begin,
            longest_gap: Duration::ZERO,
            longest_wait: Duration::ZERO,
            waiting,
            opened: 0,
            lost: 0,
            failed: 0,
        }
    }

    /// An answer over a connection of this kind: 0 lasting, 1 new.
    fn answered(&mut self, kind: usize) {
        let now = Instant::now();
        let step = ((now - self.begin).as_nanos() / STEP.as_nanos()) as usize;
        let answers = &mut self.answers[kind];
        if answers.len() <= step {
            answers.resize(step + 1, 0);
        }
        answers[step] += 1;
        self.longest_gap = self.longest_gap.max(now - self.answered_at);
        self.answered_at = now;
    }

    /// A lasting connection does not wait any more, or has waited until now.
    fn waited(&mut self, since: Instant) {
        self.longest_wait = self.longest_wait.max(since.max(self.begin).elapsed());
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dest, seconds] = &arguments[..] else { return Err(USAGE.into()) };
    let (dest, seconds) = (dest.parse()?, Duration::from_secs(seconds.parse()?));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, run(dest, seconds))
}

async fn run(dest: SocketAddr, time: Duration) -> Result<(), Box<dyn Error>> {
    let now = Instant::now();
    let seen = Rc::new(RefCell::new(Seen::new(now, vec![Some(now); LASTING])));
    for number in 0..LASTING {
        spawn_local(lasting(dest, number, Rc::clone(&seen)));
    }
    while seen.borrow().opened < LASTING {
        if now.elapsed() > PATIENCE || seen.borrow().lost > 0 {
            return Err(format!("{dest} does not answer over {LASTING} connections").into());
        }
        sleep(STEP).await;
    }
    let waiting = seen.borrow().waiting.clone();
    *seen.borrow_mut() = Seen::new(Instant::now(), waiting);
    println!("begins");
    io::stdout().flush()?;
    let beginning = spawn_local(begin_new(dest, Rc::clone(&seen)));
    sleep(time).await;
    beginning.abort();
    print(&mut seen.borrow_mut(), time);
    // Those that began last have their time, too.
    sleep(IN_TIME).await;
    println!("{}", seen.borrow().failed);
    Ok(())
}

/// Prints all but the new connections that have failed.
fn print(seen: &mut Seen, time: Duration) {
    seen.longest_gap = seen.longest_gap.max(seen.answered_at.elapsed());
    for since in seen.waiting.clone().into_iter().flatten() {
        seen.waited(since);
    }
    let steps = (time.as_nanos() / STEP.as_nanos()) as usize;
    for answers in &mut seen.answers {
        answers.resize(steps, 0);
        let words: Vec<String> = answers.iter().map(u32::to_string).collect();
        println!("{}", words.join(","));
    }
    let Seen { longest_gap, longest_wait, lost, .. } = seen;
    println!("{:.3}\n{:.3}\n{lost}", longest_gap.as_secs_f64(), longest_wait.as_secs_f64());
}

/// Requests over a connection, and over those that replace it.
async fn lasting(dest: SocketAddr, number: usize, seen: Rc<RefCell<Seen>>) {
    let mut due = Instant::now() + INTERVAL * number as u32 / LASTING as u32;
    let (mut is_first, mut is_open) = (true, false);
    loop {
        let Ok(mut stream) = TcpStream::connect(dest).await else {
            sleep(RETRY).await;
            continue;
        };
        loop {
            sleep_until(due).await;
            seen.borrow_mut().waiting[number] = Some(due);
            if ask(&mut stream, ENDS[0]).await.is_err() {
                seen.borrow_mut().lost += u32::from(is_first);
                is_first = false;
                break;
            }
            let mut seen = seen.borrow_mut();
            seen.opened += usize::from(!is_open);
            is_open = true;
            seen.answered(0);
            seen.waited(due);
            seen.waiting[number] = None;
            due = Instant::now().max(due + INTERVAL);
        }
    }
}

async fn begin_new(dest: SocketAddr, seen: Rc<RefCell<Seen>>) {
    let mut ticks = interval(NEW_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        ticks.tick().await;
        let seen = Rc::clone(&seen);
        spawn_local(async move {
            let fetched = async { ask(&mut TcpStream::connect(dest).await?, ENDS[1]).await };
            match timeout(IN_TIME, fetched).await {
                Ok(Ok(())) => seen.borrow_mut().answered(1),
                _ => seen.borrow_mut().failed += 1,
            }
        });
    }
}

/// Sends a request and reads its answer, which has a length.
async fn ask(stream: &mut TcpStream, end: &str) -> io::Result<()> {
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: director{end}").as_bytes()).await?;
    let mut answer = Vec::new();
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&answer);
        let Some((head, page)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let length = length.and_then(|length| length.parse::<usize>().ok());
        if page.len() >= length.ok_or(ErrorKind::InvalidData)? {
            return Ok(());
        }
    }
}
