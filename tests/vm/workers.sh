#!/usr/bin/env bash
# Eight workers on eight CPUs, each with a queue of both cards, or with two of virtio_net's sixteen; there also sixteen
# workers, two on each CPU: RSS gives packets to all; replies by NAT and fragments of one datagram arrive at other
# workers than the rest; connections live through a take-over and a kill; `xvs drain` ends; then the counters of each
# worker balance, and none has stood still.
#
# Hosts as in cards.bash; the VIP is 198.51.100.100. rs1 has a second address, 192.0.2.12. Emulated CPUs are slow, and
# these are more than the host may have: VM_SECONDS=3000 for a host with two.
#
# cpus 8
# cards igb/virtio-net-pci igb/virtio-net-pci
# cards virtio-net-pci,mq=on,rss=on,vectors=34/virtio-net-pci virtio-net-pci,mq=on,rss=on,vectors=34/virtio-net-pci
# kernel newest
set -euo pipefail

test=workers
vip=198.51.100.100
file=/tmp/xvs.toml
clients=(198.51.100.2{0..7})

show_state() {
    cat /tmp/xvsd.log
    at dr xvs status
    at dr xvs counters
    at dr xvsadm -Ln --stats
    at dr ip -s link
    cat /tmp/client /tmp/healthy
}
# shellcheck source=tests/vm/common.bash
source /vm-bin/common.bash
# shellcheck source=tests/vm/cards.bash
source /vm-bin/cards.bash

healthy() { at dr xvs healthy --timeout 60 >/tmp/healthy 2>&1 || fail "a worker stands still"; }

# The packets that each worker has received, by its number.
received() { at dr xvs status | tr -s '\n ' ' ' | grep -oE 'received [0-9]+, sent' | grep -oE '[0-9]+'; }

workers_with_packets() { received | grep -c "[1-9]"; }

# How many workers have received 20 packets more than these.
busy_since() {
    local before=("$@") now number busy=0
    read -ra now <<<"$(received | xargs)"
    for number in "${!now[@]}"; do
        if ((now[number] >= before[number] + 20)); then busy=$((busy + 1)); fi
    done
    echo $busy
}

# A counter of all workers.
counter() { at dr xvs counters | awk -v name="$1" '$1 == name { print $2 }' | grep . || echo 0; }

# One connection with 20 words, so that 20 packets of it arrive from either side. Shows how many workers had them.
workers_of_connection() {
    local before
    read -ra before <<<"$(received | xargs)"
    seq 20 | at cl timeout 60 python3 /vm-bin/peer.py client /proc/self/fd/0 $vip 80 >/tmp/client
    [[ $(tail -1 /tmp/client) == "80 20" ]] || fail "a connection is not answered"
    busy_since "${before[@]}"
}

# Datagrams of which this host sends the second fragments. Shows how many frames the director has consumed for them.
consumed_by_fragments() {
    local before
    before=$(counter consumed)
    at "$1" python3 /vm-bin/peer.py fragment 1 $vip 80 "${clients[@]}" >/dev/null
    at cl python3 /vm-bin/peer.py fragment 0 $vip 80 "${clients[@]}" >/tmp/client
    [[ $(cat /tmp/client) == "${#clients[@]}" ]] || fail "datagrams in fragments do not come back"
    echo $(($(counter consumed) - before))
}

# For each worker, the frames that are not accounted for.
balances() {
    at dr python3 - <<'PYTHON'
import collections
import re
import socket

numbers = collections.defaultdict(int)
exporter = socket.create_connection(("127.0.0.1", 9112))
exporter.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
for line in exporter.makefile():
    found = re.match(r'xvs_worker_(\w+?)_packets(?:_total)?\{.*worker="(\d+)".*\} (\d+)$', line)
    if found:
        name, worker, value = found[1], int(found[2]), int(found[3])
        if name in ("received", "originated"):
            numbers[worker] += value
        elif name in ("transmitted", "passed", "consumed", "dropped", "held"):
            numbers[worker] -= value
print(*(numbers[worker] for worker in sorted(numbers)))
PYTHON
}

# The main job with this number of workers.
serve() {
    local workers=$1 queues=$1 event others=0 together apart number
    # To eight the driver would add eight for the program, one for each CPU.
    if [[ $(driver) == virtio_net ]]; then queues=16; fi
    cat >$file <<TOML
workers = $workers
conn_table_size = 4096
hold = "1min"
offload = "off"
metrics_address = "127.0.0.1:9112"
[interfaces.wan]
queues = $queues
[interfaces.lan]
queues = $queues
TOML
    : >/tmp/xvsd.log
    start
    for protocol in t u; do
        at dr xvsadm -A "-$protocol" $vip:80 -s rr
        at dr xvsadm -a "-$protocol" $vip:80 -r 192.0.2.11:80 -m
    done
    until_linked
    say "$(uname -r), $(driver), $(nproc) CPUs: $(at dr xvs status | grep -c '^worker') workers"
    at dr xvs status | grep -E '^(worker|interface)'

    rm -f /tmp/end
    timeout 600 ip netns exec cl python3 /vm-bin/peer.py steady $vip 80 64 /tmp/end >/tmp/client 2>&1 &
    until_shown begun cat /tmp/client
    sleep 5
    for event in healthy take_over healthy kill_and_start healthy; do
        "$event" || fail "$event ends with $?"
        say "$event: received by each worker: $(received | xargs)"
        sleep 5
    done
    # After the pause, clients wait for as long again until they send the next segment.
    until_shown "^$workers\$" workers_with_packets
    touch /tmp/end
    until_shown "connections lost" cat /tmp/client
    say "take-over and kill: $(tail -1 /tmp/client)"
    grep -q "^0 of 64 connections" /tmp/client || fail "connections are lost"

    # The tables of the cards' hashes are equal, as are their keys. With this one, the fragments of a datagram have
    # other queues on the one card than on the other. Not before: virtio_net forgets it whenever a program comes, and
    # the host then gives a reply to the queue from which its request was sent.
    at dr ethtool -X lan start 1 equal $((queues - 1)) || say "the table of the hash cannot be changed"
    for _ in {1..8}; do
        number=$(workers_of_connection)
        if ((number == 2)); then others=$((others + 1)); fi
    done
    say "replies arrive at another worker than requests: of $others connections in 8"
    ((others > 0)) || fail "all replies arrive at the worker of their requests"

    together=$(consumed_by_fragments cl)
    apart=$(consumed_by_fragments rs1)
    say "${#clients[@]} datagrams in fragments: $together frames consumed; over two cards: $apart"
    ((apart > together)) || fail "no fragment was handed to another worker"

    at dr xvsadm -a -t $vip:80 -r 192.0.2.12:80 -m
    rm -f /tmp/end
    timeout 600 ip netns exec cl python3 /vm-bin/peer.py steady $vip 80 20 /tmp/end >/tmp/client 2>&1 &
    until_shown begun cat /tmp/client
    (
        sleep 10
        touch /tmp/end
    ) &
    at dr xvs drain -t $vip:80 -r 192.0.2.11:80 --active --for 5m || fail "xvs drain does not end"
    number=$(workers_of_connection)
    ((number > 0)) || fail "the other real server does not answer"
    at dr xvsadm -Ln --stats

    healthy
    sleep 3
    balances >/tmp/client
    [[ $(xargs -n 1 </tmp/client | grep -cx 0) == "$workers" ]] || fail "counters do not balance"
    say "the counters of $workers workers balance: $(cat /tmp/client)"
    at dr xvs counters
    if grep -E "WARN|ERROR" /tmp/xvsd.log; then say "these are the warnings"; fi
    at dr xvs stop --release >/dev/null
    sleep 2
}

make_hosts
for client in "${clients[@]}"; do at cl ip address add "$client/24" dev wan; done
at rs1 ip address add 192.0.2.12/24 dev lan
at dr ip address add $vip/32 dev wan
until_linked
at rs1 python3 /vm-bin/peer.py echo 80 &
serve 8
if [[ $(driver) == virtio_net ]]; then serve 16; fi
say "all"
