#!/usr/bin/env bash
# Flow offload on a kernel before 6.3: the XDP program forwards established connections by direct routing and NAT; a
# veth, which does not say yet that it takes what an XDP program forwards, is tried; and what a packet costs the
# director's core at a low rate, beside the kernel's IPVS by the same method. Then what a short TCP connection costs it by
# NAT, beside IPVS and, without either, routing.
#
# cl 198.51.100.10, dr 198.51.100.1 with the VIP 198.51.100.100 and 192.0.2.1, rs1 192.0.2.11, joined by virtio_net
# interfaces, as those of a virtual machine. Core 1 has xvsd and the interrupts of dr. Core 0 has the kernel's pktgen,
# which sends, and rs1, which drops; then wrk and nginx. The figure is the CPU time of the thread that emulates core 1 over
# the packets that arrived, or the connections. Prints medians and ratios; fails if the program has not forwarded the
# packets.
# cards virtio-net-pci/virtio-net-pci virtio-net-pci/virtio-net-pci
# release
set -euo pipefail

test=offload
vip=198.51.100.100
# The ports of the services, by the option of their method.
declare -A ports=([g]=9 [m]=10)
rate=12000
seconds=5
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

# Sends to port $1 for $2 seconds.
send() {
    local setting
    for setting in "udp_dst_min $1" "udp_dst_max $1" "count $(($2 * rate))"; do
        write /proc/net/pktgen/wan "$setting" cl
    done
    write /proc/net/pktgen/pgctrl start cl
}

arrived() { at rs1 awk '$1 == "lan:" { print $3 }' /proc/net/dev; }
# Nanoseconds of core 1.
core_time() { awk '{ print $1 }' "$core/schedstat"; }
offloaded() { at dr xvs counters | awk '$1 == "offloaded" { count = $2 } END { print count + 0 }'; }

# Has both services, by ipvsadm or xvsadm.
add_services() {
    local method
    for method in g m; do
        at dr "$1" -A -u "$vip:${ports[$method]}" -s rr
        at dr "$1" -a -u "$vip:${ports[$method]}" -r "192.0.2.11:${ports[$method]}" "-$method"
    done
}

# Adds to file /tmp/$1-$2 the nanoseconds of core 1 for each packet of method $2. Sets `packets` to their number.
measure() {
    local time
    send "${ports[$2]}" 3
    packets=$(arrived) time=$(core_time)
    send "${ports[$2]}" "$seconds"
    time=$(($(core_time) - time)) packets=$(($(arrived) - packets))
    ((packets > 0)) || fail "$1 forwards no packets"
    echo $((time / packets)) >>"/tmp/$1-$2"
}

# Adds to file /tmp/$1-short the nanoseconds of core 1 for each request of wrk to $2, by a connection of its own.
measure_short() {
    local time requests
    at cl wrk -t1 -c8 -d2s -H 'Connection: close' "http://$2/" >/dev/null
    time=$(core_time)
    at cl wrk -t1 -c8 -d"${seconds}s" -H 'Connection: close' "http://$2/" >/tmp/wrk
    time=$(($(core_time) - time)) requests=$(awk '/ requests in / { print $1 }' /tmp/wrk)
    ! grep -E "Socket errors|Non-2xx" /tmp/wrk || fail "wrk has not seen all answers by $1"
    echo $((time / requests)) >>"/tmp/$1-short"
    echo "   $1: $requests connections, $((time / requests / 1000)) µs each"
}

median() { sort -n "/tmp/$1" | sed -n "$(((rounds + 1) / 2))p"; }

# What follows runs beside pktgen, but for xvsd.
taskset -pc 0 $$ >/dev/null
echo 1 >/proc/irq/default_smp_affinity
modprobe -a ip_vs pktgen tun virtio_net
mkdir /tmp/threads
mount -t 9p -o trans=virtio,version=9p2000.L,cache=none threads /tmp/threads
core=$(dirname "$(grep -lx "CPU 1/TCG" /tmp/threads/*/comm)")
number=0
for end in "cl wan" "dr wan" "dr lan" "rs1 lan"; do
    read -r host interface <<<"$end"
    [[ -e /run/netns/$host ]] || ip netns add "$host"
    device=$(basename "$(readlink "/sys/class/net/eth$number/device")")
    if [[ $host == dr ]]; then
        for interrupt in $(awk -v name="$device-" 'index($NF, name) { print $1 + 0 }' /proc/interrupts); do
            echo 2 >"/proc/irq/$interrupt/smp_affinity"
        done
    fi
    ip link set "eth$number" name "$interface" netns "$host"
    at "$host" ip link set "$interface" up
    number=$((number + 1))
done
mac_of() { at "$1" cat "/sys/class/net/$2/address"; }
at dr ip address add 198.51.100.1/24 dev wan
at dr ip address add $vip/32 dev wan
at dr ip address add 192.0.2.1/24 dev lan
at dr ip neighbour replace 198.51.100.10 lladdr "$(mac_of cl wan)" nud permanent dev wan
at dr ip neighbour replace 192.0.2.11 lladdr "$(mac_of rs1 lan)" nud permanent dev lan
at dr sysctl -qw net.ipv4.ip_forward=1

write /proc/net/pktgen/kpktgend_0 "add_device wan" cl
# With a checksum, because packets without one are not offloaded by NAT.
for setting in "pkt_size 60" "ratep $rate" "src_min 198.51.100.10" "src_max 198.51.100.10" "dst $vip" \
    "dst_mac $(mac_of dr wan)" "udp_src_min 1024" "udp_src_max $((1024 + flows))" "flag UDPCSUM"; do
    write /proc/net/pktgen/wan "$setting" cl
done

cat >/tmp/xvs.toml <<TOML
interfaces = ["wan", "lan"]
workers = 1
conn_table_size = 4096
state_directory = ""
TOML
say "a veth without and with GRO at its other end"
ip link add veth0 netns dr type veth peer name veth0 netns rs1
for host in dr rs1; do at $host ip link set veth0 up; done
sed 's/^interfaces.*/interfaces = ["veth0"]/' /tmp/xvs.toml >/tmp/veth.toml
at dr xvsd --config /tmp/veth.toml >/tmp/xvsd.log 2>&1 &
until_shown "not by veth0: it takes no packets" at dr xvs status
at rs1 ethtool -K veth0 gro on
is_offloaded() { ! at dr xvs status | grep "not by veth0" && echo yes; }
until_shown yes is_offloaded
at dr xvs status | grep "veth0: up, native XDP" || fail "veth0 has no native XDP"
at dr xvs stop --release >/dev/null
wait

add_services ipvsadm
for ((round = 0; round < rounds; round++)); do
    say "round $((round + 1)) of $rounds"
    for method in g m; do measure ipvs "$method"; done
    at dr taskset -c 1 xvsd --config /tmp/xvs.toml >/tmp/xvsd.log 2>&1 &
    until_shown "up .* configuration" at dr xvs status
    for name in wan lan; do until_shown "interface  $name: up, native XDP" at dr xvs status; done
    add_services xvsadm
    for method in g m; do
        before=$(offloaded)
        measure xvsd "$method"
        # Its worker counts them once a second.
        sleep 2
        (($(offloaded) - before > packets / 2)) || fail "most packets were not offloaded"
    done
    at dr xvs stop --release >/dev/null
    wait
done
echo "   at $rate packets a second of $flows flows, µs of the core for each: IPVS; xvsd, offloaded; ratio"
for method in g m; do
    awk -v method="$method" -v ipvs="$(median "ipvs-$method")" -v xvsd="$(median "xvsd-$method")" 'BEGIN {
        printf "   %-14s  %5.1f  %5.1f  %5.2f\n",
            method == "g" ? "direct routing" : "NAT", ipvs / 1e3, xvsd / 1e3, xvsd / ipvs }'
done

say "short connections by NAT"
at cl ip address add 198.51.100.10/24 dev wan
at cl ip route add 192.0.2.0/24 via 198.51.100.1
at rs1 ip address add 192.0.2.11/24 dev lan
at rs1 ip route add default via 192.0.2.1
cat >/tmp/nginx.conf <<NGINX
worker_processes 1;
pid /tmp/nginx.pid;
events {}
http { access_log off; server { listen 80; listen 81; location / { return 200 "$(printf '%1024s' "")"; } } }
NGINX
at rs1 nginx -c /tmp/nginx.conf
add_web() {
    at dr "$1" -A -t $vip:80 -s rr
    at dr "$1" -a -t $vip:80 -r 192.0.2.11:80 -m
}
add_web ipvsadm
rounds=5
for ((round = 0; round < rounds; round++)); do
    # By another port: IPVS would take replies of that of its connections for theirs.
    measure_short routing 192.0.2.11:81
    measure_short ipvs $vip
    at dr taskset -c 1 xvsd --config /tmp/xvs.toml >/tmp/xvsd.log 2>&1 &
    xvsd=$!
    for name in wan lan; do until_shown "interface  $name: up, native XDP" at dr xvs status; done
    add_web xvsadm
    before=$(offloaded)
    measure_short xvsd $vip
    sleep 2
    (($(offloaded) - before > 4 * $(awk '/ requests in / { print $1 }' /tmp/wrk))) || fail "the packets of short connections were not offloaded"
    at dr xvs stop --release >/dev/null
    wait $xvsd
done
kill "$(cat /tmp/nginx.pid)"
echo "   µs of the core for each short connection: routing; IPVS by NAT; xvsd by NAT, offloaded; xvsd ÷ IPVS, ÷ routing"
awk -v routing="$(median routing-short)" -v ipvs="$(median ipvs-short)" -v xvsd="$(median xvsd-short)" 'BEGIN {
    printf "   %7.1f  %7.1f  %7.1f  %5.2f  %5.2f\n", routing / 1e3, ipvs / 1e3, xvsd / 1e3, xvsd / ipvs, xvsd / routing }'
say "all"
