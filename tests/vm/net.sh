#!/usr/bin/env bash
# The kernel's IPVS as the source of rules: what ipvsadm, keepalived and sysctl change there is in force in xvs, in its
# order, and the listings of both are equal to the byte. xvs forwards the packets, and the kernel's counters stand still.
#
# Namespaces on one bridge: cl 10.1.0.10, rs1 10.1.0.21, rs2 10.1.0.22 (with the VIP), dr 10.1.0.1 (xvs and the kernel's
# IPVS, with the VIP 10.1.0.100).
#
# kernel own
# kernel backports
# kernel newest
set -euo pipefail

test=net
show_state() {
    cat /tmp/xvsd.log
    at dr xvs status
    at dr ipvsadm -Sn
    at dr xvsadm -Sn
    cat /tmp/client /tmp/keepalived.log
}
# shellcheck source=tests/vm/common.bash
source /vm-bin/common.bash

modprobe tun
touch /tmp/client /tmp/keepalived.log
ip netns add sw
at sw ip link add bridge type bridge
at sw ip link set bridge up
for host in cl:10 rs1:21 rs2:22 dr:1; do
    name=${host%:*}
    ip netns add "$name"
    ip link add lan netns "$name" type veth peer name "$name" netns sw
    at sw ip link set "$name" master bridge up
    at "$name" ip link set lan up
    at "$name" ip link set lo up
    at "$name" ip address add "10.1.0.${host#*:}/24" dev lan
    at "$name" ethtool -K lan rx off tx off >/dev/null
done
for number in 1 2; do
    at rs$number sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
    at rs$number ip address add 10.1.0.100/32 dev lo
    at rs$number unshare --uts sh -c "hostname rs$number; exec python3 /vm-bin/peer.py serve 80" &
done
at dr ip address add 10.1.0.100/32 dev lan
at dr sysctl -qw net.ipv4.ip_forward=1
for number in 1 2; do until_shown "80 rs$number" at dr sh -c "echo word | python3 /vm-bin/peer.py client /proc/self/fd/0 10.1.0.2$number 80"; done

# Milliseconds until xvs has the kernel's rules.
until_equal() {
    local begun now
    begun=$(date +%s%3N)
    while :; do
        [[ $(at dr xvsadm -Sn 2>/dev/null) != "$(at dr ipvsadm -Sn)" ]] || break
        now=$(date +%s%3N)
        ((now - begun < ${1:-30000})) || fail "after $((now - begun)) ms the rules are not equal"
        sleep 0.05
    done
    now=$(date +%s%3N)
    echo $((now - begun))
}
# The connections that the kernel's IPVS has scheduled.
kernel_packets() { at dr sh -c 'tail -n +3 /proc/net/ip_vs_stats | head -n 1' | tr -s ' ' | cut -d ' ' -f 2-4; }
listing() { sed -E 's/ +[0-9]+ +[0-9]+ *$//; 1s/.*//' ; }

start_director() {
    printf '%s\n' "$1" 'interfaces = ["lan"]' 'workers = 1' 'conn_table_size = 4096' '[kernel]' 'rules = "follow"' >/tmp/xvs.toml
    ip netns exec dr xvsd --config /tmp/xvs.toml >/tmp/xvsd.log 2>&1 &
    director=$!
    until_shown "up .* configuration" at dr xvs status
}
stop_director() {
    at dr xvs stop --release >/dev/null
    wait "$director" || true
    # Another user may have had them.
    rm -rf /run/xvs /dev/shm/xvs
}

say "without IPVS xvsd warns, and does not load it"
start_director 'user = "nobody"'
until_shown "the kernel has no IPVS here" at dr sh -c "xvs status | tr -s '\n ' ' '"
sleep 1
if grep -q '^ip_vs' /proc/modules; then fail "xvsd has loaded ip_vs"; fi

say "each kind of rule"
modprobe ip_vs
at dr ipvsadm-restore -n <<'RULES'
-A -t 10.1.0.100:80 -s rr
-a -t 10.1.0.100:80 -r 10.1.0.21:80 -g -w 1
-a -t 10.1.0.100:80 -r 10.1.0.22:80 -g -w 2 -x 100 -y 50
-A -t 10.1.0.100:81 -s wlc -p 300 -M 255.255.255.0
-a -t 10.1.0.100:81 -r 10.1.0.21:8081 -m -w 0
-A -u 10.1.0.100:53 -s sh -b sh-fallback,sh-port -o
-a -u 10.1.0.100:53 -r 10.1.0.22:53 -m -w 3
-A -u 10.1.0.100:5060 -s rr -p 60 --pe sip -o
-A -t [2001:db8::100]:443 -s mh -b mh-fallback -p 360 -M 64
-a -t [2001:db8::100]:443 -r [2001:db8::21]:443 -i -w 1
-a -t [2001:db8::100]:443 -r [2001:db8::22]:443 -g -w 1
-A -f 7 -s wrr
-a -f 7 -r 10.1.0.21:0 -i -w 1 --tun-type gre --tun-csum
-a -f 7 -r 10.1.0.22:0 -i -w 1 --tun-type gue --tun-port 6080 --tun-remcsum
-A -f 8 -6 -s lblcr
-A --sctp-service 10.1.0.100:0 -s lc -p 5
RULES
until_equal >/tmp/ms
say "in force after $(cat /tmp/ms) ms"
[[ $(at dr xvsadm -Ln | listing) == "$(at dr ipvsadm -Ln | listing)" ]] || fail "the listings are not equal"
until_shown "kernel 8 services of its IPVS followed" at dr sh -c "xvs status | tr -s '\n ' ' '"

say "timeouts and settings"
at dr ipvsadm --set 901 121 301
at dr sysctl -qw net.ipv4.vs.expire_nodest_conn=1 net.ipv4.vs.sync_threshold="2 20"
until_shown 901.*121.*301 at dr xvsadm -L --timeout
until_shown 1 at dr xvs get expire_nodest_conn
until_shown "2 20" at dr xvs get sync_threshold
for command in "xvsadm -A -t 10.1.0.100:82" "xvsadm -C" "xvsadm --set 1 1 1" "xvs set expire_nodest_conn 0"; do
    # shellcheck disable=SC2086
    if at dr $command 2>/tmp/refused; then fail "$command is not refused"; fi
    grep -q "xvs follows the kernel's IPVS" /tmp/refused || fail "$command: $(cat /tmp/refused)"
done

say "xvs forwards, and the kernel's counters stand still"
before=$(kernel_packets)
for number in 1 2 3 4; do
    echo word | at cl timeout 10 python3 /vm-bin/peer.py client /proc/self/fd/0 10.1.0.100 80 >>/tmp/client || fail "no answer"
done
[[ $(kernel_packets) == "$before" ]] || fail "the kernel's IPVS has forwarded: $(kernel_packets), before $before"

say "a random sequence of changes, read between any two"
ms=()
RANDOM=${SEED:-7}
for number in {1..60}; do
    server=10.1.0.2$((RANDOM % 4 + 1)):80
    case $((RANDOM % 4)) in
    0) at dr ipvsadm -a -t 10.1.0.100:80 -r $server -g -w $((RANDOM % 5)) ;;
    1) at dr ipvsadm -d -t 10.1.0.100:80 -r $server ;;
    2) at dr ipvsadm -e -t 10.1.0.100:80 -r $server -g -w $((RANDOM % 5)) ;;
    3) at dr ipvsadm -E -t 10.1.0.100:80 -s "$(printf '%s\n' rr wrr lc wlc sed nq | sed -n $((RANDOM % 6 + 1))p)" ;;
    esac 2>/dev/null || true
    if ((number % 6 == 0)); then
        ms+=("$(until_equal)")
        for director in ipvsadm xvsadm; do at dr $director -Ln -t 10.1.0.100:80 --nosort | listing >/tmp/$director; done
        cmp /tmp/ipvsadm /tmp/xvsadm || fail "the order of real servers differs"
    fi
done
say "in force after ${ms[*]} ms"

say "net.ipv4.vs.conntrack leaves services by NAT to the kernel"
at dr sysctl -qw net.ipv4.vs.conntrack=1
until_shown "service TCP 10.1.0.100:81 is left to the kernel's IPVS: net.ipv4.vs.conntrack is 1" at dr sh -c "xvs status | tr -s '\n ' ' '"
at dr sysctl -qw net.ipv4.vs.conntrack=0
until_equal >/dev/null
at dr ipvsadm -C
until_equal >/tmp/ms
say "an empty table is followed after $(cat /tmp/ms) ms"
(($(cat /tmp/ms) >= 2000)) || fail "an empty table was believed at once"

say "keepalived writes, xvs follows"
servers() {
    echo "virtual_server 10.1.0.100 80 {
delay_loop 1
lvs_sched rr
lvs_method DR
protocol TCP"
    for number in "$@"; do
        echo "real_server 10.1.0.2$number 80 { weight $number
TCP_CHECK { connect_timeout 1
retry 1
delay_before_retry 1 } }"
    done
    echo "}"
}
mkdir -p /etc/keepalived /run/keepalived
servers 1 2 >/tmp/keepalived.conf
ip netns exec dr keepalived --dont-fork --log-console --check --use-file /tmp/keepalived.conf >/tmp/keepalived.log 2>&1 &
keepalived=$!
until_shown "10.1.0.22:80" at dr ipvsadm -Sn
until_equal >/tmp/ms
say "its services are in force after $(cat /tmp/ms) ms"
at rs2 ip link set lan down
until_shown gone at dr sh -c "ipvsadm -Sn | grep -q 10.1.0.22 || echo gone"
until_equal >/tmp/ms
say "a failed server is out after $(cat /tmp/ms) ms"
at rs2 ip link set lan up
until_shown "10.1.0.22:80" at dr ipvsadm -Sn
until_equal >/tmp/ms
say "and back after $(cat /tmp/ms) ms"
servers 1 >/tmp/keepalived.conf
kill -HUP "$keepalived"
until_shown gone at dr sh -c "ipvsadm -Sn | grep -q 10.1.0.22 || echo gone"
until_equal >/tmp/ms
say "a reload is in force after $(cat /tmp/ms) ms"
deletions() { at dr xvs events --json --no-follow | grep -c 'kernel: .*-D -t 10.1.0.100:80' || true; }
before=$(deletions)
kill "$keepalived"
wait "$keepalived" || true
ip netns exec dr keepalived --dont-fork --log-console --check --use-file /tmp/keepalived.conf >/tmp/keepalived.log 2>&1 &
keepalived=$!
until_shown "10.1.0.21:80" at dr ipvsadm -Sn
until_equal >/dev/null
[[ $(deletions) == "$before" ]] || fail "a restart of keepalived has deleted its service in xvs"
at dr ipvsadm -Sn >/tmp/rules

say "the module is gone: the last rules stay"
pkill -9 -f keepalived.conf || true
wait "$keepalived" || true
at dr ipvsadm -C
for module in $(sed -n 's/^\(ip_vs_[a-z_]*\) .*/\1/p' /proc/modules) ip_vs; do rmmod "$module" || true; done
if grep -q '^ip_vs ' /proc/modules; then fail "ip_vs is still loaded"; fi
until_shown "the kernel has no IPVS here" at dr sh -c "xvs status | tr -s '\n ' ' '"
[[ $(at dr xvsadm -Sn) == "$(cat /tmp/rules)" ]] || fail "the last rules are gone"
stop_director

say "1,000 services, two real servers each"
modprobe ip_vs
for ((number = 0; number < 1000; number++)); do
    service="10.2.$((number / 250)).$((number % 250 + 1)):80"
    echo "-A -t $service -s rr"
    echo "-a -t $service -r 10.1.0.21:80 -g -w 1"
    echo "-a -t $service -r 10.1.0.22:80 -g -w 1"
done | at dr ipvsadm-restore -n
start_director 'steered_endpoints = 32768'
until_equal 120000 >/dev/null
sleep 5
used() { awk '{ print $14 + $15 }' "/proc/$director/stat"; }
before=$(used)
sleep 20
share=$((($(used) - before) / 20))
at dr ipvsadm -e -t 10.2.0.7:80 -r 10.1.0.21:80 -g -w 9
until_equal 60000 >/tmp/ms
say "a change is in force after $(cat /tmp/ms) ms, and xvsd takes $share % of a core"
stop_director
echo "$test: passed"
