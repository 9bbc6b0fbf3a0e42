/* SPDX-License-Identifier: Apache-2.0 */
#include "trace.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* An event's time is taken before it is written, and the CPUs' rings are not looked at in one moment: what is younger than this
 * waits for the next drain, so that all older ones are there by then. */
static const uint64_t MARGIN_NS = 200000;
static const uint64_t KNOWN_NS = 1000000000; /* a thread may be moved to another group, and its number given to another */
static const uint64_t LONG_NS = 10000000000; /* what it was then says little of now */
static const char *const COLUMNS[MEMCG_TRACE_COLUMNS] = {"start_ns", "end_ns",          "pid",        "tid",
                                                         "kind",     "reclaimed_pages", "cpu_wait_ns"};

int memcg_trace_open(const struct memcg_config *config, const struct memcg_writer *writer, struct memcg_trace *ret_trace)
{
    int rc = memcg_channel_bind(writer, "reclaim", &ret_trace->channel);
    if (rc != 0)
        return rc == -ENOENT ? 0 : rc;
    for (int i = 0; i < MEMCG_TRACE_COLUMNS; i++) {
        ret_trace->column[i] = memcg_channel_find(writer, &ret_trace->channel, COLUMNS[i]);
        if (ret_trace->column[i] < 0)
            return -EPROTO;
    }
    ret_trace->cgroup_id = config->cgroup_id;
    return config->tracepoint[0] ? memcg_perf_open(config->tracepoint, &ret_trace->perf) : 0;
}

void memcg_trace_close(struct memcg_trace *trace)
{
    memcg_perf_close(trace->perf);
    trace->perf = NULL;
    struct memcg_letter letter;
    while (memcg_post_take(&trace->answers, &letter))
        if (letter.schedstat > 0)
            close(letter.schedstat);
    for (size_t i = 0; i < sizeof trace->thread / sizeof trace->thread[0]; i++)
        if (trace->thread[i].schedstat > 0)
            close(trace->thread[i].schedstat);
}

static void put_row(struct memcg_trace *trace, const struct memcg_interval *interval)
{
    const int64_t row[MEMCG_TRACE_COLUMNS] = {
        (int64_t)interval->start_ns, (int64_t)interval->end_ns, interval->pid, interval->tid, interval->kind,
        interval->reclaimed_pages,   interval->cpu_wait_ns};
    for (int i = 0; i < MEMCG_TRACE_COLUMNS; i++)
        memcg_channel_put(&trace->channel, trace->column[i], row[i]);
    memcg_channel_publish(&trace->channel);
}

/* ---- Threads ---- */

static struct memcg_traced *set_of(struct memcg_trace *trace, uint32_t tid)
{
    size_t set = (tid * 2654435761u >> 16) % MEMCG_TRACE_SETS; /* Knuth's: the numbers of a pool's threads are close together */
    return &trace->thread[set * MEMCG_TRACE_WAYS];
}

static struct memcg_traced *find(struct memcg_trace *trace, uint32_t tid)
{
    struct memcg_traced *set = set_of(trace, tid);
    for (int i = 0; i < MEMCG_TRACE_WAYS; i++)
        if (set[i].tid == tid)
            return &set[i];
    return NULL;
}

static void leave_interval(struct memcg_trace *trace, struct memcg_traced *thread)
{
    uint16_t last = trace->in[--trace->open];
    trace->in[thread->place] = last;
    trace->thread[last].place = thread->place;
    thread->kind = 0;
}

/* How much would be lost with an entry. */
static int worth(const struct memcg_traced *thread)
{
    return thread->tid == 0 ? 0 : thread->kind == 0 ? 1 : thread->member == MEMCG_MEMBER_NO ? 2 : 3;
}

/* The thread's entry; that of the thread which has been silent longest is made its own where there is none. */
static struct memcg_traced *meet(struct memcg_trace *trace, const struct memcg_perf_event *event)
{
    struct memcg_traced *thread = find(trace, event->tid);
    if (!thread) {
        struct memcg_traced *set = set_of(trace, event->tid);
        thread = &set[0];
        for (int i = 1; i < MEMCG_TRACE_WAYS; i++)
            if (worth(&set[i]) < worth(thread) || (worth(&set[i]) == worth(thread) && set[i].seen_ns < thread->seen_ns))
                thread = &set[i];
        if (thread->kind) {
            trace->unattributed += thread->member != MEMCG_MEMBER_NO;
            leave_interval(trace, thread);
        }
        memcg_delay_drop(trace, thread);
        *thread = (struct memcg_traced){.tid = event->tid, .pid = event->pid};
    }
    if (thread->pid != event->pid) { /* its number is another's by now; a thread group keeps its leader's */
        thread->pid = event->pid;
        thread->member = thread->before = MEMCG_MEMBER_UNKNOWN;
        memcg_delay_drop(trace, thread);
    }
    thread->seen_ns = event->t_ns;
    if (trace->cgroup_id && event->cgroup_id == trace->cgroup_id) {
        thread->member = MEMCG_MEMBER_YES;
        thread->known_ns = event->t_ns;
    } else if (thread->member >= MEMCG_MEMBER_NO && event->t_ns > thread->known_ns + KNOWN_NS) {
        thread->before = thread->member;
        thread->member = MEMCG_MEMBER_UNKNOWN;
    }
    return thread;
}

static void ask(struct memcg_trace *trace, struct memcg_traced *thread, bool schedstat)
{
    const struct memcg_letter letter = {
        .pid = thread->pid, .tid = thread->tid, .member = thread->member, .schedstat = schedstat};
    if (thread->asked || !memcg_post_send(&trace->questions, &letter))
        return; /* the post is full: it is asked again at the next drain */
    thread->asked = 1;
    if (thread->member == MEMCG_MEMBER_UNKNOWN)
        thread->member = MEMCG_MEMBER_ASKED;
    trace->asked = true;
}

static bool wants_delay(const struct memcg_trace *trace, const struct memcg_traced *thread)
{
    return thread->schedstat == 0 && trace->delays < MEMCG_TRACE_DELAYS;
}

static void take_answers(struct memcg_trace *trace)
{
    struct memcg_letter letter;
    while (memcg_post_take(&trace->answers, &letter)) {
        if (letter.kind == MEMCG_RECLAIM_HIGH) {
            put_row(trace, &(struct memcg_interval){letter.t_ns, letter.t_ns, letter.pid, letter.tid, letter.kind, MEMCG_NONE,
                                                    MEMCG_NONE});
            continue;
        }
        struct memcg_traced *thread = find(trace, letter.tid);
        if (thread) {
            thread->asked = 0;
            if (thread->member == MEMCG_MEMBER_ASKED) {
                /* Then it was most likely its old self. */
                bool gone =
                    letter.member == MEMCG_MEMBER_GONE && thread->before && thread->seen_ns < thread->known_ns + LONG_NS;
                thread->member = gone ? thread->before : (uint8_t)letter.member;
                thread->known_ns = letter.t_ns;
            }
        }
        if (thread && letter.schedstat < 0 && letter.member == MEMCG_MEMBER_YES)
            thread->schedstat = -1;
        if (letter.schedstat <= 0)
            continue;
        if (thread && thread->schedstat == 0 && trace->delays < MEMCG_TRACE_DELAYS) {
            thread->schedstat = letter.schedstat;
            trace->delays++;
        } else {
            close(letter.schedstat);
        }
    }
}

/* ---- Intervals ---- */

/* Over: a row of it, or it waits until somebody knows whose it is. */
static void put_interval(struct memcg_trace *trace, const struct memcg_interval *interval, int member)
{
    if (member == MEMCG_MEMBER_YES)
        put_row(trace, interval);
    else if (member == MEMCG_MEMBER_GONE || (member != MEMCG_MEMBER_NO && trace->pending == MEMCG_TRACE_PENDING))
        trace->unattributed++;
    else if (member != MEMCG_MEMBER_NO)
        trace->wait[trace->pending++] = *interval;
}

static void begin_interval(struct memcg_trace *trace, struct memcg_traced *thread, uint64_t t_ns, int kind)
{
    if (thread->kind) /* its end was lost */
        leave_interval(trace, thread);
    thread->kind = (uint8_t)kind;
    thread->start_ns = t_ns;
    thread->place = trace->open;
    trace->in[trace->open++] = (uint16_t)(thread - trace->thread);
    trace->hit |= thread->member == MEMCG_MEMBER_YES;
}

static void end_interval(struct memcg_trace *trace, struct memcg_traced *thread, const struct memcg_perf_event *event, int kind)
{
    if (thread->kind != kind)
        return;                           /* it began before we were there, or its begin was lost */
    if (event->t_ns < thread->start_ns) { /* the clock may step back by a little from one CPU to another */
        leave_interval(trace, thread);
        return;
    }
    struct memcg_interval interval = {thread->start_ns, event->t_ns, thread->pid, thread->tid, kind, event->value, MEMCG_NONE};
    if (thread->member != MEMCG_MEMBER_NO)
        interval.cpu_wait_ns = memcg_delay_wait(trace, thread, event->t_ns);
    leave_interval(trace, thread);
    put_interval(trace, &interval, thread->member);
}

static void throttled(struct memcg_trace *trace, const struct memcg_traced *thread, const struct memcg_perf_event *event)
{
    uint64_t took = event->value > 0 ? (uint64_t)event->value * 1000 : 0; /* it is told of when it is over */
    uint64_t start = event->t_ns - took;
    if (thread->kind && start < thread->start_ns) /* it is counted in jiffies, and nests in what it seems to begin before */
        start = thread->start_ns < event->t_ns ? thread->start_ns : event->t_ns;
    const struct memcg_interval interval = {start,      event->t_ns, thread->pid, thread->tid, MEMCG_RECLAIM_THROTTLED,
                                            MEMCG_NONE, MEMCG_NONE};
    put_interval(trace, &interval, thread->member);
}

void memcg_trace_event(struct memcg_trace *trace, const struct memcg_perf_event *event)
{
    static const struct {
        uint8_t kind, end;
    } ROLE[MEMCG_TRACEPOINTS] = {
        [MEMCG_TRACE_MEMCG_BEGIN] = {MEMCG_RECLAIM_MEMCG, 0},
        [MEMCG_TRACE_MEMCG_END] = {MEMCG_RECLAIM_MEMCG, 1},
        [MEMCG_TRACE_DIRECT_BEGIN] = {MEMCG_RECLAIM_DIRECT, 0},
        [MEMCG_TRACE_DIRECT_END] = {MEMCG_RECLAIM_DIRECT, 1},
        [MEMCG_TRACE_COMPACTION_BEGIN] = {MEMCG_RECLAIM_COMPACTION, 0},
        [MEMCG_TRACE_COMPACTION_END] = {MEMCG_RECLAIM_COMPACTION, 1},
        [MEMCG_TRACE_THROTTLED] = {MEMCG_RECLAIM_THROTTLED, 0},
    };
    trace->events++;
    bool end = ROLE[event->tracepoint].end;
    if ((int32_t)event->tid <= 0) { /* outside our pid namespace, or at its very end: nothing pairs its begins and ends */
        trace->unattributed += end && trace->cgroup_id && event->cgroup_id == trace->cgroup_id;
        return;
    }
    if (end && !find(trace, event->tid))
        return; /* its begin is not known: it must not take another's place */
    struct memcg_traced *thread = meet(trace, event);
    if (event->tracepoint == MEMCG_TRACE_THROTTLED)
        throttled(trace, thread, event);
    else if (end)
        end_interval(trace, thread, event, ROLE[event->tracepoint].kind);
    else
        begin_interval(trace, thread, event->t_ns, ROLE[event->tracepoint].kind);
    if (thread->member == MEMCG_MEMBER_UNKNOWN || (thread->member == MEMCG_MEMBER_YES && wants_delay(trace, thread)))
        ask(trace, thread, true);
    if (thread->member == MEMCG_MEMBER_YES && event->t_ns > trace->own_ns)
        trace->own_ns = event->t_ns;
}

/* Makes rows of those whose thread is known by now, and keeps the others. */
static void settle(struct memcg_trace *trace)
{
    uint32_t kept = 0, pending = trace->pending;
    trace->pending = 0;
    for (uint32_t i = 0; i < pending; i++) {
        struct memcg_interval interval = trace->wait[i];
        struct memcg_traced *thread = find(trace, interval.tid);
        int member = thread ? thread->member : MEMCG_MEMBER_GONE;
        if (member == MEMCG_MEMBER_UNKNOWN)
            ask(trace, thread, true);
        if (member == MEMCG_MEMBER_UNKNOWN || member == MEMCG_MEMBER_ASKED)
            trace->wait[kept++] = interval;
        else
            put_interval(trace, &interval, member);
    }
    trace->pending = kept;
}

/* Those that are in an interval now: what their run_delay is at its beginning, more or less. */
static void watch_open(struct memcg_trace *trace)
{
    for (uint32_t i = 0; i < trace->open; i++) {
        struct memcg_traced *thread = &trace->thread[trace->in[i]];
        if (thread->member != MEMCG_MEMBER_YES)
            continue;
        if (thread->schedstat > 0 && thread->delay_t_ns < thread->start_ns)
            (void)memcg_delay_refresh(trace, thread, thread->start_ns);
        else if (wants_delay(trace, thread))
            ask(trace, thread, true);
    }
}

static void tell(const struct memcg_trace *trace, uint64_t until_ns, struct memcg_state *state)
{
    uint64_t oldest = 0, told = until_ns;
    for (uint32_t i = 0; i < trace->open; i++) {
        const struct memcg_traced *thread = &trace->thread[trace->in[i]];
        if (thread->member != MEMCG_MEMBER_NO && (oldest == 0 || thread->start_ns < oldest))
            oldest = thread->start_ns;
    }
    for (uint32_t i = 0; i < trace->pending; i++) {
        if (oldest == 0 || trace->wait[i].start_ns < oldest)
            oldest = trace->wait[i].start_ns;
        if (trace->wait[i].end_ns < told)
            told = trace->wait[i].end_ns;
    }
    store_relaxed(&state->trace_open_ns, oldest);
    store_relaxed(&state->trace_events, trace->events);
    store_relaxed(&state->trace_lost, trace->perf ? memcg_perf_lost(trace->perf) : 0);
    store_relaxed(&state->trace_unattributed, trace->unattributed);
    __atomic_store_n(&state->trace_ns, told, __ATOMIC_RELEASE); /* after the rows */
}

void memcg_trace_lost(struct memcg_trace *trace, uint64_t lost)
{
    trace->lost = lost;
    while (trace->open) {
        struct memcg_traced *thread = &trace->thread[trace->in[0]];
        trace->unattributed += thread->member == MEMCG_MEMBER_YES;
        leave_interval(trace, thread);
    }
}

static void drain(struct memcg_trace *trace, uint64_t now_ns, uint64_t until_ns)
{
    struct memcg_perf_event event;
    trace->drains++;
    trace->now_ns = now_ns;
    take_answers(trace);
    memcg_delay_spare(trace);
    if (trace->perf) {
        memcg_perf_begin(trace->perf);
        while (memcg_perf_next(trace->perf, until_ns, &event))
            memcg_trace_event(trace, &event);
        memcg_perf_end(trace->perf);
        if (memcg_perf_lost(trace->perf) != trace->lost)
            memcg_trace_lost(trace, memcg_perf_lost(trace->perf));
    }
    watch_open(trace);
    if (trace->pending)
        settle(trace);
}

void memcg_trace_drain(struct memcg_trace *trace, uint64_t now_ns, struct memcg_state *state)
{
    uint64_t until_ns = now_ns - MARGIN_NS;
    drain(trace, now_ns, until_ns);
    if (trace->perf)
        tell(trace, until_ns, state);
}

void memcg_trace_finish(struct memcg_trace *trace, const struct memcg_config *config, uint64_t now_ns,
                        struct memcg_state *state)
{
    if (!memcg_channel_is_open(&trace->channel))
        return;
    drain(trace, now_ns, UINT64_MAX);
    memcg_trace_answer(trace, config); /* the keeper has ended */
    drain(trace, now_ns, UINT64_MAX);
    for (uint32_t i = 0; i < trace->open; i++) {
        const struct memcg_traced *thread = &trace->thread[trace->in[i]];
        trace->unattributed += thread->member < MEMCG_MEMBER_NO;
        if (thread->member == MEMCG_MEMBER_YES)
            put_row(trace, &(struct memcg_interval){thread->start_ns, (uint64_t)MEMCG_NONE, thread->pid, thread->tid,
                                                    thread->kind, MEMCG_NONE, MEMCG_NONE});
    }
    trace->unattributed += trace->pending;
    trace->open = trace->pending = 0;
    if (trace->perf)
        tell(trace, now_ns, state);
}
