#!/usr/bin/env bash
# Links and transports that a kernel may lack: VLANs, loss and reordering by netem, SCTP by sockets; and the BPF
# programs of director and real servers, in native and generic mode, also for a server and a client on the director.
#
# A switch with VLANs: cl 198.51.100.10 on VLAN 10; rs1 192.0.2.11 and rs2 .12 on VLAN 20; dr 198.51.100.1, with the VIP
# 198.51.100.100, and 192.0.2.1, on an untagged port in each VLAN, or with both as tags of one port. cl is also on VLAN
# 20, 192.0.2.254, for replies from the VIP that do not pass the director. Each part makes all of that anew.
set -euo pipefail

test=links
# shellcheck source=tests/vm/cluster.bash
source /vm-bin/cluster.bash

modprobe -a 8021q sctp sch_netem tun

# The cluster; the director's links are `apart` or a `trunk`.
make_cluster() {
    make_hosts
    if [[ $1 == trunk ]]; then
        plug dr trunk 10 20
        # Otherwise veth carries the tags beside the frames, where XDP does not see them.
        at sw ethtool -K dr-trunk txvlan off >/dev/null
        at dr ip link add wan link trunk type vlan id 10
        at dr ip link add lan link trunk type vlan id 20
    else
        plug dr wan "10 pvid untagged"
        plug dr lan "20 pvid untagged"
    fi
    make_servers wan lan
}

# The client's interface for replies that do not pass the director.
plug_back() {
    plug cl back "20 pvid untagged"
    at cl ip address add 192.0.2.254/24 dev back
}

# Makes the kernel refuse native XDP on an interface, by more queues at the switch, and prepares generic mode.
only_generic() {
    at sw ethtool -L "$1-$2" tx 2
    at "$1" ethtool -K "$2" gro off rxvlan off >/dev/null
}

vlans() {
    say "VLANs of one interface in $1 mode"
    make_cluster trunk
    plug_back
    if [[ $1 == generic ]]; then only_generic dr trunk; fi
    start_director trunk
    until_shown "interface  trunk: up, $1 XDP" at dr xvs status
    for server in rs1 rs2; do at "$server" xvs realserver up --vip $vip --dev lan >/dev/null; done
    add_service -t 80 -m
    add_service -t 81 -g
    take_turns 80
    take_turns 81
    for server in rs1 rs2; do at "$server" xvs realserver down --vip $vip >/dev/null; done
    # Fragments to the virtual address pass the worker, which gives them back by their VLAN.
    at cl ping -q -c 3 -s 3000 $vip >/dev/null || fail "the director's kernel does not answer large pings on VLAN 10"
    until_shown "passed to the kernel [1-9]" status_line
    end_cluster
}

lossy() {
    say "NAT and PROXY with loss and reordering"
    make_cluster apart
    start_director wan lan
    # The rules apply to packets, not to what the sender's kernel merges.
    at cl ethtool -K wan tx off gso off >/dev/null
    local place=(limit 10000 delay 5ms reorder 25% 50% loss 1%)
    at cl tc qdisc add dev wan root netem "${place[@]}"
    at sw tc qdisc add dev cl-wan root netem "${place[@]}"
    at dr xvs laddr add 192.0.2.1 >/dev/null
    at rs1 python3 /vm-bin/peer.py mirror 90 &
    at rs1 python3 /vm-bin/peer.py mirror 91 proxy &
    at dr xvsadm -A -t $vip:90 -s rr
    at dr xvsadm -a -t $vip:90 -r 192.0.2.11:90 -m
    at dr xvsadm -A -t $vip:91 -s rr --client-address proxy
    at dr xvsadm -a -t $vip:91 -r 192.0.2.11:91 --fullnat
    until_shown "LISTEN .*:90" at rs1 ss -ltn
    until_shown "LISTEN .*:91" at rs1 ss -ltn
    head -c 3000000 /dev/urandom >/tmp/file
    for port in 90 91; do
        at cl python3 /vm-bin/peer.py send /tmp/file $vip $port >/tmp/client 2>&1 || true
        [[ $(cat /tmp/client) == "198.51.100.10 whole" ]] || fail "the file did not come back whole from port $port"
    done
    local link
    for link in "cl wan" "sw cl-wan"; do
        # shellcheck disable=SC2086
        set -- $link
        at "$1" tc -s qdisc show dev "$2" | grep -q "dropped [1-9]" || fail "netem has dropped nothing on $2"
    done
    end_cluster
}

sctp() {
    say "SCTP"
    make_cluster apart
    start_director wan lan
    add_service --sctp-service 3868 -m
    rm -f /tmp/lines
    mkfifo /tmp/lines
    at cl python3 /vm-bin/peer.py client /tmp/lines $vip 3868/sctp 3868/sctp >/tmp/client 2>&1 &
    local client=$! server
    exec 3>/tmp/lines
    echo one >&3
    for server in 1 2; do
        until_shown "^3868/sctp rs$server one" cat /tmp/client
        until_shown "SCTP .* ESTABLISHED 198.51.100.10:[0-9]* *$vip:3868 *192.0.2.1$server:3868" at dr xvsadm -Lnc
    done
    echo two >&3
    for server in 1 2; do until_shown "^3868/sctp rs$server two" cat /tmp/client; done
    exec 3>&-
    wait "$client"
    for server in 1 2; do
        until_shown "SCTP .* CLOSED .* 192.0.2.1$server:3868" at dr xvsadm -Lnc
    done
    end_cluster
}

programs() {
    say "BPF programs in $1 mode"
    make_cluster apart
    plug_back
    if [[ $1 == generic ]]; then
        only_generic dr wan
        only_generic dr lan
        only_generic rs1 lan
        only_generic rs2 lan
    fi
    start_director wan lan
    for server in rs1 rs2; do at "$server" xvs realserver up --vip $vip --dev lan --method tunnel >/dev/null; done
    add_service -t 80 -i
    add_service -t 81 -i --tun-type gre --tun-csum
    take_turns 80
    take_turns 81
    local server
    for server in rs1 rs2; do
        at "$server" xvs realserver status >/tmp/client || fail "something is wrong with $server"
        grep -q "an XDP program on lan ($1)" /tmp/client || fail "the program of $server is not in $1 mode"
        grep -q "taken: [1-9][0-9]* IP in IP, [1-9]" /tmp/client || fail "the program of $server has removed no headers"
        at "$server" xvs realserver down --vip $vip >/dev/null
    done
    # A real server and a client on the director itself.
    at dr unshare --uts sh -c "hostname dr; exec python3 /vm-bin/peer.py serve 8080" &
    at dr xvsadm -A -t $vip:82 -s rr
    at dr xvsadm -a -t $vip:82 -r $vip:8080 -m
    until_shown " dr word" ask cl $vip 82
    at dr xvsadm -A -t $vip:83 -s rr
    at dr xvsadm -a -t $vip:83 -r 192.0.2.11:80 -m
    until_shown " rs1 word" ask dr $vip 83
    for name in wan lan; do until_shown "interface  $name: up, $1 XDP" at dr xvs status; done
    # In generic mode the veth's reason is the only warning.
    if [[ $1 == native ]]; then
        until_shown "^ok " at dr xvs status
    else
        until_shown " 2 warnings:" at dr xvs status
        for name in wan lan; do until_shown "$name works in generic XDP" at dr xvs status; done
    fi
    end_cluster
}

vlans native
vlans generic
lossy
sctp
programs native
programs generic
say "all"
