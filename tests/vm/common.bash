# What tests in the machine share; each has a function `show_state`, which tells more about a failure.

at() { ip netns exec "$@"; }
say() { echo "-- $*"; }
fail() {
    echo "$test: $*" >&2
    show_state >&2 || true
    exit 1
}
# Waits until a command's output has a text.
until_shown() {
    local text=$1 try
    shift
    for ((try = 0; try < 60; try++)); do
        # Not by a pipe: grep ends at the first match, and a long output would then end with SIGPIPE.
        if grep -q "$text" <<<"$("$@" 2>/dev/null)"; then return; fi
        sleep 0.5
    done
    "$@" >&2 || true
    fail "no $text in $*"
}
