//! Command lines and listings of `xvsadm`, compared with those of ipvsadm and the kernel.

mod listener;
mod listings;
mod options;
mod properties;
mod recordings;
mod values;
