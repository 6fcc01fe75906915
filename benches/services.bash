# Parts of scripts/bench: xvsd with many services.
#
# scrape: the cost of a packet for xvsd, as in the part wire, alternately without scrapes of its metrics and with one
# scrape after the other; and the duration of a scrape, without and with load.
# control: benches/control_source.rs adds services to an xvsd with two workers in a netlab cluster, and times each kind
# of command, listings and restores. With numbers of services xvsd is then killed, started, and taken over with all of
# them; times are by the clock.

# Enough `steered_endpoints` for the services and real servers.
endpoints() {
    local needed=$((${services:-10000} * (${servers:-5} + 2)))
    echo $((needed > 262144 ? needed : 262144))
}

# The measured service, and others, in all $1 of $2 real servers each.
many_services() {
    echo "-A -u $vip:$port -s rr"
    echo "-a -u $vip:$port -r $server:$port -g"
    awk -v services="$1" -v servers="$2" 'BEGIN {
        for (n = 1; n < services; n++) {
            service = sprintf("-t 198.51.%d.%d:%d", 101 + int(n / 250) % 100, 1 + n % 250, 80 + int(n / 25000))
            print "-A " service " -s rr"
            for (server = 0; server < servers; server++)
                print "-a " service " -r 192.0.2." 11 + server % 5 ":" 80 + int(server / 5) " -m"
        }
    }'
}

# Scrapes until file $1 is gone; prints seconds and bytes of each.
# shellcheck disable=SC2016 # sh on the director expands it
scrapes() {
    on dr sh -c 'while [ -e "$0" ]; do
        curl -s -o /dev/null -w "%{time_total} %{size_download}\n" "$1"
    done' "$1" "http://$metrics/metrics"
}

scrape() {
    local round base scraper count=${services:-10000} each=${servers:-5}
    wire_up
    poll_by rs1 lan far_end
    dest=$vip
    many_services "$count" "$each" >"$state/rules"
    printf 'offload = "off"\nsteered_endpoints = %s\n' "$(endpoints)" >"$state/xvs.toml"
    start_patience=300 start xvsd xvs-worker-0 "$bin/xvsd" --config "$state/xvs.toml" --interface wan --interface lan \
        --workers 1 --rules "$state/rules" --metrics "$metrics"
    establish silent "$flow_counts"
    for ((round = 0; round < rounds; round++)); do
        measure silent "$flow_counts" most
        touch "$state/scraping"
        scrapes "$state/scraping" >>"$results/beside" &
        scraper=$!
        measure scraped "$flow_counts" most
        rm "$state/scraping"
        wait "$scraper"
        on dr curl -s -o /dev/null -w '%{time_total} %{size_download}\n' "http://$metrics/metrics" >>"$results/alone"
    done
    stop
    read -r base _ < <(summary "silent-$flow_counts-most" 1)
    echo "scrape: $count services of $each real servers; DR, 64-byte UDP, $rounds rounds of about a second each"
    heading base
    row "silent-$flow_counts-most" 'not scraped (base)' "$base"
    row "scraped-$flow_counts-most" 'scraped all the time' "$base"
    for round in alone beside; do
        read -r base _ < <(summary "$round" 1)
        awk -v what="$round" -v base="$base" 'END {
            printf "  a scrape, %-6s: %.2f s, median of %d; %.1f MB\n", what, base, NR, $2 / 1e6 }' "$results/$round"
    done
    echo
    cluster_down
}

# How much memory xvsd has without files, and the kernel for BPF maps and others that it does not count elsewhere.
memory_of() {
    awk '$1 == "RssAnon:" { printf "%d MiB of memory", $2 / 1024 }' "/proc/$pid/status"
}

count_services() {
    on dr "$bin/xvs" status | awk '$1 == "services" { print $2 }'
}

control() {
    local milliseconds arguments=()
    local large_keys="steered_endpoints = $(endpoints)
metrics_address = \"$metrics\"
status_page = true"
    netlab sweep
    netlab down --name "$name"
    trap clean_up EXIT
    netlab up --name "$name" --servers 1 --queues 2 --owner $$ >/dev/null
    on dr ip route add 10.0.0.0/8 via "$server"
    if [[ $services ]]; then arguments=("$services" "$servers" "$addresses") start_patience=600; fi
    pid=''
    start_large --workers 2
    on dr env TMPDIR="$state" "$bin/examples/control_source" /run/xvs/xvsd.sock "$pid" "$bin" "${arguments[@]}"
    if [[ $services ]]; then
        on dr "$bin/xvsadm" -R <"$state/rules"
        "${as_root[@]}" kill -KILL "$pid"
        while [[ -e /proc/$pid ]]; do sleep 0.01; done
        timed start_large --workers 2
        echo "  kill -9, start: ready after $milliseconds ms; $(count_services) services, $(memory_of)"
        timed start_large --workers 2 --take-over
        echo "  take-over: $milliseconds ms; $(count_services) services, $(memory_of);$(grep -o 'nobody forwarded.*' \
            "$state/forwarder.log")"
    fi
    echo
    stop
    cluster_down
}
