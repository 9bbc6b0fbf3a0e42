/* SPDX-License-Identifier: Apache-2.0 */
/* What the keeper thread reads ten times a second: memory.stat, the node, limits, processes, the clock, and what happened. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "sampler.h"

static const uint64_t ROUND_NS = 100000000;
static const uint64_t SLOWEST_NS = 1000000000;       /* in an idle group */
static const uint64_t CLOCK_PERIOD_NS = 60000000000; /* CLOCK_MONOTONIC and CLOCK_REALTIME drift apart by ms in hours */
static const uint64_t BUDGET = 100;                  /* a read may take 1/100 of its period: memory.stat has cost fleets more */
static const uint64_t BACKOFF_NS = 10000000000;      /* … but 10 s apart is as good as any other tool */
static const uint64_t SETTLE_NS = 2000000000;        /* before that the averages of CPU time say little */
static const uint64_t DILUTED_PPM = 50000;           /* 1/20, what the default keeps below */
static const uint64_t LOSSES_NS = 1000000000;        /* a row a second of a loss that goes on is enough */
static const uint64_t SLEEPERS_NS = 3000000000;      /* a sleep at memory.high is up to 2 s long */

static const char *const LIMITS[] = {"t_ns", "level", "limit_bytes", "high_bytes", "usage_bytes", "hits"};
static const char *const PROCESSES[] = {"t_ns", "pid", "rss_bytes", "shared_bytes", "virtual_bytes"};
static const char *const CLOCK[] = {"t_ns", "realtime_ns"};
static const char *const EVENTS[] = {"t_ns", "since_ns", "kind", "value"};

static int bind(struct memcg_sampler *sampler, const char *name, struct memcg_channel *channel, const char *const *names,
                int count, int *ret_columns)
{
    if (memcg_channel_bind(&sampler->writer, name, channel) != 0)
        return 0;
    for (int i = 0; i < count; i++)
        ret_columns[i] = memcg_channel_find(&sampler->writer, channel, names[i]); /* absent columns are written nowhere */
    return ret_columns[0] < 0 ? -EPROTO : 0;
}

static void put_row(struct memcg_channel *channel, const int *columns, const int64_t *values, int count)
{
    for (int i = 0; i < count; i++)
        if (columns[i] >= 0)
            memcg_channel_put(channel, columns[i], values[i]);
    memcg_channel_publish(channel);
}

void memcg_keeper_event(struct memcg_sampler *sampler, uint64_t since_ns, int kind, int64_t value)
{
    struct memcg_keeper *keeper = &sampler->keeper;
    const int64_t row[] = {(int64_t)now_ns(), (int64_t)since_ns, kind, value};
    if (keeper->events.header)
        put_row(&keeper->events, keeper->events_column, row, 4);
}

/* The period that suits what a read has cost: doubled while it takes more than its budget, halved when it takes far less. */
static uint64_t budgeted(uint64_t cost_ns, uint64_t period_ns, uint64_t least_ns)
{
    if (cost_ns * BUDGET > period_ns && period_ns < BACKOFF_NS)
        return period_ns * 2;
    if (cost_ns * BUDGET * 4 < period_ns && period_ns > least_ns)
        return period_ns / 2;
    return period_ns;
}

/* One row of a channel that feeds fill. Returns what it took. */
static uint64_t keep_fed(struct memcg_sampler *sampler, struct memcg_fed *fed, uint64_t now)
{
    int rc = memcg_fed_read(fed);
    if (rc != 0) {
        if (!memcg_source_may_recover(rc))
            memcg_channel_close(&fed->channel, -rc, now);
        return 0;
    }
    uint64_t cost = now_ns() - now;
    memcg_channel_put(&fed->channel, fed->t_ns, (int64_t)now);
    memcg_channel_publish(&fed->channel);
    memcg_state_cost(&sampler->writer.header->state, &fed->channel, cost);
    return cost;
}

static void keep_stat(struct memcg_sampler *sampler, uint64_t now)
{
    struct memcg_keeper *keeper = &sampler->keeper;
    if (!memcg_channel_is_open(&keeper->stat.channel) || now < keeper->stat_due_ns)
        return;
    uint64_t cost = keep_fed(sampler, &keeper->stat, now);
    uint64_t period = budgeted(cost, keeper->stat_period_ns, sampler->config.stat_period_ns);
    if (period != keeper->stat_period_ns)
        memcg_keeper_event(sampler, now, MEMCG_EVENT_STAT_PERIOD, (int64_t)period);
    keeper->stat_period_ns = period;
    keeper->stat_due_ns = now + period - period / 8; /* rounds come late by a little: do not miss every second one */
    store_relaxed(&sampler->writer.header->state.stat_period_ns, period);
}

static void keep_node(struct memcg_sampler *sampler, uint64_t now)
{
    struct memcg_keeper *keeper = &sampler->keeper;
    if (!memcg_channel_is_open(&keeper->node.channel) || now < keeper->node_due_ns)
        return;
    (void)keep_fed(sampler, &keeper->node, now);
    keeper->node_due_ns = now + sampler->config.node_period_ns * 7 / 8;
    int64_t stalls = 0;
    const struct memcg_feed_binding *vmstat = &keeper->node.feed[0];
    for (size_t k = 0; keeper->node.feeds && k < vmstat->fields; k++)
        if (strncmp(vmstat->spec->field[k].column, "allocstall", 10) == 0)
            stalls += memcg_source_value(vmstat->source, (size_t)vmstat->link[k].index);
    if (stalls != keeper->allocstall && keeper->allocstall >= 0)
        store_relaxed(&sampler->node_hit_ns, now);
    keeper->allocstall = stalls;
}

/* A row for each level whose limit or hits are not what its last row says, or whose last row will soon be overwritten by those of
 * busier levels. A group that is gone has not lost its limit. */
static void keep_limits(struct memcg_sampler *sampler, uint64_t now)
{
    struct memcg_keeper *keeper = &sampler->keeper;
    for (uint32_t i = 0; i < sampler->config.levels; i++) {
        struct memcg_level_sources *level = &keeper->level[i];
        int64_t limit = memcg_level_value(level->limit, ""), high = memcg_level_value(level->high, "");
        int64_t high_hits, hits = memcg_level_hits(level, &high_hits);
        int64_t *seen = keeper->seen[i];
        store_relaxed(&sampler->limits[i], (uint64_t)(limit < high ? limit : high));
        if (!memcg_channel_is_open(&keeper->limits) ||
            (limit == seen[0] && high == seen[1] && hits == seen[2] &&
             keeper->limits.head - keeper->seen_head[i] < keeper->limits.header->capacity / 2))
            continue;
        int64_t usage = memcg_level_value(level->usage, "");
        if (i == 0 && usage == MEMCG_NONE) {
            memcg_channel_close(&keeper->limits, ENODEV, now);
            return;
        }
        if (high_hits > seen[3] && seen[3] >= 0)
            store_relaxed(&sampler->high_hit_ns, now); /* who is below an ancestor's memory.high sleeps as at the own */
        const int64_t row[] = {(int64_t)now, i, limit, high, usage, hits};
        keeper->seen_head[i] = keeper->limits.head;
        put_row(&keeper->limits, keeper->limits_column, row, 6);
        seen[0] = limit;
        seen[1] = high;
        seen[2] = hits;
        seen[3] = high_hits;
    }
}

static void keep_processes(struct memcg_sampler *sampler, uint64_t now)
{
    struct memcg_keeper *keeper = &sampler->keeper;
    if (!memcg_channel_is_open(&keeper->processes) || now < keeper->processes_due_ns)
        return;
    int rc = memcg_processes_read(&keeper->processes, keeper->processes_column, keeper->group, now);
    if (rc != 0) {
        if (!memcg_source_may_recover(rc))
            memcg_channel_close(&keeper->processes, -rc, now);
        return;
    }
    uint64_t cost = now_ns() - now;
    uint64_t period = budgeted(cost, keeper->processes_period_ns, ROUND_NS);
    if (period != keeper->processes_period_ns)
        memcg_keeper_event(sampler, now, MEMCG_EVENT_PROCESSES_PERIOD, (int64_t)period);
    keeper->processes_period_ns = period;
    keeper->processes_due_ns = now + period - period / 8;
    memcg_state_cost(&sampler->writer.header->state, &keeper->processes, cost);
}

static void keep_clock(struct memcg_sampler *sampler, uint64_t now)
{
    struct memcg_keeper *keeper = &sampler->keeper;
    if (!keeper->clock.header || now < keeper->clock_due_ns)
        return;
    struct timespec real;
    uint64_t before = now_ns();
    clock_gettime(CLOCK_REALTIME, &real);
    const int64_t row[] = {(int64_t)((before + now_ns()) / 2), (int64_t)real.tv_sec * 1000000000 + real.tv_nsec};
    put_row(&keeper->clock, keeper->clock_column, row, 2);
    keeper->clock_due_ns = now + CLOCK_PERIOD_NS;
}

/* Says what has closed, whichever thread closed it, and when PSI begins to be diluted. */
static void keep_events(struct memcg_sampler *sampler)
{
    struct memcg_keeper *keeper = &sampler->keeper;
    const struct memcg_ring_header *header = sampler->writer.header;
    const struct memcg_channel_header *channel = (const void *)((const char *)header + header->channels_offset);
    for (uint32_t i = 0; i < header->channels && i < 64; i++) {
        uint64_t closed_ns = __atomic_load_n(&channel[i].closed_ns, __ATOMIC_ACQUIRE), bit = (uint64_t)1 << i;
        if (closed_ns && !(keeper->reported_closed & bit))
            memcg_keeper_event(sampler, closed_ns, MEMCG_EVENT_CLOSED,
                               (int64_t)((uint64_t)i << 32 | load_relaxed(&channel[i].closed_errno)));
        keeper->reported_closed = closed_ns ? keeper->reported_closed | bit : keeper->reported_closed & ~bit;
    }
    uint64_t diluted = load_relaxed(&header->state.diluted_ppm);
    bool settled = now_ns() - load_relaxed(&header->state.writer_started_ns) > SETTLE_NS;
    if (!(sampler->config.flags & MEMCG_ADAPTIVE) && settled && diluted > DILUTED_PPM && diluted > 2 * keeper->diluted_ppm) {
        memcg_keeper_event(sampler, 0, MEMCG_EVENT_DILUTED, (int64_t)diluted);
        keeper->diluted_ppm = diluted;
    }
}

void memcg_keeper_losses(struct memcg_sampler *sampler)
{
    struct memcg_keeper *keeper = &sampler->keeper;
    const struct memcg_state *state = &sampler->writer.header->state;
    uint64_t lost = load_relaxed(&state->trace_lost), unattributed = load_relaxed(&state->trace_unattributed);
    if (lost != keeper->lost)
        memcg_keeper_event(sampler, keeper->losses_ns, MEMCG_EVENT_TRACE_LOST, (int64_t)lost);
    if (unattributed != keeper->unattributed)
        memcg_keeper_event(sampler, keeper->losses_ns, MEMCG_EVENT_TRACE_UNATTRIBUTED, (int64_t)unattributed);
    keeper->lost = lost;
    keeper->unattributed = unattributed;
    keeper->losses_ns = now_ns();
}

/* Who sleeps at memory.high? No tracepoint tells. */
static void keep_sleepers(struct memcg_sampler *sampler, uint64_t now)
{
    uint64_t hit_ns = load_relaxed(&sampler->high_hit_ns);
    if (!(sampler->config.flags & MEMCG_WCHAN) || hit_ns == 0 || now > hit_ns + SLEEPERS_NS || sampler->keeper.group <= 0)
        return;
    memcg_trace_look(&sampler->trace, sampler->keeper.group, now);
}

void memcg_keeper_round(struct memcg_sampler *sampler)
{
    keep_limits(sampler, now_ns());
    keep_stat(sampler, now_ns());
    keep_node(sampler, now_ns());
    keep_processes(sampler, now_ns());
    keep_clock(sampler, now_ns());
    keep_sleepers(sampler, now_ns());
    if (now_ns() >= sampler->keeper.losses_ns + LOSSES_NS)
        memcg_keeper_losses(sampler);
    keep_events(sampler);
}

int memcg_keeper_open(struct memcg_sampler *sampler)
{
    struct memcg_keeper *keeper = &sampler->keeper;
    int rc = memcg_fed_open(&sampler->config, &sampler->writer, "stat", &keeper->stat, &sampler->failed);
    if (rc == 0)
        rc = memcg_fed_open(&sampler->config, &sampler->writer, "node", &keeper->node, &sampler->failed);
    for (uint32_t i = 0; i < sampler->config.levels && rc == 0; i++) {
        rc = memcg_level_open(&sampler->config.level[i], true, &keeper->level[i], &sampler->failed);
        memset(keeper->seen[i], 0xff,
               sizeof keeper->seen[i]); /* -1: nothing like it is ever read, so the first look is a row */
    }
    if (rc == 0)
        rc = bind(sampler, "limits", &keeper->limits, LIMITS, 6, keeper->limits_column);
    if (rc == 0 && sampler->config.group)
        rc = bind(sampler, "processes", &keeper->processes, PROCESSES, 5, keeper->processes_column);
    if (rc == 0 && sampler->config.group && keeper->processes.header) {
        keeper->group = open(sampler->config.group, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (keeper->group < 0) {
            sampler->failed = sampler->config.group;
            rc = -errno;
        }
    }
    if (rc == 0)
        rc = bind(sampler, "clock", &keeper->clock, CLOCK, 2, keeper->clock_column);
    if (rc == 0)
        rc = bind(sampler, "events", &keeper->events, EVENTS, 4, keeper->events_column);
    keeper->losses_ns = now_ns();
    keeper->stat_period_ns = sampler->config.stat_period_ns;
    keeper->processes_period_ns = ROUND_NS;
    keeper->allocstall = -1;
    return rc;
}

void memcg_keeper_close(struct memcg_sampler *sampler)
{
    memcg_fed_close(&sampler->keeper.stat);
    memcg_fed_close(&sampler->keeper.node);
    if (sampler->keeper.group > 0)
        close(sampler->keeper.group);
    for (uint32_t i = 0; i < sampler->config.levels; i++)
        memcg_level_close(&sampler->keeper.level[i]);
}

uint64_t memcg_keeper_period(const struct memcg_sampler *sampler, uint64_t cost_ns)
{
    uint64_t least = sampler->config.stat_period_ns < ROUND_NS ? sampler->config.stat_period_ns : ROUND_NS;
    uint64_t rate = load_relaxed(&sampler->group_rate_ns);
    if (!(sampler->config.flags & MEMCG_ADAPTIVE) || rate == 0)
        return least;
    uint64_t share = memcg_pace_share(cost_ns, rate); /* yield, as the tick thread does */
    return share < least ? least : share < SLOWEST_NS ? share : SLOWEST_NS;
}
