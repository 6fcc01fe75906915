// SPDX-License-Identifier: MIT OR Apache-2.0
/* The way back: what is written to an interface's TAP arrives on that interface as if from the wire.
 *
 * Attached to both directions of the TAP. What the kernel would send out by a TAP has nowhere to go.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_helpers.h>

/* Index of the interface; set before the program is loaded. */
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
	(void)skb;
	return TC_ACT_SHOT;
}

char _license[] SEC("license") = "Dual MIT/GPL";
