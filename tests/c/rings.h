/* SPDX-License-Identifier: Apache-2.0 */

/* A small ring, and a look at everything that a reader of a ring may look at. */
#ifndef RINGS_H
#define RINGS_H

#include <sys/mman.h>
#include <unistd.h>

#include "harness.h"
#include "ring.h"

static const struct memcg_column_spec RINGS_USAGE[] = {{"t_ns", "ns"}, {"usage_bytes", "bytes"}, {"limit_hits", ""}};
static const struct memcg_column_spec RINGS_EVENTS[] = {{"t_ns", "ns"}, {"value", ""}};
static const struct memcg_channel_spec RINGS_CHANNELS[] = {
    {.name = "usage", .period_ns = 1000000, .rows = 1000, .columns = 3, .column = RINGS_USAGE},
    {.name = "events", .period_ns = 0, .rows = 10, .columns = 2, .column = RINGS_EVENTS},
};
enum { RINGS_COUNT = sizeof RINGS_CHANNELS / sizeof RINGS_CHANNELS[0] };
static const char RINGS_INFO[] = "{\"group\": \"/x\"}";

static inline uint32_t rings_page(void)
{
    return (uint32_t)sysconf(_SC_PAGESIZE);
}

static inline int rings_memfd(void)
{
    int fd = memfd_create("ring", MFD_CLOEXEC);
    CHECK(fd >= 0, "no memfd");
    return fd;
}

/* An anonymous file with the ring above. */
static inline int rings_file(uint32_t align_bytes)
{
    int fd = rings_memfd();
    int rc = memcg_ring_create(fd, RINGS_CHANNELS, RINGS_COUNT, RINGS_INFO, sizeof RINGS_INFO - 1, align_bytes, 1);
    CHECK(rc == 0, "the ring cannot be laid out: %d", rc);
    return fd;
}

static inline const struct memcg_channel_header *rings_channels(const struct memcg_map *map)
{
    const struct memcg_ring_header *header = memcg_map_header(map);
    return (const void *)((const char *)header + header->channels_offset);
}

static inline const struct memcg_column_header *rings_columns(const struct memcg_map *map)
{
    const struct memcg_ring_header *header = memcg_map_header(map);
    return (const void *)((const char *)header + header->columns_offset);
}

/* Reads every byte that a reader may follow a pointer to, so that whatever is not there ends the program. */
static inline uint64_t rings_read_all(const struct memcg_map *map)
{
    const struct memcg_ring_header *header = memcg_map_header(map);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < header->info_bytes; i++)
        sum += ((const unsigned char *)header + header->info_offset)[i];
    for (uint32_t i = 0; i < header->channels; i++) {
        const struct memcg_channel_header *channel = &rings_channels(map)[i];
        sum += strlen(channel->name) + memcg_map_head(map, i);
        for (uint32_t c = channel->first_column; c < channel->first_column + channel->columns; c++) {
            const struct memcg_column_header *column = &rings_columns(map)[c];
            const int64_t *values = memcg_map_column(map, c);
            sum += strlen(column->name) + strlen(column->unit) + strlen(column->dtype);
            CHECK(values, "column %u is not mapped", c);
            for (uint64_t row = 0; row < 2 * channel->capacity; row++)
                sum += (uint64_t)values[row];
        }
    }
    return sum;
}

#endif
