//! A process of its own for a test that changes its process, such as a limit of resources.

use std::env;
use std::process::Command;

/// Set to the test's name in its own process.
const VARIABLE: &str = "XVS_TEST_IN_OWN_PROCESS";

/// Whether this process is the own one of `test`, a name as `--list` prints it. If not, runs `test` in one.
///
/// # Panics
///
/// If the test fails there, or if this program has no such test.
pub fn is_own_process(test: &str) -> bool {
    if env::var_os(VARIABLE).is_some_and(|set| set == test) {
        return true;
    }
    let mut command = Command::new(env::current_exe().expect("the program of this test"));
    let output = command.args(["--exact", test]).env(VARIABLE, test).output().expect("it starts");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains(" 1 passed;"), "{printed}");
    false
}
