/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The fields of a packet that the steering program reads, behind VLAN tags and extension headers. */
#ifndef XVS_PACKET_H
#define XVS_PACKET_H

#include "maps.h"
#include "shared.h"

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* ISAKMP (RFC 2408 2.5.1): AH and ESP belong to the service that negotiated them. */
#define PORT_ISAKMP 500

/* The most VLAN tags that are skipped, as in proto/src/ethernet.rs. */
#define MAX_TAGS 2
/* The most extension headers that are skipped before the transport or fragment header, as in proto/src/ipv6.rs. */
#define MAX_EXTENSIONS 6
/* All offsets behind two IP headers, each with the most extensions of at most 2 KiB. The verifier needs a limit. */
#define OFFSETS 0x7fff

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

/* The flags of a TCP header, in its byte 13. */
#define TCP_FLAGS 13
enum { TCP_FIN = 0x01, TCP_SYN = 0x02, TCP_RST = 0x04, TCP_ACK = 0x10 };

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

#endif
