/* SPDX-License-Identifier: Apache-2.0 */
/* From tracepoints to rows of `reclaim`: begins and ends are paired thread by thread, and rows made of those of the target.
 *
 * The tick thread does it, and so nothing here opens a file. What must be opened to tell whose a thread is, and for how long it was
 * kept from running, is asked of the keeper by post, and its intervals wait for the answer. */
#ifndef MEMCG_TRACE_H
#define MEMCG_TRACE_H

#include "perf.h"
#include "ring.h"

enum {
    MEMCG_TRACE_SETS = 64, /* × ways = threads that are known at once */
    MEMCG_TRACE_WAYS = 8,
    MEMCG_TRACE_PENDING = 256,
    MEMCG_TRACE_POST = 64,   /* letters under way, a power of two */
    MEMCG_TRACE_DELAYS = 64, /* threads whose schedstat is kept open */
    MEMCG_TRACE_COLUMNS = 7,
};

enum memcg_member {
    MEMCG_MEMBER_UNKNOWN,
    MEMCG_MEMBER_ASKED,
    MEMCG_MEMBER_NO,
    MEMCG_MEMBER_YES,
    MEMCG_MEMBER_GONE /* the thread ended before its group could be read */
};

/* tick → keeper: whose is it, and (schedstat) may its file be kept open? keeper → tick: the answer, or (kind HIGH) that it was
 * seen asleep. */
struct memcg_letter {
    uint64_t t_ns;
    uint32_t pid, tid;
    int32_t member; /* enum memcg_member */
    int32_t kind;
    int32_t schedstat; /* asked for: 1; answered: its descriptor, or -1: there is none to be had */
};
/* One writer, one reader. */
struct memcg_post {
    uint32_t head, tail;
    struct memcg_letter letter[MEMCG_TRACE_POST];
};

static inline bool memcg_post_has_room(const struct memcg_post *post)
{
    return __atomic_load_n(&post->head, __ATOMIC_RELAXED) - __atomic_load_n(&post->tail, __ATOMIC_ACQUIRE) < MEMCG_TRACE_POST;
}

static inline bool memcg_post_send(struct memcg_post *post, const struct memcg_letter *letter)
{
    uint32_t head = __atomic_load_n(&post->head, __ATOMIC_RELAXED);
    if (!memcg_post_has_room(post))
        return false;
    post->letter[head % MEMCG_TRACE_POST] = *letter;
    __atomic_store_n(&post->head, head + 1, __ATOMIC_RELEASE);
    return true;
}

static inline bool memcg_post_take(struct memcg_post *post, struct memcg_letter *ret_letter)
{
    uint32_t tail = __atomic_load_n(&post->tail, __ATOMIC_RELAXED);
    if (tail == __atomic_load_n(&post->head, __ATOMIC_ACQUIRE))
        return false;
    *ret_letter = post->letter[tail % MEMCG_TRACE_POST];
    __atomic_store_n(&post->tail, tail + 1, __ATOMIC_RELEASE);
    return true;
}

/* An interval that a thread spent, as a row has it. */
struct memcg_interval {
    uint64_t start_ns, end_ns;
    uint32_t pid, tid;
    int kind; /* enum memcg_reclaim */
    int64_t reclaimed_pages, cpu_wait_ns;
};

/* A thread that reclaims, or did. */
struct memcg_traced {
    uint32_t tid, pid;
    uint8_t member;    /* enum memcg_member */
    uint8_t before;    /* what that was before it was asked again */
    uint8_t kind;      /* of the interval that it is in; 0 = none */
    uint8_t asked;     /* the post has a letter about it */
    uint8_t recent;    /* its run_delay had been read shortly before */
    int32_t schedstat; /* a descriptor; 0 = not open, -1 = none to be had */
    uint32_t place;    /* in the list of those that are in an interval */
    uint64_t start_ns;
    uint64_t seen_ns;              /* its last event */
    uint64_t known_ns;             /* since when `member` is known; by then it may have moved, or the tid be another's */
    uint64_t delay_ns, delay_t_ns; /* its run_delay, and when that was read */
    uint64_t read_at;              /* … in which drain; 0 = never */
    uint64_t slack_ns;             /* by how much it had grown, less what intervals have been charged with */
    uint64_t slices;               /* how often it was given a CPU, and how often since the time before */
    uint64_t gained;
};

struct memcg_trace {
    struct memcg_perf *perf;
    struct memcg_channel channel;
    int column[MEMCG_TRACE_COLUMNS];
    uint64_t cgroup_id;
    uint64_t now_ns, drains, events, unattributed;
    uint64_t lost;   /* tracepoints, as of the last drain */
    uint64_t own_ns; /* the last event of a thread of the target */
    uint32_t open, pending, delays;
    bool hit;                                         /* a thread of the target has begun to reclaim since the last drain */
    bool asked;                                       /* the keeper has new post */
    uint16_t in[MEMCG_TRACE_SETS * MEMCG_TRACE_WAYS]; /* the threads that are in an interval now */
    struct memcg_traced thread[MEMCG_TRACE_SETS * MEMCG_TRACE_WAYS];
    struct memcg_interval wait[MEMCG_TRACE_PENDING]; /* over, but of whom? */
    struct memcg_post questions, answers;
};

/* Binds the channel, where the ring has one, and opens the tracepoints, where they may be. */
int memcg_trace_open(const struct memcg_config *config, const struct memcg_writer *writer, struct memcg_trace *ret_trace);
/* One event; they come in the order of their times. Beside memcg_trace_drain() for tests. */
void memcg_trace_event(struct memcg_trace *trace, const struct memcg_perf_event *event);
/* Takes all that has happened up to shortly before `now_ns`, and makes rows of it. */
void memcg_trace_drain(struct memcg_trace *trace, uint64_t now_ns, struct memcg_state *state);
/* Tracepoints were lost, `lost` in all: an end may have been among them, and so no interval is one any more. */
void memcg_trace_lost(struct memcg_trace *trace, uint64_t lost);
/* Takes all, and makes rows of the intervals that nobody will see the end of. The other threads have ended: files may be opened. */
void memcg_trace_finish(struct memcg_trace *trace, const struct memcg_config *config, uint64_t now_ns,
                        struct memcg_state *state);
void memcg_trace_close(struct memcg_trace *trace);

/* Closes a thread's schedstat. */
void memcg_delay_drop(struct memcg_trace *trace, struct memcg_traced *thread);
/* Where all descriptors are given away: takes one back from a thread that has long been silent, or has ended. */
void memcg_delay_spare(struct memcg_trace *trace);
/* Once a drain; what it has grown by since the last time (at first: since the thread began) is there to be accounted for. */
bool memcg_delay_refresh(struct memcg_trace *trace, struct memcg_traced *thread, uint64_t since_ns);
/* What of an interval that has just ended the thread waited for a CPU; MEMCG_NONE = nobody knows. */
int64_t memcg_delay_wait(struct memcg_trace *trace, struct memcg_traced *thread, uint64_t end_ns);

/* The keeper's: answers what the tick has asked. */
void memcg_trace_answer(struct memcg_trace *trace, const struct memcg_config *config);
/* … and looks for threads asleep at memory.high in a group, a descriptor of its directory, and below. */
void memcg_trace_look(struct memcg_trace *trace, int group, uint64_t now_ns);
/* Is that where a thread sleeps at memory.high? */
bool memcg_whose_sleeps(const char *wchan);
/* Is a thread in this group or below it, by what /proc/TID/cgroup says? `text` is taken apart. */
bool memcg_whose_is(char *text, int version, const char *group);

#endif
