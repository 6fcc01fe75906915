/* Preloaded into keepalived: answers the socket options of IPVS as a kernel with an empty table does, so that keepalived
 * starts on a kernel without IPVS and dumps what it has read. Its generic netlink family is absent there, and then
 * keepalived uses these options. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <linux/ip_vs.h>

int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
{
	if (level == IPPROTO_IP && name >= IP_VS_BASE_CTL && name <= IP_VS_SO_GET_MAX) {
		memset(value, 0, *length);
		if (name == IP_VS_SO_GET_INFO)
			((struct ip_vs_getinfo *)value)->version = 0x010201;
		return 0;
	}
	int (*real)(int, int, int, void *, socklen_t *) = dlsym(RTLD_NEXT, "getsockopt");
	return real(fd, level, name, value, length);
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
	if (level == IPPROTO_IP && name >= IP_VS_BASE_CTL && name <= IP_VS_SO_SET_MAX)
		return 0;
	int (*real)(int, int, int, const void *, socklen_t) = dlsym(RTLD_NEXT, "setsockopt");
	return real(fd, level, name, value, length);
}
