/* SPDX-License-Identifier: Apache-2.0 */
/* Life and death of a sampler and of its two threads. */
#include "sampler.h"

#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

uint64_t memcg_thread_cpu_ns(void)
{
    struct timespec used;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

void memcg_thread_begin(const char *name)
{
    volatile char stack[MEMCG_STACK_TOUCHED];
    for (size_t i = 0; i < sizeof stack; i += 4096)
        stack[i] = 0;
    (void)mlock((const void *)(uintptr_t)stack, sizeof stack);
    prctl(PR_SET_NAME, name);
    prctl(PR_SET_TIMERSLACK, 1UL); /* ns; the default of 50 us is half of a 10 kHz tick */
}

bool memcg_sampler_wait(struct memcg_sampler *sampler, uint64_t deadline_ns)
{
    /* A futex, not clock_nanosleep: the same absolute deadline on CLOCK_MONOTONIC, but a stop ends it at once. */
    const struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / 1000000000u),
                                      .tv_nsec = (long)(deadline_ns % 1000000000u)};
    while (!__atomic_load_n(&sampler->stop, __ATOMIC_ACQUIRE))
        if (syscall(SYS_futex, &sampler->stop, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, 0, &deadline, NULL,
                    FUTEX_BITSET_MATCH_ANY) != 0 &&
            errno == ETIMEDOUT)
            return __atomic_load_n(&sampler->stop, __ATOMIC_ACQUIRE);
    return true;
}

/* Signals go to the threads of the program that embeds us. */
static int start_thread(pthread_t *ret_thread, void *(*run)(void *), struct memcg_sampler *sampler)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    sigfillset(&all);
    int rc = pthread_attr_init(&attributes);
    if (rc != 0)
        return -rc;
    (void)pthread_attr_setstacksize(&attributes, MEMCG_STACK_BYTES);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(ret_thread, &attributes, run, sampler);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return -rc;
}

void memcg_sampler_end(struct memcg_sampler *sampler)
{
    memcg_tick_close(sampler);
    memcg_keeper_close(sampler);
    memcg_writer_close(&sampler->writer);
    memset(&sampler->tick, 0, sizeof sampler->tick);
    memset(&sampler->keeper, 0, sizeof sampler->keeper);
    sampler->holds_pressure = 0;
}

static void reopen_channels(const struct memcg_writer *writer)
{
    struct memcg_channel_header *channel = (void *)((char *)writer->header + writer->header->channels_offset);
    for (uint32_t i = 0; i < writer->header->channels; i++)
        store_relaxed(&channel[i].closed_ns, 0);
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
    reopen_channels(&sampler->writer);
    store_relaxed(&state->writer_pid, (uint64_t)getpid());
    store_relaxed(&state->writer_started_ns, now_ns());
    store_relaxed(&state->full_period_ns, sampler->config.period_ns);
    store_relaxed(&state->stat_period_ns, sampler->config.stat_period_ns);
    for (uint32_t i = 0; i < MEMCG_LEVELS; i++)
        store_relaxed(&sampler->limits[i], (uint64_t)MEMCG_NONE);
    rc = memcg_keeper_open(sampler);
    if (rc == 0)
        rc = memcg_tick_open(sampler);
    if (rc == 0) {
        memcg_keeper_round(sampler); /* first: it tells the tick the limits */
        rc = memcg_tick_sample(sampler, now_ns());
    }
    if (rc != 0) {
        store_relaxed(&state->writer_pid, 0);
        memcg_sampler_end(sampler);
    }
    return rc;
}

static int start_ticking(struct memcg_sampler *sampler)
{
    int rc = start_thread(&sampler->tick_thread, memcg_tick_run, sampler);
    sampler->ticking = rc == 0;
    if (rc != 0)
        memcg_sampler_end(sampler);
    __atomic_store_n(&sampler->writes, rc == 0, __ATOMIC_RELEASE);
    return rc;
}

int memcg_sampler_take_over(struct memcg_sampler *sampler)
{
    uint64_t last_ns;
    int rc = memcg_sampler_begin(sampler, &last_ns);
    if (rc != 0)
        return rc;
    struct memcg_state *state = &sampler->writer.header->state;
    store_relaxed(&state->takeovers, load_relaxed(&state->takeovers) + 1);
    memcg_keeper_event(sampler, last_ns, MEMCG_EVENT_TAKEOVER, getpid());
    return start_ticking(sampler);
}

static void tell_to_stop(struct memcg_sampler *sampler)
{
    __atomic_store_n(&sampler->stop, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, &sampler->stop, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT32_MAX, NULL, NULL, 0);
}

static void end_tick(struct memcg_sampler *sampler)
{
    if (!sampler->ticking)
        return;
    tell_to_stop(sampler);
    pthread_join(sampler->tick_thread, NULL);
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
    uint64_t last_ns;
    int rc = config->flags & MEMCG_ATTACHED ? 0 : memcg_sampler_begin(sampler, &last_ns);
    if (rc == 0 && !(config->flags & MEMCG_ATTACHED))
        rc = start_ticking(sampler);
    if (rc == 0)
        rc = start_thread(&sampler->keeper_thread, memcg_keeper_run, sampler);
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
    tell_to_stop(sampler);
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
    return bytes + MEMCG_STACK_TOUCHED;
}
