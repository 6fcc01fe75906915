// SPDX-License-Identifier: MIT OR Apache-2.0
/* Counts packets that the steering program has forwarded, but that did not leave: the outgoing interface has refused
 * them afterwards, which only the kernel's tracepoints see.
 *
 * Cost: a call for each batch of redirected frames. The kernel's types are found by its BTF when the program is loaded.
 */
#include "maps.h"

#include <linux/bpf.h>
#include <linux/if_ether.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

struct ns_common {
	unsigned int inum;
} __attribute__((preserve_access_index));

struct net {
	struct ns_common ns;
} __attribute__((preserve_access_index));

typedef struct {
	struct net *net;
} __attribute__((preserve_access_index)) possible_net_t;

struct net_device {
	int ifindex;
	possible_net_t nd_net;
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xvs_losses);
} losses SEC(".maps");

/* The number of the network namespace. Set before the program is loaded. */
const volatile __u32 namespace_number = 0;

static __always_inline int is_here(struct net_device *device)
{
	return device && BPF_CORE_READ(device, nd_net.net, ns.inum) == namespace_number;
}

static __always_inline struct xvs_losses *counts(void)
{
	__u32 first = 0;
	return bpf_map_lookup_elem(&losses, &first);
}

/* from, to, sent, dropped, error */
SEC("raw_tp/xdp_devmap_xmit")
int refused(struct bpf_raw_tracepoint_args *ctx)
{
	struct net_device *to = (void *)ctx->args[1];
	int sent = ctx->args[2], dropped = ctx->args[3];
	struct xvs_losses *all = counts();
	if (!all || !is_here(to))
		return 0;
	__u32 place = BPF_CORE_READ(to, ifindex) & (XVS_LOSSES - 1);
	if (sent > 0)
		__sync_fetch_and_add(&all->sent[place], sent);
	if (dropped > 0)
		__sync_fetch_and_add(&all->refused[place], dropped);
	return 0;
}

/* The device, the program, the target, the error, the type of the map, its id, the index. The sockets count frames for
 * sockets, which have a map.
 */
SEC("raw_tp/xdp_redirect_err")
int not_redirected(struct bpf_raw_tracepoint_args *ctx)
{
	struct net_device *from = (void *)ctx->args[0];
	struct xvs_losses *all = counts();
	if (all && (__u32)ctx->args[4] == BPF_MAP_TYPE_UNSPEC && is_here(from))
		__sync_fetch_and_add(&all->refused[ctx->args[6] & (XVS_LOSSES - 1)], 1);
	return 0;
}

/* The device, the program, its result. This is how the kernel reports, in generic mode, a frame for which the device
 * has no room.
 */
SEC("raw_tp/xdp_exception")
int exception(struct bpf_raw_tracepoint_args *ctx)
{
	struct net_device *to = (void *)ctx->args[0];
	struct xvs_losses *all = counts();
	if (all && (__u32)ctx->args[2] == XDP_TX && is_here(to))
		__sync_fetch_and_add(&all->full[BPF_CORE_READ(to, ifindex) & (XVS_LOSSES - 1)], 1);
	return 0;
}

/* For trials: a frame leaves by the interface whose index is behind its Ethernet header. */
SEC("xdp")
int leave(struct xdp_md *ctx)
{
	__u32 *index = (void *)(long)ctx->data + sizeof(struct ethhdr);
	return (void *)(index + 1) > (void *)(long)ctx->data_end ? XDP_DROP : bpf_redirect(*index, 0);
}

char _license[] SEC("license") = "Dual MIT/GPL";
