/* SPDX-License-Identifier: Apache-2.0 */
/* Spans that outlive the process that marked them. A request ends its span here, so nothing waits: who finds the lock taken keeps the
 * row until its next one. The lock is robust: if its holder is killed, the kernel gives it to the next, and as rows are shown by the
 * head alone, what the dead one had begun is simply written over. */
#include "spans.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "ring.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

/* Rows. Others hold the lock for some 100 ns; who loses its processor with it, for a slice of some ms: spans of 0.1 ms fit into that. */
enum { WAITING = 512 };

struct waiting {
    int64_t row[MEMCG_SPAN_COLUMNS];
    int64_t name[MEMCG_NAME_WORDS]; /* if the row says MEMCG_NAME_NEW */
};

struct memcg_spans {
    struct memcg_writer writer;
    struct memcg_channel spans, names;
    pthread_mutex_t *lock;
    size_t first, count; /* of the queue, which goes around */
    uint64_t lost;       /* since there was no room in it; the ring does not know yet */
    struct waiting queue[WAITING];
};

static bool take(struct memcg_spans *spans)
{
    int rc = pthread_mutex_trylock(spans->lock);
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

/* With the lock. The row of `names` with this text, which is made if there is room; 0 = "(other)" otherwise. */
static int64_t find_name(struct memcg_channel *names, const int64_t words[MEMCG_NAME_WORDS])
{
    uint64_t row = 0;
    while (row < names->head && !has_text(names, row, words))
        row++;
    if (row < names->head)
        return (int64_t)row;
    if (row >= names->header->capacity - 1) /* the row at the head is never shown */
        return 0;
    append(names, words);
    return (int64_t)row;
}

/* Appends what waits. False = others are at it. */
static bool flush(struct memcg_spans *spans)
{
    struct memcg_channel *channel = &spans->spans, *names = &spans->names;
    if (!take(spans))
        return false;
    catch_up(channel);
    catch_up(names);
    if (names->head == 0) {
        int64_t other[MEMCG_NAME_WORDS];
        put_text(other, "(other)", 7);
        append(names, other);
    }
    for (; spans->count > 0; spans->count--, spans->first = (spans->first + 1) % WAITING) {
        struct waiting *next = &spans->queue[spans->first];
        if (next->row[MEMCG_SPAN_NAME] == MEMCG_NAME_NEW)
            next->row[MEMCG_SPAN_NAME] = find_name(names, next->name);
        next->row[MEMCG_SPAN_REF] = next->row[MEMCG_SPAN_REF_BYTES] == MEMCG_REF_NONE ? -1 : (int64_t)channel->slot;
        append(channel, next->row);
    }
    store_relaxed(&channel->header->lost, load_relaxed(&channel->header->lost) + spans->lost);
    spans->lost = 0;
    release(spans);
    return true;
}

int memcg_spans_put(struct memcg_spans *spans, const int64_t row[MEMCG_SPAN_COLUMNS], const char *name, size_t bytes)
{
    if (spans->count == WAITING) { /* somebody was stopped with the lock: the oldest is lost, and no request waits */
        spans->first = (spans->first + 1) % WAITING;
        spans->count--;
        spans->lost++;
    }
    struct waiting *last = &spans->queue[(spans->first + spans->count) % WAITING];
    memcpy(last->row, row, sizeof last->row);
    if (row[MEMCG_SPAN_NAME] == MEMCG_NAME_NEW)
        put_text(last->name, name, bytes);
    spans->count++;
    return flush(spans) ? (int)last->row[MEMCG_SPAN_NAME] : -EAGAIN;
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

/* Of what other channels have, nothing can be written by this mapping; and no request has to wait for a page of its own. */
static void confine(struct memcg_spans *spans)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = spans->writer.bytes;
    char *base = (char *)spans->writer.header, *lock_end = (char *)spans->lock + sizeof(pthread_mutex_t);
    char *begin = base + ((size_t)(lock_end - base) + page - 1) / page * page;
    char *first = (char *)spans->spans.column[0], *names = (char *)spans->names.column[0];
    first = names < first ? names : first;
    if (first > begin)
        (void)mprotect(begin, (size_t)(first - begin), PROT_READ);
    (void)madvise(first, bytes - (size_t)(first - base), MADV_POPULATE_WRITE);
}

int memcg_spans_open(int ring_fd, struct memcg_spans **ret_spans)
{
    struct memcg_spans *spans = calloc(1, sizeof *spans);
    if (!spans)
        return -ENOMEM;
    int rc = memcg_writer_map(ring_fd, &spans->writer);
    if (rc == 0)
        rc = bind_channels(spans);
    if (rc < 0) {
        memcg_writer_close(&spans->writer);
        free(spans);
        return rc;
    }
    confine(spans);
    *ret_spans = spans;
    return 0;
}

void memcg_spans_forked(struct memcg_spans *spans)
{
    spans->count = 0;
    spans->lost = 0;
}

void memcg_spans_close(struct memcg_spans *spans)
{
    for (int i = 0; i < 100 && spans->count > 0 && !flush(spans); i++)
        nanosleep(&(struct timespec){.tv_nsec = 10000}, NULL);
    memcg_writer_close(&spans->writer);
    free(spans);
}
