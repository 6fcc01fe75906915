/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Access lists in the steering program.
 *
 * Checks whole packets to services by their source, and drops what a list refuses before anything is copied. Workers
 * check all packets, too. They alone check packets whose service is not certain here: fragments, data of FTP, packets
 * to networks that mark rules name, and packets to local ports of FULLNAT, which may be replies. Runs before the other
 * look-ups, so that a denied packet costs few of them. Cost: without lists one load; for a source in no list two; for
 * others the look-up of the service, and one for each prefix length in use; for refused packets also that of local
 * ports. Not here: which list refuses, in what order (src/snapshot/lists.rs).
 */
#ifndef XVS_LISTS_H
#define XVS_LISTS_H

#include "maps.h"
#include "packet.h"
#include "roles.h"

#include <linux/bpf.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xvs_list_filter);
} list_filter SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xvs_list_drops);
} list_drops SEC(".maps");

/* By service: its scope plus 1. A service of an exact endpoint that is not in the map has the scope of all services. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, XVS_MAX_SCOPED);
	__type(key, struct xvs_endpoint);
	__type(value, __u32);
} list_scopes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, XVS_LIST_PLACES);
	__type(key, __u32);
	__type(value, struct xvs_lengths);
} list_lengths SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, XVS_LIST_PLACES);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_HASH);
		__uint(max_entries, 1);
		__uint(key_size, sizeof(struct xvs_network));
		__uint(value_size, sizeof(__u32));
	});
} lists SEC(".maps");

/* The state of the lists, if the source of a packet may be in one or there are allow lists; else 0. */
static __always_inline __u64 lists_for(const struct packet *packet)
{
	__u32 first = 0, bit;
	struct xvs_list_filter *filter = bpf_map_lookup_elem(&list_filter, &first);
	if (!filter)
		return 0;
	__u64 state = *(volatile __u64 *)&filter->state;
	if (!state || state & XVS_ALLOWS)
		return state;
	const __be32 *addr = (const __be32 *)packet->source;
	if (packet->family == XVS_V4) {
		bit = bpf_ntohl(addr[0]) >> 8;
	} else {
		if (state & XVS_WIDE_V6)
			return state;
		__u64 network = (__u64)bpf_ntohl(addr[0]) << 16 | bpf_ntohl(addr[1]) >> 16;
		bit = XVS_V4_BITS + (network * 0x9e3779b97f4a7c15 >> 41);
	}
	/* Below the number of words, for the verifier. */
	__u32 word = bit >> 6;
	return word < sizeof(filter->words) / 8 && filter->words[word] >> (bit & 63) & 1 ? state : 0;
}

struct query {
	__u32 addr[4];
	__u32 family;
	__u32 place;
};

/* Whether an address is in a network of this length in the list at its place. The verifier checks a non-static function
 * only once, and not once for each length.
 */
__noinline int in_network(const struct query *query, __s32 len)
{
	if (!query)
		return 0;
	__u32 place = query->place;
	void *list = bpf_map_lookup_elem(&lists, &place);
	if (!list)
		return 0;
	struct xvs_network key = { .family_and_len = query->family << 8 | len };
	for (int word = 0; word < 4; word++) {
		/* The bits of this word that count. */
		__s32 bits = len - 32 * word;
		bits = bits < 0 ? 0 : bits > 32 ? 32 : bits;
		key.addr[word] = query->addr[word] & bpf_htonl((__u32)(0xffffffff00000000 >> bits));
	}
	return bpf_map_lookup_elem(list, &key) != NULL;
}

/* Whether an address is in the list at a place; 2: there is no list. */
__noinline int in_list(const struct query *query)
{
	if (!query)
		return 2;
	__u32 place = query->place;
	struct xvs_lengths *lengths = bpf_map_lookup_elem(&list_lengths, &place);
	if (!lengths || !(lengths->v4 + lengths->v6))
		return 2;
	if (!bpf_map_lookup_elem(&lists, &place))
		return 2;
	int v4 = query->family == XVS_V4;
	__u32 at = v4 ? 0 : XVS_V6_LENGTHS, end = at + (v4 ? lengths->v4 : lengths->v6);
	for (; at < XVS_LENGTHS; at++) {
		if (at >= end)
			break;
		if (in_network(query, lengths->len[at]))
			return 1;
	}
	return 0;
}

/* Refuses a packet by the list at a place, unless it may be a reply to a local port of FULLNAT. */
static __always_inline int refuse(const struct packet *packet, __u32 place)
{
	__u32 first = 0;
	if (is_translated(packet))
		return 0;
	struct xvs_list_drops *drops = bpf_map_lookup_elem(&list_drops, &first);
	if (drops)
		__sync_fetch_and_add(
			&drops->packets[place & (XVS_LIST_PLACES - 1)][bpf_get_smp_processor_id() & (XVS_STRIPES - 1)][0], 1);
	return 1;
}

/* Whether a packet goes to a service, and a list refuses it. Which service that is must be certain. */
static __noinline int is_refused(const struct packet *packet, __u64 state)
{
	__u32 scope = 0, *found = NULL;
	int is_exact = endpoint_roles(packet->dest, packet->dest_port, packet) & XVS_SERVICE;
	if (!is_exact || state & XVS_SCOPED) {
		struct xvs_endpoint key = { .port = packet->dest_port, .protocol = packet->protocol, .family = packet->family };
		__builtin_memcpy(key.addr, packet->dest, 16);
		found = bpf_map_lookup_elem(&list_scopes, &key);
		if (!found && !is_exact) {
			key.port = XVS_ANY_PORT;
			found = bpf_map_lookup_elem(&list_scopes, &key);
			if (!found)
				return 0;
		}
		if (found)
			scope = *found - 1;
	}
	/* A mark may choose another service. */
	if (state & XVS_MARKED && in_prefix(packet->dest, packet->family))
		return 0;
	struct query query = { .family = packet->family };
	__builtin_memcpy(query.addr, packet->source, 16);
	for (__u32 i = scope ? 0 : 2; i < 4; i++) {
		query.place = (i < 2 ? scope * 4 : 0) + (i & 1);
		if (in_list(&query) == 1)
			return refuse(packet, query.place);
	}
	if (!(state & XVS_ALLOWS))
		return 0;
	for (__u32 i = scope ? 0 : 1; i < 2; i++) {
		query.place = (i < 1 ? scope * 4 : 0) + XVS_ALLOW;
		int of_commands = in_list(&query);
		query.place++;
		int of_file = in_list(&query);
		if (of_commands != 1 && of_file != 1 && !(of_commands & of_file & 2))
			return refuse(packet, query.place);
	}
	return 0;
}

#endif
