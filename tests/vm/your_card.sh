#!/usr/bin/env bash
# docs/your-card.md as its reader has it: the commands of the page in the package, line by line, on a machine with two cards
# of one kind and the package alone. Then the file has no address, and the modes that the page names.
#
# The functions of an igb reach into the slot after the next one, sixteen slots on.
#
# systemd
# cards igb,addr=0x8/igb,addr=0xb
# cards virtio-net-pci/virtio-net-pci
# cards vmxnet3/vmxnet3
# kernel backports
# kernel newest
set -euo pipefail

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export DEBIAN_FRONTEND=noninteractive
test=your_card
show_state() {
    ip -s link
    cat /tmp/card/card.json
}
# shellcheck source=tests/vm/common.bash
source /vm-bin/common.bash

modprobe -a igb vmxnet3 virtio_net
dpkg --purge xvs >/dev/null 2>&1 || true
rm -rf /tmp/card
mkdir /tmp/card
cd /tmp/card
for number in 0 1; do
    for path in /sys/class/net/*; do
        if [[ $(cat "$path/address") == 02:00:00:00:00:0$number ]]; then
            ip link set "${path##*/}" down
            ip link set "${path##*/}" name "eth$number"
        fi
    done
done
cp "$(printf '%s\n' /vm-bin/xvs_*.deb | sed -n 1p)" .
driver=$(ethtool -i eth0 | awk '$1 == "driver:" { print $2 }')
say "$driver, $(uname -r)"

# The page is in the package whose installation it describes.
dpkg-deb --fsys-tarfile ./xvs_*.deb | tar --extract --to-stdout --wildcards '*/doc/xvs/docs/your-card.md' >page
sed -n '/^```sh$/,/^```$/{/^```/!p}' page >commands
[[ $(wc -l <commands) == 4 ]] || fail "the page has other commands than four"
while read -r line; do
    result=0
    say "$line"
    # A mode that the card has not is a warning.
    bash -c "$line" </dev/null || result=$?
    [[ $result == 0 || $line == "xvs doctor "* && $result == 1 ]] || fail "it ends with $result"
done <commands

taken=$(grep -c '"pause_ms"' card.json)
case $driver-$(uname -r) in
    # Copy, zero-copy, and that with busy polling.
    igb-7.*) expected=3 ;;
    *) expected=1 ;;
esac
[[ $taken == "$expected" ]] || fail "frames arrive in $taken modes, and not in $expected"
grep -q '"received_per_second": 0,' card.json && fail "a mode receives nothing"
grep -qiE '02:00:00|([0-9]{1,3}\.){3}[0-9]{1,3}"|::1' card.json && fail "the file has an address"
grep -qF "\"$(hostname)\"" card.json && fail "the file has the host's name"
for name in eth0 eth1; do
    [[ $(ip -o link show "$name") != *xdp* ]] || fail "a program is left on $name"
    until_shown "state UP" ip link show "$name"
done
say "all"
