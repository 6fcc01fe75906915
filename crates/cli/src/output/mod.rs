//! Output of all subcommands: text on the terminal, and exit codes.

pub(crate) mod exit;
pub(crate) mod late_reply;
pub(crate) mod text;
