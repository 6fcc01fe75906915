// SPDX-License-Identifier: MIT OR Apache-2.0
/* The forged packets of the suite `scripts/soak attack`: copies of one frame, each from another source, which an
 * interface sends. Runs as BPF_PROG_TEST_RUN with live frames, so no packet costs a system call or a socket buffer.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define FRAME_BYTES 96
#define SOURCE (sizeof(struct ethhdr) + __builtin_offsetof(struct iphdr, saddr))
#define ID (sizeof(struct ethhdr) + __builtin_offsetof(struct iphdr, id))
#define HEADER_SUM (sizeof(struct ethhdr) + __builtin_offsetof(struct iphdr, check))

/* Set before the program is loaded: nanoseconds from packet to packet, times 1024 (0 means without a pause); the
 * interface; places in the frame of the transport's checksum, of a port and of a
 * sequence number, where 0 means none, and whether the checksum includes the source; the frame. All that changes is
 * zero there: the last three bytes of the source, the identification, the port and the number.
 */
const volatile __u64 interval = 0;
const volatile __u32 interface = 0;
const volatile __u32 sum_at = 0;
const volatile __u32 port_at = 0;
const volatile __u32 number_at = 0;
const volatile __u32 sums_source = 0;
const volatile __u32 frame[FRAME_BYTES / 4] = {};

/* Packets that are sent at once if the thread was late. */
#define MOST_LATE 128
/* Of the clock, before a packet is sent although it is not due: enough for 20,000 packets a second. */
#define MOST_READINGS 2000

/* When the next packet is due; only one thread runs the program. */
static __u64 due;

static __always_inline __u32 words(__u32 number)
{
	return (number & 0xffff) + (number >> 16);
}

/* A checksum of 16 bits after its packet has got `more`. */
static __always_inline void add(__u16 *sum, __u32 more)
{
	*sum = ~words(words((__u16)~*sum + more));
}

SEC("xdp")
int forge(struct xdp_md *ctx)
{
	__u8 *packet = (void *)(long)ctx->data;
	if (packet + FRAME_BYTES > (__u8 *)(long)ctx->data_end)
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
	/* The copy may have been sent before, with changes. */
#pragma unroll
	for (int i = 0; i < FRAME_BYTES / 4; i++)
		((__u32 *)packet)[i] = frame[i];
	__u32 source = bpf_get_prandom_u32() & bpf_htonl(0x00ffffff);
	__u32 number = bpf_get_prandom_u32();
	__u16 port = bpf_get_prandom_u32() | 1;
	__u16 id = bpf_get_prandom_u32();
	*(__u16 *)(packet + SOURCE) |= source;
	*(__u16 *)(packet + SOURCE + 2) |= source >> 16;
	*(__u16 *)(packet + ID) = id;
	add((__u16 *)(packet + HEADER_SUM), words(source) + id);
	__u32 more = sums_source ? words(source) : 0;
	if (port_at && port_at < FRAME_BYTES - 2) {
		*(__u16 *)(packet + port_at) = port;
		more += port;
	}
	if (number_at && number_at < FRAME_BYTES - 4) {
		*(__u16 *)(packet + number_at) = number;
		*(__u16 *)(packet + number_at + 2) = number >> 16;
		more += words(number);
	}
	if (sum_at && sum_at < FRAME_BYTES - 2)
		add((__u16 *)(packet + sum_at), more);
	return bpf_redirect(interface, 0);
}

char _license[] SEC("license") = "Dual MIT/GPL";
