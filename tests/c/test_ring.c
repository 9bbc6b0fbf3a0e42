/* SPDX-License-Identifier: Apache-2.0 */
/* Laying a ring out, writing it, mapping it. What damage does is test_ring_damage.c. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>

#include "rings.h"

static struct memcg_map *open_map(int fd)
{
    struct memcg_map *map;
    int rc = memcg_map_open(fd, &map);
    CHECK(rc == 0, "the ring cannot be mapped: %d", rc);
    return map;
}

/* Reads what was laid out back: every table as asked for, every column in a place of its own. */
static void check_layout(int fd, uint32_t align)
{
    struct stat status;
    CHECK(fstat(fd, &status) == 0, "no status");
    struct memcg_map *map = open_map(fd);
    const struct memcg_ring_header *header = memcg_map_header(map);
    CHECK(header->file_bytes == (uint64_t)status.st_size, "%" PRIu64 " bytes", header->file_bytes);
    CHECK(header->version == MEMCG_RING_VERSION && header->byte_order == MEMCG_RING_BYTE_ORDER, "version or byte order");
    CHECK(header->align_bytes == align && header->channels == RINGS_COUNT && header->columns == 5, "counts");
    CHECK(header->created_ns && header->created_realtime_ns > header->created_ns, "clocks");
    CHECK(strlen(header->boot_id) == 36, "boot id '%.40s'", header->boot_id);
    CHECK(header->info_bytes == sizeof RINGS_INFO - 1 &&
              memcmp((const char *)header + header->info_offset, RINGS_INFO, sizeof RINGS_INFO - 1) == 0,
          "info");
    uint64_t end = header->info_offset + header->info_bytes;
    for (uint32_t i = 0; i < RINGS_COUNT; i++) {
        const struct memcg_channel_spec *spec = &RINGS_CHANNELS[i];
        const struct memcg_channel_header *channel = &rings_channels(map)[i];
        CHECK(strcmp(channel->name, spec->name) == 0, "channel '%s'", channel->name);
        CHECK(channel->period_ns == spec->period_ns && channel->columns == spec->columns, "%s differs", spec->name);
        CHECK(channel->capacity >= spec->rows && channel->capacity * 8 < spec->rows * 8 + align, "capacity %" PRIu64,
              channel->capacity);
        CHECK(channel->head == 0 && channel->closed_ns == 0, "%s is not new", spec->name);
        for (size_t c = 0; c < spec->columns; c++) {
            const struct memcg_column_header *column = &rings_columns(map)[channel->first_column + c];
            CHECK(strcmp(column->name, spec->column[c].name) == 0, "column '%s'", column->name);
            CHECK(strcmp(column->unit, spec->column[c].unit) == 0, "unit '%s'", column->unit);
            CHECK(strcmp(column->dtype + 1, "i8") == 0, "dtype '%s'", column->dtype);
            CHECK(column->offset % align == 0 && column->offset >= end, "%s at %" PRIu64, column->name, column->offset);
            end = column->offset + channel->capacity * 8;
        }
    }
    CHECK(end == header->file_bytes, "the columns end at %" PRIu64 " of %" PRIu64, end, header->file_bytes);
    rings_read_all(map);
    memcg_map_free(map);
}

static void test_layout(void)
{
    for (uint32_t align = rings_page(); align <= 1u << 20; align *= 2) {
        int fd = rings_file(align);
        check_layout(fd, align);
        close(fd);
    }
}

static void test_bad_arguments(void)
{
    static const struct memcg_column_spec column = {"t_ns", "ns"};
    static struct memcg_column_spec many[MEMCG_CHANNEL_COLUMNS + 1];
    static const char info[(1 << 20) + 1] = "";
    for (size_t i = 0; i < sizeof many / sizeof many[0]; i++)
        many[i] = column;
    const uint32_t page = rings_page();
    const struct {
        const char *what;
        struct memcg_channel_spec spec;
        size_t count, info_bytes;
        uint32_t align;
        int rc;
    } cases[] = {
        {"no alignment", {"a", 0, 1, 1, &column}, 1, 0, 0, -EINVAL},
        {"less than a page", {"a", 0, 1, 1, &column}, 1, 0, page / 2, -EINVAL},
        {"no power of two", {"a", 0, 1, 1, &column}, 1, 0, 3 * page, -EINVAL},
        {"no channel", {"a", 0, 1, 1, &column}, 0, 0, page, -EINVAL},
        {"no row", {"a", 0, 0, 1, &column}, 1, 0, page, -EINVAL},
        {"rows past counting", {"a", 0, (uint64_t)1 << 61, 1, &column}, 1, 0, page, -EINVAL},
        {"no column", {"a", 0, 1, 0, &column}, 1, 0, page, -EINVAL},
        {"as many columns as may be", {"a", 0, 1, MEMCG_CHANNEL_COLUMNS, many}, 1, 0, page, 0},
        {"a column too many", {"a", 0, 1, MEMCG_CHANNEL_COLUMNS + 1, many}, 1, 0, page, -E2BIG},
        {"the longest info", {"a", 0, 1, 1, &column}, 1, 1 << 20, page, 0},
        {"too long an info", {"a", 0, 1, 1, &column}, 1, (1 << 20) + 1, page, -EINVAL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int fd = rings_memfd();
        int rc = memcg_ring_create(fd, &cases[i].spec, cases[i].count, info, cases[i].info_bytes, cases[i].align, 1);
        CHECK(rc == cases[i].rc, "%s gave %d", cases[i].what, rc);
        struct memcg_map *map = NULL;
        rc = memcg_map_open(fd, &map);
        CHECK(rc == (cases[i].rc ? -EBADMSG : 0), "%s left something: %d", cases[i].what, rc);
        CHECK((map != NULL) == (rc == 0), "%s: the output was touched on failure", cases[i].what);
        memcg_map_free(map);
        close(fd);
    }
}

static void test_names(void)
{
    static char text[64];
    memset(text, 'x', sizeof text - 1);
    const struct {
        const char *what;
        size_t channel, column, unit; /* lengths */
        int rc;
    } cases[] = {
        {"the longest names", 15, 47, 15, 0},
        {"a channel's name too long", 16, 1, 1, -ENAMETOOLONG},
        {"a column's too long", 1, 48, 1, -ENAMETOOLONG},
        {"a unit's too long", 1, 1, 16, -ENAMETOOLONG},
        {"no channel's name", 0, 1, 1, -ENAMETOOLONG},
        {"no column's name", 1, 0, 1, -ENAMETOOLONG},
        {"no unit", 1, 1, 0, 0},
    };
    const char *end = text + sizeof text - 1;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct memcg_column_spec column = {end - cases[i].column, end - cases[i].unit};
        struct memcg_channel_spec channel = {end - cases[i].channel, 0, 1, 1, &column};
        int fd = rings_memfd();
        int rc = memcg_ring_create(fd, &channel, 1, NULL, 0, rings_page(), 1);
        CHECK(rc == cases[i].rc, "%s gave %d", cases[i].what, rc);
        struct memcg_map *map = NULL;
        rc = memcg_map_open(fd, &map);
        CHECK(rc == (cases[i].rc ? -EBADMSG : 0), "%s left something: %d", cases[i].what, rc);
        if (rc == 0) {
            CHECK(strcmp(rings_channels(map)[0].name, channel.name) == 0, "%s: '%s'", cases[i].what,
                  rings_channels(map)[0].name);
            CHECK(strcmp(rings_columns(map)[0].name, column.name) == 0, "%s: '%s'", cases[i].what, rings_columns(map)[0].name);
            CHECK(strcmp(rings_columns(map)[0].unit, column.unit) == 0, "%s: '%s'", cases[i].what, rings_columns(map)[0].unit);
        }
        memcg_map_free(map);
        close(fd);
    }
}

/* As many channels as the ring keeps a cost for, and not one more: it would be written behind the header. */
static void test_most_channels(void)
{
    static const struct memcg_column_spec column = {"t_ns", "ns"};
    struct memcg_channel_spec channels[MEMCG_CHANNELS + 1];
    char names[MEMCG_CHANNELS + 1][8];
    for (size_t i = 0; i <= MEMCG_CHANNELS; i++) {
        snprintf(names[i], sizeof names[i], "c%zu", i);
        channels[i] = (struct memcg_channel_spec){names[i], 0, 1, 1, &column};
    }
    int fd = rings_memfd();
    CHECK(memcg_ring_create(fd, channels, MEMCG_CHANNELS, NULL, 0, rings_page(), 1) == 0, "%d channels", (int)MEMCG_CHANNELS);
    struct memcg_map *map = open_map(fd);
    rings_read_all(map);
    memcg_map_free(map);
    close(fd);
    fd = rings_memfd();
    CHECK(memcg_ring_create(fd, channels, MEMCG_CHANNELS + 1, NULL, 0, rings_page(), 1) == -E2BIG, "%d channels",
          (int)MEMCG_CHANNELS + 1);
    close(fd);
}

static void test_bind(void)
{
    int fd = rings_file(rings_page());
    struct memcg_writer writer;
    struct memcg_channel usage = {0}, none = {0};
    CHECK(memcg_writer_open(fd, &writer) == 0, "no writer");
    CHECK(memcg_channel_bind(&writer, "usage", &usage) == 0, "usage");
    CHECK(usage.index == 0 && usage.columns == 3 && usage.head == 0 && memcg_channel_is_open(&usage), "usage as bound");
    CHECK(memcg_channel_bind(&writer, "stat", &none) == -ENOENT && !none.header, "a channel that is not there");
    CHECK(!memcg_channel_is_open(&none), "what is not there is not open");
    CHECK(memcg_channel_find(&writer, &usage, "limit_hits") == 2, "its last column");
    CHECK(memcg_channel_find(&writer, &usage, "value") == -ENOENT, "another channel's column");
    memcg_channel_close(&usage, ENODEV, 77);
    CHECK(!memcg_channel_is_open(&usage), "closed");
    struct memcg_map *map = open_map(fd);
    CHECK(rings_channels(map)[0].closed_ns == 77 && rings_channels(map)[0].closed_errno == ENODEV, "why it closed");
    memcg_map_free(map);
    memcg_writer_close(&writer);
    memcg_writer_close(&writer); /* of a closed one: nothing */
    close(fd);
}

/* Several times round, with a reader that has closed the file: every window of a capacity is one slice, and a second writer goes
 * on where the first stopped. */
static void test_wrap(void)
{
    int fd = rings_file(rings_page());
    struct memcg_map *map = open_map(dup(fd));
    const uint64_t capacity = rings_channels(map)[0].capacity, rows = 3 * capacity + 7;
    for (uint64_t row = 0; row < rows;) {
        struct memcg_writer writer;
        struct memcg_channel usage;
        CHECK(memcg_writer_open(fd, &writer) == 0 && memcg_channel_bind(&writer, "usage", &usage) == 0, "no writer");
        CHECK(usage.head == row, "a writer begins at %" PRIu64, usage.head);
        for (uint64_t end = row + rows / 2 + 1; row < end && row < rows; row++) {
            for (int c = 0; c < 3; c++)
                memcg_channel_put(&usage, c, (int64_t)row * 3 + c);
            CHECK(memcg_map_head(map, 0) == row, "row %" PRIu64 " is seen before it is whole", row);
            memcg_channel_publish(&usage);
            CHECK(memcg_map_head(map, 0) == row + 1, "row %" PRIu64 " is not seen", row);
        }
        memcg_writer_close(&writer);
    }
    close(fd);
    const uint64_t head = memcg_map_head(map, 0), first = head - capacity;
    for (uint32_t c = 0; c < 3; c++) {
        const int64_t *column = memcg_map_column(map, c), *window = column + first % capacity;
        for (uint64_t i = 0; i < capacity; i++) {
            CHECK(window[i] == (int64_t)(first + i) * 3 + c, "row %" PRIu64 " column %u is %" PRId64, first + i, c, window[i]);
            CHECK(column[i] == column[i + capacity], "the column's second copy differs at %" PRIu64, i);
        }
    }
    CHECK(memcg_map_head(map, 1) == 0, "the other channel moved");
    CHECK(memcg_map_column(map, 5) == NULL, "there is no sixth column");
    memcg_map_free(map);
    memcg_map_free(NULL);
}

/* A reserved ring has its memory, so that no row can meet a full file system; the other kind has none yet. */
static void test_reserve(void)
{
    for (int reserve = 0; reserve < 2; reserve++) {
        int fd = rings_memfd();
        CHECK(memcg_ring_create(fd, RINGS_CHANNELS, RINGS_COUNT, NULL, 0, 1u << 20, reserve) == 0, "reserve %d", reserve);
        struct stat status;
        CHECK(fstat(fd, &status) == 0, "no status");
        int64_t allocated = (int64_t)status.st_blocks * 512;
        CHECK(reserve ? allocated >= status.st_size : allocated < status.st_size / 2, "%" PRId64 " of %" PRId64 " bytes",
              allocated, (int64_t)status.st_size);
        close(fd);
    }
}

static void test_no_access(void)
{
    struct memcg_writer writer = {0};
    struct memcg_map *map = NULL;
    int fd = rings_file(rings_page());
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int reader = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(reader >= 0, "cannot be opened again");
    CHECK(memcg_writer_open(reader, &writer) == -EACCES && !writer.header, "written through a descriptor to read");
    CHECK(memcg_map_open(reader, &map) == 0, "read through a descriptor to read");
    memcg_map_free(map);
    map = NULL;
    close(fd);
    close(reader);
    CHECK(memcg_map_open(reader, &map) == -EBADF && !map, "a closed descriptor");
    CHECK(memcg_writer_open(reader, &writer) == -EBADF, "a closed descriptor");
    int folder = open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(memcg_map_open(folder, &map) < 0 && !map, "a directory");
    CHECK(memcg_ring_create(folder, RINGS_CHANNELS, 1, NULL, 0, rings_page(), 1) < 0, "a ring in a directory");
    close(folder);
}

int main(void)
{
    test_layout();
    test_bad_arguments();
    test_names();
    test_bind();
    test_wrap();
    test_reserve();
    test_no_access();
    test_most_channels();
    return 0;
}
