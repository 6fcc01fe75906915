#!/usr/bin/env bash
# The package on an architecture that this machine does not have: installed, the whole of scripts/demo, and xvsd as a
# user of its own, whose system calls are limited by lists of the architecture.
# kernel arm64
set -euo pipefail

test=demo
show_state() { cat /tmp/xvsd.log; }
# shellcheck source=tests/vm/common.bash
source /vm-bin/common.bash

modprobe tun
dpkg --install /vm-bin/xvs_*.deb
cd /vm-bin/tree
scripts/demo --programs /usr/sbin

ip link add wan type veth peer name far
ip address add 198.51.100.100/32 dev wan
for name in wan far; do ip link set $name up; done
printf '%s\n' 'interfaces = ["wan"]' 'user = "xvs"' >/tmp/xvs.toml
/usr/sbin/xvsd --config /tmp/xvs.toml >/tmp/xvsd.log 2>&1 &
until_shown "interface  wan: up" xvs status
xvsadm -A -t 198.51.100.100:80 -s wlc
xvsadm -a -t 198.51.100.100:80 -r 198.51.100.11:80 -m
xvs capture --count 1 >/dev/null &
sleep 3
xvs reload
for command in "xvs status" "xvs connections" "xvs counters" "xvs health" "xvsadm -Ln --stats"; do
    $command >/tmp/shown || [[ $command == "xvs health" ]] || fail "$command fails"
done
xvs status | tee /tmp/status
! grep -q "system call" /tmp/status || fail "a system call that xvsd needs is refused"
[[ $(stat -c %U "/proc/$(pgrep -o -x xvsd)") == xvs ]] || fail "xvsd does not run as its user"
dpkg --purge xvs
