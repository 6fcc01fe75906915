//! The programs and the control socket between them: arguments, output, exit statuses, violated limits.

mod bad_input;
mod control;
mod manual;
mod requests;
mod socket;
mod socket_folder;
mod xvsadm;
