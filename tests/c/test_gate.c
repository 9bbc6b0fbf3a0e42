/* SPDX-License-Identifier: Apache-2.0 */
/* What must hold of the gate however it is tuned: it costs the group's PSI no more than was promised (shown on a model of the
 * kernel's sums), it opens where there is something to learn, and more CPU time never closes it. */
#include <inttypes.h>

#include "gate.h"
#include "harness.h"

#define MS ((uint64_t)1000000)
#define S  ((uint64_t)1000000000)

static const uint64_t JIFFIES[] = {1 * MS, 4 * MS, 10 * MS}; /* HZ = 1000, 250, 100 */

/* ---- PSI's sums, as collect_percpu_times() in kernel/sched/psi.c makes them ------------------------------------------------- */

enum { CPUS = 8 };

struct psi {
    uint64_t jiffy_ns;
    uint64_t nonidle_ns[CPUS], stall_ns[CPUS]; /* since the last read */
    double total_ns;
};

/* Ends the window: stall times weighed by non-idle time in whole jiffies. */
static void psi_read(struct psi *psi)
{
    double sum = 0, weights = 0;
    for (int cpu = 0; cpu < CPUS; cpu++) {
        double weight = (double)(psi->nonidle_ns[cpu] / psi->jiffy_ns);
        sum += weight * (double)psi->stall_ns[cpu];
        weights += weight;
        psi->nonidle_ns[cpu] = psi->stall_ns[cpu] = 0;
    }
    psi->total_ns += weights > 0 ? sum / weights : 0;
}

/* ---- Groups that run and stall ---------------------------------------------------------------------------------------------- */

struct load {
    const char *name;
    uint64_t threads;
    uint64_t period_us, run_us, stall_us; /* each thread, every period: runs so long, the last part of it stalled in reclaim */
    uint64_t episode_us, pause_us;        /* bursts of so long, with pauses between; 0 = no end */
    bool asleep;                          /* stalled threads wait for a disk, and use no CPU time */
    uint64_t work_us, work_period_us;     /* another thread, on a CPU of its own, works and never stalls; 0 = none */
};

static const struct load LOADS[] = {
    {.name = "flat out", .threads = 1, .period_us = 1000, .run_us = 1000, .stall_us = 500},
    {.name = "flat out, two threads", .threads = 2, .period_us = 1000, .run_us = 1000, .stall_us = 500},
    {.name = "half busy", .threads = 1, .period_us = 10000, .run_us = 5000, .stall_us = 3000},
    {"bursts", 1, 1000, 1000, 500, 100000, 900000, false, 0, 0},
    {"rare bursts", 1, 1000, 1000, 500, 60000, 2940000, false, 0, 0},
    {.name = "short requests", .threads = 1, .period_us = 20000, .run_us = 2000, .stall_us = 1000},
    {.name = "light", .threads = 1, .period_us = 150000, .run_us = 1500, .stall_us = 1000},
    {.name = "light bursts", .threads = 1, .period_us = 1000000, .run_us = 10000, .stall_us = 6500},
    {.name = "lighter", .threads = 1, .period_us = 500000, .run_us = 1500, .stall_us = 1000},
    {.name = "several light threads", .threads = 2, .period_us = 100000, .run_us = 1500, .stall_us = 1000},
    {.name = "asleep", .threads = 1, .period_us = 100000, .run_us = 97000, .stall_us = 95000, .asleep = true},
    {.name = "asleep now and then", .threads = 1, .period_us = 100000, .run_us = 22000, .stall_us = 20000, .asleep = true},
};
enum { LIGHT = 6, ASLEEP = 10 };

/* The CPU that stalls is not the one that works. No window is right for them: what is promised is that most is left. */
static const struct load APART[] = {
    {"5 ms in 100 beside half", 1, 100000, 5000, 3500, 0, 0, false, 20000, 40000},
    {"2 ms in 200 beside full", 1, 200000, 2000, 1500, 0, 0, false, 1000, 1000},
    {"3 ms in 50 beside full", 1, 50000, 3000, 1500, 0, 0, false, 1000, 1000},
};

static const uint64_t STEP_NS = MS / 2, MINUTES = 4;

struct world {
    const struct load *load;
    uint64_t random, now_ns, cpu_ns, reads;
    struct memcg_gate gate;
    struct psi with, without; /* the gate's reads; the kernel's own every 2 s are in both */
    bool wanders;
    uint64_t cpu[CPUS]; /* of each thread */
    bool hit;
};

static uint64_t roll(struct world *world)
{
    world->random = world->random * 6364136223846793005u + 1442695040888963407u;
    return world->random >> 33;
}

/* The group's next STEP_NS. Each thread has a CPU of its own, and perhaps one that it wanders to now and then. */
static void run_group(struct world *world)
{
    const struct load *load = world->load;
    uint64_t us = world->now_ns / 1000, cycle = load->episode_us + load->pause_us;
    if (cycle && us % cycle >= load->episode_us)
        return;
    struct psi *const both[] = {&world->with, &world->without};
    if (load->work_us && us % load->work_period_us < load->work_us) {
        world->cpu_ns += STEP_NS;
        for (int i = 0; i < 2; i++)
            both[i]->nonidle_ns[CPUS - 1] += STEP_NS;
    }
    for (uint64_t thread = 0; thread < load->threads; thread++) {
        uint64_t phase = (us + thread * 37000) % load->period_us;
        if (phase == 0 && world->wanders && roll(world) % 8 == 0)
            world->cpu[thread] = thread + roll(world) % 2;
        if (phase >= load->run_us)
            continue;
        bool stalled = phase >= load->run_us - load->stall_us;
        world->cpu_ns += stalled && load->asleep ? 0 : STEP_NS;
        world->hit |= stalled;
        for (int i = 0; i < 2; i++) {
            both[i]->nonidle_ns[world->cpu[thread]] += STEP_NS;
            both[i]->stall_ns[world->cpu[thread]] += stalled ? STEP_NS : 0;
        }
    }
}

static void ask_gate(struct world *world)
{
    if (world->hit)
        memcg_gate_hit(&world->gate, world->now_ns, true);
    if (world->now_ns % (100 * MS) == 0)
        memcg_gate_cpu(&world->gate, world->now_ns, world->cpu_ns);
    world->hit = false;
    if (!memcg_gate_due(&world->gate, world->now_ns) || !memcg_gate_open(&world->gate, world->now_ns, world->cpu_ns))
        return;
    psi_read(&world->with);
    memcg_gate_passed(&world->gate, world->now_ns, world->cpu_ns, (uint64_t)(world->with.total_ns / 1000));
    world->reads++;
}

static void simulate(struct world *world)
{
    const uint64_t begun = S; /* no clock begins at 0 */
    for (uint64_t thread = 0; thread < world->load->threads; thread++)
        world->cpu[thread] = thread;
    for (world->now_ns = begun; world->now_ns < begun + MINUTES * 60 * S; world->now_ns += STEP_NS) {
        run_group(world);
        if (world->now_ns % (2 * S) == 0) {
            psi_read(&world->with);
            psi_read(&world->without);
        }
        if (world->now_ns % MS == 0)
            ask_gate(world);
    }
    psi_read(&world->with);
    psi_read(&world->without);
}

static struct world simulated(const struct load *load, uint64_t jiffy_ns, bool wanders)
{
    struct world world = {.load = load, .random = 1, .wanders = wanders};
    world.with.jiffy_ns = world.without.jiffy_ns = jiffy_ns;
    world.gate = (struct memcg_gate){.jiffy_ns = jiffy_ns, .cpus = 2, .read_ns = S};
    simulate(&world);
    printf("%-24s %-8s HZ=%4" PRIu64 ": %4" PRIu64 " reads in %" PRIu64 " minutes, %.4f of PSI\n", load->name,
           wanders ? "wanders" : "stays", S / jiffy_ns, world.reads, MINUTES, world.with.total_ns / world.without.total_ns);
    return world;
}

/* At least 0.98 of what the group's PSI says without our reads, or less than 1 ms a minute lost. (Of threads that wander it says
 * more: a shorter window mixes fewer CPUs.) */
static void check_loss(const struct load *load, uint64_t jiffy_ns, bool wanders)
{
    struct world world = simulated(load, jiffy_ns, wanders);
    double ratio = world.with.total_ns / world.without.total_ns;
    double lost_ns = (world.without.total_ns - world.with.total_ns) / (double)MINUTES;
    CHECK(ratio >= 0.98 || lost_ns < 1e6, "%s: %.4f left, %.0f ns a minute lost", load->name, ratio, lost_ns);
    CHECK(world.reads > 0, "%s: PSI was never read", load->name);
}

static void test_loss(void)
{
    for (size_t i = 0; i < sizeof LOADS / sizeof LOADS[0]; i++)
        for (size_t j = 0; j < sizeof JIFFIES / sizeof JIFFIES[0]; j++)
            for (int wanders = 0; wanders < 2; wanders++)
                check_loss(&LOADS[i], JIFFIES[j], wanders);
}

static void test_apart(void)
{
    for (size_t i = 0; i < sizeof APART / sizeof APART[0]; i++)
        for (size_t j = 0; j < sizeof JIFFIES / sizeof JIFFIES[0]; j++) {
            struct world world = simulated(&APART[i], JIFFIES[j], false);
            CHECK(world.with.total_ns >= 0.85 * world.without.total_ns, "%s", APART[i].name);
            CHECK(world.reads >= MINUTES * 4, "%s: %" PRIu64 " reads", APART[i].name, world.reads);
        }
}

/* Where threads sleep in their stalls, CPU time tells next to nothing of them; PSI does, once it was read. */
static void test_asleep(void)
{
    struct world world = simulated(&LOADS[ASLEEP], 4 * MS, false);
    CHECK(world.reads > MINUTES * 60, "%" PRIu64 " reads of a group that is always stalled", world.reads);
}

/* A burst of many jiffies is told of when it is over. */
static void test_burst(void)
{
    struct memcg_gate gate = {.jiffy_ns = 4 * MS, .cpus = 2, .read_ns = 1000 * S};
    uint64_t now = 1003 * S, cpu = 0;
    memcg_gate_cpu(&gate, now, cpu);
    for (int ms = 0; ms < 60; ms++, now += MS, cpu += MS)
        memcg_gate_hit(&gate, now, true);
    CHECK(!memcg_gate_open(&gate, now, cpu), "it may go on");
    now += 100 * MS;
    CHECK(memcg_gate_due(&gate, now) && memcg_gate_open(&gate, now, cpu), "it is over");
    CHECK(!memcg_gate_open(&gate, now, cpu / 20), "a burst of less than a jiffy is no such burst");

    gate = (struct memcg_gate){.jiffy_ns = 4 * MS, .cpus = 2, .read_ns = now, .read_cpu_ns = cpu};
    for (int i = 0; i < 20; i++, now += S) {
        memcg_gate_cpu(&gate, now, cpu);
        memcg_gate_hit(&gate, now, true);
        cpu += 3 * MS;
        CHECK(!memcg_gate_open(&gate, now + 100 * MS, cpu), "%d small ones are no large one", i + 1);
    }
}

/* That the model can tell: a reader every 10 ms destroys the light loads. */
static void test_model(void)
{
    struct world world = {.load = &LOADS[LIGHT], .random = 1};
    world.with.jiffy_ns = world.without.jiffy_ns = 4 * MS;
    for (world.now_ns = S; world.now_ns < 120 * S; world.now_ns += STEP_NS) {
        run_group(&world);
        if (world.now_ns % (2 * S) == 0)
            psi_read(&world.without);
        if (world.now_ns % (10 * MS) == 0)
            psi_read(&world.with);
    }
    CHECK(world.with.total_ns < world.without.total_ns / 2, "%.4f left", world.with.total_ns / world.without.total_ns);
}

/* ---- Single answers --------------------------------------------------------------------------------------------------------- */

static struct memcg_gate gate_at(uint64_t now_ns, uint64_t cpu_ns)
{
    return (struct memcg_gate){.jiffy_ns = 4 * MS, .cpus = 2, .read_ns = now_ns, .read_cpu_ns = cpu_ns};
}

static void test_due(void)
{
    const uint64_t begun = 1000 * S;
    struct memcg_gate gate = gate_at(begun, 0);
    CHECK(!memcg_gate_due(&gate, begun), "at the moment of the last read");
    CHECK(!memcg_gate_due(&gate, begun + MS), "nothing was hit a millisecond after the last read");
    CHECK(memcg_gate_due(&gate, begun + 10 * S), "nothing was hit for long: there may be what counters do not tell");

    memcg_gate_hit(&gate, begun + MS, true);
    CHECK(!memcg_gate_due(&gate, begun + MS), "at the moment of the first hit: the stall goes on");
    uint64_t due = begun + MS;
    while (!memcg_gate_due(&gate, due))
        due += MS;
    CHECK(due < begun + S, "a hit is looked into only after %" PRIu64 " ms", (due - begun) / MS);
    for (uint64_t now = due; now < due + 20 * S; now += 7 * MS)
        CHECK(memcg_gate_due(&gate, now), "due at %" PRIu64 ", no longer %" PRIu64 " ms later", due, (now - due) / MS);

    memcg_gate_passed(&gate, due, 5, 0);
    CHECK(gate.read_ns == due && gate.read_cpu_ns == 5, "where the next window begins");
    CHECK(!memcg_gate_due(&gate, due + MS), "the hits before a read are over");

    uint64_t now = due + MS; /* one hit after the other, without a pause to wait for */
    for (; !memcg_gate_due(&gate, now); now += MS) {
        memcg_gate_hit(&gate, now, true);
        CHECK(now < due + S, "an episode without end is told of");
    }
}

/* Time that stands still, counters that stand still or lag behind. */
static void test_nothing_new(void)
{
    const uint64_t begun = 1000 * S, cpu = 50 * S;
    const struct memcg_gate gate = gate_at(begun, cpu);
    static const uint64_t elapsed[] = {0, 1, MS, S, 100 * S, 1000000 * S};
    for (size_t i = 0; i < sizeof elapsed / sizeof elapsed[0]; i++) {
        CHECK(!memcg_gate_open(&gate, begun + elapsed[i], cpu), "no CPU time in %" PRIu64 " ns", elapsed[i]);
        CHECK(!memcg_gate_open(&gate, begun + elapsed[i], cpu - 1), "CPU time went back in %" PRIu64 " ns", elapsed[i]);
        CHECK(!memcg_gate_open(&gate, begun + elapsed[i], 0), "CPU time began anew in %" PRIu64 " ns", elapsed[i]);
        CHECK(!memcg_gate_open(&gate, begun + elapsed[i], cpu + 4 * MS - 1), "less than a jiffy in %" PRIu64 " ns", elapsed[i]);
    }
    CHECK(!memcg_gate_open(&gate, begun, cpu + S), "CPU time in no time");
}

/* More CPU time in the same time never closes it, and more CPUs to spread over never open it. */
static void test_monotone(void)
{
    for (uint64_t elapsed = MS; elapsed <= 3600 * S; elapsed = elapsed * 3 / 2) {
        uint64_t opened[CPUS + 1] = {0};
        for (uint64_t cpus = 1; cpus <= CPUS; cpus++) {
            struct memcg_gate gate = gate_at(1000 * S, 7);
            gate.cpus = cpus;
            bool before = false;
            for (uint64_t used = MS / 2; used <= elapsed * cpus; used += used / 16) {
                bool open = memcg_gate_open(&gate, 1000 * S + elapsed, 7 + used);
                CHECK(open || !before, "open before, closed at %" PRIu64 " ns of CPU time in %" PRIu64, used, elapsed);
                if (open && !before)
                    opened[cpus] = used;
                before = open;
            }
            CHECK(opened[cpus] == 0 || (opened[cpus - 1] != 0 || cpus == 1), "%" PRIu64 " CPUs open, fewer do not", cpus);
            CHECK(opened[cpus] == 0 || opened[cpus] >= opened[cpus - 1], "%" PRIu64 " CPUs open sooner than fewer", cpus);
        }
    }
}

/* A steadily busy group learns of its stalls: the busier, the sooner. */
static void test_opens(void)
{
    static const struct {
        double busy;
        uint64_t within_ns;
    } cases[] = {{2, S / 2}, {1, S / 2}, {0.5, S}, {0.1, 10 * S}, {0.03, 60 * S}, {0.01, 300 * S}};
    for (size_t j = 0; j < sizeof JIFFIES / sizeof JIFFIES[0] - 1; j++) {
        uint64_t last = 0;
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
            struct memcg_gate gate = gate_at(1000 * S, 0);
            gate.jiffy_ns = JIFFIES[j];
            uint64_t elapsed = MS;
            while (!memcg_gate_open(&gate, 1000 * S + elapsed, (uint64_t)(cases[i].busy * (double)elapsed))) {
                elapsed += MS;
                CHECK(elapsed <= cases[i].within_ns, "%.2f CPUs busy for %" PRIu64 " ms", cases[i].busy, elapsed / MS);
            }
            CHECK(elapsed >= last || cases[i].busy >= 0.5, "%.2f CPUs busy opened sooner than more", cases[i].busy);
            last = elapsed;
        }
    }
}

int main(void)
{
    test_due();
    test_nothing_new();
    test_monotone();
    test_opens();
    test_model();
    test_loss();
    test_apart();
    test_asleep();
    test_burst();
    return 0;
}
