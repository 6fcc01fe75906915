# The cluster of tests of links and bonds: namespaces sw, a switch with VLANs; cl; dr, the director; rs1 and rs2.

# shellcheck source=tests/vm/common.bash
source /vm-bin/common.bash

vip=198.51.100.100
hosts=(sw cl dr rs1 rs2)

show_state() {
    cat /tmp/xvsd.log
    at dr xvs status
    at dr xvs counters
    at dr xvsadm -Ln --stats
    at dr xvsadm -Lnc
    cat /tmp/client
}

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

# The namespaces, the switch and the client.
make_hosts() {
    local host
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
}

# The addresses of the director, on its interfaces towards the client and the real servers; and these, until they answer.
make_servers() {
    local wan=$1 lan=$2 number server
    at dr ip link set "$wan" up
    at dr ip link set "$lan" up
    at dr ip address add 198.51.100.1/24 dev "$wan"
    at dr ip address add $vip/32 dev "$wan"
    at dr ip address add 192.0.2.1/24 dev "$lan"
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
