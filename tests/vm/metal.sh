#!/usr/bin/env bash
# The main job on the code of real network drivers, in the mode of `auto`, in zero-copy mode, and there with busy polling:
# files by NAT, direct routing, FULLNAT and a tunnel come back whole; packets of every size to the director itself are
# answered beside it; status is content. At the end the report of the card, with the client's card as the source.
#
# cl 198.51.100.10, dr 198.51.100.1 with 192.0.2.1 and the VIP 198.51.100.100, rs1 192.0.2.11. Two cables: cl's to dr's
# `wan`, rs1's to dr's `lan`. The first card of a cable is dr's. Prints what was seen of the driver.
#
# cards igb/virtio-net-pci igb/virtio-net-pci
# cards virtio-net-pci/virtio-net-pci virtio-net-pci/virtio-net-pci
# cards virtio-net-pci,iommu_platform=on,disable-legacy=on/virtio-net-pci virtio-net-pci,iommu_platform=on,disable-legacy=on/virtio-net-pci
# cards igb/virtio-net-pci virtio-net-pci/virtio-net-pci
# cards vmxnet3/virtio-net-pci vmxnet3/virtio-net-pci
# cards e1000e/virtio-net-pci e1000e/virtio-net-pci
# kernel newest
# kernel backports
set -euo pipefail

test=metal
vip=198.51.100.100

show_state() {
    cat /tmp/xvsd.log
    at dr xvs status
    at dr xvs counters
    at dr xvsadm -Ln --stats
    at dr ip -s -s link
    cat /tmp/client
}
# shellcheck source=tests/vm/common.bash
source /vm-bin/common.bash
# shellcheck source=tests/vm/cards.bash
source /vm-bin/cards.bash

# A file of this many bytes comes back whole from a port. `$2`: the address that the real server sees.
comes_back() {
    head -c 3000000 /dev/urandom >/tmp/file
    timeout 100 ip netns exec cl python3 /vm-bin/peer.py send /tmp/file "$1" "$2" >/tmp/client 2>&1 || true
    [[ $(cat /tmp/client) == "$3 whole" ]] || fail "a file did not come back whole from $1, port $2"
}

make_hosts
# The replies of direct routing pass dr's kernel as those of any host, so the address is none of its own.
at cl ip neighbour replace $vip lladdr 02:00:00:00:00:00 nud permanent dev wan
at rs1 ip address add $vip/32 dev lo
at rs1 sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
at rs1 ip link set tunl0 up
for port in 80 81 82 83; do at rs1 python3 /vm-bin/peer.py mirror $port & done
at dr python3 /vm-bin/peer.py mirror 22 &
until_linked

# Writes an xvs.toml with this mode and this way to wait.
configure() {
    cat >/tmp/xvs.toml <<TOML
workers = 1
conn_table_size = 4096
state_directory = ""
poll = "$2"
[interfaces.wan]
mode = "$1"
[interfaces.lan]
mode = "$1"
TOML
}

ports=([80]=-m [81]=-g [82]=--fullnat [83]=-i)
# The main job in this mode and this way to wait.
serve() {
    local port client size
    configure "$1" "$2"
    at dr xvsd --config /tmp/xvs.toml >/tmp/xvsd.log 2>&1 &
    until_shown "up .* configuration" at dr xvs status
    at dr xvs laddr add 192.0.2.1 >/dev/null
    for port in "${!ports[@]}"; do
        at dr xvsadm -A -t "$vip:$port" -s rr
        at dr xvsadm -a -t "$vip:$port" -r "192.0.2.11:$port" "${ports[port]}"
    done
    until_linked
    for size in $(seq 0 64 1472) 1000 1001 1471 1472; do
        at cl ping -q -c 1 -W 2 -M do -s "$size" 198.51.100.1 >/tmp/client || fail "a ping of $size bytes is lost"
    done
    say "$(uname -r), $driver, $1, $2: packets of all sizes to the director are answered"
    for port in "${!ports[@]}"; do
        client=198.51.100.10
        if [[ ${ports[port]} == --fullnat ]]; then client=192.0.2.1; fi
        comes_back $vip "$port" $client
        say "${ports[port]}: a file comes back whole"
    done
    comes_back 198.51.100.1 22 198.51.100.10
    say "the director itself: a file comes back whole"
    sleep 2
    at dr xvs status >/tmp/client
    at dr xvs counters | grep -v " 0$" || true
    cat /tmp/client
    grep -q "^ok " /tmp/client || [[ $driver == e1000e ]] || [[ $1 == zero-copy ]] || fail "status is not content"
    at dr xvs stop --release >/dev/null
    wait %%
    sleep 2
}

driver=$(driver)
if [[ $driver == e1000e ]]; then
    # Without native XDP.
    configure auto sleep
    at dr xvsd --config /tmp/xvs.toml >/tmp/xvsd.log 2>&1 && fail "it starts though GRO merges packets"
    grep -q "ethtool -K lan gro off" /tmp/xvsd.log || fail "the refusal names no command"
    for name in wan lan; do at dr ethtool -K $name gro off rxvlan off; done
fi
serve auto sleep
serve zero-copy sleep
# Generic mode is refused where GRO is on.
taken=1
if grep -q " zero-copy;" /tmp/client; then
    serve zero-copy busy
    taken=3
elif [[ "$driver $(uname -r)" == "igb 7."* ]]; then
    taken=3
fi

ip -n cl link set wan name source netns dr
at dr ip link set source up
for name in wan source; do until_shown "state UP" at dr ip link show $name; done
result=0
at dr xvs doctor --report /tmp/report.json --interface wan --source source || result=$?
((result < 2)) || fail "a mode loses frames"
grep -q '"received_per_second": 0,' /tmp/report.json && fail "a mode receives nothing"
[[ $(grep -c '"pause_ms"' /tmp/report.json) == "$taken" ]] || fail "other modes than $taken have frames"
say "all"
