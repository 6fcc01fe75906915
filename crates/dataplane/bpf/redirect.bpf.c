// SPDX-License-Identifier: MIT OR Apache-2.0
/* Steering: frames for the director go to the AF_XDP socket of their queue, all others to the kernel.
 *
 * Runs for each frame, before the kernel processes it. It edits nothing but the marker of reinjected frames. A frame
 * that it cannot parse goes to the kernel. It may steer too many frames, which the pipeline passes back, but never too
 * few. Cost of a frame that is to no service and of no real server: a few bits of `filter`; with networks in
 * `prefixes` or an equal hash at most five look-ups. Not here: decisions on steered frames, with these exceptions.
 * Access lists (lists.h), the limit of a service's SYNs (syn_limits.h), and the hold while no xvsd takes frames
 * (hold.h) may drop a frame. A record in which a worker has decided on the flow may forward it (offload.h).
 */
#include "maps.h"

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "shared.h"

/* ISAKMP (RFC 2408 2.5.1): AH and ESP belong to the service that negotiated them. */
#define PORT_ISAKMP 500

/* The most VLAN tags that are skipped, as in proto/src/ethernet.rs. */
#define MAX_TAGS 2
/* The most extension headers that are skipped before the transport or fragment header, as in proto/src/ipv6.rs. */
#define MAX_EXTENSIONS 6
/* All offsets behind two IP headers, each with the most extensions of at most 2 KiB. The verifier needs a limit. */
#define OFFSETS 0x7fff

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xvs_filter);
} filter SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, XVS_MAX_PREFIXES);
	__type(key, struct xvs_prefix);
	__type(value, __u32);
} prefixes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, XVS_MAX_TRANSLATED);
	__type(key, struct xvs_address);
	__type(value, __u32);
} translated SEC(".maps");

/* Each interface has its own; all interfaces share the other maps. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, XVS_MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

/* The fields of a packet that steering needs. */
struct packet {
	__u8 source[16] __attribute__((aligned(4)));
	__u8 dest[16] __attribute__((aligned(4)));
	__be16 source_port;
	__be16 dest_port;
	__u8 family;
	__u8 protocol;
	/* Not the whole packet: the bytes that follow may not be a transport header. */
	__u8 fragment;
};

/* The first four bytes of TCP, UDP and SCTP headers are the ports. */
struct ports {
	__be16 source;
	__be16 dest;
};

struct extension {
	__u8 next;
	__u8 len;
	__be16 offset_and_flags; /* of a fragment header */
};

#define IP4_OFFSET_AND_MORE 0x3fff
#define IP4_DONT_FRAGMENT 0x4000
#define IP6_OFFSET_AND_MORE 0xfff9

/* `len` bytes of the frame at this offset; NULL if the frame ends before. */
static __always_inline void *bytes_at(struct xdp_md *ctx, __u32 offset, __u32 len)
{
	void *at = (void *)(long)ctx->data + (offset & OFFSETS);
	return at + len > (void *)(long)ctx->data_end ? NULL : at;
}

/* The payload of the Ethernet frame behind its tags: its offset and, in the lower half, its EtherType; 0 if the frame
 * is too short.
 */
static __always_inline __u32 link_payload(struct xdp_md *ctx)
{
	__u32 offset = sizeof(struct ethhdr);
	struct ethhdr *eth = bytes_at(ctx, 0, sizeof(*eth));
	if (!eth)
		return 0;
	__be16 type = eth->h_proto;
	for (int i = 0; i < MAX_TAGS; i++) {
		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			break;
		__be16 *tag = bytes_at(ctx, offset, 4);
		if (!tag)
			return 0;
		type = tag[1];
		offset += 4;
	}
	return offset << 16 | type;
}

/* The verifier checks a non-static function only once, and assumes nothing about its result. So the paths through this
 * one and `is_icmp_error` do not multiply with those of their callers.
 *
 * The payload of the IPv6 packet at this offset behind its extension headers: its offset, whether the packet is a
 * fragment and, in the lowest byte, the protocol. 0 if the packet is too short.
 */
__noinline __u32 ip6_payload(struct xdp_md *ctx, __u32 offset)
{
	struct ipv6hdr *ip = bytes_at(ctx, offset, sizeof(*ip));
	if (!ip)
		return 0;
	__u32 next = ip->nexthdr, fragment = 0;
	offset += sizeof(*ip);
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		int fragment_header = next == IPPROTO_FRAGMENT;
		if (!fragment_header && next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS)
			break;
		struct extension *extension = bytes_at(ctx, offset, 8);
		if (!extension)
			return 0;
		next = extension->next;
		if (fragment_header && (extension->offset_and_flags & bpf_htons(IP6_OFFSET_AND_MORE))) {
			fragment = 1;
			break;
		}
		/* A fragment header has no length; the others count units of 8 bytes beyond the first (RFC 8200 4). */
		offset += fragment_header ? 8 : 8 + extension->len * 8;
	}
	return offset << 16 | fragment << 8 | next;
}

static __always_inline int is_icmp(const struct packet *packet)
{
	return packet->protocol == (packet->family == XVS_V4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

/* Whether the ICMP message at this offset is an error (RFC 792; RFC 4443 2.1: types below 128). */
__noinline int is_icmp_error(struct xdp_md *ctx, __u32 offset, __u32 family)
{
	__u8 *type = bytes_at(ctx, offset, 8);
	if (!type)
		return 0;
	return family == XVS_V4 ? *type == 3 || *type == 4 || *type == 11 : *type < 128;
}

/* Reads the IPv4 header at this offset. Returns the offset of its payload; 0 if it is none. */
static __always_inline __u32 ip4_header(struct packet *packet, struct xdp_md *ctx, __u32 offset)
{
	struct iphdr *ip = bytes_at(ctx, offset, sizeof(*ip));
	if (!ip || ip->version != 4 || ip->ihl < 5)
		return 0;
	__builtin_memcpy(packet->source, &ip->saddr, 4);
	__builtin_memcpy(packet->dest, &ip->daddr, 4);
	packet->family = XVS_V4;
	packet->protocol = ip->protocol;
	packet->fragment = (ip->frag_off & bpf_htons(IP4_OFFSET_AND_MORE)) != 0;
	return offset + ip->ihl * 4;
}

/* The same for IPv6. */
static __always_inline __u32 ip6_header(struct packet *packet, struct xdp_md *ctx, __u32 offset)
{
	struct ipv6hdr *ip = bytes_at(ctx, offset, sizeof(*ip));
	if (!ip || ip->version != 6)
		return 0;
	__builtin_memcpy(packet->source, &ip->saddr, 16);
	__builtin_memcpy(packet->dest, &ip->daddr, 16);
	packet->family = XVS_V6;
	__u32 payload = ip6_payload(ctx, offset);
	packet->protocol = payload;
	packet->fragment = payload >> 8;
	return payload >> 16;
}

/* Reads the ports; 0 if the protocol has no services, or the packet is too short. */
static __always_inline int transport_header(struct packet *packet, struct xdp_md *ctx, __u32 offset)
{
	switch (packet->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP: {
		struct ports *ports = bytes_at(ctx, offset, sizeof(*ports));
		if (!ports)
			return 0;
		packet->source_port = ports->source;
		packet->dest_port = ports->dest;
		return 1;
	}
	case IPPROTO_AH:
	case IPPROTO_ESP:
		packet->protocol = IPPROTO_UDP;
		packet->source_port = bpf_htons(PORT_ISAKMP);
		packet->dest_port = bpf_htons(PORT_ISAKMP);
		return 1;
	}
	return 0;
}

/* Whether the bit of an endpoint is set. */
static __always_inline int has_bit(const struct xvs_filter *bits, const __u8 *addr, __be16 port, __u8 protocol)
{
	const __be32 *words = (const __be32 *)addr;
	__u64 key = (__u64)(words[0] ^ words[1] ^ words[2] ^ words[3]) << 32 | (__u32)port << 16 | protocol;
	__u32 bit = key * 0x9e3779b97f4a7c15 >> (64 - XVS_FILTER_BITS);
	return bits->words[bit >> 6] >> (bit & 63) & 1;
}

/* Whether a whole packet may be to a service. `bits` may say so of others, too, but never misses one; so do the next two
 * functions.
 */
static __always_inline int is_to_service(const struct xvs_filter *bits, const struct packet *packet)
{
	return has_bit(bits, packet->dest, packet->dest_port, packet->protocol) ||
	       has_bit(bits, packet->dest, XVS_ANY_PORT, packet->protocol) || bits->has_prefixes;
}

/* Whether it may come from a real server of NAT. */
static __always_inline int is_from_server(const struct xvs_filter *bits, const struct packet *packet)
{
	return has_bit(bits, packet->source, packet->source_port, packet->protocol) ||
	       has_bit(bits, packet->source, XVS_ANY_PORT, packet->protocol);
}

/* Whether it may be to a local address of FULLNAT. */
static __always_inline int is_to_local(const struct xvs_filter *bits, const struct packet *packet)
{
	return has_bit(bits, packet->dest, XVS_ANY_PORT, XVS_LOCAL_PROTOCOL);
}

static __always_inline __u32 address_roles(const __u8 *addr, __u8 family)
{
	struct xvs_address key = { .family = family };
	__builtin_memcpy(key.addr, addr, 16);
	__u32 *roles = bpf_map_lookup_elem(&addresses, &key);
	return roles ? *roles : 0;
}

static __always_inline __u32 endpoint_roles(const __u8 *addr, __be16 port, const struct packet *packet)
{
	struct xvs_endpoint key = { .port = port, .protocol = packet->protocol, .family = packet->family };
	__builtin_memcpy(key.addr, addr, 16);
	__u32 *roles = bpf_map_lookup_elem(&endpoints, &key);
	return roles ? *roles : 0;
}

static __always_inline int in_prefix(const __u8 *addr, __u8 family)
{
	struct xvs_prefix key = { .bits = 32 + 128, .family = { family } };
	__builtin_memcpy(key.addr, addr, 16);
	return bpf_map_lookup_elem(&prefixes, &key) != NULL;
}

/* Whether an endpoint has a role, or its address has it at every port. */
static __always_inline int has_role(const __u8 *addr, __be16 port, const struct packet *packet, __u32 role)
{
	return endpoint_roles(addr, port, packet) & role || endpoint_roles(addr, XVS_ANY_PORT, packet) & role;
}

/* Whether a packet's destination port is a local port of FULLNAT. */
static __always_inline int is_translated(const struct packet *packet)
{
	struct xvs_address key = { .family = packet->family };
	__builtin_memcpy(key.addr, packet->dest, 16);
	__u32 *ports = bpf_map_lookup_elem(&translated, &key);
	__u16 port = bpf_ntohs(packet->dest_port);
	return ports && port >= XVS_FIRST_PORT(*ports) && port <= XVS_LAST_PORT(*ports);
}

#include "lists.h"
#include "syn_limits.h"
#include "offload.h"

/* Whether a packet goes to a client on this machine. */
static __always_inline int is_to_client(const struct packet *packet)
{
	struct xvs_endpoint key = { .port = packet->dest_port, .protocol = packet->protocol, .family = packet->family };
	__builtin_memcpy(key.addr, packet->dest, 16);
	return !packet->fragment && bpf_map_lookup_elem(&clients, &key) != NULL;
}

/* Whether a packet goes to a service or comes from a destination; more than 1: the value of the service's endpoint. For
 * a fragment only the addresses are compared.
 */
static __noinline __u32 matches(const struct packet *packet)
{
	if (!packet)
		return 0;
	__u32 to = address_roles(packet->dest, packet->family);
	if (to & XVS_SERVICE) {
		if (packet->fragment)
			return 1;
		__u32 roles = endpoint_roles(packet->dest, packet->dest_port, packet);
		if (roles & XVS_SERVICE)
			return roles;
		if (endpoint_roles(packet->dest, XVS_ANY_PORT, packet) & XVS_SERVICE)
			return 1;
	}
	if ((!(to & XVS_LOCAL) || is_to_client(packet)) &&
	    address_roles(packet->source, packet->family) & XVS_DESTINATION) {
		if (packet->fragment || has_role(packet->source, packet->source_port, packet, XVS_DESTINATION))
			return 1;
	}
	if (to & XVS_TRANSLATED && (packet->fragment || is_translated(packet)))
		return 1;
	if (to & XVS_PROBE && !packet->fragment &&
	    endpoint_roles(packet->dest, packet->dest_port, packet) & XVS_PROBE)
		return 1;
	if (in_prefix(packet->dest, packet->family))
		return 1;
	/* Replies from a virtual address: the kernel routes those of IPv6, and refuses those of IPv4. */
	return packet->family == XVS_V6 && !(to & XVS_LOCAL) && in_prefix(packet->source, packet->family);
}

static __always_inline void reverse(struct packet *packet)
{
	__u8 addr[16];
	__builtin_memcpy(addr, packet->source, 16);
	__builtin_memcpy(packet->source, packet->dest, 16);
	__builtin_memcpy(packet->dest, addr, 16);
	__be16 port = packet->source_port;
	packet->source_port = packet->dest_port;
	packet->dest_port = port;
}

/* Whether a packet may be tunnelled: it contains IPv4, IPv6 or GRE, or UDP with GUE. */
static __always_inline int is_tunnel(const struct packet *packet)
{
	return packet->protocol == IPPROTO_IPIP || packet->protocol == IPPROTO_IPV6 || packet->protocol == IPPROTO_GRE ||
	       packet->protocol == IPPROTO_UDP;
}

/* Whether an ICMP error quotes a steered packet, of either direction. `offset` is behind the ICMP header. */
static __always_inline int quotes_steered(const struct packet *packet, struct xdp_md *ctx, __u32 offset)
{
	struct packet quoted = {};
	offset = packet->family == XVS_V4 ? ip4_header(&quoted, ctx, offset) : ip6_header(&quoted, ctx, offset);
	if (!offset)
		return 0;
	if (is_tunnel(&quoted) && address_roles(quoted.dest, quoted.family) & XVS_TUNNEL)
		return 1;
	if (!quoted.fragment && !transport_header(&quoted, ctx, offset))
		return 0;
	if (matches(&quoted))
		return 1;
	reverse(&quoted);
	return matches(&quoted);
}

/* The decision on a frame. */
enum { TO_KERNEL, TO_DIRECTOR, REFUSED, FORWARDED };

/* Decides on a frame, and forwards it if it is of an offloaded flow, unless flows are left to the director. */
static __always_inline int decide(struct xdp_md *ctx, int leaves_flows)
{
	struct packet packet = {};
	__u32 link = link_payload(ctx), offset = link >> 16;

	switch ((__u16)link) {
	case bpf_htons(ETH_P_IP):
		offset = ip4_header(&packet, ctx, offset);
		break;
	case bpf_htons(ETH_P_IPV6):
		offset = ip6_header(&packet, ctx, offset);
		break;
	default:
		return TO_KERNEL;
	}
	if (!offset)
		return TO_KERNEL;
	if (packet.fragment)
		return matches(&packet) ? TO_DIRECTOR : TO_KERNEL;
	if (is_icmp(&packet) && is_icmp_error(ctx, offset, packet.family)) {
		return address_roles(packet.dest, packet.family) & XVS_SERVICE ||
		       in_prefix(packet.dest, packet.family) || quotes_steered(&packet, ctx, offset + 8);
	}
	__u32 first = 0;
	const struct xvs_filter *bits = bpf_map_lookup_elem(&filter, &first);
	if (!transport_header(&packet, ctx, offset) || !bits)
		return TO_KERNEL;
	int is_request = is_to_service(bits, &packet);
	if (!is_request && !is_from_server(bits, &packet) && !is_to_local(bits, &packet))
		return TO_KERNEL;
	__u64 lists = lists_for(&packet);
	if (lists && is_refused(&packet, lists))
		return REFUSED;
	if (!leaves_flows && is_forwarded(ctx, &packet, offset, bits, is_request))
		return FORWARDED;
	__u32 roles = matches(&packet), limit = XVS_LIMIT_OF(roles);
	if (limit && is_syn(ctx, offset) && is_above_limit(limit))
		return REFUSED;
	return roles ? TO_DIRECTOR : TO_KERNEL;
}

/* Set before the program is loaded. */
const volatile __u64 marker[XVS_MARKER_SIZE / 8] = {};

/* Whether the director has passed this frame back to the kernel. In generic mode the kernel runs this program also for
 * frames that are redirected to the interface's ingress, and only the bytes of a frame are visible here. The marker of
 * such a frame is removed.
 */
static __always_inline int is_reinjected(struct xdp_md *ctx)
{
	__u64 *first = (void *)(long)ctx->data;
	if ((void *)(first + 2) > (void *)(long)ctx->data_end || first[0] != marker[0] || first[1] != marker[1])
		return 0;
	return bpf_xdp_adjust_head(ctx, XVS_MARKER_SIZE) == 0;
}

/* Gives a steered frame to the socket of its queue. Without a socket, the hold decides. A refused frame is dropped,
 * unless the hold is over.
 */
static __always_inline int steer(struct xdp_md *ctx, int refused)
{
	__u32 first = 0;
	struct xvs_hold *state = bpf_map_lookup_elem(&hold, &first);
	if (!state || !state->hold_ns)
		return refused ? XDP_DROP : bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
	if (is_over(state))
		return XDP_PASS;
	if (refused)
		return XDP_DROP;
	int action = bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_DROP);
	if (action == XDP_DROP)
		__sync_fetch_and_add(&state->dropped, 1);
	return action;
}

SEC("xdp.frags")
int redirect(struct xdp_md *ctx)
{
	int decided = is_reinjected(ctx) ? TO_KERNEL : decide(ctx, 0);
	if (decided == FORWARDED)
		return XDP_REDIRECT;
	return decided == TO_KERNEL ? XDP_PASS : steer(ctx, decided == REFUSED);
}

/* The same decision without a socket and without a hold, for tests and for explaining packets to operators. */
SEC("xdp.frags")
int verdict(struct xdp_md *ctx)
{
	int decided = decide(ctx, 1);
	return decided == TO_KERNEL ? XDP_PASS : decided == REFUSED ? XDP_DROP : XDP_REDIRECT;
}

char _license[] SEC("license") = "Dual MIT/GPL";
