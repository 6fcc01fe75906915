# Hosts with a card each, for tests whose machine has cards: cl 198.51.100.10 on dr's `wan`, rs1 192.0.2.11 on dr's `lan`.
# Two cables; the first card of each is dr's.

# Moves the card with this number to a host, with a name.
give() {
    local number=$1 host=$2 name=$3 path
    for path in /sys/class/net/*; do
        if [[ $(cat "$path/address") == 02:00:00:00:00:0$number ]]; then
            ip link set "${path##*/}" name "$name" netns "$host"
            at "$host" ip link set "$name" up
            return
        fi
    done
    fail "no card $number"
}

make_hosts() {
    local host
    modprobe -a igb vmxnet3 e1000e virtio_net tun ipip
    for host in cl dr rs1; do
        ip netns add $host
        at $host ip link set lo up
        at $host sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
    done
    give 0 dr wan
    give 1 cl wan
    give 2 dr lan
    give 3 rs1 lan
    at cl ip address add 198.51.100.10/24 dev wan
    at dr ip address add 198.51.100.1/24 dev wan
    at dr ip address add 192.0.2.1/24 dev lan
    at dr sysctl -qw net.ipv4.ip_forward=1
    at rs1 ip address add 192.0.2.11/24 dev lan
    at rs1 ip route add default via 192.0.2.1
}

# A link that has just come up may take seconds.
until_linked() {
    until_shown " 0% packet loss" at cl ping -q -c 1 -W 1 198.51.100.1
    until_shown " 0% packet loss" at rs1 ping -q -c 1 -W 1 192.0.2.1
}

driver() { at dr ethtool -i wan | awk '$1 == "driver:" { print $2 }'; }

# A command of qemu's monitor.
monitor() { echo "$*" >"$(echo /dev/vport*p1)"; }

# Starts xvsd with the configuration in `file`; as a successor; again after a kill. Each ends when xvsd forwards.
start() {
    at dr xvsd --config "$file" >>/tmp/xvsd.log 2>&1 &
    until_shown "up .* configuration" at dr xvs status
}
take_over() { at dr xvsd --take-over --config "$file" >>/tmp/xvsd.log 2>&1; }
kill_and_start() {
    at dr pkill -KILL -x xvsd
    start
}
