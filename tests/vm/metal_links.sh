#!/usr/bin/env bash
# VLANs, two workers, large packets and a bond on the driver of a real card: files come back whole, or the start is refused
# with the command that helps.
#
# Hosts as in cards.bash; a third cable joins dr's wan2 and cl's wan2. The VIP is 198.51.100.100.
#
# cards igb/virtio-net-pci igb/virtio-net-pci igb/virtio-net-pci
# kernel newest
set -euo pipefail

test=metal_links
vip=198.51.100.100
file=/tmp/xvs.toml

show_state() {
    cat /tmp/xvsd.log
    at dr xvs status
    at dr xvs counters
    at dr ip -s -d link
    cat /tmp/client
}
# shellcheck source=tests/vm/common.bash
source /vm-bin/common.bash
# shellcheck source=tests/vm/cards.bash
source /vm-bin/cards.bash

# Starts xvsd with these lines of xvs.toml, and a service by NAT.
start() {
    printf 'conn_table_size = 4096\nstate_directory = ""\n%s\n' "$1" >$file
    at dr xvsd --config $file >/tmp/xvsd.log 2>&1 &
    until_shown "up .* configuration" at dr xvs status
    at dr xvsadm -A -t $vip:80 -s rr
    at dr xvsadm -a -t $vip:80 -r 192.0.2.11:80 -m
}

# A start with these lines is refused with this text.
refused() {
    printf 'conn_table_size = 4096\nstate_directory = ""\n%s\n' "$1" >$file
    at dr timeout 20 xvsd --config $file >/tmp/xvsd.log 2>&1 && fail "it starts"
    grep -q -- "$2" /tmp/xvsd.log || fail "the refusal does not say: $2"
}

stop() {
    at dr xvs stop --release >/dev/null
    sleep 2
}

comes_back() {
    head -c 3000000 /dev/urandom >/tmp/file
    timeout 100 ip netns exec cl python3 /vm-bin/peer.py send /tmp/file $vip 80 >/tmp/client 2>&1 || true
    [[ $(cat /tmp/client) == "$1 whole" ]] || fail "a file did not come back whole"
    say "$2: a file comes back whole"
}

make_hosts
give 4 dr wan2
give 5 cl wan2
modprobe -a 8021q bonding bridge
at dr ip address add $vip/32 dev wan
until_linked
at rs1 python3 /vm-bin/peer.py mirror 80 &

# Two workers, one for each queue.
start 'workers = 2
[interfaces.wan]
mode = "zero-copy"
queues = 2
[interfaces.lan]
mode = "zero-copy"
queues = 2'
until_linked
at dr xvs status | grep -q "^worker 1 .*zero-copy" || fail "there are no two workers in zero-copy mode"
comes_back 198.51.100.10 "two workers, zero-copy"
stop

# Fewer frames than the card's ring has descriptors: copies, and a warning that says why.
start 'receive_ring = 64
transmit_ring = 64
[interfaces.wan]
mode = "zero-copy"
queues = 1
[interfaces.lan]
mode = "zero-copy"
queues = 1'
until_linked
at dr xvs status | tr -s ' \n' ' ' | grep -q "copied because receive_ring is 64" || fail "no warning about the ring"
comes_back 198.51.100.10 "rings of 64"
stop

# A client on a VLAN.
for host in cl dr; do
    at $host ip link add wan.5 link wan type vlan id 5
    at $host ip link set wan.5 up
done
at cl ip address add 203.0.113.10/24 dev wan.5
at dr ip address add 203.0.113.1/24 dev wan.5
at cl ip route add $vip via 203.0.113.1
at dr ethtool -K wan rxvlan on
refused 'interfaces = ["wan", "lan"]' "wan: its card would hide the tags .*\`ethtool -K wan rxvlan off\`"
at dr ethtool -K wan rxvlan off
for mode in auto zero-copy; do
    until_linked
    start "[interfaces.wan]
mode = \"$mode\"
[interfaces.lan]
mode = \"$mode\""
    until_shown " 0% packet loss" at cl ping -q -c 1 -W 1 203.0.113.1
    comes_back 203.0.113.10 "VLAN, $mode"
    stop
done
for host in cl dr; do at $host ip link delete wan.5; done

# igb has native XDP up to an MTU of 3,046 (igb_xdp_setup), and several buffers of a packet only in generic mode.
for name in wan lan; do
    at dr ip link set $name mtu 9000
    if [[ $name == wan ]]; then at cl ip link set $name mtu 9000; else at rs1 ip link set $name mtu 9000; fi
done
until_linked
refused 'interfaces = ["wan", "lan"]' "ethtool -K wan gro off"
for name in wan lan; do at dr ethtool -K $name gro off rxvlan off; done
start 'interfaces = ["wan", "lan"]'
until_linked
at cl ping -q -c 1 -W 2 -M do -s 8900 198.51.100.1 >/tmp/client || fail "a ping of 8,900 bytes is lost"
comes_back 198.51.100.10 "MTU 9,000, $(at dr xvs status | sed -n 's/^interface  wan: up, //p')"
stop
for name in wan lan; do
    at dr ip link set $name mtu 1500
    if [[ $name == wan ]]; then at cl ip link set $name mtu 1500; else at rs1 ip link set $name mtu 1500; fi
    at dr ethtool -K $name gro on
done

# A bond of two cards; the client's bridge is the switch.
at cl ip address flush dev wan
at cl ip link add br0 type bridge
for name in wan wan2; do
    at cl ip link set $name master br0
    at dr ip link set $name down
done
at dr ip address flush dev wan
at cl ip link set br0 up
at cl ip address add 198.51.100.10/24 dev br0
at dr ip link add bond0 type bond mode active-backup miimon 100
for name in wan wan2; do at dr ip link set $name master bond0; done
at dr ip link set bond0 up
at dr ip address add 198.51.100.1/24 dev bond0
at dr ip address add $vip/32 dev bond0
until_linked
start 'interfaces = ["bond0", "lan"]'
until_linked
at dr xvs status | grep "^worker"
comes_back 198.51.100.10 "a bond"
active=$(at dr cat /sys/class/net/bond0/bonding/active_slave 2>/dev/null || at dr ip -d link show bond0 |
    sed -n 's/.*active_slave \([^ ]*\).*/\1/p')
at dr ip link set "$active" down
until_shown "not active in bond0" at dr xvs status
until_linked
comes_back 198.51.100.10 "the bond without $active"
stop
say "all"
