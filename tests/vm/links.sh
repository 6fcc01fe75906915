#!/usr/bin/env bash
# Links and transports that a kernel may lack: VLANs, loss and reordering by netem, SCTP by sockets, a VRF; and the BPF
# programs of director and real servers, in native and generic mode.
#
# A switch with VLANs: cl 198.51.100.10 on VLAN 10; rs1 192.0.2.11 and rs2 .12 on VLAN 20; dr 198.51.100.1, with the VIP
# 198.51.100.100, and 192.0.2.1, on an untagged port in each VLAN, or with both as tags of one port. cl is also on VLAN
# 20, 192.0.2.254, for replies from the VIP that do not pass the director. Each part makes all of that anew.
set -euo pipefail

test=links
show_state() {
    cat /tmp/xvsd.log
    at dr xvs status
    at dr xvs counters
    at dr xvsadm -Ln --stats
    at dr xvsadm -Lnc
    cat /tmp/client
}
# shellcheck source=tests/vm/common.bash
source /vm-bin/common.bash

modprobe -a 8021q vrf sctp sch_netem tun
vip=198.51.100.100
hosts=(sw cl dr rs1 rs2)

# Connects an interface of a host to the switch: its port, and the port's VLANs, as `bridge vlan add` takes them.
plug() {
    local host=$1 interface=$2 vlan
    shift 2
    ip link add "$interface" netns "$host" type veth peer name "$host-$interface" netns sw
    at sw ip link set "$host-$interface" master bridge up
    for vlan in "$@"; do
        # shellcheck disable=SC2086
        at sw bridge vlan add dev "$host-$interface" vid $vlan
    done
    at "$host" ip link set "$interface" up
}

# The cluster; the director's links are `apart` or a `trunk`.
make_cluster() {
    local number server
    for host in "${hosts[@]}"; do
        ip netns add "$host"
        at "$host" sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
        at "$host" ip link set lo up
    done
    # The director's kernel refuses what comes by another link than its answer would take.
    at dr sysctl -qw net.ipv4.conf.all.rp_filter=1
    at sw ip link add bridge up type bridge vlan_filtering 1 vlan_default_pvid 0
    plug cl wan "10 pvid untagged"
    at cl ip address add 198.51.100.10/24 dev wan
    if [[ $1 == trunk ]]; then
        plug dr trunk 10 20
        # Otherwise veth carries the tags beside the frames, where XDP does not see them.
        at sw ethtool -K dr-trunk txvlan off >/dev/null
        at dr ip link add wan link trunk type vlan id 10
        at dr ip link add lan link trunk type vlan id 20
        at dr ip link set wan up
        at dr ip link set lan up
    else
        plug dr wan "10 pvid untagged"
        plug dr lan "20 pvid untagged"
    fi
    at dr ip address add 198.51.100.1/24 dev wan
    at dr ip address add $vip/32 dev wan
    at dr ip address add 192.0.2.1/24 dev lan
    for number in 1 2; do
        server=rs$number
        plug "$server" lan "20 pvid untagged"
        at "$server" ip address add "192.0.2.1$number/24" dev lan
        at "$server" ip route add default via 192.0.2.1
        at "$server" ip route add default via 192.0.2.254 table 100
        at "$server" ip rule add from $vip lookup 100
        at "$server" unshare --uts sh -c "hostname $server; exec python3 /vm-bin/peer.py serve 80 81 3868/sctp" &
    done
    for number in 1 2; do until_shown "80 rs$number word" ask dr "192.0.2.1$number" 80; done
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

# Starts xvsd with these interfaces.
start_director() {
    local names
    names=$(printf ', "%s"' "$@")
    cat >/tmp/xvs.toml <<TOML
interfaces = [${names#, }]
workers = 1
conn_table_size = 4096
state_directory = ""
TOML
    at dr xvsd --config /tmp/xvs.toml >/tmp/xvsd.log 2>&1 &
    until_shown "up .* configuration" at dr xvs status
}

# Ends xvsd, the servers and the cluster.
end_cluster() {
    at dr xvs stop >/dev/null
    {
        for host in "${hosts[@]}"; do
            # shellcheck disable=SC2046
            kill $(ip netns pids "$host") || true
            ip netns del "$host"
        done
        # The shell would name each server that has been killed.
        wait
    } 2>/dev/null
}

# A service with both real servers: the option of its protocol, its port, and the options of the real servers.
add_service() {
    local protocol=$1 port=$2
    shift 2
    at dr xvsadm -A "$protocol" $vip:"$port" -s rr
    at dr xvsadm -a "$protocol" $vip:"$port" -r 192.0.2.11:"$port" "$@"
    at dr xvsadm -a "$protocol" $vip:"$port" -r 192.0.2.12:"$port" "$@"
}

# Sends a word from a host over a connection to each of these ports, and shows the answers.
ask() {
    local from=$1
    shift
    echo word | at "$from" python3 /vm-bin/peer.py client /proc/self/fd/0 "$@" 2>&1
}

# Asserts that of four connections to a port each real server answers two.
take_turns() {
    ask cl $vip "$1" "$1" "$1" "$1" >/tmp/client || true
    local server
    for server in rs1 rs2; do
        [[ $(grep -c "^$1 $server word$" /tmp/client) == 2 ]] || fail "$server has not answered twice at port $1"
    done
}

# The status with each worker's numbers on one line.
status_line() { at dr xvs status | tr -s '\n ' ' '; }

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

virtual_routing() {
    say "a VRF on the clients' side"
    make_cluster apart
    start_director wan lan
    add_service -t 80 -m
    take_turns 80
    until_shown "^ok " at dr xvs status
    at dr sysctl -qw net.ipv4.tcp_l3mdev_accept=1
    at dr python3 /vm-bin/peer.py serve 22 &
    at dr ip link add customers up type vrf table 10
    at dr ip link set wan master customers
    until_shown "policy rule 1000 (l3mdev) is not followed" at dr xvs status
    ask cl $vip 80 >/tmp/client &
    local client=$!
    until_shown "dropped as no_route" at dr xvs status
    at cl ping -q -c 3 198.51.100.1 >/dev/null || fail "the director's kernel does not answer in the VRF"
    until_shown "22 vm word" ask cl 198.51.100.1 22
    at dr ip link set wan nomaster
    wait "$client" || true
    take_turns 80
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
virtual_routing
programs native
programs generic
say "all"
