/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The hold: whether frames of services are kept from the kernel while no xvsd takes them.
 *
 * The link of the steering program may be pinned, so that the program outlives xvsd. Then frames of services that find
 * no socket are dropped, because the kernel would answer them with resets. When the last beat of a worker is too old,
 * the kernel gets them. Without a hold, the kernel gets the frames of a queue without a socket. The drop is `steer` of
 * redirect.bpf.c, the workers' side steering/hold.rs.
 */
#ifndef XVS_HOLD_H
#define XVS_HOLD_H

#include "maps.h"

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xvs_hold);
} hold SEC(".maps");

/* Whether there is a hold, and it is over at this time of the coarse clock: the last beat is too old. That clock costs a
 * fifth of the exact one, but is up to a tick behind, so a beat may be later.
 */
static __always_inline int is_over_at(const struct xvs_hold *held, __u64 now)
{
	__u64 beat;
	if (!held || !held->hold_ns)
		return 0;
	beat = *(volatile __u64 *)&held->beat_ns;
	return now > beat && now - beat >= held->hold_ns;
}

static __always_inline int is_over(const struct xvs_hold *held)
{
	return held && held->hold_ns && is_over_at(held, bpf_ktime_get_coarse_ns());
}

#endif
