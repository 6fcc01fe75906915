/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What the steering program and own.bpf.c share: both are loaded with the same maps. */
#ifndef XVS_SHARED_H
#define XVS_SHARED_H

#include "hold.h"
#include "maps.h"

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

/* xvsd sets the sizes of both maps, the same for both. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct xvs_endpoint);
	__type(value, __u32);
} endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
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

/* In the fields of an IPv4 header and of a fragment header of IPv6, in host order. */
#define IP4_OFFSET_AND_MORE 0x3fff
#define IP4_DONT_FRAGMENT 0x4000
#define IP6_OFFSET_AND_MORE 0xfff9

static __always_inline __u32 address_roles(const __u8 *addr, __u8 family)
{
	struct xvs_address key = { .family = family };
	__builtin_memcpy(key.addr, addr, 16);
	__u32 *roles = bpf_map_lookup_elem(&addresses, &key);
	return roles ? *roles : 0;
}

#endif
