//! The lines of ldirectord.cf: global settings, and virtual servers with the settings that are indented below them.
//!
//! Pure. Source: the manual ldirectord(8) 4.12, and runs of ldirectord 4.12 with such files: a `#` starts a comment
//! anywhere, also in quotes; a line without a setting ends a virtual server, but a comment does not; a backslash at the
//! end of a line has no effect. ldirectord refuses the whole file for a line that is left out here.

use crate::import::printer::LeftOut;

/// The lines of a file.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The settings outside of virtual servers.
    pub(super) globals: Vec<Setting>,
    /// The virtual servers, in the file's order.
    pub(super) sections: Vec<Section>,
    /// The lines outside of virtual servers that are no settings.
    pub(super) left_out: Vec<LeftOut>,
}

/// A line `key = value`.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    /// The number in the file, from 1.
    pub(super) line: usize,
    pub(super) key: String,
    pub(super) value: String,
}

/// A virtual server: its first line, and the lines below it.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) head: Setting,
    pub(super) settings: Vec<Setting>,
    /// The lines in it that are no settings.
    pub(super) left_out: Vec<LeftOut>,
}

impl Lines {
    pub(super) fn read(text: &str) -> Self {
        let mut lines = Self::default();
        let mut section: Option<Section> = None;
        for (number, line) in (1..).zip(text.lines()) {
            let kept = line.split('#').next().unwrap_or_default().trim_end();
            if kept.trim_start().is_empty() {
                if !line.contains('#') {
                    lines.sections.extend(section.take());
                }
            } else if kept.starts_with([' ', '\t']) {
                match (&mut section, indented(number, kept)) {
                    (Some(section), Ok(setting)) => section.settings.push(setting),
                    (Some(section), Err(left_out)) => section.left_out.push(left_out),
                    (None, _) => {
                        let why = "it is indented, and in no virtual server; a line without a setting ends a \
                                   virtual server, so remove the empty line before it";
                        lines.left_out.push(LeftOut::new(number, why));
                    }
                }
            } else {
                lines.sections.extend(section.take());
                section = lines.outer(number, kept);
            }
        }
        lines.sections.extend(section);
        lines
    }

    /// Reads a line that is not indented. Returns the virtual server that it starts.
    fn outer(&mut self, number: usize, line: &str) -> Option<Section> {
        match setting(number, line) {
            Some(head) if ["virtual", "virtual6"].contains(&head.key.as_str()) => {
                return Some(Section { head, settings: Vec::new(), left_out: Vec::new() });
            }
            Some(setting) if is_one_of(&setting.key, &[GLOBAL, ANYWHERE]) => self.globals.push(setting),
            Some(setting) if is_one_of(&setting.key, &[VIRTUAL]) => {
                let why = format!("`{}` belongs to a virtual server; indent it below one", setting.key);
                self.left_out.push(LeftOut::new(number, why));
            }
            found => self.left_out.push(unknown(number, found)),
        }
        None
    }
}

/// Reads a line below the first line of a virtual server.
fn indented(number: usize, line: &str) -> Result<Setting, LeftOut> {
    let is_deep = line.starts_with('\t') || line.starts_with("    ");
    match setting(number, line.trim_start()) {
        Some(_) if !is_deep => Err(LeftOut::new(number, "indent it by a tab or at least four spaces")),
        Some(setting) if is_one_of(&setting.key, &[VIRTUAL, ANYWHERE]) => Ok(setting),
        Some(setting) if is_one_of(&setting.key, &[GLOBAL]) => {
            let why = format!("`{}` is a global setting; move it before the virtual servers", setting.key);
            Err(LeftOut::new(number, why))
        }
        found => Err(unknown(number, found)),
    }
}

fn setting(line: usize, text: &str) -> Option<Setting> {
    // The only setting that may have no value.
    let text = if text == "supervised" { "supervised=yes" } else { text };
    let (key, value) = text.split_once('=')?;
    Some(Setting { line, key: key.trim().to_owned(), value: value.trim().to_owned() })
}

fn is_one_of(key: &str, lists: &[&str]) -> bool {
    lists.iter().any(|list| list.split(' ').any(|known| known == key))
}

fn unknown(number: usize, setting: Option<Setting>) -> LeftOut {
    let why = match setting {
        Some(setting) => format!("ldirectord has no setting `{}`; correct or remove the line", setting.key),
        None => "it has no `=`; correct or remove the line".to_owned(),
    };
    LeftOut::new(number, why)
}

/// The settings outside of virtual servers only.
const GLOBAL: &str =
    "autoreload callback emailalertfrom execute fork logfile maintenancedir readdquiescent supervised";

/// The settings of virtual servers only.
const VIRTUAL: &str = "checkcommand checkport checktype comment database httpmethod login monitorfile \
                       netmask ops passwd persistent protocol real real6 receive request scheduler secret \
                       service servicename virtualhost";

/// The settings that a virtual server inherits from the global settings.
const ANYWHERE: &str = "checkcount checkinterval checktimeout cleanstop emailalert emailalertfreq \
                        emailalertstatus failurecount fallback fallback6 fallbackcommand negotiatetimeout \
                        quiescent smtp";
