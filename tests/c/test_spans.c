/* SPDX-License-Identifier: Apache-2.0 */
/* Spans in a ring to which several processes append: every row is whole and in its process's order, whoever is killed when; who holds
 * the lock keeps nobody waiting, and who died with it gives it up. Every column of a row is a function of its first. */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "rings.h"
#include "spans.h"

enum { ROWS = 1024, NAMES = 512, PROCESSES = 4, KILLS = 100 };

static const char *const SPAN[MEMCG_SPAN_COLUMNS] = {"start_ns",    "end_ns",       "tid",        "name_id", "ref_id",
                                                     "attribution", "ran_start_ns", "ran_end_ns", "pid",     "ref_bytes",
                                                     "ref0",        "ref1",         "ref2",       "ref3",    "ref4"};
static const char *const NAME[MEMCG_NAME_WORDS] = {"text0", "text1", "text2", "text3", "text4", "text5", "text6", "text7"};

static void specs_of_spans(struct memcg_column_spec span[MEMCG_SPAN_COLUMNS], struct memcg_column_spec name[MEMCG_NAME_WORDS],
                           struct memcg_channel_spec ret_specs[2])
{
    for (int i = 0; i < MEMCG_SPAN_COLUMNS; i++)
        span[i] = (struct memcg_column_spec){SPAN[i], ""};
    for (int i = 0; i < MEMCG_NAME_WORDS; i++)
        name[i] = (struct memcg_column_spec){NAME[i], ""};
    ret_specs[0] = (struct memcg_channel_spec){"spans", 0, ROWS, MEMCG_SPAN_COLUMNS, span};
    ret_specs[1] = (struct memcg_channel_spec){"names", 0, NAMES, MEMCG_NAME_WORDS, name};
}

static int make(void)
{
    struct memcg_column_spec span[MEMCG_SPAN_COLUMNS], name[MEMCG_NAME_WORDS];
    struct memcg_channel_spec specs[2];
    specs_of_spans(span, name, specs);
    int fd = rings_memfd();
    CHECK(memcg_ring_create(fd, specs, 2, RINGS_INFO, sizeof RINGS_INFO - 1, rings_page(), 1) == 0, "no ring");
    return fd;
}

static struct memcg_spans *begin(int fd)
{
    struct memcg_spans *spans = NULL;
    CHECK(memcg_spans_open(fd, &spans) == 0, "the ring cannot be opened");
    return spans;
}

static int64_t value_of(int64_t first, int column)
{
    return column == 0 ? first : (first * MEMCG_SPAN_COLUMNS + column) * 7919;
}

static void put(struct memcg_spans *spans, int64_t first)
{
    int64_t row[MEMCG_SPAN_COLUMNS];
    for (int i = 0; i < MEMCG_SPAN_COLUMNS; i++)
        row[i] = value_of(first, i);
    memcg_spans_put(spans, row, NULL, 0);
}

/* Puts a span of that name and says which row of `names` it has. */
static int name_of(struct memcg_spans *spans, const char *text, size_t bytes)
{
    const int64_t row[MEMCG_SPAN_COLUMNS] = {[MEMCG_SPAN_NAME] = MEMCG_NAME_NEW};
    return memcg_spans_put(spans, row, text, bytes);
}

static uint64_t lost(const struct memcg_map *map)
{
    return rings_channels(map)->lost;
}

/* All rows that can be read now; `last` has the number of the last row of each process. */
static uint64_t check_rows(struct memcg_map *map, int64_t last[PROCESSES])
{
    const struct memcg_channel_header *channel = rings_channels(map);
    uint64_t capacity = channel->capacity, head = memcg_map_head(map, 0), first = head > capacity - 1 ? head - capacity + 1 : 0;
    static int64_t rows[ROWS * 2][MEMCG_SPAN_COLUMNS];
    for (uint64_t row = first; row < head; row++)
        for (uint32_t c = 0; c < MEMCG_SPAN_COLUMNS; c++)
            rows[row - first][c] = __atomic_load_n(&memcg_map_column(map, c)[row % capacity], __ATOMIC_RELAXED);
    uint64_t now = memcg_map_head(map, 0), whole = now > capacity - 1 ? now - capacity + 1 : 0;
    int64_t seen[PROCESSES] = {0};
    for (uint64_t row = first > whole ? first : whole; row < head; row++) {
        const int64_t *values = rows[row - first];
        for (int c = 0; c < MEMCG_SPAN_COLUMNS; c++) {
            int64_t wanted = c == MEMCG_SPAN_REF ? (int64_t)(row % capacity) : value_of(values[0], c);
            CHECK(values[c] == wanted, "row %" PRIu64 " is torn in column %d", row, c);
        }
        int who = (int)(values[0] >> 40);
        CHECK(who < PROCESSES && values[0] > seen[who], "row %" PRIu64 " is not in order", row);
        seen[who] = values[0];
    }
    memcpy(last, seen, sizeof seen);
    return head;
}

static pid_t appender(int fd, int who, int64_t from)
{
    pid_t pid = fork();
    CHECK(pid >= 0, "no process");
    if (pid > 0)
        return pid;
    struct memcg_spans *spans = begin(fd);
    for (int64_t i = from;; i++)
        put(spans, (int64_t)who << 40 | i);
}

static void sleep_us(long us)
{
    nanosleep(&(struct timespec){.tv_nsec = us * 1000}, NULL);
}

static void end(pid_t pid)
{
    CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid, "it did not end");
}

static void test_processes_are_killed(void)
{
    int fd = make();
    struct memcg_map *map;
    CHECK(memcg_map_open(fd, &map) == 0, "no map");
    pid_t pids[PROCESSES];
    int64_t last[PROCESSES], from = 1;
    for (int i = 0; i < PROCESSES; i++)
        pids[i] = appender(fd, i, from);
    for (int i = 0; i < KILLS; i++) {
        int who = i % PROCESSES;
        sleep_us(500 + (i * 7919) % 1500);
        end(pids[who]);
        check_rows(map, last);
        pids[who] = appender(fd, who, from += 1 << 28);
    }
    uint64_t before = memcg_map_head(map, 0);
    for (int i = 0; i < 5000 && memcg_map_head(map, 0) < before + 10 * ROWS; i++)
        sleep_us(1000);
    CHECK(check_rows(map, last) > before, "nobody goes on");
    for (int i = 0; i < PROCESSES; i++)
        end(pids[i]);
    memcg_map_free(map);
    close(fd);
}

static pthread_mutex_t *lock_of(int fd, struct memcg_writer *writer)
{
    CHECK(memcg_writer_map(fd, writer) == 0, "no mapping");
    return (void *)((char *)writer->header + writer->header->lock_offset);
}

/* A process that takes the lock and keeps it. */
static pid_t holder(int fd)
{
    int ready[2];
    CHECK(pipe(ready) == 0, "no pipe");
    pid_t pid = fork();
    if (pid == 0) {
        struct memcg_writer writer;
        CHECK(pthread_mutex_lock(lock_of(fd, &writer)) == 0, "no lock");
        CHECK(write(ready[1], "", 1) == 1, "nobody waits");
        for (;;)
            pause();
    }
    char byte;
    CHECK(pid > 0 && read(ready[0], &byte, 1) == 1, "no holder");
    close(ready[0]);
    close(ready[1]);
    return pid;
}

static void test_who_holds_the_lock(void)
{
    int fd = make();
    struct memcg_map *map;
    int64_t last[PROCESSES];
    CHECK(memcg_map_open(fd, &map) == 0, "no map");
    struct memcg_spans *spans = begin(fd);
    put(spans, 1);
    pid_t pid = holder(fd);
    for (int64_t i = 2; i < 40; i++)
        put(spans, i);
    CHECK(check_rows(map, last) == 1, "a row was written without the lock");
    end(pid);
    put(spans, 40);
    CHECK(check_rows(map, last) == 40 && last[0] == 40, "what waited is there, in order");
    CHECK(lost(map) == 0, "nothing was lost");
    pid = holder(fd);
    for (int64_t i = 41; i < 900; i++)
        put(spans, i);
    end(pid);
    put(spans, 900);
    uint64_t head = check_rows(map, last);
    CHECK(last[0] == 900 && head > 100 && head < 900, "the newest are there, as many as there is room for: %" PRIu64, head);
    CHECK(head + lost(map) == 900, "%" PRIu64 " are counted as lost", lost(map));
    memcg_spans_close(spans);
    memcg_map_free(map);
    close(fd);
}

static void test_names_that_wait(void)
{
    int fd = make();
    struct memcg_map *map;
    CHECK(memcg_map_open(fd, &map) == 0, "no map");
    struct memcg_spans *spans = begin(fd);
    CHECK(name_of(spans, "a", 1) == 1, "the first has row 1");
    pid_t pid = holder(fd);
    CHECK(name_of(spans, "new", 3) == -EAGAIN && name_of(spans, "a", 1) == -EAGAIN, "a name was written without the lock");
    end(pid);
    memcg_spans_close(spans);
    const int64_t *rows = memcg_map_column(map, MEMCG_SPAN_NAME);
    CHECK(memcg_map_head(map, 0) == 3 && rows[0] == 1 && rows[1] == 2 && rows[2] == 1, "each has its own name");
    memcg_map_free(map);
    close(fd);
}

static void test_a_forked_child(void)
{
    int fd = make();
    struct memcg_map *map;
    CHECK(memcg_map_open(fd, &map) == 0, "no map");
    struct memcg_spans *spans = begin(fd);
    pid_t other = holder(fd);
    put(spans, 1);
    pid_t pid = fork();
    if (pid == 0) {
        memcg_spans_forked(spans);
        put(spans, 2);
        _exit(0);
    }
    CHECK(waitpid(pid, NULL, 0) == pid, "no child");
    end(other);
    put(spans, 3);
    int64_t last[PROCESSES];
    CHECK(check_rows(map, last) == 2 && last[0] == 3, "what waited for the parent is there once");
    memcg_spans_close(spans);
    memcg_map_free(map);
    close(fd);
}

/* Nothing that a process with spans does can reach other channels. */
static void test_what_can_be_written(void)
{
    struct memcg_channel_spec specs[3] = {RINGS_CHANNELS[0]};
    struct memcg_column_spec span[MEMCG_SPAN_COLUMNS], name[MEMCG_NAME_WORDS];
    specs_of_spans(span, name, &specs[1]);
    int fd = rings_memfd();
    CHECK(memcg_ring_create(fd, specs, 3, RINGS_INFO, sizeof RINGS_INFO - 1, rings_page(), 1) == 0, "no ring");
    struct memcg_spans *spans = begin(fd);
    put(spans, 1);
    char line[512];
    int shared = 0, writable = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps, "no maps");
    while (fgets(line, sizeof line, maps))
        if (strstr(line, "memfd:ring")) {
            shared++;
            writable += strstr(line, " rw-s ") != NULL;
        }
    fclose(maps);
    CHECK(shared == 3 && writable == 2, "%d of %d parts can be written", writable, shared);
    memcg_spans_close(spans);
    close(fd);
}

static void test_names(void)
{
    int fd = make();
    struct memcg_map *map;
    CHECK(memcg_map_open(fd, &map) == 0, "no map");
    struct memcg_spans *spans = begin(fd), *others = begin(fd);
    CHECK(name_of(spans, "(other)", 7) == 0, "row 0 is for what there is no room for");
    CHECK(name_of(spans, "a", 1) == 1 && name_of(others, "b", 1) == 2, "each has a row");
    CHECK(name_of(others, "a", 1) == 1, "the same for all");
    char text[80];
    memset(text, 'x', 63);
    memcpy(text + 63, "\xc3\xa4zz", 5);
    CHECK(name_of(spans, text, 67) == 3 && name_of(spans, text, 63) == 3, "no half of a character is kept");
    CHECK(name_of(spans, "", 0) == 4, "an empty name is one");
    int row = 0;
    for (int i = 0; i < 2 * NAMES; i++) {
        int n = snprintf(text, sizeof text, "name %d", i);
        int got = name_of(spans, text, (size_t)n);
        CHECK(got == (i < NAMES - 6 ? i + 5 : 0), "name %d has row %d", i, got);
        row = got ? got : row;
    }
    CHECK(memcg_map_head(map, 1) == (uint64_t)row + 1, "all are shown");
    CHECK(memcmp(&memcg_map_column(map, MEMCG_SPAN_COLUMNS)[2], "b\0\0\0\0\0\0", 8) == 0, "as text");
    memcg_spans_close(others);
    memcg_spans_close(spans);
    memcg_map_free(map);
    close(fd);
}

static void test_other_rings(void)
{
    struct memcg_spans *spans = NULL;
    int fd = rings_file(rings_page());
    CHECK(memcg_spans_open(fd, &spans) == -ENOENT && spans == NULL, "a ring without spans");
    close(fd);
    fd = make();
    struct memcg_writer writer;
    lock_of(fd, &writer);
    writer.header->lock_offset = writer.bytes;
    CHECK(memcg_spans_open(fd, &spans) == -EBADMSG, "a lock outside of the file");
    memcg_writer_close(&writer);
    close(fd);
}

int main(void)
{
    test_names();
    test_names_that_wait();
    test_who_holds_the_lock();
    test_a_forked_child();
    test_what_can_be_written();
    test_other_rings();
    test_processes_are_killed();
    return 0;
}
