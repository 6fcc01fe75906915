/*
 * A substitute for the kernel's IPVS, loaded into ipvsadm by LD_PRELOAD in front of libnl; it needs no IPVS. It accepts
 * every change and prints it as a line on file descriptor 3, if that is open. Its state is in the file named by the
 * environment variable IPVS_STATE; without one it is empty. Used by scripts/record-ipvsadm alone.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <linux/genetlink.h>
#include <linux/ip_vs.h>
#include <linux/netlink.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Declared as in libnl, so that its headers need not be installed. */
struct nl_sock;
struct nl_msg;
typedef int (*receiver)(struct nl_msg *, void *);
struct nl_msg *nlmsg_alloc(void);
void nlmsg_free(struct nl_msg *);
struct nlmsghdr *nlmsg_hdr(struct nl_msg *);
void *genlmsg_put(struct nl_msg *, uint32_t, uint32_t, int, int, int, uint8_t, uint8_t);
int nla_put(struct nl_msg *, int, int, const void *);
struct nlattr *nla_nest_start(struct nl_msg *, int);
int nla_nest_end(struct nl_msg *, struct nlattr *);

#define COUNTERS 10
#define LINE 1024

static FILE *(*real_fopen)(const char *, const char *);
static receiver receive;
static void *receiver_data;
static int command;
/* The requested service; without an address and a mark, all services. */
static struct {
	unsigned char addr[16];
	uint16_t port;
	uint32_t mark;
	uint16_t family;
	int given;
} wanted;

static void put_u8(struct nl_msg *to, int type, uint8_t value) { nla_put(to, type, sizeof(value), &value); }
static void put_u16(struct nl_msg *to, int type, uint16_t value) { nla_put(to, type, sizeof(value), &value); }
static void put_u32(struct nl_msg *to, int type, uint32_t value) { nla_put(to, type, sizeof(value), &value); }
static void put_text(struct nl_msg *to, int type, const char *text) { nla_put(to, type, strlen(text) + 1, text); }

/* Writes the address into the first of 16 bytes; returns its family. */
static int address(const char *text, unsigned char *bytes)
{
	memset(bytes, 0, 16);
	if (inet_pton(AF_INET, text, bytes) == 1)
		return AF_INET;
	inet_pton(AF_INET6, text, bytes);
	return AF_INET6;
}

/* Ten numbers of 64 bits each, as sent by kernels since 4.1. */
static void put_counters(struct nl_msg *to, int type, const char *text)
{
	struct nlattr *nest = nla_nest_start(to, type);
	char *rest = (char *)text;

	for (int at = 0; at < COUNTERS; at++) {
		uint64_t value = strtoull(rest, &rest, 10);
		nla_put(to, IPVS_STATS_ATTR_CONNS + at, sizeof(value), &value);
	}
	nla_nest_end(to, nest);
}

static struct nl_msg *answer(int command)
{
	struct nl_msg *message = nlmsg_alloc();

	genlmsg_put(message, 0, 0, 42, 0, 0, command, 1);
	return message;
}

static void deliver(struct nl_msg *message)
{
	receive(message, receiver_data);
	nlmsg_free(message);
}

/* Sends one line `service …`; returns whether it is the requested service. */
static int service(const char *line, int is_wanted)
{
	unsigned protocol, port, mark, timeout;
	char addr[64], scheduler[32], flags[16], mask[64], engine[32];
	unsigned char bytes[16], mask_bytes[16];
	struct ip_vs_flags bits = { .mask = ~0u };
	struct nl_msg *message;
	struct nlattr *nest;
	uint32_t netmask;
	int family, counters;

	sscanf(line, "service %u %63s %u %u %31s %15s %u %63s %31s %n", &protocol, addr, &port, &mark, scheduler, flags,
	       &timeout, mask, engine, &counters);
	family = address(addr, bytes);
	if (wanted.given && (mark != wanted.mark || family != wanted.family ||
			     (!mark && (memcmp(bytes, wanted.addr, 16) || port != wanted.port))))
		return 0;
	if (!is_wanted)
		return 1;
	bits.flags = strtoul(flags, NULL, 16);
	if (inet_pton(AF_INET, mask, mask_bytes) == 1)
		memcpy(&netmask, mask_bytes, 4);
	else
		netmask = atoi(mask);
	message = answer(IPVS_CMD_NEW_SERVICE);
	nest = nla_nest_start(message, IPVS_CMD_ATTR_SERVICE);
	put_u16(message, IPVS_SVC_ATTR_AF, family);
	if (mark) {
		put_u32(message, IPVS_SVC_ATTR_FWMARK, mark);
	} else {
		put_u16(message, IPVS_SVC_ATTR_PROTOCOL, protocol);
		nla_put(message, IPVS_SVC_ATTR_ADDR, 16, bytes);
		put_u16(message, IPVS_SVC_ATTR_PORT, htons(port));
	}
	put_text(message, IPVS_SVC_ATTR_SCHED_NAME, scheduler);
	if (strcmp(engine, "-"))
		put_text(message, IPVS_SVC_ATTR_PE_NAME, engine);
	nla_put(message, IPVS_SVC_ATTR_FLAGS, sizeof(bits), &bits);
	put_u32(message, IPVS_SVC_ATTR_TIMEOUT, timeout);
	put_u32(message, IPVS_SVC_ATTR_NETMASK, netmask);
	put_counters(message, IPVS_SVC_ATTR_STATS64, line + counters);
	nla_nest_end(message, nest);
	deliver(message);
	return 1;
}

/* Sends one line `dest …`. */
static void destination(const char *line)
{
	unsigned port, method, upper, lower, active, inactive, persistent, tunnel, tunnel_port, tunnel_flags;
	int weight, counters, family;
	char addr[64];
	unsigned char bytes[16];
	struct nl_msg *message = answer(IPVS_CMD_NEW_DEST);
	struct nlattr *nest = nla_nest_start(message, IPVS_CMD_ATTR_DEST);

	sscanf(line, "dest %63s %u %u %d %u %u %u %u %u %u %u %u %n", addr, &port, &method, &weight, &upper, &lower, &active,
	       &inactive, &persistent, &tunnel, &tunnel_port, &tunnel_flags, &counters);
	family = address(addr, bytes);
	nla_put(message, IPVS_DEST_ATTR_ADDR, 16, bytes);
	put_u16(message, IPVS_DEST_ATTR_PORT, htons(port));
	put_u16(message, IPVS_DEST_ATTR_ADDR_FAMILY, family);
	put_u32(message, IPVS_DEST_ATTR_FWD_METHOD, method);
	put_u32(message, IPVS_DEST_ATTR_WEIGHT, weight);
	put_u32(message, IPVS_DEST_ATTR_U_THRESH, upper);
	put_u32(message, IPVS_DEST_ATTR_L_THRESH, lower);
	put_u32(message, IPVS_DEST_ATTR_ACTIVE_CONNS, active);
	put_u32(message, IPVS_DEST_ATTR_INACT_CONNS, inactive);
	put_u32(message, IPVS_DEST_ATTR_PERSIST_CONNS, persistent);
	put_u8(message, IPVS_DEST_ATTR_TUN_TYPE, tunnel);
	put_u16(message, IPVS_DEST_ATTR_TUN_PORT, htons(tunnel_port));
	put_u16(message, IPVS_DEST_ATTR_TUN_FLAGS, tunnel_flags);
	put_counters(message, IPVS_DEST_ATTR_STATS64, line + counters);
	nla_nest_end(message, nest);
	deliver(message);
}

/* Sends one line `daemon …`. */
static void daemon_line(const char *line)
{
	unsigned state, id, length, port, ttl;
	char interface[32], group[64];
	unsigned char bytes[16];
	struct nl_msg *message = answer(IPVS_CMD_NEW_DAEMON);
	struct nlattr *nest = nla_nest_start(message, IPVS_CMD_ATTR_DAEMON);

	sscanf(line, "daemon %u %31s %u %u %63s %u %u", &state, interface, &id, &length, group, &port, &ttl);
	put_u32(message, IPVS_DAEMON_ATTR_STATE, state);
	put_text(message, IPVS_DAEMON_ATTR_MCAST_IFN, interface);
	put_u32(message, IPVS_DAEMON_ATTR_SYNC_ID, id);
	put_u16(message, IPVS_DAEMON_ATTR_SYNC_MAXLEN, length);
	if (address(group, bytes) == AF_INET)
		nla_put(message, IPVS_DAEMON_ATTR_MCAST_GROUP, 4, bytes);
	else
		nla_put(message, IPVS_DAEMON_ATTR_MCAST_GROUP6, 16, bytes);
	put_u16(message, IPVS_DAEMON_ATTR_MCAST_PORT, port);
	put_u8(message, IPVS_DAEMON_ATTR_MCAST_TTL, ttl);
	nla_nest_end(message, nest);
	deliver(message);
}

/* Sends the requested part of the state. */
static void send_state(void)
{
	const char *path = getenv("IPVS_STATE");
	FILE *state = path ? real_fopen(path, "r") : NULL;
	char line[LINE];
	unsigned timeouts[3];
	int ours = 0;

	while (state && fgets(line, sizeof(line), state)) {
		if (!strncmp(line, "service ", 8))
			ours = service(line, command == IPVS_CMD_GET_SERVICE);
		else if (!strncmp(line, "dest ", 5) && ours && command == IPVS_CMD_GET_DEST)
			destination(line);
		else if (!strncmp(line, "daemon ", 7) && command == IPVS_CMD_GET_DAEMON)
			daemon_line(line);
		else if (sscanf(line, "timeouts %u %u %u", timeouts, timeouts + 1, timeouts + 2) == 3 &&
			 command == IPVS_CMD_GET_CONFIG) {
			struct nl_msg *message = answer(IPVS_CMD_SET_CONFIG);

			for (int at = 0; at < 3; at++)
				put_u32(message, IPVS_CMD_ATTR_TIMEOUT_TCP + at, timeouts[at]);
			deliver(message);
		}
	}
	if (state)
		fclose(state);
}

/* The attribute of this type, or a null pointer. */
static void *find(char *at, char *end, int type)
{
	while (at + sizeof(struct nlattr) <= end) {
		struct nlattr *attribute = (struct nlattr *)at;

		if ((attribute->nla_type & NLA_TYPE_MASK) == type)
			return attribute + 1;
		at += NLA_ALIGN(attribute->nla_len);
	}
	return NULL;
}

static char *end_of(void *value) { return (char *)value - sizeof(struct nlattr) + ((struct nlattr *)value - 1)->nla_len; }

#define FIND(nest, type) find(nest, end_of(nest), type)
#define U8(nest, type) (FIND(nest, type) ? *(uint8_t *)FIND(nest, type) : 0)
#define U16(nest, type) (FIND(nest, type) ? *(uint16_t *)FIND(nest, type) : 0)
#define U32(nest, type) (FIND(nest, type) ? *(uint32_t *)FIND(nest, type) : 0)

static void print_endpoint(FILE *to, int family, void *addr, int port)
{
	char text[64];

	fprintf(to, " %s %d", inet_ntop(family, addr, text, sizeof(text)), ntohs(port));
}

/* Prints a change. */
static void print_change(char *at, char *end)
{
	static const char changes[] = { IPVS_CMD_NEW_SERVICE, IPVS_CMD_SET_SERVICE, IPVS_CMD_DEL_SERVICE, IPVS_CMD_NEW_DEST,
					IPVS_CMD_SET_DEST, IPVS_CMD_DEL_DEST, IPVS_CMD_NEW_DAEMON, IPVS_CMD_DEL_DAEMON,
					IPVS_CMD_SET_CONFIG, IPVS_CMD_ZERO, IPVS_CMD_FLUSH };
	FILE *to = memchr(changes, command, sizeof(changes)) ? fdopen(dup(3), "w") : NULL;
	char *service = find(at, end, IPVS_CMD_ATTR_SERVICE), *dest = find(at, end, IPVS_CMD_ATTR_DEST);
	char *daemon = find(at, end, IPVS_CMD_ATTR_DAEMON);

	if (!to)
		return;
	fprintf(to, "%d", command);
	if (service) {
		int family = U16(service, IPVS_SVC_ATTR_AF);

		if (U32(service, IPVS_SVC_ATTR_FWMARK))
			fprintf(to, " mark %u %d", U32(service, IPVS_SVC_ATTR_FWMARK), family == AF_INET6 ? 6 : 4);
		else {
			fprintf(to, " %d", U16(service, IPVS_SVC_ATTR_PROTOCOL));
			print_endpoint(to, family, FIND(service, IPVS_SVC_ATTR_ADDR), U16(service, IPVS_SVC_ATTR_PORT));
		}
		if (command == IPVS_CMD_NEW_SERVICE || command == IPVS_CMD_SET_SERVICE) {
			uint32_t flags = U32(service, IPVS_SVC_ATTR_FLAGS), mask = U32(service, IPVS_SVC_ATTR_NETMASK);
			char *engine = FIND(service, IPVS_SVC_ATTR_PE_NAME), text[64];

			if (family == AF_INET6)
				sprintf(text, "%u", mask);
			else
				inet_ntop(AF_INET, &mask, text, sizeof(text));
			fprintf(to, " %s %x %u %s %s", (char *)FIND(service, IPVS_SVC_ATTR_SCHED_NAME), flags,
				flags & 1 ? U32(service, IPVS_SVC_ATTR_TIMEOUT) : 0, text, engine ? engine : "-");
		}
	}
	if (dest) {
		print_endpoint(to, U16(dest, IPVS_DEST_ATTR_ADDR_FAMILY), FIND(dest, IPVS_DEST_ATTR_ADDR),
			      U16(dest, IPVS_DEST_ATTR_PORT));
		if (command != IPVS_CMD_DEL_DEST)
			fprintf(to, " %u %u %u %u %u %u %u", U32(dest, IPVS_DEST_ATTR_FWD_METHOD),
				U32(dest, IPVS_DEST_ATTR_WEIGHT), U32(dest, IPVS_DEST_ATTR_U_THRESH),
				U32(dest, IPVS_DEST_ATTR_L_THRESH), U8(dest, IPVS_DEST_ATTR_TUN_TYPE),
				ntohs(U16(dest, IPVS_DEST_ATTR_TUN_PORT)), U16(dest, IPVS_DEST_ATTR_TUN_FLAGS));
	}
	if (daemon && command == IPVS_CMD_DEL_DAEMON)
		fprintf(to, " %u", U32(daemon, IPVS_DAEMON_ATTR_STATE));
	if (daemon && command == IPVS_CMD_NEW_DAEMON)
		fprintf(to, " %u %s %u %u %u %u", U32(daemon, IPVS_DAEMON_ATTR_STATE), (char *)FIND(daemon, IPVS_DAEMON_ATTR_MCAST_IFN),
			U32(daemon, IPVS_DAEMON_ATTR_SYNC_ID), U16(daemon, IPVS_DAEMON_ATTR_SYNC_MAXLEN),
			U16(daemon, IPVS_DAEMON_ATTR_MCAST_PORT), U8(daemon, IPVS_DAEMON_ATTR_MCAST_TTL));
	if (command == IPVS_CMD_SET_CONFIG)
		for (int type = IPVS_CMD_ATTR_TIMEOUT_TCP; type <= IPVS_CMD_ATTR_TIMEOUT_UDP; type++)
			fprintf(to, " %u", *(uint32_t *)find(at, end, type));
	fclose(to);
}

int genl_connect(struct nl_sock *socket) { return 0; }

int genl_ctrl_resolve(struct nl_sock *socket, const char *family) { return 42; }

int nl_socket_modify_cb(struct nl_sock *socket, int type, int kind, receiver function, void *data)
{
	receive = function;
	receiver_data = data;
	return 0;
}

int nl_send_auto_complete(struct nl_sock *socket, struct nl_msg *message)
{
	struct nlmsghdr *header = nlmsg_hdr(message);
	char *at = (char *)(header + 1) + sizeof(struct genlmsghdr), *end = (char *)header + header->nlmsg_len;
	char *service;

	command = ((struct genlmsghdr *)(header + 1))->cmd;
	memset(&wanted, 0, sizeof(wanted));
	service = find(at, end, IPVS_CMD_ATTR_SERVICE);
	if (service) {
		wanted.given = 1;
		wanted.family = U16(service, IPVS_SVC_ATTR_AF);
		wanted.mark = U32(service, IPVS_SVC_ATTR_FWMARK);
		wanted.port = ntohs(U16(service, IPVS_SVC_ATTR_PORT));
		if (FIND(service, IPVS_SVC_ATTR_ADDR))
			memcpy(wanted.addr, FIND(service, IPVS_SVC_ATTR_ADDR), 16);
	}
	print_change(at, end);
	return 1;
}

int nl_recvmsgs_default(struct nl_sock *socket)
{
	if (command == IPVS_CMD_GET_INFO) {
		struct nl_msg *message = answer(IPVS_CMD_SET_INFO);

		put_u32(message, IPVS_INFO_ATTR_VERSION, 0x010201);
		put_u32(message, IPVS_INFO_ATTR_CONN_TAB_SIZE, 4096);
		deliver(message);
	}
	send_state();
	return 0;
}

/* Prints an address in the format of /proc/net/ip_vs_conn. */
static void print_address(FILE *to, const char *text)
{
	unsigned char bytes[16];
	int family = address(text, bytes);

	for (int at = 0; at < (family == AF_INET ? 4 : 16); at++)
		fprintf(to, family == AF_INET ? "%02X" : at % 2 || !at ? "%02x" : ":%02x", bytes[at]);
}

/* The content of /proc/net/ip_vs_conn. */
static FILE *connections(void)
{
	const char *path = getenv("IPVS_STATE");
	FILE *state = path ? real_fopen(path, "r") : NULL, *file = tmpfile();
	char line[LINE], protocol[8], addr[3][64], name[16], engine[32], data[64];
	unsigned port[3], seconds;

	fputs("Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n", file);
	while (state && fgets(line, sizeof(line), state)) {
		if (sscanf(line, "connection %7s %63s %u %63s %u %63s %u %15s %u %31s %63s", protocol, addr[0], port, addr[1],
			   port + 1, addr[2], port + 2, name, &seconds, engine, data) != 11)
			continue;
		fprintf(file, "%-3s ", protocol);
		for (int end = 0; end < 3; end++) {
			print_address(file, addr[end]);
			fprintf(file, " %04X ", port[end]);
		}
		fprintf(file, "%-11s %7u", name, seconds);
		if (strcmp(engine, "-"))
			fprintf(file, " %s %s", engine, data);
		fputc('\n', file);
	}
	if (state)
		fclose(state);
	rewind(file);
	return file;
}

FILE *fopen(const char *path, const char *mode)
{
	return strcmp(path, "/proc/net/ip_vs_conn") ? real_fopen(path, mode) : connections();
}

__attribute__((constructor)) static void begin(void)
{
	real_fopen = (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, "fopen");
}
