#!/usr/bin/env bash
# Policy routing as the kernel's IPVS does it: for each rule, xvs sends a request and its reply by the same links as IPVS.
#
# Namespaces: the client c reaches the director d by wan1 and wan2, the director reaches the real server r by lan1 and
# lan2. Table main leads by the first of each, table 100 to the client by wan2, table 101 to the server by lan2.
set -euo pipefail

test=policy
show_state() { cat /tmp/xvsd.log; }
# shellcheck source=tests/vm/common.bash
source /vm-bin/common.bash

modprobe -a ip_vs ip_vs_rr ipip tun
links=(wan1 wan2 lan1 lan2)
counters=$(printf '/sys/class/net/%s/statistics/tx_bytes ' "${links[@]}")
for host in c d r; do
    ip netns add "$host"
    at "$host" ip link set lo up
    at "$host" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0 \
        net.ipv4.conf.default.rp_filter=0 net.ipv6.conf.default.accept_dad=0
done
for number in 1 2 3 4; do
    link=${links[number - 1]} peer=c
    [[ $link == wan* ]] || peer=r
    ip link add "$link" netns d type veth peer name "$link" netns "$peer"
    for host in "d:1" "$peer:2"; do
        at "${host%:*}" ethtool -K "$link" rx off tx off >/dev/null
        at "${host%:*}" ip address add "10.1.$number.${host#*:}/24" dev "$link"
        at "${host%:*}" ip address add "fd00:$number::${host#*:}/64" dev "$link"
        at "${host%:*}" ip link set "$link" up
    done
done
client=(192.0.2.10 2001:db8:2::10) vip=(198.51.100.1 2001:db8:5::1) server=(192.0.2.99 2001:db8:9::1)
via() { [[ $1 == *:* ]] && echo "fd00:$2::$3" || echo "10.1.$2.$3"; }
for family in 0 1; do
    bits=32
    [[ $family == 0 ]] || bits=128
    at c ip address add "${client[family]}/$bits" dev lo
    at d ip address add "${vip[family]}/$bits" dev lo
    at r ip address add "${server[family]}/$bits" dev lo
    at c ip route add "${vip[family]}/$bits" via "$(via "${vip[family]}" 1 1)"
    at r ip route add "${client[family]}/$bits" via "$(via "${client[family]}" 3 1)"
    at d ip route add "${client[family]}/$bits" via "$(via "${client[family]}" 1 2)"
    at d ip route add "${server[family]}/$bits" via "$(via "${server[family]}" 3 2)"
    at d ip route add "${client[family]}/$bits" via "$(via "${client[family]}" 2 2)" table 100
    at d ip route add "${server[family]}/$bits" via "$(via "${server[family]}" 4 2)" table 101
    at d ip route add "${client[family]}/$bits" via "$(via "${client[family]}" 2 2)" table 101
done

# An echo of datagrams, and requests of 1,000 bytes to it.
at r python3 -c '
import socket, threading
def serve(family, addr):
    bound = socket.socket(family, socket.SOCK_DGRAM)
    bound.bind((addr, 7))
    while True:
        data, sender = bound.recvfrom(2000)
        bound.sendto(data, sender)
threading.Thread(target=serve, args=(socket.AF_INET, "192.0.2.99")).start()
serve(socket.AF_INET6, "2001:db8:9::1")' &
cat >/tmp/ask.py <<'PY'
import socket, sys
for source, vip in zip(sys.argv[1::2], sys.argv[2::2]):
    asker = socket.socket(socket.AF_INET6 if ":" in vip else socket.AF_INET, socket.SOCK_DGRAM)
    asker.bind((source, 0))
    asker.settimeout(1)
    asker.sendto(bytes(1000), (vip, 7))
    try:
        asker.recvfrom(2000)
    except OSError:
        pass
PY

# How many requests and replies the director has sent by each link for a request of each family.
sent() {
    local before now at_link out=
    # shellcheck disable=SC2086
    mapfile -t before <<<"$(at d cat $counters)"
    at c python3 /tmp/ask.py "${client[0]}" "${vip[0]}" "${client[1]}" "${vip[1]}"
    # shellcheck disable=SC2086
    mapfile -t now <<<"$(at d cat $counters)"
    for at_link in 0 1 2 3; do out+="${links[at_link]} $(((now[at_link] - before[at_link]) / 1000)) "; done
    echo "$out"
}

# Adds the service to a director, and deletes all of its services.
service() {
    local adm=$1 method=$2 family
    at d "$adm" -C
    for family in 0 1; do
        local address=${vip[family]} target=${server[family]}
        [[ $family == 0 ]] || address="[$address]" target="[$target]"
        at d "$adm" -A -u "$address:7" -s rr
        at d "$adm" -a -u "$address:7" -r "$target:7" "$method"
    done
}

# The method, what is marked, and the rule; VIP, CLIENT, SERVER and TUNNEL are addresses of the family.
cases=(
    "-m|-|"
    "-m|-|from VIP lookup 100"
    "-m|-|to CLIENT lookup 100"
    "-m|-|from CLIENT lookup 101"
    "-m|-|from SERVER lookup 101"
    "-m|-|to SERVER lookup 101"
    "-m|-|iif lo to CLIENT lookup 100"
    "-m|-|iif wan1 to SERVER lookup 101"
    "-m|-|to SERVER unreachable"
    "-m|-i lan1 --set-mark 2|fwmark 2 lookup 100"
    "-m|-i wan1 --set-mark 1|fwmark 1 lookup 101"
    "-i|-|from TUNNEL lookup 101"
    "-i|-i wan1 --set-mark 1|fwmark 1 lookup 101"
    "-g|-|from CLIENT lookup 101"
)

# Plays all cases with a director's command. A case is repeated until its result is that of a file, if there is one:
# xvs follows changes of the network and of nftables when it is told.
play() {
    local adm=$1 expected=${2:-} one method mark rule family last='' row result try
    for one in "${cases[@]}"; do
        IFS='|' read -r method mark rule <<<"$one"
        for program in iptables ip6tables; do
            at d "$program" -t mangle -F
            # shellcheck disable=SC2086
            [[ $mark == - ]] || at d "$program" -t mangle -A PREROUTING ${mark% --set*} -p udp -j MARK --set${mark#* --set}
        done
        [[ $method == "$last" ]] || service "$adm" "$method"
        last=$method
        for family in 0 1; do rule_of "$family" add; done
        row="$method $mark $rule:"
        # A rule without an effect must not be compared before it is known.
        sleep 1
        for ((try = 0; try < 20; try++)); do
            result="$row $(sent)"
            if [[ -z $expected ]] || grep -qxF -e "$result" "$expected"; then break; fi
            sleep 1
        done
        echo "$result"
        for family in 0 1; do rule_of "$family" del; done
    done
}

# Adds or deletes the rule of a case.
rule_of() {
    local family=$1 words=${rule/VIP/${vip[$1]}} flag=-4
    words=${words/CLIENT/${client[family]}}
    words=${words/SERVER/${server[family]}}
    words=${words/TUNNEL/$(via "${vip[family]}" 3 1)}
    [[ $family == 0 ]] || flag=-6
    # shellcheck disable=SC2086
    [[ -z $words ]] || at d ip "$flag" rule "$2" priority 100 $words
}

play ipvsadm | tee /tmp/kernel
at d ipvsadm -C
cat >/tmp/xvs.toml <<TOML
interfaces = ["wan1", "wan2", "lan1", "lan2"]
workers = 1
conn_table_size = 4096
TOML
at d xvsd --config /tmp/xvs.toml >/tmp/xvsd.log 2>&1 &
for ((try = 0; try < 60; try++)); do
    if at d xvs status 2>/dev/null | grep -q "up .* configuration"; then break; fi
    sleep 1
done
play xvsadm /tmp/kernel | tee /tmp/xvs
diff /tmp/kernel /tmp/xvs || fail "xvs (>) sends packets by other links than the kernel's IPVS (<)"
