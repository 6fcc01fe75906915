// SPDX-License-Identifier: MIT OR Apache-2.0
/* The real servers' end of the load of `scripts/soak sync`: remembers which packets of each connection have arrived,
 * and drops them. All other packets pass. Runs where the interface's packets enter the kernel (tc), behind the program
 * that unpacks tunnels; only one core runs it there.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* The network of the clients: the rest of an address is the number of its connection. */
#define CLIENTS 10

struct packet {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct tcphdr tcp;
} __attribute__((packed));

/* For each connection a bit for each kind of packet, which is in the packet's window. The size is set when loading. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

/* The number of the last packet, which is its sequence number. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} last SEC(".maps");

SEC("tc")
int sink(struct __sk_buff *ctx)
{
	/* While a director's cable is pulled, the switch sends all ports what is for it. */
	if (ctx->pkt_type != PACKET_HOST)
		return TC_ACT_OK;
	struct packet *packet = (void *)(long)ctx->data;
	if ((void *)(packet + 1) > (void *)(long)ctx->data_end || packet->ethernet.h_proto != bpf_htons(ETH_P_IP) ||
	    packet->ip.protocol != IPPROTO_TCP || packet->ip.ihl != 5)
		return TC_ACT_OK;
	__u32 client = bpf_ntohl(packet->ip.saddr), connection = client & 0xffffff, first = 0;
	if (client >> 24 != CLIENTS)
		return TC_ACT_OK;
	__u64 *row = bpf_map_lookup_elem(&seen, &connection), *number = bpf_map_lookup_elem(&last, &first);
	if (row && number) {
		*row |= 1ULL << (bpf_ntohs(packet->tcp.window) & 63);
		*number = bpf_ntohl(packet->tcp.seq);
	}
	return TC_ACT_SHOT;
}

char _license[] SEC("license") = "Dual MIT/GPL";
