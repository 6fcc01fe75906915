//! The book: docs/SUMMARY.md lists every page once, with its heading.
//!
//! Not here: whether each entry's file exists (`pages.rs` checks all links); the built book (scripts/book).

use super::pages::{documents, prose, read};

/// The contents of the book, which mdBook reads.
const SUMMARY: &str = "docs/SUMMARY.md";

#[test]
fn every_page_is_in_the_book_once() {
    let listed: Vec<_> = read(SUMMARY).lines().filter_map(entry).map(|(_, page)| page).collect();
    let count = |page: &String| listed.iter().filter(|one| *one == page).count();
    for page in documents().iter().filter(|page| *page != SUMMARY).chain(&listed) {
        assert_eq!(count(page), 1, "{SUMMARY} must list {page} once");
    }
}

#[test]
fn the_title_of_an_entry_is_the_heading_of_its_page_or_its_part_before_a_comma_or_colon() {
    for (title, page) in read(SUMMARY).lines().filter_map(entry) {
        let headings = prose(&read(&page)).1;
        let heading = headings.first().unwrap_or_else(|| panic!("{page} has no heading"));
        assert!(
            is_title_of(&title, heading),
            "{SUMMARY} has «{title}» for {page}, whose heading is «{heading}»"
        );
    }
}

#[test]
fn entries_and_their_titles_are_recognized() {
    let page = |line| entry(line).map(|(_, page)| page);
    assert_eq!(page("- [A page](page.md)").as_deref(), Some("docs/page.md"));
    assert_eq!(page("  - [A page](../page.md)").as_deref(), Some("page.md"));
    assert_eq!(page("[A page](page.md)").as_deref(), Some("docs/page.md"));
    assert_eq!(page("# A part"), None);
    for (title, is_title) in [("Limits, all", true), ("Limits", true), ("Limit", false), ("All", false)] {
        assert_eq!(is_title_of(title, "Limits, all"), is_title, "{title}");
    }
}

/// The title and the page of a line of the contents; the page as its path from the root.
fn entry(line: &str) -> Option<(String, String)> {
    let link = line.trim_start_matches([' ', '-']).strip_prefix('[')?;
    let (title, page) = link.strip_suffix(')')?.split_once("](")?;
    let page = page.strip_prefix("../").map_or_else(|| format!("docs/{page}"), str::to_owned);
    Some((title.to_owned(), page))
}

/// Whether a title is a heading, or its part before a comma or a colon.
fn is_title_of(title: &str, heading: &str) -> bool {
    let rest = heading.strip_prefix(title);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([',', ':']))
}
