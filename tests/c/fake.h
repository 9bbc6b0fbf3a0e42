/* SPDX-License-Identifier: Apache-2.0 */

/* A group made of regular files in a folder of its own, a ring for it, and a sampler's configuration. The files look like cgroup v2's.
 * A file is changed in place and keeps its length, so that a thread that reads it meanwhile never sees half of one. */
#ifndef FAKE_H
#define FAKE_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/mman.h>
#include <unistd.h>

#include "harness.h"
#include "ring.h"

enum { FAKE_FEEDS = 6, FAKE_FILES = 9, FAKE_CHANNELS = 8 };

struct fake {
    char folder[64];
    char path[FAKE_FILES][96];
    struct memcg_feed feed[FAKE_FEEDS];
    struct memcg_level level[2];
    struct memcg_config config;
    struct memcg_map *map;
};

/* Positions in fake.path. */
enum { CURRENT, EVENTS, STAT, PRESSURE, CPU_STAT, MAX, VMSTAT, PROCS, PARENT_MAX };
/* Positions of channels in the ring. */
enum { CH_USAGE, CH_STAT, CH_PRESSURE, CH_LIMITS, CH_NODE, CH_PROCESSES, CH_CLOCK, CH_EVENTS };

static const struct {
    const char *name, *text;
} FAKE_FILE[FAKE_FILES] = {
    {"memory.current", "1000001\n"},
    {"memory.events", "low 0\nhigh 20\nmax 10\noom 0\noom_kill 30\n"},
    {"memory.stat", "anon 600000\nfile 300000\npgfault 12345\n"},
    {"memory.pressure",
     "some avg10=0.00 avg60=0.00 avg300=0.00 total=5000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=4000\n"},
    {"cpu.stat", "usage_usec 7000000\nuser_usec 5000000\nsystem_usec 2000000\n"},
    {"memory.max", "2000000\n"},
    {"vmstat", "pgfault 11\nallocstall_normal 20\nallocstall_movable 30\n"},
    {"cgroup.procs", NULL}, /* this process */
    {"parent.max", "max\n"},
};

#define FAKE_COLUMNS(...)                                                                                                      \
    (const struct memcg_column_spec[])                                                                                         \
    {                                                                                                                          \
        __VA_ARGS__                                                                                                            \
    }
#define FAKE_FIELDS(...)                                                                                                       \
    (const struct memcg_field[])                                                                                               \
    {                                                                                                                          \
        __VA_ARGS__                                                                                                            \
    }

static inline void fake_write(const struct fake *fake, int file, const char *text)
{
    int fd = open(fake->path[file], O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), "cannot write %s", fake->path[file]);
    close(fd);
}

/* From now on a read of it fails. */
static inline void fake_empty(const struct fake *fake, int file)
{
    CHECK(truncate(fake->path[file], 0) == 0, "cannot empty %s", fake->path[file]);
}

/* As they were at first. */
static inline void fake_restore(const struct fake *fake)
{
    char pid[32];
    snprintf(pid, sizeof pid, "%d\n", getpid());
    for (int i = 0; i < FAKE_FILES; i++)
        fake_write(fake, i, FAKE_FILE[i].text ? FAKE_FILE[i].text : pid);
}

/* rows = 0: 65,536 of usage. */
static inline int fake_ring(uint64_t rows)
{
    const struct memcg_channel_spec channels[FAKE_CHANNELS] = {
        {"usage", 1000000, rows ? rows : 65536, 8,
         FAKE_COLUMNS({"t_ns", "ns"}, {"late_ns", "ns"}, {"usage_bytes", "bytes"}, {"limit_hits", ""}, {"high_hits", ""},
                      {"oom_kills", ""}, {"rss_bytes", "bytes"}, {"shared_bytes", "bytes"})},
        {"stat", 100000000, 500, 4, FAKE_COLUMNS({"t_ns", "ns"}, {"anon", "bytes"}, {"file", "bytes"}, {"pgfault", ""})},
        {"pressure", 0, 500, 5,
         FAKE_COLUMNS({"t_ns", "ns"}, {"since_ns", "ns"}, {"some_us", "us"}, {"full_us", "us"}, {"cpu_us", "us"})},
        {"limits", 0, 500, 6,
         FAKE_COLUMNS({"t_ns", "ns"}, {"level", ""}, {"limit_bytes", "bytes"}, {"high_bytes", "bytes"},
                      {"usage_bytes", "bytes"}, {"hits", ""})},
        {"node", 100000000, 500, 3, FAKE_COLUMNS({"t_ns", "ns"}, {"allocstall_normal", ""}, {"allocstall_movable", ""})},
        {"processes", 100000000, 500, 5,
         FAKE_COLUMNS({"t_ns", "ns"}, {"pid", ""}, {"rss_bytes", "bytes"}, {"shared_bytes", "bytes"},
                      {"virtual_bytes", "bytes"})},
        {"clock", 0, 500, 2, FAKE_COLUMNS({"t_ns", "ns"}, {"realtime_ns", "ns"})},
        {"events", 0, 500, 4, FAKE_COLUMNS({"t_ns", "ns"}, {"since_ns", "ns"}, {"kind", ""}, {"value", ""})},
    };
    int fd = memfd_create("fake", MFD_CLOEXEC);
    CHECK(fd >= 0, "no memfd");
    int rc = memcg_ring_create(fd, channels, FAKE_CHANNELS, NULL, 0, (uint32_t)sysconf(_SC_PAGESIZE), 1);
    CHECK(rc == 0, "no ring: %d", rc);
    return fd;
}

static const struct memcg_field FAKE_CURRENT[] = {{"", "usage_bytes"}};
static const struct memcg_field FAKE_EVENTS[] = {{"max", "limit_hits"}, {"high", "high_hits"}, {"oom_kill", "oom_kills"}};
static const struct memcg_field FAKE_STATM[] = {{"resident", "rss_bytes"}, {"shared", "shared_bytes"}};
static const struct memcg_field FAKE_STAT[] = {{"pgfault", "pgfault"}, {"anon", "anon"}, {"file", "file"}};
static const struct memcg_field FAKE_PRESSURE[] = {{"some_us", "some_us"}, {"full_us", "full_us"}};
static const struct memcg_field FAKE_VMSTAT[] = {{"allocstall_normal", "allocstall_normal"},
                                                 {"allocstall_movable", "allocstall_movable"}};

static struct fake *fake_made;
static pid_t fake_owner;

static inline void fake_clean(void)
{
    for (int i = 0; fake_made && fake_owner == getpid() && i < FAKE_FILES; i++)
        unlink(fake_made->path[i]);
    if (fake_made && fake_owner == getpid())
        rmdir(fake_made->folder);
    fake_made = NULL;
}

/* Made in a folder under /tmp, which is gone after fake_remove() or at the program's end. `fake` must stay where it is. */
static inline void fake_make(struct fake *fake)
{
    char folder[] = "/tmp/memcg-fake-XXXXXX";
    CHECK(mkdtemp(folder), "no folder");
    memset(fake, 0, sizeof *fake);
    memcpy(fake->folder, folder, sizeof folder);
    if (!fake_owner)
        atexit(fake_clean);
    fake_owner = getpid();
    fake_made = fake;
    for (int i = 0; i < FAKE_FILES; i++)
        snprintf(fake->path[i], sizeof fake->path[i], "%s/%s", folder, FAKE_FILE[i].name);
    fake_restore(fake);
    const struct memcg_feed feeds[FAKE_FEEDS] = {
        {fake->path[CURRENT], "usage", MEMCG_FORMAT_VALUE, 1, FAKE_CURRENT},
        {fake->path[EVENTS], "usage", MEMCG_FORMAT_KEYED, 3, FAKE_EVENTS},
        {"/proc/self/statm", "usage", MEMCG_FORMAT_STATM, 2, FAKE_STATM},
        {fake->path[STAT], "stat", MEMCG_FORMAT_KEYED, 3, FAKE_STAT},
        {fake->path[PRESSURE], "pressure", MEMCG_FORMAT_PSI, 2, FAKE_PRESSURE},
        {fake->path[VMSTAT], "node", MEMCG_FORMAT_KEYED, 2, FAKE_VMSTAT},
    };
    memcpy(fake->feed, feeds, sizeof feeds);
    fake->level[0] = (struct memcg_level){fake->path[CURRENT], fake->path[MAX], NULL, fake->path[EVENTS], "max", NULL};
    fake->level[1] = (struct memcg_level){NULL, fake->path[PARENT_MAX], NULL, NULL, NULL, NULL};
    fake->config = (struct memcg_config){.ring_fd = fake_ring(0),
                                         .lock_fd = -1,
                                         .feeds = FAKE_FEEDS,
                                         .levels = 2,
                                         .period_ns = 1000000,
                                         .stat_period_ns = 20000000,
                                         .node_period_ns = 20000000,
                                         .feed = fake->feed,
                                         .level = fake->level,
                                         .group = fake->folder,
                                         .cpu_stat = fake->path[CPU_STAT]};
    CHECK(memcg_map_open(fake->config.ring_fd, &fake->map) == 0, "no map");
}

static inline void fake_remove(struct fake *fake)
{
    memcg_map_free(fake->map);
    close(fake->config.ring_fd);
    fake_clean();
}

/* ---- What a reader sees ----------------------------------------------------------------------------------------------------- */

static inline const struct memcg_channel_header *fake_channel(const struct fake *fake, int channel)
{
    const struct memcg_ring_header *header = memcg_map_header(fake->map);
    return (const struct memcg_channel_header *)(const void *)((const char *)header + header->channels_offset) + channel;
}

static inline uint64_t fake_head(const struct fake *fake, int channel)
{
    return memcg_map_head(fake->map, (uint32_t)channel);
}

/* Column `column` of the channel in a row that is not overwritten yet. Atomic, since the writer goes on. */
static inline int64_t fake_cell(const struct fake *fake, int channel, uint64_t row, uint32_t column)
{
    const struct memcg_channel_header *header = fake_channel(fake, channel);
    const int64_t *values = memcg_map_column(fake->map, header->first_column + column);
    return __atomic_load_n(&values[row % header->capacity], __ATOMIC_RELAXED);
}

static inline int64_t fake_last(const struct fake *fake, int channel, uint32_t column)
{
    return fake_cell(fake, channel, fake_head(fake, channel) - 1, column);
}

static inline uint64_t fake_closed(const struct fake *fake, int channel)
{
    return __atomic_load_n(&fake_channel(fake, channel)->closed_ns, __ATOMIC_ACQUIRE);
}

/* Rows of `events` of that kind, from row `first` on; reads may be slow here, which is an event too. *ret_row is the last one. */
static inline int fake_count_events(const struct fake *fake, uint64_t first, int kind, uint64_t *ret_row)
{
    int count = 0;
    for (uint64_t row = first; row < fake_head(fake, CH_EVENTS); row++) {
        if (fake_cell(fake, CH_EVENTS, row, 2) != kind)
            continue;
        *ret_row = row;
        count++;
    }
    return count;
}

/* Waits as long as the test may run. */
#define FAKE_UNTIL(condition)                                                                                                  \
    while (!(condition))                                                                                                       \
    usleep(1000)

static inline void fake_wait_rows(const struct fake *fake, int channel, uint64_t more)
{
    uint64_t head = fake_head(fake, channel) + more;
    FAKE_UNTIL(fake_head(fake, channel) >= head);
}

static inline struct memcg_sampler *fake_start(const struct fake *fake)
{
    struct memcg_sampler *sampler = NULL;
    char failed[128] = "";
    int rc = memcg_sampler_start(&fake->config, &sampler, failed, sizeof failed);
    CHECK(rc == 0, "start gave %d for %s", rc, failed);
    return sampler;
}

/* Entries of a folder of /proc: descriptors, threads. */
static inline int fake_count(const char *folder)
{
    DIR *entries = opendir(folder);
    CHECK(entries, "no %s", folder);
    int count = 0;
    while (readdir(entries))
        count++;
    closedir(entries);
    return count;
}

/* Threads of this process: the fewest within 20 ms, since one that was joined is in /proc for a moment longer. */
static inline int fake_threads(void)
{
    int least = fake_count("/proc/self/task");
    for (int i = 0; i < 20; i++) {
        usleep(1000);
        int now = fake_count("/proc/self/task");
        least = now < least ? now : least;
    }
    return least;
}

/* Whether there come to be no more threads than that, within 5 s. */
static inline int fake_has_threads(int wanted)
{
    for (int i = 0; i < 5000 && fake_count("/proc/self/task") > wanted; i++)
        usleep(1000);
    return fake_count("/proc/self/task") == wanted;
}

/* A thread of this process by the name that it gave itself. Waits for it. */
static inline pid_t fake_thread(const char *name)
{
    for (;; usleep(1000)) {
        DIR *tasks = opendir("/proc/self/task");
        CHECK(tasks, "no /proc/self/task");
        for (struct dirent *task; (task = readdir(tasks));) {
            char path[300], have[32] = "";
            snprintf(path, sizeof path, "/proc/self/task/%s/comm", task->d_name);
            FILE *file = fopen(path, "re");
            if (!file || !fgets(have, sizeof have, file))
                have[0] = '\0';
            if (file)
                fclose(file);
            if (strncmp(have, name, strlen(name)) == 0 && have[strlen(name)] == '\n') {
                pid_t tid = (pid_t)atoi(task->d_name);
                closedir(tasks);
                return tid;
            }
        }
        closedir(tasks);
    }
}

/* Page faults of a thread so far, minor and major. */
static inline void fake_faults(pid_t tid, uint64_t ret_faults[2])
{
    char path[64], text[1024] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    FILE *file = fopen(path, "re");
    CHECK(file && fgets(text, sizeof text, file), "no %s", path);
    fclose(file);
    CHECK(sscanf(strrchr(text, ')') + 2, "%*c %*d %*d %*d %*d %*d %*u %" SCNu64 " %*u %" SCNu64, &ret_faults[0],
                 &ret_faults[1]) == 2,
          "%s", text);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FAKE_SANITIZED 1
#else
#define FAKE_SANITIZED 0
#endif

#endif
