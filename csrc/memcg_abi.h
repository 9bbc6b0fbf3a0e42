/* SPDX-License-Identifier: Apache-2.0 */

/* The ABI of the native core, in plain declarations and without any directive: the C compiler (through memcg.h) and cffi read
 * these same bytes, so nothing is said twice.
 *
 * Functions return 0 (or a count) on success and -errno on failure; outputs come last, are named ret_* and stay untouched on
 * failure; *_free takes NULL. Unless said otherwise a function may be called from any thread, but an object by one at a time. */

/* ---- The ring file: one shared mapping, one writer, any readers ------------------------------------------------------------
 * header | channel table | column table | info (JSON text) | lock | columns, each a run of int64 aligned to align_bytes.
 * Row i of a channel is element i % capacity of each of its columns. Everything is native-endian. docs/file-format.md tells
 * the same in prose. */

enum {
    MEMCG_RING_VERSION = 2,
    MEMCG_RING_BYTE_ORDER = 0x01020304,
    MEMCG_CHANNELS = 16,        /* at most, in one ring */
    MEMCG_CHANNEL_COLUMNS = 128 /* at most, in one channel */
};

/* What a ring is doing now. Written by the sampling process alone, single words, read by anybody at any time. */
struct memcg_state {
    uint64_t writer_pid; /* in the writer's pid namespace; 0 = nobody writes */
    uint64_t writer_started_ns;
    uint64_t takeovers;      /* how often another process went on with the ring */
    uint64_t ticks;          /* wake-ups of the tick thread */
    uint64_t missed;         /* deadlines passed over because a tick was late */
    uint64_t period_ns;      /* distance to the next tick, as last decided */
    uint64_t full_period_ns; /* distance at the full rate */
    uint64_t stat_period_ns; /* grows when memory.stat outruns its budget */
    uint64_t tick_cpu_ns;    /* CPU time of the tick thread of the present writer */
    uint64_t keeper_cpu_ns;  /* CPU time of its keeper thread */
    uint64_t group_cpu_ns;   /* CPU time of the group since the writer started, the sampler's own not counted */
    uint64_t diluted_ppm;    /* the sampler's share of the group's CPU time, last second, in millionths */
    uint64_t psi_reads;      /* times the gate let PSI be read */
    uint64_t locked_bytes;   /* of the ring, locked into memory by the writer */
    uint64_t trace_ns;       /* every interval of `reclaim` that ended before this time has its row; 0 = nothing is traced */
    uint64_t trace_open_ns;  /* when the oldest interval began that has no row yet; 0 = there is none */
    uint64_t trace_events;   /* tracepoints seen, of the whole host */
    uint64_t trace_lost;     /* … and lost, because nobody took them in time */
    uint64_t trace_unattributed; /* intervals of threads that were gone before their group could be asked for */
    /* A recent read of each channel's files, by position in the channel table. */
    uint64_t cost_ns[MEMCG_CHANNELS];
};

struct memcg_ring_header {
    char magic[8]; /* "PYMEMCG" and a NUL, written last */
    uint32_t byte_order;
    uint32_t version;
    uint64_t file_bytes;
    uint32_t align_bytes; /* columns start and end on multiples of it */
    uint32_t channels;
    uint32_t columns;
    uint32_t info_bytes;
    uint64_t channels_offset;
    uint64_t columns_offset;
    uint64_t info_offset;
    uint64_t created_ns;          /* CLOCK_MONOTONIC */
    uint64_t created_realtime_ns; /* CLOCK_REALTIME at the same moment */
    char boot_id[40];
    uint64_t lock_offset;     /* of a lock for the channels that several processes write, see spans.h; 0 = none */
    struct memcg_state state; /* starts a cache line of its own */
};

struct memcg_channel_header {
    char name[16];
    uint64_t capacity;  /* rows */
    uint64_t period_ns; /* nominal distance of rows; 0 = as it happens */
    uint32_t first_column;
    uint32_t columns;
    uint64_t begun; /* in a copy (see memcg_copy_start): rows before begun - capacity may be half overwritten; in a ring 0 */
    uint64_t lost;  /* of a channel that several processes write: rows for which one of them had no room left */
    uint64_t reserved;
    uint64_t head;         /* rows ever published; starts a cache line of its own */
    uint64_t closed_ns;    /* 0 = open */
    uint64_t closed_errno; /* why it closed */
    uint64_t padding[5];
};

struct memcg_column_header {
    char name[48];
    char unit[16];
    char dtype[8]; /* numpy's: "<i8", or ">i8" where the machine is big-endian */
    uint64_t offset;
};

struct memcg_column_spec {
    const char *name;
    const char *unit;
};

struct memcg_channel_spec {
    const char *name;
    uint64_t period_ns;
    uint64_t rows; /* wanted; the capacity is that much or a little more */
    size_t columns;
    const struct memcg_column_spec *column;
};

/* Lays a ring out in an empty file, its columns aligned to `align_bytes` (a power of two, at least the page size).
 * With `reserve` every byte is allocated now (a hole in a full tmpfs would kill the writer with SIGBUS later); without it the
 * file stays sparse, which is for files written with pwrite.
 * -ENOSPC no room, -E2BIG too many channels or columns, -ENAMETOOLONG a name does not fit. */
int memcg_ring_create(int fd, const struct memcg_channel_spec *channels, size_t count, const char *info, size_t info_bytes,
                      uint32_t align_bytes, int reserve);

/* A read-only mapping of a ring in which each column stands twice in a row, so that any window is one contiguous slice. */
struct memcg_map;
/* -EBADMSG damaged, -EPROTO another version, -ENOTSUP its alignment is less than a page here. */
int memcg_map_open(int fd, struct memcg_map **ret_map);
void memcg_map_free(struct memcg_map *map);
/* Header, tables and info as they were at the opening, copied: whoever may write the file can change what is mapped. */
const struct memcg_ring_header *memcg_map_layout(const struct memcg_map *map);
const struct memcg_ring_header *memcg_map_header(const struct memcg_map *map); /* as mapped: for the state */
const int64_t *memcg_map_column(const struct memcg_map *map, uint32_t column); /* 2 * capacity elements */
/* Takes rows [first, end) of a column out of this process's memory until they are read again; the file keeps them. For recordings, of
 * which more is read than a process should hold at once. `end` is at most the capacity. */
void memcg_map_forget(const struct memcg_map *map, uint32_t column, uint64_t first, uint64_t end);
/* Rows published so far. What was read from the columns before this call is whole if its row is > head - capacity. */
uint64_t memcg_map_head(const struct memcg_map *map, uint32_t channel);

/* ---- Copies: a ring's rows in a file on a disk, which the writer must never wait for ------------------------------------------
 * The file has the ring's own layout, and its header was written before. Ten times a second an ordinary thread writes what came
 * since: first `begun`, then the rows, then the heads, so that the file is good whenever the process dies. Whoever has the lock of
 * the file (flock) copies; others wait for it, so that any of a group's processes may die. */
struct memcg_copy;
/* Both descriptors stay the caller's, and open until the copy is freed. The lock need not be held yet. */
int memcg_copy_start(int ring_fd, int file_fd, uint64_t period_ns, struct memcg_copy **ret_copy);
/* Copies a last time, if it is our turn, and ends the thread. */
void memcg_copy_stop(struct memcg_copy *copy);
/* In a forked child, where the thread is gone; the parent goes on undisturbed. */
void memcg_copy_forget(struct memcg_copy *copy);
/* 1 = it copies, 0 = it waits for the lock, -errno = the file could not be written; it is tried again, by whoever has the lock. */
int memcg_copy_state(const struct memcg_copy *copy);

/* ---- Sources: one opened pseudo-file, its values by key ---------------------------------------------------------------------- */

enum memcg_format {
    MEMCG_FORMAT_VALUE, /* one number or "max" (MEMCG_NONE); its key is "" */
    MEMCG_FORMAT_KEYED, /* "key value" lines */
    MEMCG_FORMAT_STATM, /* size resident shared text lib data dt, in bytes */
    MEMCG_FORMAT_PSI    /* some_us full_us and some_avg10 … full_avg300 in hundredths of a percent */
};

struct memcg_source;
/* Opens, and reads once; but not PSI, of which a read has its price. */
int memcg_source_open(const char *path, int format, struct memcg_source **ret_source);
void memcg_source_free(struct memcg_source *source);
int memcg_source_read(struct memcg_source *source); /* refreshes the values; -ENODEV, -ESRCH: what it spoke of is gone */
size_t memcg_source_count(const struct memcg_source *source);
const char *memcg_source_key(struct memcg_source *source, size_t index); /* good until the next read; NULL = none */
/* Limits that are no limit ("max", v1's largest page counter) are INT64_MAX, and larger numbers are cut to that. */
int64_t memcg_source_value(const struct memcg_source *source, size_t index);

/* Rows of the `events` channel: what happened to the sampling itself. */
enum memcg_event {
    MEMCG_EVENT_TAKEOVER = 1,    /* another process went on; since_ns = the last row before the gap, value = its pid */
    MEMCG_EVENT_CLOSED = 2,      /* value = position of the channel << 32 | errno */
    MEMCG_EVENT_STAT_PERIOD = 3, /* a read of memory.stat took more than its share; value = the period in ns from here on */
    MEMCG_EVENT_PROCESSES_PERIOD = 4, /* likewise for the group's processes */
    MEMCG_EVENT_DILUTED = 5,          /* the sampler took more than 1/20 of the group's CPU time: PSI is diluted; value = ppm */
    MEMCG_EVENT_TRACE_LOST = 6,       /* tracepoints were lost after since_ns; value = how many, since the writer started */
    MEMCG_EVENT_TRACE_UNATTRIBUTED = 7 /* likewise intervals whose thread was gone before its group was known */
};

/* ---- Tracepoints -------------------------------------------------------------------------------------------------------------- */

enum memcg_tracepoint {
    MEMCG_TRACE_MEMCG_BEGIN,
    MEMCG_TRACE_MEMCG_END,
    MEMCG_TRACE_DIRECT_BEGIN,
    MEMCG_TRACE_DIRECT_END,
    MEMCG_TRACE_COMPACTION_BEGIN,
    MEMCG_TRACE_COMPACTION_END,
    MEMCG_TRACE_THROTTLED,
    MEMCG_TRACEPOINTS
};

/* Values of `kind` in `reclaim`. */
enum memcg_reclaim {
    MEMCG_RECLAIM_MEMCG = 1,
    MEMCG_RECLAIM_DIRECT = 2,
    MEMCG_RECLAIM_COMPACTION = 3,
    MEMCG_RECLAIM_THROTTLED = 4,
    MEMCG_RECLAIM_HIGH = 5 /* no interval: the thread was seen asleep at memory.high at start_ns = end_ns */
};

/* Can they be opened here? `id` as tracefs gives them, in the order of enum memcg_tracepoint; 0 = not there. -EACCES, -EPERM: not
 * allowed (CAP_PERFMON); -ENOENT: there is no such tracepoint; -ENOSYS: no perf, or seccomp forbids it. */
int memcg_trace_probe(const uint64_t id[MEMCG_TRACEPOINTS]);

/* ---- The sampler ------------------------------------------------------------------------------------------------------------- */

struct memcg_field {
    const char *key;    /* in the source */
    const char *column; /* in the channel */
};

/* One file whose values become columns of a channel. */
struct memcg_feed {
    const char *path;
    const char *channel;
    int32_t format;
    size_t fields;
    const struct memcg_field *field;
};

/* The files of the group itself (first) and of each visible ancestor; NULL = not there. */
struct memcg_level {
    const char *usage;
    const char *limit;
    const char *high;
    const char *hits;
    const char *hits_key; /* in a keyed file; NULL = the file is one number */
    const char *high_key; /* … whose value counts as well: of an ancestor's memory.high; NULL = none */
};

enum memcg_flag {
    MEMCG_ADAPTIVE = 1, /* tick slowly far from every limit, and yield to the group */
    MEMCG_INSIDE = 2,   /* this process is in the group: its own CPU time is part of the group's */
    MEMCG_ATTACHED = 4, /* another process samples: wait for the lock, then go on with its ring */
    MEMCG_WCHAN = 8     /* where memory.high is hit, look which threads sleep there */
};

struct memcg_config {
    /* Both stay the caller's, and open until the sampler has stopped. */
    int ring_fd;
    int lock_fd; /* flock on it = the right to write the ring; held already unless MEMCG_ATTACHED; -1 = the ring is private */
    uint32_t flags;
    uint32_t feeds;
    uint32_t levels;
    uint64_t period_ns;
    uint64_t stat_period_ns;
    uint64_t node_period_ns;
    const struct memcg_feed *feed;
    const struct memcg_level *level; /* [0] is the group itself */
    const char *group;               /* its directory, whose cgroup.procs and children's feed `processes`; NULL = not sampled */
    uint64_t tracepoint[MEMCG_TRACEPOINTS]; /* as for memcg_trace_probe(); the first 0 = no tracing */
    uint64_t cgroup_id;      /* of the group in cgroup2, where that holds just the threads of the memory group; 0 = not known */
    const char *memory_path; /* the memory group as /proc/TID/cgroup says it; NULL = not known, and then only cgroup_id tells */
    int32_t memory_version;  /* of the memory controller: in which line of that file the path stands */
    const char *cpu_stat;    /* cpu.stat beside memory.pressure; NULL = none, and then PSI is not gated but left alone */
};

struct memcg_sampler;
/* `config` and all that it points to must outlive the sampler. Takes the first sample in the calling thread, so that what cannot
 * work fails here: -errno, and `ret_failed` names the file. */
int memcg_sampler_start(const struct memcg_config *config, struct memcg_sampler **ret_sampler, char *ret_failed,
                        size_t failed_bytes);
/* Ends both threads at once and waits for them. The ring stays readable. */
void memcg_sampler_stop(struct memcg_sampler *sampler);
/* In a forked child, where the threads are gone: closes what the child inherited and frees; the parent goes on undisturbed. */
void memcg_sampler_forget(struct memcg_sampler *sampler);
/* 1 = this process writes the ring, 0 = it is attached. */
int memcg_sampler_writes(const struct memcg_sampler *sampler);
/* Memory held for sampling in this process beside the ring itself: buffers and touched stacks. */
size_t memcg_sampler_held_bytes(const struct memcg_sampler *sampler);

/* ---- Benchmarks: what the sampler is measured against, and loops that Python would blur ------------------------------------- */

/* Reads sources `rounds` times as sources and as often by bare preads of the same descriptors, in turn. Before each reading about
 * `churn_bytes` of memory are faulted in by the calling thread, so that the counters of its group have moved: *ret_changed tells
 * in how many rounds the longest text was another one. At most 32 sources. */
int memcg_bench_read(struct memcg_source *const *sources, size_t count, uint32_t rounds, size_t churn_bytes,
                     uint64_t *ret_source_ns, uint64_t *ret_pread_ns, uint32_t *ret_changed);

struct memcg_bench_file {
    int fd;
    uint32_t every;   /* it is read every so many ticks */
    const char *path; /* opened, read and closed each time, as v1's cgroup.procs must be; NULL = fd is read */
};
/* The least that sampling can cost, in the calling thread: sleeps to absolute deadlines with a timer slack of 1 ns and reads the
 * files. How late each of `ticks` ticks was goes to ret_late_ns; -1 = passed over. At most 32 files. */
int memcg_bench_loop(const struct memcg_bench_file *files, size_t count, uint64_t period_ns, size_t ticks, int64_t *ret_late_ns,
                     uint64_t *ret_cpu_ns);
/* The sampler's ticks one after the other, without sleeping and without threads, in the calling thread. */
int memcg_bench_ticks(const struct memcg_config *config, uint64_t ticks, uint64_t *ret_cpu_ns);
