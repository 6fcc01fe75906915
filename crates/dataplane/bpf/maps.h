/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Layouts that the steering program shares with src/steering/maps.rs; a test there compares the two.
 *
 * Addresses are in network order. An IPv4 address is in the first 4 of its 16 bytes, and the rest is zero. The family
 * is part of every key, so an IPv6 packet with a v4-mapped address never matches an IPv4 rule.
 */
#ifndef XVS_MAPS_H
#define XVS_MAPS_H

#include <linux/types.h>

/* Families, by the number of the IP version. */
enum { XVS_V4 = 4, XVS_V6 = 6 };

/* The roles of a key. The values of the first three maps are sets of these; XVS_CLIENTS is only for endpoints. The
 * upper half of an endpoint's value is the number of the limit of its SYNs; 0: none.
 */
enum {
	XVS_SERVICE = 1 << 0,     /* packets to it are steered */
	XVS_DESTINATION = 1 << 1, /* packets from it are steered, unless they go to this machine */
	XVS_LOCAL = 1 << 2,       /* an address of this machine */
	XVS_TRANSLATED = 1 << 3,  /* packets to some of its ports are steered: see `translated` */
	XVS_TUNNEL = 1 << 4,      /* errors about tunnels to it are steered */
	XVS_PROBE = 1 << 5,       /* whole packets to it are steered: replies to probes */
	XVS_CLIENTS = 1 << 6,     /* packets that this machine itself sends to it are redirected */
};

/* The port of an endpoint that stands for every port of its address. */
#define XVS_ANY_PORT 0

/* The key of the map `endpoints`. */
struct xvs_endpoint {
	__u8 addr[16];
	__be16 port;
	__u8 protocol;
	__u8 family;
};

/* The value of the map `filter`, which has one entry, and which xvsd maps into its memory: a bit for each hash of an
 * endpoint. Without its bit, an endpoint is not in `endpoints`. A local address of FULLNAT has port and protocol 0.
 */
#define XVS_FILTER_BITS 16
#define XVS_LOCAL_PROTOCOL 0
struct xvs_filter {
	__u64 has_prefixes; /* 0: `prefixes` is empty */
	__u64 words[(1 << XVS_FILTER_BITS) / 64];
};

/* The key of the map `addresses`, which holds the roles of an address at any port. */
struct xvs_address {
	__u8 addr[16];
	__u32 family;
};

/* The key of the map `prefixes`, an LPM trie. The family is part of the leading bits. */
struct xvs_prefix {
	__u32 bits;
	__u8 family[4];
	__u8 addr[16];
};

/* The value of the map `translated`, by address: the first and the last port whose packets are steered. */
#define XVS_FIRST_PORT(ports) ((ports) >> 16)
#define XVS_LAST_PORT(ports) ((ports) & 0xffff)

/* Access lists. A scope (all services, or one) has four places: deny, by commands and by a file; allow, by the same
 * two. The scope of all services is 0.
 */
#define XVS_SCOPES 256
#define XVS_LIST_PLACES (4 * XVS_SCOPES)
#define XVS_ALLOW 2
#define XVS_MAX_SCOPED (1 << 12)

/* The key of a list, with the bits behind the prefix length 0. */
struct xvs_network {
	__u32 addr[4];
	__u32 family_and_len; /* the family in bits 8 to 15 */
};

/* The prefix lengths in a list: at most 33 of IPv4, and from place 33 on those of IPv6. */
#define XVS_V6_LENGTHS 33
#define XVS_LENGTHS (XVS_V6_LENGTHS + 129)
struct xvs_lengths {
	__u8 v4;
	__u8 v6;
	__u8 len[XVS_LENGTHS];
};

/* The value of the map `list_filter`, which has one entry, and which xvsd maps into its memory. */
#define XVS_V4_BITS (1 << 24)
#define XVS_V6_BITS (1 << 23)
struct xvs_list_filter {
	__u64 state;                                   /* a set of the following; 0: there is no list */
	__u64 words[(XVS_V4_BITS + XVS_V6_BITS) / 64]; /* a bit for each /24, and one for each hash of a /48 */
};
enum {
	XVS_LISTS = 1 << 0,   /* there are lists */
	XVS_ALLOWS = 1 << 1,  /* there are allow lists */
	XVS_WIDE_V6 = 1 << 2, /* networks of IPv6 are larger than a /48, so the bits of IPv6 say nothing */
	XVS_SCOPED = 1 << 3,  /* services have lists of their own */
	XVS_MARKED = 1 << 4,  /* there are networks in `prefixes` */
};

/* The value of the map `list_drops`, which has one entry: packets by place, each core in one of the stripes. */
#define XVS_STRIPES 8
struct xvs_list_drops {
	__u64 packets[XVS_LIST_PLACES][XVS_STRIPES][8];
};

/* The value of the map `syn_limits`, which has one entry, and which xvsd maps into its memory: the limits by number. */
#define XVS_LIMIT_OF(roles) ((roles) >> 16)
#define XVS_SYN_LIMITS 2048
struct xvs_syn_limit {
	__u64 due_ns;      /* CLOCK_MONOTONIC: when the next SYN is due */
	__u64 interval_ns; /* between SYNs of the rate */
	__u64 early_ns;    /* how much earlier one may come */
	__u64 unused[5];
	__u64 dropped[XVS_STRIPES][8]; /* each core in one of the stripes */
};
struct xvs_syn_limits {
	struct xvs_syn_limit of[XVS_SYN_LIMITS];
};

/* The value of the map `hold`, which has one entry, and which xvsd maps into its memory. While `hold_ns` is not 0,
 * steered frames that find no socket are dropped until the last beat is `hold_ns` old.
 */
struct xvs_hold {
	__u64 beat_ns; /* CLOCK_MONOTONIC; written by the workers */
	__u64 hold_ns; /* written by the control thread */
	__u64 dropped; /* counted by the program */
};

/* Flows that the program forwards itself. A record of a connection has a part for each direction: requests, replies. */
#define XVS_MAX_FLOWS (1 << 20)

/* How the program finds the record of a packet: by a hash of one end of the packet as received, the client's, and of its
 * protocol. Of requests that end is the source, of replies the destination. For replies to local addresses of FULLNAT,
 * which many connections share, the hash is of both ends. Its lower half, as far as there are records, is the number of
 * the record. If that one is in use, it is the number of a bucket, an entry of which names another record. The upper
 * half is the tag, which is also the upper half of the entry. The lower half of the entry has the number of the record
 * and its use. 0: the entry is free.
 */
#define XVS_BUCKET 8
struct xvs_bucket {
	__u64 entry[XVS_BUCKET];
};
#define XVS_FLOW_TAG(hash) ((hash) >> 32 | 1)
#define XVS_FLOW_RECORD(value) ((value) & (XVS_MAX_FLOWS - 1))
#define XVS_FLOW_USE(value) ((value) >> 20 & (XVS_FLOW_USES - 1))

/* The state of a record, in one word. While it is in force, the program and workers change it by compare-and-swap, or set
 * or clear a bit. Bits 8 to 11 are the state of TCP, bits 12 to 22 the number of the use, bits 24 to 31 the time from the
 * SYN to the SYN+ACK (XVS_FLOW_RESPONSE), and the upper half is the acknowledgement that proves the client, if it is
 * awaited.
 */
enum {
	XVS_FLOW_IN_FORCE = 1 << 0, /* packets are forwarded */
	XVS_FLOW_FOLLOWS = 1 << 1,  /* the state of TCP is that of the connection; else a segment that may change it goes
				     * to the worker */
	XVS_FLOW_NO_OUTPUT = 1 << 2, /* replies do not pass */
	XVS_FLOW_PROVEN = 1 << 3,    /* the client has acknowledged the destination's SYN */
	XVS_FLOW_WAS_ESTABLISHED = 1 << 4,
	XVS_FLOW_SECURE = 1 << 5, /* the second table of states */
	XVS_FLOW_AWAITS = 1 << 6, /* the client is to acknowledge the destination's SYN */
	XVS_FLOW_LAST_LINE = 1 << 7, /* packets need the end of the record: outer headers, or IPv6 addresses as sent */
	XVS_FLOW_NEAR = 1 << 23, /* its number is that of its key's hash */
};
#define XVS_FLOW_STATE_SHIFT 8
#define XVS_FLOW_STATE(word) ((word) >> XVS_FLOW_STATE_SHIFT & 15)
#define XVS_FLOW_WITH_STATE(word, state) (((word) & ~(15ULL << XVS_FLOW_STATE_SHIFT)) | (__u64)(state) << XVS_FLOW_STATE_SHIFT)
#define XVS_FLOW_USE_SHIFT 12
#define XVS_FLOW_USES (1 << 11)
#define XVS_FLOW_IN_USE(number) ((__u64)(number) << XVS_FLOW_USE_SHIFT)
#define XVS_FLOW_DUE(word) ((word) >> 32)
/* 0: it is not measured. XVS_FLOW_TIMED: it will be, from the time of the last packet, which was the SYN. Else one more
 * than the code of the microseconds less one: numbers below 8 are their own codes; others have the place of their highest
 * bit, from 1 on, and the three bits behind it.
 */
#define XVS_FLOW_RESPONSE_SHIFT 24
#define XVS_FLOW_RESPONSE(word) ((word) >> XVS_FLOW_RESPONSE_SHIFT & 0xff)
#define XVS_FLOW_TIMED 0xff

/* The states of TCP: two tables, by what is seen (from the client; a reply; from the client, replies not seen) and by
 * segment (SYN, FIN, ACK, RST). A row has the next state in the four bits of each state. xvsd writes them.
 */
enum { XVS_INPUT, XVS_OUTPUT, XVS_INPUT_ONLY };
enum { XVS_SYN_ROW, XVS_FIN_ROW, XVS_ACK_ROW, XVS_RST_ROW };
enum { XVS_ESTABLISHED = 1, XVS_SYN_RECV = 3, XVS_SYN_ACK = 10 };
struct xvs_tcp_states {
	__u64 row[2][3][4];
	__u64 active; /* a set of states that count as active */
};

/* What the program does with the packets of one direction. */
struct xvs_flow_part {
	__u32 in_ifindex;  /* the only interface by which they are received */
	__u32 out_ifindex; /* by which they leave */
	__u8 link[12];     /* the link addresses with which they leave: of the next hop, then of the interface */
	__u8 to[6];        /* the link address to which they are sent */
	__u16 mtu;         /* the longest packet as received, in bytes without link header */
	__be32 source_v4;  /* the endpoints with which they leave, or the addresses of the outer header of IPv4 in
			    * IPv4; IPv6 addresses are in the record */
	__be32 dest_v4;
	__be16 source_port;
	__be16 dest_port;
	__u16 network_sum; /* what the change adds to the IPv4 header's checksum, without the time to live; of a tunnel
			    * the sum of the constant fields of an outer IPv4 header */
	__u16 transport_sum;
	__u32 flags; /* a set of the following */
	__be32 old_source_v4; /* the endpoints as received */
	__be32 old_dest_v4;
	__be16 old_source_port;
	__be16 old_dest_port;
	__u8 protocol;
	__u8 family; /* as received */
	__u16 unused;
};
enum {
	XVS_FLOW_READDRESSED = 1 << 0, /* endpoints change; else the link addresses alone */
	XVS_FLOW_UNFRAGMENTED = 1 << 1, /* only packets that no router may fragment */
	XVS_FLOW_PARTIAL = 1 << 2, /* the interface may deliver partial checksums */
	XVS_FLOW_UDP = 1 << 3, /* the outer headers have a UDP header behind that of the network */
	XVS_FLOW_TRANSLATED = 1 << 4, /* packets of IPv4 leave as packets of IPv6 */
};
/* The bytes of the outer headers; 0: packets leave without any. */
#define XVS_FLOW_OUTER(flags) ((flags) >> 8)

struct xvs_addresses_v6 {
	__be32 source[4];
	__be32 dest[4];
};

/* A value of the array `records`. */
struct xvs_flow {
	__u64 state;      /* see XVS_FLOW_IN_FORCE and others */
	__u32 epoch;      /* that of `offload`, and of the slot there: if one has changed, packets are not forwarded */
	__u32 slot_epoch;
	__u64 used; /* CLOCK_MONOTONIC of the last packet in units of 1,024 ns and, in the lowest 16 bits, the slot */
	struct {
		__u64 packets; /* counted by the program since xvsd has taken the last ones */
		__u64 bytes;
	} count[2];
	__u64 connection; /* for xvsd: the connection of the record */
	struct xvs_flow_part part[2];
	struct xvs_addresses_v6 old_v6[2];
	union {
		struct xvs_addresses_v6 v6[2];
		/* The outer headers of requests, but of IPv4 in IPv4; fields that differ from packet to packet
		 * are 0. */
		__u8 outer[64];
	};
};
#define XVS_FLOW_SLOT(used) ((used) & (XVS_SLOTS - 1))
#define XVS_FLOW_USED(slot, ns) ((slot) | (ns) >> 10 << 16)

/* The value of the map `offload`, which has one entry, and which xvsd maps into its memory. */
#define XVS_SLOTS (1 << 16)
struct xvs_offload {
	__u32 is_on;
	__u32 epoch;
	__u64 seed[2]; /* of the hash */
	__u64 layout;  /* for xvsd: the version of the layout of struct xvs_flow */
	__u64 clock_ns; /* for tests: the time; 0: CLOCK_MONOTONIC */
	__u64 buckets; /* the number of buckets, a power of two, less one */
	__u64 unused[2];
	struct xvs_tcp_states tcp;
	__u64 unused_tcp[7];
	__u32 slots[XVS_SLOTS];
};

/* The value of the map `moves`, which has one entry, and which xvsd maps into its memory. */
struct xvs_moves {
	__u64 half_open; /* the records of connections in SYN_RECV and SYNACK whose state the program follows */
	__u64 unused[7];
	__u64 inactive[XVS_SLOTS]; /* by slot: connections that have become inactive, of which no worker knows so far */
};

/* The value of the map `losses`, which has one entry: packets by their outgoing interface. Interfaces whose indices
 * differ by the number of words share one.
 */
#define XVS_LOSSES 4096
struct xvs_losses {
	__u64 sent[XVS_LOSSES];    /* in native mode */
	__u64 refused[XVS_LOSSES]; /* by the interface, or because it takes none */
	__u64 full[XVS_LOSSES];    /* in generic mode: its queue was full or stopped */
};

/* The length of the marker before a frame that goes back to the kernel of an interface in generic mode: secret random
 * bytes.
 */
#define XVS_MARKER_SIZE 16

/* The mark of packets that are redirected to a TAP. Other packets that the kernel sends by a TAP are discarded. */
#define XVS_OWN_MARK 0x78767300

#define XVS_MAX_PREFIXES (1 << 14)
#define XVS_MAX_TRANSLATED (1 << 11)
/* The most endpoints of clients on this machine; beyond it, the least recently used ones are forgotten. */
#define XVS_MAX_CLIENTS (1 << 14)
/* The most receive queues of one interface. */
#define XVS_MAX_QUEUES 256

#endif
