#!/usr/bin/env bash
# systemd
# The package on a Debian without a compiler: installed, configured, upgraded while a connection goes on, also to an xvsd
# that does not start, and purged.
#
# Namespaces on one bridge: cl 10.1.0.10, rs 10.1.0.20 (with the VIP). The machine itself is the director, lan 10.1.0.2.
set -euo pipefail

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export DEBIAN_FRONTEND=noninteractive
test=package
show_state() { journalctl --no-pager -u xvsd -u 'xvs-realserver@*'; }
# shellcheck source=tests/vm/common.bash
source /vm-bin/common.bash
packages=(/vm-bin/xvs_*.deb)
((${#packages[@]} == 2)) || fail "two versions are needed: ${packages[*]}"

# What an earlier run may have left.
dpkg --purge xvs >/dev/null 2>&1 || true
hostname vm
modprobe tun
ip netns add sw
at sw ip link add bridge type bridge
at sw ip link set bridge up
for host in cl:10 rs:20; do
    name=${host%:*}
    ip netns add "$name"
    ip link add lan netns "$name" type veth peer name "$name" netns sw
    at "$name" ip address add "10.1.0.${host#*:}/24" dev lan
done
ip link add lan type veth peer name x netns sw
ip address add 10.1.0.2/24 dev lan
ip link set lan up
ethtool -K lan rx off tx off >/dev/null
for name in cl rs x; do at sw ip link set "$name" master bridge up; done
for name in cl rs; do
    at "$name" ip link set lan up
    at "$name" ip link set lo up
    at "$name" ethtool -K lan rx off tx off >/dev/null
done
at rs sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2 net.ipv4.conf.lan.arp_ignore=1
at rs ip address add 10.1.0.100/32 dev lo
ip address add 10.1.0.100/32 dev lan
at rs python3 /vm-bin/peer.py serve 80 &

say "installed and configured"
dpkg --install "${packages[0]}" >/dev/null
getent group xvs >/dev/null || fail "there is no group xvs"
getent passwd xvs >/dev/null || fail "there is no user xvs"
[[ $(stat -c %U:%a /dev/shm/xvs) == root:700 ]] || fail "/dev/shm/xvs is not root's before xvsd starts"
! systemctl start xvsd 2>/dev/null || fail "xvsd has started without an interface"
journalctl --no-pager -u xvsd | grep -q "no interface to take packets from" || fail "xvsd does not say what is missing"
echo 'interfaces = ["lan"]' >>/etc/xvs/xvs.toml
echo 'conn_table_size = 4096' >>/etc/xvs/xvs.toml
systemctl enable --now --quiet xvsd
until_shown "interface  lan: up" xvs status
xvsadm -A -t 10.1.0.100:80 -s rr
xvsadm -a -t 10.1.0.100:80 -r 10.1.0.20:80 -g
rm -f /run/lines
mkfifo /run/lines
at cl python3 /vm-bin/peer.py client /run/lines 10.1.0.100 80 >/run/client 2>&1 &
client=$!
exec 3>/run/lines
echo before >&3
until_shown "80 vm before" cat /run/client
until_shown "ESTABLISHED 10.1.0.10" xvsadm -Lnc

say "an upgrade to an xvsd that refuses its configuration"
former=$(systemctl show --property=MainPID --value xvsd)
echo 'no_such_key = 1' >>/etc/xvs/xvs.toml
dpkg --install "${packages[1]}" >/dev/null 2>/run/refused
grep -q "the former one serves on" /run/refused || fail "dpkg does not say it: $(cat /run/refused)"
journalctl --no-pager -u xvsd | grep -q "no_such_key" || fail "the log does not name the key"
[[ $(systemctl show --property=MainPID --value xvsd) == "$former" ]] || fail "the former xvsd does not run"
echo between >&3
until_shown "80 vm between" cat /run/client
sed -i '/no_such_key/d' /etc/xvs/xvs.toml

say "upgraded"
dpkg --install "${packages[1]}" >/dev/null
systemctl --quiet is-active xvsd || fail "xvsd does not run after the upgrade"
[[ $(systemctl show --property=MainPID --value xvsd) != "$former" ]] || fail "the former xvsd still runs"
until_shown "ESTABLISHED 10.1.0.10" xvsadm -Lnc
echo after >&3
until_shown "80 vm after" cat /run/client

say "a user of its own, which takes over from root"
sed -i '1i user = "xvs"' /etc/xvs/xvs.toml
systemctl reload xvsd || fail "xvsd does not take over as a user"
main=$(systemctl show --property=MainPID --value xvsd)
[[ $(awk '/^Uid:/ { print $2 }' "/proc/$main/status") == "$(id -u xvs)" ]] || fail "xvsd is not the user xvs"
for status in /proc/"$main"/task/*/status; do
    grep -qx 'Seccomp:.2' "$status" || fail "a thread without a filter of system calls: $(cat "$status")"
    # CAP_NET_BIND_SERVICE, CAP_NET_RAW, CAP_IPC_LOCK, CAP_SYS_NICE.
    grep -qx 'CapEff:.0000000000806400' "$status" || fail "a thread with other capabilities: $(cat "$status")"
done
# Those of the unit: CAP_SYS_MODULE, _RAWIO, _BOOT, _TIME, CAP_MAC_OVERRIDE, _ADMIN.
dropped=$((1 << 16 | 1 << 17 | 1 << 22 | 1 << 25 | 1 << 32 | 1 << 33))
bounds=$(awk '/^CapBnd:/ { print $2 }' "/proc/$(pgrep -nx xvs-helper)/status")
((16#$bounds & dropped)) && fail "the helper has $bounds"
until_shown "ESTABLISHED 10.1.0.10" xvsadm -Lnc
echo user >&3
until_shown "80 vm user" cat /run/client
exec 3>&-
wait "$client"
grep -q '^interfaces = \["lan"\]' /etc/xvs/xvs.toml || fail "the upgrade has changed xvs.toml"

say "a virtual address of a real server"
printf 'VIP=10.1.0.101\nOPTIONS=--dev lan\n' >/etc/xvs/realserver/web
systemctl enable --now --quiet xvs-realserver@web
ip address show dev lo | grep -q 10.1.0.101/32 || fail "10.1.0.101 is not on lo"
systemctl stop xvs-realserver@web
! ip address show dev lo | grep -q 10.1.0.101/32 || fail "10.1.0.101 is still on lo"
systemctl start xvs-realserver@web

say "purged"
dpkg --purge xvs >/dev/null
! ip address show dev lo | grep -q 10.1.0.101/32 || fail "10.1.0.101 is still on lo"
! ip link show dev lan | grep -q xdp || fail "lan still has an XDP program"
! getent passwd xvs >/dev/null || fail "the user xvs is still there"
! getent group xvs >/dev/null || fail "the group xvs is still there"
! pgrep xvsd >/dev/null || fail "xvsd still runs"
left=$(find /etc /lib/systemd /usr/sbin /usr/share /dev/shm /run /sys/fs/bpf -path '*xvs*' -print 2>/dev/null || true)
[[ -z $left ]] || fail "left: $left"
say "nothing is left"
