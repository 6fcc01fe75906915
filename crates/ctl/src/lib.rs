//! xvs-ctl
