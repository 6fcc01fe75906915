#!/usr/bin/env bash
# Bonds of the director: active-backup, LACP and other modes, a VLAN over them, members that fail, leave, join and come
# back.
#
# A switch with VLANs: cl 198.51.100.10 on VLAN 10; rs1 192.0.2.11 and rs2 .12 on VLAN 20; dr with two ports, eth0 and
# eth1, which are bond0: 198.51.100.1 and the VIP 198.51.100.100 on it, untagged, and 192.0.2.1 on bond0.20. In modes
# that send by several members the switch's two ports are a bond, too. Each part makes all of that anew.
set -euo pipefail

test=bonds
# shellcheck source=tests/vm/cluster.bash
source /vm-bin/cluster.bash

modprobe -a 8021q bonding sch_tbf tun

# The cluster; the mode of the bonds is that of the first argument, of which the others are options.
make_cluster() {
    local number
    make_hosts
    for number in 0 1; do
        ip link add "eth$number" netns dr type veth peer name "dr-eth$number" netns sw
        at sw ethtool -K "dr-eth$number" txvlan off >/dev/null
    done
    at dr ip link add bond0 type bond mode "$@" miimon 50
    if [[ $1 != active-backup && $1 != balance-tlb ]]; then
        at sw ip link add trunk type bond mode "$@" miimon 50
        for number in 0 1; do at sw ip link set "dr-eth$number" master trunk; done
        add_port trunk
    else
        for number in 0 1; do add_port "dr-eth$number"; done
    fi
    for number in 0 1; do at dr ip link set "eth$number" master bond0; done
    at dr ip link set bond0 up
    at dr ip link add bond0.20 link bond0 type vlan id 20
    make_servers bond0 bond0.20
}

# Adds a port of the switch towards the director.
add_port() {
    at sw ip link set "$1" master bridge up
    at sw bridge vlan add dev "$1" vid 10 pvid untagged
    at sw bridge vlan add dev "$1" vid 20
}

# Waits until the status says that a member is active in the bond, or not.
until_active() { until_shown "interface  $1: up, native XDP, 1 queue, active in bond0" at dr xvs status; }
until_inactive() { until_shown "interface  $1: .* not active in bond0" at dr xvs status; }

# The frames that have arrived at a port of the switch.
arrived() { at sw cat "/sys/class/net/$1/statistics/rx_packets"; }

failover() {
    say "active-backup: the active member fails twice during a transfer"
    make_cluster active-backup
    start_director bond0
    until_active eth0
    until_inactive eth1
    add_service -t 80 -m
    take_turns 80
    at cl ping -q -c 3 -s 3000 $vip >/dev/null || fail "the director's kernel does not answer large pings on bond0"
    at rs1 ping -q -c 3 -s 3000 192.0.2.1 >/dev/null || fail "the director's kernel does not answer on bond0.20"
    at dr xvs explain --proto tcp --from 198.51.100.10:5 --to $vip:80 >/tmp/client
    grep -q "bond0\.20" /tmp/client || fail "explain does not name bond0.20"
    # The transfer takes some seconds in each direction.
    at cl tc qdisc add dev wan root tbf rate 8mbit burst 32k latency 100ms
    at sw tc qdisc add dev cl-wan root tbf rate 8mbit burst 32k latency 100ms
    at rs1 python3 /vm-bin/peer.py mirror 90 &
    at dr xvsadm -A -t $vip:90 -s rr
    at dr xvsadm -a -t $vip:90 -r 192.0.2.11:90 -m
    until_shown "LISTEN .*:90" at rs1 ss -ltn
    head -c 12000000 /dev/urandom >/tmp/file
    at cl python3 /vm-bin/peer.py send /tmp/file $vip 90 >/tmp/client 2>&1 &
    local transfer=$!
    until_shown "ESTABLISHED 198.51.100.10:[0-9]* *$vip:90" at dr xvsadm -Lnc
    at sw ip link set dr-eth0 down
    until_active eth1
    until_shown "eth0 is down" at dr xvs status
    sleep 5
    at sw ip link set dr-eth0 up
    until_shown "interface  eth0: up, " at dr xvs status
    at sw ip link set dr-eth1 down
    until_active eth0
    [[ -d /proc/$transfer ]] || fail "the transfer ended before the failures"
    wait "$transfer" || true
    [[ $(cat /tmp/client) == "198.51.100.10 whole" ]] || fail "the file did not come back whole"
    at dr xvs events --last 1024 --no-follow >/tmp/client
    for event in "eth1 is active in bond0" "eth0 is not active any more in bond0" "eth0 is active in bond0"; do
        grep -q "$event" /tmp/client || fail "no event: $event"
    done
    end_cluster
}

lacp() {
    say "LACP: flows use both members, and one that is left"
    make_cluster 802.3ad lacp_rate fast xmit_hash_policy layer3+4
    start_director bond0
    until_active eth0
    until_active eth1
    add_service -t 80 -m
    local before0 before1 round
    before0=$(arrived dr-eth0)
    before1=$(arrived dr-eth1)
    for round in 1 2 3 4 5 6 7 8; do take_turns 80; done
    # LACPDUs come once a second.
    (($(arrived dr-eth0) - before0 > 100)) || fail "eth0 has sent nothing"
    (($(arrived dr-eth1) - before1 > 100)) || fail "eth1 has sent nothing"
    at sw ip link set dr-eth1 down
    until_inactive eth1
    take_turns 80
    at sw ip link set dr-eth1 up
    until_active eth1
    take_turns 80
    # Without LACPDUs from the other end a member is up and not active.
    at sw ip link set dr-eth1 nomaster
    at sw ip link set dr-eth1 up
    until_inactive eth1
    until_shown "interface  eth1: up, " at dr xvs status
    take_turns 80
    end_cluster
}

modes() {
    local mode
    for mode in balance-rr balance-xor balance-tlb; do
        say "$mode: a member fails"
        make_cluster "$mode"
        start_director bond0
        until_active eth0
        add_service -t 80 -m
        take_turns 80
        at sw ip link set dr-eth0 down
        until_active eth1
        until_inactive eth0
        take_turns 80
        end_cluster
    done
}

# Asserts that xvsd refuses an interface for this reason.
refused() {
    if at dr xvsd --interface "$1" --socket /tmp/other.sock >/tmp/client 2>&1; then fail "$1 was attached"; fi
    grep -q "$2" /tmp/client || fail "the refusal of $1 has another reason"
}

members() {
    say "a bond that loses all members, and has them back; one that leaves, and one that joins"
    make_cluster active-backup
    at dr ip link add empty0 type bond
    at dr ip link add broadcast0 type bond mode broadcast
    at dr ip link add alb0 type bond mode balance-alb
    refused empty0 "empty0 is a bond without members"
    refused broadcast0 "broadcast0 is a bond in the mode broadcast"
    refused alb0 "alb0 is a bond in the mode balance-alb"
    refused eth0 "eth0 is a member of the bond bond0.*--interface bond0"
    at dr xvs doctor --interface bond0 >/tmp/client || true
    for member in eth0 eth1; do
        grep -q "$member.*it is up" /tmp/client || fail "the doctor has not examined $member"
    done
    start_director bond0
    add_service -t 80 -m
    take_turns 80
    until_shown "^ok " at dr xvs status
    for member in eth0 eth1; do at sw ip link set "dr-$member" down; done
    until_shown "bond0 has no active member" at dr xvs status
    ask cl $vip 80 >/tmp/client &
    local client=$!
    sleep 3
    at sw ip link set dr-eth1 up
    until_active eth1
    wait "$client" || true
    grep -q "^80 rs. word$" /tmp/client || fail "the client that waited was not answered"
    take_turns 80
    at sw ip link set dr-eth0 up
    until_shown "^ok " at dr xvs status

    at dr ip link set eth1 nomaster
    until_shown "eth1 was attached as a member of bond0 and is none any more" at dr xvs status
    until_active eth0
    take_turns 80
    at dr ip link set eth1 down
    at dr ip link set eth1 master bond0
    until_shown "^ok " at dr xvs status
    # One that is removed and made again is attached again.
    at dr ip link del eth0
    until_active eth1
    take_turns 80
    ip link add eth0 netns dr type veth peer name dr-eth0 netns sw
    at sw ethtool -K dr-eth0 txvlan off >/dev/null
    add_port dr-eth0
    at dr ip link set eth0 master bond0
    until_shown "eth0: [^:]* attached again once" status_line
    at sw ip link set dr-eth1 down
    until_active eth0
    take_turns 80
    at sw ip link set dr-eth1 up
    until_shown "^ok " at dr xvs status
    for member in eth0 eth1; do at dr ip link set $member nomaster; done
    until_shown "bond0 has no active member" at dr xvs status
    for member in eth0 eth1; do
        at dr ip link set $member down
        at dr ip link set $member master bond0
    done
    until_shown "^ok " at dr xvs status
    take_turns 80
    # A third one joins, and is the only one that is left.
    ip link add eth2 netns dr type veth peer name dr-eth2 netns sw
    at sw ethtool -K dr-eth2 txvlan off >/dev/null
    add_port dr-eth2
    at dr ip link set eth2 master bond0
    until_inactive eth2
    until_shown "worker 0 .* eth2 queue 0" status_line
    take_turns 80
    for member in eth0 eth1; do at dr ip link del $member; done
    until_active eth2
    take_turns 80
    end_cluster
}

failover
lacp
modes
members
say "all"
