/* SPDX-License-Identifier: Apache-2.0 */
/* One writer at full speed, readers in threads and in processes with maps of their own. Every column of row i is a function of i, so
 * a row that was overwritten while it was copied shows: its columns speak of different rows. A reader copies, re-reads the head and
 * drops what was overtaken; what it keeps must be whole. The rows that it drops are looked at too, to see that there was danger. */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sys/wait.h>

#include "rings.h"

enum { COLUMNS = 8, ROWS = 512, THREADS = 3, PROCESSES = 2, READERS = THREADS + PROCESSES };
static const uint64_t LEAST_ROUNDS = 300, LEAST_RACES = 20, MOST_ROUNDS = 300000, LEAST_WRAPS = 5000;

static const struct memcg_column_spec COLUMN[COLUMNS] = {{"c0", ""}, {"c1", ""}, {"c2", ""}, {"c3", ""},
                                                         {"c4", ""}, {"c5", ""}, {"c6", ""}, {"c7", ""}};

struct tally {
    uint64_t rounds, kept, dropped;
    uint64_t races;       /* rounds in which the writer wrote on while rows were copied */
    uint64_t torn;        /* dropped rows whose columns spoke of different rows */
    uint64_t overwritten; /* … and those that all spoke of a newer one */
    uint32_t done;
};

static struct tally *tallies; /* shared with the processes */

static int64_t value_of(uint64_t row, uint32_t column)
{
    return (int64_t)((row * 8 + column) * 0x9e3779b97f4a7c15u);
}

static uint64_t row_of(int64_t value, uint32_t column)
{
    return ((uint64_t)value * 0xf1de83e19937733du - column) / 8; /* the inverse modulo 2^64 */
}

static void put_row(struct memcg_channel *channel, uint32_t columns)
{
    for (uint32_t c = 0; c < columns; c++)
        memcg_channel_put(channel, (int)c, value_of(channel->head, c));
}

static int make_ring(struct memcg_writer *writer, struct memcg_channel *channel)
{
    const struct memcg_channel_spec spec = {"rows", 0, ROWS, COLUMNS, COLUMN};
    int fd = rings_memfd();
    CHECK(memcg_ring_create(fd, &spec, 1, NULL, 0, rings_page(), 1) == 0, "no ring");
    CHECK(memcg_writer_open(fd, writer) == 0 && memcg_channel_bind(writer, "rows", channel) == 0, "no writer");
    return fd;
}

static struct memcg_map *open_map(int fd)
{
    struct memcg_map *map;
    CHECK(memcg_map_open(fd, &map) == 0, "no map");
    return map;
}

/* Looks at the copied rows from `first` on, of which those above head - capacity were not overtaken. */
static void judge(int64_t *const copy[COLUMNS], uint64_t first, uint64_t count, uint64_t head, uint64_t capacity,
                  struct tally *tally)
{
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t row = first + i;
        bool kept = row + capacity > head, torn = false;
        for (uint32_t c = 0; c < COLUMNS; c++)
            torn |= row_of(copy[c][i], c) != row_of(copy[0][i], 0);
        if (!kept) {
            tally->dropped++;
            tally->torn += torn;
            tally->overwritten += !torn && row_of(copy[0][i], 0) != row;
            continue;
        }
        tally->kept++;
        for (uint32_t c = 0; c < COLUMNS; c++)
            CHECK(copy[c][i] == value_of(row, c), "row %" PRIu64 " of head %" PRIu64 ": column %u is of row %" PRIu64, row,
                  head, c, row_of(copy[c][i], c));
    }
}

/* The rule to the row: of a full ring, k published rows later, the k oldest are lost and one more, since its place is the next that
 * is written; whether that has begun no reader knows. */
static void test_rule(void)
{
    struct memcg_writer writer;
    struct memcg_channel channel;
    struct memcg_map *map;
    int fd = make_ring(&writer, &channel);
    const uint64_t capacity = channel.header->capacity;
    int64_t *copy[COLUMNS];
    map = open_map(fd);
    for (uint32_t c = 0; c < COLUMNS; c++)
        copy[c] = malloc(capacity * sizeof(int64_t));
    for (uint64_t i = 0; i < 2 * capacity + 5; i++) {
        put_row(&channel, COLUMNS);
        memcg_channel_publish(&channel);
    }
    for (uint64_t later = 0; later <= capacity; later += later < 4 ? 1 : capacity / 4 - 1) {
        for (uint32_t begun = 0; begun <= COLUMNS; begun += COLUMNS / 2) { /* columns of the row in the making */
            struct tally tally = {0};
            const uint64_t first = memcg_map_head(map, 0) - capacity;
            for (uint32_t c = 0; c < COLUMNS; c++) {
                for (uint64_t i = 0; c == COLUMNS / 2 && i < later; i++) {
                    put_row(&channel, COLUMNS);
                    memcg_channel_publish(&channel);
                }
                if (c == COLUMNS / 2)
                    put_row(&channel, begun);
                memcpy(copy[c], memcg_map_column(map, c) + first % capacity, capacity * sizeof(int64_t));
            }
            judge(copy, first, capacity, memcg_map_head(map, 0), capacity, &tally);
            put_row(&channel, COLUMNS); /* the next round begins with a whole ring */
            memcg_channel_publish(&channel);
            uint64_t lost = later < capacity ? later + 1 : capacity;
            CHECK(tally.dropped == lost && tally.kept == capacity - lost, "%" PRIu64 " rows later %" PRIu64 " were dropped",
                  later, tally.dropped);
            CHECK(tally.torn == (begun > COLUMNS / 2 && later < capacity ? later + 1 : later),
                  "%" PRIu64 " rows and %u columns later %" PRIu64 " were torn", later, begun, tally.torn);
        }
    }
    for (uint32_t c = 0; c < COLUMNS; c++)
        free(copy[c]);
    memcg_map_free(map);
    memcg_writer_close(&writer);
    close(fd);
}

/* Until it has seen enough, and rows overtaken. */
static void read_rounds(const struct memcg_map *map, struct tally *tally)
{
    const uint64_t capacity = rings_channels(map)[0].capacity;
    int64_t *copy[COLUMNS];
    for (uint32_t c = 0; c < COLUMNS; c++)
        copy[c] = malloc(capacity * sizeof(int64_t));
    while (tally->rounds < LEAST_ROUNDS || (tally->rounds < MOST_ROUNDS && (tally->torn == 0 || tally->races < LEAST_RACES))) {
        const uint64_t before = memcg_map_head(map, 0), first = before > capacity ? before - capacity : 0;
        for (uint32_t c = 0; c < COLUMNS; c++)
            memcpy(copy[c], memcg_map_column(map, c) + first % capacity, (before - first) * sizeof(int64_t));
        const uint64_t after = memcg_map_head(map, 0);
        judge(copy, first, before - first, after, capacity, tally);
        tally->races += after != before;
        tally->rounds += before > 0;
    }
    for (uint32_t c = 0; c < COLUMNS; c++)
        free(copy[c]);
    __atomic_store_n(&tally->done, 1, __ATOMIC_RELEASE);
}

struct reader {
    pthread_t thread;
    const struct memcg_map *map;
    struct tally *tally;
};

static void *run_reader(void *argument)
{
    struct reader *reader = argument;
    read_rounds(reader->map, reader->tally);
    return NULL;
}

static bool all_done(void)
{
    bool done = true;
    for (int i = 0; i < READERS; i++)
        done &= __atomic_load_n(&tallies[i].done, __ATOMIC_ACQUIRE);
    return done;
}

static void *run_writer(void *argument)
{
    struct memcg_channel *channel = argument;
    while (channel->head < LEAST_WRAPS * channel->header->capacity || !all_done()) {
        put_row(channel, COLUMNS);
        memcg_channel_publish(channel);
    }
    return NULL;
}

static pid_t start_process(int fd, struct tally *tally)
{
    pid_t pid = fork();
    CHECK(pid >= 0, "no process: %s", strerror(errno));
    if (pid != 0)
        return pid;
    read_rounds(open_map(fd), tally);
    _exit(0);
}

/* Beside the rest, so that a process that fails ends the test at once. */
static void *run_reaper(void *argument)
{
    const pid_t *pids = argument;
    for (int i = 0; i < PROCESSES; i++) {
        int status;
        CHECK(waitpid(pids[i], &status, 0) == pids[i] && status == 0, "the process of reader %d ended with %#x", i,
              (unsigned)status);
    }
    return NULL;
}

static void test_full_speed(void)
{
    struct memcg_writer writer;
    struct memcg_channel channel;
    struct memcg_map *maps[2];
    struct reader readers[THREADS];
    pid_t pids[PROCESSES];
    pthread_t writing, reaping;
    int fd = make_ring(&writer, &channel);
    tallies = mmap(NULL, READERS * sizeof *tallies, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(tallies != MAP_FAILED, "no shared memory");
    for (int i = 0; i < PROCESSES; i++)
        pids[i] = start_process(fd, &tallies[THREADS + i]);
    for (int i = 0; i < 2; i++)
        maps[i] = open_map(fd);
    CHECK(pthread_create(&reaping, NULL, run_reaper, pids) == 0, "no thread");
    CHECK(pthread_create(&writing, NULL, run_writer, &channel) == 0, "no thread");
    for (int i = 0; i < THREADS; i++) { /* two of them share a map */
        readers[i] = (struct reader){.map = maps[i / 2], .tally = &tallies[i]};
        CHECK(pthread_create(&readers[i].thread, NULL, run_reader, &readers[i]) == 0, "no thread");
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(readers[i].thread, NULL);
    pthread_join(reaping, NULL);
    pthread_join(writing, NULL);
    for (int i = 0; i < READERS; i++) {
        const struct tally *tally = &tallies[i];
        printf("%s %d: %" PRIu64 " rounds, %" PRIu64 " of them races; %" PRIu64 " rows kept, %" PRIu64
               " dropped, of which %" PRIu64 " torn and %" PRIu64 " overwritten\n",
               i < THREADS ? "thread" : "process", i, tally->rounds, tally->races, tally->kept, tally->dropped, tally->torn,
               tally->overwritten);
        CHECK(tally->kept > 0, "reader %d kept nothing", i);
        CHECK(tally->torn > 0 && tally->races > 0, "reader %d was never in danger", i);
    }
    printf("the ring was written round %" PRIu64 " times\n", channel.head / channel.header->capacity);
    for (int i = 0; i < 2; i++)
        memcg_map_free(maps[i]);
    munmap(tallies, READERS * sizeof *tallies);
    memcg_writer_close(&writer);
    close(fd);
}

int main(void)
{
    test_rule();
    test_full_speed();
    return 0;
}
