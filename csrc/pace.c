/* SPDX-License-Identifier: Apache-2.0 */
#include "pace.h"

static const uint64_t SECOND_NS = 1000000000;
static const uint64_t SLOW_NS = 10000000;     /* far from every limit; still an order below what other tools call fast */
static const uint64_t SLOWEST_NS = 200000000; /* in an idle group: a tick that finds all caches cold takes 50 us, which is
                                                          1/40 of a group that is 1 % busy */
static const uint64_t HOT_NS = SECOND_NS;     /* reclaim comes in bursts */
static const uint64_t HELD_NS = 20000000;     /* the pauses of one episode are shorter */
static const double LEAST_GROWTH = 4.0 * (1u << 30); /* bytes/s: what a core can fault in */
static const uint64_t SHARES = 40; /* each of the sampler's two threads may use 1/40 of the group's CPU time, both 1/20 */

void memcg_pace_usage(struct memcg_pace *pace, uint64_t now_ns, int64_t usage_bytes)
{
    if (pace->usage_ns != 0 && now_ns > pace->usage_ns && usage_bytes > pace->usage_bytes) {
        double growth = (double)(usage_bytes - pace->usage_bytes) * (double)SECOND_NS / (double)(now_ns - pace->usage_ns);
        if (growth > pace->growth)
            pace->growth = growth;
    }
    pace->usage_bytes = usage_bytes;
    pace->usage_ns = now_ns;
}

void memcg_pace_hit(struct memcg_pace *pace, uint64_t now_ns)
{
    pace->hot_until_ns = now_ns + HOT_NS;
}

void memcg_pace_held(struct memcg_pace *pace, uint64_t event_ns)
{
    pace->held_until_ns = event_ns + HELD_NS;
}

uint64_t memcg_pace_share(uint64_t cost_ns, uint64_t group_ns)
{
    double share = group_ns ? (double)cost_ns * (double)SHARES * (double)SECOND_NS / (double)group_ns : (double)UINT64_MAX;
    return share < (double)UINT64_MAX ? (uint64_t)share : UINT64_MAX;
}

void memcg_pace_yield(struct memcg_pace *pace, uint64_t cost_ns, uint64_t group_ns)
{
    uint64_t share = memcg_pace_share(cost_ns, group_ns);
    pace->yield_ns = share < SLOWEST_NS ? share : SLOWEST_NS;
}

uint64_t memcg_pace_next(const struct memcg_pace *pace, uint64_t now_ns)
{
    if (!pace->adaptive || pace->full_ns >= SLOWEST_NS)
        return pace->full_ns;
    if (now_ns < pace->held_until_ns)
        return pace->full_ns;
    double speed = pace->growth > LEAST_GROWTH ? pace->growth : LEAST_GROWTH;
    double reach = speed * (double)SLOW_NS / (double)SECOND_NS;
    bool far = (double)pace->headroom > reach && now_ns >= pace->hot_until_ns;
    uint64_t next = far ? SLOW_NS : pace->full_ns;
    if (next < pace->yield_ns)
        next = pace->yield_ns;
    /* On the grid of the full rate, so that deadlines stay where a fixed rate would have them. */
    return (next + pace->full_ns - 1) / pace->full_ns * pace->full_ns;
}
