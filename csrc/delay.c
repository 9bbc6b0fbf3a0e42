/* SPDX-License-Identifier: Apache-2.0 */
/* For how long a thread in reclaim was ready to run and did not, by its run_delay in /proc/TID/schedstat. The file is opened by the
 * keeper, and read here at the first drain in an interval and at the first after it. */
#include <unistd.h>

#include "trace.h"

/* A run_delay that was read so long before an interval tells of that interval: it is some ticks at the full rate. */
static const uint64_t RECENT_NS = 5000000;
static const uint64_t LITTLE = 10;             /* 1/10 of an interval is as good as nothing */
static const uint64_t SILENT_NS = 10000000000; /* it may have ended */

void memcg_delay_drop(struct memcg_trace *trace, struct memcg_traced *thread)
{
    if (thread->schedstat <= 0)
        return;
    close(thread->schedstat);
    thread->schedstat = 0;
    trace->delays--;
}

void memcg_delay_spare(struct memcg_trace *trace)
{
    if (trace->delays < MEMCG_TRACE_DELAYS)
        return;
    struct memcg_traced *thread = &trace->thread[trace->drains % (sizeof trace->thread / sizeof trace->thread[0])];
    if (thread->kind == 0 && trace->now_ns > thread->seen_ns + SILENT_NS)
        memcg_delay_drop(trace, thread);
}

static const char *parse_number(const char *at, const char *end, uint64_t *ret_number)
{
    for (*ret_number = 0; at < end && *at >= '0' && *at <= '9'; at++)
        *ret_number = *ret_number * 10 + (uint64_t)(*at - '0');
    return at < end ? at + 1 : at;
}

/* "416301838 25313 118\n": time on a CPU, run_delay, both in ns, and how often it was given a CPU. */
static bool read_delay(struct memcg_trace *trace, struct memcg_traced *thread, uint64_t *ret_delay_ns, uint64_t *ret_slices)
{
    char text[96];
    uint64_t ran;
    ssize_t n = pread(thread->schedstat, text, sizeof text, 0);
    if (n <= 0) {
        memcg_delay_drop(trace, thread); /* it has ended */
        return false;
    }
    const char *at = parse_number(text, text + n, &ran);
    at = parse_number(at, text + n, ret_delay_ns);
    (void)parse_number(at, text + n, ret_slices);
    return true;
}

bool memcg_delay_refresh(struct memcg_trace *trace, struct memcg_traced *thread, uint64_t since_ns)
{
    uint64_t delay, slices;
    if (thread->read_at == trace->drains)
        return true;
    if (!read_delay(trace, thread, &delay, &slices))
        return false;
    thread->recent = thread->read_at != 0 && since_ns < thread->delay_t_ns + RECENT_NS;
    thread->slack_ns = delay > thread->delay_ns ? delay - thread->delay_ns : 0;
    thread->gained = slices - thread->slices;
    thread->delay_ns = delay;
    thread->slices = slices;
    thread->delay_t_ns = trace->now_ns;
    thread->read_at = trace->drains;
    return true;
}

/* What of an interval that has just ended the thread waited for a CPU, by what its run_delay has grown by since about the interval's
 * beginning. A wait is inside of an interval or outside, never half, for both its ends were noted by the thread itself: so an
 * interval that is shorter than the usual one of those waits is taken to hold none. MEMCG_NONE where nobody knows what the
 * run_delay was then, and it has grown by enough since to matter. */
int64_t memcg_delay_wait(struct memcg_trace *trace, struct memcg_traced *thread, uint64_t end_ns)
{
    if (thread->schedstat <= 0 || !memcg_delay_refresh(trace, thread, thread->start_ns))
        return MEMCG_NONE;
    uint64_t took = end_ns - thread->start_ns, slack = thread->slack_ns, waits = thread->gained ? thread->gained : 1;
    bool sure = thread->recent || slack <= took / LITTLE || (waits == 1 && slack > took);
    if (!sure)
        return MEMCG_NONE;
    uint64_t usual = slack / waits;
    if (took < usual || usual == 0)
        return 0;
    uint64_t wait = took < slack ? took : slack, used = wait / usual;
    thread->slack_ns -= wait;
    thread->gained = used < waits ? waits - used : 0;
    return (int64_t)wait;
}
