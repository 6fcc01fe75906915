//! The block tree of keepalived.conf: statements, and blocks of statements.
//!
//! Runs after a file was read; pure. Unbalanced braces are an error, because half a configuration is worse than none.

use xvs_model::health_checks::fault::{Fault, Place, Severity};

use crate::lexer::{TokenKind, shell_words, words};
use crate::reader::Token;

/// A statement, or a block with its statements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The position in the file.
    pub place: Place,
    /// The keyword and its arguments.
    pub words: Vec<String>,
    /// The statement as it is written.
    pub text: String,
    /// The statements in braces; `None` without braces.
    pub body: Option<Vec<Block>>,
}

impl Block {
    /// The keyword.
    pub fn keyword(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// The arguments of the keyword.
    pub fn arguments(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }

    /// The arguments, split as a shell does; for commands and patterns.
    pub fn shell_arguments(&self) -> Vec<String> {
        shell_words(&self.text).split_off(1)
    }

    /// The statements in braces; empty without braces.
    pub fn statements(&self) -> &[Block] {
        self.body.as_deref().unwrap_or_default()
    }
}

/// Maximum depth of nested blocks; keeps recursion over the tree within the stack.
const DEPTH_MAX: usize = 64;

/// Builds the tree. Unbalanced braces are added to the faults. If a block is not closed, its end is guessed, so that
/// later faults are found, too.
pub fn tree(tokens: Vec<Token>, faults: &mut Vec<Fault>) -> Vec<Block> {
    let mut tree = Tree { guesses: is_unclosed(&tokens), ..Tree::default() };
    let mut may_open_block = false;
    for Token { place, kind } in tokens {
        let follows_a_statement = std::mem::take(&mut may_open_block);
        match kind {
            TokenKind::Statement(text) => {
                tree.current.push(Block { place, words: words(&text), text, body: None });
                may_open_block = true;
            }
            TokenKind::Open => {
                let head = tree.current.pop_if(|_| follows_a_statement).unwrap_or_else(|| {
                    error(faults, place.clone(), "a `{` without a keyword before it".to_owned());
                    Block { place, words: Vec::new(), text: String::new(), body: None }
                });
                for (place, text) in tree.close_before(&head) {
                    let before = format!("before `{}` at {}; add a `}}`", head.text, head.place);
                    error(faults, place, format!("the `{{` of `{text}` is not closed {before}"));
                }
                if tree.open.len() == DEPTH_MAX {
                    let text = format!("more than {DEPTH_MAX} nested blocks; the rest is left out");
                    error(faults, head.place, text);
                    return tree.finish();
                }
                tree.open.push((head, std::mem::take(&mut tree.current)));
            }
            TokenKind::Close if tree.close() => {}
            TokenKind::Close => error(faults, place, "a `}` without a `{` before it".to_owned()),
        }
    }
    for (head, _) in &tree.open {
        error(faults, head.place.clone(), format!("the `{{` of `{}` is not closed; add a `}}`", head.text));
    }
    tree.finish()
}

fn error(faults: &mut Vec<Fault>, place: Place, text: String) {
    faults.push(Fault { place, severity: Severity::Error, text });
}

/// A tree that is being built.
#[derive(Default)]
struct Tree {
    /// The open blocks, outermost first, each with the statements before it.
    open: Vec<(Block, Vec<Block>)>,
    /// The statements of the innermost open block.
    current: Vec<Block>,
    /// Whether a block is closed at a keyword that shows that its `}` is missing.
    guesses: bool,
}

impl Tree {
    /// Closes the innermost open block; `false` if there is none.
    fn close(&mut self) -> bool {
        let Some((head, outside)) = self.open.pop() else { return false };
        let body = std::mem::replace(&mut self.current, outside);
        self.current.push(Block { body: Some(body), ..head });
        true
    }

    /// Closes the open blocks that cannot contain `head`. Returns their positions and texts.
    fn close_before(&mut self, head: &Block) -> Vec<(Place, String)> {
        let Some(outside) = surrounding(head.keyword()).filter(|_| self.guesses) else { return Vec::new() };
        let kept = match outside {
            [] => 0,
            // Without such a block, the nesting cannot be guessed.
            _ => self
                .open
                .iter()
                .rposition(|(block, _)| outside.contains(&block.keyword()))
                .map_or(self.open.len(), |at| at + 1),
        };
        let unclosed =
            self.open[kept..].iter().map(|(block, _)| (block.place.clone(), block.text.clone())).collect();
        while self.open.len() > kept {
            self.close();
        }
        unclosed
    }

    /// The whole tree, with all open blocks closed.
    fn finish(mut self) -> Vec<Block> {
        while self.close() {}
        self.current
    }
}

/// Whether a block is open at the end.
fn is_unclosed(tokens: &[Token]) -> bool {
    let depth = tokens.iter().fold(0usize, |depth, token| match token.kind {
        TokenKind::Open => depth + 1,
        TokenKind::Close => depth.saturating_sub(1),
        TokenKind::Statement(_) => depth,
    });
    depth > 0
}

/// The keywords of the blocks that contain a block with this keyword, none for the outermost; `None` if it may occur
/// anywhere.
fn surrounding(keyword: &str) -> Option<&'static [&'static str]> {
    Some(match keyword {
        "global_defs" | "virtual_server" | "virtual_server_group" => &[],
        "vrrp_instance" | "vrrp_script" | "vrrp_sync_group" => &[],
        "real_server" => &["virtual_server"],
        "url" => &["HTTP_GET", "SSL_GET"],
        "HTTP_GET" | "SSL_GET" => &["real_server"],
        checker if checker.ends_with("_CHECK") => &["real_server"],
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::blocks::*;
    use crate::lexer::parts;

    /// The tree as text, and the faults.
    fn read(lines: &[&str]) -> (String, Vec<String>) {
        let tokens = (1..).zip(lines).flat_map(|(line, text)| {
            let place = Place { file: Path::new("k").into(), line };
            parts(text).into_iter().map(move |kind| Token { place: place.clone(), kind })
        });
        let mut faults = Vec::new();
        let tree = tree(tokens.collect(), &mut faults);
        (shown(&tree), faults.iter().map(ToString::to_string).collect())
    }

    fn shown(blocks: &[Block]) -> String {
        let one = |block: &Block| match &block.body {
            Some(body) => format!("{}({})", block.words.join("_"), shown(body)),
            None => block.words.join("_"),
        };
        blocks.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_brace_opens_the_block_of_the_statement_before_it_on_the_same_or_an_earlier_line() {
        let (tree, faults) = read(&["a 1", "{", "b { c 2", "d }", "e {", "}", "} f", "g {h}"]);
        assert_eq!(tree, "a_1(b(c_2 d) e()) f g(h)");
        assert!(faults.is_empty(), "{faults:?}");
    }

    #[test]
    fn a_block_that_is_not_closed_is_named_and_ends_before_a_keyword_that_cannot_stand_in_it() {
        let server = |name: &'static str| [name, "TCP_CHECK {", "}", "}"];
        let begin = [&["virtual_server a {"][..], &server("real_server b {")].concat();
        let unclosed =
            |of: &str, before: &str| format!("the `{{` of `{of}` is not closed before `{before}; add a `}}`");
        for (lines, want, fault) in [
            (
                [&begin[..4], &server("real_server c {"), &["}", "virtual_server d {", "}"]].concat(),
                "virtual_server_a(real_server_b(TCP_CHECK()) real_server_c(TCP_CHECK())) virtual_server_d()",
                format!("k:2: error: {}", unclosed("real_server b", "real_server c` at k:5")),
            ),
            (
                [&begin[..], &["global_defs {", "}"]].concat(),
                "virtual_server_a(real_server_b(TCP_CHECK())) global_defs()",
                format!("k:1: error: {}", unclosed("virtual_server a", "global_defs` at k:6")),
            ),
            (
                [&begin[..3], &["HTTP_GET {", "}", "}", "}"]].concat(),
                "virtual_server_a(real_server_b(TCP_CHECK() HTTP_GET()))",
                format!("k:3: error: {}", unclosed("TCP_CHECK", "HTTP_GET` at k:4")),
            ),
            (
                begin.clone(),
                "virtual_server_a(real_server_b(TCP_CHECK()))",
                "k:1: error: the `{` of `virtual_server a` is not closed; add a `}`".to_owned(),
            ),
        ] {
            assert_eq!(read(&lines), (want.to_owned(), vec![fault]), "{lines:?}");
        }
        let (tree, faults) = read(&["mystery {", "virtual_server a {", "}", "}"]);
        assert_eq!((tree.as_str(), faults.len()), ("mystery(virtual_server_a())", 0), "nothing is guessed");
    }

    #[test]
    fn unbalanced_braces_are_errors_with_their_line() {
        assert_eq!(read(&["a {", "b", "} }"]).1, ["k:3: error: a `}` without a `{` before it"]);
        assert_eq!(
            read(&["a", "b {", "c {", "}"]).1,
            ["k:2: error: the `{` of `b` is not closed; add a `}`"]
        );
        let deep = vec!["a {"; 100];
        assert!(read(&deep).1[0].contains("k:65: error: more than 64 nested blocks"));
        let (tree, faults) = read(&["{ a }", "b"]);
        assert_eq!((tree.as_str(), faults.len()), ("(a) b", 1));
    }
}
