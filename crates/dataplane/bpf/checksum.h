/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Checksums of the Internet protocols: the sum of a datagram, and the update of a field. */
#ifndef XVS_CHECKSUM_H
#define XVS_CHECKSUM_H

#include "packet.h"

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

/* The bytes of a datagram that are summed for its checksum: in one step, and at most in all. */
#define SUMMED 64
#define SUMMED_MAX 2048

/* A ones' complement sum in one word, whatever the byte order of its words. */
static __always_inline __u16 folded(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* Applies an update to a checksum (RFC 1624 3, equation 3). */
static __always_inline __u16 updated(__u16 field, __u64 sum)
{
	return ~folded((__u16)~field + sum);
}

/* The sum of a datagram, of at most SUMMED_MAX bytes, all of which are there. The verifier checks a non-static function
 * only once.
 */
__noinline __u32 datagram_sum(struct xdp_md *ctx, __u32 offset, __u32 len)
{
	__u32 sum = 0, rest = len % SUMMED, at = offset + len - rest;
	for (__u32 chunk = 0; chunk < SUMMED_MAX / SUMMED && chunk < len / SUMMED; chunk++) {
		void *bytes = bytes_at(ctx, offset + chunk * SUMMED, SUMMED);
		if (bytes)
			sum = bpf_csum_diff(NULL, 0, bytes, SUMMED, sum);
	}
	for (__u32 word = 0; word < SUMMED / 4 && word < rest / 4; word++) {
		void *bytes = bytes_at(ctx, at + word * 4, 4);
		if (bytes)
			sum = bpf_csum_diff(NULL, 0, bytes, 4, sum);
	}
	__u64 last = 0;
	for (__u32 byte = 0; byte < 3 && byte < rest % 4; byte++) {
		__u8 *bytes = bytes_at(ctx, at + rest / 4 * 4 + byte, 1);
		if (bytes)
			last |= (__u32)*bytes << 8 * byte;
	}
	return folded(sum + last);
}

#endif
