/*
 * A kernel for ipvsadm to talk to on a machine without IPVS: put before libnl by LD_PRELOAD. It takes every change, tells
 * its version, and has no services and no connections. Used by scripts/record-ipvsadm alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/genetlink.h>
#include <linux/ip_vs.h>
#include <linux/netlink.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* As libnl declares them; its headers need not be installed. */
struct nl_sock;
struct nl_msg;
typedef int (*receiver)(struct nl_msg *, void *);
struct nl_msg *nlmsg_alloc(void);
void nlmsg_free(struct nl_msg *);
struct nlmsghdr *nlmsg_hdr(struct nl_msg *);
void *genlmsg_put(struct nl_msg *, uint32_t, uint32_t, int, int, int, uint8_t, uint8_t);
int nla_put(struct nl_msg *, int, int, const void *);

static receiver receive;
static void *receiver_data;
static int asked;

int genl_connect(struct nl_sock *socket)
{
	return 0;
}

int genl_ctrl_resolve(struct nl_sock *socket, const char *family)
{
	return 42;
}

int nl_socket_modify_cb(struct nl_sock *socket, int type, int kind, receiver function, void *data)
{
	receive = function;
	receiver_data = data;
	return 0;
}

int nl_send_auto_complete(struct nl_sock *socket, struct nl_msg *message)
{
	asked = ((struct genlmsghdr *)(nlmsg_hdr(message) + 1))->cmd;
	return 1;
}

int nl_recvmsgs_default(struct nl_sock *socket)
{
	uint32_t version = 0x010201, size = 4096;
	struct nl_msg *message;

	if (asked != IPVS_CMD_GET_INFO)
		return 0;
	message = nlmsg_alloc();
	genlmsg_put(message, 0, 0, 42, 0, 0, IPVS_CMD_SET_INFO, 1);
	nla_put(message, IPVS_INFO_ATTR_VERSION, sizeof(version), &version);
	nla_put(message, IPVS_INFO_ATTR_CONN_TAB_SIZE, sizeof(size), &size);
	receive(message, receiver_data);
	nlmsg_free(message);
	return 0;
}

FILE *fopen(const char *path, const char *mode)
{
	static char connections[] = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires\n";
	FILE *(*next)(const char *, const char *) = (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, "fopen");

	if (!strcmp(path, "/proc/net/ip_vs_conn"))
		return fmemopen(connections, strlen(connections), "r");
	return next(path, mode);
}
