//! The reader of keepalived.conf: parameters, loops, conditional lines and includes are expanded to one list of tokens.
//!
//! Runs when a file is read. Reads files, and the environment variables that the file names (`_ENV`). Problems are
//! [`Fault`]s with their position; reading continues. Bounded: total bytes, depth of includes, loops and parameters,
//! length of expanded lines, number of tokens; when a limit is exceeded, the rest is not read, which is an error.
//! Source: the grammar of keepalived 2.2.7, keepalived-behaviour, section 1.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::io::Read;
use std::path::{Path, PathBuf};

use xvs_model::health_checks::fault::{Fault, LeftOut, Place, Severity};

use crate::lexer::{BLANKS, TokenKind, parts, uncommented, words};
use crate::loops;

/// A statement or a brace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The position in the file.
    pub place: Place,
    /// The kind of token.
    pub kind: TokenKind,
}

/// The result of reading.
#[derive(Debug)]
pub struct Lines {
    /// The tokens of a file and of the files that it includes.
    pub tokens: Vec<Token>,
    /// The faults of their syntax.
    pub faults: Vec<Fault>,
    /// The faults that leave out lines, which may belong to services.
    pub left_out: Vec<LeftOut>,
}

/// Reads a file and the files that it includes.
///
/// `config_id` selects the conditional lines: `--config-id`, or the first label of the host name.
///
/// # Errors
/// The file itself cannot be read.
pub fn read(path: &Path, config_id: &str) -> io::Result<Lines> {
    let text = read_content(path, BYTES_MAX)?;
    let mut reader = Reader {
        config_id,
        parameters: HashMap::new(),
        definition: None,
        place: Place { file: path.into(), line: 0 },
        depth: 0,
        lines: 0,
        bytes_left: BYTES_MAX - text.len(),
        is_stopped: false,
        read: Lines { tokens: Vec::new(), faults: Vec::new(), left_out: Vec::new() },
    };
    reader.file(path, &text);
    Ok(reader.read)
}

/// Maximum length of a line in bytes, as in keepalived.
const LINE_MAX: usize = 1023;
/// Maximum depth of nested files, loops and parameters.
const DEPTH_MAX: usize = 32;
/// Maximum number of tokens, and of lines after loops are expanded; enough for some hundred thousand real servers.
const TOKENS_MAX: usize = 4_000_000;
/// The size of all files together.
const BYTES_MAX: usize = 64 << 20;
/// Maximum length of a line in bytes, with its parameters replaced.
const SUBSTITUTED_MAX: usize = 64 << 10;
/// Maximum number of faults; a file with more is not text.
const FAULTS_MAX: usize = 10_000;

/// The content of a file.
fn read_content(path: &Path, most_bytes: usize) -> io::Result<Vec<u8>> {
    // Opening a FIFO would block, and a device may have no end.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(most_bytes as u64 + 1).read_to_end(&mut bytes)?;
    match bytes.len() > most_bytes {
        true => Err(io::Error::other(format!("more than {} MiB in all", BYTES_MAX >> 20))),
        false => Ok(bytes),
    }
}

struct Reader<'a> {
    config_id: &'a str,
    parameters: HashMap<String, Vec<String>>,
    /// An incomplete definition of several lines.
    definition: Option<(String, Vec<String>)>,
    place: Place,
    depth: usize,
    lines: usize,
    bytes_left: usize,
    /// Whether a limit was exceeded.
    is_stopped: bool,
    read: Lines,
}

impl Reader<'_> {
    fn fault(&mut self, severity: Severity, text: impl Into<String>) {
        self.read.faults.push(Fault { place: self.place.clone(), severity, text: text.into() });
        if self.read.faults.len() == FAULTS_MAX {
            self.stop(&format!("{FAULTS_MAX} faults"));
        }
    }

    /// Stops reading, with an error.
    fn stop(&mut self, why: &str) {
        if !std::mem::replace(&mut self.is_stopped, true) {
            self.fault(Severity::Error, format!("{why}; the rest is left out"));
        }
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.fault(Severity::Warning, text);
    }

    fn file(&mut self, path: &Path, bytes: &[u8]) {
        let outside = std::mem::replace(&mut self.place, Place { file: path.into(), line: 0 });
        let lines = bytes.split(|byte| *byte == b'\n');
        for line in lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line)) {
            if self.is_stopped {
                break;
            }
            self.place.line += 1;
            if line.contains(&0) {
                self.warn("a NUL byte; the line is left out");
                self.left_out();
            } else if line.len() > LINE_MAX {
                self.warn(format!("longer than {LINE_MAX} bytes; the line is left out"));
                self.left_out();
            } else {
                self.read_line(&String::from_utf8_lossy(line));
            }
        }
        self.place = outside;
    }

    /// Notes that the last fault leaves out lines.
    fn left_out(&mut self) {
        let fault = self.read.faults.last().cloned();
        self.read.left_out.extend(fault.map(|fault| LeftOut { fault, services: Vec::new() }));
    }

    /// Reads a line of a file.
    fn read_line(&mut self, line: &str) {
        if let Some(line) = own_line(line) {
            return self.conditional_line(line);
        }
        let (line, ended) = uncommented(line);
        if ended.is_err() {
            self.warn("a quoted string does not end");
        }
        // keepalived removes comments twice: a `#` or `!` that was escaped with a backslash starts a comment the second
        // time.
        let (line, _) = uncommented(&line);
        match self.definition.take() {
            Some((name, lines)) => self.define(name, lines, &line),
            None if !line.is_empty() => self.conditional_line(&line),
            None => {}
        }
    }

    /// Adds a line to a definition. The definition continues if the line ends with a backslash.
    fn define(&mut self, name: String, mut lines: Vec<String>, line: &str) {
        let (value, goes_on) = match line.strip_suffix('\\') {
            Some(value) => (value.trim_matches(BLANKS), true),
            None => (line, false),
        };
        if !value.is_empty() {
            lines.push(value.to_owned());
        }
        match goes_on {
            true => self.definition = Some((name, lines)),
            false => _ = self.parameters.insert(name, lines),
        }
    }

    /// Reads a line that may have a condition (`@id`, `@^id`).
    fn conditional_line(&mut self, line: &str) {
        let Some(condition) = line.strip_prefix('@') else { return self.applicable_line(line) };
        let Some((id, rest)) = condition.split_once(BLANKS) else { return };
        let applies = match id.strip_prefix('^') {
            Some(other) => other != self.config_id,
            None => id == self.config_id,
        };
        if applies {
            self.applicable_line(rest.trim_matches(BLANKS));
        }
    }

    /// Reads a line that applies to this machine.
    fn applicable_line(&mut self, line: &str) {
        self.lines += 1;
        if self.depth == DEPTH_MAX || self.lines.max(self.read.tokens.len()) > TOKENS_MAX {
            self.stop("parameters, loops or includes without an end");
        }
        if self.is_stopped {
            return;
        }
        if line.starts_with(OWN_LINE) {
            // Passed to xvs unchanged, without parameters and blocks.
            let kind = TokenKind::Statement(format!("#{}", uncommented(&line[1..]).0));
            return self.read.tokens.push(Token { place: self.place.clone(), kind });
        }
        if let Some((name, value)) = definition(line) {
            return self.define(name.to_owned(), Vec::new(), value);
        }
        self.depth += 1;
        match line.starts_with('~') {
            true => self.loop_line(line),
            false => self.expand(line),
        }
        self.depth -= 1;
    }

    /// Reads a line that starts with a loop.
    fn loop_line(&mut self, line: &str) {
        // Parameters in the head are replaced now; those in the repeated line are replaced in each round.
        let head = line.find(')').map_or(line, |end| &line[..=end]);
        let text = match self.substitute(head, &ARGUMENT_ENDS) {
            Some(Substituted::Text(text)) => text + &line[head.len()..],
            Some(Substituted::Lines(..)) | None => line.to_owned(),
        };
        match loops::parse(&text) {
            Ok((rounds, rest)) => {
                for round in rounds {
                    for (name, value) in round {
                        self.parameters.insert(name, vec![value]);
                    }
                    self.applicable_line(rest);
                }
            }
            Err(why) => self.fault(Severity::Error, format!("`{line}`: {why}")),
        }
    }

    /// Replaces the parameters in a line, repeatedly until none is left.
    fn expand(&mut self, line: &str) {
        match self.substitute(line, &BLANKS) {
            None => self.statement(line),
            Some(Substituted::Text(text)) => {
                let (text, _) = uncommented(&text);
                match text.starts_with('@') || text.contains('$') {
                    true => self.conditional_line(&text),
                    false => self.statement(&text),
                }
            }
            Some(Substituted::Lines(lines)) => {
                for line in lines {
                    self.conditional_line(&line);
                }
            }
        }
    }

    /// Replaces the parameters in a text once; `None` if the text has no known parameter. A name without braces ends
    /// before one of `ends`.
    fn substitute(&mut self, line: &str, ends: &[char]) -> Option<Substituted> {
        let mut text = String::new();
        let mut rest = line;
        let mut found = false;
        while let Some(at) = rest.find('$') {
            text += &rest[..at];
            rest = &rest[at..];
            let Some((name, after)) = reference(rest, ends) else {
                text.push('$');
                rest = &rest[1..];
                continue;
            };
            let value = self.built_in(name).map(|value| vec![value]);
            match value.or_else(|| self.parameters.get(name).cloned()).as_deref() {
                None => text += &rest[..rest.len() - after.len()],
                Some([]) => found = true,
                Some([value]) => {
                    found = true;
                    text += value;
                }
                Some([first, others @ ..]) => {
                    if !after.is_empty() {
                        self.warn(format!(
                            "the text after ${name}, a parameter of several lines, is left out"
                        ));
                    }
                    return Some(Substituted::Lines(
                        std::iter::once(text + first).chain(others.iter().cloned()).collect(),
                    ));
                }
            }
            if text.len() > SUBSTITUTED_MAX {
                self.stop(&format!("a line of more than {SUBSTITUTED_MAX} bytes with its parameters"));
                return None;
            }
            rest = after;
        }
        found.then(|| Substituted::Text(text + rest))
    }

    /// The value of a built-in parameter.
    fn built_in(&mut self, name: &str) -> Option<String> {
        Some(match words(name).iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["_PWD"] => directory(&self.place.file).display().to_string(),
            ["_INSTANCE"] => self.config_id.to_owned(),
            ["_HASH"] => "#".to_owned(),
            ["_BANG"] => "!".to_owned(),
            ["_ENV", name] => std::env::var(name).unwrap_or_default(),
            ["_RANDOM", ref bounds @ ..] => random(bounds)?.to_string(),
            _ => return None,
        })
    }

    /// Reads a line without parameters.
    fn statement(&mut self, line: &str) {
        let (keyword, rest) = line.split_once(BLANKS).unwrap_or((line, ""));
        if let Some(rules) = IncludeRules::of(keyword) {
            return self.include(rules, &words(rest).concat());
        }
        self.read
            .tokens
            .extend(parts(line).into_iter().map(|kind| Token { place: self.place.clone(), kind }));
    }

    /// Includes the files that match a pattern, in the order of their names. The pattern is relative to the including
    /// file.
    fn include(&mut self, rules: IncludeRules, pattern: &str) {
        let base = self.place.file.parent().unwrap_or(Path::new("")).to_owned();
        let mut matched = false;
        let mut is_refused = false;
        for pattern in alternatives(pattern) {
            let found = files(&base.join(&pattern));
            if found.is_empty() && (rules.every || rules.wild && pattern.contains(['*', '?', '['])) {
                self.fault(Severity::Error, nothing_matches(&pattern));
                is_refused = true;
            }
            for path in found {
                matched = true;
                match read_content(&path, self.bytes_left) {
                    Ok(bytes) => {
                        self.bytes_left -= bytes.len();
                        self.file(&path, &bytes);
                    }
                    Err(error) => {
                        self.fault(rules.readable, format!("include: {}: {error}", path.display()));
                        self.left_out();
                    }
                }
            }
        }
        if !matched && !is_refused {
            self.fault(rules.matching, nothing_matches(pattern));
            // A directory for files of services may be empty.
            if !pattern.contains(['*', '?', '[']) {
                self.left_out();
            }
        }
    }
}

fn nothing_matches(pattern: &str) -> String {
    format!("include: nothing matches {pattern}; create the file or remove the line")
}

/// The beginning of a line that is a comment for keepalived and a statement for xvs.
const OWN_LINE: &str = "#xvs ";

/// A line for xvs only, which may have a condition before it.
fn own_line(line: &str) -> Option<&str> {
    let line = line.trim_matches(BLANKS);
    let rest = match line.strip_prefix('@') {
        Some(condition) => condition.split_once(BLANKS)?.1.trim_start_matches(BLANKS),
        None => line,
    };
    rest.starts_with(OWN_LINE).then_some(line)
}

/// The result of replacing parameters.
enum Substituted {
    Text(String),
    Lines(Vec<String>),
}

/// The requirements of an include keyword, with the severity of a violation.
struct IncludeRules {
    readable: Severity,
    matching: Severity,
    wild: bool,
    every: bool,
}

impl IncludeRules {
    fn of(keyword: &str) -> Option<Self> {
        let kind = keyword.strip_prefix("include")?;
        if !["", "r", "m", "w", "b", "a"].contains(&kind) {
            return None;
        }
        Some(Self {
            readable: if matches!(kind, "r" | "a") { Severity::Error } else { Severity::Warning },
            matching: if matches!(kind, "m" | "a") { Severity::Error } else { Severity::Warning },
            wild: matches!(kind, "w" | "a"),
            every: matches!(kind, "b" | "a"),
        })
    }
}

/// The regular files that match a pattern.
fn files(pattern: &Path) -> Vec<PathBuf> {
    pattern
        .to_str()
        .and_then(|pattern| glob::glob(pattern).ok())
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|path| path.is_file())
        .collect()
}

/// The alternatives of a pattern with braces, as in csh; they may be nested.
fn alternatives(pattern: &str) -> Vec<String> {
    let Some(open) = pattern.find('{') else { return vec![pattern.to_owned()] };
    let mut depth = 0;
    let mut cuts = vec![open];
    for (at, char) in pattern.char_indices().skip_while(|(at, _)| *at < open) {
        match char {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => cuts.push(at),
            _ => {}
        }
        if depth == 0 {
            cuts.push(at);
            break;
        }
    }
    if depth != 0 {
        return vec![pattern.to_owned()];
    }
    let before = &pattern[..open];
    let after = &pattern[cuts[cuts.len() - 1] + 1..];
    let each = cuts.windows(2).map(|cut| &pattern[cut[0] + 1..cut[1]]);
    each.flat_map(|each| alternatives(&format!("{before}{each}{after}"))).collect()
}

/// The directory of a file without links in its path, as a process that changes into it sees it.
fn directory(file: &Path) -> PathBuf {
    let named = file.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    named.canonicalize().unwrap_or_else(|_| named.to_owned())
}

/// The name and the value of a definition.
fn definition(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.strip_prefix('$')?.split_once('=')?;
    is_name(name).then(|| (name, value.trim_start_matches(BLANKS)))
}

fn is_name(name: &str) -> bool {
    name.starts_with(|char: char| char.is_ascii_alphabetic() || char == '_')
        && name.chars().all(|char| char.is_ascii_alphanumeric() || char == '_')
}

/// The characters that end a parameter's name in the head of a loop.
const ARGUMENT_ENDS: [char; 4] = [' ', '\t', ',', ')'];

/// The parameter name after a dollar sign, which ends before one of `ends`, and the rest of the text.
fn reference<'a>(text: &'a str, ends: &[char]) -> Option<(&'a str, &'a str)> {
    let text = text.strip_prefix('$')?;
    if let Some(braced) = text.strip_prefix('{') {
        let (name, after) = braced.split_once('}')?;
        return is_name(name.split(BLANKS).next()?).then_some((name, after));
    }
    let end = text.find(ends).unwrap_or(text.len());
    is_name(&text[..end]).then(|| text.split_at(end))
}

/// A random number from the first to the second bound; the defaults are 0 and 32767.
fn random(bounds: &[&str]) -> Option<u64> {
    let least: u64 = bounds.first().map_or(Ok(0), |text| text.parse()).ok()?;
    let most: u64 = bounds.get(1).map_or(Ok(32_767), |text| text.parse()).ok()?;
    let drawn = RandomState::new().build_hasher().finish();
    Some(least + drawn % most.checked_sub(least)?.checked_add(1)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::reader::*;

    /// A directory that is removed when the test ends.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("xvs-keepalived-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// The tokens of a file on the host lb1 as text, and the faults.
    fn statements(path: &Path) -> (String, Vec<String>) {
        let Lines { tokens, faults, .. } = read(path, "lb1").unwrap();
        let text = |token: Token| match token.kind {
            TokenKind::Statement(text) => text,
            TokenKind::Open => "{".to_owned(),
            TokenKind::Close => "}".to_owned(),
        };
        let tokens: Vec<_> = tokens.into_iter().map(text).collect();
        (tokens.join(" ; "), faults.iter().map(ToString::to_string).collect())
    }

    #[track_caller]
    fn assert_read(name: &str, text: &str, want: &str) {
        let folder = Folder::new(name);
        let (read, faults) = statements(&folder.write("keepalived.conf", text));
        assert_eq!(read, want);
        assert!(faults.is_empty(), "{faults:?}");
    }

    #[test]
    fn parameters_are_replaced_where_they_are_used() {
        assert_read(
            "late",
            "$A=${B}.1\n$B=10.0.0\nvip $A\n$B=10.0.9\nvip ${A}/32 \"${B}\" $Bx $1 $UNKNOWN\n",
            "vip 10.0.0.1 ; vip 10.0.9.1/32 \"10.0.9\" $Bx $1 $UNKNOWN",
        );
        assert_read("empty", "$A=\n$B= x y\nz ${A}a $B", "z a x y");
    }

    #[test]
    fn a_parameter_of_several_lines_is_expanded_in_each_round_of_a_loop() {
        let text = "$RS= \\\nreal_server 10.1.0.${N} 80 { \\\nweight ${N} \\\n}\n~SEQ(N, 1, 2) $RS\nend";
        let each = |n: u8| format!("real_server 10.1.0.{n} 80 ; {{ ; weight {n} ; }} ; ");
        assert_read("lines", text, &format!("{}{}end", each(1), each(2)));
        assert_read(
            "nested",
            "~LST({C,D},{1,2},{3,4}) ~SEQ(E,8,9) x ${C}${D}_$E",
            "x 12_8 ; x 12_9 ; x 34_8 ; x 34_9",
        );
    }

    #[test]
    fn the_numbers_of_a_loop_are_parameters_with_or_without_braces() {
        let text = "$A=11\n$B=12\n$AB=11,12\n";
        for numbers in ["$A,$B", " $A , $B ", "${A},${B}", "11, $B", "$A, 12", "$AB", "${AB}"] {
            let text = format!("{text}~SEQ(H,{numbers}) x $H\n");
            assert_read("numbers", &text, "x 11 ; x 12");
        }
        assert_read("values", &format!("{text}~LST(H, $A, $B) x $H\n"), "x 11 ; x 12");
    }

    #[test]
    fn a_definition_goes_on_after_a_comment_that_ends_with_a_backslash() {
        let text =
            "$RS= \\\nrs { # a \\\n weight 3  # note \\\n#  inhibit \\\n TCP_CHECK { \\\n } \\\n}\n$RS\nend";
        assert_read("commented", text, "rs ; { ; weight 3 ; TCP_CHECK ; { ; } ; } ; end");
    }

    #[test]
    fn conditional_lines_select_one_machine_or_all_others() {
        assert_read(
            "ids",
            "@lb1 $W=5\n@^lb1 $W=1\n@lb2 x\n@lb1\nweight $W\n@lb1 @lb1 y",
            "weight 5 ; @lb1 y",
        );
        assert_read("by_parameter", "$ON=@lb1 a\n$OFF=@lb2 b\n${ON}\n${OFF}", "a");
    }

    #[test]
    fn built_in_parameters_are_replaced_and_their_hash_starts_a_comment_outside_quotes() {
        let folder = Folder::new("built_in");
        let path =
            folder.write("k.conf", "a ${_INSTANCE} \"${_HASH}x\" ${_BANG} gone\nb $_PWD\nc ${_RANDOM 7 7}");
        let want = format!("a lb1 \"#x\" ; b {} ; c 7", folder.0.display());
        assert_eq!(statements(&path), (want, Vec::new()));
    }

    #[test]
    fn the_directory_of_a_file_is_absolute_and_without_links() {
        let folder = Folder::new("pwd");
        folder.write("real/i.conf", "in ${_PWD}");
        let path = folder.write("real/k.conf", "at ${_PWD}\ninclude ${_PWD}/i.conf");
        std::os::unix::fs::symlink("real", folder.0.join("link")).unwrap();
        let real = folder.0.canonicalize().unwrap().join("real").display().to_string();
        let want = (format!("at {real} ; in {real}"), Vec::new());
        assert_eq!(statements(&folder.0.join("link/../link/k.conf")), want);
        assert_eq!(statements(&path), want);
        // A file that is named without a directory is in the process's directory.
        assert_eq!(directory(Path::new("k.conf")), std::env::current_dir().unwrap().canonicalize().unwrap());
    }

    #[test]
    fn includes_are_relative_to_the_including_file_and_read_in_order() {
        let folder = Folder::new("include");
        folder.write("conf.d/b.conf", "b");
        folder.write("conf.d/a.conf", "a\ninclude deep/x.conf\n");
        folder.write("conf.d/deep/x.conf", "x $V");
        folder.write("conf.d/c.txt", "c");
        let path = folder.write(
            "k.conf",
            "$V=1\ninclude conf.d/*.conf\ninclude \"conf.d/{c.txt,b.*}\"\nend { include conf.d/*.none\n",
        );
        let (read, faults) = statements(&path);
        assert_eq!(read, "a ; x 1 ; b ; c ; b ; end ; { ; include conf.d/*.none");
        assert!(faults.is_empty(), "include is a keyword only at the start of a line: {faults:?}");
        for (line, severity) in [
            ("include none", "warning"),
            ("include conf.d/*.none", "warning"),
            ("include {none,conf.d/*.none}", "warning"),
            ("includer none", "warning"),
            ("includem none*", "error"),
            ("includew none*", "error"),
            ("includeb conf.d/{c.txt,none}", "error"),
            ("includea none", "error"),
        ] {
            let (_, faults) = statements(&folder.write("k.conf", line));
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert!(faults[0].contains(&format!(":1: {severity}: include: nothing matches")), "{faults:?}");
        }
    }

    #[test]
    fn endless_parameters_loops_and_includes_are_errors() {
        let folder = Folder::new("endless");
        for text in [
            "include k.conf",
            "include k.conf\ninclude k.conf",
            "$A=$B\n$B=$A\nx $A",
            "$A=~SEQ(N,1,2) $A\n$A",
        ] {
            let (_, faults) = statements(&folder.write("k.conf", text));
            let [fault] = &faults[..] else { panic!("{text}: {faults:?}") };
            assert!(fault.contains("error: parameters, loops or includes without an end"), "{text}: {fault}");
        }
        let twice = |name: u8| format!("$P{name}=${{P{0}}}${{P{0}}}\n", name + 1);
        let text = (0..30).map(twice).collect::<String>() + "$P30=x\na $P0";
        let (_, faults) = statements(&folder.write("k.conf", &text));
        let [fault] = &faults[..] else { panic!("{faults:?}") };
        assert!(fault.contains(":32: error: a line of more than 65536 bytes"), "{fault}");
    }

    #[test]
    fn files_that_are_not_text_or_too_large_are_errors_without_blocking_or_memory() {
        let folder = Folder::new("huge");
        let refused = |path: &Path| read(path, "lb1").unwrap_err().to_string();
        assert_eq!(refused(&folder.0), "not a file");
        assert_eq!(refused(Path::new("/dev/zero")), "not a file");
        let fifo = folder.0.join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        assert_eq!(refused(&fifo), "not a file");
        let huge = folder.write("huge", "");
        File::options().write(true).open(&huge).unwrap().set_len(BYTES_MAX as u64 + 1).unwrap();
        assert_eq!(refused(&huge), "more than 64 MiB in all");
        File::options().write(true).open(&huge).unwrap().set_len(BYTES_MAX as u64 - 100).unwrap();
        // Included files count, too.
        let (_, faults) = statements(&folder.write("k.conf", &format!("{}\nincluder huge", "a".repeat(100))));
        let [fault] = &faults[..] else { panic!("{faults:?}") };
        assert!(
            fault.contains(":2: error: include: ") && fault.ends_with("more than 64 MiB in all"),
            "{fault}"
        );
        let (read, faults) = statements(&folder.write("k.conf", &"\0\n".repeat(1_000_000)));
        assert_eq!((read.as_str(), faults.len()), ("", FAULTS_MAX + 1));
        assert!(faults[FAULTS_MAX].ends_with(":10000: error: 10000 faults; the rest is left out"));
        let (read, faults) = statements(&folder.write("k.conf", &"a b\n".repeat(1_000_000)));
        assert_eq!(
            (read.len(), faults.len()),
            (1_000_000 * 6 - 3, 0),
            "a million lines are within the limits"
        );
    }

    #[test]
    fn lines_too_long_for_keepalived_are_left_out_with_a_warning() {
        let folder = Folder::new("long");
        let text = format!("a\nb {}\r\nc\0\r\nd \"e\n", "x".repeat(1023));
        let (read, faults) = statements(&folder.write("k.conf", &text));
        assert_eq!(read, "a ; d \"e");
        let lines: Vec<_> = faults.iter().map(|fault| fault.rsplit("k.conf").next().unwrap()).collect();
        assert_eq!(
            lines,
            [
                ":2: warning: longer than 1023 bytes; the line is left out",
                ":3: warning: a NUL byte; the line is left out",
                ":4: warning: a quoted string does not end",
            ]
        );
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        let folder = Folder::new("any");
        proptest::proptest!(|(bytes in proptest::collection::vec(proptest::sample::select(&b"$A={}~SEQLT(),1 @#!\"'\\\n"[..]), 0..120))| {
            let path = folder.0.join("k.conf");
            fs::write(&path, &bytes).unwrap();
            let Lines { tokens, mut faults, .. } = read(&path, "lb1").unwrap();
            crate::blocks::tree(tokens, &mut faults);
        });
    }
}
