// enter: runs a command on a host of scripts/netlab, for `netlab exec` and the tests.
//
//   enter STATE HOST COMMAND [ARGUMENT]...
//
// STATE is the cluster's directory, HOST one of its hosts (cl, dr, rs1, ...). The process keeps its PID: it enters the
// host's network namespace, gets a mount namespace that ends with it, with the host's directories, and becomes the
// command. STATE/pids gets a file with its PID and start time. One program and not nsenter(1), unshare(1), sh(1) and
// mount(8) in turn: a test runs hundreds of commands.
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

// The directories of a host, and what they are for its commands.
static const char *const MOUNTS[][2] = {
    {"run", "/run/xvs"},
    {"realserver", "/run/xvs-realserver"},
    {"shm", "/dev/shm/xvs"},
    {"bpf", "/sys/fs/bpf"},
};

// Start time of this process in clock ticks: field 22 of /proc/self/stat.
static unsigned long long start_time(void) {
    unsigned long long ticks;
    FILE *stat = fopen("/proc/self/stat", "r");
    // The name of the command, in parentheses, has no closing one.
    if (!stat || fscanf(stat, "%*[^)]) %*c" "%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%llu", &ticks) != 1)
        err(1, "/proc/self/stat");
    fclose(stat);
    return ticks;
}

int main(int argc, char **argv) {
    char path[PATH_MAX];
    if (argc < 4) errx(2, "enter STATE HOST COMMAND [ARGUMENT]...");
    const char *state = argv[1], *host = argv[2], *last = strrchr(state, '/');
    if (!last) errx(2, "%s: not an absolute path", state);

    snprintf(path, sizeof path, "%s/pids/%d", state, getpid());
    FILE *record = fopen(path, "w");
    if (!record || fprintf(record, "%d %llu\n", getpid(), start_time()) < 0 || fclose(record)) err(1, "%s", path);

    snprintf(path, sizeof path, "/run/netns/%s-%s", last + 1, host);
    int network = open(path, O_RDONLY | O_CLOEXEC);
    if (network < 0 || setns(network, CLONE_NEWNET)) err(1, "%s", path);

    if (unshare(CLONE_NEWNS)) err(1, "mount namespace");
    // In a chroot, / is not a mount point, so its propagation cannot be changed.
    mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL);
    for (size_t i = 0; i < sizeof MOUNTS / sizeof *MOUNTS; i++) {
        snprintf(path, sizeof path, "%s/%s/%s", state, host, MOUNTS[i][0]);
        if (mount(path, MOUNTS[i][1], NULL, MS_BIND, NULL)) err(1, "%s on %s", path, MOUNTS[i][1]);
    }

    execvp(argv[3], argv + 3);
    err(127, "%s", argv[3]);
}
