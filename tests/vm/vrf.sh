#!/usr/bin/env bash
# VRFs: clients and real servers in one VRF, in two with leaked routes, and real servers in none; by NAT, direct routing
# and tunnels; packets for the director itself arrive in the VRF of their interface; a VRF is deleted.
#
# The hosts and addresses of links.sh. Each part makes all of them anew.
set -euo pipefail

test=vrf
# shellcheck source=tests/vm/cluster.bash
source /vm-bin/cluster.bash

modprobe -a vrf tun

# The cluster, with direct replies by the client's interface on the servers' VLAN.
make_cluster() {
    make_hosts
    plug dr wan "10 pvid untagged"
    plug dr lan "20 pvid untagged"
    make_servers wan lan
    plug cl back "20 pvid untagged"
    at cl ip address add 192.0.2.254/24 dev back
}

# Makes VRFs of the director: each with its table, and the interfaces in it.
make_vrf() {
    local name=$1 table=$2 interface
    shift 2
    at dr ip link add "$name" up type vrf table "$table"
    for interface in "$@"; do at dr ip link set "$interface" master "$name"; done
}

# A server of the director itself, at a port of this VRF alone.
serve_in() {
    at dr python3 -c '
import socket, sys
server = socket.create_server(("0.0.0.0", 22))
server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, sys.argv[1].encode())
while True:
    server.accept()[0].sendall(f"in {sys.argv[1]}\n".encode())' "$1" &
}

# Asserts that each port is served by both servers by its method.
by_each_method() {
    add_service -t 80 -m
    take_turns 80
    for server in rs1 rs2; do at "$server" xvs realserver up --vip $vip --dev lan >/dev/null; done
    add_service -t 81 -g
    take_turns 81
    for server in rs1 rs2; do
        at "$server" xvs realserver down --vip $vip >/dev/null
        at "$server" xvs realserver up --vip $vip --dev lan --method tunnel >/dev/null
    done
    at dr xvsadm -D -t $vip:81
    add_service -t 81 -i
    take_turns 81
    for server in rs1 rs2; do at "$server" xvs realserver down --vip $vip >/dev/null; done
}

one() {
    say "clients and real servers in one VRF"
    make_cluster
    start_director wan lan
    add_service -t 80 -m
    take_turns 80
    # While the director runs.
    make_vrf blue 10 wan lan
    until_shown "^ok " at dr xvs status
    at dr xvsadm -C
    by_each_method
    until_shown "^ok " at dr xvs status
    until_shown "1000: from all in the VRF of table 10 lookup 10" \
        at dr xvs explain --proto tcp --from 198.51.100.10:4000 --to $vip:80
    # Packets for the director itself: past the worker, and fragments, which pass it.
    serve_in blue
    until_shown "in blue" at cl python3 -c '
import socket
print(socket.create_connection(("198.51.100.1", 22)).recv(99))'
    at cl ping -q -c 3 $vip >/dev/null || fail "the director's kernel does not answer in the VRF"
    at cl ping -q -c 3 -s 3000 $vip >/dev/null || fail "the director's kernel does not answer large pings in the VRF"
    until_shown "passed to the kernel [1-9]" status_line
    # Health checks are connections without a VRF.
    at dr sysctl -qw net.ipv4.tcp_l3mdev_accept=1
    at dr ip route add 192.0.2.11 dev lan
    until_shown "80 rs1 word" ask dr 192.0.2.11 80
    end_cluster
}

two() {
    say "clients in one VRF, real servers in another"
    make_cluster
    make_vrf blue 10 wan
    make_vrf red 20 lan
    start_director wan lan
    add_service -t 80 -m
    until_shown "192.0.2.1[12] has no route in the VRF blue" at dr xvs status
    ask cl $vip 80 >/tmp/client &
    local client=$!
    until_shown "dropped as no_route" at dr xvs status
    # One route by the interface, and others by the VRF.
    at dr ip route add 192.0.2.11 dev lan vrf blue
    at dr ip route add 192.0.2.12 dev red vrf blue
    at dr ip route add 198.51.100.0/24 dev blue vrf red
    wait "$client" || true
    take_turns 80
    at dr xvsadm -C
    by_each_method
    # A VRF that is deleted takes its routes with it. Requests find those of the main table, replies none until there is
    # one.
    at dr ip link del red
    ask cl $vip 80 >/tmp/client &
    client=$!
    until_shown "dropped as no_route" at dr xvs status
    at dr ip route replace 198.51.100.0/24 dev wan
    wait "$client" || true
    take_turns 80
    end_cluster
}

none() {
    say "clients in a VRF, real servers in none"
    make_cluster
    start_director wan lan
    add_service -t 80 -m
    make_vrf blue 10 wan
    # Requests find the main table after that of the VRF; replies do not find the VRF's.
    at dr ip route add 198.51.100.0/24 dev wan
    take_turns 80
    at dr ip route add unreachable default metric 4278198272 vrf blue
    until_shown "no route in the VRF blue" at dr xvs status
    at dr ip route add 192.0.2.0/24 dev lan vrf blue
    until_shown "^ok " at dr xvs status
    take_turns 80
    at dr ip link set wan nomaster
    take_turns 80
    end_cluster
}

one
two
none
say "all"
