//! Manual pages and completion, checked with the programs that use them: man, groff and bash.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use xvs::cluster::{complete, succeed};
use xvs::director::program;
use xvs_ctl::config::Config;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("xvs-{name}-{}", std::process::id()));
        fs::create_dir_all(path.join("man8")).expect("a new folder");
        Self(path)
    }

    fn pages(&self) -> PathBuf {
        self.0.join("man8")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left is in the folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn render(page: &Path, under: &Path) -> String {
    // `.so` names pages from the folder above.
    let man = ["--warnings", "--local-file", "-Tutf8"];
    let mut command = Command::new("man");
    // Debian 13's groff would write bold letters as escape sequences.
    command.current_dir(under).env("MANWIDTH", "80").env("GROFF_NO_SGR", "1");
    let output = complete(command.args(man).arg(page));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{}: {said}", page.display());
    // Bold is a letter over itself.
    let mut text = String::new();
    for letter in String::from_utf8_lossy(&output.stdout).chars() {
        match letter {
            '\u{8}' => text.truncate(text.char_indices().last().map_or(0, |(place, _)| place)),
            letter => text.push(letter),
        }
    }
    text
}

#[test]
fn every_program_and_subcommand_has_a_page_that_man_and_groff_render_without_a_warning() {
    let folder = Folder::new("manual");
    let pages = folder.pages();
    succeed(Command::new(program("xvs")).arg("manual").arg(&pages));
    let mut names = Vec::new();
    for entry in fs::read_dir(&pages).expect("the folder").map(|entry| entry.expect("a page").path()) {
        let name = entry.file_stem().expect("a name").to_string_lossy().into_owned();
        let section = entry.extension().expect("a section").to_string_lossy();
        let text = render(&entry, &folder.0);
        let title = if name.starts_with("ipvsadm") { "xvsadm" } else { &name };
        // The first line has the title, of which Debian 13's groff shortens a long one, and the section.
        let start = title.get(..10).unwrap_or(title);
        let is_titled = text.lines().find(|line| !line.is_empty()).is_some_and(|line| {
            line.starts_with(start) && line.trim_end().ends_with(&format!("({section})"))
        });
        assert!(is_titled && text.contains("SYNOPSIS"), "{name}: {text}");
        if name == "xvs" {
            assert!(text.contains("`realserver status`: there are problems"), "{text}");
        }
        let groff =
            complete(Command::new("groff").current_dir(&folder.0).args(["-man", "-ww", "-z"]).arg(&entry));
        assert!(groff.stderr.is_empty(), "{name}: {}", String::from_utf8_lossy(&groff.stderr));
        names.push(name);
    }
    let help = succeed(Command::new(program("xvs")).arg("--help"));
    let groups = help.lines().take_while(|line| *line != "Options:");
    let listed: Vec<_> =
        groups.filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next()).collect();
    assert!(listed.len() > 30, "{help}");
    for subcommand in listed.into_iter().filter(|name| *name != "help") {
        assert!(names.contains(&format!("xvs-{subcommand}")), "xvs {subcommand} has no page");
    }
    for name in [
        "xvs",
        "xvsd",
        "xvsadm",
        "ipvsadm",
        "ipvsadm-save",
        "ipvsadm-restore",
        "xvs-realserver-up",
        "xvs.toml",
    ] {
        assert!(names.contains(&name.to_owned()), "{name} has no page");
    }
}

#[test]
fn the_page_of_xvsadm_has_every_option_of_its_help_and_the_exit_codes() {
    let folder = Folder::new("manual-xvsadm");
    let pages = folder.pages();
    succeed(Command::new(program("xvs")).arg("manual").arg(&pages));
    // In one line, where no word is cut.
    let text = render(&pages.join("xvsadm.8"), &folder.0).replace("\u{2010}\n", "");
    let help = succeed(Command::new(program("xvsadm")).arg("--help"));
    let words = help.split(|letter: char| letter.is_whitespace() || "[],|.".contains(letter));
    let options: Vec<_> = words.filter(|word| word.len() > 3 && word.starts_with("--")).collect();
    assert!(options.len() > 40, "{options:?}");
    for option in options {
        assert!(text.contains(option), "{option} is not in the page");
    }
    assert!(text.contains("EXIT CODES") && text.contains("255"), "{text}");
}

/// The keys of a section of xvs.toml, or of the part before the first.
fn keys(section: &Value) -> Vec<&String> {
    let all = section.as_object().expect("a section has keys").iter();
    all.filter(|(_, value)| !value.is_object()).map(|(key, _)| key).collect()
}

#[test]
fn the_page_of_xvs_toml_has_a_paragraph_with_the_meaning_of_every_key() {
    let folder = Folder::new("manual-toml");
    succeed(Command::new(program("xvs")).arg("manual").arg(folder.pages()));
    let page = fs::read_to_string(folder.pages().join("xvs.toml.5")).expect("a page");
    // Each begins with its keys, and has its meaning in the next line.
    let paragraphs: Vec<_> = page.split(".TP\n").skip(1).filter_map(|text| text.split_once('\n')).collect();
    let all = serde_json::to_value(Config::default()).expect("a configuration is a document");
    let sections = ["ipvs", "feedback", "keepalived"].map(|name| &all[name]);
    let keys: Vec<_> = [&all].into_iter().chain(sections).flat_map(keys).collect();
    assert!(keys.len() > 50, "{keys:?}");
    for key in keys {
        let is_here = |(terms, meaning): &&(&str, &str)| {
            terms.split(", ").any(|term| term == format!("\\fB{key}\\fR")) && meaning.len() > 10
        };
        assert!(paragraphs.iter().any(|one| is_here(&one)), "{key} is not in\n{page}");
    }
}

#[test]
fn a_page_that_cannot_be_written_is_named() {
    let output = complete(Command::new(program("xvs")).args(["manual", "/nowhere/man8"]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.starts_with("xvs: /nowhere/man8/xvs") && said.lines().count() == 1, "{said}");
}

/// What bash offers for the last of these words, after the program's completion was loaded into it.
fn offered(words: &[&str]) -> Vec<String> {
    let name = words[0];
    let line = words.join(" ");
    let (last, before) = (words[words.len() - 1], words[words.len() - 2]);
    let script = format!(
        "source <(\"$1\" completion bash --program {name}) && \
         complete -p {name} >/dev/null && \
         COMP_LINE='{line}' COMP_POINT={} COMP_WORDS=({}) COMP_CWORD={} && \
         _{name} {name} '{last}' '{before}' && printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        line.len(),
        words.iter().map(|word| format!("'{word}' ")).collect::<String>(),
        words.len() - 1,
    );
    let output = succeed(Command::new("bash").args(["--norc", "-c", &script, "bash"]).arg(program("xvs")));
    output.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn bash_completes_the_command_lines_of_every_program() {
    assert_eq!(offered(&["xvs", "sta"]), ["status"]);
    assert_eq!(offered(&["xvs", "realserver", "d"]), ["down"]);
    assert_eq!(offered(&["xvs", "doctor", "--j"]), ["--json"]);
    assert_eq!(offered(&["xvs", "realserver", "up", "--method", "t"]), ["tunnel"]);
    assert_eq!(offered(&["xvsd", "--con"]), ["--config", "--conn-table-size", "--config-id"]);
    for program in ["xvsadm", "ipvsadm"] {
        assert_eq!(offered(&[program, "--add-se"]), ["--add-service", "--add-server"]);
        assert_eq!(offered(&[program, "-A", "-t", "192.0.2.1:80", "-s", "wl"]), ["wlc"]);
        assert_eq!(offered(&[program, "--start-daemon", "m"]), ["master"]);
    }
}

#[test]
fn completions_for_other_shells_are_printed_and_a_closed_pipe_is_silent() {
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let script = succeed(Command::new(program("xvs")).args(["completion", shell, "--program", "xvsadm"]));
        assert!(script.contains("add-service"), "{shell}: {script}");
    }
    let closed = "\"$0\" completion bash | true; echo ${PIPESTATUS[0]}";
    let output = complete(Command::new("bash").args(["-c", closed]).arg(program("xvs")));
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"0\n"[..], &b""[..]));
}
