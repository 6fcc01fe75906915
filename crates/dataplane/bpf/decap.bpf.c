// Decapsulation on a real server: takes the outer IPv4 header off a packet of the director's tunnel.
//
// Runs for every frame that the interface receives, before the kernel sees it. A packet whose outer header is to one
// of our addresses and of protocol 4 (RFC 2003), and whose inner header is to a virtual address configured here,
// goes on to the kernel without the outer header. Everything else goes on as it came: fragments, of which only the
// kernel can make a packet, and what does not parse. The one thing dropped is what RFC 6040 §4.2 says to drop: an
// outer header that a router marked as having met congestion, around a packet that cannot carry that mark.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct addresses {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __be32);
	__type(value, __u32);
};

// Addresses of this machine that the director may send to; virtual addresses served here.
struct addresses outer_dests SEC(".maps");
struct addresses virtuals SEC(".maps");

struct tag {
	__be16 control;
	__be16 ethertype;
};

#define MAX_TAGS 2
#define ECN_MASK 3
#define ECN_CE 3

// Where the outer header starts, behind up to two VLAN tags; 0 if the frame is not IPv4.
static __always_inline __u32 ip_offset(void *data, void *end)
{
	struct ethhdr *eth = data;
	if ((void *)(eth + 1) > end)
		return 0;
	__be16 ethertype = eth->h_proto;
	__u32 offset = sizeof(*eth);
	for (int i = 0; i < MAX_TAGS; i++) {
		if (ethertype != bpf_htons(ETH_P_8021Q) && ethertype != bpf_htons(ETH_P_8021AD))
			break;
		struct tag *tag = data + offset;
		if ((void *)(tag + 1) > end)
			return 0;
		ethertype = tag->ethertype;
		offset += sizeof(*tag);
	}
	return ethertype == bpf_htons(ETH_P_IP) ? offset : 0;
}

// One's complement sum of a header's words, folded; 0xffff if its checksum is right (RFC 1071).
static __always_inline __u32 header_sum(void *header, __u32 bytes, void *end)
{
	__u32 sum = 0;
	__u16 *word = header;
	for (__u32 i = 0; i < 30 && i * 2 < bytes; i++, word++) {
		if ((void *)(word + 1) > end)
			return 0;
		sum += *word;
	}
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

// Marks a packet as having met congestion and keeps its header's checksum right (RFC 1624, eqn. 3).
static __always_inline void mark_congestion(struct iphdr *ip)
{
	__be16 *first = (__be16 *)ip;
	__be16 old = *first;
	ip->tos |= ECN_CE;
	__u32 sum = (__u16)~ip->check + (__u16)~old + *first;
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~sum;
}

// Takes `header` bytes out from behind the `l2` bytes in front of the outer header.
static __always_inline int strip(struct xdp_md *ctx, __u32 l2, __u32 header)
{
	__u8 front[sizeof(struct ethhdr) + MAX_TAGS * sizeof(struct tag)];
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	// Lengths are constants in each branch, so that they are compiled to plain loads and stores.
#define STRIP(length)                                                     \
	do {                                                              \
		if (data + (length) > end)                                \
			return XDP_PASS;                                  \
		__builtin_memcpy(front, data, (length));                  \
		if (bpf_xdp_adjust_head(ctx, header))                     \
			return XDP_PASS;                                  \
		data = (void *)(long)ctx->data;                           \
		end = (void *)(long)ctx->data_end;                        \
		if (data + (length) > end)                                \
			return XDP_ABORTED;                               \
		__builtin_memcpy(data, front, (length));                  \
	} while (0)

	if (l2 == sizeof(struct ethhdr))
		STRIP(sizeof(struct ethhdr));
	else if (l2 == sizeof(struct ethhdr) + sizeof(struct tag))
		STRIP(sizeof(struct ethhdr) + sizeof(struct tag));
	else
		STRIP(sizeof(struct ethhdr) + 2 * sizeof(struct tag));
	return XDP_PASS;
}

SEC("xdp.frags")
int xvs_decap(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	__u32 l2 = ip_offset(data, end);
	if (!l2)
		return XDP_PASS;
	struct iphdr *outer = data + l2;
	if ((void *)(outer + 1) > end || outer->version != 4 || outer->protocol != IPPROTO_IPIP)
		return XDP_PASS;
	__u32 outer_bytes = outer->ihl * 4;
	__u32 total = bpf_ntohs(outer->tot_len);
	if (outer_bytes < sizeof(*outer) || total < outer_bytes + sizeof(*outer))
		return XDP_PASS;
	if (bpf_ntohs(outer->frag_off) & 0x3fff)
		return XDP_PASS;
	// Also in frames of several buffers, of which `end` closes the first only.
	if (bpf_xdp_get_buff_len(ctx) < (__u64)l2 + total)
		return XDP_PASS;

	struct iphdr *inner = (void *)outer + outer_bytes;
	if ((void *)(inner + 1) > end || inner->version != 4 || inner->ihl < 5)
		return XDP_PASS;
	__u32 inner_total = bpf_ntohs(inner->tot_len);
	if (inner_total < inner->ihl * 4 || inner_total > total - outer_bytes)
		return XDP_PASS;

	__be32 outer_dest = outer->daddr;
	__be32 inner_dest = inner->daddr;
	if (!bpf_map_lookup_elem(&outer_dests, &outer_dest) || !bpf_map_lookup_elem(&virtuals, &inner_dest))
		return XDP_PASS;
	if (header_sum(outer, outer_bytes, end) != 0xffff)
		return XDP_PASS;

	if ((outer->tos & ECN_MASK) == ECN_CE) {
		if (!(inner->tos & ECN_MASK))
			return XDP_DROP;
		mark_congestion(inner);
	}
	return strip(ctx, l2, outer_bytes);
}

char _license[] SEC("license") = "Dual MIT/GPL";
