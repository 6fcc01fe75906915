//! Durations as text, as reports and listings print them.

/// A number of seconds in its two largest units: `45 s`, `3 min`, `2 h 5 min`, `7 d 1 h`.
pub fn in_words(seconds: u64) -> String {
    let days = seconds / 86_400;
    let hours = seconds / 3600 % 24;
    let minutes = seconds / 60 % 60;
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}
