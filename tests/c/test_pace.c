/* SPDX-License-Identifier: Apache-2.0 */
/* What must hold of the pace whatever its constants: near a limit the full rate, far from it a slow one, no limit overrun between two
 * ticks, no more than the sampler's share of the group's CPU time, and always a distance that is a multiple of the full rate's. */
#include <inttypes.h>

#include "harness.h"
#include "pace.h"

#define MS  ((uint64_t)1000000)
#define S   ((uint64_t)1000000000)
#define MIB ((int64_t)1 << 20)
#define GIB ((int64_t)1 << 30)

static struct memcg_pace far_away(uint64_t full_ns)
{
    return (struct memcg_pace){.full_ns = full_ns, .adaptive = true, .headroom = INT64_MAX};
}

static void test_table(void)
{
    static const struct {
        const char *what;
        int64_t headroom;
        uint64_t hit_ago_ns; /* 0 = never */
        bool adaptive, full;
    } cases[] = {
        {"no limit at all", INT64_MAX, 0, true, false},
        {"far from the limit", 100 * GIB, 0, true, false},
        {"far, but not adaptive", INT64_MAX, 0, false, true},
        {"at the limit", 0, 0, true, true},
        {"over the limit", -MIB, 0, true, true},
        {"far over it", INT64_MIN, 0, true, true},
        {"a page below", 4096, 0, true, true},
        {"10 ms of 1 GiB/s below", GIB / 100, 0, true, true},
        {"hit just now", INT64_MAX, 1, true, true},
        {"hit half a second ago", INT64_MAX, S / 2, true, true},
        {"hit a minute ago", INT64_MAX, 60 * S, true, false},
        {"hit a minute ago, at the limit", 0, 60 * S, true, true},
    };
    const uint64_t now = 1000 * S;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct memcg_pace pace = {.full_ns = MS, .adaptive = cases[i].adaptive, .headroom = cases[i].headroom};
        if (cases[i].hit_ago_ns)
            memcg_pace_hit(&pace, now - cases[i].hit_ago_ns);
        uint64_t next = memcg_pace_next(&pace, now);
        CHECK(cases[i].full ? next == MS : next > MS, "%s: %" PRIu64 " ns", cases[i].what, next);
    }
}

static uint64_t next_at(double growth, int64_t headroom)
{
    struct memcg_pace pace = far_away(MS);
    pace.headroom = headroom;
    memcg_pace_usage(&pace, S, 0);
    memcg_pace_usage(&pace, 2 * S, (int64_t)growth);
    return memcg_pace_next(&pace, 2 * S);
}

/* Before usage that grows at the fastest speed seen can be at the limit, there is a tick - at full rate where nothing is sooner. */
static void test_reach(void)
{
    for (double growth = 1; growth < 1e14; growth *= 3) {
        uint64_t last = 0;
        for (int64_t headroom = 1; headroom > 0 && headroom < INT64_MAX / 2; headroom *= 2) {
            uint64_t next = next_at(growth, headroom);
            double reached = growth * (double)next / (double)S;
            CHECK(next == MS || reached <= (double)headroom, "%g bytes/s overrun %" PRId64 " bytes in %" PRIu64 " ns", growth,
                  headroom, next);
            CHECK(next >= last, "%" PRId64 " bytes below the limit faster than nearer to it", headroom);
            last = next;
        }
        CHECK(last > MS, "%g bytes/s are at the full rate however far the limit", growth);
    }
    for (int64_t headroom = 1; headroom > 0 && headroom < INT64_MAX / 2; headroom *= 2)
        for (double growth = 1; growth < 1e14; growth *= 3)
            CHECK(next_at(growth * 3, headroom) <= next_at(growth, headroom), "faster growth, slower ticks");
}

/* The fastest growth counts for as long as the sampler runs; shrinking, standing still and time that goes nowhere are no growth. */
static void test_usage(void)
{
    struct memcg_pace pace = far_away(MS);
    memcg_pace_usage(&pace, 5 * S, 100 * GIB);
    CHECK(pace.usage_bytes == 100 * GIB && pace.usage_ns == 5 * S, "what was seen last");
    CHECK(!(pace.growth > 0), "the first look is no growth: %g", pace.growth);
    memcg_pace_usage(&pace, 5 * S, 200 * GIB);
    CHECK(!(pace.growth > 0), "growth in no time: %g", pace.growth);
    memcg_pace_usage(&pace, 4 * S, 300 * GIB);
    CHECK(!(pace.growth > 0), "growth in time that went back: %g", pace.growth);
    memcg_pace_usage(&pace, 6 * S, 300 * GIB);
    memcg_pace_usage(&pace, 7 * S, 10 * GIB);
    CHECK(!(pace.growth > 0), "shrinking: %g", pace.growth);
    memcg_pace_usage(&pace, 8 * S, 11 * GIB);
    double grown = pace.growth;
    CHECK(grown > 0.99 * (double)GIB && grown < 1.01 * (double)GIB, "1 GiB in 1 s: %g", grown);
    memcg_pace_usage(&pace, 9 * S, 11 * GIB + 1);
    memcg_pace_usage(&pace, 10 * S, 0);
    CHECK(pace.growth >= grown, "%g, and then %g: the fastest is forgotten", grown, pace.growth);
}

/* Hits keep the full rate, for a while and no longer; an older one takes nothing from a newer one. */
static void test_hits(void)
{
    struct memcg_pace pace = far_away(MS);
    const uint64_t hit = 1000 * S;
    memcg_pace_hit(&pace, hit);
    bool slow = false;
    for (uint64_t now = hit; now < hit + 10 * S; now += MS) {
        uint64_t next = memcg_pace_next(&pace, now);
        CHECK(next == MS || now >= hit + S, "slow %" PRIu64 " ms after a hit", (now - hit) / MS);
        CHECK(next > MS || !slow, "at the full rate again %" PRIu64 " ms after a hit", (now - hit) / MS);
        slow = next > MS;
    }
    CHECK(slow, "at the full rate 10 s after a hit");
    memcg_pace_hit(&pace, hit + 20 * S);
    CHECK(memcg_pace_next(&pace, hit + 20 * S) == MS, "the second hit");
}

/* While a thread of the group is in reclaim, ticks do not yield; shortly after, they do again. */
static void test_held(void)
{
    struct memcg_pace pace = {.full_ns = 1000000, .adaptive = true, .headroom = INT64_MAX};
    memcg_pace_yield(&pace, 10000, 1000000);
    uint64_t slow = memcg_pace_next(&pace, 5000000000);
    CHECK(slow > 10000000, "does not yield: %" PRIu64, slow);
    memcg_pace_held(&pace, 5000000000);
    CHECK(memcg_pace_next(&pace, 5001000000) == pace.full_ns, "yields in reclaim");
    CHECK(memcg_pace_next(&pace, 5100000000) == slow, "does not yield after it");
}

/* At the distance that it yields to, ticks of `cost` take no more than 1/20 of what the group uses - at the limit too. */
static void test_yield(void)
{
    static const int64_t headrooms[] = {0, INT64_MAX};
    for (size_t i = 0; i < 2; i++) {
        for (uint64_t cost = 500; cost <= 500000; cost *= 10) {
            uint64_t last = UINT64_MAX, slowest;
            struct memcg_pace pace = far_away(MS);
            memcg_pace_yield(&pace, cost, 1);
            slowest = memcg_pace_next(&pace, S);
            CHECK(slowest <= S, "in an idle group a tick comes every %" PRIu64 " ns", slowest);
            for (uint64_t group = 1; group <= 64 * S; group *= 4) {
                pace = far_away(MS);
                pace.headroom = headrooms[i];
                memcg_pace_yield(&pace, cost, group);
                uint64_t next = memcg_pace_next(&pace, S);
                double share = (double)cost * (double)S / (double)next / (double)group;
                CHECK(share <= 1. / 20 || next == slowest, "%" PRIu64 " ns a tick beside %" PRIu64 " ns/s: %.3f of it", cost,
                      group, share);
                CHECK(next <= last, "a busier group, slower ticks");
                last = next;
            }
            CHECK(i != 0 || cost > 5000 || last == MS, "at the limit of a busy group: %" PRIu64 " ns", last);
        }
    }
    struct memcg_pace pace = far_away(MS);
    memcg_pace_yield(&pace, 5000, 0);
    CHECK(memcg_pace_next(&pace, S) <= S, "a group of which nothing is known");
    memcg_pace_yield(&pace, 0, 5000);
    CHECK(memcg_pace_next(&pace, S) > 0, "ticks that cost nothing");
    pace = (struct memcg_pace){.full_ns = MS, .headroom = INT64_MAX};
    memcg_pace_yield(&pace, 500000, 1);
    CHECK(memcg_pace_next(&pace, S) == MS, "who wants the full rate does not yield");
}

/* On the grid of the full rate, and never faster; a rate that is slow already stays what it is. */
static void test_grid(void)
{
    static const uint64_t fulls[] = {1, 100000, MS, 3 * MS, 7 * MS, 10 * MS, 11 * MS, 99 * MS, 100 * MS, S, 60 * S};
    for (size_t i = 0; i < sizeof fulls / sizeof fulls[0]; i++) {
        for (uint64_t cost = 0; cost < 10 * MS; cost = cost * 3 + 777) {
            for (int64_t headroom = -1; headroom <= 1; headroom++) {
                struct memcg_pace pace = far_away(fulls[i]);
                pace.headroom = headroom * GIB * 100;
                memcg_pace_yield(&pace, cost, S / 50);
                uint64_t next = memcg_pace_next(&pace, 5 * S);
                CHECK(next >= fulls[i] && next % fulls[i] == 0, "%" PRIu64 " on a grid of %" PRIu64, next, fulls[i]);
                CHECK(next <= S || next == fulls[i], "%" PRIu64 " with a full rate of %" PRIu64, next, fulls[i]);
            }
        }
    }
}

int main(void)
{
    test_table();
    test_reach();
    test_usage();
    test_hits();
    test_yield();
    test_held();
    test_grid();
    return 0;
}
