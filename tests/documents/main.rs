//! Checks of the pages, of the tree and of libraries: links, complete tables, commands and files in blocks of code,
//! permitted dependencies, lengths of files, licences.

mod commands;
mod dependencies;
mod layering;
mod pages;
