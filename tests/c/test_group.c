/* SPDX-License-Identifier: Apache-2.0 */
/* A sampler of a real memory group: how it ends when the group is removed, and that its threads have no page fault while they are in a
 * group that reclaims all the time. */
#include <pthread.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#include "fake.h"

enum { CGROUP1 = 0x27e0eb, CGROUP2 = 0x63677270, LIMIT_MIB = 48, SECONDS = 5 };

static struct fake fake;
static char group[128], stat_path[160], usage_path[160], limit_path[160], hits_path[160];
static bool v2;

static void write_file(const char *name, const char *text)
{
    char path[160];
    snprintf(path, sizeof path, "%.120s/%s", group, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), "cannot write %s: %s", path, strerror(errno));
    close(fd);
}

static bool is_cgroup(const char *path, long type)
{
    struct statfs status;
    return statfs(path, &status) == 0 && status.f_type == type;
}

static void remove_group(void)
{
    while (group[0] && rmdir(group) != 0 && errno == EBUSY)
        usleep(10000);
    group[0] = '\0';
}

/* A group below the root of either version's hierarchy, and the sampler's configuration for it. */
static void make_group(void)
{
    static const struct memcg_field v1_hits[] = {{"", "limit_hits"}}, v2_hits[] = {{"max", "limit_hits"}};
    static const struct memcg_field v1_stat[] = {{"total_rss", "anon"}, {"total_cache", "file"}, {"total_pgfault", "pgfault"}};
    v2 = is_cgroup("/sys/fs/cgroup", CGROUP2);
    const char *base = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    if (!v2 && !is_cgroup(base, CGROUP1))
        SKIP("no memory hierarchy at %s", base);
    snprintf(group, sizeof group, "%s/pymemcg-test-%d", base, getpid());
    if (mkdir(group, 0700) != 0) {
        group[0] = '\0';
        SKIP("no group of our own: %s", strerror(errno));
    }
    snprintf(stat_path, sizeof stat_path, "%s/memory.stat", group);
    if (access(stat_path, R_OK) != 0) {
        remove_group();
        SKIP("the memory controller is not given to groups in %s", base);
    }
    snprintf(usage_path, sizeof usage_path, "%s/%s", group, v2 ? "memory.current" : "memory.usage_in_bytes");
    snprintf(limit_path, sizeof limit_path, "%s/%s", group, v2 ? "memory.max" : "memory.limit_in_bytes");
    snprintf(hits_path, sizeof hits_path, "%s/%s", group, v2 ? "memory.events" : "memory.failcnt");
    fake.feed[0].path = usage_path;
    fake.feed[1] =
        (struct memcg_feed){hits_path, "usage", v2 ? MEMCG_FORMAT_KEYED : MEMCG_FORMAT_VALUE, 1, v2 ? v2_hits : v1_hits};
    fake.feed[3].path = stat_path;
    fake.feed[3].field = v2 ? FAKE_STAT : v1_stat;
    fake.level[0] = (struct memcg_level){usage_path, limit_path, NULL, hits_path, v2 ? "max" : NULL, NULL};
    fake.config.group = group;
}

static void test_removed(void)
{
    make_group();
    struct memcg_sampler *sampler = fake_start(&fake);
    fake_wait_rows(&fake, CH_USAGE, 20);
    fake_wait_rows(&fake, CH_STAT, 2);
    remove_group();
    FAKE_UNTIL(fake_closed(&fake, CH_USAGE) && fake_closed(&fake, CH_STAT) && fake_closed(&fake, CH_PROCESSES));
    CHECK(fake_channel(&fake, CH_USAGE)->closed_errno == ENODEV, "usage: %" PRIu64,
          fake_channel(&fake, CH_USAGE)->closed_errno);
    CHECK(fake_channel(&fake, CH_STAT)->closed_errno == ENODEV, "stat: %" PRIu64, fake_channel(&fake, CH_STAT)->closed_errno);
    fake_wait_rows(&fake, CH_NODE, 3);
    CHECK(!fake_closed(&fake, CH_NODE) && !fake_closed(&fake, CH_PRESSURE), "the others");
    memcg_sampler_stop(sampler);
}

/* Reads a file of holes over and over: its pages cost no disk, but they are the group's. */
static void *churn(void *argument)
{
    static char buffer[1 << 16];
    int fd = *(const int *)argument;
    for (off_t at = 0;; at = (at + (off_t)sizeof buffer) % ((off_t)LIMIT_MIB << 22))
        if (pread(fd, buffer, sizeof buffer, at) < 0)
            return NULL;
}

static uint64_t hits(void)
{
    return (uint64_t)fake_last(&fake, CH_USAGE, 3);
}

/* In the group, with the sampler where its users have it. */
static void run_squeezed(int file)
{
    static const char *const names[] = {"pymemcg-tick", "pymemcg-keeper"};
    static char text[32];
    uint64_t before[2][2], after[2];
    pthread_t thread;
    pid_t tids[2];
    snprintf(text, sizeof text, "%d", getpid());
    write_file("cgroup.procs", text);
    char *held = malloc((size_t)LIMIT_MIB << 19); /* half of the limit */
    CHECK(held, "no memory");
    memset(held, 1, (size_t)LIMIT_MIB << 19);
    CHECK(pthread_create(&thread, NULL, churn, &file) == 0, "no thread");
    struct memcg_sampler *sampler = fake_start(&fake);
    FAKE_UNTIL(hits() > 100);
    usleep(1000000);
    for (int i = 0; i < 2; i++) {
        tids[i] = fake_thread(names[i]);
        fake_faults(tids[i], before[i]);
    }
    uint64_t hits_before = hits(), rows = fake_head(&fake, CH_USAGE);
    sleep(SECONDS);
    for (int i = 0; i < 2; i++) {
        fake_faults(tids[i], after);
        printf("%s: %" PRIu64 " minor and %" PRIu64 " major faults in %d s\n", names[i], after[0] - before[i][0],
               after[1] - before[i][1], SECONDS);
        CHECK(i == 1 || (after[0] == before[i][0] && after[1] == before[i][1]), "%s has page faults", names[i]);
    }
    printf("%" PRIu64 " rows, %" PRIu64 " hits of the limit\n", fake_head(&fake, CH_USAGE) - rows, hits() - hits_before);
    CHECK(hits() > hits_before + 100 && fake_head(&fake, CH_USAGE) > rows, "nothing was tried");
    memcg_sampler_stop(sampler);
    _exit(0);
}

static void test_squeezed(void)
{
    char path[] = "/var/tmp/memcg-holes-XXXXXX", text[32];
    struct statfs status;
    int file = mkstemp(path), ended;
    CHECK(file >= 0 && unlink(path) == 0 && ftruncate(file, (off_t)LIMIT_MIB << 22) == 0, "no file");
    enum { TMPFS = 0x01021994 };
    if (FAKE_SANITIZED || (fstatfs(file, &status) == 0 && status.f_type == TMPFS))
        return; /* the sanitizer has page faults of its own; a tmpfs's pages cannot be dropped */
    make_group();
    snprintf(text, sizeof text, "%dM", LIMIT_MIB);
    write_file(v2 ? "memory.max" : "memory.limit_in_bytes", text);
    pid_t pid = fork();
    CHECK(pid >= 0, "no process");
    if (pid == 0)
        run_squeezed(file);
    CHECK(waitpid(pid, &ended, 0) == pid, "no child");
    remove_group();
    close(file);
    CHECK(ended == 0, "it ended with %#x", (unsigned)ended);
}

static void in_fake(void (*test)(void))
{
    fake_make(&fake);
    test();
    fake_remove(&fake);
}

int main(void)
{
    atexit(remove_group);
    in_fake(test_squeezed); /* first: it forks, and has no thread yet */
    in_fake(test_removed);
    return 0;
}
