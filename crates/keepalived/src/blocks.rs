//! The block tree of a keepalived.conf: statements, and blocks of statements.
//!
//! Runs after a file was read; pure. Unbalanced braces are an error, because half a configuration is worse than none.
//! Not here: the meaning of statements.

use xvs_model::health_checks::fault::{Fault, Place, Severity};

use crate::lexer::{shell_words, words};
use crate::reader::{Token, TokenKind};

/// A statement, or a block with its statements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its position in the file.
    pub place: Place,
    /// The keyword and its arguments.
    pub words: Vec<String>,
    /// The statement as it is written.
    pub text: String,
    /// The statements in its braces; `None`: it has no braces.
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

    /// The statements in its braces; empty without braces.
    pub fn statements(&self) -> &[Block] {
        self.body.as_deref().unwrap_or_default()
    }
}

/// The depth of nested blocks; keeps recursion over the tree within the stack.
const DEPTH_MAX: usize = 64;

/// Builds the tree. Unbalanced braces are added to the faults.
pub fn tree(tokens: Vec<Token>, faults: &mut Vec<Fault>) -> Vec<Block> {
    let mut open: Vec<Block> = Vec::new();
    let mut current: Vec<Block> = Vec::new();
    // The statements before each open block, outermost first.
    let mut enclosing: Vec<Vec<Block>> = Vec::new();
    let mut error = |place: Place, text: String| {
        faults.push(Fault { place, severity: Severity::Error, text });
    };
    let mut may_open_block = false;
    for Token { place, kind } in tokens {
        let follows_a_statement = std::mem::take(&mut may_open_block);
        match kind {
            TokenKind::Statement(text) => {
                current.push(Block { place, words: words(&text), text, body: None });
                may_open_block = true;
            }
            TokenKind::Open => {
                let head = if follows_a_statement { current.pop() } else { None };
                let head = head.unwrap_or_else(|| {
                    error(place.clone(), "a `{` without a keyword before it".to_owned());
                    Block { place, words: Vec::new(), text: String::new(), body: None }
                });
                if open.len() == DEPTH_MAX {
                    error(head.place, format!("more than {DEPTH_MAX} nested blocks; the rest is left out"));
                    return enclosing.into_iter().next().unwrap_or_default();
                }
                open.push(head);
                enclosing.push(std::mem::take(&mut current));
            }
            TokenKind::Close => match open.pop().zip(enclosing.pop()) {
                Some((head, outside)) => {
                    let body = std::mem::replace(&mut current, outside);
                    current.push(Block { body: Some(body), ..head });
                }
                None => error(place, "a `}` without a `{` before it".to_owned()),
            },
        }
    }
    for head in &open {
        error(head.place.clone(), format!("the `{{` of `{}` is not closed", head.text));
    }
    enclosing.into_iter().next().unwrap_or(current)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::blocks::*;
    use crate::lexer::{Part, parts};

    /// The tree as text, and the faults.
    fn read(lines: &[&str]) -> (String, Vec<String>) {
        let tokens = (1..).zip(lines).flat_map(|(line, text)| {
            parts(text).into_iter().map(move |part| Token {
                place: Place { file: Path::new("k").into(), line },
                kind: match part {
                    Part::Text(text) => TokenKind::Statement(text.to_owned()),
                    Part::Open => TokenKind::Open,
                    Part::Close => TokenKind::Close,
                },
            })
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
    fn unbalanced_braces_are_errors_with_their_line() {
        assert_eq!(read(&["a {", "b", "} }"]).1, ["k:3: error: a `}` without a `{` before it"]);
        assert_eq!(read(&["a", "b {", "c {", "}"]).1, ["k:2: error: the `{` of `b` is not closed"]);
        let deep = vec!["a {"; 100];
        assert!(read(&deep).1[0].contains("k:65: error: more than 64 nested blocks"));
        let (tree, faults) = read(&["{ a }", "b"]);
        assert_eq!((tree.as_str(), faults.len()), ("(a) b", 1));
    }
}
