/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel's tracepoints of reclaim, as perf writes them into mapped rings, one a CPU: opened once, then read without a system
 * call, in the order of their times. */
#ifndef MEMCG_PERF_H
#define MEMCG_PERF_H

#include <stdbool.h>
#include <stddef.h>

#include "memcg.h"

struct memcg_perf_event {
    uint64_t t_ns; /* CLOCK_MONOTONIC */
    uint64_t cgroup_id;
    uint32_t pid, tid; /* in the pid namespace of the process that opened it; 0 = not visible there */
    int tracepoint;    /* enum memcg_tracepoint */
    int64_t value;     /* reclaimed pages; us for a throttled one; else MEMCG_NONE */
};

/* One record of a perf ring. 1 = *ret_event is it, 0 = it is none of ours; *ret_lost is raised by a record that tells of lost ones. */
int memcg_perf_parse(const void *record, size_t bytes, const uint64_t id[MEMCG_TRACEPOINTS], struct memcg_perf_event *ret_event,
                     uint64_t *ret_lost);

struct memcg_perf;
int memcg_perf_open(const uint64_t id[MEMCG_TRACEPOINTS], struct memcg_perf **ret_perf);
/* Where the process has forked since, the rings are the parent's alone, and only the descriptors are closed. */
void memcg_perf_close(struct memcg_perf *perf);
/* Looks at what has come up to now. */
void memcg_perf_begin(struct memcg_perf *perf);
/* The next event of that which is not later than `until_ns`. */
bool memcg_perf_next(struct memcg_perf *perf, uint64_t until_ns, struct memcg_perf_event *ret_event);
/* Gives the room of what was taken back to the kernel. */
void memcg_perf_end(struct memcg_perf *perf);
uint64_t memcg_perf_lost(const struct memcg_perf *perf);
size_t memcg_perf_bytes(const struct memcg_perf *perf);

#endif
