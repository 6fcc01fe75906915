# Parts of scripts/bench: what it costs to forward established connections, by the XDP program and without it.
#
# offload: as the part wire, but with 1,000 and with 100,000 flows, and also by an IPIP tunnel. Each flow has packets
# before, until the XDP program forwards all that it can; the last column is its share of the measured ones.
#
# million: as offload with 900,000 flows, all of which a table of eight million entries can offload. Without nftables: its
# connection tracking has room for 262,144 by default.
#
# families: as offload with 1,000 flows, from IPv4 by FULLNAT to a server of IPv4 and to one of IPv6.
#
# replies: NAT in both directions. The far end of `lan` sends each packet back by XDP, and the client drops it by XDP.
# The figure is for one packet of either direction.
#
# ports: as replies, with a client of 1,000 ports and with 1,000 clients of one port each, as those of DNS and SIP.
#
# requests: wrk fetches a small page from nginx, both on the other core, over 64 lasting connections, and with a
# connection for each request. The figure is the CPU time of the director's NAPI threads and of all threads of xvsd or
# HAProxy over the requests; beside it how often these threads gave up the core. Connections are offloaded from their SYN
# on, or when they are established.
#
# latency: a request at a time, 200 a second, which the far end sends back by XDP (benches/round_trip.rs). The figure is
# the round trip's time by the clock. The client has realtime priority, as NAPI threads and xvsd's worker have.

start_tun() {
    start_xvsd -i
}

start_offload_dr() {
    start_xvsd -g auto
}

start_offload_nat() {
    start_xvsd -m auto
}

start_offload_tun() {
    start_xvsd -i auto
}

# FULLNAT to real server $1 with local address $2; $3 is whether the XDP program forwards.
start_with_local() {
    local server=$1
    start_xvsd --fullnat "${@:3}"
    on dr "$bin/xvs" laddr add "$2" --ports 20000-29999 >/dev/null
}

start_fullnat() {
    start_with_local "$server" 192.0.2.1 "$@"
}

start_families() {
    start_with_local '[2001:db8:2::11]' 2001:db8:2::1 "$@"
}

start_offload_fullnat() {
    start_fullnat auto
}

start_offload_families() {
    start_families auto
}

start_offload_1() {
    start_xvsd -m auto 1
}

start_offload_4() {
    start_xvsd -m auto 4
}

# HAProxy in TCP mode, with more arguments, and with one thread on the director's core, which has no priority over NAPI.
start_haproxy() {
    dest=$vip
    cat >"$state/haproxy.cfg" <<CONF
global
    nbthread 1
    stats socket $state/haproxy.sock expose-fd listeners
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen page
    bind $vip:80
    server one $server:80
CONF
    # shellcheck disable=SC2016 # sh on the director expands it
    start haproxy haproxy taskset -c "$core" sh -c 'echo ready; exec haproxy -db -f "$@"' sh "$state/haproxy.cfg" "$@"
    "${as_root[@]}" chrt -o -p 0 "$thread"
    for _ in {1..100}; do
        if on dr ss -Htln "sport = :80" | grep -q .; then return; fi
        sleep 0.05
    done
    fail "haproxy does not listen"
}

offload() {
    local rounds=3 flow_counts='1000 100000' rates='360000 most'
    wire_up
    poll_by rs1 lan far_end
    poll_by cl wan sink
    echo "offload: 64-byte UDP, $rounds rounds of about a second each"
    compare routing dnat dr nat tun offload_dr offload_nat offload_tun
    echo
    cluster_down
}

million() {
    local rounds=1 flow_counts=900000:1000 rates='360000 most' table_size=8388608 client=198.51.104.1 base=routing
    wire_up
    on dr ip route add 198.51.104.0/21 via 198.51.100.10
    poll_by rs1 lan far_end
    poll_by cl wan sink
    echo "million: 64-byte UDP, flows:of each client, $rounds round of about a second"
    compare routing dr offload_dr offload_nat
    echo
    cluster_down
}

families() {
    local rounds=3 flow_counts=1000 rates='360000 most'
    wire_up
    on dr ip address add 2001:db8:2::1/64 dev lan nodad
    on dr ip neighbour replace 2001:db8:2::11 lladdr "$(mac_of rs1 lan)" nud permanent dev lan
    poll_by rs1 lan far_end
    poll_by cl wan sink
    echo "families: 64-byte UDP of IPv4, $rounds rounds of about a second each"
    compare dnat fullnat families offload_fullnat offload_families
    echo
    cluster_down
}

ports() {
    local rounds=3 flow_counts='1000:1000 1000:1' rates='360000' far_end=answer client=198.51.104.1
    wire_up
    on dr ip route add 198.51.104.0/21 via 198.51.100.10
    poll_by rs1 lan far_end
    poll_by cl wan sink
    echo "ports: 64-byte UDP in both directions, flows:of each client, $rounds rounds of about a second each"
    compare dnat nat offload_nat
    cluster_down
}

replies() {
    local rounds=3 flow_counts='1000 100000' rates='360000 most' far_end=answer
    wire_up
    poll_by rs1 lan far_end
    poll_by cl wan sink
    echo "replies: 64-byte UDP in both directions, $rounds rounds of about a second each"
    compare routing dnat nat offload_nat
    echo
    cluster_down
}

# Fetches the page for $1 seconds; further arguments are for wrk. Prints the number of requests.
fetch() {
    local seconds=$1
    shift
    on cl taskset -c "$far_core" wrk --threads 1 --connections 64 --duration "${seconds}s" "$@" "http://$dest/" |
        awk '$2 == "requests" && $3 == "in" { print $1 } /Socket errors|Non-2xx/ { exit 1 }'
}

# How often the director's NAPI threads and all threads of the process gave up the core.
switches() {
    local tasks=("${napi[@]/#//proc/}")
    if [[ $pid ]]; then tasks+=("/proc/$pid/task"/*); fi
    awk '/ctxt_switches/ { sum += $2 } END { print sum }' "${tasks[@]/%//status}"
}

# Measures requests to forwarder $1, $2 being `lasting` or `short`; adds to file $1-$2: nanoseconds per request,
# requests a second, switches per request, and of an `offload_*` the percentage of the XDP program.
measure_requests() {
    local cpu requests before switched seconds=2 short=() by_program
    if [[ $2 == short ]]; then short=(--header 'Connection: close'); fi
    before=$(counted) cpu=$(($(cpu_of "${napi[@]}") + $(cpu_of_all))) switched=$(switches)
    requests=$(fetch "$seconds" "${short[@]}") || fail "$1 answers not all requests"
    cpu=$(($(cpu_of "${napi[@]}") + $(cpu_of_all) - cpu)) switched=$(($(switches) - switched))
    switched=$(awk -v all="$switched" -v requests="$requests" 'BEGIN { printf "%.1f", all / requests }')
    # shellcheck disable=SC2086
    read -r _ by_program < <(sent_since "$1" $before)
    echo "$((cpu / requests)) $((requests / seconds)) $switched $by_program" >>"$results/$1-$2"
}

requests() {
    local round kind forwarder base median least most rate switched by_program rounds=3
    local all=(routing dnat haproxy nat offload_1 offload_4)
    local -A kinds=([lasting]='lasting connections' [short]='a connection for each request')
    local -A titles=([nat]='xvsd, NAT'
        [offload_1]='xvsd, NAT, offloaded from the SYN on'
        [offload_4]='xvsd, NAT, offloaded when established'
        [routing]='kernel, routing' [dnat]='kernel, nftables DNAT' [haproxy]='HAProxy, TCP mode')
    wire_up
    for ((round = 0; round < rounds; round++)); do
        for forwarder in "${all[@]}"; do
            "start_$forwarder"
            fetch 1 >/dev/null || fail "$forwarder answers not all requests"
            for kind in lasting short; do measure_requests "$forwarder" "$kind"; done
            stop_forwarder
        done
    done
    echo "requests: a page of four bytes from nginx by 64 connections, $rounds rounds of two seconds each"
    for kind in lasting short; do
        echo "  ${kinds[$kind]}"
        echo "                                        CPU µs/request   × DNAT   least to most   a second  switches"
        read -r base _ < <(summary "dnat-$kind" 1)
        for forwarder in "${all[@]}"; do
            datum "${kinds[$kind]}" "${titles[$forwarder]}" ns "$forwarder-$kind"
            read -r median least most < <(summary "$forwarder-$kind" 1)
            read -r rate _ < <(summary "$forwarder-$kind" 2)
            read -r switched _ < <(summary "$forwarder-$kind" 3)
            read -r by_program _ < <(summary "$forwarder-$kind" 4)
            awk -v name="${titles[$forwarder]}" -v median="$median" -v base="$base" -v least="$least" -v most="$most" \
                -v rate="$rate" -v switched="$switched" \
                -v by_program="${by_program:+  $by_program % by the XDP program}" 'BEGIN {
                    printf "  %-37s %9.2f  %7.2f   %6.2f to %6.2f  %8d  %7.1f%s\n", name,
                        median / 1e3, median / base, least / 1e3, most / 1e3, rate, switched, by_program }'
        done
    done
    echo
    cluster_down
}

latency() {
    local round forwarder before nanoseconds by_program base median least most rounds=5
    local all=(routing dnat nat offload_nat)
    wire_up
    take_by rs1 lan far_end
    for ((round = 0; round < rounds; round++)); do
        for forwarder in "${all[@]}"; do
            "start_$forwarder"
            before=$(counted)
            nanoseconds=$(on cl chrt -f 1 taskset -c "$far_core" "$bin/examples/round_trip" "$dest:$port" 1000 5)
            # shellcheck disable=SC2086
            read -r _ by_program < <(sent_since "$forwarder" $before)
            echo "$nanoseconds" >>"$results/$forwarder-percentiles"
            echo "$(cut -d , -f 50 <<<"$nanoseconds") $by_program" >>"$results/$forwarder"
            stop_forwarder
        done
    done
    echo "latency: one request and its answer at a time, 200 a second, $rounds rounds of five seconds each"
    echo "                             µs by the clock   more than routing   × routing   least to most"
    read -r base _ < <(summary routing 1)
    for forwarder in "${all[@]}"; do
        datum 'percentiles' "${titles[$forwarder]}" ns "$forwarder-percentiles"
        read -r median least most < <(summary "$forwarder" 1)
        read -r by_program _ < <(summary "$forwarder" 2)
        awk -v name="${titles[$forwarder]}" -v median="$median" -v base="$base" -v least="$least" -v most="$most" \
            -v by_program="${by_program:+  $by_program % by the XDP program}" 'BEGIN {
                printf "  %-26s %15.1f  %18.1f  %10.2f   %5.1f to %5.1f%s\n", name, median / 1e3,
                    (median - base) / 1e3, median / base, least / 1e3, most / 1e3, by_program }'
    done
    echo
    cluster_down
}
