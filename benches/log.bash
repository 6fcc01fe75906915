# Part of scripts/bench: the log of connections at rising rates of new connections.
#
# log: direct routing with a new connection for each packet, whose begin and end are logged in a file and sent by IPFIX to
# nfcapd on the client, for some seconds. A connection ends two seconds after its packet. Each rate also without the
# log. The figure is the CPU time of all threads of xvsd and of the director's NAPI threads over the connections; beside
# it, what has been logged of two records for each connection that xvsd has begun: lines of the file, and records that
# nfdump reads. Packets that find no room on the way to xvsd begin none.

# Starts xvsd with these keys of its configuration, sends a new connection for each packet at rate $1, and waits until
# all have ended. Sets `begun` to their number, `each` to nanoseconds for each, and `lost` to the records that xvsd has
# lost.
measure_new() {
    local rate=$1 xvsd_keys=$2 count=$(($1 * log_seconds)) cpu left
    start_dr
    on dr "$bin/xvsadm" --set 0 0 2
    cpu=$(($(cpu_of_all) + $(cpu_of "${napi[@]}")))
    send "$count" "$count" "$rate" >/dev/null
    for _ in {1..60}; do
        left=$(on dr "$bin/xvs" status | awk '$1 == "table" { print $2 }')
        if ((left == 0)); then break; fi
        sleep 0.5
    done
    ((left == 0)) || fail "$left connections have not ended"
    cpu=$(($(cpu_of_all) + $(cpu_of "${napi[@]}") - cpu))
    begun=$(on dr "$bin/xvs" counters | awk '$1 == "connections" { print $2 }')
    each=$((cpu / begun))
    lost=$(on dr "$bin/xvs" status --json | awk -F '"lost_records": *' '{
        for (place = 2; place <= NF; place++) sum += $place } END { print sum + 0 }')
}

log() {
    local rate collector base begun each lost keys lines records
    local -r logs=$state/log flows=$state/flows
    local table_size=4194304
    wire_up
    take_by rs1 lan sink
    echo 'log: a new connection for each packet; direct routing; begin and end of each to a file and by IPFIX'
    echo '  connections/s   ns each, without   with a log     begun   of 2 records each: lines   at nfcapd   lost by xvsd'
    for rate in $log_rates; do
        measure_new "$rate" ''
        base=$each
        stop_forwarder
        "${as_root[@]}" mkdir -p "$logs" "$flows"
        on cl setsid nfcapd -w "$flows" -t 3600 -p 4739 -B 16000000 </dev/null >/dev/null 2>&1 &
        collector=$!
        sleep 1
        keys=$(printf '[connection_log]\nbegins = true\nfile = "%s/connections.json"\nfiles_kept = 99\n' "$logs"
            printf 'collector = "198.51.100.10:4739"\n')
        measure_new "$rate" "$keys"
        stop_forwarder
        "${as_root[@]}" kill -TERM "$(pgrep -f "^nfcapd -w $flows")"
        wait "$collector" || true
        lines=$(cat "$logs"/* | wc -l) records=$(nfdump -q -R "$flows" -o 'fmt:%sp' | wc -l)
        awk -v rate="$rate" -v base="$base" -v each="$each" -v begun="$begun" -v lines="$lines" -v records="$records" \
            -v lost="$lost" 'BEGIN {
                printf "  %13d   %16d   %10d   %7d   %20.3f %%   %6.3f %%   %12d\n",
                    rate, base, each, begun, 50 * lines / begun, 50 * records / begun, lost }'
        "${as_root[@]}" rm -rf "$logs" "$flows"
    done
    echo
    cluster_down
}
