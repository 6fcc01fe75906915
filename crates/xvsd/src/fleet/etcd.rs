//! Requests to etcd, in the JSON form of its API (`/v3/`): the state of a fleet's keys, transactions and leases.
//!
//! One member is used until it fails. If it cannot be reached or a read fails, the next is tried at once. A failed
//! change is not repeated, because etcd may have carried it out. Each request has a time limit. Keys and values are in
//! base64, numbers are strings, and fields with value zero are absent. Source: etcd 3.4, `rpc.proto`.

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hyper::StatusCode;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::time::timeout;
use xvs_ctl::config::fleet::{Fleet, Url};
use xvs_model::foreign_text::ForeignText;

use crate::fleet::answer::{Answer, Entry, refusal};
use crate::fleet::connection::{Connection, ConnectionError};
use crate::fleet::follow::Seen;

/// The time limit of a connection with its handshake, and of a request.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// Why etcd has not carried out a request.
#[derive(Debug, Error)]
pub(super) enum EtcdError {
    /// One member has failed.
    #[error("{url}: {why}")]
    Member { url: String, why: MemberError },
    /// These members, one after the other.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Members(Vec<EtcdError>),
}

/// Why a member of etcd has failed.
#[derive(Debug, Error)]
pub(super) enum MemberError {
    #[error("no connection within {} s", .0.as_secs_f32())]
    Unreached(Duration),
    #[error("no answer within {} s", .0.as_secs_f32())]
    Silent(Duration),
    #[error("{}", ForeignText::from(.0.to_string()))]
    Connection(ConnectionError),
    /// etcd's message.
    #[error("{}", advised(.0))]
    Refused(ForeignText),
    #[error("{0}, {NO_ETCD}")]
    Status(StatusCode),
    #[error("{NO_ETCD}")]
    NoEtcd,
    #[error("it grants no lease")]
    NoLease,
}

/// The message about a response that is not etcd's.
const NO_ETCD: &str = "no answer of etcd 3.4 or later; correct `etcd` in [fleet] of xvs.toml";

/// The members of etcd, and the names of a fleet's keys.
pub(super) struct Etcd {
    fleet: Fleet,
    urls: Vec<Url>,
    /// The member that is used.
    at: usize,
    connection: Option<Connection>,
    /// The time limit of each connection and request.
    pub(super) patience: Duration,
    /// Whether a member answered the last request.
    pub(super) answers: bool,
    /// The prefix of all keys of the fleet.
    prefix: String,
}

/// The state of a fleet's keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) seen: Seen,
    /// The lease of the trial; 0 if there is none.
    pub(super) trial_lease: u64,
    pub(super) directors: Vec<Entry>,
}

/// The answer to a transaction.
pub(super) struct Committed {
    /// Whether the comparisons held; otherwise nothing has changed.
    pub(super) done: bool,
    /// The revision of the store after the transaction, and therefore of the keys that it has written.
    pub(super) revision: u64,
}

impl Etcd {
    pub(super) fn new(fleet: &Fleet) -> Self {
        Self {
            fleet: fleet.clone(),
            urls: fleet.urls(),
            at: 0,
            connection: None,
            patience: PATIENCE,
            answers: false,
            prefix: format!("/xvs/{}/", fleet.name.as_deref().unwrap_or_default()),
        }
    }

    /// The member that is used.
    pub(super) fn url(&self) -> &str {
        &self.urls[self.at].text
    }

    /// The revisions of the rules and the records of the directors, of one moment.
    pub(super) async fn keys(&mut self) -> Result<Keys, EtcdError> {
        let directors = self.key("directors/");
        // The key after all keys with this prefix: `/` + 1 is `0`.
        let end = format!("{}0", directors.trim_end_matches('/'));
        let ranges = [
            json!({"request_range": {"key": encoded(&directors), "range_end": encoded(&end)}}),
            json!({"request_range": {"key": encoded(self.key("rules")), "keys_only": true}}),
            json!({"request_range": {"key": encoded(self.key("trial")), "keys_only": true}}),
        ];
        let answer = self.read("kv/txn", &json!({"success": ranges})).await?;
        Ok(keys_of(answer, &directors))
    }

    /// The text of a key with its revision; `None` if there is no such key.
    pub(super) async fn text(&mut self, key: &str) -> Result<Option<(u64, Vec<u8>)>, EtcdError> {
        let answer = self.read("kv/range", &json!({"key": encoded(self.key(key))})).await?;
        Ok(answer.kvs.0.into_iter().next().map(|found| (found.mod_revision, found.value)))
    }

    /// Carries out operations together, if all comparisons hold.
    pub(super) async fn commit(
        &mut self,
        compare: &[Value],
        operations: &[Value],
    ) -> Result<Committed, EtcdError> {
        let answer = self.call("kv/txn", &json!({"compare": compare, "success": operations})).await?;
        Ok(Committed { done: answer.succeeded, revision: answer.header.revision })
    }

    /// A comparison: the key has this revision; `None` if there is no such key.
    pub(super) fn has_revision(&self, key: &str, revision: Option<u64>) -> Value {
        let revision = revision.unwrap_or(0).to_string();
        json!({"target": "MOD", "key": encoded(self.key(key)), "mod_revision": revision})
    }

    /// An operation: writes a key, for as long as a lease lives; 0: without a lease.
    pub(super) fn put(&self, key: &str, value: &[u8], lease: u64) -> Value {
        let lease = lease.to_string();
        json!({"request_put": {"key": encoded(self.key(key)), "value": encoded(value), "lease": lease}})
    }

    /// An operation: deletes a key.
    pub(super) fn delete(&self, key: &str) -> Value {
        json!({"request_delete_range": {"key": encoded(self.key(key))}})
    }

    /// A new lease.
    pub(super) async fn grant(&mut self, time: Duration) -> Result<u64, EtcdError> {
        match self.call("lease/grant", &json!({"TTL": time.as_secs().to_string()})).await?.id {
            0 => Err(self.failed(MemberError::NoLease)),
            lease => Ok(lease),
        }
    }

    /// Prolongs a lease. Returns whether it lives.
    pub(super) async fn keep_alive(&mut self, lease: u64) -> Result<bool, EtcdError> {
        let answer = self.call("lease/keepalive", &json!({"ID": lease.to_string()})).await?;
        Ok(answer.result.ttl > 0)
    }

    /// The remaining time of a lease; zero if it has ended.
    pub(super) async fn time_left(&mut self, lease: u64) -> Result<Duration, EtcdError> {
        let answer = self.read("lease/timetolive", &json!({"ID": lease.to_string()})).await?;
        // -1 for a lease that has ended, which is no number here.
        Ok(Duration::from_secs(answer.ttl))
    }

    /// Ends a lease, with its keys.
    pub(super) async fn revoke(&mut self, lease: u64) -> Result<(), EtcdError> {
        self.call("lease/revoke", &json!({"ID": lease.to_string()})).await.map(drop)
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Closes the connection, on which an answer may be under way.
    pub(super) fn disconnect(&mut self) {
        self.connection = None;
    }

    /// Sends a request that changes nothing. If a member fails, the next one is tried at once.
    async fn read(&mut self, method: &str, body: &Value) -> Result<Answer, EtcdError> {
        let mut errors = Vec::new();
        for _ in 0..self.urls.len() {
            let at = self.at;
            match self.call(method, body).await {
                Ok(answer) if answer.header.revision > 0 => return Ok(answer),
                Ok(_) => {
                    errors.push(self.failed(MemberError::NoEtcd));
                    self.use_next();
                }
                Err(error) => errors.push(error),
            }
            if self.at == at {
                // Another member would answer the same, or none can be reached.
                break;
            }
        }
        Err(EtcdError::Members(errors))
    }

    /// Sends a request. If the member fails, the next request goes to the next member.
    async fn call(&mut self, method: &str, body: &Value) -> Result<Answer, EtcdError> {
        let body = body.to_string().into_bytes();
        self.answers = false;
        if self.connection.is_none() {
            self.connect().await?;
        }
        let connection = self.connection.as_mut().expect("it was connected above");
        let sent = timeout(self.patience, connection.post(&format!("/v3/{method}"), body)).await;
        self.answers = matches!(sent, Ok(Ok(_)));
        let why = match sent {
            Ok(Ok((status, body))) => match answer_of(status, &body) {
                Ok(answer) => return Ok(answer),
                // Another member would answer the same.
                Err(why) if status.is_client_error() => return Err(self.failed(why)),
                Err(why) => why,
            },
            Ok(Err(why)) => MemberError::Connection(why),
            Err(_) => MemberError::Silent(self.patience),
        };
        let error = self.failed(why);
        self.use_next();
        Err(error)
    }

    /// Connects to the first member that can be reached, from the present one on.
    async fn connect(&mut self) -> Result<(), EtcdError> {
        let mut errors = Vec::new();
        for _ in 0..self.urls.len() {
            let url = &self.urls[self.at];
            let why = match timeout(self.patience, Connection::open(url, &self.fleet)).await {
                Ok(Ok(connection)) => {
                    self.connection = Some(connection);
                    return Ok(());
                }
                Ok(Err(why)) => MemberError::Connection(why),
                Err(_) => MemberError::Unreached(self.patience),
            };
            errors.push(self.failed(why));
            self.use_next();
        }
        Err(EtcdError::Members(errors))
    }

    fn use_next(&mut self) {
        self.connection = None;
        self.at = (self.at + 1) % self.urls.len();
    }

    fn failed(&self, why: MemberError) -> EtcdError {
        EtcdError::Member { url: self.url().to_owned(), why }
    }
}

/// The answer of a body.
fn answer_of(status: StatusCode, body: &[u8]) -> Result<Answer, MemberError> {
    // An error of a stream, such as that of `lease/keepalive`, has the status 200.
    if let Some(message) = refusal(body) {
        return Err(MemberError::Refused(message.into()));
    }
    if status != StatusCode::OK {
        return Err(MemberError::Status(status));
    }
    // The error's text refers to a line and column of a response that the operator does not see.
    serde_json::from_slice(body).map_err(|_| MemberError::Status(status))
}

/// A message of etcd with the next step.
fn advised(message: &ForeignText) -> String {
    let words = message.raw();
    let step = if words.contains("database space exceeded") {
        "; etcd is full: `etcdctl compact`, `etcdctl defrag`, then `etcdctl alarm disarm`, or raise --quota-backend-bytes"
    } else if words.contains("too large") {
        "; raise --max-request-bytes of etcd"
    } else if words.contains("permission denied") || words.contains("user name is empty") {
        "; xvs uses no users of etcd: limit the access by client certificates, without `etcdctl auth enable`"
    } else {
        ""
    };
    format!("{message}{step}")
}

/// The answers to the three ranges of [`Etcd::keys`].
fn keys_of(answer: Answer, directors: &str) -> Keys {
    let mut ranges = answer.responses.0.into_iter().map(|response| response.response_range.kvs.0);
    let [entries, rules, trial] = [(); 3].map(|()| ranges.next().unwrap_or_default());
    let trial_lease = trial.first().map_or(0, |found| found.lease);
    Keys {
        seen: Seen {
            cluster: answer.header.cluster_id,
            revision: answer.header.revision,
            rules: rules.first().map(|found| found.mod_revision),
            // A trial without a lease would never end.
            trial: trial.first().map(|found| found.mod_revision).filter(|_| trial_lease != 0),
        },
        trial_lease,
        directors: entries.into_iter().filter_map(|found| Entry::of(found, directors)).collect(),
    }
}

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Answers of etcd 3.4.23.
    const KEYS: &str = r#"{"header":{"cluster_id":"14841639068965178418","member_id":"10276657743932975437","revision":"3","raft_term":"2"},"succeeded":true,"responses":[{"response_range":{"header":{"revision":"3"},"kvs":[{"key":"L3h2cy9hL2RpcmVjdG9ycy9sYjE=","create_revision":"2","mod_revision":"3","version":"2","value":"aGkz","lease":"7587899098676326664"}],"count":"1"}},{"response_range":{"header":{"revision":"3"}}},{"response_range":{"header":{"revision":"3"},"kvs":[{"key":"L3h2cy9hL3RyaWFs","mod_revision":"2","lease":"7587899098676326664"}]}}]}"#;

    #[test]
    fn the_keys_of_a_fleet_are_read_from_an_answer() {
        let keys = keys_of(serde_json::from_str(KEYS).unwrap(), "/xvs/a/directors/");
        let seen = Seen { cluster: 14_841_639_068_965_178_418, revision: 3, rules: None, trial: Some(2) };
        let entry = Entry { name: "lb1".to_owned(), revision: 3, value: b"hi3".to_vec() };
        assert_eq!(keys, Keys { seen, trial_lease: 7_587_899_098_676_326_664, directors: vec![entry] });
        assert_eq!(keys_of(Answer::default(), ""), Keys::default());
    }

    #[test]
    fn errors_are_etcds_words_with_the_next_step() {
        let error = |status, body: &str| answer_of(status, body.as_bytes()).unwrap_err().to_string();
        let of_3_4 = r#"{"error":"etcdserver: mvcc: database space exceeded","message":"etcdserver: mvcc: database space exceeded","code":8}"#;
        let of_3_5 = r#"{"code":8, "message":"etcdserver: mvcc: database space exceeded"}"#;
        for full in [of_3_4, of_3_5] {
            let said = error(StatusCode::TOO_MANY_REQUESTS, full);
            assert!(
                said.starts_with(
                    "etcdserver: mvcc: database space exceeded; etcd is full: `etcdctl compact`"
                ),
                "{said}"
            );
        }
        let of_a_stream = r#"{"error":{"grpc_code":14,"message":"etcdserver: no leader"}}"#;
        assert_eq!(error(StatusCode::OK, of_a_stream), "etcdserver: no leader");
        assert!(
            error(StatusCode::NOT_FOUND, "Not Found\n").starts_with("404 Not Found, no answer of etcd 3.4")
        );
        assert!(error(StatusCode::OK, "<html>").starts_with("200 OK, no answer of etcd"));
        let escape = r#"{"error":"\u001b[2J\nno"}"#;
        assert_eq!(error(StatusCode::NOT_FOUND, escape), "\\u{1b}[2J\\nno");
    }

    #[test]
    fn a_dense_answer_is_refused_before_it_takes_more_memory_than_its_bytes() {
        let many = |element: &str| vec![element; 5_000_000].join(",");
        for dense in [
            format!(r#"{{"header":{{"revision":"3"}},"responses":[{}]}}"#, many("{}")),
            format!(r#"{{"responses":[{{"response_range":{{"kvs":[{}]}}}}]}}"#, many("{}")),
            format!(r#"{{"kvs":[{}]}}"#, many("{}")),
        ] {
            let why = answer_of(StatusCode::OK, dense.as_bytes()).unwrap_err().to_string();
            assert!(why.starts_with("200 OK, no answer of etcd"), "{why}");
        }
        // Fields without a meaning are not kept.
        let other =
            format!(r#"{{"header":{{"revision":"3","more":[{}]}},"error":{{"message":[0]}}}}"#, many("{}"));
        assert_eq!(answer_of(StatusCode::OK, other.as_bytes()).unwrap().header.revision, 3);
        let refused = format!(r#"{{"error":"{}"}}"#, "x".repeat(1000));
        let why = answer_of(StatusCode::OK, refused.as_bytes()).unwrap_err().to_string();
        assert_eq!(why.chars().count(), 501);
    }
}
