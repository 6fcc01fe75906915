/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Layouts that the steering program shares with src/steering/maps.rs, which tests that both agree.
 *
 * Addresses are in network order; an IPv4 address takes the first 4 of its 16 bytes, the rest is zero. The family
 * is part of every key, so an IPv6 packet with a v4-mapped address never meets an IPv4 rule.
 */
#ifndef XVS_MAPS_H
#define XVS_MAPS_H

#include <linux/types.h>

/* Families, by the number of the IP version. */
enum { XVS_V4 = 4, XVS_V6 = 6 };

/* What a key is to the director; values of the first three maps are sets of these. */
enum {
	XVS_SERVICE = 1 << 0,     /* packets to it are ours */
	XVS_DESTINATION = 1 << 1, /* packets from it are ours, unless they go to this machine */
	XVS_LOCAL = 1 << 2,       /* an address of this machine */
	XVS_TRANSLATED = 1 << 3,  /* packets to some of its ports are ours: see `translated` */
	XVS_TUNNEL = 1 << 4,      /* errors about tunnels to it are ours */
};

/* Port of an endpoint that stands for every port of its address. */
#define XVS_ANY_PORT 0

/* Key of the map `endpoints`. */
struct xvs_endpoint {
	__u8 addr[16];
	__be16 port;
	__u8 protocol;
	__u8 family;
};

/* Key of the map `addresses`: everything that has a role at any port. */
struct xvs_address {
	__u8 addr[16];
	__u32 family;
};

/* Key of the map `prefixes`, an LPM trie; the family counts among the leading bits. */
struct xvs_prefix {
	__u32 bits;
	__u8 family[4];
	__u8 addr[16];
};

/* Value of the map `translated`, by address: the first and the last port whose packets are ours. */
#define XVS_FIRST_PORT(ports) ((ports) >> 16)
#define XVS_LAST_PORT(ports) ((ports) & 0xffff)

/* Before a frame that is passed to the kernel of an interface in generic mode: random bytes that nobody else knows. */
#define XVS_MARKER_SIZE 16

#define XVS_MAX_ENDPOINTS (1 << 18)
#define XVS_MAX_ADDRESSES (1 << 16)
#define XVS_MAX_PREFIXES (1 << 14)
#define XVS_MAX_TRANSLATED (1 << 11)
/* Receive queues of one interface. */
#define XVS_MAX_QUEUES 256

#endif
