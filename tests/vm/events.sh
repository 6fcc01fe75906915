#!/usr/bin/env bash
# What is lost when xvsd starts, takes over, is killed, reloads, and when links go down, on the driver of a real card, in the
# mode of `auto` and in zero-copy mode: 200 connections by NAT, none of which may be lost, and a stream of 100 datagrams a
# second, whose losses and longest pause are printed.
#
# Hosts as in cards.bash; the VIP is 198.51.100.100.
#
# cards igb/virtio-net-pci igb/virtio-net-pci
# cards virtio-net-pci,iommu_platform=on,disable-legacy=on/virtio-net-pci virtio-net-pci,iommu_platform=on,disable-legacy=on/virtio-net-pci
# kernel newest
set -euo pipefail

test=events
vip=198.51.100.100
file=/tmp/xvs.toml

show_state() {
    cat /tmp/xvsd.log
    at dr xvs status
    at dr xvs counters
    at dr ip -s link
    cat /tmp/client
}
# shellcheck source=tests/vm/common.bash
source /vm-bin/common.bash
# shellcheck source=tests/vm/cards.bash
source /vm-bin/cards.bash

# Writes an xvs.toml with this mode, number of queues and ring.
configure() {
    cat >$file <<TOML
workers = 1
conn_table_size = 4096
hold = "1min"
receive_ring = $3
[interfaces.wan]
mode = "$1"
queues = $2
[interfaces.lan]
mode = "$1"
queues = $2
TOML
}

# The events. Each ends when xvsd forwards.
other_rings() {
    configure "$mode" 1 1024
    at dr xvs reload >/dev/null
}
# More than the card can have changes nothing.
other_queues() {
    configure "$mode" 2 1024
    if at dr ethtool -l wan | grep -q "^Combined:.*[2-9]"; then
        at dr xvs reload >/dev/null
    else
        at dr xvs reload >/tmp/refused 2>&1 && fail "more queues than the card can have are accepted"
        grep -q "can have at most 1 of the 2 receive queues" /tmp/refused || fail "the refusal does not say why"
        configure "$mode" 1 1024
    fi
}
link_down() {
    at dr ip link set wan down
    sleep 1
    at dr ip link set wan up
}
# The cable of the client's side, for a second.
cable_pulled() {
    monitor set_link nic0 off
    until_shown "wan: down" at dr xvs status
    sleep 1
    monitor set_link nic0 on
    until_shown "wan: up" at dr xvs status
}
# The card itself, as one that is pulled out and put in again. The VIP waits until xvsd has the card, because the
# director's kernel would answer its packets until then.
card_leaves() {
    local device
    device=$(readlink -f "$(at dr sh -c 'mount -t sysfs sys /mnt; readlink -f /mnt/class/net/wan/device' | sed 's,^/mnt,/sys,')")
    while [[ ! -e $device/remove ]]; do device=${device%/*}; done
    echo 1 >"$device/remove"
    until_shown "wan: gone" at dr xvs status
    echo 1 >/sys/bus/pci/rescan
    sleep 2
    give 0 dr wan
    at dr ip address add 198.51.100.1/24 dev wan
    until_shown "wan: up.*attached again" at dr xvs status
    at dr ip address add $vip/32 dev wan
}

# Runs an event while clients are served, and prints what was lost.
measure() {
    rm -f /tmp/end
    timeout 200 ip netns exec cl python3 /vm-bin/peer.py steady $vip 80 200 /tmp/end >/tmp/client 2>&1 &
    until_shown begun cat /tmp/client
    sleep 2
    "$1"
    sleep 5
    touch /tmp/end
    until_shown "connections lost" cat /tmp/client
    say "$mode: $1: $(sed -n 2p /tmp/client)"
    grep -q "^0 of 200 connections" /tmp/client || fail "$1 loses connections"
}

make_hosts
at dr ip address add $vip/32 dev wan
until_linked
at rs1 python3 /vm-bin/peer.py echo 80 &
for mode in auto zero-copy; do
    configure $mode 1 4096
    start
    for protocol in t u; do
        at dr xvsadm -A "-$protocol" $vip:80 -s rr
        at dr xvsadm -a "-$protocol" $vip:80 -r 192.0.2.11:80 -m
    done
    until_linked
    say "$(uname -r), $(driver): $(at dr xvs status | grep '^worker')"
    for event in take_over kill_and_start other_rings link_down cable_pulled other_queues card_leaves; do measure $event; done
    at dr xvs stop --release >/dev/null
    sleep 2
done
say "all"
