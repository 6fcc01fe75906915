// Decapsulation on a real server: removes the outer headers from packets of a director's tunnel.
//
// Runs for every frame that the interface receives, before the kernel's network stack. A packet is decapsulated if its
// outer destination is in `outer_dests` and its inner destination in `virtuals`. The inner packet may be directly in
// IPv4 or IPv6 (RFC 2003, RFC 4213, RFC 2473), behind a GRE header (RFC 2784), or behind UDP and GUE headers
// (draft-ietf-intarea-gue) to a port in `gue_ports`. All other packets pass unchanged: fragments, which only the kernel
// can reassemble, headers with options that a director does not write, and packets that cannot be parsed. Two kinds are
// dropped, as by the kernel's own tunnels: a wrong checksum of the tunnel's header, and an outer header with a
// congestion mark around a packet that cannot carry the mark (RFC 6040 section 4.2).

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Address families, as IP version numbers. */
enum { V4 = 4, V6 = 6 };

/* An address as a map key, in network byte order; an IPv4 address has the first 4 bytes, the rest is zero. */
struct address {
	__u8 addr[16];
	__u32 family;
};

struct addresses {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct address);
	__type(value, __u32);
};

// Outer destinations: addresses of this machine. Inner destinations: virtual addresses.
struct addresses outer_dests SEC(".maps");
struct addresses virtuals SEC(".maps");

// UDP ports of GUE.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __be16);
	__type(value, __u32);
} gue_ports SEC(".maps");

// Counters, in the order of `Counters` in src/decapsulation.rs.
enum { TAKEN_IP, TAKEN_GRE, TAKEN_GUE, LEFT, BAD_CHECKSUM, CONGESTED };
struct counters {
	__u64 of[8];
};

// One cache line for each of the first 64 CPUs; further CPUs share these lines.
#define COUNTER_LINES 64
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COUNTER_LINES);
	__type(key, __u32);
	__type(value, struct counters);
} decap_counters SEC(".maps");

struct tag {
	__be16 control;
	__be16 ethertype;
};

struct gre {
	__be16 flags;
	__be16 protocol;
};

struct gue {
	__u8 version_control_length;
	__u8 protocol;
	__be16 flags;
};

#define MAX_TAGS 2
#define ECN_MASK 3
#define ECN_CE 3
#define GRE_CHECKSUM 0x8000
// Highest offset of a payload: link header, tags and an outer header with options are shorter. The verifier needs it.
#define MAX_PAYLOAD 127
// Keeps the compiler from computing a value a second time, and from what it knows of it: the verifier knows the bounds of
// the first result only, and those that are compared.
#define PIN(value) asm volatile("" : "+r"(value))
// Bytes that are summed in one step.
#define CHUNK 128

// An outer header; offsets count from the frame's first byte.
struct outer {
	struct address dest;
	__u32 network;   // offset of the header
	__u32 payload;   // offset of the payload
	__u32 bytes;     // length of the payload
	__u32 addresses; // checksum of source and destination
	__u8 protocol;
	__u8 ecn;
};

static __always_inline void count(__u32 index)
{
	__u32 line = bpf_get_smp_processor_id() % COUNTER_LINES;
	struct counters *counters = bpf_map_lookup_elem(&decap_counters, &line);
	if (counters)
		__sync_fetch_and_add(&counters->of[index & 7], 1);
}

static __always_inline int counted(__u32 index, int verdict)
{
	count(index);
	return verdict;
}

// Offset of the network header, behind up to two VLAN tags; 0 if the frame is too short.
static __always_inline __u32 network_offset(void *data, void *end, __be16 *ethertype)
{
	struct ethhdr *eth = data;
	if ((void *)(eth + 1) > end)
		return 0;
	*ethertype = eth->h_proto;
	__u32 offset = sizeof(*eth);
	for (int i = 0; i < MAX_TAGS; i++) {
		if (*ethertype != bpf_htons(ETH_P_8021Q) && *ethertype != bpf_htons(ETH_P_8021AD))
			break;
		struct tag *tag = data + offset;
		if ((void *)(tag + 1) > end)
			return 0;
		*ethertype = tag->ethertype;
		offset += sizeof(*tag);
	}
	return offset;
}

static __always_inline __u32 folded(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

// One's complement sum of an IPv4 header, folded; 0xffff if the checksum is valid (RFC 1071).
static __always_inline __u32 header_sum(struct xdp_md *ctx, __u32 offset, __u32 bytes)
{
	__u8 header[60] = {};
	// Clang 19 knows that it is at most 60, and the verifier does not.
	PIN(bytes);
	if (bytes > sizeof(header) || bpf_xdp_load_bytes(ctx, offset, header, bytes))
		return 0;
	return folded(bpf_csum_diff(0, 0, (__be32 *)header, sizeof(header), 0));
}

struct summing {
	struct xdp_md *ctx;
	__u32 offset;
	__u32 bytes;
	__u32 sum;
};

// Adds the next chunk to the sum; returns 1 to end the loop.
static long sum_chunk(__u32 index, void *data)
{
	struct summing *summing = data;
	__u8 chunk[CHUNK] = {};
	__u32 now = summing->bytes;

	(void)index;
	if (now > CHUNK)
		now = CHUNK;
	if (now == 0)
		return 1;
	// The verifier of Linux 6.1 does not learn from the comparison that the length is not 0.
	__u32 last = now - 1;
	PIN(last);
	if (bpf_xdp_load_bytes(summing->ctx, summing->offset, chunk, (last & (CHUNK - 1)) + 1))
		return 1;
	summing->sum = bpf_csum_diff(0, 0, (__be32 *)chunk, sizeof(chunk), summing->sum);
	summing->offset += now;
	summing->bytes -= now;
	return 0;
}

// One's complement sum of `bytes` bytes of the frame and of `sum`, folded; 0 if they cannot be read.
static __always_inline __u32 frame_sum(struct xdp_md *ctx, __u32 offset, __u32 bytes, __u32 sum)
{
	struct summing summing = { ctx, offset, bytes, sum };
	bpf_loop(bytes / CHUNK + 1, sum_chunk, &summing, 0);
	return summing.bytes ? 0 : folded(summing.sum);
}

// Reads the outer header; returns 0 for fragments, invalid headers and other protocols.
static __always_inline int read_outer(struct xdp_md *ctx, __be16 ethertype, struct outer *outer)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	void *network = data + outer->network;
	PIN(network);

	if (ethertype == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = network;
		if ((void *)(ip + 1) > end || ip->version != 4)
			return 0;
		__u32 header = ip->ihl * 4, total = bpf_ntohs(ip->tot_len);
		if (header < sizeof(*ip) || total < header || bpf_ntohs(ip->frag_off) & 0x3fff)
			return 0;
		if (header_sum(ctx, outer->network, header) != 0xffff)
			return 0;
		__builtin_memcpy(outer->dest.addr, &ip->daddr, sizeof(ip->daddr));
		outer->dest.family = V4;
		outer->payload = outer->network + header;
		outer->bytes = total - header;
		outer->protocol = ip->protocol;
		outer->ecn = ip->tos & ECN_MASK;
		outer->addresses = bpf_csum_diff(0, 0, &ip->saddr, 8, 0);
	} else if (ethertype == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = network;
		if ((void *)(ip + 1) > end || ip->version != 6)
			return 0;
		__builtin_memcpy(outer->dest.addr, &ip->daddr, sizeof(ip->daddr));
		outer->dest.family = V6;
		outer->payload = outer->network + sizeof(*ip);
		outer->bytes = bpf_ntohs(ip->payload_len);
		outer->protocol = ip->nexthdr;
		outer->ecn = ip->flow_lbl[0] >> 4 & ECN_MASK;
		outer->addresses = bpf_csum_diff(0, 0, (__be32 *)&ip->saddr, 32, 0);
	} else {
		return 0;
	}
	// In a frame of several buffers, `end` is the end of the first one.
	return bpf_xdp_get_buff_len(ctx) >= (__u64)outer->payload + outer->bytes;
}

// Sets the congestion mark of an inner packet; returns 0 if the packet cannot carry it. Updates the checksum of an IPv4
// header (RFC 1624, eqn. 3).
static __always_inline int mark_congestion(void *inner, __u32 family)
{
	if (family == V6) {
		struct ipv6hdr *ip = inner;
		if (!(ip->flow_lbl[0] >> 4 & ECN_MASK))
			return 0;
		ip->flow_lbl[0] |= ECN_CE << 4;
		return 1;
	}
	struct iphdr *ip = inner;
	if (!(ip->tos & ECN_MASK))
		return 0;
	__be16 *first = inner;
	__be16 old = *first;
	ip->tos |= ECN_CE;
	ip->check = ~folded((__u32)(__u16)~ip->check + (__u16)~old + *first);
	return 1;
}

// Removes `headers` bytes behind the link header, which has `l2` bytes, and sets its Ethernet type.
static __always_inline int strip(struct xdp_md *ctx, __u32 l2, __u32 headers, __be16 ethertype)
{
	__u8 front[sizeof(struct ethhdr) + MAX_TAGS * sizeof(struct tag)];
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	// The length is a constant in each branch, so that the copies compile to loads and stores.
#define STRIP(length)                                                              \
	do {                                                                       \
		if (data + (length) > end)                                         \
			return XDP_PASS;                                           \
		__builtin_memcpy(front, data, (length));                           \
		__builtin_memcpy(front + (length) - 2, &ethertype, 2);             \
		if (bpf_xdp_adjust_head(ctx, headers))                             \
			return XDP_PASS;                                           \
		data = (void *)(long)ctx->data;                                    \
		end = (void *)(long)ctx->data_end;                                 \
		if (data + (length) > end)                                         \
			return XDP_ABORTED;                                        \
		__builtin_memcpy(data, front, (length));                           \
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
	__be16 ethertype;
	struct outer outer = {};

	outer.network = network_offset(data, end, &ethertype);
	if (!outer.network || !read_outer(ctx, ethertype, &outer))
		return XDP_PASS;

	// The headers between outer and inner: their length, the type of the inner packet, whether they have a checksum.
	__u32 at = outer.payload;
	PIN(at);
	if (at > MAX_PAYLOAD)
		return XDP_PASS;
	void *payload = data + at;
	PIN(payload);
	__u32 between = 0, taken = TAKEN_IP, summed = 0, seed = 0;
	if (outer.protocol == IPPROTO_IPIP) {
		ethertype = bpf_htons(ETH_P_IP);
	} else if (outer.protocol == IPPROTO_IPV6) {
		ethertype = bpf_htons(ETH_P_IPV6);
	} else if (outer.protocol == IPPROTO_GRE) {
		struct gre *gre = payload;
		if ((void *)(gre + 1) > end)
			return XDP_PASS;
		summed = gre->flags == bpf_htons(GRE_CHECKSUM);
		if (gre->flags && !summed)
			return XDP_PASS;
		taken = TAKEN_GRE;
		between = summed ? 8 : 4;
		ethertype = gre->protocol;
	} else if (outer.protocol == IPPROTO_UDP) {
		struct udphdr *udp = payload;
		struct gue *gue = (void *)(udp + 1);
		if ((void *)(gue + 1) > end)
			return XDP_PASS;
		__be16 port = udp->dest;
		if (!bpf_map_lookup_elem(&gue_ports, &port))
			return XDP_PASS;
		if (bpf_ntohs(udp->len) != outer.bytes || gue->version_control_length || gue->flags)
			return XDP_PASS;
		taken = TAKEN_GUE;
		between = sizeof(*udp) + sizeof(*gue);
		summed = udp->check != 0;
		// `outer.addresses` may have any 32 bits: before Linux 6.13 bpf_csum_diff() does not fold its result.
		seed = folded((__u64)outer.addresses + bpf_htons(IPPROTO_UDP) + udp->len);
		ethertype = bpf_htons(gue->protocol == IPPROTO_IPV6 ? ETH_P_IPV6 : ETH_P_IP);
		if (gue->protocol != IPPROTO_IPIP && gue->protocol != IPPROTO_IPV6)
			return XDP_PASS;
	} else {
		return XDP_PASS;
	}
	if (!bpf_map_lookup_elem(&outer_dests, &outer.dest))
		return XDP_PASS;

	// The inner packet. The outer one is of a tunnel to this machine, so from here on every packet is counted.
	struct address dest = {};
	void *inner = payload + between;
	PIN(inner);
	__u32 total;
	if (ethertype == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = inner;
		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
			return counted(LEFT, XDP_PASS);
		total = bpf_ntohs(ip->tot_len);
		if (total < ip->ihl * 4)
			return counted(LEFT, XDP_PASS);
		__builtin_memcpy(dest.addr, &ip->daddr, sizeof(ip->daddr));
		dest.family = V4;
	} else if (ethertype == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = inner;
		if ((void *)(ip + 1) > end || ip->version != 6)
			return counted(LEFT, XDP_PASS);
		total = sizeof(*ip) + bpf_ntohs(ip->payload_len);
		__builtin_memcpy(dest.addr, &ip->daddr, sizeof(ip->daddr));
		dest.family = V6;
	} else {
		return counted(LEFT, XDP_PASS);
	}
	if (between + total > outer.bytes || !bpf_map_lookup_elem(&virtuals, &dest))
		return counted(LEFT, XDP_PASS);
	if (summed && frame_sum(ctx, outer.payload, outer.bytes, seed) != 0xffff)
		return counted(BAD_CHECKSUM, XDP_DROP);
	if (outer.ecn == ECN_CE && !mark_congestion(inner, dest.family))
		return counted(CONGESTED, XDP_DROP);
	count(taken);
	return strip(ctx, outer.network, outer.payload - outer.network + between, ethertype);
}

char _license[] SEC("license") = "Dual MIT/GPL";
