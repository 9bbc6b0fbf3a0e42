/* SPDX-License-Identifier: Apache-2.0 */
/* Spans in a ring: the channels `spans` and `names`, to which all processes that use the ring append, one at a time. */
#ifndef MEMCG_SPANS_H
#define MEMCG_SPANS_H

#include <stddef.h>
#include <stdint.h>

/* Columns of `spans` in a ring, as pymemcg/_spanring.py lays them out. */
enum {
    MEMCG_SPAN_START,
    MEMCG_SPAN_END,
    MEMCG_SPAN_TID,
    MEMCG_SPAN_NAME, /* row of `names`; 0 = "(other)", for which there was no room */
    MEMCG_SPAN_REF,  /* where the row stands in its columns; -1 = it has no reference */
    MEMCG_SPAN_ATTRIBUTION,
    MEMCG_SPAN_RAN_START,
    MEMCG_SPAN_RAN_END,
    MEMCG_SPAN_PID,
    MEMCG_SPAN_REF_BYTES, /* of the reference's text, of which the first MEMCG_REF_BYTES are kept; or one of the two below */
    MEMCG_SPAN_REF_TEXT,
    MEMCG_REF_WORDS = 5,
    MEMCG_REF_BYTES = 8 * MEMCG_REF_WORDS,
    MEMCG_SPAN_COLUMNS = MEMCG_SPAN_REF_TEXT + MEMCG_REF_WORDS,
    MEMCG_NAME_WORDS = 8, /* columns of `names`: a text of 64 bytes, filled up with NUL */
    MEMCG_NAME_NEW = -1,  /* for memcg_spans_put() alone */
    MEMCG_REF_NONE = -1,
    MEMCG_REF_INT = -2 /* it is a number, in the first word of the text */
};

struct memcg_spans;
/* Maps the ring; its file may be closed afterwards. -ENOENT = it has no such channels. */
int memcg_spans_open(int ring_fd, struct memcg_spans **ret_spans);
/* Writes what waits, and unmaps. */
void memcg_spans_close(struct memcg_spans *spans);
/* In a forked child: what waits is the parent's; its own rows go to the same ring. */
void memcg_spans_forked(struct memcg_spans *spans);
/* Appends a row, of which MEMCG_SPAN_REF is filled in here; where it says MEMCG_NAME_NEW, its name, too, of which the first 64 bytes
 * count. Never waits: where another process is at it, the row goes with the next one, and of more than 512 that wait the oldest are
 * lost, which the channel's `lost` counts. Returns the row of the name, or -EAGAIN if it waits. */
int memcg_spans_put(struct memcg_spans *spans, const int64_t row[MEMCG_SPAN_COLUMNS], const char *name, size_t bytes);

#endif
