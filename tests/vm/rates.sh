#!/usr/bin/env bash
# What a packet costs the director's core, and how many interrupts it takes, at rates from low to high, on the driver of a
# real card: xvsd in each mode, beside the kernel's IPVS by the same method, and beside a forwarder in zero-copy mode that
# changes nothing but the link addresses (crates/dataplane/examples/forward_raw.rs). Then the latency: round trips by NAT of
# one datagram at a time.
#
# cl 198.51.100.10, dr 198.51.100.1 with the VIP 198.51.100.100 and 192.0.2.1, rs1 192.0.2.11. Core 1 has xvsd and the
# interrupts of dr. Core 0 has the kernel's pktgen, which sends, and rs1, which drops. The cost is the CPU time of the
# thread that emulates core 1, less that of an idle machine, over the packets that arrived. Prints medians and ratios.
# Takes 20 minutes, on a machine that does nothing else: VM_SECONDS=3600 scripts/vm rates.
#
# cards igb/virtio-net-pci igb/virtio-net-pci
# kernel newest
# release
set -euo pipefail

test=rates
vip=198.51.100.100
# The ports of the services, by the option of their method.
declare -A ports=([g]=9 [m]=10)
echo=11
# The last is more than core 0 can send.
rates=(3000 10000 30000 100000)
# The mode, the offload and the way to wait of each variant of xvsd.
declare -A settings=([auto]="auto auto sleep" [zero-copy]="zero-copy off sleep" [busy]="zero-copy off busy")
variants=(ipvs forwarder auto zero-copy busy)
seconds=3
flows=64
rounds=3

show_state() {
    cat /tmp/xvsd.log
    at dr xvs status
    at dr xvs counters
    at dr xvsadm -Ln --stats
    cat /proc/interrupts
}
# shellcheck source=tests/vm/common.bash
source /vm-bin/common.bash

# Writes $2 to file $1 on host $3.
write() { at "$3" sh -c 'echo "$2" >"$1"' sh "$1" "$2"; }

# Sends to port $1 at a rate of $2 for $3 seconds.
send() {
    local setting
    for setting in "udp_dst_min $1" "udp_dst_max $1" "ratep $2" "count $(($3 * $2))"; do
        write /proc/net/pktgen/wan "$setting" cl
    done
    write /proc/net/pktgen/pgctrl start cl
}

arrived() { at rs1 awk '$1 == "lan:" { print $3 }' /proc/net/dev; }
# Nanoseconds of core 1.
core_time() { awk '{ print $1 }' "$core/schedstat"; }
# Interrupts of the director's cards so far.
interrupts() {
    awk -v all=" ${irqs[*]} " '{ sub(":", "", $1); if (index(all, " " $1 " ")) sum += $2 + $3 } END { print sum + 0 }' \
        /proc/interrupts
}

# Adds to file /tmp/$1-$2-$3 the nanoseconds of core 1 and the interrupts, times 100, for each packet of method $2 at
# rate $3, and how many packets a second arrived.
measure() {
    local time packets taken idle begun
    send "${ports[$2]}" "$3" 1
    idle=$(core_time)
    sleep $seconds
    idle=$(($(core_time) - idle))
    packets=$(arrived) taken=$(interrupts) time=$(core_time) begun=$(date +%s%3N)
    send "${ports[$2]}" "$3" $seconds
    begun=$(($(date +%s%3N) - begun))
    time=$(($(core_time) - time)) packets=$(($(arrived) - packets)) taken=$(($(interrupts) - taken))
    ((packets > 0)) || fail "$1 forwards no packets"
    echo "$(((time - idle) / packets)) $((taken * 100 / packets)) $((packets * 1000 / begun))" >>"/tmp/$1-$2-$3"
}

# Adds to file /tmp/$1-latency the median and the 99th percentile of round trips, in microseconds. Only meanwhile do the
# hosts have addresses.
measure_latency() {
    at cl ip address add 198.51.100.10/24 dev wan
    at rs1 ip address add 192.0.2.11/24 dev lan
    at rs1 ip route add default via 192.0.2.1
    at rs1 python3 /vm-bin/peer.py echo $echo >/dev/null 2>&1 &
    sleep 2
    at cl python3 /vm-bin/peer.py latency $vip $echo 500 >>"/tmp/$1-latency" || fail "$1 does not forward"
    pkill -f "peer.py echo"
    at rs1 ip address flush dev lan
    at cl ip address flush dev wan
}

# The median of column $2 of a file.
median() { awk -v column="$2" '{ print $column }' "/tmp/$1" | sort -n | sed -n "$(((rounds + 1) / 2))p"; }

add_services() {
    local method
    for method in g m; do
        at dr "$1" -A -u "$vip:${ports[$method]}" -s rr
        at dr "$1" -a -u "$vip:${ports[$method]}" -r "192.0.2.11:${ports[$method]}" "-$method"
    done
    at dr "$1" -A -u "$vip:$echo" -s rr
    at dr "$1" -a -u "$vip:$echo" -r "192.0.2.11:$echo" -m
}

measure_all() {
    local method rate
    for method in m g; do
        for rate in "${rates[@]}"; do measure "$1" "$method" "$rate"; done
    done
}

# Moves the card with this number to a host, with a name. The director's interrupts go to core 1.
irqs=()
give() {
    local number=$1 host=$2 name=$3 path device irq
    for path in /sys/class/net/*; do
        [[ $(cat "$path/address") == 02:00:00:00:00:0$number ]] || continue
        device=$(readlink -f "$path/device")
        [[ -d $device/msi_irqs ]] || device=$(dirname "$device")
        ip link set "${path##*/}" name "$name" netns "$host"
        if [[ $host == dr ]]; then at "$host" ethtool -L "$name" combined 1 || true; fi
        at "$host" ip link set "$name" up
        if [[ $host == dr ]]; then
            for irq in "$device"/msi_irqs/*; do
                irqs+=("${irq##*/}")
                echo 2 >"/proc/irq/${irq##*/}/smp_affinity" || true
            done
        fi
        return
    done
    fail "no card $number"
}

# What follows runs beside pktgen, but for xvsd.
taskset -pc 0 $$ >/dev/null
echo 1 >/proc/irq/default_smp_affinity
modprobe -a ip_vs pktgen tun virtio_net igb vmxnet3
mkdir /tmp/threads
mount -t 9p -o trans=virtio,version=9p2000.L,cache=none threads /tmp/threads
core=$(dirname "$(grep -lx "CPU 1/TCG" /tmp/threads/*/comm)")
for host in cl dr rs1; do ip netns add $host; done
give 0 dr wan
give 1 cl wan
give 2 dr lan
give 3 rs1 lan
mac_of() { at "$1" cat "/sys/class/net/$2/address"; }
at dr ip address add 198.51.100.1/24 dev wan
at dr ip address add $vip/32 dev wan
at dr ip address add 192.0.2.1/24 dev lan
at dr ip neighbour replace 198.51.100.10 lladdr "$(mac_of cl wan)" nud permanent dev wan
at dr ip neighbour replace 192.0.2.11 lladdr "$(mac_of rs1 lan)" nud permanent dev lan
at dr sysctl -qw net.ipv4.ip_forward=1
sleep 4

write /proc/net/pktgen/kpktgend_0 "add_device wan" cl
# With a checksum, because packets without one are not offloaded by NAT.
for setting in "pkt_size 60" "src_min 198.51.100.10" "src_max 198.51.100.10" "dst $vip" \
    "dst_mac $(mac_of dr wan)" "udp_src_min 1024" "udp_src_max $((1024 + flows))" "flag UDPCSUM"; do
    write /proc/net/pktgen/wan "$setting" cl
done

add_services ipvsadm
for ((round = 0; round < rounds; round++)); do
    say "round $((round + 1)) of $rounds"
    measure_all ipvs
    measure_latency ipvs
    at dr taskset -c 1 forward_raw "wan=$(mac_of dr wan),$(mac_of cl wan)" \
        "lan=$(mac_of dr lan),$(mac_of rs1 lan)" >/tmp/forwarder &
    until_shown ready cat /tmp/forwarder
    sleep 4
    measure_all forwarder
    pkill -x forward_raw
    wait
    sleep 4
    for variant in "${variants[@]:2}"; do
        read -r mode offload poll <<<"${settings[$variant]}"
        cat >/tmp/xvs.toml <<TOML
workers = 1
conn_table_size = 4096
state_directory = ""
offload = "$offload"
poll = "$poll"
[interfaces.wan]
mode = "$mode"
[interfaces.lan]
mode = "$mode"
TOML
        at dr taskset -c 1 xvsd --config /tmp/xvs.toml >/tmp/xvsd.log 2>&1 &
        until_shown "up .* configuration" at dr xvs status
        for name in wan lan; do until_shown "interface  $name: up, native XDP" at dr xvs status; done
        add_services xvsadm
        sleep 4
        measure_all "$variant"
        measure_latency "$variant"
        at dr xvs stop --release >/dev/null
        wait
        sleep 2
    done
done
echo "   µs of round trips: median; 99th percentile"
for variant in ipvs "${variants[@]:2}"; do
    echo "   $variant $(median "$variant-latency" 1) $(median "$variant-latency" 2)"
done
echo "   µs of the core for a packet; ratio to IPVS; interrupts for a packet; packets that arrived a second"
for method in m g; do
    for rate in "${rates[@]}"; do
        for variant in "${variants[@]}"; do
            file=$variant-$method-$rate
            awk -v method="$method" -v rate="$rate" -v variant="$variant" -v ipvs="$(median "ipvs-$method-$rate" 1)" \
                -v time="$(median "$file" 1)" -v taken="$(median "$file" 2)" -v got="$(median "$file" 3)" 'BEGIN {
                printf "   %-3s %6d/s  %-9s %6.1f  %5.2f  %5.2f  %6d\n",
                    method == "g" ? "DR" : "NAT", rate, variant, time / 1e3, time / ipvs, taken / 100, got }'
        done
    done
done
say "all"
