/* SPDX-License-Identifier: Apache-2.0 */
/* Columns in shared memory: laying a ring out, checking it, writing it. Reading is map.c. */
#include "ring.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char MAGIC[8] = "PYMEMCG";
static const char DTYPE[8] = {__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? '<' : '>', 'i', '8'};

enum { LOCK_BYTES = 64 }; /* a cache line of its own */
_Static_assert(sizeof(pthread_mutex_t) <= LOCK_BYTES, "the lock has room");

static uint64_t round_up(uint64_t value, uint64_t to)
{
    return (value + to - 1) / to * to;
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Copies a name into a field, NUL and all. */
static int put_text(char *field, size_t size, const char *text)
{
    size_t length = strlen(text);
    if (length == 0 || length >= size)
        return -ENAMETOOLONG;
    memcpy(field, text, length);
    return 0;
}

static void read_boot_id(char boot_id[40])
{
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t n = read(fd, boot_id, 36);
    if (n != 36)
        memset(boot_id, 0, 40);
    close(fd);
}

/* Fills header and tables, which stand before the columns. */
static int lay_out(struct memcg_ring_header *header, const struct memcg_channel_spec *specs, const char *info)
{
    struct memcg_channel_header *channel = (void *)((char *)header + header->channels_offset);
    struct memcg_column_header *column = (void *)((char *)header + header->columns_offset);
    uint64_t offset = round_up(header->lock_offset + LOCK_BYTES, header->align_bytes);
    uint32_t next = 0;
    int rc = 0;
    for (uint32_t i = 0; i < header->channels && rc == 0; i++, channel++) {
        rc = put_text(channel->name, sizeof channel->name, specs[i].name);
        channel->capacity = round_up(specs[i].rows * 8, header->align_bytes) / 8;
        channel->period_ns = specs[i].period_ns;
        channel->first_column = next;
        channel->columns = (uint32_t)specs[i].columns;
        for (size_t c = 0; c < specs[i].columns && rc == 0; c++, next++, column++) {
            rc = put_text(column->name, sizeof column->name, specs[i].column[c].name);
            if (rc == 0 && specs[i].column[c].unit[0])
                rc = put_text(column->unit, sizeof column->unit, specs[i].column[c].unit);
            memcpy(column->dtype, DTYPE, sizeof DTYPE);
            column->offset = offset;
            offset += channel->capacity * 8;
        }
    }
    if (header->info_bytes)
        memcpy((char *)header + header->info_offset, info, header->info_bytes);
    return rc;
}

/* Between processes, of which each may be killed while it holds it: the kernel tells the next. */
static int make_lock(pthread_mutex_t *lock)
{
    pthread_mutexattr_t attributes;
    int rc = pthread_mutexattr_init(&attributes);
    if (rc != 0)
        return -rc;
    rc = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    if (rc == 0)
        rc = pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    if (rc == 0)
        rc = pthread_mutex_init(lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return -rc;
}

int memcg_ring_create(int fd, const struct memcg_channel_spec *channels, size_t count, const char *info, size_t info_bytes,
                      uint32_t align_bytes, int reserve)
{
    uint64_t columns = 0, data = 0;
    if (align_bytes < (uint64_t)sysconf(_SC_PAGESIZE) || (align_bytes & (align_bytes - 1)))
        return -EINVAL;
    if (count > MEMCG_CHANNELS)
        return -E2BIG;
    for (size_t i = 0; i < count; i++) {
        if (channels[i].columns > MEMCG_CHANNEL_COLUMNS)
            return -E2BIG;
        if (channels[i].columns == 0 || channels[i].rows == 0 || channels[i].rows > UINT32_MAX)
            return -EINVAL;
        columns += channels[i].columns;
        data += channels[i].columns * round_up(channels[i].rows * 8, align_bytes);
    }
    if (count == 0 || columns > UINT32_MAX || info_bytes > 1u << 20)
        return -EINVAL;

    uint64_t channels_offset = round_up(sizeof(struct memcg_ring_header), 64);
    uint64_t columns_offset = channels_offset + count * sizeof(struct memcg_channel_header);
    uint64_t info_offset = columns_offset + columns * sizeof(struct memcg_column_header);
    uint64_t lock_offset = round_up(info_offset + info_bytes, LOCK_BYTES);
    uint64_t file_bytes = round_up(lock_offset + LOCK_BYTES, align_bytes) + data;
    if (ftruncate(fd, (off_t)file_bytes) != 0)
        return -errno;
    int rc = reserve ? -posix_fallocate(fd, 0, (off_t)file_bytes) : 0;
    if (rc != 0)
        return rc;

    size_t head_bytes = (size_t)(file_bytes - data);
    struct memcg_ring_header *header = calloc(1, head_bytes);
    if (!header)
        return -ENOMEM;
    header->byte_order = MEMCG_RING_BYTE_ORDER;
    header->version = MEMCG_RING_VERSION;
    header->file_bytes = file_bytes;
    header->align_bytes = align_bytes;
    header->channels = (uint32_t)count;
    header->columns = (uint32_t)columns;
    header->info_bytes = (uint32_t)info_bytes;
    header->channels_offset = channels_offset;
    header->columns_offset = columns_offset;
    header->info_offset = info_offset;
    header->lock_offset = lock_offset;
    header->created_ns = clock_ns(CLOCK_MONOTONIC);
    header->created_realtime_ns = clock_ns(CLOCK_REALTIME);
    read_boot_id(header->boot_id);
    rc = lay_out(header, channels, info);
    if (rc == 0)
        rc = make_lock((pthread_mutex_t *)(void *)((char *)header + lock_offset));
    /* The magic goes in last: a file that a crash left half laid out is no ring. */
    if (rc == 0 && pwrite(fd, header, head_bytes, 0) != (ssize_t)head_bytes)
        rc = errno ? -errno : -EIO;
    if (rc == 0 && pwrite(fd, MAGIC, sizeof MAGIC, 0) != (ssize_t)sizeof MAGIC)
        rc = errno ? -errno : -EIO;
    free(header);
    return rc;
}

static bool is_text(const char *field, size_t size)
{
    return field[0] && memchr(field, 0, size);
}

static bool validate_column(const struct memcg_ring_header *header, const struct memcg_column_header *column, uint64_t bytes,
                            uint64_t begin)
{
    return is_text(column->name, sizeof column->name) && memchr(column->unit, 0, sizeof column->unit) &&
           memcmp(column->dtype, DTYPE, sizeof DTYPE) == 0 && column->offset % header->align_bytes == 0 &&
           column->offset >= begin && column->offset <= header->file_bytes && bytes <= header->file_bytes - column->offset;
}

/* Every column stands behind the one before it, as it was laid out: none over the tables, no two in one place. */
static int validate_channels(const struct memcg_ring_header *header, uint64_t begin)
{
    const struct memcg_channel_header *channel = (const void *)((const char *)header + header->channels_offset);
    const struct memcg_column_header *column = (const void *)((const char *)header + header->columns_offset);
    uint32_t first = 0;
    for (uint32_t i = 0; i < header->channels; i++, channel++) {
        if (!is_text(channel->name, sizeof channel->name) || channel->capacity == 0 ||
            channel->capacity > header->file_bytes / 8 || channel->capacity * 8 % header->align_bytes ||
            channel->columns == 0 || channel->columns > MEMCG_CHANNEL_COLUMNS || channel->first_column != first ||
            channel->columns > header->columns - first)
            return -EBADMSG;
        for (uint32_t c = 0; c < channel->columns; c++, column++) {
            if (!validate_column(header, column, channel->capacity * 8, begin))
                return -EBADMSG;
            begin = column->offset + channel->capacity * 8;
        }
        first += channel->columns;
    }
    return first == header->columns ? 0 : -EBADMSG;
}

/* Moves *end behind a table that stands there or later, and inside the file. */
static bool table_fits(uint64_t *end, uint64_t offset, uint64_t bytes, uint64_t align, uint64_t file_bytes)
{
    if (offset < *end || offset % align || offset > file_bytes || bytes > file_bytes - offset)
        return false;
    *end = offset + bytes;
    return true;
}

int memcg_ring_validate_header(const struct memcg_ring_header *header, uint64_t file_bytes)
{
    if (file_bytes < sizeof *header || memcmp(header->magic, MAGIC, sizeof MAGIC) != 0)
        return -EBADMSG;
    if (header->byte_order != MEMCG_RING_BYTE_ORDER || header->version != MEMCG_RING_VERSION)
        return -EPROTO;
    uint64_t align = header->align_bytes, end = sizeof *header;
    if (header->file_bytes != file_bytes || align < 4096 || (align & (align - 1)) || header->channels == 0 ||
        header->channels > MEMCG_CHANNELS ||
        !table_fits(&end, header->channels_offset, header->channels * sizeof(struct memcg_channel_header), 64, file_bytes) ||
        !table_fits(&end, header->columns_offset, header->columns * sizeof(struct memcg_column_header), 8, file_bytes) ||
        !table_fits(&end, header->info_offset, header->info_bytes, 1, file_bytes))
        return -EBADMSG;
    return 0;
}

int memcg_ring_validate(const struct memcg_ring_header *header, uint64_t file_bytes)
{
    int rc = memcg_ring_validate_header(header, file_bytes);
    return rc != 0 ? rc : validate_channels(header, header->info_offset + header->info_bytes);
}

static int writer_map(int fd, int flags, struct memcg_writer *ret_writer)
{
    struct stat status;
    if (fstat(fd, &status) != 0)
        return -errno;
    if ((uint64_t)status.st_size < sizeof(struct memcg_ring_header))
        return -EBADMSG;
    size_t bytes = (size_t)status.st_size;
    struct memcg_ring_header *header = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, 0);
    if (header == MAP_FAILED)
        return -errno;
    int rc = memcg_ring_validate(header, bytes);
    if (rc != 0) {
        munmap(header, bytes);
        return rc;
    }
    *ret_writer = (struct memcg_writer){.header = header, .bytes = bytes};
    return 0;
}

int memcg_writer_map(int fd, struct memcg_writer *ret_writer)
{
    return writer_map(fd, 0, ret_writer);
}

int memcg_writer_open(int fd, struct memcg_writer *ret_writer)
{
    int rc = writer_map(fd, MAP_POPULATE, ret_writer);
    if (rc == 0) {
        size_t bytes = ret_writer->bytes;
        store_relaxed(&ret_writer->header->state.locked_bytes, mlock(ret_writer->header, bytes) == 0 ? bytes : 0);
    }
    return rc;
}

void memcg_writer_close(struct memcg_writer *writer)
{
    if (writer->header)
        munmap(writer->header, writer->bytes);
    *writer = (struct memcg_writer){0};
}

int memcg_channel_bind(const struct memcg_writer *writer, const char *name, struct memcg_channel *ret_channel)
{
    struct memcg_ring_header *header = writer->header;
    struct memcg_channel_header *channels = (void *)((char *)header + header->channels_offset);
    const struct memcg_column_header *columns = (const void *)((const char *)header + header->columns_offset);
    for (uint32_t i = 0; i < header->channels; i++) {
        if (strcmp(channels[i].name, name) != 0)
            continue;
        ret_channel->header = &channels[i];
        ret_channel->index = i;
        ret_channel->columns = channels[i].columns;
        ret_channel->head = load_relaxed(&channels[i].head);
        ret_channel->slot = ret_channel->head % channels[i].capacity;
        for (uint32_t c = 0; c < channels[i].columns; c++)
            ret_channel->column[c] = (void *)((char *)header + columns[channels[i].first_column + c].offset);
        return 0;
    }
    return -ENOENT;
}

int memcg_channel_find(const struct memcg_writer *writer, const struct memcg_channel *channel, const char *column)
{
    const struct memcg_column_header *columns = (const void *)((const char *)writer->header + writer->header->columns_offset);
    for (uint32_t c = 0; c < channel->columns; c++)
        if (strcmp(columns[channel->header->first_column + c].name, column) == 0)
            return (int)c;
    return -ENOENT;
}

void memcg_channel_close(struct memcg_channel *channel, int error, uint64_t now_ns)
{
    store_relaxed(&channel->header->closed_errno, (uint64_t)error);
    __atomic_store_n(&channel->header->closed_ns, now_ns, __ATOMIC_RELEASE);
}
