/* SPDX-License-Identifier: Apache-2.0 */
/* When may PSI be read? Pure: time and counters in, a decision out. The why is at the top of gate.c. */
#ifndef MEMCG_GATE_H
#define MEMCG_GATE_H

#include <stdbool.h>
#include <stdint.h>

struct memcg_gate {
    uint64_t jiffy_ns; /* clock_getres(CLOCK_MONOTONIC_COARSE); not sysconf(_SC_CLK_TCK), which is USER_HZ */
    uint64_t cpus;     /* that the group may run on */
    uint64_t read_ns;  /* the last read of PSI, and the group's CPU time then */
    uint64_t read_cpu_ns;
    uint64_t first_hit_ns; /* of the hits since then; 0 = none */
    uint64_t last_hit_ns;
};

void memcg_gate_hit(struct memcg_gate *gate, uint64_t now_ns);
/* Is there something to learn? Cheap, asked every tick; only then is the group's CPU time worth reading. */
bool memcg_gate_due(const struct memcg_gate *gate, uint64_t now_ns);
/* May PSI be read, now that the group (without the sampler) has used cpu_ns in all? */
bool memcg_gate_open(const struct memcg_gate *gate, uint64_t now_ns, uint64_t cpu_ns);
void memcg_gate_passed(struct memcg_gate *gate, uint64_t now_ns, uint64_t cpu_ns);

#endif
