/* SPDX-License-Identifier: Apache-2.0 */
/* The PSI gate.
 *
 * Every read of a group's memory.pressure ends the window over which the kernel weighs the group's CPUs against each other
 * (collect_percpu_times() in kernel/sched/psi.c). A CPU's weight is its non-idle time in that window, floored to whole jiffies:
 * in a window shorter than a jiffy of non-idle time the weight is 0 and the stall time of that CPU is dropped for good, for every
 * reader on the host. The kernel itself ends a window every 2 s.
 *
 * What does one more read cost? It cuts a window of W non-idle jiffies (all CPUs) in two. With the work spread over c CPUs, each
 * has W/c of them; a cut at a random place leaves a piece of less than one jiffy on a CPU with probability 2c/W, and such a piece
 * holds half a jiffy on average: c CPUs lose c * 2c/W * 1/2 = c^2/W jiffies a read. Reading every N non-idle jiffies loses
 * c^2/(W*N) of the group's stall time, where W is what a window holds: N, or what the group gathers in the kernel's 2 s if that is
 * less. So the rule is one line, W*N >= c^2/LOSS: about 10 jiffies a CPU in a busy group, and ever rarer in a quiet one, for which
 * no fixed period is harmless.
 *
 * Non-idle time is known from below only, by the CPU time in cpu.stat: a thread asleep in swap-in is non-idle and uses none. */
#include "gate.h"

static const uint64_t LOSS_INVERSE = 100; /* at most 1 % of the stall time may be lost to reading: half of the promise */
static const uint64_t KERNEL_WINDOW_NS = 2000000000; /* PSI_FREQ: the kernel's own reads */
static const uint64_t QUIET_NS = 20000000; /* an episode is over: moments closer than 5 ms are one stall, seen at 10 ms ticks */
static const uint64_t EPISODE_NS = 100000000;     /* … or goes on, and is told of in steps of the stat period */
static const uint64_t IDLE_NS = KERNEL_WINDOW_NS; /* without hits PSI still tells of refaults and of limits out of sight */

void memcg_gate_hit(struct memcg_gate *gate, uint64_t now_ns)
{
    if (gate->first_hit_ns == 0)
        gate->first_hit_ns = now_ns;
    gate->last_hit_ns = now_ns;
}

bool memcg_gate_due(const struct memcg_gate *gate, uint64_t now_ns)
{
    if (gate->first_hit_ns != 0)
        return now_ns - gate->last_hit_ns >= QUIET_NS || now_ns - gate->first_hit_ns >= EPISODE_NS;
    return now_ns - gate->read_ns >= IDLE_NS;
}

bool memcg_gate_open(const struct memcg_gate *gate, uint64_t now_ns, uint64_t cpu_ns)
{
    uint64_t elapsed_ns = now_ns - gate->read_ns;
    if (cpu_ns <= gate->read_cpu_ns || elapsed_ns == 0)
        return false;
    double used = (double)(cpu_ns - gate->read_cpu_ns);
    double busy = used / (double)elapsed_ns;      /* CPUs in use */
    double since = used / (double)gate->jiffy_ns; /* N */
    double window = busy * (double)KERNEL_WINDOW_NS / (double)gate->jiffy_ns;
    double spread = 2 + busy < (double)gate->cpus ? 2 + busy : (double)gate->cpus; /* c: a lone thread wanders over two */
    if (window > since)
        window = since; /* W */
    return window * since >= spread * spread * (double)LOSS_INVERSE;
}

void memcg_gate_passed(struct memcg_gate *gate, uint64_t now_ns, uint64_t cpu_ns)
{
    gate->read_ns = now_ns;
    gate->read_cpu_ns = cpu_ns;
    gate->first_hit_ns = gate->last_hit_ns = 0;
}
