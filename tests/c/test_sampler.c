/* SPDX-License-Identifier: Apache-2.0 */
/* One sampler over a group of regular files: its first sample, its rows, its failures and its end. Who takes over is test_takeover.c. */
#include <signal.h>
#include <sys/wait.h>

#include "fake.h"
#include "sampler.h"

static struct fake fake;

/* Taken by start() itself, before any tick. */
static void test_first_sample(void)
{
    fake.config.period_ns = fake.config.stat_period_ns = 3600000000000u;
    struct memcg_sampler *sampler = fake_start(&fake);
    const struct memcg_state *state = &memcg_map_header(fake.map)->state;
    CHECK(memcg_sampler_writes(sampler) == 1 && state->writer_pid == (uint64_t)getpid(), "who writes");
    CHECK(fake_head(&fake, CH_USAGE) == 1 && fake_head(&fake, CH_PRESSURE) == 1, "usage and pressure");
    CHECK(fake_last(&fake, CH_USAGE, 2) == 1000001, "usage_bytes %" PRId64, fake_last(&fake, CH_USAGE, 2));
    CHECK(fake_last(&fake, CH_USAGE, 3) == 10 && fake_last(&fake, CH_USAGE, 4) == 20 && fake_last(&fake, CH_USAGE, 5) == 30,
          "hits %" PRId64, fake_last(&fake, CH_USAGE, 3));
    CHECK(fake_last(&fake, CH_USAGE, 6) > fake_last(&fake, CH_USAGE, 7), "resident and shared");
    CHECK(fake_cell(&fake, CH_STAT, 0, 1) == 600000 && fake_cell(&fake, CH_STAT, 0, 2) == 300000 &&
              fake_cell(&fake, CH_STAT, 0, 3) == 12345,
          "stat, whose keys are in another order");
    CHECK(fake_last(&fake, CH_PRESSURE, 2) == 5000 && fake_last(&fake, CH_PRESSURE, 3) == 4000, "pressure");
    CHECK(fake_cell(&fake, CH_LIMITS, 0, 1) == 0 && fake_cell(&fake, CH_LIMITS, 0, 2) == 2000000 &&
              fake_cell(&fake, CH_LIMITS, 0, 3) == MEMCG_NONE && fake_cell(&fake, CH_LIMITS, 0, 4) == 1000001 &&
              fake_cell(&fake, CH_LIMITS, 0, 5) == 10,
          "the group's limits");
    CHECK(fake_cell(&fake, CH_LIMITS, 1, 1) == 1 && fake_cell(&fake, CH_LIMITS, 1, 2) == MEMCG_NONE, "its parent's");
    CHECK(fake_cell(&fake, CH_NODE, 0, 1) == 20 && fake_cell(&fake, CH_NODE, 0, 2) == 30, "node");
    CHECK(fake_cell(&fake, CH_PROCESSES, 0, 1) == getpid() && fake_cell(&fake, CH_PROCESSES, 0, 2) > 0, "processes");
    CHECK(fake_head(&fake, CH_CLOCK) == 1 && fake_last(&fake, CH_CLOCK, 1) > fake_last(&fake, CH_CLOCK, 0), "clock");
    CHECK(fake_head(&fake, CH_EVENTS) == 0, "nothing has happened");
    for (int i = 0; i < FAKE_CHANNELS; i++)
        CHECK(fake_closed(&fake, i) == 0, "channel %d is closed", i);
    CHECK(memcg_sampler_held_bytes(sampler) > 100000, "held: %zu bytes", memcg_sampler_held_bytes(sampler));
    memcg_sampler_stop(sampler); /* at once, though the next deadline is an hour away */
    CHECK(fake_head(&fake, CH_USAGE) == 1 && state->writer_pid == 0, "after the stop");
}

static void test_rows(void)
{
    struct memcg_sampler *sampler = fake_start(&fake);
    fake_wait_rows(&fake, CH_USAGE, 50);
    fake_wait_rows(&fake, CH_STAT, 3);
    fake_wait_rows(&fake, CH_NODE, 3);
    fake_wait_rows(&fake, CH_PROCESSES, 3);
    fake_write(&fake, CURRENT, "1900009\n");
    FAKE_UNTIL(fake_last(&fake, CH_USAGE, 2) == 1900009);
    fake_write(&fake, STAT, "anon 700000\nfile 200000\npgfault 23456\n");
    FAKE_UNTIL(fake_last(&fake, CH_STAT, 1) == 700000 && fake_last(&fake, CH_STAT, 3) == 23456);

    /* A limit and its hits: a row when one changes, and none when nothing does. */
    uint64_t limits = fake_head(&fake, CH_LIMITS);
    fake_wait_rows(&fake, CH_STAT, 5);
    CHECK(fake_head(&fake, CH_LIMITS) == limits, "limits that did not change have rows");
    fake_write(&fake, MAX, "3000000\n");
    FAKE_UNTIL(fake_head(&fake, CH_LIMITS) > limits && fake_last(&fake, CH_LIMITS, 2) == 3000000);
    fake_write(&fake, EVENTS, "low 0\nhigh 20\nmax 11\noom 0\noom_kill 30\n");
    FAKE_UNTIL(fake_last(&fake, CH_LIMITS, 5) == 11 && fake_last(&fake, CH_USAGE, 3) == 11);
    memcg_sampler_stop(sampler);

    int64_t before = 0;
    for (uint64_t row = 0; row < fake_head(&fake, CH_USAGE); row++) {
        int64_t t_ns = fake_cell(&fake, CH_USAGE, row, 0);
        CHECK(t_ns > before, "row %" PRIu64 " is not later than the one before", row);
        CHECK(fake_cell(&fake, CH_USAGE, row, 1) >= 0, "row %" PRIu64 " came before its deadline", row);
        before = t_ns;
    }
}

/* A file that goes bad ends its channel, which says why and when, and nothing else. */
static void test_closing(void)
{
    struct memcg_sampler *sampler = fake_start(&fake);
    uint64_t event = 0;
    fake_empty(&fake, STAT);
    FAKE_UNTIL(fake_closed(&fake, CH_STAT));
    CHECK(fake_channel(&fake, CH_STAT)->closed_errno == ENODATA, "why: %" PRIu64, fake_channel(&fake, CH_STAT)->closed_errno);
    FAKE_UNTIL(fake_count_events(&fake, 0, MEMCG_EVENT_CLOSED, &event) == 1);
    CHECK(fake_cell(&fake, CH_EVENTS, event, 1) == (int64_t)fake_closed(&fake, CH_STAT), "when");
    CHECK(fake_cell(&fake, CH_EVENTS, event, 3) == ((int64_t)CH_STAT << 32 | ENODATA), "which, and why");
    uint64_t rows = fake_head(&fake, CH_STAT);
    fake_wait_rows(&fake, CH_USAGE, 50);
    fake_wait_rows(&fake, CH_NODE, 3);

    fake_empty(&fake, CURRENT);
    FAKE_UNTIL(fake_closed(&fake, CH_USAGE));
    fake_wait_rows(&fake, CH_NODE, 3);
    fake_restore(&fake); /* what is closed stays closed */
    fake_wait_rows(&fake, CH_NODE, 3);
    CHECK(fake_closed(&fake, CH_USAGE) && fake_closed(&fake, CH_STAT) && fake_head(&fake, CH_STAT) == rows, "open again");
    CHECK(fake_count_events(&fake, 0, MEMCG_EVENT_CLOSED, &event) == 2, "each is told of once");
    CHECK(!fake_closed(&fake, CH_PRESSURE) && !fake_closed(&fake, CH_NODE) && !fake_closed(&fake, CH_PROCESSES), "the others");
    memcg_sampler_stop(sampler);

    sampler = fake_start(&fake); /* … until somebody starts anew, behind the old rows */
    fake_wait_rows(&fake, CH_USAGE, 5);
    CHECK(!fake_closed(&fake, CH_USAGE) && !fake_closed(&fake, CH_STAT) && fake_head(&fake, CH_STAT) > rows, "still closed");
    memcg_sampler_stop(sampler);
}

/* Nothing of a start that failed is left. */
static void check_failure(const char *what, int expected, const char *named)
{
    struct memcg_sampler *sampler = NULL;
    char failed[128] = "?";
    int descriptors = fake_count("/proc/self/fd"), threads = fake_threads();
    int rc = memcg_sampler_start(&fake.config, &sampler, failed, sizeof failed);
    CHECK(rc == expected && !sampler, "%s gave %d", what, rc);
    CHECK(!named || strcmp(failed, named) == 0, "%s named '%s', not '%s'", what, failed, named);
    CHECK(memcg_map_header(fake.map)->state.writer_pid == 0, "%s: somebody writes", what);
    CHECK(fake_count("/proc/self/fd") == descriptors, "%s leaked descriptors", what);
    CHECK(fake_has_threads(threads), "%s left threads", what);
}

static void test_failing_files(void)
{
    static const int files[] = {CURRENT, EVENTS, STAT, PRESSURE, CPU_STAT, MAX, VMSTAT, PARENT_MAX};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        const char *path = fake.path[files[i]];
        CHECK(unlink(path) == 0, "cannot remove %s", path);
        check_failure(FAKE_FILE[files[i]].name, -ENOENT, path);
        fake_write(&fake, files[i], "");
        check_failure(FAKE_FILE[files[i]].name, -ENODATA, path);
        fake_write(&fake, files[i], "<html>\n");
        check_failure(FAKE_FILE[files[i]].name, files[i] == PRESSURE ? -ENODATA : -EINVAL, path);
        fake_empty(&fake, files[i]);
        fake_restore(&fake);
    }
    /* Keys that are not there: absent, not 0. */
    static const int keyed[] = {EVENTS, STAT, VMSTAT, CPU_STAT};
    for (size_t i = 0; i < sizeof keyed / sizeof keyed[0]; i++) {
        fake_empty(&fake, keyed[i]);
        fake_write(&fake, keyed[i], "something_else 1\n");
        check_failure(FAKE_FILE[keyed[i]].name, -ENODATA, fake.path[keyed[i]]);
        fake_empty(&fake, keyed[i]);
        fake_restore(&fake);
    }
    memcg_sampler_stop(fake_start(&fake));
}

static void test_bad_configurations(void)
{
    const struct memcg_config good = fake.config;
    fake.config.levels = 33;
    check_failure("33 levels", -EINVAL, NULL);
    fake.config = good;
    fake.config.period_ns = 0;
    check_failure("no period", -EINVAL, NULL);
    fake.config = good;
    fake.config.stat_period_ns = 0;
    check_failure("no period of stat", -EINVAL, NULL);
    fake.config = good;
    fake.config.ring_fd = open(fake.path[STAT], O_RDWR | O_CLOEXEC);
    check_failure("no ring", -EBADMSG, "the ring");
    close(fake.config.ring_fd);
    fake.config = good;
    /* The name is cut to what there is room for, or not given at all. */
    struct memcg_sampler *sampler = NULL;
    char failed[8] = "?";
    fake_empty(&fake, STAT);
    CHECK(memcg_sampler_start(&fake.config, &sampler, failed, sizeof failed) == -ENODATA, "an empty file");
    CHECK(strlen(failed) == 7 && strncmp(failed, fake.path[STAT], 7) == 0, "'%s'", failed);
    CHECK(memcg_sampler_start(&fake.config, &sampler, NULL, 0) == -ENODATA, "nobody asks for the name");
    fake_restore(&fake);
}

/* A ring that another version laid out: values without a column go nowhere, columns without a value say so in every row. */
static void test_other_columns(void)
{
    static const struct memcg_field fields[] = {{"pgfault", "pgfault"}, {"anon", "something_new"}, {"file", "anon"}};
    fake.feed[3].field = fields;
    struct memcg_sampler *sampler = fake_start(&fake);
    fake_wait_rows(&fake, CH_STAT, 3);
    memcg_sampler_stop(sampler);
    CHECK(fake_last(&fake, CH_STAT, 3) == 12345 && fake_last(&fake, CH_STAT, 1) == 300000, "what has a column");
    CHECK(fake_last(&fake, CH_STAT, 2) == MEMCG_NONE, "what has no value: %" PRId64, fake_last(&fake, CH_STAT, 2));

    /* Old rings may lack columns of the channels that no feed fills. */
    static const char *const names[] = {"limits", "processes", "clock", "events"};
    static const struct memcg_column_spec columns[] = {{"t_ns", "ns"}, {"late_ns", "ns"}, {"something_old", ""}};
    struct memcg_channel_spec channels[5] = {{"usage", 1000000, 500, 2, columns}};
    for (size_t i = 0; i < 4; i++)
        channels[i + 1] = (struct memcg_channel_spec){names[i], 0, 500, 3, columns};
    const int ring_fd = fake.config.ring_fd;
    struct memcg_map *map;
    fake.config.ring_fd = memfd_create("old", MFD_CLOEXEC);
    CHECK(memcg_ring_create(fake.config.ring_fd, channels, 5, NULL, 0, (uint32_t)sysconf(_SC_PAGESIZE), 1) == 0, "no ring");
    CHECK(memcg_map_open(fake.config.ring_fd, &map) == 0, "no map");
    sampler = fake_start(&fake);
    FAKE_UNTIL(memcg_map_head(map, 0) > 20);
    memcg_sampler_stop(sampler);
    CHECK(memcg_map_head(map, 1) >= 2 && memcg_map_head(map, 2) >= 1 && memcg_map_head(map, 3) == 1, "rows of what there is");
    for (uint32_t column = 2; column < 14; column += 3)
        CHECK(memcg_map_column(map, column + 2)[0] == 0, "column %u was written", column + 2);
    memcg_map_free(map);
    close(fake.config.ring_fd);
    fake.config.ring_fd = ring_fd;
    fake.feed[3].field = FAKE_STAT;
}

/* A line that appears in front of the one that is read, as after a remount: found where it is now, not where it was. */
static void test_moved_lines(void)
{
    struct memcg_level_sources level = {0};
    const char *failed = NULL;
    CHECK(memcg_level_open(&fake.level[0], true, &level, &failed) == 0, "no level: %s", failed);
    CHECK(memcg_level_value(level.hits, level.hits_key) == 10, "hits");
    fake_write(&fake, EVENTS, "local 5\nlow 0\nhigh 20\nmax 12\noom 0\noom_kill 30\n");
    CHECK(memcg_level_value(level.hits, level.hits_key) == 12, "moved: %" PRId64,
          memcg_level_value(level.hits, level.hits_key));
    fake_empty(&fake, EVENTS);
    CHECK(memcg_level_value(level.hits, level.hits_key) == MEMCG_NONE, "nothing there");
    fake_write(&fake, EVENTS, "low 0\nhigh 20\n");
    CHECK(memcg_level_value(level.hits, level.hits_key) == MEMCG_NONE, "no such line");
    CHECK(memcg_level_value(level.limit, "") == 2000000 && memcg_level_value(level.high, "") == MEMCG_NONE, "limits");
    memcg_level_close(&level);
    fake_restore(&fake);
}

/* Where the group's CPU time cannot be known, PSI is read once and left alone: after that nobody could say when it may be. */
static void test_no_cpu_time(void)
{
    fake.config.cpu_stat = NULL;
    struct memcg_sampler *sampler = fake_start(&fake);
    usleep(2500000); /* longer than the gate waits where nothing is hit */
    fake_write(&fake, EVENTS, "low 0\nhigh 20\nmax 11\noom 0\noom_kill 30\n");
    fake_wait_rows(&fake, CH_USAGE, 200);
    CHECK(fake_head(&fake, CH_PRESSURE) == 1 && !fake_closed(&fake, CH_PRESSURE), "%" PRIu64 " reads",
          fake_head(&fake, CH_PRESSURE));
    memcg_sampler_stop(sampler);
}

/* Stopped for a while as if by a debugger, the process misses deadlines. They are counted and not made up for: each tick's own
 * deadline is on the grid, and those that no tick had are the missed ones. */
static void test_missed(void)
{
    const uint64_t period = fake.config.period_ns, first = fake_head(&fake, CH_USAGE) + 1; /* the first row is start()'s */
    const struct memcg_state *state = &memcg_map_header(fake.map)->state;
    const uint64_t missed_before = state->missed;
    pid_t pid = fork();
    CHECK(pid >= 0, "no process");
    if (pid == 0) {
        struct memcg_sampler *sampler = fake_start(&fake);
        int got;
        sigset_t wanted;
        sigemptyset(&wanted);
        sigaddset(&wanted, SIGTERM);
        sigprocmask(SIG_BLOCK, &wanted, NULL);
        sigwait(&wanted, &got);
        memcg_sampler_stop(sampler);
        _exit(0);
    }
    FAKE_UNTIL(fake_head(&fake, CH_USAGE) > first + 20);
    for (int i = 0; i < 3; i++) {
        int status;
        CHECK(kill(pid, SIGSTOP) == 0 && waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status), "it does not stop");
        usleep(50000);
        CHECK(kill(pid, SIGCONT) == 0, "it does not go on");
        fake_wait_rows(&fake, CH_USAGE, 20);
    }
    int status;
    CHECK(kill(pid, SIGTERM) == 0 && waitpid(pid, &status, 0) == pid && status == 0, "it ended with %#x", (unsigned)status);

    uint64_t missed = 0, last = 0;
    for (uint64_t row = first; row < fake_head(&fake, CH_USAGE); row++) {
        uint64_t deadline = (uint64_t)(fake_cell(&fake, CH_USAGE, row, 0) - fake_cell(&fake, CH_USAGE, row, 1));
        if (row > first) {
            CHECK(deadline > last && (deadline - last) % period == 0, "row %" PRIu64 ": deadlines %" PRId64 " ns apart", row,
                  (int64_t)(deadline - last));
            missed += (deadline - last) / period - 1;
        }
        last = deadline;
    }
    CHECK(missed >= 3 * 40 * 1000000 / period, "only %" PRIu64 " deadlines were missed", missed);
    uint64_t counted = state->missed - missed_before;
    CHECK(counted == missed || counted == missed + 1, "%" PRIu64 " missed, %" PRIu64 " counted", missed, counted);
}

static void in_fake(void (*test)(void))
{
    fake_make(&fake);
    test();
    fake_remove(&fake);
}

int main(void)
{
    in_fake(test_first_sample);
    in_fake(test_rows);
    in_fake(test_closing);
    in_fake(test_failing_files);
    in_fake(test_bad_configurations);
    in_fake(test_other_columns);
    in_fake(test_moved_lines);
    in_fake(test_no_cpu_time);
    in_fake(test_missed);
    return 0;
}
