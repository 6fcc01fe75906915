//! What `xvs set KEY VALUE` and the `[ipvs]` keys of `xvs.toml` change: the kernel's `net.ipv4.vs.*` under their names.

use std::time::Duration;

use xvs_dataplane::snapshot::Settings;

use crate::message::CommandError;
use crate::state::Timeouts;

/// Sets one.
///
/// # Errors
/// [`CommandError::BadSetting`]; then nothing has changed.
pub fn set(settings: &mut Settings, key: &str, value: &str) -> Result<(), CommandError> {
    let bad = || CommandError::BadSetting { key: key.to_owned(), value: value.to_owned() };
    match key {
        "icmp_msgs_per_sec" => settings.icmp_msgs_per_sec = value.parse().map_err(|_| bad())?,
        _ => return Err(bad()),
    }
    Ok(())
}

/// Takes over the timeouts of the desired state.
pub fn set_timeouts(settings: &mut Settings, timeouts: Timeouts) {
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    settings.tcp_established = seconds(timeouts.tcp_seconds);
    settings.tcp_fin_wait = seconds(timeouts.tcp_fin_seconds);
    settings.udp = seconds(timeouts.udp_seconds);
}
