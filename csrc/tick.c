/* SPDX-License-Identifier: Apache-2.0 */
/* The tick thread: cheap counters at every tick, PSI when the gate allows. In its loop it allocates nothing, takes no lock and
 * touches no page for the first time. */
#include <errno.h>
#include <sys/file.h>

#include "sampler.h"

static const uint64_t LOOK_NS = 10000000;     /* ancestors: as often as the slow tick */
static const uint64_t CONTROL_NS = 100000000; /* CPU times: long against their own granularity of a jiffy */
static const uint64_t CPU_STAT_NS = 20000000; /* cpu.stat flushes per-CPU counters: not at every tick that waits at the gate */
/* … and a read may take 1/100 of the time until the next: on big hosts it takes locks. One that was preempted does not blind the
 * gate for long. */
static const uint64_t CPU_STAT_BUDGET = 100;
static const uint64_t CPU_STAT_REST_NS = 1000000000;
static const char CPU_KEY[] = "usage_usec";
static const char *const HIT_COLUMNS[] = {"limit_hits", "memsw_hits", "high_hits"};
enum { HIGH = 2 };

static uint64_t jiffy_ns(void)
{
    struct timespec jiffy;
    clock_getres(CLOCK_MONOTONIC_COARSE, &jiffy);
    return (uint64_t)jiffy.tv_sec * 1000000000u + (uint64_t)jiffy.tv_nsec;
}

/* CPU time of the group without the sampler's, from 0 at the start. Never goes back: cpu.stat lags behind our own clock by up to
 * a jiffy. False = there is none to be had. */
static bool read_group_cpu(struct memcg_sampler *sampler, uint64_t now, uint64_t own_ns)
{
    struct memcg_tick *tick = &sampler->tick;
    uint64_t begun = now_ns();
    int64_t usage_us = memcg_level_value(tick->cpu_stat, CPU_KEY);
    uint64_t rest = (now_ns() - begun) * CPU_STAT_BUDGET;
    tick->cpu_stat_rest_ns = rest < CPU_STAT_REST_NS ? rest : CPU_STAT_REST_NS;
    if (usage_us == MEMCG_NONE)
        return false;
    uint64_t usage_ns = (uint64_t)usage_us * 1000u;
    if (usage_ns >= tick->start_cpu_ns + own_ns && usage_ns - tick->start_cpu_ns - own_ns > tick->group_cpu_ns)
        tick->group_cpu_ns = usage_ns - tick->start_cpu_ns - own_ns;
    tick->cpu_stat_ns = now;
    memcg_gate_cpu(&tick->gate, now, tick->group_cpu_ns);
    store_relaxed(&sampler->writer.header->state.group_cpu_ns, tick->group_cpu_ns);
    return true;
}

/* What the sampler itself has used, as far as it counts as the group's. */
static uint64_t own_cpu_ns(const struct memcg_sampler *sampler)
{
    if (!(sampler->config.flags & MEMCG_INSIDE))
        return 0;
    return memcg_thread_cpu_ns() + load_relaxed(&sampler->writer.header->state.keeper_cpu_ns);
}

/* Compares the sampler's CPU time with the group's, and yields. */
static void control(struct memcg_sampler *sampler, uint64_t now)
{
    struct memcg_tick *tick = &sampler->tick;
    struct memcg_state *state = &sampler->writer.header->state;
    uint64_t cpu_ns = memcg_thread_cpu_ns(), own_ns = own_cpu_ns(sampler), group_ns = tick->group_cpu_ns;
    uint64_t elapsed = now - tick->last_control_ns, ticks = load_relaxed(&state->ticks) - tick->last_ticks;
    store_relaxed(&state->tick_cpu_ns, cpu_ns);
    tick->control_ns = now + CONTROL_NS;
    if (tick->cpu_stat && now - tick->cpu_stat_ns < tick->cpu_stat_rest_ns)
        return;
    if (tick->cpu_stat && (sampler->config.flags & MEMCG_INSIDE) && elapsed && ticks) {
        (void)read_group_cpu(sampler, now, own_ns);
        uint64_t rate = (tick->group_cpu_ns - group_ns) * 1000000000u / elapsed;
        uint64_t own_rate = (own_ns - tick->last_own_ns) * 1000000000u / elapsed;
        /* A moving average over about a second: what counts is the share in PSI's window of 2 s, and load comes in bursts. */
        uint64_t smooth = load_relaxed(&sampler->group_rate_ns);
        smooth = smooth ? (smooth * 9 + rate) / 10 : rate + 1;
        store_relaxed(&sampler->group_rate_ns, smooth);
        memcg_pace_yield(&tick->pace, (cpu_ns - tick->last_cpu_ns) / ticks, smooth);
        tick->own_rate_ns = tick->own_rate_ns ? (tick->own_rate_ns * 9 + own_rate) / 10 : own_rate;
        store_relaxed(&state->diluted_ppm, tick->own_rate_ns * 1000000u / (tick->own_rate_ns + smooth + 1));
    }
    tick->last_cpu_ns = cpu_ns;
    tick->last_own_ns = own_ns;
    tick->last_ticks = load_relaxed(&state->ticks);
    tick->last_control_ns = now;
}

static void hit(struct memcg_sampler *sampler, uint64_t now, bool own)
{
    memcg_gate_hit(&sampler->tick.gate, now, own);
    memcg_pace_hit(&sampler->tick.pace, now);
}

/* Headroom below every limit, and hits of the ancestors. */
static void look(struct memcg_sampler *sampler, uint64_t now)
{
    struct memcg_tick *tick = &sampler->tick;
    int64_t headroom = MEMCG_NONE;
    for (uint32_t i = 0; i < sampler->config.levels; i++) {
        struct memcg_level_sources *level = &tick->level[i];
        int64_t limit = (int64_t)load_relaxed(&sampler->limits[i]);
        int64_t usage = i == 0 ? tick->pace.usage_bytes : limit == MEMCG_NONE ? 0 : memcg_level_value(level->usage, "");
        if (limit != MEMCG_NONE && usage != MEMCG_NONE && limit - usage < headroom)
            headroom = limit - usage;
        if (i == 0 || limit == MEMCG_NONE || !level->hits) /* where there is no limit, nothing hits it */
            continue;
        int64_t high_hits, hits = memcg_level_hits(level, &high_hits);
        if (hits != MEMCG_NONE && hits != tick->level_hits[i]) {
            if (tick->look_ns != 0)
                hit(sampler, now, false);
            tick->level_hits[i] = hits;
        }
    }
    uint64_t node_hit = load_relaxed(&sampler->node_hit_ns);
    if (node_hit > tick->gate.read_ns && node_hit > tick->gate.last_hit_ns)
        hit(sampler, now, false);
    tick->pace.headroom = headroom;
    tick->look_ns = now + LOOK_NS;
}

/* Tracepoints, where they may be had: they tell of a limit that is out of sight, too. */
static void read_trace(struct memcg_sampler *sampler, uint64_t now)
{
    struct memcg_trace *trace = &sampler->trace;
    if (!memcg_channel_is_open(&trace->channel))
        return;
    memcg_trace_drain(trace, now, &sampler->writer.header->state);
    if (trace->asked)
        memcg_thread_call(sampler);
    if (trace->hit)
        hit(sampler, now, true);
    if (trace->own_ns)
        memcg_pace_held(&sampler->tick.pace, trace->own_ns);
    trace->asked = trace->hit = false;
}

static int read_pressure(struct memcg_sampler *sampler, uint64_t now)
{
    struct memcg_tick *tick = &sampler->tick;
    struct memcg_fed *pressure = &tick->pressure;
    int rc = memcg_fed_read(pressure);
    if (rc != 0) {
        if (!memcg_source_may_recover(rc))
            memcg_channel_close(&pressure->channel, -rc, now);
        return rc;
    }
    memcg_channel_put(&pressure->channel, pressure->t_ns, (int64_t)now);
    memcg_channel_put(&pressure->channel, tick->since_ns, (int64_t)(tick->gate.read_ns ? tick->gate.read_ns : now));
    memcg_channel_put(&pressure->channel, tick->cpu_us, (int64_t)(tick->group_cpu_ns / 1000));
    memcg_channel_publish(&pressure->channel);
    memcg_gate_passed(&tick->gate, now, tick->group_cpu_ns, (uint64_t)memcg_cell_value(tick->some_us));
    struct memcg_state *state = &sampler->writer.header->state;
    store_relaxed(&state->psi_reads, load_relaxed(&state->psi_reads) + 1);
    return 0;
}

void memcg_pressure_claim(struct memcg_sampler *sampler)
{
    struct memcg_fed *pressure = &sampler->tick.pressure;
    struct memcg_channel *channel = &pressure->channel;
    if (!channel->header || sampler->holds_pressure)
        return;
    /* Without a feed it was decided beforehand that PSI is another's. */
    sampler->holds_pressure = pressure->feeds && flock(memcg_source_fd(pressure->feed[0].source), LOCK_EX | LOCK_NB) == 0;
    if (sampler->holds_pressure)
        store_relaxed(&channel->header->closed_ns, 0);
    else if (memcg_channel_is_open(channel))
        memcg_channel_close(channel, sampler->tick.pressure_error ? sampler->tick.pressure_error : EBUSY, now_ns());
}

static void ask_gate(struct memcg_sampler *sampler, uint64_t now)
{
    struct memcg_tick *tick = &sampler->tick;
    if (!memcg_channel_is_open(&tick->pressure.channel))
        return;
    if (tick->gate.read_ns == 0) { /* just claimed: this is where the deltas begin */
        (void)read_pressure(sampler, now);
        return;
    }
    if (!memcg_gate_due(&tick->gate, now))
        return;
    if (tick->cpu_stat_ns != now) { /* else control() has just read it, which is often enough where nothing was hit */
        uint64_t rest = tick->gate.first_hit_ns ? CPU_STAT_NS : CONTROL_NS;
        if (now - tick->cpu_stat_ns < (rest > tick->cpu_stat_rest_ns ? rest : tick->cpu_stat_rest_ns))
            return;
        if (!read_group_cpu(sampler, now, own_cpu_ns(sampler)) && tick->cpu_stat) {
            memcg_channel_close(&tick->pressure.channel, ENODEV, now); /* the group is gone, and its PSI with it */
            return;
        }
    }
    if (memcg_gate_open(&tick->gate, now, tick->group_cpu_ns))
        (void)read_pressure(sampler, now); /* a failure has closed the channel */
}

/* The row of this tick. */
static int read_usage(struct memcg_sampler *sampler, uint64_t now, uint64_t deadline_ns)
{
    struct memcg_tick *tick = &sampler->tick;
    struct memcg_fed *usage = &tick->usage;
    int rc = memcg_fed_read(usage);
    if (rc != 0) {
        if (!memcg_source_may_recover(rc))
            memcg_channel_close(&usage->channel, -rc, now);
        return rc;
    }
    memcg_channel_put(&usage->channel, usage->t_ns, (int64_t)now);
    memcg_channel_put(&usage->channel, tick->late_ns, (int64_t)(now - deadline_ns));
    memcg_channel_publish(&usage->channel);
    memcg_pace_usage(&tick->pace, now, memcg_cell_value(tick->usage_bytes));
    for (int i = 0; i < 3; i++) {
        int64_t hits = memcg_cell_value(tick->hit[i]);
        if (hits != tick->hits[i] && tick->look_ns != 0) {
            hit(sampler, now, i != HIGH); /* kernel workers raise `high` too, and stall nobody */
            if (i == HIGH)
                store_relaxed(&sampler->high_hit_ns, now);
        }
        tick->hits[i] = hits;
    }
    return 0;
}

int memcg_tick_sample(struct memcg_sampler *sampler, uint64_t deadline_ns)
{
    struct memcg_tick *tick = &sampler->tick;
    struct memcg_state *state = &sampler->writer.header->state;
    uint64_t now = now_ns();
    int rc = 0;
    if (memcg_channel_is_open(&tick->usage.channel)) {
        rc = read_usage(sampler, now, deadline_ns);
        if (now >= tick->control_ns) /* how long that took, now and then */
            memcg_state_cost(state, &tick->usage.channel, now_ns() - now);
    }
    store_relaxed(&state->ticks, load_relaxed(&state->ticks) + 1);
    read_trace(sampler, now);
    if (now >= tick->look_ns)
        look(sampler, now);
    if (now >= tick->control_ns)
        control(sampler, now);
    ask_gate(sampler, now);
    return rc;
}

static int open_levels(struct memcg_sampler *sampler)
{
    for (uint32_t i = 1; i < sampler->config.levels; i++) {
        int rc = memcg_level_open(&sampler->config.level[i], false, &sampler->tick.level[i], &sampler->failed);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* A start fails where PSI does; a takeover goes on without. */
static int open_pressure(struct memcg_sampler *sampler)
{
    struct memcg_fed *pressure = &sampler->tick.pressure;
    int rc = memcg_fed_open(&sampler->config, &sampler->writer, "pressure", pressure, &sampler->failed);
    if (rc == 0 || !(sampler->config.flags & MEMCG_ATTACHED))
        return rc;
    memcg_fed_close(pressure);
    sampler->tick.pressure_error = -rc;
    return 0;
}

/* What is not allowed closes the channel, and the sampler goes on without. */
static int open_trace(struct memcg_sampler *sampler)
{
    int rc = memcg_trace_open(&sampler->config, &sampler->writer, &sampler->trace);
    sampler->tick.trace_error = rc != -EPROTO ? -rc : 0;
    return rc == -EPROTO ? rc : 0;
}

int memcg_tick_open(struct memcg_sampler *sampler)
{
    struct memcg_tick *tick = &sampler->tick;
    const struct memcg_config *config = &sampler->config;
    int rc = memcg_fed_open(config, &sampler->writer, "usage", &tick->usage, &sampler->failed);
    if (rc == 0)
        rc = open_pressure(sampler);
    if (rc == 0)
        rc = open_levels(sampler);
    if (rc == 0 && config->cpu_stat) {
        sampler->failed = config->cpu_stat;
        rc = memcg_source_open(config->cpu_stat, MEMCG_FORMAT_KEYED, &tick->cpu_stat);
        if (rc == 0 && memcg_source_find(tick->cpu_stat, CPU_KEY) < 0)
            rc = -ENODATA;
    }
    if (rc == 0)
        rc = open_trace(sampler); /* last: it takes what descriptors are left, and can be done without */
    if (rc != 0)
        return rc;
    struct memcg_channel *usage = &tick->usage.channel, *pressure = &tick->pressure.channel;
    tick->late_ns = memcg_channel_find(&sampler->writer, usage, "late_ns");
    tick->usage_bytes = memcg_fed_find(&tick->usage, "usage_bytes");
    tick->some_us = memcg_fed_find(&tick->pressure, "some_us");
    for (int i = 0; i < 3; i++)
        tick->hit[i] = memcg_fed_find(&tick->usage, HIT_COLUMNS[i]);
    if (pressure->header) {
        tick->since_ns = memcg_channel_find(&sampler->writer, pressure, "since_ns");
        tick->cpu_us = memcg_channel_find(&sampler->writer, pressure, "cpu_us");
    }
    if (tick->late_ns < 0 || tick->since_ns < 0 || tick->cpu_us < 0)
        return -EPROTO;
    tick->start_cpu_ns = tick->cpu_stat ? (uint64_t)memcg_level_value(tick->cpu_stat, CPU_KEY) * 1000u : 0;
    tick->control_ns = UINT64_MAX; /* the first sample is taken by another thread, whose CPU time is not the sampler's */
    tick->gate.jiffy_ns = jiffy_ns();
    tick->gate.cpus = (uint64_t)sysconf(_SC_NPROCESSORS_ONLN);
    tick->pace = (struct memcg_pace){.full_ns = config->period_ns, .adaptive = config->flags & MEMCG_ADAPTIVE};
    return 0;
}

int memcg_tick_begin(struct memcg_sampler *sampler)
{
    struct memcg_fed *pressure = &sampler->tick.pressure;
    struct memcg_trace *trace = &sampler->trace;
    if (trace->channel.header && !trace->perf && !(sampler->config.flags & MEMCG_WCHAN))
        memcg_channel_close(&trace->channel, sampler->tick.trace_error ? sampler->tick.trace_error : EPERM, now_ns());
    memcg_pressure_claim(sampler);
    if (memcg_channel_is_open(&pressure->channel)) {
        sampler->failed = pressure->feed[0].spec->path;
        int rc = read_pressure(sampler, now_ns()); /* where the deltas begin */
        if (rc != 0 && !(sampler->config.flags & MEMCG_ATTACHED))
            return rc;
    }
    return memcg_tick_sample(sampler, now_ns());
}

/* What was hit since the last read would stay without a duration; one read more, once in a sampler's life, costs next to nothing. */
void memcg_pressure_last(struct memcg_sampler *sampler)
{
    struct memcg_tick *tick = &sampler->tick;
    if (memcg_channel_is_open(&tick->pressure.channel) && tick->gate.first_hit_ns != 0)
        (void)read_pressure(sampler, now_ns());
}

void memcg_tick_close(struct memcg_sampler *sampler)
{
    memcg_fed_close(&sampler->tick.usage);
    memcg_fed_close(&sampler->tick.pressure);
    for (uint32_t i = 0; i < sampler->config.levels; i++)
        memcg_level_close(&sampler->tick.level[i]);
    memcg_source_free(sampler->tick.cpu_stat);
}

void *memcg_tick_run(void *argument)
{
    struct memcg_sampler *sampler = argument;
    struct memcg_tick *tick = &sampler->tick;
    struct memcg_state *state = &sampler->writer.header->state;
    memcg_thread_begin("pymemcg-tick");
    uint64_t now = now_ns(), deadline = now + tick->pace.full_ns;
    tick->last_control_ns = now;
    tick->last_own_ns = own_cpu_ns(sampler);
    tick->last_ticks = load_relaxed(&state->ticks); /* of those who wrote the ring before us, too */
    tick->control_ns = now + CONTROL_NS;
    while (!memcg_thread_wait(&sampler->stop, now, deadline)) {
        (void)memcg_tick_sample(sampler, deadline); /* what failed has closed its channel */
        if (!memcg_channel_is_open(&tick->usage.channel) && !memcg_channel_is_open(&tick->pressure.channel)) {
            if (memcg_channel_is_open(&sampler->trace.channel)) /* the group is gone, and its threads with it */
                memcg_channel_close(&sampler->trace.channel, ENODEV, now_ns());
            break;
        }
        now = now_ns();
        uint64_t period = memcg_pace_next(&tick->pace, now);
        deadline += period;
        if (deadline <= now) { /* late by more than a period: skip what has passed, do not bunch it */
            uint64_t passed = (now - deadline) / period + 1;
            store_relaxed(&state->missed, load_relaxed(&state->missed) + passed);
            deadline += passed * period;
        }
        store_relaxed(&state->period_ns, period);
    }
    return NULL;
}
