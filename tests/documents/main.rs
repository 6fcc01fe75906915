//! Checks of the pages, of the tree and of libraries: links, complete tables, permitted dependencies, lengths of files,
//! licences.

mod dependencies;
mod layering;
mod pages;
