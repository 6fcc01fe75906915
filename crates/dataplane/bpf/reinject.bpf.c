// SPDX-License-Identifier: MIT OR Apache-2.0
/* Reinjection: a frame that is written to an interface's TAP is received by that interface as if from the wire.
 *
 * Attached to both directions of the TAP. In the other direction a worker reads what this machine itself has sent by
 * the interface, where own.bpf.c has redirected it. Other packets that the kernel sends by a TAP are discarded.
 */
#include "maps.h"

#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_helpers.h>

/* The index of the interface. Set before the program is loaded. */
const volatile __u32 interface_index = 0;

SEC("tc")
int reinject(struct __sk_buff *skb)
{
	(void)skb;
	return bpf_redirect(interface_index, BPF_F_INGRESS);
}

SEC("tc")
int discard(struct __sk_buff *skb)
{
	return skb->mark == XVS_OWN_MARK ? TC_ACT_OK : TC_ACT_SHOT;
}

char _license[] SEC("license") = "Dual MIT/GPL";
