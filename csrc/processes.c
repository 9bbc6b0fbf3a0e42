/* SPDX-License-Identifier: Apache-2.0 */
/* Every process of the group and of the groups below it. The keeper's: it opens files and folders, which may wait for memory. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "parse.h"
#include "sampler.h"

enum { DEPTH = 16, COLUMNS = 5 };

/* size resident shared text lib data dt → virtual_bytes rss_bytes shared_bytes. A process that is gone, or a zombie, has no row. */
static void read_process(struct memcg_channel *channel, const int column[COLUMNS], uint64_t pid, uint64_t t_ns)
{
    char path[64], text[256];
    uint64_t pages[MEMCG_STATM_FIELDS];
    snprintf(path, sizeof path, "/proc/%llu/statm", (unsigned long long)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t n = read(fd, text, sizeof text);
    close(fd);
    if (n <= 0 || memcg_parse_statm(text, (size_t)n, pages) != 0)
        return;
    int64_t page = sysconf(_SC_PAGESIZE);
    const int64_t row[COLUMNS] = {(int64_t)t_ns, (int64_t)pid, (int64_t)pages[1] * page, (int64_t)pages[2] * page,
                                  (int64_t)pages[0] * page};
    for (int i = 0; i < COLUMNS; i++)
        if (column[i] >= 0)
            memcg_channel_put(channel, column[i], row[i]);
    memcg_channel_publish(channel);
}

/* cgroup.procs: a pid a line, 0 for one outside our pid namespace. Read in pieces, since it has no bound, and opened anew each time:
 * v1 would go on with the list that it made at the first read. */
static int read_group(struct memcg_channel *channel, const int column[COLUMNS], int group, uint64_t t_ns)
{
    int fd = openat(group, "cgroup.procs", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    char text[4096];
    uint64_t pid = 0;
    for (ssize_t n; (n = read(fd, text, sizeof text)) > 0;)
        for (ssize_t i = 0; i < n; i++) {
            if (text[i] != '\n') {
                pid = pid * 10 + (uint64_t)(text[i] - '0');
                continue;
            }
            if (pid != 0)
                read_process(channel, column, pid, t_ns);
            pid = 0;
        }
    close(fd);
    return 0;
}

/* Groups below. A group's directory has a link from each of them, beside its own two: most have none, and to list their files only
 * to find that out took longer than all else. */
static void read_below(struct memcg_channel *channel, const int column[COLUMNS], int group, uint64_t t_ns, int depth)
{
    struct stat status;
    if (depth == DEPTH || fstat(group, &status) != 0 || status.st_nlink == 2)
        return;
    int listed = openat(group, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = listed < 0 ? NULL : fdopendir(listed);
    if (!folder) {
        if (listed >= 0)
            close(listed);
        return;
    }
    for (struct dirent *entry; (entry = readdir(folder));) {
        if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
            continue;
        int child = openat(group, entry->d_name, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (child < 0)
            continue;
        (void)read_group(channel, column, child, t_ns); /* it may just have been removed */
        read_below(channel, column, child, t_ns, depth + 1);
        close(child);
    }
    closedir(folder);
}

int memcg_processes_read(struct memcg_channel *channel, const int column[COLUMNS], int group, uint64_t t_ns)
{
    int rc = read_group(channel, column, group, t_ns);
    if (rc == 0)
        read_below(channel, column, group, t_ns, 0);
    return rc;
}
