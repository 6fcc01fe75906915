//! `xvs healthy`: an exit code that says whether xvsd makes progress.
//!
//! For keepalived's `vrrp_script` and for `packaging/xvs-announce`, which withdraws the addresses: it prints nothing on
//! success, and always ends within its timeout. The request is sent on a separate thread, which ends with the process,
//! so neither a stopped xvsd nor a full socket delays the exit. Progress is measured in `xvsd/src/daemon/liveness.rs`.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::Args;
use xvs_model::protocol::client::{Client, default_socket};
use xvs_model::protocol::question;

use crate::output::exit::{DONE, Done};

/// The arguments of `xvs healthy`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Time limit, 0.01 to 60; the workers and the control thread of xvsd have three quarters of it
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    timeout: Duration,
}

pub(super) fn run(arguments: &Arguments) -> Done {
    let timeout = arguments.timeout;
    // The rest of the time is for the reply, which names what makes no progress. At most 45,000.
    let within_millis = (timeout * 3 / 4).as_millis() as u32;
    let (send, received) = mpsc::channel();
    thread::Builder::new()
        .spawn(move || {
            let answer = Client::connect(&default_socket())
                .and_then(|mut client| question::healthy(within_millis).ask(&mut client));
            // The receiver is gone if the answer is late.
            let _ = send.send(answer);
        })
        .map_err(|error| format!("a thread for the request: {error}"))?;
    match received.recv_timeout(timeout) {
        Ok(answer) => answer.map(|_| DONE).map_err(|failure| failure.to_string().into()),
        Err(_) => Err(format!("xvsd has not answered for {timeout:?}").into()),
    }
}

fn seconds(text: &str) -> Result<Duration, &'static str> {
    text.parse()
        .ok()
        .filter(|seconds| (0.01..=60.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or("a number of seconds from 0.01 to 60 is needed")
}

#[cfg(test)]
mod tests {
    use crate::healthy::*;

    #[test]
    fn a_timeout_is_in_seconds_and_within_its_bounds() {
        assert_eq!(seconds("1"), Ok(Duration::from_secs(1)));
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for text in ["", "0", "61", "-1", "NaN", "inf", "1s"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
