//! Checks of the pages and of the tree: links, complete tables, permitted dependencies, lengths of files.

mod layering;
mod pages;
