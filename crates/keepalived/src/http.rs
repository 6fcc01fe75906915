//! `HTTP_GET` and `SSL_GET`: the URLs to request, and the expected responses.
//!
//! Pure. Source: keepalived-behaviour, section 4.6. `checkers.rs` reads the connection and its timing, `ssl.rs`
//! certificates.

use std::ops::RangeInclusive;

use xvs_model::health_checks::check::{Http, Pattern, Trust, Url};
use xvs_model::hexadecimal;

use crate::blocks::Block;
use crate::timing::set;
use crate::values::{Faults, decimal};

/// The TLS statements of a checker.
#[derive(Default)]
pub(super) struct TlsStatements {
    /// Which certificates are accepted.
    pub(super) trust: Trust,
    sends_name: bool,
    name: Option<String>,
}

impl TlsStatements {
    /// The server name (SNI) for a URL. `host` is the `virtualhost` of the virtual server; the real server's
    /// `virtualhost` and address are not used.
    pub(super) fn name(&self, url: &Url, http: &Http, host: Option<&String>) -> Option<String> {
        self.name
            .as_ref()
            .or(url.host.as_ref())
            .or(http.host.as_ref())
            .or(host)
            .filter(|_| self.sends_name)
            .cloned()
    }
}

/// Applies a statement that only these checkers have. Returns whether the keyword is known.
pub(super) fn apply(http: &mut Http, tls: &mut TlsStatements, block: &Block, faults: &mut Faults) -> bool {
    match block.keyword() {
        "http_protocol" => match faults.value(block) {
            Some("1.0") => (http.is_1_1, http.closes) = (false, false),
            Some("1.0C" | "1.0c") => (http.is_1_1, http.closes) = (false, true),
            Some("1.1") => (http.is_1_1, http.closes) = (true, true),
            Some(_) => faults.refuse(block, "a version is 1.0, 1.0C or 1.1"),
            None => {}
        },
        "virtualhost" => set(&mut http.host, faults.value(block).map(str::to_owned)),
        "fast_recovery" => http.fast_recovery = faults.switch(block).unwrap_or(http.fast_recovery),
        // Without TLS these have no effect.
        "enable_sni" => tls.sends_name = faults.switch(block).unwrap_or(tls.sends_name),
        "sni_name" => {
            tls.sends_name = true;
            tls.name = block.arguments().first().cloned();
        }
        // keepalived has no such keyword; it accepts any certificate.
        "tls_verify" => match faults.switch(block) {
            Some(true) => tls.trust = Trust::Authorities,
            Some(false) => tls.trust = Trust::AnyCertificate,
            None => {}
        },
        // The method of closing the connection does not change the request.
        "tls_compliant" => {}
        _ => return false,
    }
    true
}

pub(super) fn url(block: &Block, faults: &mut Faults) -> Option<Url> {
    faults.block(block);
    let mut url = Url { place: block.place.clone(), ..Url::default() };
    let mut pattern = Pattern::default();
    let mut expression = None;
    for statement in block.statements() {
        let mut known = true;
        match statement.keyword() {
            "path" => faults.value(statement).unwrap_or_default().clone_into(&mut url.path),
            "virtualhost" => set(&mut url.host, faults.value(statement).map(str::to_owned)),
            "status_code" => statuses(&mut url.statuses, statement, faults),
            "digest" if url.digest.is_some() => faults.refuse(statement, "already defined"),
            "digest" => url.digest = digest(statement, faults),
            "regex" => {
                faults.argument(statement);
                set(&mut expression, statement.shell_arguments().into_iter().next());
            }
            "regex_no_match" => pattern.is_unwanted = true,
            "regex_options" => pattern.options.extend(options(statement, faults)),
            "regex_min_offset" => {
                pattern.least_offset = faults
                    .number(statement, 0..=u32::MAX)
                    .map_or(pattern.least_offset, |offset| offset as usize);
            }
            "regex_max_offset" => {
                let offset = faults.number(statement, 0..=u32::MAX);
                set(&mut pattern.most_offset, offset.map(|offset| offset as usize));
            }
            // The stack size of an older PCRE library.
            "regex_stack" | "tls_compliant" => {}
            _ => known = false,
        }
        faults.line(statement, known);
    }
    if url.path.is_empty() {
        faults.warn(&block.place, "`url` has no `path`; it is left out");
        return None;
    }
    if expression.is_none() && pattern != Pattern::default() {
        faults.warn(&block.place, "`url` has settings of a `regex`, and no `regex`; they are left out");
    }
    url.pattern = expression.map(|text| Pattern { text, ..pattern });
    Some(url)
}

/// Adds the statuses of a statement to `all`.
fn statuses(all: &mut Vec<RangeInclusive<u16>>, block: &Block, faults: &mut Faults) {
    faults.argument(block);
    let mut refused = Vec::new();
    for text in block.arguments() {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match status(first).zip(status(last)).filter(|(first, last)| first <= last) {
            Some((first, last)) => all.push(first..=last),
            None => refused.push(format!("`{text}`")),
        }
    }
    if !refused.is_empty() {
        let applies = match &all[..] {
            [] => "200-299, the default,".to_owned(),
            all => all.iter().map(shown).collect::<Vec<_>>().join(" "),
        };
        faults.warn_of(
            block,
            format!(
                "{} left out, because a status is a number from 100 to 599 or a range such as 200-204; {applies} \
                 applies",
                refused.join(" ")
            ),
        );
    }
}

fn shown(range: &RangeInclusive<u16>) -> String {
    let (first, last) = range.clone().into_inner();
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

fn status(text: &str) -> Option<u16> {
    decimal(text).filter(|status| (100..=599).contains(status))
}

fn digest(block: &Block, faults: &mut Faults) -> Option<[u8; 16]> {
    let digest = hexadecimal::decode(faults.value(block)?).and_then(|bytes| bytes.try_into().ok());
    if digest.is_none() {
        faults.refuse(block, "a digest is 32 hexadecimal digits");
    }
    digest
}

/// The names of the options of a pattern.
fn options(block: &Block, faults: &mut Faults) -> Vec<String> {
    faults.argument(block);
    let (known, unknown): (Vec<_>, Vec<_>) =
        block.arguments().iter().cloned().partition(|name| REGEX_OPTIONS.contains(&name.as_str()));
    if !unknown.is_empty() {
        faults.warn_of(block, format!("no option {}; it is left out", unknown.join(" ")));
    }
    known
}

const REGEX_OPTIONS: [&str; 24] = [
    "allow_empty_class",
    "alt_bsux",
    "alt_circumflex",
    "alt_verbnames",
    "auto_callout",
    "caseless",
    "dollar_endonly",
    "dotall",
    "dupnames",
    "extended",
    "firstline",
    "match_unset_backref",
    "multiline",
    "never_backslash_c",
    "never_ucp",
    "never_utf",
    "no_auto_capture",
    "no_auto_possess",
    "no_dotstar_anchor",
    "no_start_optimize",
    "ucp",
    "ungreedy",
    "use_offset_limit",
    "utf",
];
