/* SPDX-License-Identifier: Apache-2.0 */
/* A record, as perf_event_open(2) with the attributes below lays it out:
 *
 *   u32 type = PERF_RECORD_SAMPLE (9) | u16 misc | u16 size | u32 pid, tid | u64 time | u32 raw size | raw | u64 cgroup
 *
 * (before 5.7 without the cgroup, which is in cgroup2 unless perf_event is mounted on v1).
 * The raw part is the tracepoint's own, whose first u16 is its id: offset 8 of mm_vmscan_{memcg,direct}_reclaim_end is
 * nr_reclaimed (unsigned long), offset 16 of mm_vmscan_throttled is usec_delayed (int). A record of type PERF_RECORD_LOST (2) has
 * u64 id, lost instead. */
#include "perf.h"

#include <errno.h>
#include <linux/perf_event.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* A CPU's ring: some 4,000 events, which is what 20 ms of the fastest reclaim that was seen fire. The kernel's own memory: it is not
 * charged to any group. A power of two. */
enum { RING_BYTES = 256 * 1024, RECORD_BYTES = 256 };

struct cpu_ring {
    struct perf_event_mmap_page *page;
    const char *data;
    uint64_t head, tail;           /* of what is being taken */
    struct memcg_perf_event event; /* the next one, if `ready` */
    bool ready;
    int fd[MEMCG_TRACEPOINTS];
};

struct memcg_perf {
    uint64_t id[MEMCG_TRACEPOINTS];
    uint64_t lost;
    pid_t owner;
    uint32_t rings;
    uint32_t current, limit_ring; /* taken from `current` as long as no other ring has an older event */
    struct cpu_ring ring[];
};

static uint64_t u64_at(const char *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint32_t u32_at(const char *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static int find_tracepoint(const uint64_t *id, uint64_t wanted)
{
    for (int i = 0; i < MEMCG_TRACEPOINTS; i++)
        if (id[i] == wanted)
            return i;
    return -1;
}

static int64_t value_of(int tracepoint, const char *raw, uint32_t bytes)
{
    if ((tracepoint == MEMCG_TRACE_MEMCG_END || tracepoint == MEMCG_TRACE_DIRECT_END) && bytes >= 8 + sizeof(unsigned long)) {
        unsigned long pages;
        memcpy(&pages, raw + 8, sizeof pages);
        return (int64_t)pages;
    }
    if (tracepoint == MEMCG_TRACE_THROTTLED && bytes >= 20)
        return (int64_t)(int32_t)u32_at(raw + 16);
    return MEMCG_NONE;
}

int memcg_perf_parse(const void *record, size_t bytes, const uint64_t id[MEMCG_TRACEPOINTS], struct memcg_perf_event *ret_event,
                     uint64_t *ret_lost)
{
    enum { HEADER = 8, TID = HEADER, TIME = TID + 8, RAW_SIZE = TIME + 8, RAW = RAW_SIZE + 4 };
    const char *at = record;
    if (bytes < HEADER)
        return 0;
    uint32_t type = u32_at(at);
    if (type == PERF_RECORD_LOST && bytes >= HEADER + 16)
        *ret_lost += u64_at(at + HEADER + 8);
    if (type != PERF_RECORD_SAMPLE || bytes < RAW + 2)
        return 0;
    uint32_t raw = u32_at(at + RAW_SIZE);
    if (raw < 2 || raw > bytes - RAW)
        return 0;
    uint16_t kind;
    memcpy(&kind, at + RAW, sizeof kind);
    int tracepoint = kind ? find_tracepoint(id, kind) : -1;
    if (tracepoint < 0)
        return 0;
    *ret_event = (struct memcg_perf_event){.t_ns = u64_at(at + TIME),
                                           .cgroup_id = bytes - RAW - raw >= 8 ? u64_at(at + RAW + raw) : 0,
                                           .pid = u32_at(at + TID),
                                           .tid = u32_at(at + TID + 4),
                                           .tracepoint = tracepoint,
                                           .value = value_of(tracepoint, at + RAW, raw)};
    return 1;
}

static int open_event(uint64_t id, int cpu)
{
    struct perf_event_attr attributes = {
        .type = PERF_TYPE_TRACEPOINT,
        .size = sizeof attributes,
        .config = id,
        .sample_period = 1,
        .sample_type = PERF_SAMPLE_TID | PERF_SAMPLE_TIME | PERF_SAMPLE_RAW | PERF_SAMPLE_CGROUP,
        .use_clockid = 1,
        .clockid = CLOCK_MONOTONIC,
        .watermark = 1, /* nobody sleeps on it: do not wake anybody at every event */
        .wakeup_watermark = RING_BYTES,
    };
    /* Not exclude_kernel, with which it opens without any privilege, and then sees nothing for ever. */
    int fd = (int)syscall(SYS_perf_event_open, &attributes, -1, cpu, -1, PERF_FLAG_FD_CLOEXEC);
    if (fd < 0 && errno == EINVAL) { /* before 5.7 */
        attributes.sample_type &= ~(uint64_t)PERF_SAMPLE_CGROUP;
        fd = (int)syscall(SYS_perf_event_open, &attributes, -1, cpu, -1, PERF_FLAG_FD_CLOEXEC);
    }
    return fd < 0 ? -errno : fd;
}

static int open_ring(const uint64_t *id, int cpu, struct cpu_ring *ring)
{
    for (int i = 0; i < MEMCG_TRACEPOINTS; i++)
        ring->fd[i] = -1;
    for (int i = 0; i < MEMCG_TRACEPOINTS; i++) {
        if (id[i] == 0)
            continue;
        int fd = open_event(id[i], cpu);
        if (fd < 0)
            return fd;
        ring->fd[i] = fd;
        if (ring->page) {
            if (ioctl(fd, PERF_EVENT_IOC_SET_OUTPUT, ring->fd[0]) != 0)
                return -errno;
            continue;
        }
        size_t page = (size_t)sysconf(_SC_PAGESIZE);
        void *mapped = mmap(NULL, page + RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (mapped == MAP_FAILED)
            return -errno;
        ring->page = mapped;
        ring->data = (const char *)mapped + page;
        for (size_t k = 0; k < RING_BYTES; k += page)
            (void)*(const volatile char *)(ring->data + k); /* MAP_POPULATE does not reach it */
        ring->page->data_tail = 0;
    }
    return 0;
}

int memcg_trace_probe(const uint64_t id[MEMCG_TRACEPOINTS])
{
    int fd = id[0] ? open_event(id[0], 0) : -ENOENT;
    if (fd < 0)
        return fd;
    close(fd);
    return 0;
}

int memcg_perf_open(const uint64_t id[MEMCG_TRACEPOINTS], struct memcg_perf **ret_perf)
{
    long cpus = sysconf(_SC_NPROCESSORS_CONF);
    struct rlimit files;
    /* The service around us needs descriptors, too: its accept() would fail first. */
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && (rlim_t)cpus * MEMCG_TRACEPOINTS > files.rlim_cur / 4)
        return -EMFILE;
    struct memcg_perf *perf = calloc(1, sizeof *perf + (size_t)cpus * sizeof perf->ring[0]);
    if (!perf)
        return -ENOMEM;
    memcpy(perf->id, id, sizeof perf->id);
    perf->owner = getpid();
    int rc = 0;
    for (int cpu = 0; cpu < (int)cpus && rc == 0; cpu++) {
        rc = open_ring(id, cpu, &perf->ring[perf->rings]);
        if (rc == -ENODEV && !perf->ring[perf->rings].page)
            rc = 0; /* that CPU is off */
        else
            perf->rings++; /* also a half-opened one: it is to be closed */
    }
    if (rc == 0 && perf->rings == 0)
        rc = -ENODEV;
    if (rc != 0) {
        memcg_perf_close(perf);
        return rc;
    }
    *ret_perf = perf;
    return 0;
}

void memcg_perf_close(struct memcg_perf *perf)
{
    if (!perf)
        return;
    for (uint32_t r = 0; r < perf->rings; r++) {
        struct cpu_ring *ring = &perf->ring[r];
        if (ring->page && perf->owner == getpid()) /* a fork does not copy it, and something else may lie there by now */
            munmap(ring->page, (size_t)sysconf(_SC_PAGESIZE) + RING_BYTES);
        for (int i = 0; i < MEMCG_TRACEPOINTS; i++)
            if (ring->fd[i] >= 0)
                close(ring->fd[i]);
    }
    free(perf);
}

/* Parses up to the next event of ours. A record that runs over the ring's end is put together first. */
static void advance(struct memcg_perf *perf, struct cpu_ring *ring)
{
    ring->ready = false;
    while (!ring->ready && ring->head - ring->tail >= 8) {
        char whole[RECORD_BYTES];
        size_t at = ring->tail % RING_BYTES, first = RING_BYTES - at;
        uint16_t size;
        memcpy(&size, ring->data + at + 6, sizeof size); /* records are aligned to 8 */
        if (size < 8 || size > ring->head - ring->tail) {
            ring->tail = ring->head; /* never seen; better lost than an endless loop */
            perf->lost++;
            return;
        }
        const char *record = ring->data + at;
        if (size > first && size <= sizeof whole) {
            memcpy(whole, record, first);
            memcpy(whole + first, ring->data, size - first);
            record = whole;
        }
        if (record == whole || size <= first)
            ring->ready = memcg_perf_parse(record, size, perf->id, &ring->event, &perf->lost) == 1;
        ring->tail += size;
    }
}

void memcg_perf_begin(struct memcg_perf *perf)
{
    for (uint32_t r = 0; r < perf->rings; r++) {
        struct cpu_ring *ring = &perf->ring[r];
        ring->head = __atomic_load_n(&ring->page->data_head, __ATOMIC_ACQUIRE);
        if (!ring->ready && ring->head != ring->tail)
            advance(perf, ring);
    }
    perf->current = UINT32_MAX;
}

/* The ring with the oldest event, and the one with the next oldest: from the first may be taken until it passes the other. */
static void choose(struct memcg_perf *perf)
{
    perf->current = perf->limit_ring = UINT32_MAX;
    for (uint32_t r = 0; r < perf->rings; r++) {
        if (!perf->ring[r].ready)
            continue;
        uint64_t t_ns = perf->ring[r].event.t_ns;
        if (perf->current == UINT32_MAX || t_ns < perf->ring[perf->current].event.t_ns) {
            perf->limit_ring = perf->current;
            perf->current = r;
        } else if (perf->limit_ring == UINT32_MAX || t_ns < perf->ring[perf->limit_ring].event.t_ns) {
            perf->limit_ring = r;
        }
    }
}

bool memcg_perf_next(struct memcg_perf *perf, uint64_t until_ns, struct memcg_perf_event *ret_event)
{
    uint32_t r = perf->current;
    if (r == UINT32_MAX || !perf->ring[r].ready ||
        (perf->limit_ring != UINT32_MAX && perf->ring[perf->limit_ring].event.t_ns < perf->ring[r].event.t_ns)) {
        choose(perf);
        r = perf->current;
    }
    if (r == UINT32_MAX || perf->ring[r].event.t_ns > until_ns)
        return false;
    *ret_event = perf->ring[r].event;
    advance(perf, &perf->ring[r]);
    return true;
}

void memcg_perf_end(struct memcg_perf *perf)
{
    for (uint32_t r = 0; r < perf->rings; r++)
        if (perf->ring[r].page->data_tail !=
            perf->ring[r].tail) /* its cache line is the one that the kernel writes the head to */
            __atomic_store_n(&perf->ring[r].page->data_tail, perf->ring[r].tail, __ATOMIC_RELEASE);
}

uint64_t memcg_perf_lost(const struct memcg_perf *perf)
{
    return perf->lost;
}

size_t memcg_perf_bytes(const struct memcg_perf *perf)
{
    return perf ? sizeof *perf + perf->rings * sizeof perf->ring[0] : 0;
}
