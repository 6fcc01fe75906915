/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Flow offload in the steering program.
 *
 * Forwards packets of connections for which workers have made a record, as a worker would, without a copy to user
 * space: plain packets, and segments that move the connection from one state of TCP to another, if the program follows
 * its state. What begins or resets a connection goes to the worker, and so do all packets that are not plain. Cost: for
 * packets without a record, a hash and two or three cache lines; if offload is off, one load. Not here: which connections
 * have records (src/offload/), and the table of states (src/conn/tcp.rs).
 */
#ifndef XVS_OFFLOAD_H
#define XVS_OFFLOAD_H

#include "checksum.h"
#include "hold.h"
#include "maps.h"
#include "packet.h"
#include "roles.h"
#include "shared.h"

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xvs_offload);
} offload SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, XVS_MAX_FLOWS); /* xvsd sets the number of records, and as many buckets of keys */
	__type(key, __u32);
	__type(value, struct xvs_flow);
} records SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, XVS_MAX_FLOWS);
	__type(key, __u32);
	__type(value, struct xvs_bucket);
} keys SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xvs_moves);
} moves SEC(".maps");

#define TCP_LEN 20
#define UDP_LEN 8
/* From the beginning of the transport header. */
#define TCP_SEQUENCE 4
#define TCP_ACKNOWLEDGEMENT 8
#define TCP_CHECKSUM 16
#define UDP_CHECKSUM 6
#define UDP_LENGTH 4
#define ECN 3
/* A decremented time to live, in the sum of an IPv4 header (RFC 1624 3). */
#define TTL_SUM bpf_htons(0xffff - 0x100)
/* As in src/burst/handshake.rs. */
#define PROOF_WINDOW (1 << 16)

/* Whether a record still holds: nothing has changed since the worker's decision, and the hold is not over. */
static __always_inline int is_in_force(const struct xvs_offload *state, const struct xvs_flow *flow, __u64 now)
{
	__u32 first = 0;
	if (*(volatile __u32 *)&state->epoch != flow->epoch ||
	    *(volatile __u32 *)&state->slots[XVS_FLOW_SLOT(*(volatile __u64 *)&flow->used)] != flow->slot_epoch)
		return 0;
	return !is_over_at(bpf_map_lookup_elem(&hold, &first), now);
}

static __always_inline int is_half_open(__u64 word)
{
	__u32 state = XVS_FLOW_STATE(word);
	return word & XVS_FLOW_FOLLOWS && (state == XVS_SYN_RECV || state == XVS_SYN_ACK);
}

/* Changes the state of a record, unless another thread has changed it. Returns whether it has done so. */
static __always_inline int change(const struct xvs_offload *state, struct xvs_flow *flow, __u64 word, __u64 after)
{
	__u32 first = 0;
	if (__sync_val_compare_and_swap(&flow->state, word, after) != word)
		return 0;
	struct xvs_moves *counts = bpf_map_lookup_elem(&moves, &first);
	if (!counts)
		return 1;
	if (is_half_open(word) && !(is_half_open(after) && after & XVS_FLOW_IN_FORCE))
		__sync_fetch_and_add(&counts->half_open, -1);
	__u64 active = state->tcp.active;
	if (active >> XVS_FLOW_STATE(word) & 1 && !(active >> XVS_FLOW_STATE(after) & 1))
		__sync_fetch_and_add(&counts->inactive[XVS_FLOW_SLOT(flow->used)], 1);
	return 1;
}

/* The state of a record after a segment of a part; 0: the segment goes to the worker. If the program does not follow
 * the connection's state, these are all that may change it; else what begins or resets a connection, and a segment
 * without ACK.
 */
static __always_inline __u64 after_segment(const struct xvs_offload *state, __u64 word, __u32 number,
					   const __u8 *segment)
{
	__u8 flags = segment[TCP_FLAGS];
	__u32 row = flags & TCP_SYN ? XVS_SYN_ROW : flags & TCP_FIN ? XVS_FIN_ROW : XVS_ACK_ROW;
	if (!(flags & TCP_ACK) || flags & TCP_RST)
		return 0;
	if (!(word & XVS_FLOW_FOLLOWS))
		return row == XVS_ACK_ROW ? word : 0;
	if (row == XVS_SYN_ROW && !(number && is_half_open(word)))
		return 0;
	__u32 seen = number ? XVS_OUTPUT : word & XVS_FLOW_NO_OUTPUT ? XVS_INPUT_ONLY : XVS_INPUT;
	__u64 next = state->tcp.row[word & XVS_FLOW_SECURE ? 1 : 0][seen][row] >> 4 * XVS_FLOW_STATE(word) & 15;
	__u64 after = XVS_FLOW_WITH_STATE(word, next);
	if (next == XVS_ESTABLISHED)
		after |= XVS_FLOW_WAS_ESTABLISHED;
	if (row == XVS_SYN_ROW && !(word & XVS_FLOW_PROVEN)) {
		__u32 due = bpf_ntohl(*(__be32 *)(segment + TCP_SEQUENCE)) + 1;
		after = (after & 0xffffffff) | XVS_FLOW_AWAITS | (__u64)due << 32;
	} else if (!number && word & XVS_FLOW_AWAITS) {
		__u32 due = XVS_FLOW_DUE(word);
		if (bpf_ntohl(*(__be32 *)(segment + TCP_ACKNOWLEDGEMENT)) - due < PROOF_WINDOW)
			after = (after | XVS_FLOW_PROVEN) & ~(__u64)XVS_FLOW_AWAITS;
	}
	return after;
}

/* The state of a record whose SYN was the last packet, with the time from then to now. */
static __always_inline __u64 with_response(__u64 word, __u64 used, __u64 now)
{
	__u64 ns = now - (used >> 16 << 10);
	/* A worker's clock may be a moment ahead. */
	__u64 micros = (__s64)ns > 1000 ? (ns - 1) / 1000 : 0;
	__u32 less = micros < (__u32)-1 ? micros : (__u32)-1, place = 0;
	for (__u32 shift = 16; shift; shift /= 2)
		if (less >> (place + shift))
			place += shift;
	__u32 code = place < 3 ? less : (place - 2) * 8 + (less >> (place - 3) & 7);
	word &= ~((__u64)0xff << XVS_FLOW_RESPONSE_SHIFT);
	return word | (__u64)(code + 1) << XVS_FLOW_RESPONSE_SHIFT;
}

/* Gives a packet the ports of its part, and updates its checksum. The fields are within the packet. */
static __always_inline void readdress_transport(const struct xvs_flow_part *part, struct ports *ports, __u16 *checksum,
						int is_tcp)
{
	ports->source = part->source_port;
	ports->dest = part->dest_port;
	__u16 sum = updated(*checksum, part->transport_sum);
	*checksum = is_tcp || sum ? sum : 0xffff;
}

static __always_inline int is_to(const struct ethhdr *eth, const struct xvs_flow_part *part)
{
	const __u16 *dest = (const __u16 *)eth->h_dest, *to = (const __u16 *)part->to;
	return dest[0] == to[0] && dest[1] == to[1] && dest[2] == to[2];
}

/* Whether a packet belongs to a part: several keys may have the same number or tag. */
static __always_inline int is_of(const struct xvs_flow *flow, __u32 number, const struct packet *packet)
{
	const struct xvs_flow_part *part = number ? &flow->part[1] : &flow->part[0];
	const __u32 *source = (const void *)packet->source, *dest = (const void *)packet->dest;
	__u32 differs = (part->protocol ^ packet->protocol) | (part->family ^ packet->family) |
			(part->old_source_port ^ packet->source_port) | (part->old_dest_port ^ packet->dest_port);
	if (packet->family == XVS_V4) {
		differs |= (part->old_source_v4 ^ source[0]) | (part->old_dest_v4 ^ dest[0]);
	} else {
		const struct xvs_addresses_v6 *old = number ? &flow->old_v6[1] : &flow->old_v6[0];
		for (int word = 0; word < 4; word++)
			differs |= (source[word] ^ old->source[word]) | (dest[word] ^ old->dest[word]);
	}
	return !differs;
}

/* Whether the frame has this length, or link padding behind it. Longer frames have no padding and may have several
 * buffers: they go to the worker, as a packet does that is cut short.
 */
static __always_inline int is_whole(const struct xdp_md *ctx, __u32 len)
{
	__u32 has = ctx->data_end - ctx->data;
	return has == len || (has > len && len < ETH_ZLEN);
}

/* Removes link padding from a whole frame. Other pointers to the packet are invalid then. */
static __always_inline int fit(struct xdp_md *ctx, __u32 len)
{
	__u32 has = ctx->data_end - ctx->data;
	return has == len || bpf_xdp_adjust_tail(ctx, (int)(len - has)) == 0;
}

/* One hop less. `sum` is what else changes in the sum of an IPv4 header. */
static __always_inline void decrement_ttl(void *packet, const int v4, __u64 sum)
{
	struct iphdr *ip4 = packet;
	struct ipv6hdr *ip6 = packet;
	if (v4) {
		ip4->ttl--;
		ip4->check = updated(ip4->check, TTL_SUM + sum);
	} else {
		ip6->hop_limit--;
	}
}

/* Puts the outer headers of a record, of this constant length, before a whole packet of `total` bytes, which may not be
 * fragmented if both headers are IPv4. Writes the fields that differ from packet to packet as src/forward/tunnel/ does.
 * Returns 0 if there is no room.
 */
static __always_inline int encapsulate_in(struct xdp_md *ctx, const struct xvs_flow *flow, __u32 total, const int v4,
					  const __u32 outer)
{
	const struct xvs_flow_part *part = &flow->part[0];
	const int outer_v4 = outer < sizeof(struct ipv6hdr);
	const __u32 network_len = outer_v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	if (bpf_xdp_adjust_head(ctx, -(int)outer))
		return 0;
	struct ethhdr *eth = bytes_at(ctx, 0, sizeof(*eth) + outer + (v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)));
	if (!eth) {
		bpf_xdp_adjust_head(ctx, outer);
		return 0;
	}
	__u8 *headers = (void *)(eth + 1), *packet = headers + outer;
	decrement_ttl(packet, v4, 0);
	__builtin_memcpy(eth, part->link, sizeof(part->link));
	eth->h_proto = outer_v4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	if (outer == sizeof(struct iphdr)) {
		/* IPv4 in IPv4 (RFC 2003 3.1): the rest of the header is the same for all connections. */
		struct iphdr *ip = (void *)headers;
		*(__be32 *)ip = bpf_htonl(0x45 << 24);
		ip->id = 0;
		ip->protocol = IPPROTO_IPIP;
		ip->saddr = part->source_v4;
		ip->daddr = part->dest_v4;
	} else {
		__builtin_memcpy(headers, flow->outer, outer);
	}
	struct iphdr *ip4 = (void *)packet;
	struct ipv6hdr *ip6 = (void *)packet;
	__u8 tos = v4 ? ip4->tos : packet[0] << 4 | packet[1] >> 4, ttl = v4 ? ip4->ttl : ip6->hop_limit;
	/* Congestion experienced becomes ECT(0) (RFC 3168 9.1). */
	if ((tos & ECN) == ECN)
		tos &= ~1;
	if (outer_v4) {
		struct iphdr *ip = (void *)headers;
		ip->tos = tos;
		ip->tot_len = bpf_htons(total + outer);
		ip->frag_off = bpf_htons(IP4_DONT_FRAGMENT);
		ip->ttl = ttl;
		ip->check = ~folded((__u64)part->network_sum + bpf_htons(tos) + ip->tot_len + ip->frag_off +
				    bpf_htons(ttl << 8));
	} else {
		struct ipv6hdr *ip = (void *)headers;
		headers[0] |= tos >> 4;
		headers[1] |= tos << 4;
		ip->payload_len = bpf_htons(total + outer - network_len);
		ip->hop_limit = ttl;
	}
	if (part->flags & XVS_FLOW_UDP && outer >= network_len + UDP_LEN)
		*(__be16 *)(headers + network_len + UDP_LENGTH) = bpf_htons(total + outer - network_len);
	return 1;
}

/* The same for any length that there is: IP in IP, GRE, and UDP with GUE, over IPv4 and IPv6. */
static __always_inline int encapsulate(struct xdp_md *ctx, const struct xvs_flow *flow, __u32 outer, __u32 total,
				       const int v4)
{
	switch (outer) {
	case 20:
		return encapsulate_in(ctx, flow, total, v4, 20);
	case 24:
		return encapsulate_in(ctx, flow, total, v4, 24);
	case 32:
		return encapsulate_in(ctx, flow, total, v4, 32);
	case 40:
		return encapsulate_in(ctx, flow, total, v4, 40);
	case 44:
		return encapsulate_in(ctx, flow, total, v4, 44);
	case 52:
		return encapsulate_in(ctx, flow, total, v4, 52);
	}
	return 0;
}

/* Replaces the header of a whole IPv4 packet of `total` bytes by one of IPv6, as src/forward/translate.rs does. `at` is
 * the place of the checksum in the transport header. Returns 0 if there is no room.
 */
static __always_inline int translate(struct xdp_md *ctx, const struct xvs_flow *flow, __u32 number, __u32 protocol,
				     __u32 at, __u32 total)
{
	const struct xvs_flow_part *part = number ? &flow->part[1] : &flow->part[0];
	const __u32 longer = sizeof(struct ipv6hdr) - sizeof(struct iphdr);
	struct iphdr *former = bytes_at(ctx, sizeof(struct ethhdr), sizeof(*former));
	if (!former)
		return 0;
	__u8 tos = former->tos, ttl = former->ttl - 1;
	if (bpf_xdp_adjust_head(ctx, -(int)longer))
		return 0;
	struct ethhdr *eth = bytes_at(ctx, 0, sizeof(*eth) + sizeof(struct ipv6hdr) + UDP_LEN);
	__u16 *checksum = bytes_at(ctx, sizeof(*eth) + sizeof(struct ipv6hdr) + at, 2);
	if (!eth || !checksum) {
		bpf_xdp_adjust_head(ctx, longer);
		return 0;
	}
	struct ipv6hdr *ip = (void *)(eth + 1);
	__builtin_memcpy(eth, part->link, sizeof(part->link));
	eth->h_proto = bpf_htons(ETH_P_IPV6);
	*(__be32 *)ip = bpf_htonl(6 << 28 | (__u32)tos << 20);
	ip->payload_len = bpf_htons(total - sizeof(struct iphdr));
	ip->nexthdr = protocol;
	ip->hop_limit = ttl;
	__builtin_memcpy(&ip->saddr, number ? &flow->v6[1] : &flow->v6[0], sizeof(flow->v6[0]));
	readdress_transport(part, (void *)(ip + 1), checksum, protocol == IPPROTO_TCP);
	return 1;
}

static __always_inline int send(struct xvs_flow *flow, __u32 number, const struct xvs_flow_part *part, __u32 bytes)
{
	__sync_fetch_and_add(&flow->count[number & 1].packets, 1);
	__sync_fetch_and_add(&flow->count[number & 1].bytes, bytes);
	return bpf_redirect(part->out_ifindex, 0);
}

/* Whether the checksum may be the sum of the pseudo-header alone. */
static __always_inline int may_be_partial(const void *addresses, int v4, __u16 checksum, __u32 protocol, __u32 length)
{
	const __u32 *words = addresses;
	__u64 sum = (__u64)bpf_htons(protocol) + bpf_htons(length) + words[0] + words[1];
	for (int word = 2; word < 8 && !v4; word++)
		sum += words[word];
	return checksum == folded(sum);
}

/* Forwards a packet by a part of a record. Returns 0 if it goes to the worker. The family is a constant. */
static __always_inline int forward_by(struct xdp_md *ctx, const struct xvs_offload *state, struct xvs_flow *flow,
				      __u64 word, __u32 number, const int v4)
{
	const struct xvs_flow_part *part = number ? &flow->part[1] : &flow->part[0];
	const __u32 network_len = v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	const __u32 transport = sizeof(struct ethhdr) + network_len;
	struct ethhdr *eth = bytes_at(ctx, 0, transport + UDP_LEN);
	if (!eth)
		return 0;
	struct iphdr *ip4 = (void *)(eth + 1);
	struct ipv6hdr *ip6 = (void *)(eth + 1);
	__u32 protocol = v4 ? ip4->protocol : ip6->nexthdr;
	/* AH and ESP have the ports of UDP. */
	if (protocol != part->protocol)
		return 0;
	int is_tcp = protocol == IPPROTO_TCP;
	__u32 at = is_tcp ? TCP_CHECKSUM : UDP_CHECKSUM;
	__u64 after = word;
	int is_timed = 0;
	if (is_tcp) {
		__u8 *segment = bytes_at(ctx, transport, TCP_LEN);
		if (!segment)
			return 0;
		after = after_segment(state, word, number, segment);
		if (!after) {
			/* So that nothing overtakes it. */
			change(state, flow, word, word & ~(__u64)XVS_FLOW_IN_FORCE);
			return 0;
		}
		is_timed = number && segment[TCP_FLAGS] & TCP_SYN && XVS_FLOW_RESPONSE(word) == XVS_FLOW_TIMED;
	}
	__u16 *checksum = bytes_at(ctx, transport + at, 2);
	if (!checksum)
		return 0;
	/* The coarse clock is milliseconds behind. */
	__u64 now = state->clock_ns ? state->clock_ns : is_timed ? bpf_ktime_get_ns() : bpf_ktime_get_coarse_ns();
	if (!is_in_force(state, flow, now) || ctx->ingress_ifindex != part->in_ifindex || !is_to(eth, part))
		return 0;
	__u32 total = v4 ? bpf_ntohs(ip4->tot_len) : network_len + bpf_ntohs(ip6->payload_len);
	if ((v4 ? ip4->ttl : ip6->hop_limit) <= 1 || total > part->mtu ||
	    total < network_len + (is_tcp ? TCP_LEN : UDP_LEN) || !is_whole(ctx, sizeof(struct ethhdr) + total))
		return 0;
	const __u32 *words = (const void *)ip4;
	if (v4 && folded((__u64)words[0] + words[1] + words[2] + words[3] + words[4]) != 0xffff)
		return 0;
	if (v4 && part->flags & XVS_FLOW_UNFRAGMENTED && !(ip4->frag_off & bpf_htons(IP4_DONT_FRAGMENT)))
		return 0;
	int is_summed = is_tcp || *checksum;
	__u32 length = total - network_len;
	int is_udp_whole = bpf_ntohs(*(__be16 *)((void *)eth + transport + UDP_LENGTH)) == length;
	if ((part->flags & XVS_FLOW_READDRESSED && !is_summed && (!v4 || !is_udp_whole || length > SUMMED_MAX)) ||
	    (part->flags & XVS_FLOW_PARTIAL && is_summed &&
	     may_be_partial(v4 ? (void *)&ip4->saddr : (void *)&ip6->saddr, v4, *checksum, protocol, length)))
		return 0;
	if (part->flags & XVS_FLOW_TRANSLATED && (!v4 || !is_summed))
		return 0;
	/* Before the state: who reads that and takes the connection back knows the time of this packet. */
	__u64 before = *(volatile __u64 *)&flow->used, used = XVS_FLOW_USED(XVS_FLOW_SLOT(before), now);
	if (is_timed)
		after = with_response(after, before, now);
	if (used != before)
		*(volatile __u64 *)&flow->used = used;
	if (after != word && !change(state, flow, word, after))
		return 0;
	if (!fit(ctx, sizeof(struct ethhdr) + total))
		return 0;
	__u32 outer = XVS_FLOW_OUTER(part->flags);
	if (outer)
		return encapsulate(ctx, flow, outer, total, v4) && send(flow, number, part, total);
	if (v4 && part->flags & XVS_FLOW_TRANSLATED)
		return translate(ctx, flow, number, protocol, at, total) && send(flow, number, part, total);
	eth = bytes_at(ctx, 0, transport + UDP_LEN);
	checksum = bytes_at(ctx, transport + at, 2);
	if (!eth || !checksum)
		return 0;
	ip4 = (void *)(eth + 1);
	ip6 = (void *)(eth + 1);
	__builtin_memcpy(eth, part->link, sizeof(part->link));
	__u64 sum = 0;
	if (part->flags & XVS_FLOW_READDRESSED) {
		if (v4) {
			ip4->saddr = part->source_v4;
			ip4->daddr = part->dest_v4;
			sum = part->network_sum;
		} else {
			__builtin_memcpy(&ip6->saddr, number ? &flow->v6[1] : &flow->v6[0], sizeof(flow->v6[0]));
		}
		readdress_transport(part, (void *)eth + transport, checksum, is_tcp);
		/* UDP over IPv4 without a checksum (RFC 768) gets one, as by a worker. */
		if (v4 && !is_summed) {
			*checksum = 0;
			__u16 sum = ~folded((__u64)ip4->saddr + ip4->daddr + bpf_htons(protocol) + bpf_htons(length) +
					    datagram_sum(ctx, transport, length));
			*checksum = sum ? sum : 0xffff;
		}
	}
	decrement_ttl(v4 ? (void *)ip4 : (void *)ip6, v4, sum);
	return send(flow, number, part, total);
}

/* The product of two words in 128 bits, folded: each bit of one reaches all bits, if the other one is secret. */
static __always_inline __u64 multiplied(__u64 one, __u64 other)
{
	__u64 low = (__u32)one * (other & 0xffffffff), high = (one >> 32) * (other >> 32);
	__u64 middle = (one >> 32) * (other & 0xffffffff), second = (__u32)one * (other >> 32);
	__u64 carry = (low >> 32) + (__u32)middle + (__u32)second;
	return ((__u32)low | carry << 32) ^ (high + (middle >> 32) + (second >> 32) + (carry >> 32));
}

/* The record of this number, if its state has these bits of those of the mask. What the caller reads of it is as new as
 * its state: loads may overtake others, but not those on which their address depends.
 */
static __always_inline struct xvs_flow *record_with(__u32 index, __u64 bits, __u64 mask)
{
	struct xvs_flow *flow = bpf_map_lookup_elem(&records, &index);
	if (!flow)
		return NULL;
	__u64 word = *(volatile __u64 *)&flow->state;
	if ((word & mask) != bits)
		return NULL;
	asm volatile("" : "+r"(word));
	index ^= (word & mask) ^ bits;
	return bpf_map_lookup_elem(&records, &index);
}

/* The number of the record in force of a packet of this part whose key has this hash; XVS_MAX_FLOWS: there is none. */
static __always_inline __u32 record_of(const struct packet *packet, __u64 hash, __u64 buckets, __u32 number)
{
	const __u64 near = XVS_FLOW_IN_FORCE | XVS_FLOW_NEAR;
	__u32 place = hash & buckets, found = XVS_MAX_FLOWS;
	const volatile struct xvs_bucket *bucket = bpf_map_lookup_elem(&keys, &place);
	if (!bucket)
		return found;
	/* That line is read last, if at all; the processor fetches it meanwhile. */
	(void)bucket->entry[0];
	struct xvs_flow *flow = record_with(place, near, near);
	if (flow && is_of(flow, number, packet))
		return place;
	for (int at = 0; at < XVS_BUCKET; at++) {
		__u64 entry = bucket->entry[at];
		if (XVS_FLOW_TAG(entry) != XVS_FLOW_TAG(hash))
			continue;
		flow = record_with(XVS_FLOW_RECORD(entry), XVS_FLOW_IN_FORCE | XVS_FLOW_IN_USE(XVS_FLOW_USE(entry)),
				   XVS_FLOW_IN_FORCE | XVS_FLOW_IN_USE(XVS_FLOW_USES - 1));
		if (flow && is_of(flow, number, packet))
			found = XVS_FLOW_RECORD(entry);
	}
	return found;
}

/* Adds an end of a packet to a hash. */
static __always_inline __u64 with_end(__u64 hash, __u64 seed, const __u8 *addr, __be16 port, __u8 family)
{
	const __u32 *words = (const void *)addr;
	hash = multiplied(hash ^ port, seed ^ words[0]);
	for (int word = 1; word < 4 && family != XVS_V4; word++)
		hash = multiplied(hash, seed ^ words[word]);
	return hash;
}

/* The ends of a packet that its key consists of: of a request, of a reply, and of a reply to a local address. */
enum { SOURCE, DEST, BOTH };

/* The hash of a packet's key. Not static, as `forward`: the verifier checks such a function only once. */
__noinline __u64 key_hash(const struct packet *packet, __u32 key)
{
	__u32 first = 0;
	struct xvs_offload *state = bpf_map_lookup_elem(&offload, &first);
	if (!state || !packet)
		return 0;
	__u64 seed = state->seed[1], hash = state->seed[0] ^ (__u64)packet->protocol << 32;
	if (key != SOURCE)
		hash = with_end(hash, seed, packet->dest, packet->dest_port, packet->family);
	if (key != DEST)
		hash = with_end(hash, seed, packet->source, packet->source_port, packet->family);
	return multiplied(state->seed[0] ^ hash, seed);
}

/* Forwards a packet by this part of the record whose key has this hash. Returns 0 if it goes to the worker. */
__noinline int forward(struct xdp_md *ctx, const struct packet *packet, __u64 hash, __u32 number)
{
	__u32 first = 0;
	struct xvs_offload *state = bpf_map_lookup_elem(&offload, &first);
	if (!state || !packet)
		return 0;
	__u32 index = record_of(packet, hash, state->buckets, number);
	struct xvs_flow *flow = bpf_map_lookup_elem(&records, &index);
	if (!flow)
		return 0;
	__u64 word = *(volatile __u64 *)&flow->state;
	if (!(word & XVS_FLOW_IN_FORCE))
		return 0;
	/* That line is read last; the processor fetches it meanwhile. */
	if (word & XVS_FLOW_LAST_LINE)
		(void)*(volatile __u64 *)flow->outer;
	return packet->family == XVS_V4 ? forward_by(ctx, state, flow, word, number, 1) :
					  forward_by(ctx, state, flow, word, number, 0);
}

/* Forwards a packet whose transport header is at this offset, if its flow is offloaded. Returns 0 if it goes to the
 * worker.
 */
static __always_inline int is_forwarded(struct xdp_md *ctx, const struct packet *packet, __u32 offset,
					const struct xvs_filter *bits, int is_request)
{
	__u32 first = 0;
	struct xvs_offload *state = bpf_map_lookup_elem(&offload, &first);
	if (!state || !*(volatile __u32 *)&state->is_on)
		return 0;
	if (packet->protocol != IPPROTO_TCP && packet->protocol != IPPROTO_UDP)
		return 0;
	if (offset != sizeof(struct ethhdr) +
			      (packet->family == XVS_V4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)))
		return 0;
	return (is_request && forward(ctx, packet, key_hash(packet, SOURCE), 0)) ||
	       (is_from_server(bits, packet) && forward(ctx, packet, key_hash(packet, DEST), 1)) ||
	       (is_to_local(bits, packet) && forward(ctx, packet, key_hash(packet, BOTH), 1));
}

#endif
