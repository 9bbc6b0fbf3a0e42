/* SPDX-License-Identifier: Apache-2.0 */
/* The promise of the tick thread's loop: no page fault, ever, after its first second - also not for what happens for the first time
 * only later: hits, a limit near, PSI, CPU time of the group. */
#include "fake.h"

enum { SECONDS = 10, STEPS_PER_SECOND = 10 };

static struct fake fake;

/* What a group in trouble shows, in step `step`. */
static void change_files(int step)
{
    char text[128];
    snprintf(text, sizeof text, "usage_usec %d\nuser_usec 5000000\nsystem_usec 2000000\n", 7000000 + step * 90000);
    fake_write(&fake, CPU_STAT, text);
    snprintf(text, sizeof text, "low 0\nhigh 20\nmax %d\noom 0\noom_kill 30\n", 10 + step % 80);
    fake_write(&fake, EVENTS, text);
    snprintf(text, sizeof text, "%d\n", 1000001 + step % 10 * 99999);
    fake_write(&fake, CURRENT, text);
    snprintf(text, sizeof text, "pgfault 11\nallocstall_normal 20\nallocstall_movable %d\n", 30 + step / 7);
    fake_write(&fake, VMSTAT, text);
}

static void test_faults(uint32_t flags, int seconds)
{
    static const char *const names[] = {"pymemcg-tick", "pymemcg-keeper"};
    uint64_t before[2][2], after[2];
    pid_t tids[2];
    fake_make(&fake);
    fake.config.flags = flags;
    struct memcg_sampler *sampler = fake_start(&fake);
    usleep(1000000);
    for (int i = 0; i < 2; i++) {
        tids[i] = fake_thread(names[i]);
        fake_faults(tids[i], before[i]);
    }
    const struct memcg_state *state = &memcg_map_header(fake.map)->state;
    uint64_t ticks = __atomic_load_n(&state->ticks, __ATOMIC_RELAXED), reads = fake_head(&fake, CH_PRESSURE);
    for (int step = 0; step < seconds * STEPS_PER_SECOND; step++) {
        change_files(step);
        usleep(1000000 / STEPS_PER_SECOND);
    }
    ticks = __atomic_load_n(&state->ticks, __ATOMIC_RELAXED) - ticks;
    reads = fake_head(&fake, CH_PRESSURE) - reads;
    for (int i = 0; i < 2; i++) {
        fake_faults(tids[i], after);
        printf("%s: %" PRIu64 " minor and %" PRIu64 " major faults in the first second, then %" PRIu64 " and %" PRIu64
               " in %d s of %" PRIu64 " ticks and %" PRIu64 " reads of PSI\n",
               names[i], before[i][0], before[i][1], after[0] - before[i][0], after[1] - before[i][1], seconds, ticks, reads);
        /* The keeper opens files; it is let off here, and makes none all the same. */
        CHECK(i == 1 || (after[0] == before[i][0] && after[1] == before[i][1]), "%s has page faults", names[i]);
    }
    CHECK(ticks > 50 && reads > 0, "%" PRIu64 " ticks and %" PRIu64 " reads of PSI: nothing was tried", ticks, reads);
    memcg_sampler_stop(sampler);
    fake_remove(&fake);
}

int main(void)
{
    char numa[16] = "";
    if (FAKE_SANITIZED)
        SKIP("the sanitizer's own memory has page faults");
    int fd = open("/proc/sys/kernel/numa_balancing", O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && read(fd, numa, sizeof numa - 1) > 0 && numa[0] == '1')
        SKIP("NUMA balancing unmaps pages to see who uses them");
    test_faults(0, SECONDS);
    test_faults(MEMCG_ADAPTIVE | MEMCG_INSIDE, 3);
    return 0;
}
