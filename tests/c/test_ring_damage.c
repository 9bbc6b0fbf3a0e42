/* SPDX-License-Identifier: Apache-2.0 */
/* A ring that was truncated, overwritten or made by somebody else: it is refused, or all of it can be read. Never a crash. */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <sys/stat.h>

#include "rings.h"

static uint32_t accepted, refused;

/* What a reader and a writer make of the file now: 0, or the error that both give. */
static int try(int fd)
{
    struct memcg_map *map = NULL;
    struct memcg_writer writer = {0};
    int rc = memcg_map_open(fd, &map);
    CHECK((map != NULL) == (rc == 0), "the output after %d", rc);
    int writing = memcg_writer_open(fd, &writer);
    CHECK(writing == rc || rc == -ENOTSUP, "a reader says %d, a writer %d", rc, writing);
    if (rc == 0) {
        rings_read_all(map);
        for (uint32_t i = 0; i < memcg_map_header(map)->channels; i++) {
            struct memcg_channel channel = {0};
            CHECK(memcg_channel_bind(&writer, rings_channels(map)[i].name, &channel) == 0, "bind");
            for (uint32_t c = 0; c < channel.columns; c++)
                memcg_channel_put(&channel, (int)c, 1);
        }
        accepted++;
    } else
        refused++;
    memcg_map_free(map);
    memcg_writer_close(&writer);
    return rc;
}

static void put(int fd, uint64_t offset, const void *bytes, size_t length)
{
    CHECK(pwrite(fd, bytes, length, (off_t)offset) == (ssize_t)length, "cannot write at %" PRIu64, offset);
}

/* Header and tables as they were laid out, to put back after each damage. */
struct image {
    size_t bytes;
    union {
        struct memcg_ring_header header;
        unsigned char byte[4096];
    };
};

static struct image take(int fd)
{
    struct image image;
    CHECK(pread(fd, &image.header, sizeof image.header, 0) == sizeof image.header, "no header");
    image.bytes = image.header.info_offset + image.header.info_bytes;
    CHECK(image.bytes <= sizeof image.byte, "%zu bytes of tables", image.bytes);
    CHECK(pread(fd, image.byte, image.bytes, 0) == (ssize_t)image.bytes, "no tables");
    return image;
}

static void test_length(void)
{
    int fd = rings_file(rings_page());
    const struct image image = take(fd);
    struct stat status;
    CHECK(fstat(fd, &status) == 0, "no status");
    const off_t whole = status.st_size, page = (off_t)rings_page();
    off_t lengths[4096 + 64], count = 0;
    for (off_t length = 0; length <= (off_t)image.bytes; length++)
        lengths[count++] = length;
    for (off_t length = page; length < whole; length += page) {
        lengths[count++] = length - 1;
        lengths[count++] = length;
    }
    lengths[count++] = whole - 1;
    lengths[count++] = whole + 1;
    lengths[count++] = whole + page;
    for (off_t i = 0; i < count; i++) {
        CHECK(ftruncate(fd, lengths[i]) == 0, "ftruncate");
        int rc = try(fd);
        CHECK(rc == -EBADMSG, "%" PRId64 " bytes of %" PRId64 " gave %d", (int64_t)lengths[i], (int64_t)whole, rc);
        CHECK(ftruncate(fd, whole) == 0, "ftruncate");
        put(fd, 0, image.byte, image.bytes);
    }
    CHECK(try(fd) == 0, "the whole file again");
    close(fd);
}

static void test_zeroed(void)
{
    static const unsigned char zeros[sizeof(struct image)];
    int fd = rings_file(rings_page());
    const struct image image = take(fd);
    const struct {
        uint64_t begin, end;
    } pieces[] = {{0, image.bytes},
                  {0, 8}, /* laid out but for the magic: the maker crashed */
                  {8, image.bytes},
                  {0, sizeof image.header},
                  {image.header.channels_offset, image.header.columns_offset},
                  {image.header.columns_offset, image.header.info_offset}};
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
        put(fd, pieces[i].begin, zeros, (size_t)(pieces[i].end - pieces[i].begin));
        int rc = try(fd);
        CHECK(rc == -EBADMSG || rc == -EPROTO, "zeros from %" PRIu64 " to %" PRIu64 " gave %d", pieces[i].begin, pieces[i].end,
              rc);
        put(fd, 0, image.byte, image.bytes);
    }
    CHECK(try(fd) == 0, "the whole file again");
    close(fd);
}

static void test_versions(void)
{
    int fd = rings_file(rings_page());
    const struct image image = take(fd);
    const uint32_t version = MEMCG_RING_VERSION + 1, order = __builtin_bswap32(MEMCG_RING_BYTE_ORDER);
    put(fd, offsetof(struct memcg_ring_header, version), &version, sizeof version);
    CHECK(try(fd) == -EPROTO, "the next version");
    put(fd, 0, image.byte, image.bytes);
    put(fd, offsetof(struct memcg_ring_header, byte_order), &order, sizeof order);
    CHECK(try(fd) == -EPROTO, "the other byte order");
    put(fd, 0, image.byte, image.bytes);
    put(fd, 0, "PYMEMCH", 8);
    CHECK(try(fd) == -EBADMSG, "no ring at all");
    close(fd);
}

/* Words that say where something stands, or how it is to be read: no flipped bit of them may pass. */
static bool is_structure(const struct image *image, uint64_t at)
{
    static const struct {
        size_t offset, bytes;
    } words[] = {
#define WORD(member) {offsetof(struct memcg_ring_header, member), sizeof(((struct memcg_ring_header *)0)->member)}
        WORD(magic), WORD(byte_order), WORD(version), WORD(file_bytes), WORD(align_bytes), WORD(channels), WORD(columns),
#undef WORD
    };
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (at >= words[i].offset && at < words[i].offset + words[i].bytes)
            return true;
    if (at >= image->header.channels_offset && at < image->header.columns_offset) {
        uint64_t in = (at - image->header.channels_offset) % sizeof(struct memcg_channel_header);
        return in >= offsetof(struct memcg_channel_header, first_column) && in < offsetof(struct memcg_channel_header, begun);
    }
    if (at >= image->header.columns_offset && at < image->header.info_offset) {
        uint64_t in = (at - image->header.columns_offset) % sizeof(struct memcg_column_header);
        return in >= offsetof(struct memcg_column_header, dtype) && in < offsetof(struct memcg_column_header, offset);
    }
    return false;
}

static void test_bit_flips(void)
{
    int fd = rings_file(rings_page());
    const struct image image = take(fd);
    accepted = refused = 0;
    for (uint64_t at = 0; at < image.bytes; at++) {
        for (int bit = 0; bit < 8; bit++) {
            unsigned char damaged = (unsigned char)(image.byte[at] ^ 1u << bit);
            put(fd, at, &damaged, 1);
            int rc = try(fd);
            CHECK(rc == -EBADMSG || rc == -EPROTO || (rc == 0 && !is_structure(&image, at)),
                  "bit %d of byte %" PRIu64 " gave %d", bit, at, rc);
            put(fd, at, &image.byte[at], 1);
            put(fd, 0, image.byte, image.bytes); /* the writer has been there too */
        }
    }
    CHECK(accepted > 0 && refused > 0, "%u accepted, %u refused: nothing was tried", accepted, refused);
    CHECK(try(fd) == 0, "the whole file again");
    close(fd);
}

/* Every word of header and tables replaced by numbers that make sums wrap and offsets point elsewhere. */
static void test_words(void)
{
    int fd = rings_file(rings_page());
    const struct image image = take(fd);
    const uint64_t file = image.header.file_bytes, page = rings_page();
    const uint64_t numbers[] = {0,
                                1,
                                7,
                                8,
                                64,
                                127,
                                129,
                                page,
                                page - 8,
                                page / 2,
                                2 * page,
                                file - page,
                                file - 8,
                                file,
                                file + page,
                                file / 8,
                                INT32_MAX,
                                INT64_MAX,
                                UINT32_MAX,
                                UINT64_MAX,
                                UINT64_MAX - 7,
                                UINT64_MAX - page + 1,
                                1ull << 31,
                                1ull << 32,
                                1ull << 61,
                                1ull << 63,
                                (1ull << 61) + 512};
    for (uint64_t at = 0; at + 8 <= image.bytes; at += 4) {
        for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
            for (size_t width = 4; width <= 8; width += 4) {
                const uint32_t half = (uint32_t)numbers[i];
                put(fd, at, width == 4 ? (const void *)&half : (const void *)&numbers[i], width);
                int rc = try(fd);
                CHECK(rc == 0 || rc == -EBADMSG || rc == -EPROTO || rc == -ENOTSUP, "%" PRIu64 " at %" PRIu64 " gave %d",
                      numbers[i], at, rc);
                put(fd, 0, image.byte, image.bytes);
            }
        }
    }
    CHECK(try(fd) == 0, "the whole file again");
    close(fd);
}

/* A recording from a machine of smaller pages than ours cannot be mapped column by column, and says so. */
static void test_small_alignment(void)
{
    if (rings_page() == 4096)
        return; /* no format has less */
    int fd = rings_file(rings_page());
    const uint32_t align = 4096;
    put(fd, offsetof(struct memcg_ring_header, align_bytes), &align, sizeof align);
    CHECK(try(fd) == -ENOTSUP, "columns aligned to less than a page");
    close(fd);
}

int main(void)
{
    test_length();
    test_zeroed();
    test_versions();
    test_bit_flips();
    test_words();
    test_small_alignment();
    return 0;
}
