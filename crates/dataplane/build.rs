//! Compiles `bpf/`, and makes Rust of the layouts and constants in `bpf/maps.h`, for `src/bpf.rs`.

use std::env;
use std::path::PathBuf;

use bindgen::Builder;
use bindgen::callbacks::{DeriveInfo, ParseCallbacks};

#[path = "../xdp/compile_bpf.rs"]
mod compile_bpf;

fn main() {
    compile_bpf::main();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    Builder::default()
        .header("bpf/maps.h")
        .clang_arg(compile_bpf::include_folder())
        .allowlist_item("xvs_.*|XVS_.*")
        .derive_ord(true)
        .derive_eq(true)
        .parse_callbacks(Box::new(Keys))
        .generate()
        .expect("clang has compiled maps.h before")
        .write_to_file(out.join("maps.rs"))
        .expect("OUT_DIR takes a file");
}

/// Makes bytes of the keys and values that are given to the kernel by system calls.
#[derive(Debug)]
struct Keys;

impl ParseCallbacks for Keys {
    fn add_derives(&self, info: &DeriveInfo<'_>) -> Vec<String> {
        match info.name {
            "xvs_endpoint" | "xvs_address" | "xvs_prefix" | "xvs_network" | "xvs_lengths" => {
                ["FromBytes", "Immutable", "IntoBytes"].map(|name| format!("zerocopy::{name}")).into()
            }
            _ => Vec::new(),
        }
    }
}
