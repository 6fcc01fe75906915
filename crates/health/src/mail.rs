//! Mails about changes of status, to the recipients of a keepalived.conf.
//!
//! A mail waits in a bounded queue; one task delivers them in order, by TLS if the server offers it. A delivery that
//! fails is tried again, after longer and longer pauses. After sixty mails in an hour the next changes wait and go out
//! in one mail. Only this task waits for a mail server: a full queue leaves mails out, and the next mail says how many.
//! Without recipients there is no task. Not here: which changes are mailed, and their subjects
//! (`virtual_server/notice.rs`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::transport::smtp::client::{CertificateStore, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use xvs_model::health_checks::mail::MailSettings;

/// A mail that is not addressed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Letter {
    /// The subject.
    pub(super) subject: String,
    /// The text.
    pub(super) text: String,
}

/// The queue of mails and the task that delivers them. Lives on the health runtime.
#[derive(Debug)]
pub(super) struct Mailer {
    settings: MailSettings,
    queue: mpsc::Sender<Letter>,
    /// The number of mails that were left out since the last one that was delivered.
    left_out: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Mailer {
    /// Starts the task.
    ///
    /// # Errors
    /// An address or the server's name cannot be used; names it.
    pub(super) fn start(settings: &MailSettings) -> Result<Self, String> {
        Self::with_pace(settings, PACE)
    }

    fn with_pace(settings: &MailSettings, pace: Pace) -> Result<Self, String> {
        let post = Post::new(settings)?;
        let (queue, letters) = mpsc::channel(QUEUE_MAX);
        let left_out = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(deliver_all(post, pace, letters, left_out.clone()));
        Ok(Self { settings: settings.clone(), queue, left_out, task })
    }

    /// Whether it delivers by these settings.
    pub(super) fn is_of(&self, settings: &MailSettings) -> bool {
        self.settings == *settings
    }

    /// Queues a mail. With a full queue it is left out.
    pub(super) fn send(&self, letter: Letter) {
        if self.queue.try_send(letter).is_err() && self.left_out.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::error!("mails: {QUEUE_MAX} wait for {}; more are left out", self.settings.host);
        }
    }

    /// Delivers the mails that wait, at most until the deadline.
    pub(super) async fn finish(self, deadline: Instant) {
        drop(self.queue);
        let mut task = self.task;
        if timeout_at(deadline, &mut task).await.is_err() {
            tracing::error!("mails that wait for {} are left out", self.settings.host);
            task.abort();
        }
    }
}

/// Delivers mails until the queue is closed and empty.
async fn deliver_all(
    post: Post,
    pace: Pace,
    mut letters: mpsc::Receiver<Letter>,
    left_out: Arc<AtomicUsize>,
) {
    let mut delivered: VecDeque<Instant> = VecDeque::new();
    while let Some(mut letter) = letters.recv().await {
        while delivered.front().is_some_and(|at| at.elapsed() >= pace.window) {
            delivered.pop_front();
        }
        if delivered.len() >= pace.mails {
            sleep_until(delivered[0] + pace.window).await;
            letter = summary(&post.router_id, letter, &mut letters);
        }
        let missing = left_out.swap(0, Ordering::Relaxed);
        if missing > 0 {
            letter.text += &format!("\n{missing} mails before this one were left out: too many waited.\n");
        }
        post.deliver(&letter, pace.first_pause).await;
        delivered.push_back(Instant::now());
    }
}

/// One mail for all that wait.
fn summary(router_id: &str, first: Letter, letters: &mut mpsc::Receiver<Letter>) -> Letter {
    let mut subjects = vec![first.subject];
    while let Ok(next) = letters.try_recv() {
        subjects.push(next.subject);
    }
    let text = format!("After many mails in an hour these changes waited:\n\n{}\n", subjects.join("\n"));
    Letter { subject: format!("[{router_id}] {} changes", subjects.len()), text }
}

/// The mail server, and the addresses of all mails.
struct Post {
    from: Mailbox,
    recipients: Vec<Mailbox>,
    router_id: String,
    server: String,
    transport: AsyncSmtpTransport<Tokio1Executor>,
}

impl Post {
    fn new(settings: &MailSettings) -> Result<Self, String> {
        let MailSettings { recipients, from, host, port, helo, timeout_seconds, router_id } = settings;
        let mailbox = |text: &String| {
            let read = text.parse::<Mailbox>();
            read.map_err(|error| format!("mail address `{text}`: {error}; correct it in the keepalived.conf"))
        };
        // Anybody can offer TLS to a client that would also send in clear, so certificates are not examined.
        let tls = TlsParameters::builder(host.clone()).certificate_store(CertificateStore::None);
        let tls = tls.dangerous_accept_invalid_certs(true).dangerous_accept_invalid_hostnames(true).build();
        let tls = tls.map_err(|error| format!("mail server `{host}`: {error}; correct `smtp_server`"))?;
        let transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
            .port(*port)
            .hello_name(ClientId::Domain(helo.clone()))
            .timeout(Some(Duration::from_secs((*timeout_seconds).into())))
            .tls(Tls::Opportunistic(tls))
            .build();
        Ok(Self {
            from: mailbox(from)?,
            recipients: recipients.iter().map(mailbox).collect::<Result<_, _>>()?,
            router_id: router_id.clone(),
            server: format!("{host}:{port}"),
            transport,
        })
    }

    /// Delivers a mail, however long it takes. One that the server refuses for good is left out.
    async fn deliver(&self, Letter { subject, text }: &Letter, first_pause: Duration) {
        let message = self.recipients.iter().fold(Message::builder(), |builder, to| builder.to(to.clone()));
        let message = message.from(self.from.clone()).subject(subject.clone());
        let message = match message.header(ContentType::TEXT_PLAIN).body(text.clone()) {
            Ok(message) => message,
            Err(error) => return tracing::error!("mail «{subject}» is left out: {error}"),
        };
        let mut pause = first_pause;
        let mut reason = String::new();
        while let Err(error) = self.transport.send(message.clone()).await {
            if error.is_permanent() {
                return tracing::error!("mail «{subject}» is left out: {} refuses it: {error}", self.server);
            }
            // A reason is logged once, however often the delivery is tried.
            let former = std::mem::replace(&mut reason, error.to_string());
            if reason != former {
                tracing::warn!("mail «{subject}» waits for {}: {reason}; it is tried again", self.server);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        tracing::debug!("mail «{subject}» is delivered to {}", self.server);
    }
}

/// The number of mails that may wait.
const QUEUE_MAX: usize = 256;
/// The longest pause after a failed delivery.
const LONGEST_PAUSE: Duration = Duration::from_secs(10 * 60);

/// How fast mails are sent.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// The number of mails in a window; later changes share one.
    mails: usize,
    window: Duration,
    /// The pause after the first failed delivery of a mail; each later one is twice as long.
    first_pause: Duration,
}

const PACE: Pace =
    Pace { mails: 60, window: Duration::from_secs(60 * 60), first_pause: Duration::from_secs(5) };

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::{TcpListener, TcpStream};

    use crate::command::testing::in_time;
    use crate::mail::*;

    /// A pace without waits that matter.
    const FAST: Pace = Pace { first_pause: Duration::from_millis(20), ..PACE };

    /// The text of a mail, with its header, as the server reads it.
    async fn receive(stream: TcpStream, refused: &str) -> Option<String> {
        let mut stream = BufReader::new(stream);
        let mut mail = String::new();
        stream.write_all(b"220 mail.example.org ESMTP\r\n").await.ok()?;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok().filter(|length| *length > 0)?;
            let answer = match line.split_whitespace().next().unwrap_or_default() {
                "DATA" => {
                    stream.write_all(b"354 go on\r\n").await.ok()?;
                    while !mail.ends_with("\r\n.\r\n") {
                        stream.read_line(&mut mail).await.ok().filter(|length| *length > 0)?;
                    }
                    if !refused.is_empty() && mail.contains(refused) {
                        stream.write_all(b"554 not this one\r\n").await.ok()?;
                        return None;
                    }
                    stream.write_all(b"250 taken\r\n").await.ok()?;
                    return Some(mail);
                }
                _ => "250 yes\r\n",
            };
            stream.write_all(answer.as_bytes()).await.ok()?;
        }
    }

    /// The next mail that the server takes.
    async fn next(server: &TcpListener, refused: &str) -> String {
        loop {
            let (stream, _) = server.accept().await.unwrap();
            if let Some(mail) = receive(stream, refused).await {
                return mail;
            }
        }
    }

    fn settings(port: u16) -> MailSettings {
        MailSettings {
            recipients: vec!["ops@example.org".to_owned(), "noc@example.org".to_owned()],
            from: "lvs@example.org".to_owned(),
            host: "127.0.0.1".to_owned(),
            port,
            helo: "lb1.example.org".to_owned(),
            timeout_seconds: 5,
            router_id: "LB1".to_owned(),
        }
    }

    fn letter(number: usize) -> Letter {
        Letter { subject: format!("[LB1] change {number}"), text: format!("It is change {number}.\n") }
    }

    async fn server() -> (TcpListener, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    fn has_lines(mail: &str, lines: &[&str]) -> bool {
        lines.iter().all(|wanted| mail.lines().any(|line| line == *wanted))
    }

    #[tokio::test]
    async fn a_mail_goes_to_all_recipients_with_its_subject_and_text() {
        let (server, port) = server().await;
        let mailer = Mailer::with_pace(&settings(port), FAST).unwrap();
        mailer.send(letter(1));
        let mail = next(&server, "").await;
        let lines = [
            "From: lvs@example.org",
            "To: ops@example.org, noc@example.org",
            "Subject: [LB1] change 1",
            "It is change 1.",
        ];
        assert!(has_lines(&mail, &lines), "{mail}");
        mailer.finish(in_time()).await;
    }

    #[tokio::test]
    async fn a_mail_that_the_server_refuses_for_good_is_left_out_and_the_next_one_is_delivered() {
        let (server, port) = server().await;
        let mailer = Mailer::with_pace(&settings(port), FAST).unwrap();
        mailer.send(letter(1));
        mailer.send(letter(2));
        let mail = next(&server, "change 1").await;
        assert!(has_lines(&mail, &["Subject: [LB1] change 2"]), "{mail}");
    }

    #[tokio::test]
    async fn a_mail_waits_for_a_server_that_is_away_or_hangs_up() {
        let (server, port) = server().await;
        drop(server);
        let mailer = Mailer::with_pace(&settings(port), FAST).unwrap();
        mailer.send(letter(1));
        tokio::time::sleep(Duration::from_millis(100)).await;
        let server = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        drop(server.accept().await.unwrap());
        let mail = next(&server, "").await;
        assert!(has_lines(&mail, &["Subject: [LB1] change 1"]), "{mail}");
    }

    #[tokio::test]
    async fn after_many_mails_in_a_window_the_next_changes_share_one() {
        let (server, port) = server().await;
        let pace = Pace { mails: 2, window: Duration::from_secs(1), ..FAST };
        let mailer = Mailer::with_pace(&settings(port), pace).unwrap();
        (1..=5).for_each(|number| mailer.send(letter(number)));
        for number in [1, 2] {
            let mail = next(&server, "").await;
            assert!(has_lines(&mail, &[&format!("Subject: [LB1] change {number}")]), "{mail}");
        }
        let mail = next(&server, "").await;
        let lines = ["Subject: [LB1] 3 changes", "[LB1] change 3", "[LB1] change 4", "[LB1] change 5"];
        assert!(has_lines(&mail, &lines), "{mail}");
    }

    #[tokio::test]
    async fn a_full_queue_leaves_mails_out_and_the_next_mail_says_how_many() {
        let (server, port) = server().await;
        let mailer = Mailer::with_pace(&settings(port), FAST).unwrap();
        // The task does not run before this test waits.
        (0..QUEUE_MAX + 3).for_each(|number| mailer.send(letter(number)));
        let mail = next(&server, "").await;
        assert!(has_lines(&mail, &["3 mails before this one were left out: too many waited."]), "{mail}");
    }

    #[tokio::test]
    async fn a_server_that_hangs_does_not_delay_the_end() {
        let (server, port) = server().await;
        let mailer = Mailer::with_pace(&settings(port), FAST).unwrap();
        mailer.send(letter(1));
        let hanging = server.accept().await.unwrap();
        mailer.finish(Instant::now() + Duration::from_millis(50)).await;
        drop(hanging);
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_used_is_named() {
        let wrong = MailSettings { from: "lvs@".to_owned(), ..settings(25) };
        let why = Mailer::start(&wrong).unwrap_err();
        assert!(why.contains("`lvs@`") && why.contains("correct it"), "{why}");
    }
}
