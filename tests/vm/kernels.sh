#!/usr/bin/env bash
# What works on a kernel, as a row: a file by NAT and by direct routing, connections that the XDP program forwards, a
# connection that goes on over a kill, a start and a take-over, and synchronization with the kernel's IPVS (by sync.sh).
# Then what `xvs doctor` and `xvs status` say that the kernel lacks. On a kernel that xvsd needs a newer one for, it must
# refuse to start with that sentence.
#
# The cluster of cluster.bash; cl is also on VLAN 20, 192.0.2.254, for replies by direct routing.
# kernel bullseye
# kernel own
# kernel arm64
# kernel backports
# kernel newest
set -euo pipefail

test=kernels
# shellcheck source=tests/vm/cluster.bash
source /vm-bin/cluster.bash

# As that of cluster.bash, with state that outlives it.
start_director() {
    cat >/tmp/xvs.toml <<TOML
interfaces = ["wan", "lan"]
workers = 1
conn_table_size = 4096
hold = "1min"
TOML
    at dr xvsd --config /tmp/xvs.toml >>/tmp/xvsd.log 2>&1 &
    until_shown "up .* configuration" at dr xvs status
}

# A file comes back whole from a port.
fetch() {
    timeout 100 ip netns exec cl python3 /vm-bin/peer.py send /tmp/file $vip "$1" >/tmp/client 2>&1 || true
    [[ $(cat /tmp/client) == "198.51.100.10 whole" ]] || fail "a file did not come back whole from port $1"
}

offloaded() { at dr xvs counters | awk '$1 == "offloaded" { count = $2 } END { print count + 0 }'; }
offloads() {
    local before
    at dr xvs status | grep "not by" || true
    before=$(offloaded)
    fetch 90
    # Its worker counts them once a second.
    sleep 2
    (($(offloaded) - before > 1000)) || fail "of a file only $(($(offloaded) - before)) packets were offloaded"
}

goes_on() {
    local word
    rm -f /tmp/lines
    mkfifo /tmp/lines
    at cl python3 /vm-bin/peer.py client /tmp/lines $vip 80 >/tmp/client 2>&1 &
    exec 3>/tmp/lines
    for word in begun killed taken; do
        case $word in
        killed)
            at dr pkill -KILL -x xvsd
            start_director
            ;;
        taken) at dr xvsd --take-over --config /tmp/xvs.toml >>/tmp/xvsd.log 2>&1 || fail "no take-over" ;;
        esac
        echo $word >&3
        until_shown "^80 rs[12] $word$" cat /tmp/client
    done
    exec 3>&-
}

# Runs a part, and adds to the row whether it works.
row="| $(uname -r) |"
failed=
part() {
    if ("$@") >/tmp/part 2>&1; then
        row+=" yes |"
    else
        row+=" no |"
        failed+=" ${*}"
        cat /tmp/part
    fi
}

modprobe -a ip_vs tun
make_hosts
plug dr wan "10 pvid untagged"
plug dr lan "20 pvid untagged"
plug cl back "20 pvid untagged"
at cl ip address add 192.0.2.254/24 dev back
# A veth takes what an XDP program forwards if the other end has GRO.
for port in dr-wan dr-lan; do at sw ethtool -K $port gro on; done
make_servers wan lan
for end in "cl wan" "cl back" "dr wan" "dr lan" "rs1 lan" "rs2 lan"; do
    at "${end% *}" ethtool -K "${end#* }" rx off tx off >/dev/null
done
head -c 3000000 /dev/urandom >/tmp/file
for port in 90 91; do at rs1 python3 /vm-bin/peer.py mirror $port & done

echo "== doctor before the start"
at dr xvs doctor --interface wan --interface lan >/tmp/doctor 2>&1 || true
grep -E -A 1 "^(warn|fail)" /tmp/doctor || true
if grep -q "^fail *kernel" /tmp/doctor; then
    cat >/tmp/xvs.toml <<TOML
interfaces = ["wan", "lan"]
TOML
    status=0
    timeout 60 ip netns exec dr xvsd --config /tmp/xvs.toml >/tmp/xvsd.log 2>&1 || status=$?
    cat /tmp/xvsd.log
    ((status != 0 && status != 124)) || fail "xvsd starts on a kernel that it cannot use"
    grep "^xvsd: " /tmp/xvsd.log | grep -q "boot .* or later" || fail "xvsd does not say which kernel it needs"
    echo "ROW $row refused, exit code $status |"
    exit 0
fi

start_director
for server in rs1 rs2; do at $server xvs realserver up --vip $vip --dev lan >/dev/null; done
add_service -t 80 -m
at dr xvsadm -A -t $vip:90 -s rr
at dr xvsadm -a -t $vip:90 -r 192.0.2.11:90 -m
at dr xvsadm -A -t $vip:91 -s rr
at dr xvsadm -a -t $vip:91 -r 192.0.2.11:91 -g
part fetch 90
part fetch 91
part offloads
part goes_on
echo "== status"
at dr xvs status
echo "== doctor"
at dr xvs doctor >/tmp/doctor 2>&1 || true
grep -E -A 1 "^(warn|fail)" /tmp/doctor || true
end_cluster
part bash /vm-bin/sync.sh
echo "ROW kernel, NAT, direct routing, offload, kill and take-over, synchronization with IPVS"
echo "ROW $row"
[[ -z $failed ]] || fail "does not work:$failed"
