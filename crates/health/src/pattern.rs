//! Patterns for bodies: the `regex` statements of a URL, compiled by PCRE2 as in keepalived.
//!
//! Compiled when a configuration is prepared; a pattern that cannot be compiled refuses the configuration. A search
//! takes processor time that no deadline ends: backtracking is limited for each start position only, so a hostile
//! pattern is still slow. The caller searches on a blocking thread, one search at a time for each pattern. Pure.
//!
//! Source: pcre2pattern(3), pcre2api(3); keepalived-behaviour, section 4.6.

use std::sync::Arc;

use pcre2::bytes::{Regex, RegexBuilder};
use thiserror::Error;
use tokio::sync::Semaphore;
use xvs_model::health_checks::check::Pattern;

/// A compiled pattern.
#[derive(Debug, Clone)]
pub(super) struct Search {
    /// The pattern as it is configured.
    pub pattern: Pattern,
    regex: Regex,
    permit: Arc<Semaphore>,
}

/// Why a pattern cannot be used.
#[derive(Debug, Error)]
pub(super) enum PatternError {
    #[error("`regex {text}`: xvs has no regex_options {option}")]
    NoOption { text: String, option: String },
    #[error("`regex {text}`: {}", reason(error))]
    Syntax { text: String, error: pcre2::Error },
}

/// Why a body fails.
#[derive(Debug, Error)]
pub(super) enum BodyError {
    #[error("the body matches `{0}`")]
    Unwanted(String),
    #[error("the body does not match `{0}`")]
    NoMatch(String),
    /// The search needs too much backtracking.
    #[error("the body, searched for `{text}`: {error}")]
    Search { text: String, error: pcre2::Error },
}

impl Search {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// The pattern is no regular expression, or has an option that xvs does not support.
    pub(super) fn new(pattern: Pattern) -> Result<Self, PatternError> {
        let regex = compile(&pattern)?;
        Ok(Self { pattern, regex, permit: Arc::new(Semaphore::new(1)) })
    }

    /// The one permit for searches of this pattern.
    pub(super) fn permit(&self) -> Arc<Semaphore> {
        Arc::clone(&self.permit)
    }

    /// Checks a body. May take long.
    ///
    /// # Errors
    /// The body does not match, or matches although it must not, or the search needs too much backtracking.
    pub(super) fn check(&self, body: &[u8]) -> Result<(), BodyError> {
        let Pattern { text, is_unwanted, least_offset, most_offset, .. } = &self.pattern;
        let found = match *least_offset <= body.len() {
            true => self.regex.find_at(body, *least_offset),
            false => Ok(None),
        };
        let found = found.map_err(|error| BodyError::Search { text: text.clone(), error })?;
        // The first match has the lowest start of all.
        let matches = found.is_some_and(|found| most_offset.is_none_or(|most| found.start() <= most));
        match (matches, is_unwanted) {
            (true, true) => Err(BodyError::Unwanted(text.clone())),
            (false, false) => Err(BodyError::NoMatch(text.clone())),
            _ => Ok(()),
        }
    }
}

/// Limits for each start position of a match: steps, and memory in KiB. An expression can only lower them.
const BOUNDS: &str = "(*LIMIT_MATCH=1000000)(*LIMIT_HEAP=32768)";

fn compile(pattern: &Pattern) -> Result<Regex, PatternError> {
    let mut builder = RegexBuilder::new();
    let mut verbs = BOUNDS.to_owned();
    let mut flags = String::new();
    for option in &pattern.options {
        match option.as_str() {
            "caseless" => _ = builder.caseless(true),
            "dotall" => _ = builder.dotall(true),
            "extended" => _ = builder.extended(true),
            "multiline" => _ = builder.multi_line(true),
            "utf" => _ = builder.utf(true),
            "ucp" => verbs += "(*UCP)",
            "no_auto_possess" => verbs += "(*NO_AUTO_POSSESS)",
            "no_dotstar_anchor" => verbs += "(*NO_DOTSTAR_ANCHOR)",
            "no_start_optimize" => verbs += "(*NO_START_OPT)",
            "dupnames" => flags.push('J'),
            "no_auto_capture" => flags.push('n'),
            "ungreedy" => flags.push('U'),
            // These forbid constructs of the expression, or concern only callers of the library.
            "never_backslash_c" | "never_ucp" | "never_utf" | "auto_callout" | "use_offset_limit" => {}
            _ => return Err(PatternError::NoOption { text: pattern.text.clone(), option: option.clone() }),
        }
    }
    let flags = if flags.is_empty() { flags } else { format!("(?{flags})") };
    builder
        .build(&format!("{verbs}{flags}{}", pattern.text))
        .map_err(|error| PatternError::Syntax { text: pattern.text.clone(), error })
}

/// The message of a syntax error without its offset, which includes the verbs and flags before the expression.
fn reason(error: &pcre2::Error) -> String {
    let text = error.to_string();
    text.rsplit(": ").next().unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use crate::pattern::*;

    fn pattern(text: &str) -> Pattern {
        Pattern { text: text.to_owned(), ..Pattern::default() }
    }

    fn with(text: &str, options: &[&str]) -> Pattern {
        Pattern { options: options.iter().map(|&word| word.to_owned()).collect(), ..pattern(text) }
    }

    #[track_caller]
    fn assert_matches(pattern: &Pattern, body: impl AsRef<[u8]>, expected: bool) {
        let search = Search::new(pattern.clone()).unwrap();
        assert_eq!(search.check(body.as_ref()).is_ok(), expected, "{pattern:?}");
    }

    #[test]
    fn a_pattern_matches_anywhere_in_the_body_or_must_not_match() {
        assert_matches(&pattern("a[bc]+d"), "xxabcbd", true);
        assert_matches(&pattern("^a[bc]+d"), "xxabcbd", false);
        assert_matches(&pattern("\\x00\\xff"), b"a\x00\xffb", true);
        let unwanted = Pattern { is_unwanted: true, ..pattern("error") };
        assert_matches(&unwanted, "all is well", true);
        assert_matches(&unwanted, "an error", false);
        let why = Search::new(unwanted).unwrap().check(b"error").unwrap_err();
        assert_eq!(why.to_string(), "the body matches `error`");
        let why = Search::new(pattern("ok")).unwrap().check(b"").unwrap_err();
        assert_eq!(why.to_string(), "the body does not match `ok`");
    }

    #[test]
    fn a_match_starts_between_the_offsets() {
        let between = |least_offset, most_offset| Pattern { least_offset, most_offset, ..pattern("(?<=a)b") };
        assert_matches(&between(0, None), "xxab", true);
        assert_matches(&between(3, Some(3)), "xxab", true);
        assert_matches(&between(4, None), "xxab", false);
        assert_matches(&between(5, None), "xxab", false);
        assert_matches(&between(0, Some(2)), "xxab", false);
    }

    #[test]
    fn options_are_those_of_pcre2_and_unsupported_ones_are_refused() {
        for (option, text, body) in [
            ("caseless", "OK", &b"ok"[..]),
            ("dotall", "a.b", b"a\nb"),
            ("extended", "o k # comment", b"ok"),
            ("multiline", "^b", b"a\nb"),
            ("utf", "^.$", "ä".as_bytes()),
            ("dupnames", "(?<n>a)|(?<n>b)", b"b"),
        ] {
            let without = Search::new(pattern(text));
            assert!(without.is_err() || without.is_ok_and(|search| search.check(body).is_err()), "{option}");
            assert_matches(&with(text, &[option]), body, true);
        }
        assert_matches(&with("^\\w$", &["utf", "ucp"]), "ä", true);
        assert_matches(&with("^(a+)(?=a)", &["ungreedy", "no_auto_capture", "caseless"]), "AAAA", true);
        for option in
            ["no_auto_possess", "no_dotstar_anchor", "no_start_optimize", "never_utf", "auto_callout"]
        {
            assert_matches(&with("a+b", &[option]), "aab", true);
        }
        for option in ["dollar_endonly", "firstline", "alt_bsux"] {
            let why = Search::new(with("a", &[option])).unwrap_err();
            assert_eq!(why.to_string(), format!("`regex a`: xvs has no regex_options {option}"));
        }
    }

    #[test]
    fn an_invalid_expression_is_refused_and_backtracking_is_limited() {
        let why = Search::new(pattern("a(b")).unwrap_err();
        assert_eq!(why.to_string(), "`regex a(b`: missing closing parenthesis");
        let mut body = vec![b'a'; 64];
        body.push(b'b');
        let why = Search::new(pattern("^(a+)+$")).unwrap().check(&body).unwrap_err();
        assert_eq!(
            why.to_string(),
            "the body, searched for `^(a+)+$`: PCRE2: error matching: match limit exceeded"
        );
        // An expression cannot raise the limit.
        let why = Search::new(pattern("(*LIMIT_MATCH=4000000000)^(a+)+$")).unwrap().check(&body);
        assert!(why.is_err());
    }
}
