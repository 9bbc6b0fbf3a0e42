/* SPDX-License-Identifier: Apache-2.0 */
/* Copying a ring to a file: what the file holds at any moment, also when the copying process dies in the middle of it. Every column of
 * row i is a function of i, so a row that is half one and half another shows. The ring is written by another process than the one that
 * copies, as in life it may be; and a thread sanitizer, which knows nothing of rows that are dropped, would complain of one. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include "rings.h"

enum { COLUMNS = 4, ROWS = 512, KILLS = 200 };
static const uint64_t PERIOD_NS = 1000000;

static const struct memcg_column_spec COLUMN[COLUMNS] = {{"c0", ""}, {"c1", ""}, {"c2", ""}, {"c3", ""}};
static const struct memcg_channel_spec SPEC = {"rows", 0, ROWS, COLUMNS, COLUMN};

static int64_t value_of(uint64_t row, uint32_t column)
{
    return (int64_t)((row * COLUMNS + column + 1) * 0x9e3779b97f4a7c15u);
}

static void put_rows(struct memcg_channel *channel, uint64_t count)
{
    for (; count; count--) {
        for (uint32_t c = 0; c < COLUMNS; c++)
            memcg_channel_put(channel, (int)c, value_of(channel->head, c));
        memcg_channel_publish(channel);
    }
}

static int make(struct memcg_writer *writer, struct memcg_channel *channel)
{
    int fd = rings_memfd();
    CHECK(memcg_ring_create(fd, &SPEC, 1, NULL, 0, rings_page(), 1) == 0, "no ring");
    CHECK(memcg_writer_open(fd, writer) == 0 && memcg_channel_bind(writer, "rows", channel) == 0, "no writer");
    return fd;
}

/* An empty file of the same layout, on a disk. */
static int make_file(void)
{
    int fd = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    CHECK(fd >= 0, "no file in /var/tmp");
    CHECK(memcg_ring_create(fd, &SPEC, 1, NULL, 0, rings_page(), 1) == 0, "no file for a copy");
    return fd;
}

/* How many rows the file shows, all of which must be whole. */
static uint64_t check_file(int fd, uint64_t *ret_head)
{
    struct memcg_map *map;
    CHECK(memcg_map_open(fd, &map) == 0, "no map of the copy");
    const struct memcg_channel_header *channel = rings_channels(map);
    uint64_t head = memcg_map_head(map, 0), begun = channel->begun > head ? channel->begun : head;
    uint64_t first = begun > channel->capacity ? begun - channel->capacity : 0;
    for (uint64_t row = first; row < head; row++)
        for (uint32_t c = 0; c < COLUMNS; c++)
            CHECK(memcg_map_column(map, c)[row % channel->capacity] == value_of(row, c), "row %" PRIu64 " is torn", row);
    *ret_head = head;
    memcg_map_free(map);
    return head > first ? head - first : 0;
}

static void sleep_us(long us)
{
    nanosleep(&(struct timespec){.tv_nsec = us * 1000}, NULL);
}

static void wait_for_state(const struct memcg_copy *copy, int state)
{
    for (int i = 0; i < 5000 && memcg_copy_state(copy) != state; i++)
        sleep_us(1000);
    CHECK(memcg_copy_state(copy) == state, "it is %d and not %d", memcg_copy_state(copy), state);
}

static struct memcg_copy *start(int ring_fd, int file_fd)
{
    struct memcg_copy *copy;
    CHECK(memcg_copy_start(ring_fd, file_fd, PERIOD_NS, &copy) == 0, "no copy");
    return copy;
}

static void test_all_is_there_after_the_stop(void)
{
    struct memcg_writer writer;
    struct memcg_channel channel;
    int ring = make(&writer, &channel), file = make_file();
    uint64_t head;
    put_rows(&channel, 3 * ROWS + 5);
    struct memcg_copy *copy = start(ring, file);
    wait_for_state(copy, 1);
    writer.header->state.writer_pid = 0;
    writer.header->state.ticks = 77;
    memcg_channel_close(&channel, ENODEV, 99);
    memcg_copy_stop(copy);
    CHECK(check_file(file, &head) >= ROWS - 1 && head == 3 * ROWS + 5, "%" PRIu64 " rows", head);
    struct memcg_map *map;
    CHECK(memcg_map_open(file, &map) == 0, "no map");
    CHECK(memcg_map_header(map)->state.ticks == 77, "the state is not there");
    CHECK(rings_channels(map)->closed_ns == 99 && rings_channels(map)->closed_errno == ENODEV, "it is not closed");
    memcg_map_free(map);
    memcg_writer_close(&writer);
    close(ring);
    close(file);
}

static void test_one_copies_and_the_next_goes_on(void)
{
    struct memcg_writer writer;
    struct memcg_channel channel;
    int ring = make(&writer, &channel), file = make_file();
    char path[64];
    uint64_t head;
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    int again = open(path, O_RDWR | O_CLOEXEC);
    CHECK(again >= 0, "the file cannot be opened twice");
    put_rows(&channel, 10);
    struct memcg_copy *first = start(ring, file);
    wait_for_state(first, 1);
    struct memcg_copy *second = start(ring, again);
    sleep_us(20000);
    CHECK(memcg_copy_state(second) == 0, "two copy at once");
    memcg_copy_stop(first);
    CHECK(check_file(again, &head) == 10 && head == 10, "%" PRIu64 " rows", head);
    close(file);
    wait_for_state(second, 1);
    memcg_copy_stop(second);
    CHECK(check_file(again, &head) == 10 && head == 10, "%" PRIu64 " rows after the second", head);
    put_rows(&channel, 7); /* nobody copies any more */
    CHECK(check_file(again, &head) == 10, "%" PRIu64 " rows after both", head);
    memcg_writer_close(&writer);
    close(ring);
    close(again);
}

static void test_what_cannot_be_written(void)
{
    struct memcg_writer writer;
    struct memcg_channel channel;
    int ring = make(&writer, &channel), file = make_file(), other = rings_file(rings_page());
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    int read_only = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(read_only >= 0, "the file cannot be opened");
    struct memcg_copy *copy = start(ring, read_only);
    wait_for_state(copy, -EBADF);
    put_rows(&channel, 1);
    memcg_copy_stop(copy);
    CHECK(memcg_copy_start(ring, other, PERIOD_NS, &copy) == -EBADMSG, "a file of another size is written");
    memcg_writer_close(&writer);
    close(ring);
    close(file);
    close(read_only);
    close(other);
}

/* The file is good whenever the copying process dies, and the next one goes on with it. */
static void test_killed_at_any_moment(void)
{
    struct memcg_writer writer;
    struct memcg_channel channel;
    int ring = make(&writer, &channel), file = make_file();
    uint64_t shown = 0, last = 0, went_on = 0;
    srand(1);
    for (int i = 0; i < KILLS; i++) {
        pid_t pid = fork();
        CHECK(pid >= 0, "no process");
        if (pid == 0) {
            char path[64];
            snprintf(path, sizeof path, "/proc/self/fd/%d", file);
            int own = open(path, O_RDWR | O_CLOEXEC); /* a lock belongs to an opening of the file */
            struct memcg_copy *copy;
            if (own < 0 || memcg_copy_start(ring, own, PERIOD_NS, &copy) != 0)
                _exit(1);
            while (true)
                pause();
        }
        for (int n = rand() % 200; n >= 0; n--) {
            put_rows(&channel, (uint64_t)rand() % 100);
            sleep_us(30);
        }
        int status;
        kill(pid, SIGKILL);
        CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status), "it ended by itself");
        uint64_t head;
        shown += check_file(file, &head);
        CHECK(head >= last && head <= channel.head, "head %" PRIu64 " after %" PRIu64, head, last);
        went_on += head > last;
        last = head;
    }
    CHECK(shown > ROWS && went_on > KILLS / 4, "%" PRIu64 " rows shown, %" PRIu64 " went on", shown, went_on);
    memcg_writer_close(&writer);
    close(ring);
    close(file);
}

int main(void)
{
    test_killed_at_any_moment(); /* first: as long as there are no threads a child may go on */
    test_all_is_there_after_the_stop();
    test_one_copies_and_the_next_goes_on();
    test_what_cannot_be_written();
    return 0;
}
