/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What the maps say of the ends of a packet. */
#ifndef XVS_ROLES_H
#define XVS_ROLES_H

#include "maps.h"
#include "packet.h"
#include "shared.h"

#include <linux/bpf.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xvs_filter);
} filter SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, XVS_MAX_PREFIXES);
	__type(key, struct xvs_prefix);
	__type(value, __u32);
} prefixes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, XVS_MAX_TRANSLATED);
	__type(key, struct xvs_address);
	__type(value, __u32);
} translated SEC(".maps");

/* Whether the bit of an endpoint is set. */
static __always_inline int has_bit(const struct xvs_filter *bits, const __u8 *addr, __be16 port, __u8 protocol)
{
	const __be32 *words = (const __be32 *)addr;
	__u64 key = (__u64)(words[0] ^ words[1] ^ words[2] ^ words[3]) << 32 | (__u32)port << 16 | protocol;
	__u32 bit = key * 0x9e3779b97f4a7c15 >> (64 - XVS_FILTER_BITS);
	return bits->words[bit >> 6] >> (bit & 63) & 1;
}

/* Whether a whole packet may be to a service. `bits` may say so of others, too, but never misses one; so do the next two
 * functions.
 */
static __always_inline int is_to_service(const struct xvs_filter *bits, const struct packet *packet)
{
	return has_bit(bits, packet->dest, packet->dest_port, packet->protocol) ||
	       has_bit(bits, packet->dest, XVS_ANY_PORT, packet->protocol) || bits->has_prefixes;
}

/* Whether it may come from a real server of NAT. */
static __always_inline int is_from_server(const struct xvs_filter *bits, const struct packet *packet)
{
	return has_bit(bits, packet->source, packet->source_port, packet->protocol) ||
	       has_bit(bits, packet->source, XVS_ANY_PORT, packet->protocol);
}

/* Whether it may be to a local address of FULLNAT. */
static __always_inline int is_to_local(const struct xvs_filter *bits, const struct packet *packet)
{
	return has_bit(bits, packet->dest, XVS_ANY_PORT, XVS_LOCAL_PROTOCOL);
}

static __always_inline __u32 endpoint_roles(const __u8 *addr, __be16 port, const struct packet *packet)
{
	struct xvs_endpoint key = { .port = port, .protocol = packet->protocol, .family = packet->family };
	__builtin_memcpy(key.addr, addr, 16);
	__u32 *roles = bpf_map_lookup_elem(&endpoints, &key);
	return roles ? *roles : 0;
}

static __always_inline int in_prefix(const __u8 *addr, __u8 family)
{
	struct xvs_prefix key = { .bits = 32 + 128, .family = { family } };
	__builtin_memcpy(key.addr, addr, 16);
	return bpf_map_lookup_elem(&prefixes, &key) != NULL;
}

/* Whether an endpoint has a role, or its address has it at every port. */
static __always_inline int has_role(const __u8 *addr, __be16 port, const struct packet *packet, __u32 role)
{
	return endpoint_roles(addr, port, packet) & role || endpoint_roles(addr, XVS_ANY_PORT, packet) & role;
}

/* Whether a packet's destination port is a local port of FULLNAT. */
static __always_inline int is_translated(const struct packet *packet)
{
	struct xvs_address key = { .family = packet->family };
	__builtin_memcpy(key.addr, packet->dest, 16);
	__u32 *ports = bpf_map_lookup_elem(&translated, &key);
	__u16 port = bpf_ntohs(packet->dest_port);
	return ports && port >= XVS_FIRST_PORT(*ports) && port <= XVS_LAST_PORT(*ports);
}

#endif
