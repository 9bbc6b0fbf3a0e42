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
 * A burst needs no such wait. Where the work between two quiet moments held several jiffies on each CPU, a cut after it leaves no
 * piece that is too small: neither the burst's nor, bursts being alike, the one that the next burst fills. And a read after so
 * many of the kernel's windows that what it can spoil, one of them, is a small part is always allowed.
 *
 * All this is reckoned with sums over the group. Where the CPU that stalls is not the one that works, the jiffies that were
 * counted are not those that count. PSI itself tells: of N jiffies in all, n on the CPU that stalled for t of them, it makes
 * s = t * n/N, and t <= n, so that n >= sqrt(s * N). Where that shows fewer than PROVEN jiffies the waits are made longer, and
 * shorter again where it shows more. That helps wherever a window turns out to be too short, whatever the reason.
 *
 * Non-idle time is known from below only: by the CPU time in cpu.stat, and, since a thread asleep in swap-in or at memory.high
 * is non-idle and uses none, by what PSI said of the last window. */
#include "gate.h"

static const double LOSS_INVERSE = 100; /* at most 1 % of the stall time may be lost to reading: half of the promise */
static const double BURST_JIFFIES = 4;  /* on each CPU: so that the least loaded of them has one */
static const double PROVEN = 6;         /* flooring then takes half a jiffy of six or more */
static const double MOST_CARE = 64;     /* seconds between two reads, in a group that works */
static const uint64_t KERNEL_WINDOW_NS = 2000000000; /* PSI_FREQ: the kernel's own reads */
static const uint64_t QUIET_NS = 20000000; /* an episode is over: moments closer than 5 ms are one stall, seen at 10 ms ticks */
static const uint64_t EPISODE_NS = 100000000;     /* … or goes on, and is told of in steps of the stat period */
static const uint64_t IDLE_NS = KERNEL_WINDOW_NS; /* without hits PSI still tells of refaults and of limits out of sight */

void memcg_gate_hit(struct memcg_gate *gate, uint64_t now_ns, bool own)
{
    if (gate->first_hit_ns == 0)
        gate->first_hit_ns = now_ns;
    if (now_ns - gate->last_hit_ns >= QUIET_NS) {
        gate->burst_cpu_ns = gate->cpu_ns;
        gate->burst_ns = gate->cpu_at_ns;
    }
    gate->last_hit_ns = now_ns;
    gate->own_hits |= own;
}

void memcg_gate_cpu(struct memcg_gate *gate, uint64_t now_ns, uint64_t cpu_ns)
{
    gate->cpu_ns = cpu_ns;
    gate->cpu_at_ns = now_ns;
}

bool memcg_gate_due(const struct memcg_gate *gate, uint64_t now_ns)
{
    if (gate->first_hit_ns != 0)
        return now_ns - gate->last_hit_ns >= QUIET_NS || now_ns - gate->first_hit_ns >= EPISODE_NS;
    return now_ns - gate->read_ns >= IDLE_NS;
}

static double care(const struct memcg_gate *gate)
{
    return gate->care > 1 ? gate->care : 1;
}

/* c, as far as averages tell: a lone thread wanders over two CPUs. */
static double spread(const struct memcg_gate *gate, double busy)
{
    return 2 + busy < (double)gate->cpus ? 2 + busy : (double)gate->cpus;
}

/* Is the window long enough? */
static bool is_long(const struct memcg_gate *gate, double elapsed_ns, double used_ns)
{
    double stalled_ns = gate->stalled * elapsed_ns, nonidle_ns = used_ns > stalled_ns ? used_ns : stalled_ns;
    double jiffy_ns = (double)gate->jiffy_ns, busy = nonidle_ns / elapsed_ns, cpus = spread(gate, busy);
    double since = nonidle_ns / jiffy_ns / care(gate);          /* N */
    double window = busy * (double)KERNEL_WINDOW_NS / jiffy_ns; /* W */
    return since * (since < window ? since : window) >= cpus * cpus * LOSS_INVERSE ||
           (used_ns >= jiffy_ns && elapsed_ns >= LOSS_INVERSE * (double)KERNEL_WINDOW_NS);
}

/* Is a burst over that was large enough on each CPU? It is what goes beyond the usual work since the hits began. */
static bool is_burst(const struct memcg_gate *gate, uint64_t now_ns, uint64_t cpu_ns)
{
    if (gate->first_hit_ns == 0 || now_ns - gate->last_hit_ns < QUIET_NS || cpu_ns <= gate->burst_cpu_ns)
        return false;
    double elapsed_ns = (double)(now_ns - gate->burst_ns);
    double used_ns = (double)(cpu_ns - gate->burst_cpu_ns) - gate->busy * elapsed_ns;
    return used_ns >= BURST_JIFFIES * (double)gate->jiffy_ns * spread(gate, used_ns / elapsed_ns) * care(gate);
}

bool memcg_gate_open(const struct memcg_gate *gate, uint64_t now_ns, uint64_t cpu_ns)
{
    if (cpu_ns <= gate->read_cpu_ns || now_ns <= gate->read_ns)
        return false;
    return is_long(gate, (double)(now_ns - gate->read_ns), (double)(cpu_ns - gate->read_cpu_ns)) ||
           is_burst(gate, now_ns, cpu_ns);
}

/* How much more than reckoned must be waited for, after what the last wait has brought. */
static double learn(const struct memcg_gate *gate, double used_ns, double stall_ns)
{
    if (!gate->own_hits && !(stall_ns > 0))
        return gate->care; /* nobody was stalled, as far as is known */
    double jiffy_ns = (double)gate->jiffy_ns;
    double proven2 = stall_ns / jiffy_ns * (used_ns > stall_ns ? used_ns : stall_ns) / jiffy_ns;
    if (proven2 < PROVEN * PROVEN)
        return care(gate) * 2 < MOST_CARE ? care(gate) * 2 : MOST_CARE;
    return proven2 < 4 * PROVEN * PROVEN ? gate->care : care(gate) / 2;
}

void memcg_gate_passed(struct memcg_gate *gate, uint64_t now_ns, uint64_t cpu_ns, uint64_t stall_us)
{
    if (gate->read_ns != 0 && now_ns > gate->read_ns) { /* the first read tells of all time before */
        double elapsed_ns = (double)(now_ns - gate->read_ns), used_ns = (double)(cpu_ns - gate->read_cpu_ns);
        double stall_ns = stall_us > gate->read_stall_us ? (double)(stall_us - gate->read_stall_us) * 1000 : 0;
        gate->care = learn(gate, used_ns, stall_ns);
        gate->busy = used_ns / elapsed_ns;
        gate->stalled = stall_ns / elapsed_ns;
    }
    gate->read_ns = now_ns;
    gate->read_cpu_ns = cpu_ns;
    gate->read_stall_us = stall_us;
    gate->first_hit_ns = gate->last_hit_ns = 0;
    gate->own_hits = false;
    memcg_gate_cpu(gate, now_ns, cpu_ns);
}
