/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Limits of SYNs in the steering program.
 *
 * Drops the SYNs of a service above its rate before anything is copied, by the generic cell rate algorithm (ITU-T
 * I.371). Cost for packets of other services: none, because the number of a service's limit is in the value of its
 * endpoint. Not here: what workers decide (src/snapshot/syn_limits.rs).
 */
#ifndef XVS_SYN_LIMITS_H
#define XVS_SYN_LIMITS_H

#include "maps.h"
#include "packet.h"

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xvs_syn_limits);
} syn_limits SEC(".maps");

/* How often a SYN tries to take its turn, while programs on other cores take theirs. */
#define TRIES 4

static __always_inline int is_syn(struct xdp_md *ctx, __u32 offset)
{
	__u8 *flags = bytes_at(ctx, offset + TCP_FLAGS, 1);
	return flags && (*flags & (TCP_SYN | TCP_RST | TCP_ACK)) == TCP_SYN;
}

/* Whether a SYN is above the limit of this number. */
static __noinline int is_above_limit(__u32 number)
{
	__u32 first = 0;
	struct xvs_syn_limits *limits = bpf_map_lookup_elem(&syn_limits, &first);
	if (!limits)
		return 0;
	struct xvs_syn_limit *limit = &limits->of[number & (XVS_SYN_LIMITS - 1)];
	__u64 now = bpf_ktime_get_ns(), due = *(volatile __u64 *)&limit->due_ns;
#pragma unroll
	for (int i = 0; i < TRIES; i++) {
		if (due > now + limit->early_ns)
			break;
		__u64 next = (due > now ? due : now) + limit->interval_ns;
		__u64 before = __sync_val_compare_and_swap(&limit->due_ns, due, next);
		if (before == due)
			return 0;
		due = before;
	}
	/* Each try was within the limit, but others took their turns. */
	if (due <= now + limit->early_ns)
		return 0;
	__sync_fetch_and_add(&limit->dropped[bpf_get_smp_processor_id() & (XVS_STRIPES - 1)][0], 1);
	return 1;
}

#endif
