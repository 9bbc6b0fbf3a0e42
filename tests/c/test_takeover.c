/* SPDX-License-Identifier: Apache-2.0 */
/* Several samplers of one group, in one process and in several: one writes, the others wait for its lock. And the ends of a sampler:
 * stop, death, fork. Run by the thread sanitizer too. */
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/wait.h>

#include "fake.h"

static struct fake fake;

/* A descriptor of the group's folder of its own, as every process has: locks on two of them exclude each other. */
static int open_lock(void)
{
    int fd = open(fake.folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(fd >= 0, "no %s", fake.folder);
    return fd;
}

static bool lock(int fd)
{
    return flock(fd, LOCK_EX | LOCK_NB) == 0;
}

static struct fake attached(int lock_fd)
{
    struct fake other = fake;
    other.config.lock_fd = lock_fd;
    other.config.flags |= MEMCG_ATTACHED;
    return other;
}

static uint64_t takeovers(void)
{
    return __atomic_load_n(&memcg_map_header(fake.map)->state.takeovers, __ATOMIC_RELAXED);
}

static uint64_t writer_pid(void)
{
    return __atomic_load_n(&memcg_map_header(fake.map)->state.writer_pid, __ATOMIC_RELAXED);
}

/* The row that tells of the last takeover: it names the last row before the gap and who went on. */
static void check_event(int64_t last_ns, int64_t pid)
{
    uint64_t event = 0;
    CHECK(fake_count_events(&fake, 0, MEMCG_EVENT_TAKEOVER, &event) > 0, "no event");
    CHECK(fake_cell(&fake, CH_EVENTS, event, 1) == last_ns, "the gap begins at %" PRId64 ", not %" PRId64, last_ns,
          fake_cell(&fake, CH_EVENTS, event, 1));
    CHECK(fake_cell(&fake, CH_EVENTS, event, 0) > last_ns, "the gap ends before it begins");
    CHECK(fake_cell(&fake, CH_EVENTS, event, 3) == pid, "by %" PRId64, fake_cell(&fake, CH_EVENTS, event, 3));
}

static void test_released_lock(void)
{
    int first_lock = open_lock(), second_lock = open_lock();
    CHECK(lock(first_lock) && !lock(second_lock), "the lock");
    fake.config.lock_fd = first_lock;
    struct memcg_sampler *first = fake_start(&fake);
    const struct fake other = attached(second_lock);
    struct memcg_sampler *second = fake_start(&other);
    CHECK(memcg_sampler_writes(first) == 1 && memcg_sampler_writes(second) == 0, "who writes");
    fake_wait_rows(&fake, CH_USAGE, 300); /* longer than it takes to look for the lock */
    CHECK(memcg_sampler_writes(second) == 0 && takeovers() == 0, "while it is held");
    CHECK(memcg_sampler_held_bytes(second) < memcg_sampler_held_bytes(first), "who waits holds less");

    memcg_sampler_stop(first);
    uint64_t head = fake_head(&fake, CH_USAGE);
    int64_t last_ns = fake_last(&fake, CH_USAGE, 0);
    CHECK(flock(first_lock, LOCK_UN) == 0, "cannot unlock");
    FAKE_UNTIL(memcg_sampler_writes(second));
    fake_wait_rows(&fake, CH_USAGE, 20);
    CHECK(takeovers() == 1 && writer_pid() == (uint64_t)getpid(), "who writes now");
    check_event(last_ns, getpid());
    CHECK(fake_cell(&fake, CH_USAGE, head - 1, 0) == last_ns && fake_cell(&fake, CH_USAGE, head, 0) > last_ns, "rows go on");
    CHECK(!lock(first_lock), "the lock is free");
    memcg_sampler_stop(second);
    CHECK(writer_pid() == 0, "after the end");
    close(first_lock);
    close(second_lock);
}

/* The sampling process is killed in the midst of it; of two that wait one goes on. */
static void test_killed_process(void)
{
    int locks[2] = {open_lock(), open_lock()};
    pid_t pid = fork();
    CHECK(pid >= 0, "no process");
    if (pid == 0) {
        fake.config.lock_fd = open_lock();
        CHECK(lock(fake.config.lock_fd), "the lock");
        (void)fake_start(&fake);
        for (;;)
            pause();
    }
    FAKE_UNTIL(fake_head(&fake, CH_USAGE) > 50);
    CHECK(writer_pid() == (uint64_t)pid, "who writes");
    const struct fake others[2] = {attached(locks[0]), attached(locks[1])};
    struct memcg_sampler *samplers[2];
    for (int i = 0; i < 2; i++)
        samplers[i] = fake_start(&others[i]);
    CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid, "it lives");
    int64_t last_ns = fake_last(&fake, CH_USAGE, 0);
    FAKE_UNTIL(memcg_sampler_writes(samplers[0]) || memcg_sampler_writes(samplers[1]));
    fake_wait_rows(&fake, CH_USAGE, 300);
    CHECK(memcg_sampler_writes(samplers[0]) + memcg_sampler_writes(samplers[1]) == 1 && takeovers() == 1, "both took over");
    check_event(last_ns, getpid());
    CHECK(fake_closed(&fake, CH_PRESSURE) == 0, "the dead process still reads PSI");
    for (int i = 0; i < 2; i++) {
        memcg_sampler_stop(samplers[i]);
        close(locks[i]);
    }
}

/* Who cannot go on gives the lock back; another may have more luck. */
static void test_failing_takeover(void)
{
    int first_lock = open_lock(), second_lock = open_lock();
    CHECK(lock(first_lock), "the lock");
    struct fake other = attached(second_lock);
    other.config.group = "/no/such/group";
    other.feed[3].path = "/no/such/file";
    other.config.feed = other.feed;
    struct memcg_sampler *second = fake_start(&other);
    int descriptors = fake_count("/proc/self/fd");
    CHECK(flock(first_lock, LOCK_UN) == 0, "cannot unlock");
    for (int i = 0; i < 2; i++) { /* it holds the lock only while it tries, a moment in each quarter of a second */
        usleep(300000);
        FAKE_UNTIL(lock(first_lock));
        CHECK(flock(first_lock, LOCK_UN) == 0, "cannot unlock");
    }
    CHECK(memcg_sampler_writes(second) == 0 && takeovers() == 0 && writer_pid() == 0, "it writes");
    CHECK(fake_closed(&fake, CH_USAGE) != 0 && fake_channel(&fake, CH_USAGE)->closed_errno == ENOENT, "readers are not told");
    memcg_sampler_stop(second);
    CHECK(fake_count("/proc/self/fd") == descriptors, "descriptors leaked");
    close(first_lock);
    close(second_lock);
}

/* The group's PSI is somebody else's to read: that channel says so, and opens when it is free. */
static void test_pressure_taken(void)
{
    int reader = open(fake.path[PRESSURE], O_RDONLY | O_CLOEXEC);
    CHECK(reader >= 0 && lock(reader), "the lock");
    struct memcg_sampler *sampler = fake_start(&fake);
    CHECK(fake_closed(&fake, CH_PRESSURE) && fake_channel(&fake, CH_PRESSURE)->closed_errno == EBUSY, "closed and why");
    CHECK(fake_head(&fake, CH_PRESSURE) == 0, "read all the same");
    uint64_t closed = fake_closed(&fake, CH_PRESSURE);
    fake_wait_rows(&fake, CH_NODE, 5); /* it is asked for again and again */
    CHECK(fake_closed(&fake, CH_PRESSURE) == closed, "closed once more, %" PRIu64 " ns later",
          fake_closed(&fake, CH_PRESSURE) - closed);
    close(reader);
    FAKE_UNTIL(!fake_closed(&fake, CH_PRESSURE));
    reader = open(fake.path[PRESSURE], O_RDONLY | O_CLOEXEC);
    CHECK(!lock(reader), "open, but not held");
    close(reader);
    memcg_sampler_stop(sampler);
}

/* In a forked child the threads are gone, and what the child forgets the parent keeps: rows, locks, descriptors. */
static void test_fork(void)
{
    int own_lock = open_lock(), other_lock = open_lock(), bare = fake_count("/proc/self/fd");
    CHECK(lock(own_lock), "the lock");
    fake.config.lock_fd = own_lock;
    struct memcg_sampler *sampler = fake_start(&fake);
    fake_wait_rows(&fake, CH_PROCESSES, 2);
    for (int i = 0; i < 10; i++) {
        int status;
        pid_t pid = fork();
        CHECK(pid >= 0, "no process");
        if (pid == 0) {
            memcg_sampler_forget(sampler);
            /* The keeper may have been at a file of its own at the moment of the fork. */
            int left = fake_count("/proc/self/fd");
            CHECK(left >= bare && left <= bare + 4, "%d descriptors of %d", left, bare);
            _exit(0);
        }
        CHECK(waitpid(pid, &status, 0) == pid && status == 0, "the child ended with %#x", (unsigned)status);
        fake_wait_rows(&fake, CH_USAGE, 20);
        fake_wait_rows(&fake, CH_STAT, 1);
        CHECK(!lock(other_lock) && writer_pid() == (uint64_t)getpid(), "the child took what is the parent's");
    }
    for (int i = 0; i < FAKE_CHANNELS; i++)
        CHECK(!fake_closed(&fake, i), "channel %d is closed", i);
    memcg_sampler_stop(sampler);
    CHECK(fake_count("/proc/self/fd") == bare, "descriptors leaked");
    close(own_lock);
    close(other_lock);
}

static uint64_t count_mappings(void)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    CHECK(maps, "no maps");
    uint64_t lines = 0;
    for (int c; (c = fgetc(maps)) != EOF;)
        lines += c == '\n';
    fclose(maps);
    return lines;
}

static void test_cycles(void)
{
    int lock_fd = open_lock();
    const struct fake other = attached(lock_fd);
    CHECK(lock(open_lock()), "the lock"); /* held: who attaches waits */
    memcg_sampler_stop(fake_start(&fake));
    memcg_sampler_stop(fake_start(&other));
    int descriptors = fake_count("/proc/self/fd"), threads = fake_threads();
    uint64_t mappings = count_mappings();
    for (int i = 0; i < 100; i++) {
        struct memcg_sampler *sampler = fake_start(&fake), *second = fake_start(&other);
        if (i % 10 == 0)
            fake_wait_rows(&fake, CH_USAGE, 3);
        memcg_sampler_stop(i % 2 ? second : sampler);
        memcg_sampler_stop(i % 2 ? sampler : second);
    }
    CHECK(fake_count("/proc/self/fd") == descriptors, "%d descriptors, then %d", descriptors, fake_count("/proc/self/fd"));
    CHECK(fake_has_threads(threads), "threads are left");
    CHECK(count_mappings() < mappings + 50, "%" PRIu64 " mappings, then %" PRIu64, mappings, count_mappings());
    close(lock_fd);
}

/* Samplers come and go in several threads, as in several processes: whoever gets the lock starts as the writer, the others attach and
 * may take over at any time; a reader looks on. In the end all wait for a takeover, so that there is one. */
struct actor {
    pthread_t thread;
    uint64_t wrote;
};

static uint32_t acting;

static void *run_actor(void *argument)
{
    struct actor *actor = argument;
    enum { ROUNDS = 15 };
    for (int i = 1; i <= ROUNDS; i++) {
        int lock_fd = open_lock();
        struct fake own = attached(lock_fd);
        if (i < ROUNDS && lock(lock_fd))
            own.config.flags &= ~(uint32_t)MEMCG_ATTACHED;
        struct memcg_sampler *sampler = fake_start(&own);
        usleep(i % 3 == 0 ? 400000 : 5000);
        if (i == ROUNDS)
            FAKE_UNTIL(takeovers() > 0);
        actor->wrote += (uint64_t)memcg_sampler_writes(sampler);
        memcg_sampler_stop(sampler);
        close(lock_fd);
    }
    __atomic_sub_fetch(&acting, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void test_coming_and_going(void)
{
    struct actor actors[3] = {0};
    uint64_t head = 0, wrote = 0;
    acting = 3;
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&actors[i].thread, NULL, run_actor, &actors[i]) == 0, "no thread");
    while (__atomic_load_n(&acting, __ATOMIC_ACQUIRE)) {
        uint64_t now = fake_head(&fake, CH_USAGE);
        CHECK(now >= head, "rows were taken back: %" PRIu64 ", then %" PRIu64, head, now);
        head = now;
        usleep(500);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(actors[i].thread, NULL);
        wrote += actors[i].wrote;
    }
    CHECK(wrote > 0 && head > 0 && takeovers() > 0, "%" PRIu64 " wrote %" PRIu64 " rows, %" PRIu64 " took over", wrote, head,
          takeovers());
    int64_t before = 0;
    for (uint64_t row = 0; row < head; row++) {
        int64_t t_ns = fake_cell(&fake, CH_USAGE, row, 0);
        CHECK(t_ns > before, "row %" PRIu64 ": two wrote at once", row);
        before = t_ns;
    }
}

static void in_fake(void (*test)(void))
{
    fake_make(&fake);
    test();
    fake_remove(&fake);
}

int main(void)
{
    in_fake(test_killed_process); /* first: it forks, and has no thread yet */
    in_fake(test_released_lock);
    in_fake(test_failing_takeover);
    in_fake(test_pressure_taken);
    in_fake(test_fork);
    in_fake(test_cycles);
    in_fake(test_coming_and_going);
    return 0;
}
