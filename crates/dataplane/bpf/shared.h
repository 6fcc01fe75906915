/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What the steering program and own.bpf.c share: both are loaded with the same maps. */
#ifndef XVS_SHARED_H
#define XVS_SHARED_H

#include "maps.h"

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, XVS_MAX_ENDPOINTS);
	__type(key, struct xvs_endpoint);
	__type(value, __u32);
} endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, XVS_MAX_ADDRESSES);
	__type(key, struct xvs_address);
	__type(value, __u32);
} addresses SEC(".maps");

/* The endpoints of clients on this machine, which own.bpf.c enters. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, XVS_MAX_CLIENTS);
	__type(key, struct xvs_endpoint);
	__type(value, __u32);
} clients SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xvs_hold);
} hold SEC(".maps");

/* Whether there is a hold, and it is over: the last beat is too old. The coarse clock is up to a tick behind, and costs a
 * fifth. A beat may be later than it.
 */
static __always_inline int is_over(const struct xvs_hold *held)
{
	if (!held || !held->hold_ns)
		return 0;
	__u64 beat = *(volatile __u64 *)&held->beat_ns, now = bpf_ktime_get_coarse_ns();
	return now > beat && now - beat >= held->hold_ns;
}

#endif
