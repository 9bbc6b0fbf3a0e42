/* SPDX-License-Identifier: Apache-2.0 */
/* A ring's rows in a file on a disk. The sampler's own threads write memory alone, since a row stored into a mapped file waits for
 * the disk; this thread may wait, and then the ring holds what it has not copied yet. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "sampler.h"

static const uint64_t PATIENCE =
    5; /* who waits for its turn, or failed, tries so many times less often: the ring holds seconds */

struct memcg_copy {
    int file_fd;
    uint64_t period_ns;
    const struct memcg_ring_header *header; /* the ring, mapped whole and read-only */
    size_t bytes;
    uint64_t head[MEMCG_CHANNELS], closed_ns[MEMCG_CHANNELS]; /* what the file has; taken from the file with its lock */
    pthread_t thread;
    uint32_t stop;
    int state; /* as memcg_copy_state() says it */
};

static const struct memcg_channel_header *channel_header(const struct memcg_copy *copy, uint32_t channel)
{
    const char *base = (const char *)copy->header;
    return (const struct memcg_channel_header *)(const void *)(base + copy->header->channels_offset) + channel;
}

/* Writes bytes of the ring, or a value for them, to their own place in the file. */
static int put(const struct memcg_copy *copy, const void *place, const void *value, size_t bytes)
{
    off_t at = (off_t)((const char *)place - (const char *)copy->header);
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pwrite(copy->file_fd, (const char *)value + done, bytes - done, at + (off_t)done);
        if (n < 0 && errno != EINTR)
            return -errno;
        done += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

static int put_word(const struct memcg_copy *copy, const uint64_t *place, uint64_t value)
{
    return put(copy, place, &value, sizeof value);
}

/* Rows [from, to) of one column, which are at most the capacity: one run, or two where they go around. */
static int put_rows(const struct memcg_copy *copy, const int64_t *column, uint64_t capacity, uint64_t from, uint64_t to)
{
    int rc = 0;
    while (from < to && rc == 0) {
        uint64_t slot = from % capacity, run = capacity - slot < to - from ? capacity - slot : to - from;
        rc = put(copy, column + slot, column + slot, run * sizeof *column);
        from += run;
    }
    return rc;
}

/* Up to a head that was read before: see copy_round(). */
static int copy_channel(struct memcg_copy *copy, uint32_t index, uint64_t head)
{
    const struct memcg_channel_header *channel = channel_header(copy, index);
    const struct memcg_column_header *columns = (const void *)((const char *)copy->header + copy->header->columns_offset);
    uint64_t from = copy->head[index];
    if (head > from) {
        if (head - from > channel->capacity)
            from = head - channel->capacity;
        int rc = put_word(copy, &channel->begun, head);
        for (uint32_t c = channel->first_column; c < channel->first_column + channel->columns && rc == 0; c++)
            rc = put_rows(copy, (const void *)((const char *)copy->header + columns[c].offset), channel->capacity, from, head);
        /* What the writer has reached meanwhile was perhaps copied half; the row at its head is in the making, too. */
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        uint64_t reached = __atomic_load_n(&channel->head, __ATOMIC_ACQUIRE) + 1;
        if (rc == 0 && reached > from + channel->capacity)
            rc = put_word(copy, &channel->begun, reached);
        if (rc == 0)
            rc = put_word(copy, &channel->lost, load_relaxed(&channel->lost));
        if (rc == 0)
            rc = put_word(copy, &channel->head, head);
        if (rc != 0)
            return rc;
        copy->head[index] = head;
    }
    uint64_t closed_ns = __atomic_load_n(&channel->closed_ns, __ATOMIC_ACQUIRE);
    if (closed_ns == copy->closed_ns[index])
        return 0;
    copy->closed_ns[index] = closed_ns; /* 0 again after a takeover that could open it */
    int rc = put_word(copy, &channel->closed_errno, load_relaxed(&channel->closed_errno));
    return rc != 0 ? rc : put_word(copy, &channel->closed_ns, closed_ns);
}

/* What a row speaks of is in a later channel (of a span, its name) and was written before it: so heads are read from the first channel
 * on, and rows are copied from the last one on, and no row is in the file before what it speaks of. */
static int copy_round(struct memcg_copy *copy)
{
    uint64_t head[MEMCG_CHANNELS];
    int rc = 0;
    for (uint32_t i = 0; i < copy->header->channels; i++)
        head[i] = __atomic_load_n(&channel_header(copy, i)->head, __ATOMIC_ACQUIRE);
    for (uint32_t i = copy->header->channels; i > 0 && rc == 0; i--)
        rc = copy_channel(copy, i - 1, head[i - 1]);
    struct memcg_state state; /* word by word: others write it */
    for (size_t i = 0; i < sizeof state / sizeof(uint64_t); i++)
        ((uint64_t *)&state)[i] = load_relaxed((const uint64_t *)&copy->header->state + i);
    return rc != 0 ? rc : put(copy, &copy->header->state, &state, sizeof state);
}

/* With the lock comes what the one before us has copied. */
static int take_over(struct memcg_copy *copy)
{
    struct memcg_channel_header channel;
    for (uint32_t i = 0; i < copy->header->channels; i++) {
        off_t at = (off_t)(copy->header->channels_offset + i * sizeof channel);
        ssize_t n = pread(copy->file_fd, &channel, sizeof channel, at);
        if (n != (ssize_t)sizeof channel)
            return n < 0 ? -errno : -EBADMSG;
        copy->head[i] = channel.head;
        copy->closed_ns[i] = channel.closed_ns;
    }
    return 0;
}

/* What there is to do, if it is our turn. After an error it is everybody's again: what keeps us from writing may not keep others. */
static void turn(struct memcg_copy *copy)
{
    int rc = 0;
    if (memcg_copy_state(copy) != 1) {
        if (flock(copy->file_fd, LOCK_EX | LOCK_NB) != 0)
            return;
        rc = take_over(copy);
    }
    if (rc == 0)
        rc = copy_round(copy);
    if (rc != 0)
        flock(copy->file_fd, LOCK_UN);
    __atomic_store_n(&copy->state, rc == 0 ? 1 : rc, __ATOMIC_RELAXED);
}

static void *run(void *argument)
{
    struct memcg_copy *copy = argument;
    prctl(PR_SET_NAME, "pymemcg-copy");
    uint64_t now = now_ns(), deadline = now;
    do {
        turn(copy);
        uint64_t period = memcg_copy_state(copy) != 1 ? copy->period_ns * PATIENCE : copy->period_ns;
        now = now_ns();
        deadline = deadline + period > now ? deadline + period : now + period;
    } while (!memcg_thread_wait(&copy->stop, now, deadline));
    return NULL;
}

static void free_copy(struct memcg_copy *copy)
{
    munmap((void *)(uintptr_t)copy->header, copy->bytes);
    free(copy);
}

int memcg_copy_start(int ring_fd, int file_fd, uint64_t period_ns, struct memcg_copy **ret_copy)
{
    struct stat ring, file;
    if (fstat(ring_fd, &ring) != 0 || fstat(file_fd, &file) != 0)
        return -errno;
    if (ring.st_size != file.st_size || (size_t)ring.st_size < sizeof(struct memcg_ring_header))
        return -EBADMSG;
    struct memcg_copy *copy = calloc(1, sizeof *copy);
    if (!copy)
        return -ENOMEM;
    copy->file_fd = file_fd;
    copy->period_ns = period_ns;
    copy->bytes = (size_t)ring.st_size;
    void *mapped = mmap(NULL, copy->bytes, PROT_READ, MAP_SHARED, ring_fd, 0);
    int rc = mapped == MAP_FAILED ? -errno : memcg_ring_validate(mapped, copy->bytes);
    if (mapped == MAP_FAILED) {
        free(copy);
        return rc;
    }
    copy->header = mapped;
    if (rc == 0)
        rc = memcg_thread_start(&copy->thread, run, copy);
    if (rc != 0) {
        free_copy(copy);
        return rc;
    }
    *ret_copy = copy;
    return 0;
}

void memcg_copy_stop(struct memcg_copy *copy)
{
    memcg_thread_end(&copy->stop);
    pthread_join(copy->thread, NULL);
    turn(copy);
    free_copy(copy);
}

void memcg_copy_forget(struct memcg_copy *copy)
{
    free_copy(copy);
}

int memcg_copy_state(const struct memcg_copy *copy)
{
    return __atomic_load_n(&copy->state, __ATOMIC_RELAXED);
}
