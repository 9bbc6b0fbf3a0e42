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

struct memcg_map {
    struct memcg_ring_header *header; /* the whole file once: its header and tables are read here */
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
    const struct memcg_ring_header *header = map->header;
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

int memcg_map_open(int fd, struct memcg_map **ret_map)
{
    struct stat status;
    if (fstat(fd, &status) != 0)
        return -errno;
    if ((uint64_t)status.st_size < sizeof(struct memcg_ring_header))
        return -EBADMSG;
    size_t bytes = (size_t)status.st_size;
    struct memcg_ring_header *header = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (header == MAP_FAILED)
        return -errno;
    int rc = memcg_ring_validate(header, bytes);
    if (rc == 0 && header->align_bytes % (uint64_t)sysconf(_SC_PAGESIZE))
        rc = -ENOTSUP; /* written where pages are smaller */
    struct memcg_map *map = rc == 0 ? calloc(1, sizeof *map + header->columns * sizeof map->column[0]) : NULL;
    if (!map) {
        munmap(header, bytes);
        return rc ? rc : -ENOMEM;
    }
    map->header = header;
    map->bytes = bytes;
    rc = map_columns(fd, map);
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
    munmap(map->header, map->bytes);
    free(map);
}

const struct memcg_ring_header *memcg_map_header(const struct memcg_map *map)
{
    return map->header;
}

const int64_t *memcg_map_column(const struct memcg_map *map, uint32_t column)
{
    return column < map->header->columns ? map->column[column] : NULL;
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
    return __atomic_load_n(&channel_headers(map->header)[channel].head, __ATOMIC_ACQUIRE);
}
