/* SPDX-License-Identifier: Apache-2.0 */
/* What the sampler's two threads share.
 *
 * The tick thread keeps the time: it reads the cheap counters and, when the gate allows, PSI. It never waits for anything but its
 * deadline. The keeper does what may wait - memory.stat takes locks, /proc/PID/statm must be opened, which allocates kernel memory
 * in the group and so may have to reclaim - and, in an attached process, waits to take over. Each channel has one of them as its
 * only writer. */
#ifndef MEMCG_SAMPLER_H
#define MEMCG_SAMPLER_H

#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "feed.h"
#include "gate.h"
#include "pace.h"
#include "trace.h"

enum { MEMCG_LEVELS = 32, MEMCG_STACK_BYTES = 256 * 1024, MEMCG_STACK_TOUCHED = 32 * 1024 };

/* One level of the hierarchy, as one thread reads it: two threads never share a source. */
struct memcg_level_sources {
    struct memcg_source *usage, *limit, *high, *hits;
    const char *hits_key; /* "" = the file is one number */
    const char *high_key; /* NULL = none */
};

struct memcg_tick {
    struct memcg_fed usage, pressure;
    int late_ns, since_ns, cpu_us; /* positions of columns */
    int trace_error;               /* why there are no tracepoints */
    int pressure_error;            /* why there is no feed of PSI; 0 = it was decided so beforehand */
    struct memcg_cell usage_bytes, hit[3], some_us;
    int64_t hits[3];
    struct memcg_level_sources level[MEMCG_LEVELS];
    int64_t level_hits[MEMCG_LEVELS];
    struct memcg_source *cpu_stat;
    struct memcg_gate gate;
    struct memcg_pace pace;
    uint64_t look_ns;          /* when ancestors are looked at next */
    uint64_t control_ns;       /* when CPU times are next compared */
    uint64_t cpu_stat_rest_ns; /* how long it is then left alone, by what it cost */
    uint64_t cpu_stat_ns;      /* when cpu.stat was read, and what it said beyond the sampler's own */
    uint64_t group_cpu_ns;
    uint64_t start_cpu_ns;
    uint64_t own_rate_ns; /* CPU time a second that the sampler takes, a moving average like the group's */
    uint64_t last_ticks, last_cpu_ns, last_own_ns, last_control_ns;
};

struct memcg_keeper {
    struct memcg_fed stat, node;
    struct memcg_channel limits, processes, clock, events;
    struct memcg_level_sources level[MEMCG_LEVELS];
    int64_t seen[MEMCG_LEVELS][4];    /* limit, high, hits of the last row, and those of them at memory.high */
    uint64_t seen_head[MEMCG_LEVELS]; /* … and which row that was */
    int limits_column[6], processes_column[5], clock_column[2], events_column[4];
    int group; /* its directory; 0 = not open */
    int64_t allocstall;
    uint64_t stat_due_ns, node_due_ns, processes_due_ns, clock_due_ns;
    uint64_t stat_period_ns, processes_period_ns;
    uint64_t reported_closed; /* bit per channel */
    uint64_t diluted_ppm;
    uint64_t lost, unattributed; /* tracepoints, as last told of */
    uint64_t losses_ns;          /* … and when */
};

struct memcg_sampler {
    struct memcg_config config; /* what it points to outlives the sampler */
    struct memcg_writer writer;
    uint32_t stop; /* futex word of the tick thread */
    uint32_t call; /* … and of the keeper: it is told to stop, or has post */
    uint32_t writes;
    pthread_t tick_thread, keeper_thread;
    uint32_t ticking;              /* the tick thread was started */
    uint32_t holds_pressure;       /* the group's PSI is ours to read: flock on its file */
    uint64_t limits[MEMCG_LEVELS]; /* keeper → tick: the limits, as the keeper last read them */
    uint64_t node_hit_ns;          /* keeper → tick: the last time that somebody on the node stalled in direct reclaim */
    uint64_t high_hit_ns;          /* tick → keeper: the last time that somebody in the group was hit at memory.high */
    uint64_t group_rate_ns;        /* tick → keeper: CPU time a second of the rest of the group; 0 = not known */
    struct memcg_tick tick;
    struct memcg_keeper keeper;
    struct memcg_trace trace;
    const char *failed;
};

static inline uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* What a read of a channel's files has just cost. */
static inline void memcg_state_cost(struct memcg_state *state, const struct memcg_channel *channel, uint64_t cost_ns)
{
    if (channel->index < sizeof state->cost_ns / sizeof state->cost_ns[0])
        store_relaxed(&state->cost_ns[channel->index], cost_ns);
}

/* Starts a thread that signals pass by. */
int memcg_thread_start(pthread_t *ret_thread, void *(*run)(void *), void *argument);
/* Keeps our code in memory: a group at its limit drops file pages first, and a tick would wait for the disk. */
void memcg_thread_lock_code(void);
/* Names the calling thread, makes its timers exact and touches the stack that it will use. */
void memcg_thread_begin(const char *name);
/* Sleeps until the deadline; true = told to stop. `now` is about now: a caller knows. */
bool memcg_thread_wait(uint32_t *stop, uint64_t now, uint64_t deadline);
/* Tells who waits so to stop. */
void memcg_thread_end(uint32_t *stop);
/* The keeper's: also until it has post, which *ret_called says. */
bool memcg_thread_wait_for_post(struct memcg_sampler *sampler, uint64_t deadline, bool *ret_called);
/* Wakes the keeper for its post. */
void memcg_thread_call(struct memcg_sampler *sampler);
/* Tells the sampler's threads to stop, and wakes them. */
void memcg_thread_stop(struct memcg_sampler *sampler);
uint64_t memcg_thread_cpu_ns(void);

/* Opens usage and hits of a level, and its limits where asked for. */
int memcg_level_open(const struct memcg_level *level, bool limits, struct memcg_level_sources *ret_sources,
                     const char **ret_failed);
/* What the file says now; MEMCG_NONE where there is none, or no such key. */
int64_t memcg_level_value(struct memcg_source *source, const char *key);
/* Of its limits together, and of them at an ancestor's memory.high. */
int64_t memcg_level_hits(const struct memcg_level_sources *level, int64_t *ret_high);
void memcg_level_close(struct memcg_level_sources *sources);
size_t memcg_level_bytes(const struct memcg_level_sources *sources);

/* Opens everything and takes the first sample, in the calling thread. *ret_last_ns is when the writer before us took its last. */
int memcg_sampler_begin(struct memcg_sampler *sampler, uint64_t *ret_last_ns);
/* Closes all that was opened. */
void memcg_sampler_end(struct memcg_sampler *sampler);

int memcg_tick_open(struct memcg_sampler *sampler);
/* Takes the first sample. */
int memcg_tick_begin(struct memcg_sampler *sampler);
int memcg_tick_sample(struct memcg_sampler *sampler, uint64_t deadline_ns);
void *memcg_tick_run(void *argument); /* the sampler */
/* Tries to become the one who reads the group's PSI: its window belongs to the group, and a gate in each of several readers is no
 * gate. Until then the channel is closed with EBUSY. */
void memcg_pressure_claim(struct memcg_sampler *sampler);
/* At the end, where something was hit since the last read of PSI: reads it once more. */
void memcg_pressure_last(struct memcg_sampler *sampler);
void memcg_tick_close(struct memcg_sampler *sampler);

int memcg_keeper_open(struct memcg_sampler *sampler);
void memcg_keeper_round(struct memcg_sampler *sampler);
/* How long until the next round, when the last one took so much CPU time. */
uint64_t memcg_keeper_period(const struct memcg_sampler *sampler, uint64_t cost_ns);
void memcg_keeper_event(struct memcg_sampler *sampler, uint64_t since_ns, int kind, int64_t value);
/* Says how much of the tracing has been lost since it was last said. */
void memcg_keeper_losses(struct memcg_sampler *sampler);
void memcg_keeper_close(struct memcg_sampler *sampler);

/* Calls for every number in this file (cgroup.procs, cgroup.threads) of the group, a descriptor of its directory (O_PATH will do), and
 * of the groups below. -ENOENT: it is gone. */
int memcg_group_each(int group, const char *list, void (*call)(void *context, uint64_t number), void *context);
/* Rows of `processes` for every process in the group and below. */
int memcg_processes_read(struct memcg_channel *channel, const int column[5], int group, uint64_t t_ns);

#endif
