//! `MISC_CHECK`: a script and its exit code.
//!
//! Each probe runs the script once, at most until the deadline. Two runs never overlap: while a killed run has not
//! ended, no new run starts, and each probe fails. The interval of the check is from start to start; the caller
//! maintains it (`runner.rs`). Cost: one process. `command.rs` runs the script.

use tokio::time::Instant;
use xvs_model::health_checks::check::ExitCodeMeaning;

use crate::command::{Outcome, Program};
use crate::probes::probe_result::ProbeResult;

/// Runs the script once. `weight` is the configured weight of the real server.
///
/// A script that does not exist, is not executable or is not secure is a failure, so that a mistake is noticed.
pub(crate) async fn probe(
    program: &Program,
    meaning: ExitCodeMeaning,
    weight: u32,
    deadline: Instant,
) -> ProbeResult {
    let outcome = program.run(deadline).await;
    match (meaning, &outcome) {
        (_, Outcome::Exit(0)) => ProbeResult::Passed(0),
        // Exit codes 126 and 127 of a shell mean that it could not run the command; they are not weights.
        (ExitCodeMeaning::Dynamic, Outcome::Exit(code @ 2..=255)) if ![126, 127].contains(code) => {
            ProbeResult::Passed(i64::from(*code) - 2 - i64::from(weight))
        }
        (_, Outcome::NotStarted(why)) => ProbeResult::NotRun(why.clone()),
        _ => ProbeResult::Failed(outcome.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::command::RunLock;
    use crate::command::testing::{Folder, hold, in_time, until, until_started, written};
    use crate::probes::script::*;
    use xvs_model::health_checks::check::Script;
    use xvs_model::health_checks::virtual_server::Globals;

    fn program(script: &Script) -> Program {
        Program::new(script, &Globals::default(), RunLock::default())
    }

    async fn run(meaning: ExitCodeMeaning, text: &str) -> ProbeResult {
        let folder = Folder::new();
        probe(&program(&folder.script(text)), meaning, 10, in_time()).await
    }

    fn failed(why: &str) -> ProbeResult {
        ProbeResult::Failed(why.to_owned())
    }

    #[tokio::test]
    async fn exit_code_0_passes_and_any_other_fails() {
        assert_eq!(run(ExitCodeMeaning::Plain, "exit 0").await, ProbeResult::Passed(0));
        for code in [1, 2, 7, 255] {
            let want = failed(&format!("exit code {code}"));
            assert_eq!(run(ExitCodeMeaning::Plain, &format!("exit {code}")).await, want);
        }
        assert_eq!(run(ExitCodeMeaning::Plain, "kill -TERM $$").await, failed("ended by signal 15"));
    }

    #[tokio::test]
    async fn dynamic_exit_codes_are_the_weight_plus_2_and_the_result_is_the_difference() {
        let dynamic = async |text: &str| run(ExitCodeMeaning::Dynamic, text).await;
        assert_eq!(dynamic("exit 0").await, ProbeResult::Passed(0));
        assert_eq!(dynamic("exit 1").await, failed("exit code 1"));
        assert_eq!(dynamic("exit 2").await, ProbeResult::Passed(-10));
        assert_eq!(dynamic("exit 7").await, ProbeResult::Passed(-5));
        assert_eq!(dynamic("exit 255").await, ProbeResult::Passed(243));
        assert_eq!(dynamic("kill -KILL $$").await, failed("ended by signal 9"));
    }

    #[tokio::test]
    async fn exit_codes_126_and_127_of_a_shell_are_failures_and_no_weights() {
        assert_eq!(
            run(ExitCodeMeaning::Dynamic, "exit 126").await,
            failed("exit code 126: it may not be executed")
        );
        let missing = program(&written("/nonexistent/check.sh"));
        let result = probe(&missing, ExitCodeMeaning::Dynamic, 1, in_time()).await;
        assert_eq!(result, failed("exit code 127: there is no such command"));
    }

    #[tokio::test]
    async fn a_script_that_cannot_be_used_fails() {
        let mut script = written("/bin/true");
        script.user = Some("nosuchuser".to_owned());
        let result = probe(&program(&script), ExitCodeMeaning::Plain, 1, in_time()).await;
        assert_eq!(result, failed("there is no user `nosuchuser`"));
    }

    #[tokio::test]
    async fn a_script_that_is_not_started_in_time_counts_as_not_run() {
        let (folder, lock) = (Folder::new(), RunLock::default());
        let program = Program::new(&folder.script("exit 0"), &Globals::default(), lock.clone());
        let starting = hold(&lock);
        for _ in ["the first probe", "a probe while the first script has not started"] {
            let soon = Instant::now() + Duration::from_millis(20);
            let result = probe(&program, ExitCodeMeaning::Plain, 1, soon).await;
            assert!(
                matches!(&result, ProbeResult::NotRun(why) if why.starts_with("it could not be started"))
            );
        }
        drop(starting);
        program.wait_until_ended().await;
        assert_eq!(probe(&program, ExitCodeMeaning::Plain, 1, in_time()).await, ProbeResult::Passed(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_script_that_hangs_fails_at_the_deadline_and_the_next_starts_after_its_end() {
        let folder = Folder::new();
        let text =
            "mkdir here || exit 9\ntrap 'rmdir here; exit' TERM; echo >>began; while :; do sleep 0.01; done";
        let program = program(&folder.script(text));
        for began in ["\n", "\n\n"] {
            let probed = tokio::spawn({
                let program = program.clone();
                async move { probe(&program, ExitCodeMeaning::Plain, 1, in_time()).await }
            });
            until(|| folder.read("began") == began).await;
            until_started(&program).await;
            assert_eq!(probed.await.unwrap(), failed("it did not end in time and was killed"));
        }
        until(|| !folder.path("here").exists()).await;
    }
}
