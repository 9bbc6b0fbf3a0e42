/* SPDX-License-Identifier: Apache-2.0 */
/* Every process, or thread, of the group and of the groups below it. The keeper's: it opens files and folders, which may wait for
 * memory. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "parse.h"
#include "sampler.h"

enum { DEPTH = 16, COLUMNS = 5 };

struct each {
    const char *list; /* the file with the numbers */
    void (*call)(void *context, uint64_t number);
    void *context;
};

/* A number a line, 0 for one outside our pid namespace. Read in pieces, since it has no bound, and opened anew each time: v1 would go
 * on with the list that it made at the first read. */
static int read_group(int group, const struct each *each)
{
    int fd = openat(group, each->list, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    char text[4096];
    uint64_t number = 0;
    for (ssize_t n; (n = read(fd, text, sizeof text)) > 0;)
        for (ssize_t i = 0; i < n; i++) {
            if (text[i] != '\n') {
                number = number * 10 + (uint64_t)(text[i] - '0');
                continue;
            }
            if (number != 0)
                each->call(each->context, number);
            number = 0;
        }
    close(fd);
    return 0;
}

/* Groups below. A group's directory has a link from each of them, beside its own two: most have none, and to list their files only
 * to find that out took longer than all else. */
static void read_below(int group, const struct each *each, int depth)
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
        (void)read_group(child, each); /* it may just have been removed */
        read_below(child, each, depth + 1);
        close(child);
    }
    closedir(folder);
}

int memcg_group_each(int group, const char *list, void (*call)(void *context, uint64_t number), void *context)
{
    const struct each each = {list, call, context};
    int rc = read_group(group, &each);
    if (rc == 0)
        read_below(group, &each, 0);
    return rc;
}

struct table {
    struct memcg_channel *channel;
    const int *column;
    uint64_t t_ns;
};

/* size resident shared text lib data dt → virtual_bytes rss_bytes shared_bytes. A process that is gone, or a zombie, has no row. */
static void read_process(void *context, uint64_t pid)
{
    const struct table *table = context;
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
    const int64_t row[COLUMNS] = {(int64_t)table->t_ns, (int64_t)pid, (int64_t)pages[1] * page, (int64_t)pages[2] * page,
                                  (int64_t)pages[0] * page};
    for (int i = 0; i < COLUMNS; i++)
        if (table->column[i] >= 0)
            memcg_channel_put(table->channel, table->column[i], row[i]);
    memcg_channel_publish(table->channel);
}

int memcg_processes_read(struct memcg_channel *channel, const int column[COLUMNS], int group, uint64_t t_ns)
{
    return memcg_group_each(group, "cgroup.procs", read_process, &(struct table){channel, column, t_ns});
}
