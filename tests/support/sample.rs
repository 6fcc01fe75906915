//! Sample outputs on pages of `docs/`, compared with what the command prints.
//!
//! A sample is what stands in a block of code behind a line `# COMMAND`, up to the next such line or the end of the
//! block. `[...]` stands for lines that are left out. Numbers, times, link addresses and digests of a sample are those
//! of another day: one stands for any. All else must be there, word for word; where lines are wrapped does not matter.

use std::fs;
use std::path::Path;

use crate::document::blocks;

/// What a page shows as the output of the command `start`, or of the first that begins with these words; or, if it has
/// no such command, the line that begins with `start`, and the rest of its block.
///
/// # Panics
///
/// If the page has neither.
pub fn sample(page: &str, start: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let blocks = blocks(&text);
    let place_of = |is_it: &dyn Fn(&str) -> bool| {
        blocks.iter().find_map(|block| Some((block, block.lines.iter().position(|line| is_it(line))?)))
    };
    let command = format!("# {start}");
    // A command as it stands, before one with more words.
    let prompt = place_of(&|line| line == command)
        .or_else(|| place_of(&|line| line.strip_prefix(&command).is_some_and(|more| more.starts_with(' '))));
    if let Some((block, place)) = prompt {
        let output = block.lines[place + 1..].iter().take_while(|line| !line.starts_with("# "));
        return output.copied().collect::<Vec<_>>().join("\n");
    }
    let (block, place) = place_of(&|line| line.starts_with(start))
        .unwrap_or_else(|| panic!("docs/{page} has no sample `{start}`"));
    block.lines[place..].join("\n")
}

/// Asserts that an output is like the sample that begins with `start`: [`sample`].
///
/// # Panics
///
/// If it is not.
#[track_caller]
pub fn assert_sample(page: &str, start: &str, output: &str) {
    let sample = sample(page, start);
    assert!(is_like(output, &sample), "docs/{page} has\n{sample}\nbut the output is\n{output}");
}

/// Whether an output is like a sample.
pub fn is_like(output: &str, sample: &str) -> bool {
    let output = words(output);
    let parts: Vec<_> = sample.split("[...]").map(words).collect();
    let [first, .., last] = parts.as_slice() else { return output == parts[0] };
    let mut rest = output.as_slice();
    let Some(after) = rest.strip_prefix(first.as_slice()) else { return false };
    rest = after;
    let Some(before) = rest.strip_suffix(last.as_slice()) else { return false };
    rest = before;
    parts[1..parts.len() - 1].iter().all(|part| {
        let place = rest.windows(part.len().max(1)).position(|window| window == part);
        rest = &rest[place.map_or(0, |place| place + part.len())..];
        place.is_some()
    })
}

/// The words of a text, with `0` for what may be another value.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let unit = word.trim_end_matches([',', ')']);
        if matches!(unit, "d" | "h" | "min" | "s" | "ms") && words.last().is_some_and(|last| last == "0") {
            words.pop();
            // "1 h 3 min" is one time.
            words.pop_if(|last| last == "time");
            words.push(format!("time{}", &word[unit.len()..]));
        } else {
            words.push(any_value(word));
        }
    }
    words
}

/// A word with `0` for each number in it, or for all of it if it is a link address, a digest or a rate.
fn any_value(word: &str) -> String {
    let bare = word.trim_matches(['(', ')', ',', ':']);
    let is_hex = |text: &str| text.chars().all(|each| each.is_ascii_hexdigit());
    let is_link_address =
        bare.split(':').count() == 6 && bare.split(':').all(|part| part.len() == 2 && is_hex(part));
    let is_digest = bare.len() == 16 && is_hex(bare);
    let is_rate = bare.trim_end_matches(['k', 'M']).parse::<f64>().is_ok();
    if is_link_address || is_digest || is_rate {
        return word.replace(bare, "0");
    }
    let mut any = String::new();
    for character in word.chars() {
        match character {
            '0'..='9' if any.ends_with('0') => (),
            '0'..='9' => any.push('0'),
            other => any.push(other),
        }
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_times_and_lines_may_differ_from_a_sample_but_words_may_not() {
        let sample = "rules  3 differences\nup     1 h 0 min, next in 1 s\n(02:00:00:00:00:11): 1.6k";
        for (output, expected) in [
            ("rules 12 differences up 4 s, next in 2 min\n(02:ab:00:00:00:1f): 110k", true),
            ("rules 12 differences up 4 s, next in 2 min\n(02:ab:00:00:00:1f): many", false),
            ("rules 12 differences down 4 s, next in 2 min\n(02:ab:00:00:00:1f): 110k", false),
            ("rules 12 differences up 4 s, next in 2 min\n(02:ab:00:00:00:1f): 110k more", false),
        ] {
            assert_eq!(is_like(output, sample), expected, "{output}");
        }
    }

    #[test]
    fn lines_that_a_sample_leaves_out_may_be_anything() {
        let sample = "one\n[...]\nfail two\n[...]\n3 failures";
        for (output, expected) in [
            ("one\nfail two\n1 failures", true),
            ("one\nmore\nfail two\nmore\n1 failures", true),
            ("one\nmore\nmore\n1 failures", false),
            ("more\none\nfail two\n1 failures", false),
            ("one\nfail two\n1 failures\nmore", false),
        ] {
            assert_eq!(is_like(output, sample), expected, "{output}");
        }
    }
}
