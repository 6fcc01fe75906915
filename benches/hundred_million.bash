# Part of scripts/bench: a hundred million connections in one table, on a machine with 24 GiB. Only by its name.
#
# hundred_million: rows of benches/pipeline.rs with as many connections, each in a process of its own. Then xvsd forwards
# UDP by NAT, without the XDP program, and each of as many clients sends a packet. Its table is listed while a request at
# a time passes; xvsd is killed, started, and taken over. Times are by the clock.

# Runs a command, and sets `milliseconds` to the time that it took.
timed() {
    local before=${EPOCHREALTIME/[.,]/}
    "$@"
    milliseconds=$(((${EPOCHREALTIME/[.,]/} - before) / 1000))
}

# Starts xvsd with the lines of configuration of `large_keys` and further arguments, and waits until no other runs.
start_large() {
    local former=${pid:-}
    printf 'offload = "off"\nhold = "10s"\n%s\n' "$large_keys" >"$state/xvs.toml"
    start xvsd xvs-worker-0 "$bin/xvsd" --config "$state/xvs.toml" --interface wan --interface lan "$@"
    while [[ $former && -e /proc/$former ]]; do sleep 0.01; done
    find_forwarder xvsd xvs-worker-0
    "${as_root[@]}" chrt -r -p 2 "$thread"
}

# Prints the time of a request and its answer in nanoseconds, the median of $1.
round_trip() {
    on cl chrt -f 1 taskset -c "$far_core" "$bin/examples/round_trip" "$vip:$port" "$1" 5 | cut -d , -f 50
}

in_table() {
    on dr "$bin/xvs" status | awk '$1 == "table" { print $2 }'
}

list_ten() {
    on dr sh -c '"$0" -Lnc | head -n 12' "$bin/xvsadm" >/dev/null
}

list_all() {
    lines=$(on dr taskset -c "$far_core" "$bin/xvsadm" -Lnc | wc -l)
}

hundred_million() {
    local row milliseconds lines before quiet during listing
    local -r count=$connections
    for row in 'base and a lean table' 'DR' 'DR, small pages' 'NAT' 'DR, first packet' 'DR, expiry' \
        'DR, expiry, longest pause'; do
        cargo bench --quiet --bench pipeline -- "$row" "$count"
    done

    local table_size=$((count + count / 10)) dest=$vip client=198.51.104.1 start_patience=120
    local large_keys="conn_table_size = $table_size"
    wire_up
    on dr ip route add 198.51.104.0/21 via 198.51.100.10
    take_by rs1 lan far_end
    on dr mount -o remount,size=95% /dev/shm/xvs
    echo
    echo "xvsd, NAT, conn_table_size = $table_size"
    timed start_large --workers 1
    echo "  start with an empty table: $milliseconds ms"
    on dr "$bin/xvsadm" --set 0 0 86400
    on dr "$bin/xvsadm" -A -u "$vip:$port" -s rr
    on dr "$bin/xvsadm" -a -u "$vip:$port" -r "$server:$port" -m
    timed send "$count" "$count" "$fill_rate" >/dev/null
    before=$(in_table)
    echo "  a packet from each of $count clients, $fill_rate a second: $before connections after $milliseconds ms"
    echo "  memory: $(on dr du -sm /dev/shm/xvs | cut -f1) MiB of files, $(awk '$1 == "RssAnon:" { print int($2 / 1024) }' \
        "/proc/$pid/status") MiB besides"
    timed list_ten
    echo "  xvsadm -Lnc, the first ten: $milliseconds ms"
    quiet=$(round_trip 1000)
    while [[ ! -e $state/measured ]]; do list_all; done &
    listing=$!
    sleep 1
    during=$(round_trip 1000)
    touch "$state/measured"
    wait "$listing"
    timed list_all
    echo "  xvsadm -Lnc of all: $milliseconds ms, $lines lines"
    awk -v quiet="$quiet" -v during="$during" 'BEGIN {
        printf "  a request and its answer: %.1f µs, during listings %.1f µs, %.2f ×\n",
            quiet / 1e3, during / 1e3, during / quiet }'
    "${as_root[@]}" kill -KILL "$pid"
    while [[ -e /proc/$pid ]]; do sleep 0.01; done
    timed start_large --workers 1
    echo "  kill -9, start: ready after $milliseconds ms; $(in_table) connections"
    timed round_trip 1 >/dev/null
    echo "  the first new connection after that: $milliseconds ms"
    timed start_large --workers 1 --take-over
    echo "  take-over: $milliseconds ms; $(in_table) connections;$(grep -o 'nobody forwarded.*' "$state/forwarder.log")"
    stop_forwarder
    cluster_down
}
