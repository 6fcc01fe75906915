//! The list of recordings that do not pass yet: `pending.txt`.
//!
//! Read before the recordings are played. Not here: playing them and finding the step.

use std::collections::BTreeMap;

/// Where and why a recording does not play the same.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    /// The first step that differs, as the recording counts them: from 0.
    pub(crate) step: usize,
    pub(crate) reason: String,
}

/// Reads lines of `NAME STEP REASON`; empty lines and those that begin with `#` are skipped.
///
/// Errors: the line's number and what is wrong with it.
pub(crate) fn parse(text: &str) -> Result<BTreeMap<String, Pending>, String> {
    let mut list = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines().map(str::trim)) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |what: String| format!("pending.txt line {number}: {what}");
        let (name, rest) = word(line);
        let (step, reason) = word(rest);
        let step = step
            .parse()
            .map_err(|_| wrong(format!("NAME STEP REASON is needed; {step:?} is not a step's number")))?;
        if reason.is_empty() {
            return Err(wrong(format!("NAME STEP REASON is needed; {name} has no reason")));
        }
        let pending = Pending { step, reason: reason.to_owned() };
        if list.insert(name.to_owned(), pending).is_some() {
            return Err(wrong(format!("{name} is listed twice")));
        }
    }
    Ok(list)
}

/// The first word of a line, and the rest of it.
fn word(line: &str) -> (&str, &str) {
    line.split_once(char::is_whitespace).map_or((line, ""), |(word, rest)| (word, rest.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_name_a_step_and_a_reason() {
        let listed =
            |name: &str, step, reason: &str| (name.to_owned(), Pending { step, reason: reason.to_owned() });
        let rows = [
            ("", vec![]),
            ("# NAME STEP REASON\n\n", vec![]),
            ("fwd-local 5 no NAT", vec![listed("fwd-local", 5, "no NAT")]),
            (
                "  b\t 12   its own: stays so  \r\na 0 c",
                vec![listed("a", 0, "c"), listed("b", 12, "its own: stays so")],
            ),
            ("cli-01 3 # of them", vec![listed("cli-01", 3, "# of them")]),
        ];
        for (text, expected) in rows {
            assert_eq!(parse(text), Ok(expected.into_iter().collect()), "{text:?}");
        }
    }

    #[test]
    fn a_line_of_another_form_is_refused_with_its_number() {
        let needed = "NAME STEP REASON is needed";
        let rows = [
            ("cli-01 help texts", format!("pending.txt line 1: {needed}; \"help\" is not a step's number")),
            ("cli-01", format!("pending.txt line 1: {needed}; \"\" is not a step's number")),
            ("cli-01 -1 why", format!("pending.txt line 1: {needed}; \"-1\" is not a step's number")),
            ("cli-01 1.5 why", format!("pending.txt line 1: {needed}; \"1.5\" is not a step's number")),
            ("#\n\ncli-01 7 ", format!("pending.txt line 3: {needed}; cli-01 has no reason")),
            ("a 1 why\na 2 why", "pending.txt line 2: a is listed twice".to_owned()),
        ];
        for (text, message) in rows {
            assert_eq!(parse(text), Err(message), "{text:?}");
        }
    }
}
