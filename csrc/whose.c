/* SPDX-License-Identifier: Apache-2.0 */
/* The keeper's part of tracing: whose is a thread, its schedstat, and which threads sleep at memory.high. Opening files of /proc
 * allocates kernel memory in our own group, and so may wait.
 *
 * /proc/TID/cgroup, a line a hierarchy:
 *
 *   4:memory:/kubepods/pod1/web
 *   0::/kubepods/pod1/web */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sampler.h"

enum { CGROUP_BYTES = 8192 };
static const char ASLEEP[] = "mem_cgroup_handle_over_high";

static ssize_t read_file(uint32_t tid, const char *name, char *text, size_t bytes)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%u/%s", tid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t n, got = 0;
    while ((size_t)got < bytes - 1 && (n = read(fd, text + got, bytes - 1 - (size_t)got)) > 0)
        got += n;
    close(fd);
    text[got] = '\0';
    return got;
}

/* Does a hierarchy's line speak of the memory controller? "cpu,memory" may be mounted together. */
static bool is_memory(const char *controllers, size_t length, int version)
{
    if (version == 2)
        return length == 0;
    for (const char *at = controllers, *end = at + length; at < end;) {
        const char *comma = memchr(at, ',', (size_t)(end - at));
        size_t name = (size_t)((comma ? comma : end) - at);
        if (name == 6 && memcmp(at, "memory", 6) == 0)
            return true;
        at += name + 1;
    }
    return false;
}

bool memcg_whose_is(char *text, int version, const char *group)
{
    size_t length = strcmp(group, "/") == 0 ? 0 : strlen(group);
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path || !is_memory(controllers + 1, (size_t)(path - controllers - 1), version))
            continue;
        path++;
        if (strncmp(path, group, length) != 0 || (path[length] != '\0' && path[length] != '/'))
            return false;
        path += length; /* what lies outside of our cgroup namespace begins with its root and goes up */
        return strncmp(path, "/..", 3) != 0 || (path[3] != '\0' && path[3] != '/');
    }
    return false;
}

static int whose(uint32_t tid, const struct memcg_config *config)
{
    char text[CGROUP_BYTES];
    if (!config->memory_path)
        return MEMCG_MEMBER_NO;
    ssize_t n = read_file(tid, "cgroup", text, sizeof text);
    if (n == 0 || n == -ENOENT || n == -ESRCH)
        return MEMCG_MEMBER_GONE;
    if (n < 0)
        return MEMCG_MEMBER_NO; /* where /proc hides the processes of others, it is not one of ours */
    return memcg_whose_is(text, config->memory_version, config->memory_path) ? MEMCG_MEMBER_YES : MEMCG_MEMBER_NO;
}

void memcg_trace_answer(struct memcg_trace *trace, const struct memcg_config *config)
{
    struct memcg_letter letter;
    while (memcg_post_has_room(&trace->answers) && memcg_post_take(&trace->questions, &letter)) {
        if (letter.member != MEMCG_MEMBER_YES)
            letter.member = whose(letter.tid, config);
        letter.t_ns = now_ns();
        letter.kind = 0;
        if (letter.member == MEMCG_MEMBER_YES && letter.schedstat) {
            char path[64], text[96];
            snprintf(path, sizeof path, "/proc/%u/schedstat", letter.tid);
            int fd = open(path, O_RDONLY | O_CLOEXEC);
            if (fd >= 0)
                (void)!pread(fd, text, sizeof text, 0); /* allocates its buffer, so that the tick's reads need not */
            letter.schedstat = fd > 0 ? fd : -1;
        } else {
            letter.schedstat = 0;
        }
        (void)memcg_post_send(&trace->answers, &letter); /* there is room */
    }
}

bool memcg_whose_sleeps(const char *wchan)
{
    return strcmp(wchan + strspn(wchan, "_"), ASLEEP) == 0; /* from 6.14 on its inner part has two underscores before it */
}

struct look {
    struct memcg_trace *trace;
    uint64_t t_ns;
};

static void look_at(void *context, uint64_t tid)
{
    const struct look *look = context;
    char text[512]; /* of its status the first lines */
    if (read_file((uint32_t)tid, "wchan", text, sizeof text) <= 0 || !memcg_whose_sleeps(text))
        return;
    const char *leader = read_file((uint32_t)tid, "status", text, sizeof text) > 0 ? strstr(text, "\nTgid:") : NULL;
    const struct memcg_letter letter = {.t_ns = look->t_ns,
                                        .pid = leader ? (uint32_t)strtoul(leader + 6, NULL, 10) : 0,
                                        .tid = (uint32_t)tid,
                                        .kind = MEMCG_RECLAIM_HIGH};
    (void)memcg_post_send(&look->trace->answers, &letter); /* full: it will be seen again, if it sleeps on */
}

void memcg_trace_look(struct memcg_trace *trace, int group, uint64_t now_ns)
{
    (void)memcg_group_each(group, "cgroup.threads", look_at, &(struct look){trace, now_ns});
}
