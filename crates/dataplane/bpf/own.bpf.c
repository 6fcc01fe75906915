// SPDX-License-Identifier: MIT OR Apache-2.0
/* Packets that this machine itself sends: those of connections of services go to the director instead of the wire.
 *
 * Attached to the egress of interfaces. A real server on this machine replies from an endpoint that clients do not
 * know, so its packets go through the interface's TAP to a worker, which translates them or sends them on as they are.
 * So do packets of clients on this machine to services, which would reach its own stack by `lo`. When the TAP is gone,
 * because xvsd has ended, or while xvsd hangs for longer than the hold, they leave as if there were no program. Cost of
 * a packet that is not redirected: one look-up, on `lo` two.
 */
#include "hold.h"
#include "maps.h"
#include "shared.h"

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* The index of the interface's TAP. Set before the program is loaded. */
const volatile __u32 tap_index = 0;

/* The ends of a packet. */
struct packet {
	struct xvs_endpoint source;
	struct xvs_endpoint dest;
	/* Not the whole packet: it may have no ports. */
	__u8 fragment;
};

/* Reads the IP packet at this offset; 0 if it has no ends that a service may have. This machine sends no extension
 * header but the fragment header. Returns the offset of the transport header.
 */
static __noinline __u32 read(struct __sk_buff *skb, struct packet *packet, __u32 offset)
{
	struct {
		__u8 next, reserved;
		__be16 offset_and_flags;
	} extension;
	struct ipv6hdr ip6;
	struct iphdr ip;
	__be16 ports[2];

	if (!packet || bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) < 0)
		return 0;
	if (ip.version == 4) {
		__builtin_memcpy(packet->source.addr, &ip.saddr, 4);
		__builtin_memcpy(packet->dest.addr, &ip.daddr, 4);
		packet->source.family = packet->dest.family = XVS_V4;
		packet->source.protocol = ip.protocol;
		packet->fragment = (ip.frag_off & bpf_htons(IP4_OFFSET_AND_MORE)) != 0;
		offset += ip.ihl * 4;
	} else {
		if (bpf_skb_load_bytes(skb, offset, &ip6, sizeof(ip6)) < 0)
			return 0;
		__builtin_memcpy(packet->source.addr, &ip6.saddr, 16);
		__builtin_memcpy(packet->dest.addr, &ip6.daddr, 16);
		packet->source.family = packet->dest.family = XVS_V6;
		packet->source.protocol = ip6.nexthdr;
		offset += sizeof(ip6);
		if (ip6.nexthdr == IPPROTO_FRAGMENT) {
			if (bpf_skb_load_bytes(skb, offset, &extension, sizeof(extension)) < 0)
				return 0;
			packet->source.protocol = extension.next;
			packet->fragment = (extension.offset_and_flags & bpf_htons(IP6_OFFSET_AND_MORE)) != 0;
			offset += 8;
		}
	}
	packet->dest.protocol = packet->source.protocol;
	switch (packet->source.protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		if (packet->fragment)
			return offset;
		if (bpf_skb_load_bytes(skb, offset, ports, sizeof(ports)) < 0)
			return 0;
		packet->source.port = ports[0];
		packet->dest.port = ports[1];
		return offset;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return packet->fragment ? 0 : offset;
	}
	return 0;
}

/* Whether this is a real server behind NAT on this machine; for a fragment only the address is compared. A virtual
 * endpoint does not count: its clients know it.
 */
static __always_inline int is_server(const struct xvs_endpoint *at, __u8 fragment)
{
	__u32 both = XVS_LOCAL | XVS_DESTINATION;
	if ((address_roles(at->addr, at->family) & both) != both)
		return 0;
	if (fragment)
		return 1;
	__u32 *roles = bpf_map_lookup_elem(&endpoints, at);
	return roles && (*roles & (XVS_SERVICE | XVS_DESTINATION)) == XVS_DESTINATION;
}

/* Gives a packet to the worker that reads the TAP. The kernel completes its checksum and divides it if it is longer
 * than the peer receives. Without the TAP, or while xvsd hangs for longer than the hold, the packet goes on.
 */
static __always_inline int to_director(struct __sk_buff *skb)
{
	__u32 mark = skb->mark, first = 0;
	if (is_over(bpf_map_lookup_elem(&hold, &first)))
		return TC_ACT_UNSPEC;
	skb->mark = XVS_OWN_MARK;
	if (bpf_clone_redirect(skb, tap_index, 0) >= 0)
		return TC_ACT_STOLEN;
	skb->mark = mark;
	return TC_ACT_UNSPEC;
}

/* On the egress of an attached interface: a packet from a real server on this machine, or an ICMP error about a packet
 * to one.
 */
SEC("tc")
int from_server(struct __sk_buff *skb)
{
	struct packet packet = {}, quoted = {};

	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return TC_ACT_UNSPEC;
	__u32 offset = read(skb, &packet, ETH_HLEN);
	if (!offset)
		return TC_ACT_UNSPEC;
	if (packet.source.protocol == IPPROTO_ICMP || packet.source.protocol == IPPROTO_ICMPV6) {
		/* An error quotes a packet behind its 8 bytes; other messages quote no packet with ports. */
		if (!(address_roles(packet.source.addr, packet.source.family) & XVS_LOCAL) || !read(skb, &quoted, offset + 8))
			return TC_ACT_UNSPEC;
		return is_server(&quoted.dest, quoted.fragment) ? to_director(skb) : TC_ACT_UNSPEC;
	}
	return is_server(&packet.source, packet.fragment) ? to_director(skb) : TC_ACT_UNSPEC;
}

static __always_inline int is_loopback(const struct xvs_endpoint *at)
{
	const __u32 *words = (const __u32 *)at->addr;
	if (at->family == XVS_V4)
		return at->addr[0] == 127;
	return !words[0] && !words[1] && !words[2] && words[3] == bpf_htonl(1);
}

/* On the egress of `lo`: a packet from a client on this machine to a service, or from a server on this machine to such
 * a client. Replies of other servers are steered by the client's endpoint.
 */
SEC("tc")
int from_client(struct __sk_buff *skb)
{
	struct packet packet = {};
	__u32 one = 1;

	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return TC_ACT_UNSPEC;
	if (!read(skb, &packet, ETH_HLEN) || packet.fragment)
		return TC_ACT_UNSPEC;
	__u32 *roles = bpf_map_lookup_elem(&endpoints, &packet.dest);
	if (roles && *roles & XVS_CLIENTS && !is_loopback(&packet.source)) {
		if (!bpf_map_lookup_elem(&clients, &packet.source))
			bpf_map_update_elem(&clients, &packet.source, &one, BPF_ANY);
		return to_director(skb);
	}
	if (bpf_map_lookup_elem(&clients, &packet.dest) && is_server(&packet.source, 0))
		return to_director(skb);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual MIT/GPL";
