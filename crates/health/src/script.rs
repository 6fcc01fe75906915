//! `MISC_CHECK`: a script by its exit code.
//!
//! Asked once, it runs once, at most until the deadline. It never runs twice at once, whatever became of whoever asked
//! before: one that does not end, though it was killed, keeps the next from starting, and is a failure each time. From the
//! start of one to the start of the next is the interval, which the caller keeps. Cost: that of a process. Not here:
//! running it (`command.rs`).

use tokio::time::Instant;
use xvs_model::check::ExitCodeMeaning;

use crate::command::{Outcome, Program};
use crate::probe_result::ProbeResult;

/// Runs a script. `weight` is that of the real server as it is configured.
///
/// A script that is not there, may not be executed or is not secure is a failure, so that a slip is seen.
pub(super) async fn probe(
    program: &Program,
    meaning: ExitCodeMeaning,
    weight: u32,
    deadline: Instant,
) -> ProbeResult {
    let outcome = program.run(deadline).await;
    match (meaning, &outcome) {
        (_, Outcome::Exit(0)) => ProbeResult::Passed(0),
        // What a shell says of a command that it cannot run is no weight.
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

    use crate::blocking::{BLOCKING_MAX, run_blocking};
    use crate::command::RunLock;
    use crate::command::testing::{Folder, in_time, until, written};
    use crate::script::*;
    use xvs_model::check::Script;
    use xvs_model::virtual_server::Globals;

    fn program(script: &Script) -> Program {
        Program::new(script, &Globals::default(), RunLock::default())
    }

    async fn answer(meaning: ExitCodeMeaning, text: &str) -> ProbeResult {
        let folder = Folder::new();
        probe(&program(&folder.script(text)), meaning, 10, in_time()).await
    }

    fn unwell(why: &str) -> ProbeResult {
        ProbeResult::Failed(why.to_owned())
    }

    #[tokio::test]
    async fn exit_code_0_is_well_and_any_other_is_not() {
        assert_eq!(answer(ExitCodeMeaning::Plain, "exit 0").await, ProbeResult::Passed(0));
        for code in [1, 2, 7, 255] {
            let want = unwell(&format!("exit code {code}"));
            assert_eq!(answer(ExitCodeMeaning::Plain, &format!("exit {code}")).await, want);
        }
        assert_eq!(answer(ExitCodeMeaning::Plain, "kill -TERM $$").await, unwell("ended by signal 15"));
    }

    #[tokio::test]
    async fn dynamic_codes_are_the_weight_and_2_and_what_they_add_is_told() {
        let dynamic = async |text: &str| answer(ExitCodeMeaning::Dynamic, text).await;
        assert_eq!(dynamic("exit 0").await, ProbeResult::Passed(0));
        assert_eq!(dynamic("exit 1").await, unwell("exit code 1"));
        assert_eq!(dynamic("exit 2").await, ProbeResult::Passed(-10));
        assert_eq!(dynamic("exit 7").await, ProbeResult::Passed(-5));
        assert_eq!(dynamic("exit 255").await, ProbeResult::Passed(243));
        assert_eq!(dynamic("kill -KILL $$").await, unwell("ended by signal 9"));
    }

    #[tokio::test]
    async fn what_a_shell_says_of_a_command_that_it_cannot_run_is_a_failure_and_no_weight() {
        assert_eq!(
            answer(ExitCodeMeaning::Dynamic, "exit 126").await,
            unwell("exit code 126: it may not be executed")
        );
        let missing = program(&written("/nonexistent/check.sh"));
        let answer = probe(&missing, ExitCodeMeaning::Dynamic, 1, in_time()).await;
        assert_eq!(answer, unwell("exit code 127: there is no such command"));
    }

    #[tokio::test]
    async fn a_script_that_cannot_be_used_is_a_failing_check() {
        let mut script = written("/bin/true");
        script.user = Some("nosuchuser".to_owned());
        let answer = probe(&program(&script), ExitCodeMeaning::Plain, 1, in_time()).await;
        assert_eq!(answer, unwell("there is no user `nosuchuser`"));
    }

    #[tokio::test]
    async fn one_that_is_not_even_started_in_time_says_nothing_of_the_server() {
        let (end, ended) = crossbeam::channel::bounded::<()>(0);
        let hanging: Vec<_> = (0..BLOCKING_MAX)
            .map(|_| {
                let ended = ended.clone();
                tokio::spawn(run_blocking(move || ended.recv().is_err()))
            })
            .collect();
        tokio::task::yield_now().await;
        let folder = Folder::new();
        let program = program(&folder.script("exit 0"));
        for _ in ["the first", "one that comes while that is not started yet"] {
            let soon = Instant::now() + Duration::from_millis(20);
            let answer = probe(&program, ExitCodeMeaning::Plain, 1, soon).await;
            assert!(
                matches!(&answer, ProbeResult::NotRun(why) if why.starts_with("it could not be started"))
            );
        }
        drop(end);
        for one in hanging {
            assert!(one.await.unwrap().unwrap());
        }
        program.wait_until_ended().await;
        assert_eq!(probe(&program, ExitCodeMeaning::Plain, 1, in_time()).await, ProbeResult::Passed(0));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_is_not_well_at_its_deadline_and_the_next_starts_when_it_is_gone() {
        let folder = Folder::new();
        let text =
            "mkdir here || exit 9\ntrap 'rmdir here; exit' TERM; echo >>began; while :; do sleep 0.01; done";
        let program = program(&folder.script(text));
        for began in ["\n", "\n\n"] {
            let asked = tokio::spawn({
                let program = program.clone();
                async move { probe(&program, ExitCodeMeaning::Plain, 1, in_time()).await }
            });
            until(|| folder.read("began") == began).await;
            assert_eq!(asked.await.unwrap(), unwell("it did not end in time and is ended"));
        }
        until(|| !folder.path("here").exists()).await;
    }
}
