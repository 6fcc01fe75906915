#ifndef __VMLINUX_H__
#define __VMLINUX_H__

#ifndef BPF_NO_PRESERVE_ACCESS_INDEX
#pragma clang attribute push (__attribute__((preserve_access_index)), apply_to = record)
#endif

typedef unsigned int __u32;

typedef unsigned long long __u64;

typedef unsigned char __u8;

typedef unsigned short __u16;

typedef __u32 __be32;

typedef __u16 __be16;

struct xvs_flow_part {
	__u32 in_ifindex;
	__u32 out_ifindex;
	__u8 link[12];
	__u8 to[6];
	__u16 mtu;
	__be32 source_v4;
	__be32 dest_v4;
	__be16 source_port;
	__be16 dest_port;
	__u16 network_sum;
	__u16 transport_sum;
	__u32 flags;
	__be32 old_source_v4;
	__be32 old_dest_v4;
	__be16 old_source_port;
	__be16 old_dest_port;
	__u8 protocol;
	__u8 family;
	__u16 unused;
};

struct xvs_addresses_v6 {
	__be32 source[4];
	__be32 dest[4];
};

struct xvs_flow {
	__u64 state;
	__u32 epoch;
	__u32 slot;
	__u32 slot_epoch;
	__u32 unused;
	struct {
		__u64 packets;
		__u64 bytes;
	} count[2];
	__u64 connection;
	struct xvs_flow_part part[2];
	struct xvs_addresses_v6 old_v6[2];
	union {
		struct xvs_addresses_v6 v6[2];
		__u8 outer[64];
	};
};

#ifndef BPF_NO_PRESERVE_ACCESS_INDEX
#pragma clang attribute pop
#endif

#endif /* __VMLINUX_H__ */
