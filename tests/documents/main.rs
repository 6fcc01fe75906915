//! Checks of the pages, of the tree and of libraries: links, the book, complete tables, commands and files in blocks of
//! code, permitted dependencies, lengths of files, licences, workflows.

mod book;
mod commands;
mod dependencies;
mod layering;
mod pages;
mod workflows;
