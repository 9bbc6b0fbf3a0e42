/* SPDX-License-Identifier: Apache-2.0 */
/* How long until the next tick? Pure: what the last ticks saw in, a distance out. */
#ifndef MEMCG_PACE_H
#define MEMCG_PACE_H

#include <stdbool.h>
#include <stdint.h>

struct memcg_pace {
    uint64_t full_ns;    /* distance of ticks at the full rate */
    bool adaptive;       /* false: always the full rate */
    int64_t usage_bytes; /* at the last tick, and when that was; 0 ns = no tick yet */
    uint64_t usage_ns;
    int64_t headroom; /* bytes to the nearest limit */
    double growth;    /* fastest seen, bytes/s */
    uint64_t hot_until_ns;
    uint64_t held_until_ns;
    uint64_t yield_ns; /* ticks may not be closer than this, or the sampler takes more than its share of the group's CPU time */
};

void memcg_pace_usage(struct memcg_pace *pace, uint64_t now_ns, int64_t usage_bytes);
/* Something was hit (a limit, an allocstall on the node). */
void memcg_pace_hit(struct memcg_pace *pace, uint64_t now_ns);
/* A thread of the group was in reclaim at `event_ns`. While that goes on ticks do not yield: how long a thread waited for a CPU is read
 * at the first tick in an interval and at the first after it. Their 1/100 of a CPU is little beside a CPU that stalls. */
void memcg_pace_held(struct memcg_pace *pace, uint64_t event_ns);
/* `cost_ns` of CPU time a tick, in a group whose other threads use `group_ns` of it a second. */
void memcg_pace_yield(struct memcg_pace *pace, uint64_t cost_ns, uint64_t group_ns);
uint64_t memcg_pace_next(const struct memcg_pace *pace, uint64_t now_ns);
/* The least distance at which `cost_ns` a time stays within the share of `group_ns` a second that is one thread's. */
uint64_t memcg_pace_share(uint64_t cost_ns, uint64_t group_ns);

#endif
