//! `~SEQ` and `~LST`: loops over one line of keepalived.conf.
//!
//! Pure. Source: the grammar of keepalived 2.2.7, keepalived-behaviour, section 1.8.

/// The parameters that one round sets, with their values.
pub type Round = Vec<(String, String)>;

/// The rounds of the first loop in a line, and the line that each round repeats.
///
/// # Errors
///
/// The reason why the loop is invalid.
pub fn parse(line: &str) -> Result<(Vec<Round>, &str), &'static str> {
    let unknown = "not a known loop: ~SEQ(NAME, [START, [STEP,]] END) or ~LST(NAME, VALUE, …)";
    let (kind, rest) = line.strip_prefix('~').and_then(|line| line.split_once('(')).ok_or(unknown)?;
    let (arguments, rest) = rest.split_once(')').ok_or("its parenthesis is not closed")?;
    let arguments = separated(arguments);
    let rounds = match kind.trim_end() {
        "SEQ" => sequence(&arguments, |number| number.to_string())?,
        "SEQx" => sequence(&arguments, |number| match number < 0 {
            true => format!("-{:x}", number.unsigned_abs()),
            false => format!("{number:x}"),
        })?,
        "LST" => list(&arguments)?,
        _ => return Err(unknown),
    };
    Ok((rounds, rest.trim()))
}

/// The arguments, separated by commas outside braces.
fn separated(text: &str) -> Vec<&str> {
    let mut depth = 0;
    text.split(|char: char| {
        match char {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        char == ',' && depth == 0
    })
    .map(str::trim)
    .collect()
}

fn sequence(arguments: &[&str], text: impl Fn(i64) -> String) -> Result<Vec<Round>, &'static str> {
    let (name, texts) = arguments.split_first().ok_or("it has no name")?;
    let numbers: Vec<_> = texts
        .iter()
        .map(|text| integer(text))
        .collect::<Option<_>>()
        .ok_or("one of its numbers is invalid")?;
    let (start, step, end) = match numbers[..] {
        [end] => {
            let start = if end > 0 { 1 } else { -1 };
            (start, direction(start, end), end)
        }
        [start, end] => (start, direction(start, end), end),
        [start, step, end] => (start, step, end),
        _ => return Err("it has one to three numbers"),
    };
    if step == 0 {
        return Err("its step is 0");
    }
    if (step > 0) != (start <= end) && start != end {
        return Err("its step leads away from its end; the order is ~SEQ(NAME, START, STEP, END)");
    }
    let rounds: Vec<_> = std::iter::successors(Some(start), |number| number.checked_add(step))
        .take_while(|number| if step > 0 { *number <= end } else { *number >= end })
        .take(ROUNDS_MAX + 1)
        .map(|number| vec![((*name).to_owned(), text(number))])
        .collect();
    if rounds.len() > ROUNDS_MAX { Err("it has more than 65,536 rounds") } else { Ok(rounds) }
}

fn direction(start: i64, end: i64) -> i64 {
    if start <= end { 1 } else { -1 }
}

fn list(arguments: &[&str]) -> Result<Vec<Round>, &'static str> {
    let (names, values) = arguments.split_first().ok_or("it has no name")?;
    values
        .iter()
        .map(|value| round(&tuple(names), &tuple(value)))
        .collect::<Option<_>>()
        .ok_or("one of its values does not have as many parts as there are names")
}

fn round(names: &[&str], values: &[&str]) -> Option<Round> {
    (names.len() == values.len()).then(|| {
        names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    })
}

/// The components of a value in braces, or the value itself.
fn tuple(text: &str) -> Vec<&str> {
    match text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
        Some(inner) => inner.split(',').map(str::trim).collect(),
        None => vec![text],
    }
}

fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (digits, radix) = match digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        // As in C.
        None if digits.starts_with('0') => (digits, 8),
        None => (digits, 10),
    };
    // `from_str_radix` would accept another sign.
    let value = i64::from_str_radix(digits, radix).ok().filter(|_| !digits.starts_with(['+', '-']))?;
    Some(if negative { -value } else { value })
}

const ROUNDS_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use crate::loops::*;

    fn values(line: &str) -> Vec<String> {
        let (rounds, rest) = parse(line).unwrap();
        assert_eq!(rest, "weight $N");
        rounds.into_iter().map(|round| round.into_iter().map(|(_, value)| value).collect()).collect()
    }

    #[test]
    fn a_sequence_counts_from_start_to_end_by_its_step() {
        for (numbers, rounds) in [
            ("3", "1 2 3"),
            ("-2", "-1 -2"),
            ("4, 6", "4 5 6"),
            ("6, 4", "6 5 4"),
            ("0, 5, 12", "0 5 10"),
            ("9, -4, 1", "9 5 1"),
            ("0x10, 17", "16 17"),
            ("010, +9", "8 9"),
            ("5, -2, 5", "5"),
        ] {
            assert_eq!(values(&format!("~SEQ(N, {numbers}) weight $N")).join(" "), rounds, "{numbers}");
        }
        assert_eq!(values("~SEQx(N, 9, 11) weight $N"), ["9", "a", "b"]);
    }

    #[test]
    fn a_list_sets_one_name_or_a_tuple_of_them() {
        assert_eq!(values("~LST(N, a, b) weight $N"), ["a", "b"]);
        let (rounds, _) = parse("~LST({C,D}, {1,2},{3,4}) x").unwrap();
        let pair = |c: &str, d: &str| vec![("C".to_owned(), c.to_owned()), ("D".to_owned(), d.to_owned())];
        assert_eq!(rounds, [pair("1", "2"), pair("3", "4")]);
    }

    #[test]
    fn an_invalid_loop_is_refused_with_a_reason() {
        for (line, why) in [
            ("~FOR(N, 1) x", "not a known loop"),
            ("~SEQ(N, 1 x", "not closed"),
            ("~SEQ(N, one) x", "is invalid"),
            ("~SEQ(N, , 3) x", "is invalid"),
            ("~SEQ(N) x", "one to three"),
            ("~SEQ(N, 1, 0, 5) x", "step is 0"),
            ("~SEQ(N, 11, 17, 3) x", "leads away from its end"),
            ("~SEQ(N, 11, -1, 17) x", "leads away from its end"),
            ("~SEQ(N, 1, 09) x", "is invalid"),
            ("~SEQ(N, 1, 100000) x", "65,536"),
            ("~LST({A,B}, {1}) x", "as many parts"),
        ] {
            assert!(parse(line).unwrap_err().contains(why), "{line}");
        }
    }
}
