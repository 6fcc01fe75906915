# Part of scripts/bench: what clients notice while a director is killed, replaced, reconfigured or flooded.
#
# disturbances: requests to one nginx over 100 lasting connections, each twenty times a second, and over 100 new
# connections a second, for eight seconds (benches/answers.rs). After two seconds something happens to the director: xvsd,
# by NAT with its default offload, is killed and started after a second, as systemd does; a successor takes over; a
# reload needs a successor; the cable of the first of two directors with keepalived and synchronization is pulled.
# HAProxy is ended and started, or reloaded with its listening sockets passed on; nftables' rules are flushed and loaded,
# as its service does at a restart, or replaced at once. Then 150,000 forged SYNs a second come for four seconds; the real
# server drops those that reach it. xvsd has a table of 262,144 connections, as conntrack has by default.

flood_rate=150000
flood_seconds=4

# What is disturbed, by what, and the title.
events=(
    'offload_nat|kill_and_start|xvs: kill -9, start after a second'
    'offload_nat|take_over|xvs: take-over'
    'offload_nat|reload|xvs: reload with a successor'
    'haproxy|restart_haproxy|HAProxy: restart'
    'haproxy|reload_haproxy|HAProxy: reload'
    'dnat|restart_dnat|nftables DNAT: restart'
    'dnat|reload_dnat|nftables DNAT: reload'
    'offload_nat|flood|xvs, NAT: flood'
    'proxied|flood|xvs, NAT, SYN proxy: flood'
    'dnat|flood|nftables DNAT: flood'
    'haproxy|flood|HAProxy: flood'
    # The last one, because it needs a cluster of its own.
    'pair|pull_cable|xvs: failover by keepalived'
)
# The lines that benches/answers.rs prints, and their units.
lines_of_answers=('lasting connections' 'new connections' gap 'longest wait' lost failed)
units_of_answers=('answers in a tenth of a second' 'answers in a tenth of a second' s s connections connections)

start_proxied() {
    start_offload_nat
    on dr "$bin/xvsadm" -E -t "$vip:80" -s rr --syn-proxy on
}

kill_and_start() {
    "${as_root[@]}" kill -KILL "$pid"
    sleep 1
    run_xvsd
}

take_over() {
    local former=$pid
    run_xvsd --take-over
}

reload() {
    local former=$pid
    echo 'receive_ring = 2048' >>"$state/xvs.toml"
    on dr "$bin/xvs" reload >/dev/null
    find_forwarder xvsd xvs-worker-0
}

restart_haproxy() {
    "${as_root[@]}" kill -TERM "$pid"
    while [[ -e /proc/$pid ]]; do sleep 0.002; done
    start_haproxy
}

reload_haproxy() {
    local former=$pid
    start_haproxy -x "$state/haproxy.sock" -sf "$pid"
}

restart_dnat() {
    # shellcheck disable=SC2016 # sh on the director expands it
    on dr sh -c 'nft flush ruleset && nft -f "$0"' "$state/dnat.nft"
}

reload_dnat() {
    # shellcheck disable=SC2016 # sh on the director expands it
    on dr sh -c '{ echo flush ruleset; cat "$0"; } | nft -f -' "$state/dnat.nft"
}

flood() {
    local before arrived
    before=$(received)
    on cl taskset -c "$far_core" "$bin/examples/syn_source" "$state/forge.bpf.o" wan "$director_mac" 80 "$flood_rate" \
        "$flood_seconds" >/dev/null
    arrived=$(($(received) - before))
    ((arrived > flood_rate * flood_seconds * 9 / 10)) ||
        fail "of $((flood_rate * flood_seconds)) forged SYNs $arrived have arrived"
}

# Packets that the director has received from the client.
received() {
    on dr awk '$1 == "wan:" { print $3 }' /proc/net/dev
}

pull_cable() {
    on sw ip link set dr down
}

# Starts xvsd and keepalived on host $1 with priority $2.
start_of_pair() {
    printf 'interfaces = ["lan"]\nworkers = 1\n' >"$state/$1.toml"
    cat >"$state/$1.conf" <<CONF
vrrp_instance service {
    state BACKUP
    interface lan
    virtual_router_id 51
    priority $2
    advert_int 1
    virtual_ipaddress {
        $vip/32 dev lan
        192.0.2.60/32 dev lan
    }
}
CONF
    on "$1" taskset -c "$core" "$bin/xvsd" --config "$state/$1.toml" </dev/null >"$state/$1.log" 2>&1 &
    await "xvsd of $1 is healthy" on "$1" "$bin/xvs" healthy
    on "$1" "$bin/xvsadm" -A -t "$vip:80" -s rr
    on "$1" "$bin/xvsadm" -a -t "$vip:80" -r "$server:80" -m
    on "$1" "$bin/xvsadm" --start-daemon master --mcast-interface lan --syncid 7
    on "$1" "$bin/xvsadm" --start-daemon backup --mcast-interface lan --syncid 7
    on "$1" keepalived --vrrp --dont-fork --log-console --no-syslog --use-file "$state/$1.conf" \
        --pid "$state/$1.pid" --vrrp_pid "$state/$1.vrrp.pid" --bfd_pid "$state/$1.bfd.pid" \
        </dev/null >"$state/$1.keepalived.log" 2>&1 &
}

# A cluster of its own: two directors, to which the VIP and the real server's gateway belong in turn. The client is on
# their segment.
start_pair() {
    cluster_down
    trap clean_up EXIT
    netlab up --name "$name" --servers 1 --owner $$ >/dev/null
    netlab backup --name "$name"
    "${as_root[@]}" chmod 777 "$state"
    on dr ip address del "$vip/32" dev wan
    on cl ip route add "$vip/32" dev back src 192.0.2.254
    on rs1 ip route add 192.0.2.254/32 via 192.0.2.60 table 200
    on rs1 ip rule add from "$server" lookup 200
    start_of_pair dr 150
    start_of_pair dr2 100
    await 'the first director has the VIP' has_vip dr
    dest=$vip pid='' thread=''
}

has_vip() {
    on "$1" ip address show dev lan | grep -F "$vip/32"
}

# Waits until a command succeeds; $1 is what it waits for.
await() {
    local what=$1 end=$((SECONDS + 20))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || fail "waited 20 seconds in vain: $what"
        sleep 0.05
    done
}

# Runs the load, and function $2 two seconds after its begin. Appends line N of the load's output to file $1-N.
disturb() {
    local load line output
    rm -f "$state/answers"
    on cl taskset -c "$far_core" "$bin/examples/answers" "$dest:80" 8 </dev/null >"$state/answers" \
        2>"$state/answers.errors" &
    load=$!
    await "answers over all connections, $(cat "$state/answers.errors" 2>/dev/null)" grep -q begins "$state/answers"
    sleep 2
    "$2"
    wait "$load" || fail "answers: $(cat "$state/answers.errors")"
    mapfile -t output < <(tail -n +2 "$state/answers")
    for line in "${!lines_of_answers[@]}"; do echo "${output[line]}" >>"$kept/$1-$line"; done
}

disturbances() {
    local round index start event title line rounds=3 table_size=262144 kept=target/disturbances director_mac
    rm -rf "$kept"
    mkdir -p "$kept"
    for ((round = 0; round < rounds; round++)); do
        cluster_for_requests
        for index in "${!events[@]}"; do
            IFS='|' read -r start event title <<<"${events[index]}"
            "start_$start"
            disturb "$index" "$event"
            stop_forwarder
        done
        cluster_down
    done
    echo "disturbances: 100 lasting and 100 new connections a second to one nginx; seconds, and connections; $rounds rounds"
    echo '                                       longest gap   longest wait    lost  failed'
    results=$kept
    for index in "${!events[@]}"; do
        IFS='|' read -r start event title <<<"${events[index]}"
        for line in "${!lines_of_answers[@]}"; do
            datum "$title" "${lines_of_answers[line]}" "${units_of_answers[line]}" "$index-$line"
        done
        # shellcheck disable=SC2046 # four words
        printf '  %-36s %11s %14s %7s %7s\n' "$title" $(
            for line in 2 3 4 5; do summary "$index-$line" 1 | cut -d ' ' -f 1; done)
    done
    echo
}

# The cluster of the part requests, whose director has a route to forged sources, and whose real server drops them.
cluster_for_requests() {
    wire_up
    clang -O2 -g -Wall -Wextra -Werror -target bpf -mcpu=v3 "-I/usr/include/$(uname -m)-linux-gnu" \
        -c tests/soak/attack/forge.bpf.c -o "$state/forge.bpf.o"
    on dr ip route add 10.0.0.0/8 via 198.51.100.10
    on rs1 nft 'table ip forged { chain input { type filter hook prerouting priority raw; ip saddr 10.0.0.0/8 drop; }; }'
    director_mac=$(mac_of dr wan)
}
