//! An existing keepalived.conf: what it says of virtual services, read as keepalived reads it.
//!
//! A file's way: its lines ([`lexer`]) become statements ([`reader`], [`loops`]) and a tree of them ([`blocks`]).

pub mod blocks;
pub mod lexer;
pub mod loops;
pub mod reader;
