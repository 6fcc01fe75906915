#!/usr/bin/env bash
# systemd
# former 2cad166
# From the package of a former version to this one and back, by dpkg under systemd, while connections are busy: by a
# take-over, interrupted between unpacking and configuring, with a kill between, to a package of another architecture,
# onto a full disk, with a full state directory, and beside a table of another layout. No connection, rule or local edit
# may be lost; what is refused must say why.
#
# The machine itself is the director: `wan` 198.51.100.1, with the VIP 198.51.100.100, and `lan` 192.0.2.1. Namespaces: cl
# 198.51.100.10, rs1 192.0.2.11 with the VIP on `lo`; replies by direct routing go from rs1 to cl over `back`.
set -euo pipefail

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export DEBIAN_FRONTEND=noninteractive
test=upgrade
vip=198.51.100.100
state=/dev/shm/xvs/run-xvs-xvsd.sock
show_state() {
    journalctl --no-pager -u xvsd | tail -60
    cat /run/dpkg /run/client /run/steady /run/download || true
    xvs status
    xvsadm -Lnc
}
# shellcheck source=tests/vm/common.bash
source /vm-bin/common.bash
former=(/vm-bin/xvs_0.2.*.deb)
new=(/vm-bin/xvs_0.3.*.deb)
[[ -f ${former[0]} && -f ${new[0]} ]] || fail "two packages are needed: ${former[*]} ${new[*]}"

# What an earlier run may have left.
umount /usr/share/doc/xvs 2>/dev/null || true
dpkg --purge xvs >/dev/null 2>&1 || true
rm -rf /etc/systemd/system/xvsd.service.d
hostname vm
modprobe tun
for name in cl rs1; do ip netns add $name; done
ip link add wan type veth peer name wan netns cl
ip link add lan type veth peer name lan netns rs1
ip link add back netns cl type veth peer name back netns rs1
ip link set wan up
ip link set lan up
for name in cl rs1; do
    for link in lo wan lan back; do at $name ip link set $link up 2>/dev/null || true; done
    at $name sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
done
ip address add 198.51.100.1/24 dev wan
ip address add $vip/32 dev wan
ip address add 192.0.2.1/24 dev lan
at cl ip address add 198.51.100.10/24 dev wan
at cl ip address add 203.0.113.10/24 dev back
at rs1 ip address add 192.0.2.11/24 dev lan
at rs1 ip address add 203.0.113.11/24 dev back
at rs1 sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
at rs1 ip address add $vip/32 dev lo
at rs1 ip route add default via 192.0.2.1
at rs1 ip route add default via 203.0.113.10 table 100
at rs1 ip rule add from $vip lookup 100
for end in "cl wan" "rs1 lan"; do
    # shellcheck disable=SC2086
    at ${end% *} ethtool -K ${end#* } rx off tx off >/dev/null
done
ethtool -K wan rx off tx off >/dev/null
ethtool -K lan rx off tx off >/dev/null
at rs1 python3 /vm-bin/peer.py serve 80 81 &
at rs1 python3 /vm-bin/peer.py echo 7 &
at rs1 python3 /vm-bin/peer.py numbers 82 &

step() { say "$1 ($((SECONDS)) s)"; }
main() { systemctl show --property=MainPID --value xvsd; }
# The program that runs as xvsd, and that of a package.
running() { sha256sum <"/proc/$(main)/exe"; }
declare -A program
for package in "${former[0]}" "${new[0]}"; do
    program[$package]=$(dpkg-deb --fsys-tarfile "$package" | tar -xO ./usr/sbin/xvsd | sha256sum)
done
# The lines of the log since the last call.
since=$(date +%s)
log_since() { journalctl --no-pager -o cat -u xvsd --since "@$since"; }

# What may not change, without counts of connections.
kept() {
    xvsadm -Sn
    xvs get expire_nodest_conn
    xvsadm -Ln --timeout
    xvsadm -Ln --thresholds | awk '{ print $1, $2, $3, $4 }'
    cat /etc/xvs/xvs.toml /etc/xvs/rules
    systemctl is-enabled xvsd
    systemctl show --property=WatchdogUSec xvsd
    getent passwd xvs
    getent group xvs
}

# Over all that follows: lines by NAT and direct routing, and by NAT 50 connections, a stream of datagrams and a download.
begin_load() {
    rm -f /run/lines /run/end /run/client /run/steady /run/download
    mkfifo /run/lines
    at cl python3 /vm-bin/peer.py client /run/lines $vip 80 81 >/run/client 2>&1 &
    load=($!)
    exec 3>/run/lines
    at cl python3 /vm-bin/peer.py steady $vip 7 50 /run/end >/run/steady 2>&1 &
    load+=($!)
    at cl python3 /vm-bin/peer.py download $vip 82 /run/end >/run/download 2>&1 &
    load+=($!)
    until_shown begun cat /run/steady
    until_shown begun cat /run/download
    ask_lines begun
}
ask_lines() {
    echo "$1" >&3
    for port in 80 81; do until_shown "^$port vm $1$" cat /run/client; done
}
end_load() {
    ask_lines ended
    touch /run/end
    exec 3>&-
    wait "${load[@]}"
    grep -q "^0 of 50 connections lost" /run/steady || fail "connections are lost: $(cat /run/steady)"
    grep -q " bytes, 0 wrong" /run/download || fail "the download is not whole: $(cat /run/download)"
    echo "   $(tail -n 1 /run/steady); download: $(tail -n 1 /run/download)"
}

# Asserts that the program of this package runs, and that nothing is lost.
is_served_by() {
    [[ $(running) == "${program[$1]}" ]] || fail "xvsd is not the program of $1"
    kept >/run/kept.now
    diff /run/kept.before /run/kept.now || fail "what must stay has changed"
    xvs status >/run/status
    grep -q "^ok " /run/status || fail "status is not ok"
    [[ $(dpkg-query --show --showformat='${db:Status-Status} ${Version}' xvs) == "installed $(dpkg-deb --field "$1" Version)" ]] ||
        fail "dpkg does not have $1 installed"
    log_since | grep -E "taken over|take over|nobody forwarded|discarded|refused" | sed 's/^/   /' || true
    since=$(date +%s)
}

change_to() {
    step "$1"
    dpkg --install "$2" >/run/dpkg 2>&1 || fail "dpkg fails"
    ask_lines "${1// /_}"
    is_served_by "$2"
}

step "installed: the former version, with services, rules of a file and by commands, settings"
dpkg --install "${former[0]}" >/dev/null
cat >>/etc/xvs/xvs.toml <<TOML
# a local edit
interfaces = ["wan", "lan"]
conn_table_size = 4096
rules = "/etc/xvs/rules"
# Emulated, a step may take longer than the default.
hold = "1min"
TOML
mkdir -p /etc/systemd/system/xvsd.service.d
printf '[Service]\nWatchdogSec=3min\n' >/etc/systemd/system/xvsd.service.d/local.conf
cat >/etc/xvs/rules <<RULES
-A -t $vip:80 -s rr
-a -t $vip:80 -r 192.0.2.11:80 -m
-A -t $vip:81 -s wlc
-a -t $vip:81 -r 192.0.2.11:81 -g
-A -t $vip:82 -s sed
-a -t $vip:82 -r 192.0.2.11:82 -m
RULES
systemctl daemon-reload
systemctl enable --now --quiet xvsd
until_shown "interface  lan: up" xvs status
for protocol in t u; do
    xvsadm -A -$protocol $vip:7 -s mh
    xvsadm -a -$protocol $vip:7 -r 192.0.2.11:7 -m -w 3
done
xvsadm -A -f 5 -s wrr -p 600
xvsadm -a -f 5 -r 192.0.2.11 -g -w 2 -x 900 -y 500
xvsadm --set 901 121 301
xvs mark add --dest 198.51.100.101/32 --protocol tcp --dport 8000:8999 --set-mark 5 >/dev/null
xvs laddr add 192.0.2.1 --ports 5000-5999 >/dev/null
xvs deny 203.0.113.66 >/dev/null
xvs set expire_nodest_conn 1 >/dev/null
kept >/run/kept.before
cat /run/kept.before

begin_load
change_to "upgraded by a take-over" "${new[0]}"
change_to "back, by a take-over" "${former[0]}"

step "half installed: unpacked, not configured"
dpkg --unpack "${new[0]}" >/run/dpkg 2>&1
[[ $(running) == "${program[${former[0]}]}" ]] || fail "the former xvsd does not run on"
ask_lines unpacked
xvs status | grep -q "^ok " || fail "the new xvs does not read the status of the former xvsd"
dpkg --configure -a >>/run/dpkg 2>&1
ask_lines configured
is_served_by "${new[0]}"

step "half installed, and then killed: systemd starts the program that is there"
dpkg --unpack "${former[0]}" >/run/dpkg 2>&1
killed=$(main)
kill -KILL "$killed"
is_anew() { [[ $(main) != 0 && $(main) != "$killed" ]] && xvs status | grep -q "^ok " && echo yes; }
until_shown yes is_anew
ask_lines killed
dpkg --configure -a >>/run/dpkg 2>&1
is_served_by "${former[0]}"
dpkg --unpack "${new[0]}" >/run/dpkg 2>&1
killed=$(main)
kill -KILL "$killed"
until_shown yes is_anew
ask_lines killed_again
dpkg --configure -a >>/run/dpkg 2>&1
is_served_by "${new[0]}"

step "another architecture"
mkdir -p /run/other/DEBIAN
printf '%s\n' "Package: xvs" "Version: 0.3.1" "Architecture: arm64" "Maintainer: xvs" "Description: other" \
    >/run/other/DEBIAN/control
# It reads files that it has removed, which 9p does not allow.
TMPDIR=/run dpkg-deb --build /run/other /run/other.deb >/dev/null
! dpkg --install /run/other.deb >/run/dpkg 2>&1 || fail "dpkg installs a package of another architecture"
grep "architecture" /run/dpkg | head -n 1 | sed 's/^/   /'
is_served_by "${new[0]}"

step "a full disk"
mount -t tmpfs -o size=64k full /usr/share/doc/xvs
! dpkg --install "${former[0]}" >/run/dpkg 2>&1 || fail "the package fits a full disk"
grep "No space" /run/dpkg | head -n 1 | sed 's/^/   /' || fail "dpkg does not say why"
ask_lines full
umount /usr/share/doc/xvs
is_served_by "${new[0]}"

step "a full state directory: another version takes over only if it gets all rules"
mount -o "remount,size=$(df --output=used /dev/shm | tail -n 1 | tr -d " ")k" /dev/shm
xvsadm -A -t $vip:90 -s rr
for port in {101..160}; do xvsadm -a -t $vip:90 -r "192.0.2.11:$port" -m; done
xvs status | grep -A 3 "^warning" | sed 's/^/   /'
xvs status | grep -q "changes of the configuration run, but are lost" || fail "status does not warn of the journal"
served=$(main)
dpkg --install "${former[0]}" >/run/dpkg 2>&1
grep -q "the former one serves on" /run/dpkg || fail "dpkg does not say that there was no take-over"
log_since | grep -o "it would lose changes of the configuration.*" | head -n 1 | sed 's/^/   /' ||
    fail "the log does not say why"
[[ $(main) == "$served" ]] || fail "another xvsd runs"
(($(xvsadm -Sn | grep -c "$vip:90 ") == 61)) || fail "rules are lost"
mount -o remount,size=50% /dev/shm
systemctl reload xvsd || fail "no take-over with room"
(($(xvsadm -Sn | grep -c "$vip:90 ") == 61)) || fail "rules are lost"
xvsadm -D -t $vip:90
is_served_by "${former[0]}"
dpkg --install "${new[0]}" >/run/dpkg 2>&1
is_served_by "${new[0]}"

step "a table of another layout"
layout() { printf '%b' "\\x$1" | dd of=$state/connections bs=1 seek=8 conv=notrunc status=none; }
is_of_layout() { [[ $(od -An -tu8 -j8 -N8 $state/connections | tr -d ' ') == "$1" ]]; }
is_of_layout 7 || fail "the version of the layout is not where this test expects it"
layout 06
served=$(main)
! systemctl reload xvsd 2>/dev/null || fail "a table of another layout is taken over"
log_since | grep -o "its connection table is refused.*" | head -n 1 | sed 's/^/   /'
ask_lines refused
[[ $(main) == "$served" ]] || fail "another xvsd runs"
layout 07
end_load
layout 06
systemctl restart xvsd
until_shown "xvsd has begun with an empty connection table" xvs status
xvs status | grep -A 2 "empty connection table" | sed 's/^/   /'
is_of_layout 7 || fail "the new table has another layout"

step "purged"
dpkg --purge xvs >/dev/null 2>&1
rm -r /etc/systemd/system/xvsd.service.d
left=$(find /etc /lib/systemd /usr/sbin /usr/share /dev/shm /run /sys/fs/bpf -path '*xvs*' -print 2>/dev/null || true)
[[ -z $left ]] || fail "left: $left"
step "all"
