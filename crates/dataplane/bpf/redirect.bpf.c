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
#include "hold.h"
#include "lists.h"
#include "maps.h"
#include "offload.h"
#include "packet.h"
#include "roles.h"
#include "shared.h"
#include "syn_limits.h"

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Each interface has its own; all interfaces share the other maps. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, XVS_MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

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
