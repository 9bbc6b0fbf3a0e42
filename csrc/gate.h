/* SPDX-License-Identifier: Apache-2.0 */
/* When may PSI be read? Pure: time and counters in, a decision out. The why is at the top of gate.c. */
#ifndef MEMCG_GATE_H
#define MEMCG_GATE_H

#include <stdbool.h>
#include <stdint.h>

struct memcg_gate {
    uint64_t jiffy_ns; /* clock_getres(CLOCK_MONOTONIC_COARSE); not sysconf(_SC_CLK_TCK), which is USER_HZ */
    uint64_t cpus;     /* that the group may run on */
    uint64_t read_ns;  /* the last read of PSI, 0 = none; the group's CPU time then, and its `some` */
    uint64_t read_cpu_ns;
    uint64_t read_stall_us;
    uint64_t first_hit_ns; /* of the hits since then; 0 = none */
    uint64_t last_hit_ns;
    bool own_hits;   /* some of them at the group's own limit, and so somebody in it was stalled */
    uint64_t cpu_ns; /* the group's CPU time, and when it was so, as last known */
    uint64_t cpu_at_ns;
    uint64_t burst_cpu_ns; /* … and as known when the last hits without a pause began */
    uint64_t burst_ns;
    double busy;    /* CPUs in use between the last two reads, by CPU time */
    double stalled; /* … and by what PSI said of the stalls */
    double care;    /* so many times as much as reckoned is waited for; below 1 is 1 */
};

/* Somebody was hit: at the group's own limit, or elsewhere. */
void memcg_gate_hit(struct memcg_gate *gate, uint64_t now_ns, bool own);
/* The group's CPU time is known to be so, whether or not somebody asks to read PSI. */
void memcg_gate_cpu(struct memcg_gate *gate, uint64_t now_ns, uint64_t cpu_ns);
/* Is there something to learn? Cheap, asked every tick; only then is the group's CPU time worth reading. */
bool memcg_gate_due(const struct memcg_gate *gate, uint64_t now_ns);
/* May PSI be read, now that the group (without the sampler) has used cpu_ns in all? */
bool memcg_gate_open(const struct memcg_gate *gate, uint64_t now_ns, uint64_t cpu_ns);
/* PSI was read, and says that somebody was stalled for `stall_us` in all. */
void memcg_gate_passed(struct memcg_gate *gate, uint64_t now_ns, uint64_t cpu_ns, uint64_t stall_us);

#endif
