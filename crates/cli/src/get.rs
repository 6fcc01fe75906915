//! `xvs get`: the settings in force, and the source of each.

use std::io::Write;

use clap::Args;
use serde_json::Value;
use xvs_model::config::refusal::CommandError;
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question;
use xvs_model::report::setting::Setting;

use crate::output::exit::{DONE, Done};
use crate::output::text::{aligned, print, widths};

/// The arguments of `xvs get`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only this setting
    key: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    let mut settings = question::settings().ask(director)?;
    if let Some(key) = &arguments.key {
        let known: Vec<_> = settings.iter().map(|setting| setting.key.clone()).collect();
        settings.retain(|setting| setting.key == *key);
        if settings.is_empty() {
            return Err(Failure::Refused(CommandError::UnknownSetting { key: key.clone(), known }).into());
        }
    }
    print(&settings, arguments.json, |settings| screen(settings), out)?;
    Ok(DONE)
}

/// The settings as text, a line each.
fn screen(settings: &[Setting]) -> String {
    let rows: Vec<[String; 3]> = settings
        .iter()
        .map(|Setting { key, value, source }| [key.clone(), shown(value), shown(&serde_json::json!(source))])
        .collect();
    let mut widths = widths(&rows);
    widths[1] = widths[1].min(VALUE);
    rows.iter().map(|row| aligned(row, widths)).collect()
}

/// A value as text: a list without brackets, a dash for none.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "\"\"".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(shown).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Maximum width of the column of values; a longer value moves its source to the right.
const VALUE: usize = 24;

#[cfg(test)]
mod tests {
    use serde_json::json;
    use xvs_model::report::setting::Source;

    use crate::get::*;

    #[test]
    fn each_setting_has_a_line_with_its_value_and_its_source() {
        let of = |key: &str, value, source| Setting { key: key.to_owned(), value, source };
        let settings = [
            of("interfaces", json!(["wan", "lan"]), Source::CommandLine),
            of("metrics_address", Value::Null, Source::Default),
            of("sloppy_tcp", json!(1), Source::XvsSet),
        ];
        let expected = "\
interfaces       wan,lan  command line
metrics_address  -        default
sloppy_tcp       1        xvs set
";
        assert_eq!(screen(&settings), expected);
    }
}
