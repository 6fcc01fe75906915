//! `xvs manual`: the manual pages of all programs, from the definitions of their command lines, and the page of
//! xvs.toml.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::{Args, Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use xvs_ctl::arguments;

use crate::output::exit::{DONE, Done};

mod xvs_toml;

/// The arguments of `xvs manual`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The directory, such as /usr/local/share/man/man8; it must exist
    directory: PathBuf,
}

/// `xvs` is the definition of its command line.
pub(super) fn run(arguments: &Arguments, xvs: Command) -> Done {
    let directory = &arguments.directory;
    let programs = [xvs, arguments::Arguments::command(), xvs_ipvsadm::manual::command()];
    for mut program in programs.map(|program| program.disable_help_subcommand(true)) {
        program.build();
        write(&program, directory)?;
    }
    for other in ["ipvsadm", "ipvsadm-save", "ipvsadm-restore"] {
        page(directory, &format!("{other}.{SECTION}"), |out| out.write_all(b".so man8/xvsadm.8\n"))?;
    }
    page(directory, "xvs.toml.5", |out| xvs_toml::page().to_writer(out))?;
    Ok(DONE)
}

/// The page of a command, and those of its subcommands.
fn write(command: &Command, directory: &Path) -> Result<(), Box<dyn Error>> {
    for below in command.get_subcommands() {
        write(below, directory)?;
    }
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    page(directory, &format!("{name}.{SECTION}"), |out| {
        let man = Man::new(command.clone().after_help("")).section(SECTION).manual("xvs").source(SOURCE);
        man.render_title(out)?;
        man.render_name_section(out)?;
        man.render_synopsis_section(out)?;
        man.render_description_section(out)?;
        if command.get_arguments().next().is_some() {
            man.render_options_section(out)?;
        }
        if command.has_subcommands() {
            man.render_subcommands_section(out)?;
        }
        rest(command, name).to_writer(out)
    })
}

/// The sections of the text after the options, such as the exit codes, and the references to other pages.
fn rest(command: &Command, name: &str) -> Roff {
    let mut roff = Roff::new();
    for line in command
        .get_after_help()
        .map(ToString::to_string)
        .unwrap_or_default()
        .lines()
        .filter(|line| !line.is_empty())
    {
        let text = line.trim();
        let indented = line.starts_with(' ');
        match (text.strip_suffix(':'), text.split_once("  ")) {
            (Some(heading), _) if !indented => roff.control("SH", [heading.to_uppercase().as_str()]),
            _ if !indented => roff.control("PP", []).text([roman(text)]),
            (_, Some((term, text))) => roff.control("TP", []).text([bold(term)]).text([roman(text.trim())]),
            // Continues the text of the term above.
            (_, None) => roff.control("br", []).text([roman(text)]),
        };
    }
    let above = name.rsplit_once('-').map(|(above, _)| above);
    let mut others: Vec<_> = above
        .into_iter()
        .chain(["xvs", "xvsd", "xvsadm"].into_iter().filter(|other| Some(*other) != above && *other != name))
        .map(|other| format!("{other}({SECTION})"))
        .collect();
    if name == "xvsd" {
        others.push("xvs.toml(5)".to_owned());
    }
    roff.control("SH", ["SEE ALSO"]).text([roman(others.join(", "))]);
    roff
}

/// Writes a page to a file of this name. An error, such as a full disk or a missing directory, names the page.
fn page(
    directory: &Path,
    name: &str,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), Box<dyn Error>> {
    let path = directory.join(name);
    let mut text = Vec::new();
    content(&mut text)
        .and_then(|()| fs::write(&path, ascii(&String::from_utf8_lossy(&text))))
        // Not an `io::Error`, which would be one of standard output.
        .map_err(|error| format!("{}: {error}", path.display()).into())
}

/// ASCII text with groff's escapes for other characters (groff_char(7)): groff does not read UTF-8 by default.
fn ascii(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c.is_ascii() {
            true => escaped.push(c),
            false => escaped += &format!("\\[u{:04X}]", u32::from(c)),
        }
    }
    escaped
}

/// The section for system administration (man-pages(7)).
const SECTION: &str = "8";
const SOURCE: &str = concat!("xvs ", env!("CARGO_PKG_VERSION"));
