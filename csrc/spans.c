/* SPDX-License-Identifier: Apache-2.0 */
/* Spans that outlive the process that marked them. A request ends its span here, so nothing waits: who finds the lock taken keeps the
 * row until its next one. The lock is robust: if its holder is killed, the kernel gives it to the next, and as rows are shown by the
 * head alone, what the dead one had begun is simply written over. */
#include "spans.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "ring.h"

enum {
    WAITING = 64,   /* rows; others hold the lock for some 100 ns */
    PATIENCE = 100, /* attempts where nothing can be done without the lock: a name that is new, the end */
    AT_START = 100000
};

struct memcg_spans {
    struct memcg_writer writer;
    struct memcg_channel spans, names;
    pthread_mutex_t *lock;
    size_t waiting;
    int64_t row[WAITING][MEMCG_SPAN_COLUMNS];
};

static bool take(struct memcg_spans *spans, int attempts)
{
    int rc = pthread_mutex_trylock(spans->lock);
    while (rc == EBUSY && --attempts > 0) {
        sched_yield();
        rc = pthread_mutex_trylock(spans->lock);
    }
    if (rc == EOWNERDEAD)
        rc = pthread_mutex_consistent(spans->lock);
    return rc == 0;
}

static void release(struct memcg_spans *spans)
{
    pthread_mutex_unlock(spans->lock);
}

/* With the lock: others have appended since. */
static void catch_up(struct memcg_channel *channel)
{
    channel->head = load_relaxed(&channel->header->head);
    channel->slot = channel->head % channel->header->capacity;
}

static void append(struct memcg_channel *channel, const int64_t *row)
{
    for (uint32_t i = 0; i < channel->columns; i++)
        memcg_channel_put(channel, (int)i, row[i]);
    memcg_channel_publish(channel);
}

static void append_span(struct memcg_channel *channel, int64_t *row)
{
    row[MEMCG_SPAN_REF] = row[MEMCG_SPAN_REF_BYTES] == MEMCG_REF_NONE ? -1 : (int64_t)channel->slot;
    append(channel, row);
}

/* Appends what waits. */
static bool flush(struct memcg_spans *spans, int attempts)
{
    if (!take(spans, attempts))
        return false;
    catch_up(&spans->spans);
    for (size_t i = 0; i < spans->waiting; i++)
        append_span(&spans->spans, spans->row[i]);
    spans->waiting = 0;
    release(spans);
    return true;
}

/* The text as it fits: whole characters of UTF-8. */
static void put_text(int64_t words[MEMCG_NAME_WORDS], const char *text, size_t bytes)
{
    size_t most = MEMCG_NAME_WORDS * sizeof *words;
    if (bytes > most)
        for (bytes = most; bytes > 0 && ((unsigned char)text[bytes] & 0xC0) == 0x80;)
            bytes--;
    memset(words, 0, most);
    memcpy(words, text, bytes);
}

static bool has_text(const struct memcg_channel *names, uint64_t row, const int64_t words[MEMCG_NAME_WORDS])
{
    for (int i = 0; i < MEMCG_NAME_WORDS; i++)
        if (names->column[i][row] != words[i])
            return false;
    return true;
}

static int find_name(struct memcg_spans *spans, const char *text, size_t bytes, int attempts)
{
    int64_t words[MEMCG_NAME_WORDS];
    struct memcg_channel *names = &spans->names;
    put_text(words, text, bytes);
    if (!take(spans, attempts))
        return -EAGAIN;
    catch_up(names);
    uint64_t row = 0;
    while (row < names->head && !has_text(names, row, words))
        row++;
    if (row == names->head && row < names->header->capacity - 1) /* the row at the head is never shown */
        append(names, words);
    else if (row == names->head)
        row = 0;
    release(spans);
    return (int)row;
}

int memcg_spans_name(struct memcg_spans *spans, const char *text, size_t bytes)
{
    return find_name(spans, text, bytes, PATIENCE);
}

void memcg_spans_put(struct memcg_spans *spans, const int64_t row[MEMCG_SPAN_COLUMNS])
{
    if (spans->waiting == WAITING && !flush(spans, PATIENCE))
        return; /* somebody was stopped with the lock: a row is lost, and no request waits */
    memcpy(spans->row[spans->waiting++], row, sizeof spans->row[0]);
    flush(spans, 1);
}

/* The lock is where the ring's header says, before the columns. */
static int find_lock(struct memcg_spans *spans)
{
    struct memcg_ring_header *header = spans->writer.header;
    uint64_t end = (uint64_t)((char *)spans->spans.column[0] - (char *)header);
    if (header->lock_offset < header->info_offset + header->info_bytes || header->lock_offset % 64 ||
        header->lock_offset + sizeof(pthread_mutex_t) > end)
        return -EBADMSG;
    spans->lock = (pthread_mutex_t *)(void *)((char *)header + header->lock_offset);
    return 0;
}

static int bind_channels(struct memcg_spans *spans)
{
    int rc = memcg_channel_bind(&spans->writer, "spans", &spans->spans);
    if (rc == 0)
        rc = memcg_channel_bind(&spans->writer, "names", &spans->names);
    if (rc == 0 && (spans->spans.columns != MEMCG_SPAN_COLUMNS || spans->names.columns != MEMCG_NAME_WORDS))
        rc = -EPROTO;
    return rc != 0 ? rc : find_lock(spans);
}

int memcg_spans_open(int ring_fd, struct memcg_spans **ret_spans)
{
    struct memcg_spans *spans = calloc(1, sizeof *spans);
    if (!spans)
        return -ENOMEM;
    int rc = memcg_writer_map(ring_fd, &spans->writer);
    if (rc == 0)
        rc = bind_channels(spans);
    if (rc == 0 && load_relaxed(&spans->names.header->head) == 0)
        rc = find_name(spans, "(other)", 7, AT_START); /* is row 0, whoever comes first */
    if (rc < 0) {
        memcg_spans_forget(spans);
        return rc;
    }
    *ret_spans = spans;
    return 0;
}

void memcg_spans_close(struct memcg_spans *spans)
{
    if (spans->waiting > 0)
        flush(spans, PATIENCE);
    memcg_spans_forget(spans);
}

void memcg_spans_forget(struct memcg_spans *spans)
{
    memcg_writer_close(&spans->writer);
    free(spans);
}
