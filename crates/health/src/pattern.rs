//! Patterns for bodies: the `regex` statements of a URL, compiled by PCRE2 as in keepalived.
//!
//! Compiled when a configuration is prepared; a pattern that cannot be compiled refuses the configuration. PCRE2 limits
//! the steps of each start position, not those of a search, and nothing ends a running search: a response of 900 kB can
//! keep an ordinary pattern busy for minutes. There are therefore two searches. The quick one has few steps for each
//! start position; most searches need no more. If it needs more, the thorough one tries the start positions one by one,
//! and before each of them checks whether the caller still waits. The caller searches on blocking threads, one search
//! at a time for each pattern. Pure.
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
    /// For short bodies, and for long ones with fewer steps.
    quick: [Regex; 2],
    /// Matches only at the position at which a search begins.
    thorough: Regex,
    permit: Arc<Semaphore>,
}

/// Why a pattern cannot be used.
#[derive(Debug, Error)]
pub(super) enum PatternError {
    #[error("`regex {text}`: xvs has no regex_options {option}")]
    NoOption { text: String, option: String },
    #[error("`regex {text}`: xvs has no `{construct}`; write the expression without it")]
    NoConstruct { text: String, construct: &'static str },
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
    ///
    /// The pattern is not a regular expression, or has an option that xvs does not support.
    pub(super) fn new(pattern: Pattern) -> Result<Self, PatternError> {
        let (quick, thorough) = compile(&pattern)?;
        Ok(Self { pattern, quick, thorough, permit: Arc::new(Semaphore::new(1)) })
    }

    /// The single permit for searches of this pattern.
    pub(super) fn permit(&self) -> Arc<Semaphore> {
        Arc::clone(&self.permit)
    }

    /// Checks a body with few steps for each start position; `None` if they do not suffice.
    pub(super) fn check_quickly(&self, body: &[u8]) -> Option<Result<(), BodyError>> {
        let least = self.pattern.least_offset;
        let [short, long] = &self.quick;
        let quick = if body.len() <= SHORT_BYTES { short } else { long };
        let found = if least <= body.len() { quick.find_at(body, least) } else { Ok(None) };
        match found {
            Err(error) if error.code() == MATCH_LIMIT => None,
            // The first match has the lowest start of all.
            found => Some(self.verdict(found.map(|found| found.map(|found| found.start())))),
        }
    }

    /// Checks a body while `goes_on` returns `true`, which is called before each start position; `None` if it was
    /// ended. May take long.
    pub(super) fn check_thoroughly(
        &self,
        body: &[u8],
        goes_on: impl Fn() -> bool,
    ) -> Option<Result<(), BodyError>> {
        let Pattern { least_offset, most_offset, .. } = self.pattern;
        for start in least_offset..=most_offset.unwrap_or(body.len()).min(body.len()) {
            if !goes_on() {
                return None;
            }
            if self.is_covered(body, start) {
                continue;
            }
            match self.thorough.find_at(body, start) {
                Ok(None) => {}
                Ok(Some(found)) => return Some(self.verdict(Ok(Some(found.start())))),
                // Within a character.
                Err(error) if error.code() == BAD_UTF_OFFSET => {}
                Err(error) => return Some(self.verdict(Err(error))),
            }
        }
        Some(self.verdict(Ok(None)))
    }

    /// Whether a match at this position would also match at an earlier position, which was tried: `.*` at the beginning
    /// of an expression can match everything before it in the line. In a whole search, PCRE2 handles this itself.
    fn is_covered(&self, body: &[u8], start: usize) -> bool {
        let Pattern { text, options, least_offset, .. } = &self.pattern;
        let is_any = text.starts_with(".*") && !text.starts_with(".*+") && !text.contains('|');
        let has_no_lines = options.iter().any(|option| option == "dotall");
        is_any && start > *least_offset && (has_no_lines || body[start - 1] != b'\n')
    }

    /// The verdict for a search that found a match which starts at this offset.
    fn verdict(&self, found: Result<Option<usize>, pcre2::Error>) -> Result<(), BodyError> {
        let Pattern { text, is_unwanted, most_offset, .. } = &self.pattern;
        let matches = found
            .map_err(|error| BodyError::Search { text: text.clone(), error })?
            .is_some_and(|start| most_offset.is_none_or(|most| start <= most));
        match (matches, is_unwanted) {
            (true, true) => Err(BodyError::Unwanted(text.clone())),
            (false, false) => Err(BodyError::NoMatch(text.clone())),
            _ => Ok(()),
        }
    }
}

/// Steps for each start position: for the quick search of a body of [`SHORT_BYTES`], for that of a longer one, and for
/// the thorough search. A million steps take about 0.3 s, so no quick search takes longer than some seconds.
const STEPS: [u32; 3] = [100, 4, 1_000_000];
const SHORT_BYTES: usize = 32 << 10;

/// Errors of PCRE2: the limit of steps; an offset within a character. Source: pcre2.h.
const MATCH_LIMIT: i32 = -47;
const BAD_UTF_OFFSET: i32 = -36;

/// Constructs that would have another meaning at one start position than in a whole search.
const NO_CONSTRUCTS: [&str; 6] = ["(?R)", "(?0)", "\\g<0>", "\\g'0'", "(*COMMIT", "(*SKIP"];

/// The regular expressions for the quick and for the thorough search.
fn compile(pattern: &Pattern) -> Result<([Regex; 2], Regex), PatternError> {
    let text = &pattern.text;
    let mut builder = RegexBuilder::new();
    let mut verbs = String::new();
    let mut flags = String::new();
    for option in &pattern.options {
        match option.as_str() {
            "caseless" => _ = builder.caseless(true),
            "dotall" => _ = builder.dotall(true),
            "extended" => _ = builder.extended(true),
            "multiline" => _ = builder.multi_line(true),
            "utf" => _ = builder.utf(true),
            "ucp" => verbs += "(*UCP)",
            "no_dotstar_anchor" => verbs += "(*NO_DOTSTAR_ANCHOR)",
            "no_start_optimize" => verbs += "(*NO_START_OPT)",
            "dupnames" => flags.push('J'),
            "no_auto_capture" => flags.push('n'),
            "ungreedy" => flags.push('U'),
            // The first is always on. The others forbid constructs of the expression, or concern only callers of the
            // library.
            "no_auto_possess" | "never_backslash_c" | "never_ucp" | "never_utf" | "auto_callout"
            | "use_offset_limit" => {}
            _ => return Err(PatternError::NoOption { text: text.clone(), option: option.clone() }),
        }
    }
    if let Some(construct) = NO_CONSTRUCTS.into_iter().find(|construct| text.contains(construct)) {
        return Err(PatternError::NoConstruct { text: text.clone(), construct });
    }
    let (own_verbs, rest) = text.split_at(verbs_end(text));
    let flags = if flags.is_empty() { flags } else { format!("(?{flags})") };
    let build = |steps: u32, begin: &str, end: &str| {
        // An expression can only lower the limits. A repetition may give up what it has read, so that this counts as
        // steps (`NO_AUTO_POSSESS`).
        let bounds = format!("(*LIMIT_MATCH={steps})(*LIMIT_HEAP=32768)(*NO_AUTO_POSSESS)");
        builder.build(&format!("{bounds}{verbs}{own_verbs}{begin}{flags}{rest}{end}"))
    };
    let syntax = |error| PatternError::Syntax { text: text.clone(), error };
    let [short, long, thorough] = STEPS;
    let quick = [build(short, "", "").map_err(syntax)?, build(long, "", "").map_err(syntax)?];
    // The end of the group may have to end a preceding comment (`extended`) or quotation (`\Q`).
    let anchored = |end| build(thorough, "\\G(?:", end);
    let thorough = anchored(")").or_else(|_| anchored("\n)")).or_else(|_| anchored("\\E)"));
    Ok((quick, thorough.map_err(syntax)?))
}

/// The end of the verbs that must be at the beginning of an expression, such as `(*UTF)`.
fn verbs_end(text: &str) -> usize {
    let mut end = 0;
    while let Some((verb, _)) = text[end..].strip_prefix("(*").and_then(|rest| rest.split_once(')')) {
        let name = verb.split('=').next().unwrap_or_default();
        if !START_VERBS.contains(&name) {
            break;
        }
        end += "(*)".len() + verb.len();
    }
    end
}

/// Source: pcre2pattern(3), "Special start-of-pattern items".
const START_VERBS: [&str; 20] = [
    "UTF",
    "UCP",
    "NOTEMPTY",
    "NOTEMPTY_ATSTART",
    "NO_AUTO_POSSESS",
    "NO_DOTSTAR_ANCHOR",
    "NO_JIT",
    "NO_START_OPT",
    "LIMIT_HEAP",
    "LIMIT_MATCH",
    "LIMIT_DEPTH",
    "LIMIT_RECURSION",
    "CR",
    "LF",
    "CRLF",
    "ANYCRLF",
    "ANY",
    "NUL",
    "BSR_ANYCRLF",
    "BSR_UNICODE",
];

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
        assert_eq!(check(&search, body.as_ref()).is_ok(), expected, "{pattern:?}");
        // Both searches agree.
        let thorough = search.check_thoroughly(body.as_ref(), || true).unwrap();
        assert_eq!(thorough.is_ok(), expected, "thorough: {pattern:?}");
    }

    fn check(search: &Search, body: &[u8]) -> Result<(), BodyError> {
        let quick = search.check_quickly(body);
        quick.unwrap_or_else(|| search.check_thoroughly(body, || true).expect("it was not ended"))
    }

    #[test]
    fn a_pattern_matches_anywhere_in_the_body_or_must_not_match() {
        assert_matches(&pattern("a[bc]+d"), "xxabcbd", true);
        assert_matches(&pattern("^a[bc]+d"), "xxabcbd", false);
        assert_matches(&pattern("\\x00\\xff"), b"a\x00\xffb", true);
        let unwanted = Pattern { is_unwanted: true, ..pattern("error") };
        assert_matches(&unwanted, "all is well", true);
        assert_matches(&unwanted, "an error", false);
        let why = check(&Search::new(unwanted).unwrap(), b"error").unwrap_err();
        assert_eq!(why.to_string(), "the body matches `error`");
        let why = check(&Search::new(pattern("ok")).unwrap(), b"").unwrap_err();
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
            assert!(
                without.is_err() || without.is_ok_and(|search| check(&search, body).is_err()),
                "{option}"
            );
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
        let why = check(&Search::new(pattern("^(a+)+$")).unwrap(), &body).unwrap_err();
        assert_eq!(
            why.to_string(),
            "the body, searched for `^(a+)+$`: PCRE2: error matching: match limit exceeded"
        );
        // An expression cannot raise the limit.
        let why = check(&Search::new(pattern("(*LIMIT_MATCH=4000000000)^(a+)+$")).unwrap(), &body);
        assert!(why.is_err());
    }

    #[test]
    fn a_search_that_is_not_quick_is_ended_before_the_next_start_position() {
        // An ordinary pattern, and an answer for which PCRE2 would need minutes.
        let digits = [b'7'; 900_000];
        for text in ["\\d+[a-f]", "(\\w+\\s*)+[;,]", ".*7.*[89]"] {
            let search = Search::new(with(text, &["dotall"])).unwrap();
            assert!(search.check_quickly(&digits).is_none(), "{text}");
            let left = std::cell::Cell::new(3);
            let ended = search.check_thoroughly(&digits, || {
                left.set(left.get() - 1);
                left.get() > 0
            });
            // Otherwise a single start position had too many steps.
            assert!(ended.is_none_or(|result| matches!(result, Err(BodyError::Search { .. }))), "{text}");
        }
    }

    #[test]
    fn a_text_in_a_long_body_is_found_by_the_quick_search() {
        let body = [&b"status: wait\n".repeat(70_000)[..], b"status: ready 17\n"].concat();
        for text in ["ready", "^status:\\s*ready", "ready \\d"] {
            let search = Search::new(with(text, &["multiline"])).unwrap();
            assert!(search.check_quickly(&body).unwrap().is_ok(), "{text}");
        }
    }

    #[test]
    fn both_searches_find_the_same_whatever_begins_or_ends_the_expression() {
        for (text, options, body, expected) in [
            ("a|b", &[][..], "xb", true),
            ("^b", &[], "ab", false),
            ("^b", &["multiline"], "a\nb", true),
            ("(?<=a)b", &[], "ab", true),
            ("a # the end", &["extended"], "xa", true),
            ("(?x)a # the end", &[], "xa", true),
            ("\\Qa)", &[], "xa)", true),
            ("(*UTF)(*UCP)^.\\w$", &["dupnames"], "ää", true),
            ("ä$", &["utf"], "öä", true),
            ("(*PRUNE)b", &[], "ab", true),
            ("(a)\\1", &[], "xaa", true),
            ("x\\Ka", &[], "xa", true),
            (".*ready", &[], &format!("{}ready", " ".repeat(1000)), true),
            (".*ready", &["dotall"], "a\nb\nready", true),
            (".*a|b", &[], "xb", true),
            (".*+a|.*b", &[], "\nxb", true),
            (".*b", &[], "a\nxb", true),
            (".*c", &[], &"b".repeat(20_000), false),
        ] {
            assert_matches(&with(text, options), body, expected);
        }
        for (text, construct) in [("a(?R)?b", "(?R)"), ("a(*COMMIT)b", "(*COMMIT"), ("a(*SKIP)b", "(*SKIP")] {
            let why = Search::new(pattern(text)).unwrap_err().to_string();
            let expected =
                format!("`regex {text}`: xvs has no `{construct}`; write the expression without it");
            assert_eq!(why, expected);
        }
    }
}
