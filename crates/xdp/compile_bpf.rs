//! The build script of packages with BPF programs: compiles each `bpf/NAME.bpf.c` to `OUT_DIR/NAME.bpf.o`, which they
//! embed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

pub(crate) fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo::rerun-if-changed=bpf");
    for file in fs::read_dir("bpf").expect("the package has a folder bpf") {
        let source = file.expect("bpf/ is readable").path();
        let name = source.file_name().and_then(|name| name.to_str()).expect("names in bpf/ are ASCII");
        if let Some(stem) = name.strip_suffix(".bpf.c") {
            compile(&source, &out.join(format!("{stem}.bpf.o")));
        }
    }
}

/// Runs clang. `-g` keeps the types (BTF), in which libbpf finds the layout of the maps.
fn compile(source: &Path, object: &Path) {
    let status = Command::new("clang")
        .args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-target", "bpf", "-mcpu=v3", "-c"])
        .arg(include_folder())
        .arg(source)
        .arg("-o")
        .arg(object)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("clang could not compile {}: {status}", source.display()),
        Err(error) => panic!("clang could not be started ({error}); `scripts/setup` installs it"),
    }
}

/// The option for <asm/types.h>, which <linux/types.h> includes: Debian has it in a folder of the architecture.
pub(crate) fn include_folder() -> String {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the architecture");
    format!("-I/usr/include/{arch}-linux-gnu")
}
