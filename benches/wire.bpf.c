// SPDX-License-Identifier: MIT OR Apache-2.0
/* Both ends of the benches with UDP: `source` turns copies of one frame into UDP packets of several flows and sends
 * them by an interface, `far_end` drops them or sends them back, `sink` drops all that an interface receives.
 *
 * `source` runs as BPF_PROG_TEST_RUN with live frames (benches/udp_source.rs), so no packet costs a system call or a
 * socket buffer. The flow is in the source's port and address; complements in the payload and in the identification
 * keep the checksums. The kernel sends redirected frames in groups of 16.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* 64 bytes on the wire, less the frame check sequence. */
#define FRAME_BYTES 60

/* Set before the program is loaded: nanoseconds from packet to packet, times 1024 (0 means without a pause); the
 * interface; the number of flows, the source port of the first, and the flows of each address; the frame, which is of
 * the first.
 */
const volatile __u64 interval = 0;
const volatile __u32 interface = 0;
const volatile __u32 flows = 1;
const volatile __u32 first_port = 0;
const volatile __u32 flows_of_address = 1;
const volatile __u32 frame[FRAME_BYTES / 4] = {};

/* From a packet's flow to the next one's, so that these are not neighbours in any table; prime. */
#define STRIDE 61813
/* Packets that are sent at once if the thread was late. */
#define MOST_LATE 128
/* Of the clock, before a packet is sent although it is not due: enough for 20,000 packets a second. */
#define MOST_READINGS 2000

struct packet {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct udphdr udp;
	__be16 port_complement;
	__be16 address_complement;
	/* Whether the far end sends the packet back. */
	__u8 is_answered;
	__u8 rest[13];
} __attribute__((packed));

_Static_assert(sizeof(struct packet) == FRAME_BYTES, "a packet is a frame");

/* Packets, and when the next one is due; only one thread runs the program. */
static __u32 number;
static __u64 due;

SEC("xdp")
int source(struct xdp_md *ctx)
{
	struct packet *packet = (void *)(long)ctx->data;
	if ((void *)(packet + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	if (interval) {
		__u64 now = 0;
		for (int i = 0; i < MOST_READINGS; i++) {
			now = bpf_ktime_get_ns() << 10;
			if (now >= due)
				break;
		}
		/* After a pause of this thread, it does not send all at once what was due meanwhile. */
		due = now > due + MOST_LATE * interval ? now : due + interval;
	}
	/* The copy may have been forwarded before, with changes. */
#pragma unroll
	for (int i = 0; i < FRAME_BYTES / 4; i++)
		((__u32 *)packet)[i] = frame[i];
	__u32 flow = (__u64)number++ * STRIDE % flows, address = flow / flows_of_address;
	__be16 port = bpf_htons(first_port + flow % flows_of_address);
	packet->udp.source = port;
	packet->port_complement = ~port;
	packet->ip.saddr = bpf_htonl(bpf_ntohl(packet->ip.saddr) + address);
	packet->ip.id = packet->address_complement = ~bpf_htons(address);
	return bpf_redirect(interface, 0);
}

SEC("xdp")
int far_end(struct xdp_md *ctx)
{
	struct packet *packet = (void *)(long)ctx->data;
	if ((void *)(packet + 1) > (void *)(long)ctx->data_end || packet->ethernet.h_proto != bpf_htons(ETH_P_IP) ||
	    packet->ip.protocol != IPPROTO_UDP || !packet->is_answered)
		return XDP_DROP;
	struct packet received = *packet;
	__builtin_memcpy(packet->ethernet.h_dest, received.ethernet.h_source, ETH_ALEN);
	__builtin_memcpy(packet->ethernet.h_source, received.ethernet.h_dest, ETH_ALEN);
	packet->ip.saddr = received.ip.daddr;
	packet->ip.daddr = received.ip.saddr;
	packet->udp.source = received.udp.dest;
	packet->udp.dest = received.udp.source;
	/* After XDP_TX veth does not wake a peer without an XDP program. */
	return bpf_redirect(ctx->ingress_ifindex, 0);
}

SEC("xdp")
int sink(struct xdp_md *ctx __attribute__((unused)))
{
	return XDP_DROP;
}

char _license[] SEC("license") = "Dual MIT/GPL";
