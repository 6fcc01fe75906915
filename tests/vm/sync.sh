#!/usr/bin/env bash
# Connection synchronization with the kernel's IPVS: connections that one director has announced go on when the VIP and
# the gateway of NAT move to the other, in both directions. The kernel takes signed messages; with a key xvs refuses the
# kernel's, which are not signed. Of random messages both take the same connections.
#
# Namespaces on one bridge: cl 10.1.0.10, rs 10.1.0.20 (with the VIP), k (the kernel's IPVS) 10.1.0.1, x (xvs) 10.1.0.2.
# The VIP 10.1.0.100 and the real server's gateway 10.1.0.60 move.
set -euo pipefail

test=sync
show_state() {
    cat /tmp/xvsd.log
    at k ipvsadm -Lnc
    at x xvsadm -Lnc
    at x xvs status
    cat /tmp/client
}
# shellcheck source=tests/vm/common.bash
source /vm-bin/common.bash

modprobe -a ip_vs ip_vs_pe_sip tun
ip netns add sw
at sw ip link add bridge type bridge
at sw ip link set bridge up
number=0
for host in cl:10 rs:20 k:1 x:2; do
    name=${host%:*}
    ip netns add "$name"
    ip link add lan netns "$name" type veth peer name "$name" netns sw
    at sw ip link set "$name" master bridge up
    at "$name" ip link set lan up
    at "$name" ip link set lo up
    at "$name" ip address add "10.1.0.${host#*:}/24" dev lan
    at "$name" ethtool -K lan rx off tx off >/dev/null
    number=$((number + 1))
done
at rs sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2 net.ipv4.conf.lan.arp_ignore=1
at rs ip address add 10.1.0.100/32 dev lo
at rs ip route add 10.1.0.10/32 via 10.1.0.60 table 200
at rs ip rule add from 10.1.0.20 lookup 200
at k sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.lan.send_redirects=0
at x sysctl -qw net.ipv4.ip_forward=1
at rs python3 /vm-bin/peer.py serve 80 &

cat >/tmp/xvs.toml <<TOML
interfaces = ["lan"]
workers = 1
conn_table_size = 4096
TOML
at x xvsd --config /tmp/xvs.toml >/tmp/xvsd.log 2>&1 &
until_shown "up .* configuration" at x xvs status
for adm in "k ipvsadm" "x xvsadm"; do
    for rule in "-A -t 10.1.0.100:80 -s rr" "-a -t 10.1.0.100:80 -r 10.1.0.20:80 -g" \
        "-A -t 10.1.0.100:81 -s rr" "-a -t 10.1.0.100:81 -r 10.1.0.20:80 -m"; do
        # shellcheck disable=SC2086
        at $adm $rule
    done
done

# Gives the addresses to a director.
addresses_to() {
    local other=k
    [[ $1 == x ]] || other=x
    for address in 100 60; do
        at "$other" ip address del "10.1.0.$address/32" dev lan 2>/dev/null || true
        at "$1" ip address replace "10.1.0.$address/32" dev lan
    done
    for host in cl rs; do at "$host" ip neighbour flush dev lan; done
}

# Lines of the status, joined.
status_of_x() {
    at x xvs status | tr -s ' \n' ' '
}

# One round: the connections begin at `master` and go on at `backup`.
round() {
    local master=$1 backup=$2 master_adm=$3 backup_adm=$4
    say "$master announces, $backup takes over"
    at "$master" "$master_adm" --start-daemon master --mcast-interface lan --syncid 7
    at "$backup" "$backup_adm" --start-daemon backup --mcast-interface lan --syncid 7
    addresses_to "$master"
    rm -f /tmp/lines /tmp/client
    mkfifo /tmp/lines
    at cl python3 /vm-bin/peer.py client /tmp/lines 10.1.0.100 80 81 >/tmp/client 2>&1 &
    local client=$!
    exec 3>/tmp/lines
    for word in one two three; do echo "$word" >&3; done
    until_shown "81 vm three" cat /tmp/client
    for port in 80 81; do
        own=$(sed -n "s/^$port from //p" /tmp/client)
        until_shown "ESTABLISHED 10.1.0.10:$own *10.1.0.100:$port" at "$backup" "$backup_adm" -Lnc
    done
    addresses_to "$backup"
    echo "after" >&3
    until_shown "80 vm after" cat /tmp/client
    until_shown "81 vm after" cat /tmp/client
    exec 3>&-
    wait "$client"
    at "$master" "$master_adm" --stop-daemon master
    at "$backup" "$backup_adm" --stop-daemon backup
    cat /tmp/client
}

round k x ipvsadm xvsadm

say "messages of nobody, many of them damaged: both backups take the same connections"
rows_at() { at "$1" "$2" -Lnc | awk '$4 ~ /:[1-9]...$/ {print $1, $3, $4, $5, $6}' | sort; }
for seed in 1 2 3; do
    at k ipvsadm --start-daemon backup --mcast-interface lan --syncid 7
    at x xvsadm --start-daemon backup --mcast-interface lan --syncid 7
    sleep 1
    at cl python3 /vm-bin/peer.py announce 10.1.0.10 224.0.0.81 400 "$seed"
    sleep 2
    rows_at k ipvsadm >/tmp/rows.k
    rows_at x xvsadm >/tmp/rows.x
    at k ipvsadm --stop-daemon backup
    at x xvsadm --stop-daemon backup
    diff /tmp/rows.k /tmp/rows.x || fail "seed $seed: the backups differ (< the kernel's)"
    # Of some 800 announced ones; those that follow damage are left out.
    rows=$(wc -l </tmp/rows.x)
    echo "seed $seed: $rows connections"
    ((rows > 200)) || fail "only $rows connections were taken"
done

say "with a key"
printf '5e%.0s' {1..32} >/tmp/xvs.key
chmod 600 /tmp/xvs.key
echo 'sync_key_file = "/tmp/xvs.key"' >>/tmp/xvs.toml
at x xvs reload
until_shown "up .* configuration" at x xvs status
at k ipvsadm --start-daemon master --mcast-interface lan --syncid 7
at x xvsadm --start-daemon backup --mcast-interface lan --syncid 7
addresses_to k
rm -f /tmp/lines /tmp/client
mkfifo /tmp/lines
at cl python3 /vm-bin/peer.py client /tmp/lines 10.1.0.100 80 >/tmp/client 2>&1 &
exec 3>/tmp/lines
for word in one two three; do echo "$word" >&3; done
until_shown "from 10.1.0.1 was refused in the last minute: it is not signed" status_of_x
until_shown "the connection table of 10.1.0.1 was not fetched: it refuses the connection" cat /tmp/xvsd.log
exec 3>&-
wait $!
at k ipvsadm --stop-daemon master
at x xvsadm --stop-daemon backup
round x k xvsadm ipvsadm
say "both ways"
