/* SPDX-License-Identifier: Apache-2.0 */
/* A reader's mapping of a ring: read-only, each column twice in a row. The writer maps the file on its own, so that an array may
 * outlive the sampler, and nothing that a reader does can reach the writer's pages. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ring.h"

static const size_t MOST_LAYOUT = 4u << 20; /* memcg_ring_create() makes none of half of it */

struct memcg_map {
    struct memcg_ring_header
        *layout; /* header, tables and info as they were when they were found good: the writer may be anybody */
    struct memcg_ring_header *header; /* the whole file once: what changes is read here */
    size_t bytes;
    void *columns; /* one reservation in which every column is mapped twice */
    size_t columns_bytes;
    const int64_t *column[];
};

static const struct memcg_channel_header *channel_headers(const struct memcg_ring_header *header)
{
    return (const void *)((const char *)header + header->channels_offset);
}

static const struct memcg_column_header *column_headers(const struct memcg_ring_header *header)
{
    return (const void *)((const char *)header + header->columns_offset);
}

/* Maps one column twice at `at`, which is inside a reservation. */
static int map_twice(int fd, char *at, size_t bytes, uint64_t offset)
{
    for (int i = 0; i < 2; i++)
        if (mmap(at + (size_t)i * bytes, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd, (off_t)offset) == MAP_FAILED)
            return -errno;
    return 0;
}

static int map_columns(int fd, struct memcg_map *map)
{
    const struct memcg_ring_header *header = map->layout;
    const struct memcg_channel_header *channel = channel_headers(header);
    for (uint32_t i = 0; i < header->channels; i++)
        map->columns_bytes += channel[i].columns * (size_t)channel[i].capacity * 16;
    void *reserved = mmap(NULL, map->columns_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) {
        map->columns_bytes = 0;
        return -errno;
    }
    map->columns = reserved;
    char *at = reserved;
    for (uint32_t i = 0; i < header->channels; i++) {
        size_t bytes = (size_t)channel[i].capacity * 8;
        for (uint32_t c = channel[i].first_column; c < channel[i].first_column + channel[i].columns; c++) {
            int rc = map_twice(fd, at, bytes, column_headers(header)[c].offset);
            if (rc != 0)
                return rc;
            map->column[c] = (const int64_t *)(void *)at;
            at += 2 * bytes;
        }
    }
    return 0;
}

static bool read_whole(int fd, void *data, size_t bytes)
{
    return pread(fd, data, bytes, 0) == (ssize_t)bytes;
}

/* Everything before the columns, in memory of our own. */
static int read_layout(int fd, uint64_t file_bytes, struct memcg_ring_header **ret_layout)
{
    struct memcg_ring_header header;
    if (!read_whole(fd, &header, sizeof header))
        return -EBADMSG;
    int rc = memcg_ring_validate_header(&header, file_bytes);
    if (rc == 0 && header.align_bytes % (uint64_t)sysconf(_SC_PAGESIZE))
        rc = -ENOTSUP; /* written where pages are smaller */
    if (rc != 0)
        return rc;
    size_t bytes = (size_t)(header.info_offset + header.info_bytes);
    if (bytes > MOST_LAYOUT)
        return -EBADMSG;
    struct memcg_ring_header *layout = malloc(bytes);
    if (!layout)
        return -ENOMEM;
    rc = read_whole(fd, layout, bytes) ? 0 : -EBADMSG;
    memcpy(layout, &header, sizeof header); /* which may have been changed since */
    if (rc == 0)
        rc = memcg_ring_validate(layout, file_bytes);
    if (rc != 0)
        free(layout);
    else
        *ret_layout = layout;
    return rc;
}

int memcg_map_open(int fd, struct memcg_map **ret_map)
{
    struct stat status;
    if (fstat(fd, &status) != 0)
        return -errno;
    struct memcg_ring_header *layout;
    int rc = read_layout(fd, (uint64_t)status.st_size, &layout);
    if (rc != 0)
        return rc;
    struct memcg_map *map = calloc(1, sizeof *map + layout->columns * sizeof map->column[0]);
    if (!map) {
        free(layout);
        return -ENOMEM;
    }
    map->layout = layout;
    map->bytes = (size_t)status.st_size;
    map->header = mmap(NULL, map->bytes, PROT_READ, MAP_SHARED, fd, 0);
    rc = map->header == MAP_FAILED ? -errno : map_columns(fd, map);
    if (rc != 0) {
        memcg_map_free(map);
        return rc;
    }
    *ret_map = map;
    return 0;
}

void memcg_map_free(struct memcg_map *map)
{
    if (!map)
        return;
    if (map->columns)
        munmap(map->columns, map->columns_bytes);
    if (map->header != MAP_FAILED)
        munmap(map->header, map->bytes);
    free(map->layout);
    free(map);
}

const struct memcg_ring_header *memcg_map_layout(const struct memcg_map *map)
{
    return map->layout;
}

const struct memcg_ring_header *memcg_map_header(const struct memcg_map *map)
{
    return map->header;
}

const int64_t *memcg_map_column(const struct memcg_map *map, uint32_t column)
{
    return column < map->layout->columns ? map->column[column] : NULL;
}

void memcg_map_forget(const struct memcg_map *map, uint32_t column, uint64_t first, uint64_t end)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const int64_t *values = memcg_map_column(map, column);
    if (!values || first >= end)
        return;
    uintptr_t begin = (uintptr_t)(values + first) & ~(page - 1), last = (uintptr_t)(values + end) & ~(page - 1);
    if (begin < last) /* the last page may hold rows that are still wanted */
        (void)madvise((void *)begin, last - begin, MADV_DONTNEED);
}

uint64_t memcg_map_head(const struct memcg_map *map, uint32_t channel)
{
    /* The fence orders the caller's reads of rows before this load, and the acquire orders it before those that follow: with the
     * fence in memcg_channel_publish() a reader who saw a byte of a newer row sees the head that says so. */
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    const char *channels = (const char *)map->header + map->layout->channels_offset;
    return __atomic_load_n(&((const struct memcg_channel_header *)(const void *)channels)[channel].head, __ATOMIC_ACQUIRE);
}
