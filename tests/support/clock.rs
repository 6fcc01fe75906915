//! Another date for one program: a library that is loaded before libc's (`LD_PRELOAD`), whose `clock_gettime` adds
//! seconds to `CLOCK_REALTIME`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::cluster::{Cluster, succeed};

/// Makes the library in the cluster's folder. At each reading it adds the value of the expression `seconds`, in C;
/// `declarations` come before the function.
///
/// # Panics
///
/// If it cannot be compiled.
pub fn library(cluster: &Cluster, declarations: &str, seconds: &str) -> PathBuf {
    let (source, library) = (cluster.state().join("clock.c"), cluster.state().join("clock.so"));
    let text = format!(
        "#define _GNU_SOURCE\n#include <fcntl.h>\n#include <stdlib.h>\n#include <sys/mman.h>\n\
         #include <sys/syscall.h>\n#include <time.h>\n#include <unistd.h>\n{declarations}\n\
         int clock_gettime(clockid_t clock, struct timespec *time) {{\n\
             long result = syscall(SYS_clock_gettime, clock, time);\n\
             if (result == 0 && clock == CLOCK_REALTIME)\n\
                 time->tv_sec += {seconds};\n\
             return result;\n\
         }}\n"
    );
    fs::write(&source, text).expect("the cluster's folder takes a new file");
    succeed(Command::new("clang").args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source));
    library
}
