//! Puts the settings of a re-read xvs.toml in force while packets flow.
//!
//! A setting that `xvs set` has set stays unless its value in the file has changed. Not here: keys that cannot change
//! in a running process, and the files (`xvsd::reload`).

use serde::Serialize;
use serde::de::DeserializeOwned;
use xvs_dataplane::clock::Millis;
use xvs_model::config::load_feedback::{Feedback, PREFIX};
use xvs_model::config::reconcile::Repair;
use xvs_model::config::settings::Ipvs;
use xvs_model::report::setting::Setting;

use crate::control::Control;
use crate::control::datapath::Datapath;
use crate::journal::format::{Entry, FileRecord};

/// The settings of an xvs.toml that was read again.
pub struct Reloaded {
    /// The keys of `ipvs` and `feedback` whose values have changed, as `xvs set` names them.
    pub changed: Vec<String>,
    /// The settings of IPVS as the file has them.
    pub ipvs: Ipvs,
    /// The settings of load feedback.
    pub feedback: Feedback,
    /// Whether manual changes to owned services are undone.
    pub repair: Repair,
    /// All settings with their sources.
    pub settings: Vec<Setting>,
    /// The file.
    pub toml: Option<FileRecord>,
}

impl<D: Datapath> Control<D> {
    /// Puts these settings in force. Returns the keys of `xvs set` that the file undoes. A late worker becomes a
    /// warning.
    pub fn reload(&mut self, new: Reloaded, now: Millis) -> Vec<String> {
        let Reloaded { changed, ipvs, feedback, repair, settings, toml } = new;
        let of_ipvs = changed.iter().map(String::as_str).filter(|key| !key.starts_with(PREFIX));
        let of_feedback = changed.iter().filter_map(|key| key.strip_prefix(PREFIX));
        self.settings.ipvs = with_keys(&self.settings.ipvs, &ipvs, of_ipvs);
        self.settings.feedback = with_keys(&self.settings.feedback, &feedback, of_feedback);
        self.settings.set_start(settings);
        let undone: Vec<_> = changed.into_iter().filter(|key| self.settings.unset(key)).collect();
        self.set_repair(repair);
        self.settings.tune(&self.registry.tuning);
        self.note_entry(|| Entry::Toml(toml, undone.clone()));
        let moved = self.registry.review_reports(&self.settings.feedback, now);
        let _ = self.publish_with_weights(&moved);
        undone
    }

    /// Writes these lines to the journal.
    pub fn write_entries(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            self.note_entry(|| entry);
        }
        self.save();
    }
}

/// `live` with the values that `new` has for these keys.
fn with_keys<'a, T: Serialize + DeserializeOwned + Clone>(
    live: &T,
    new: &T,
    keys: impl IntoIterator<Item = &'a str>,
) -> T {
    let (Ok(mut document), Ok(values)) = (serde_json::to_value(live), serde_json::to_value(new)) else {
        return new.clone();
    };
    for key in keys {
        document[key] = values[key].clone();
    }
    // Both documents are of one type, so no value is refused.
    serde_json::from_value(document).unwrap_or_else(|_| new.clone())
}

#[cfg(test)]
mod tests {
    use crate::control::reload_settings::*;

    #[test]
    fn keys_that_the_file_has_changed_win_and_others_stay_as_they_were_set() {
        let (mut live, mut new) = (Ipvs::default(), Ipvs::default());
        for (key, value) in [("sloppy_tcp", "1"), ("mss_clamp", "all"), ("drop_entry", "2")] {
            live.set(key, value).unwrap();
        }
        for (key, value) in [("sloppy_sctp", "1"), ("mss_clamp", "off")] {
            new.set(key, value).unwrap();
        }
        let all = with_keys(&live, &new, ["sloppy_sctp", "mss_clamp"]);
        live.set("sloppy_sctp", "1").unwrap();
        live.set("mss_clamp", "off").unwrap();
        assert_eq!(all, live);
        let (mut live, mut new) = (Feedback::default(), Feedback::default());
        live.set("step", "7").unwrap();
        new.set("services", "FWM 7").unwrap();
        let all = with_keys(&live, &new, ["services"]);
        live.set("services", "FWM 7").unwrap();
        assert_eq!(all, live);
    }
}
