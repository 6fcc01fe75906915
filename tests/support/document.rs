//! Blocks of code of a document in Markdown, each with what the document says before it.

/// A block of code.
#[derive(Debug, PartialEq, Eq)]
pub struct Block<'a> {
    /// The number of its first line in the text, from 1.
    pub number: usize,
    /// What stands behind the opening fence, such as `toml`.
    pub language: &'a str,
    /// The paragraph before it, as one line.
    pub before: String,
    /// Its lines, without the indentation of its fence.
    pub lines: Vec<&'a str>,
}

/// All blocks of a text, in its order.
pub fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut paragraph = String::new();
    let mut open: Option<(Block<'_>, usize)> = None;
    for (line, number) in text.lines().zip(1..) {
        let bare = line.trim_start();
        match (bare.strip_prefix("```"), open.take()) {
            (Some(language), None) => {
                let before = std::mem::take(&mut paragraph);
                let block = Block { number: number + 1, language, before, lines: Vec::new() };
                open = Some((block, line.len() - bare.len()));
            }
            (Some(_), Some((block, _))) => blocks.push(block),
            (None, Some((mut block, indent))) => {
                block.lines.push(line.get(indent..).unwrap_or(bare));
                open = Some((block, indent));
            }
            // Blank lines may stand between a paragraph and its block.
            (None, None) if bare.is_empty() => paragraph.push('\n'),
            (None, None) => {
                if paragraph.ends_with('\n') {
                    paragraph.clear();
                }
                let space = if paragraph.is_empty() { "" } else { " " };
                paragraph += space;
                paragraph += bare;
            }
        }
    }
    for block in &mut blocks {
        block.before.truncate(block.before.trim_end().len());
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_its_place_and_the_paragraph_before_it() {
        let text = "# Page\n\nNo.\n\nOn the\ndirector:\n\n```\none\n  two\n```\n  ```toml\n  three\n  ```\n";
        let first =
            Block { number: 9, language: "", before: "On the director:".into(), lines: vec!["one", "  two"] };
        let second = Block { number: 13, language: "toml", before: String::new(), lines: vec!["three"] };
        assert_eq!(blocks(text), [first, second]);
    }
}
