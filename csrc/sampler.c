/* SPDX-License-Identifier: Apache-2.0 */
/* Life and death of a sampler and of its two threads. */
#include "sampler.h"

#include <errno.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const uint64_t TAKEOVER_NS = 500000000; /* a dead sampler is replaced within a second, with room to spare */

void memcg_sampler_end(struct memcg_sampler *sampler)
{
    memcg_tick_close(sampler);
    memcg_keeper_close(sampler);
    memcg_trace_close(&sampler->trace);
    memcg_writer_close(&sampler->writer);
    memset(&sampler->tick, 0, sizeof sampler->tick);
    memset(&sampler->keeper, 0, sizeof sampler->keeper);
    memset(&sampler->trace, 0, sizeof sampler->trace);
    sampler->holds_pressure = 0;
}

static struct memcg_channel_header *channels_of(const struct memcg_writer *writer)
{
    return (void *)((char *)writer->header + writer->header->channels_offset);
}

static void reopen_channels(const struct memcg_writer *writer)
{
    for (uint32_t i = 0; i < writer->header->channels; i++)
        store_relaxed(&channels_of(writer)[i].closed_ns, 0);
}

/* Tells the ring's readers why nobody goes on with it. What its last writer closed keeps its own reason. */
static void close_channels(const struct memcg_writer *writer, int error)
{
    for (uint32_t i = 0; i < writer->header->channels; i++) {
        struct memcg_channel channel = {.header = &channels_of(writer)[i]};
        if (memcg_channel_is_open(&channel))
            memcg_channel_close(&channel, error, now_ns());
    }
}

/* Whether the group that the lock is on was removed. What was opened by its name may then be of another one, made since. */
static bool group_is_gone(const struct memcg_config *config)
{
    struct stat status;
    return config->lock_fd >= 0 && fstat(config->lock_fd, &status) == 0 && S_ISDIR(status.st_mode) &&
           faccessat(config->lock_fd, "cgroup.procs", F_OK, 0) != 0 && (errno == ENOENT || errno == ENODEV);
}

/* The time of the newest row, before we write one. */
static uint64_t last_row_ns(const struct memcg_writer *writer)
{
    struct memcg_channel usage;
    if (memcg_channel_bind(writer, "usage", &usage) != 0 || usage.head == 0)
        return 0;
    int t_ns = memcg_channel_find(writer, &usage, "t_ns");
    return t_ns < 0 ? 0 : (uint64_t)usage.column[t_ns][(usage.head - 1) % usage.header->capacity];
}

int memcg_sampler_begin(struct memcg_sampler *sampler, uint64_t *ret_last_ns)
{
    sampler->failed = "the ring";
    int rc = memcg_writer_open(sampler->config.ring_fd, &sampler->writer);
    if (rc != 0)
        return rc;
    struct memcg_state *state = &sampler->writer.header->state;
    *ret_last_ns = last_row_ns(&sampler->writer);
    store_relaxed(&state->writer_pid, (uint64_t)getpid());
    store_relaxed(&state->writer_started_ns, now_ns());
    store_relaxed(&state->tick_cpu_ns, 0); /* these are the writer's own: not those of the one before */
    store_relaxed(&state->keeper_cpu_ns, 0);
    store_relaxed(&state->group_cpu_ns, 0);
    store_relaxed(&state->diluted_ppm, 0);
    store_relaxed(&state->trace_ns, 0);
    store_relaxed(&state->trace_open_ns, 0);
    store_relaxed(&state->trace_events, 0);
    store_relaxed(&state->trace_lost, 0);
    store_relaxed(&state->trace_unattributed, 0);
    store_relaxed(&state->full_period_ns, sampler->config.period_ns);
    store_relaxed(&state->stat_period_ns, sampler->config.stat_period_ns);
    for (uint32_t i = 0; i < MEMCG_LEVELS; i++)
        store_relaxed(&sampler->limits[i], (uint64_t)MEMCG_NONE);
    memcg_thread_lock_code();
    rc = memcg_keeper_open(sampler);
    if (rc == 0)
        rc = memcg_tick_open(sampler);
    if (rc == 0 && group_is_gone(&sampler->config)) {
        sampler->failed = "the group";
        rc = -ENODEV;
    }
    if (rc == 0) {
        reopen_channels(&sampler->writer);
        memcg_keeper_round(sampler); /* first: it tells the tick the limits */
        rc = memcg_tick_begin(sampler);
    }
    if (rc != 0) {
        close_channels(&sampler->writer, -rc);
        store_relaxed(&state->writer_pid, 0);
        memcg_sampler_end(sampler);
    }
    return rc;
}

static int start_ticking(struct memcg_sampler *sampler)
{
    int rc = memcg_thread_start(&sampler->tick_thread, memcg_tick_run, sampler);
    sampler->ticking = rc == 0;
    if (rc != 0) {
        store_relaxed(&sampler->writer.header->state.writer_pid, 0);
        memcg_sampler_end(sampler);
    }
    __atomic_store_n(&sampler->writes, rc == 0, __ATOMIC_RELEASE);
    return rc;
}

/* The lock is ours: begins with a new ring, or goes on with another's and records the gap. */
static int take_lead(struct memcg_sampler *sampler)
{
    uint64_t last_ns;
    int rc = memcg_sampler_begin(sampler, &last_ns);
    if (rc != 0)
        return rc;
    struct memcg_state *state = &sampler->writer.header->state;
    if (last_ns != 0) {
        store_relaxed(&state->takeovers, load_relaxed(&state->takeovers) + 1);
        memcg_keeper_event(sampler, last_ns, MEMCG_EVENT_TAKEOVER, getpid());
    }
    sampler->failed = "a thread";
    return start_ticking(sampler);
}

/* Attached: until the sampling process is gone and the lock is ours. True = told to stop. */
static bool wait_for_lock(struct memcg_sampler *sampler)
{
    while (!__atomic_load_n(&sampler->writes, __ATOMIC_ACQUIRE)) {
        uint64_t now = now_ns();
        if (memcg_thread_wait(&sampler->stop, now, now + TAKEOVER_NS))
            return true;
        if (flock(sampler->config.lock_fd, LOCK_EX | LOCK_NB) == 0 && take_lead(sampler) != 0)
            flock(sampler->config.lock_fd, LOCK_UN); /* not now; another of the group may have more luck */
    }
    return false;
}

static void *run_keeper(void *argument)
{
    struct memcg_sampler *sampler = argument;
    memcg_thread_begin("pymemcg-keeper");
    if (wait_for_lock(sampler))
        return NULL;
    uint64_t begun = memcg_thread_cpu_ns(), cpu = begun, deadline = now_ns(), cost = 0;
    while (true) {
        uint64_t now = now_ns(), period = memcg_keeper_period(sampler, cost);
        deadline = deadline + period > now ? deadline + period : now + period;
        for (bool called = true; called && now_ns() < deadline;) {
            if (memcg_thread_wait_for_post(sampler, deadline, &called))
                return NULL;
            memcg_trace_answer(&sampler->trace, &sampler->config);
        }
        memcg_keeper_round(sampler);
        memcg_pressure_claim(sampler);
        uint64_t used = memcg_thread_cpu_ns();
        cost = used - cpu;
        cpu = used;
        store_relaxed(&sampler->writer.header->state.keeper_cpu_ns, cpu - begun);
    }
}

static void end_tick(struct memcg_sampler *sampler)
{
    if (!sampler->ticking)
        return;
    memcg_thread_stop(sampler);
    pthread_join(sampler->tick_thread, NULL);
    memcg_pressure_last(sampler);
    memcg_trace_finish(&sampler->trace, &sampler->config, now_ns(), &sampler->writer.header->state);
    memcg_keeper_losses(sampler);
    store_relaxed(&sampler->writer.header->state.writer_pid, 0);
    memcg_sampler_end(sampler);
}

int memcg_sampler_start(const struct memcg_config *config, struct memcg_sampler **ret_sampler, char *ret_failed,
                        size_t failed_bytes)
{
    if (config->levels > MEMCG_LEVELS || config->period_ns == 0 || config->stat_period_ns == 0)
        return -EINVAL;
    struct memcg_sampler *sampler =
        mmap(NULL, sizeof *sampler, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (sampler == MAP_FAILED)
        return -ENOMEM;
    (void)mlock(sampler, sizeof *sampler);
    sampler->config = *config;
    sampler->failed = "a thread";
    int rc = config->flags & MEMCG_ATTACHED ? 0 : take_lead(sampler);
    if (rc == 0)
        rc = memcg_thread_start(&sampler->keeper_thread, run_keeper, sampler);
    if (rc == 0) {
        *ret_sampler = sampler;
        return 0;
    }
    end_tick(sampler);
    if (ret_failed && failed_bytes)
        strncat(memset(ret_failed, 0, failed_bytes), sampler->failed, failed_bytes - 1);
    munmap(sampler, sizeof *sampler);
    return rc;
}

void memcg_sampler_stop(struct memcg_sampler *sampler)
{
    memcg_thread_stop(sampler);
    pthread_join(sampler->keeper_thread, NULL); /* first: it may be taking over, and then starts the other */
    end_tick(sampler);
    munmap(sampler, sizeof *sampler);
}

void memcg_sampler_forget(struct memcg_sampler *sampler)
{
    memcg_sampler_end(sampler);
    munmap(sampler, sizeof *sampler);
}

int memcg_sampler_writes(const struct memcg_sampler *sampler)
{
    return (int)__atomic_load_n(&sampler->writes, __ATOMIC_ACQUIRE);
}

size_t memcg_sampler_held_bytes(const struct memcg_sampler *sampler)
{
    size_t bytes = sizeof *sampler + MEMCG_STACK_TOUCHED; /* the keeper's stack */
    if (!memcg_sampler_writes(sampler))
        return bytes;
    const struct memcg_fed *const feds[] = {&sampler->tick.usage, &sampler->tick.pressure, &sampler->keeper.stat,
                                            &sampler->keeper.node};
    for (size_t i = 0; i < sizeof feds / sizeof feds[0]; i++)
        bytes += memcg_fed_bytes(feds[i]);
    for (uint32_t i = 0; i < sampler->config.levels; i++)
        bytes += memcg_level_bytes(&sampler->tick.level[i]) + memcg_level_bytes(&sampler->keeper.level[i]);
    return bytes + memcg_perf_bytes(sampler->trace.perf) + MEMCG_STACK_TOUCHED;
}
