//! Features of services that ipvsadm has no options for, and whose subcommands have a form of their own.

pub(crate) mod feedback;
pub(crate) mod lists;
