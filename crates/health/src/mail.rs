//! Mails about changes of status, to the recipients in keepalived.conf.
//!
//! A mail waits in a bounded queue; one task delivers them in order, over TLS if the server offers it. A failed
//! delivery is repeated, after longer and longer pauses, for a day. After sixty mails in an hour the next changes wait
//! and are sent in one mail. Only this task waits for a mail server: a full queue drops the oldest mail, and the next
//! one reports how many were dropped. Without recipients there is no task. `virtual_server/notice.rs` decides which
//! changes are mailed, with which subjects; `mail_stream.rs` handles the connection.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use lettre::Message;
use lettre::address::Envelope;
use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::transport::smtp;
use lettre::transport::smtp::client::{AsyncSmtpConnection, CertificateStore, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use xvs_model::foreign_text::ForeignText;
use xvs_model::health_checks::mail::MailSettings;

use crate::mail_stream::MailStream;

/// A mail that is not addressed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Letter {
    /// When the change happened.
    pub(super) at: SystemTime,
    /// The subject.
    pub(super) subject: String,
    /// The text.
    pub(super) text: String,
}

impl Letter {
    /// A mail about a change that happens now.
    pub(super) fn now(subject: String, text: String) -> Self {
        Self { at: SystemTime::now(), subject, text }
    }
}

/// The queue of mails and the task that delivers them. Exists on the health runtime.
#[derive(Debug)]
pub(super) struct Mailer {
    settings: MailSettings,
    pace: Pace,
    queue: Arc<Queue>,
    task: JoinHandle<()>,
}

impl Mailer {
    /// Starts the task.
    ///
    /// # Errors
    ///
    /// No recipient, or the sender or the server's name, cannot be used; names it.
    pub(super) fn start(settings: &MailSettings) -> Result<Self, String> {
        Self::with(settings, PACE, Arc::default())
    }

    fn with(settings: &MailSettings, pace: Pace, queue: Arc<Queue>) -> Result<Self, String> {
        let task = tokio::spawn(deliver_all(Post::new(settings)?, pace, queue.clone()));
        Ok(Self { settings: settings.clone(), pace, queue, task })
    }

    /// Whether it delivers by these settings.
    pub(super) fn is_of(&self, settings: &MailSettings) -> bool {
        self.settings == *settings
    }

    /// The mailer with other settings, also for waiting mails.
    ///
    /// # Errors
    ///
    /// Same as [`Self::start`].
    pub(super) fn with_settings(self, settings: &MailSettings) -> Result<Self, String> {
        self.task.abort();
        Self::with(settings, self.pace, self.queue.clone())
    }

    /// Queues a mail. If the queue is full, the oldest one is dropped.
    pub(super) fn send(&self, letter: Letter) {
        let mut waiting = self.queue.lock();
        waiting.letters.push_back(letter);
        if waiting.letters.len() > QUEUE_MAX {
            waiting.letters.pop_front();
            waiting.dropped += 1;
            if waiting.dropped == 1 {
                tracing::error!("{QUEUE_MAX} mails wait for {}; the oldest are dropped", self.settings.host);
            }
        }
        drop(waiting);
        self.queue.added.notify_one();
    }

    /// Waits until no mail waits, at most until the deadline.
    pub(super) async fn finish(mut self, deadline: Instant) {
        let delivered = async {
            while !self.queue.lock().letters.is_empty() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let may_send = self.queue.lock().next_window(self.pace).is_none();
        if !may_send || timeout_at(deadline, delivered).await.is_err() {
            let number = self.queue.lock().letters.len();
            if number > 0 {
                tracing::error!("{number} mails that wait for {} are dropped", self.settings.host);
            }
        }
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Mailer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The waiting mails. The first stays in the queue until it is delivered.
#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    added: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    letters: VecDeque<Letter>,
    /// The number of mails that were dropped since the last delivery.
    dropped: usize,
    /// The times of the last deliveries, at most [`Pace::mails`].
    sent: VecDeque<Instant>,
}

impl Queue {
    /// A panic in another thread leaves the queue consistent, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next mail to deliver and the number of mails that it represents.
    async fn next(&self, pace: Pace, router_id: &str) -> (Letter, usize) {
        while self.lock().letters.is_empty() {
            self.added.notified().await;
        }
        let opens = self.lock().next_window(pace);
        let Some(opens) = opens else { return (self.lock().letters[0].clone(), 1) };
        sleep_until(opens).await;
        let waiting = self.lock();
        (summary(router_id, &waiting.letters), waiting.letters.len())
    }
}

impl Waiting {
    /// When the next mail may be sent; `None`: now.
    fn next_window(&self, pace: Pace) -> Option<Instant> {
        let first = *self.sent.front().filter(|_| self.sent.len() >= pace.mails)?;
        Some(first + pace.window).filter(|opens| *opens > Instant::now())
    }

    /// Removes the mails that one delivery has covered.
    fn told(&mut self, number: usize, dropped: usize, pace: Pace) {
        // Those that were dropped in the meantime were the oldest.
        let number = number.saturating_sub(self.dropped - dropped).min(self.letters.len());
        self.letters.drain(..number);
        self.dropped -= dropped;
        self.sent.push_back(Instant::now());
        while self.sent.len() > pace.mails {
            self.sent.pop_front();
        }
    }
}

/// Delivers mails, one after the other, until it is ended.
async fn deliver_all(post: Post, pace: Pace, queue: Arc<Queue>) {
    loop {
        let (mut letter, number) = queue.next(pace, &post.settings.router_id).await;
        let dropped = queue.lock().dropped;
        if dropped > 0 {
            letter.text += &format!("\n{dropped} mails were dropped, because too many waited.\n");
        }
        post.deliver(&letter, pace).await;
        queue.lock().told(number, dropped, pace);
    }
}

/// One mail for all that wait.
fn summary(router_id: &str, letters: &VecDeque<Letter>) -> Letter {
    let Some(first) = letters.front().filter(|_| letters.len() > 1) else { return letters[0].clone() };
    let lines: String = letters
        .iter()
        .map(|letter| format!("{}  {}\n", humantime::format_rfc3339_seconds(letter.at), letter.subject))
        .collect();
    Letter {
        at: first.at,
        subject: format!("[{router_id}] {} changes", letters.len()),
        text: format!("After many mails in an hour these changes waited:\n\n{lines}"),
    }
}

/// The mail server, and the addresses for all mails.
struct Post {
    settings: MailSettings,
    from: Mailbox,
    recipients: Vec<Mailbox>,
    /// The server, for messages.
    server: String,
    tls: TlsParameters,
}

impl Post {
    fn new(settings: &MailSettings) -> Result<Self, String> {
        let MailSettings { recipients, from, host, port, .. } = settings;
        let mailbox = |text: &String| {
            text.parse::<Mailbox>()
                .map_err(|error| format!("mail address `{text}`: {error}; correct it in the keepalived.conf"))
        };
        let usable: Vec<_> = recipients
            .iter()
            .map(mailbox)
            .filter_map(|read| {
                read.inspect_err(|why| tracing::error!("no mails to this recipient: {why}")).ok()
            })
            .collect();
        if usable.is_empty() {
            return Err("no recipient can be used; correct `notification_email`".to_owned());
        }
        // Any server can offer TLS to a client that would also send in clear, so certificates are not examined.
        let tls = TlsParameters::builder(host.clone())
            .certificate_store(CertificateStore::None)
            .dangerous_accept_invalid_certs(true)
            .dangerous_accept_invalid_hostnames(true)
            .build()
            .map_err(|error| format!("mail server `{host}`: {error}; correct `smtp_server`"))?;
        Ok(Self {
            settings: settings.clone(),
            from: mailbox(from)?,
            recipients: usable,
            server: format!("{host}:{port}"),
            tls,
        })
    }

    /// Delivers a mail to each recipient separately, because a server refuses a mail for all if it refuses one. Drops
    /// it for recipients who are refused permanently, and for the others after a day.
    async fn deliver(&self, letter: &Letter, pace: Pace) {
        let Letter { subject, .. } = letter;
        let server = &self.server;
        let message = match self.message(letter) {
            Ok(message) => message,
            Err(error) => return tracing::error!("mail «{subject}» is dropped: {error}"),
        };
        let end = Instant::now() + pace.give_up;
        let mut pause = pace.first_pause;
        let mut reason = ForeignText::default();
        let mut missing: Vec<_> = self.recipients.iter().collect();
        loop {
            let mut later = Vec::new();
            for recipient in missing {
                match self.attempt(recipient, &message, pace).await {
                    Ok(()) => {}
                    Err(Failure::ForGood(why)) => {
                        tracing::error!(
                            "mail «{subject}» to {recipient} is dropped: {server} refuses it: {why}"
                        );
                    }
                    Err(Failure::ForNow(why)) => {
                        // A reason is logged once, however often the delivery is tried.
                        if why != reason {
                            tracing::warn!("mail «{subject}» waits for {server}: {why}; it is tried again");
                            reason = why;
                        }
                        later.push(recipient);
                    }
                }
            }
            if later.is_empty() {
                return;
            }
            if Instant::now() >= end {
                return tracing::error!("mail «{subject}» is dropped: {server}: {reason}");
            }
            missing = later;
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn message(&self, Letter { at, subject, text }: &Letter) -> Result<Vec<u8>, lettre::error::Error> {
        Ok(self
            .recipients
            .iter()
            .fold(Message::builder(), |builder, to| builder.to(to.clone()))
            .from(self.from.clone())
            .date(*at)
            .message_id(None)
            .subject(subject.clone())
            .header(ContentType::TEXT_PLAIN)
            .body(text.clone())?
            .formatted())
    }

    async fn attempt(&self, recipient: &Mailbox, message: &[u8], pace: Pace) -> Result<(), Failure> {
        let envelope = Envelope::new(Some(self.from.email.clone()), vec![recipient.email.clone()])
            .map_err(|error| Failure::ForGood(error.to_string().into()))?;
        timeout(pace.attempt, self.send(&envelope, message))
            .await
            .unwrap_or_else(|_| Err(Failure::ForNow(format!("no end within {:?}", pace.attempt).into())))
    }

    /// Sends a mail over a separate connection, with TLS if the server offers it.
    async fn send(&self, envelope: &Envelope, message: &[u8]) -> Result<(), Failure> {
        let MailSettings { host, port, helo, timeout_seconds, .. } = &self.settings;
        let own_name = ClientId::Domain(helo.clone());
        let stream = MailStream::connect(host, *port, Duration::from_secs((*timeout_seconds).into()))
            .await
            .map_err(|error| Failure::ForNow(format!("no connection: {error}").into()))?;
        let mut connection = AsyncSmtpConnection::connect_with_transport(Box::new(stream), &own_name).await?;
        if connection.can_starttls() {
            connection.starttls(self.tls.clone(), &own_name).await?;
        }
        connection.send(envelope, message).await?;
        connection.abort().await;
        Ok(())
    }
}

/// The reason why a mail was not delivered to a recipient, as the mail server reports it.
enum Failure {
    /// It is not tried again.
    ForGood(ForeignText),
    ForNow(ForeignText),
}

impl From<smtp::Error> for Failure {
    fn from(error: smtp::Error) -> Self {
        let why = ForeignText::from(error.to_string());
        if error.is_permanent() { Self::ForGood(why) } else { Self::ForNow(why) }
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
    /// The time limit for one attempt.
    attempt: Duration,
    /// The pause after the first failed attempt; each later one is twice as long.
    first_pause: Duration,
    /// The time after which a mail is dropped.
    give_up: Duration,
}

const PACE: Pace = Pace {
    mails: 60,
    window: Duration::from_secs(60 * 60),
    attempt: Duration::from_secs(5 * 60),
    first_pause: Duration::from_secs(5),
    give_up: Duration::from_secs(24 * 60 * 60),
};

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::{TcpListener, TcpStream};

    use crate::command::testing::in_time;
    use crate::mail::*;

    /// A pace without waits that matter.
    const FAST: Pace = Pace { first_pause: Duration::from_millis(20), ..PACE };
    const OPS: &str = "ops@example.org";

    /// The text of a mail, with its header, as the server reads it.
    async fn receive(stream: TcpStream, refused: &str) -> Option<String> {
        let mut stream = BufReader::new(stream);
        let mut mail = String::new();
        stream.write_all(b"220 mail.example.org ESMTP\r\n").await.ok()?;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok().filter(|length| *length > 0)?;
            let answer = match line.split_whitespace().next().unwrap_or_default() {
                "RCPT" if !refused.is_empty() && line.contains(refused) => "550 nobody of this name\r\n",
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
            recipients: vec![OPS.to_owned()],
            from: "lvs@example.org".to_owned(),
            host: "127.0.0.1".to_owned(),
            port,
            helo: "lb1.example.org".to_owned(),
            timeout_seconds: 5,
            router_id: "LB1".to_owned(),
        }
    }

    fn letter(number: usize) -> Letter {
        Letter {
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(number as u64),
            subject: format!("[LB1] change {number}"),
            text: format!("It is change {number}.\n"),
        }
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
    async fn a_mail_has_the_addresses_subject_text_and_time_of_its_change() {
        let (server, port) = server().await;
        let mailer = Mailer::with(&settings(port), FAST, Arc::default()).unwrap();
        mailer.send(letter(1));
        let mail = next(&server, "").await;
        let lines = [
            "From: lvs@example.org",
            "To: ops@example.org",
            "Date: Thu, 01 Jan 1970 00:00:01 +0000",
            "Subject: [LB1] change 1",
            "It is change 1.",
        ];
        assert!(has_lines(&mail, &lines), "{mail}");
        mailer.finish(in_time()).await;
    }

    #[tokio::test]
    async fn a_recipient_whom_the_server_refuses_keeps_no_mail_from_the_others() {
        let (server, port) = server().await;
        let recipients = vec!["gone@example.org".to_owned(), "a..b@example.org".to_owned(), OPS.to_owned()];
        let settings = MailSettings { recipients, ..settings(port) };
        let mailer = Mailer::with(&settings, FAST, Arc::default()).unwrap();
        mailer.send(letter(1));
        let mail = next(&server, "<gone@example.org>").await;
        assert!(has_lines(&mail, &["To: gone@example.org, ops@example.org"]), "{mail}");
    }

    #[tokio::test]
    async fn a_mail_that_the_server_refuses_for_good_is_dropped_and_the_next_one_is_delivered() {
        let (server, port) = server().await;
        let mailer = Mailer::with(&settings(port), FAST, Arc::default()).unwrap();
        mailer.send(letter(1));
        mailer.send(letter(2));
        let mail = next(&server, "change 1").await;
        assert!(has_lines(&mail, &["Subject: [LB1] change 2"]), "{mail}");
    }

    #[tokio::test]
    async fn a_mail_waits_for_a_server_that_is_away_or_hangs_up() {
        let (server, port) = server().await;
        drop(server);
        let mailer = Mailer::with(&settings(port), FAST, Arc::default()).unwrap();
        mailer.send(letter(1));
        tokio::time::sleep(Duration::from_millis(100)).await;
        let server = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        drop(server.accept().await.unwrap());
        let mail = next(&server, "").await;
        assert!(has_lines(&mail, &["Subject: [LB1] change 1"]), "{mail}");
    }

    #[tokio::test]
    async fn what_a_mail_server_says_reaches_the_log_without_control_characters() {
        let (server, port) = server().await;
        let post = Post::new(&settings(port)).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = server.accept().await.unwrap();
            stream.write_all(b"554 no\r\x0b2026 ERROR \x1b[2J\r\n").await.unwrap();
        });
        let attempt = post.attempt(&post.recipients[0], b"", FAST).await;
        let Err(Failure::ForGood(why)) = attempt else { panic!("it was refused") };
        assert!(why.to_string().contains("no\\r\\u{b}2026 ERROR \\u{1b}[2J"), "{why}");
    }

    #[tokio::test]
    async fn a_mail_is_tried_again_when_the_server_says_nothing() {
        let (server, port) = server().await;
        let pace = Pace { attempt: Duration::from_millis(100), ..FAST };
        let mailer = Mailer::with(&settings(port), pace, Arc::default()).unwrap();
        mailer.send(letter(1));
        let silent = server.accept().await.unwrap();
        let mail = next(&server, "").await;
        assert!(has_lines(&mail, &["Subject: [LB1] change 1"]), "{mail}");
        drop(silent);
    }

    #[tokio::test]
    async fn a_server_that_sends_without_an_end_is_left_after_some_kilobytes_and_the_mail_waits() {
        let (server, port) = server().await;
        let mailer = Mailer::with(&settings(port), FAST, Arc::default()).unwrap();
        mailer.send(letter(1));
        // A line without an end, and a reply with lines without an end.
        let line = format!("220-{}\r\n", "x".repeat(200));
        for piece in ["2", &line] {
            let (mut stream, _) = server.accept().await.unwrap();
            let mut sent = 0;
            while sent < 256 << 20 && stream.write_all(piece.repeat(10_000).as_bytes()).await.is_ok() {
                sent += 10_000 * piece.len();
            }
            // More than is read fits into the sockets' buffers.
            assert!(sent < 64 << 20, "{sent} bytes were taken");
        }
        let mail = next(&server, "").await;
        assert!(has_lines(&mail, &["Subject: [LB1] change 1"]), "{mail}");
    }

    #[tokio::test]
    async fn mails_that_wait_go_to_the_server_of_new_settings() {
        let (gone, port) = server().await;
        drop(gone);
        let mailer = Mailer::with(&settings(port), FAST, Arc::default()).unwrap();
        mailer.send(letter(1));
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (server, port) = server().await;
        let mailer = mailer.with_settings(&settings(port)).unwrap();
        let mail = next(&server, "").await;
        assert!(has_lines(&mail, &["Subject: [LB1] change 1"]), "{mail}");
        mailer.finish(in_time()).await;
    }

    #[tokio::test]
    async fn after_many_mails_in_a_window_the_next_changes_share_one() {
        let (server, port) = server().await;
        let pace = Pace { mails: 2, window: Duration::from_secs(1), ..FAST };
        let mailer = Mailer::with(&settings(port), pace, Arc::default()).unwrap();
        (1..=5).for_each(|number| mailer.send(letter(number)));
        for number in [1, 2] {
            let mail = next(&server, "").await;
            assert!(has_lines(&mail, &[&format!("Subject: [LB1] change {number}")]), "{mail}");
        }
        let mail = next(&server, "").await;
        let lines = [
            "Subject: [LB1] 3 changes",
            "1970-01-01T00:00:03Z  [LB1] change 3",
            "1970-01-01T00:00:05Z  [LB1] change 5",
        ];
        assert!(has_lines(&mail, &lines), "{mail}");
    }

    #[tokio::test]
    async fn a_full_queue_drops_the_oldest_mails_and_the_next_mail_says_how_many() {
        let (server, port) = server().await;
        let mailer = Mailer::with(&settings(port), FAST, Arc::default()).unwrap();
        // The task does not run before this test waits.
        (0..QUEUE_MAX + 3).for_each(|number| mailer.send(letter(number)));
        let mail = next(&server, "").await;
        let lines = ["Subject: [LB1] change 3", "3 mails were dropped, because too many waited."];
        assert!(has_lines(&mail, &lines), "{mail}");
    }

    #[tokio::test]
    async fn a_server_that_hangs_does_not_delay_the_end() {
        let (server, port) = server().await;
        let mailer = Mailer::with(&settings(port), FAST, Arc::default()).unwrap();
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
