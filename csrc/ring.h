/* SPDX-License-Identifier: Apache-2.0 */
/* The writer's side of a ring, and the words that both sides share. */
#ifndef MEMCG_RING_H
#define MEMCG_RING_H

#include <stdbool.h>

#include "memcg.h"

/* The mapping's words are plain integers, since cffi knows no _Atomic: the compiler's builtins make the accesses atomic. */
static inline uint64_t load_relaxed(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}
static inline void store_relaxed(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

/* 0, -EBADMSG (damaged), -EPROTO (another layout version or byte order). Everything a reader follows is inside the file. */
int memcg_ring_validate(const struct memcg_ring_header *header, uint64_t file_bytes);
/* The same of the header alone: then its tables are inside the file. */
int memcg_ring_validate_header(const struct memcg_ring_header *header, uint64_t file_bytes);

/* The writer's mapping: whole, once, writable, prefaulted, and locked where the limit allows. */
struct memcg_writer {
    struct memcg_ring_header *header;
    size_t bytes;
};
int memcg_writer_open(int fd, struct memcg_writer *ret_writer);
/* Neither prefaulted nor locked, for a process that writes now and then. */
int memcg_writer_map(int fd, struct memcg_writer *ret_writer);
void memcg_writer_close(struct memcg_writer *writer);

/* One channel as its writer sees it. `header` NULL = the ring has no such channel. */
struct memcg_channel {
    struct memcg_channel_header *header;
    uint64_t head;
    uint64_t slot; /* head % capacity, kept so that no tick divides */
    uint32_t index;
    uint32_t columns;
    int64_t *column[MEMCG_CHANNEL_COLUMNS];
};
int memcg_channel_bind(const struct memcg_writer *writer, const char *name, struct memcg_channel *ret_channel);
/* Position of a column in the channel, or -ENOENT. */
int memcg_channel_find(const struct memcg_writer *writer, const struct memcg_channel *channel, const char *column);

static inline bool memcg_channel_is_open(const struct memcg_channel *channel)
{
    return channel->header && load_relaxed(&channel->header->closed_ns) == 0;
}

/* Fetches the row that is written next, which is a page a column, while the kernel is being asked for what goes there. */
static inline void memcg_channel_prefetch(const struct memcg_channel *channel)
{
    for (uint32_t i = 0; i < channel->columns; i++)
        __builtin_prefetch(&channel->column[i][channel->slot], 1);
}

static inline void memcg_channel_put(struct memcg_channel *channel, int column, int64_t value)
{
    __atomic_store_n(&channel->column[column][channel->slot], value, __ATOMIC_RELAXED);
}

/* The row is whole: show it. Pairs with the acquire in memcg_map_head(). The fence keeps the stores of the *next* row from
 * overtaking the head, so that a reader who saw one of them also sees this head and drops the row that it is overwriting. */
static inline void memcg_channel_publish(struct memcg_channel *channel)
{
    channel->head++;
    if (++channel->slot == channel->header->capacity)
        channel->slot = 0;
    __atomic_store_n(&channel->header->head, channel->head, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

void memcg_channel_close(struct memcg_channel *channel, int error, uint64_t now_ns);

#endif
