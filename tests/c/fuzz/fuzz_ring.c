/* SPDX-License-Identifier: Apache-2.0 */
/* memcg_ring_validate, memcg_map_open and memcg_writer_open on any bytes. The input is the beginning of a file that is as long as its
 * header says, so that columns need not be part of it. What is accepted can be read and written in full, every column of it. */
#include <errno.h>

#include "../rings.h"

enum { LONGEST = 1 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* In a block of exactly its length, where a sanitizer sees one byte read too many. */
static int validate(const uint8_t *data, size_t size)
{
    void *block = malloc(size ? size : 1);
    CHECK(block, "no memory");
    memcpy(block, data, size);
    int rc = memcg_ring_validate(block, size);
    free(block);
    return rc;
}

static void write_all(struct memcg_writer *writer, const struct memcg_map *map)
{
    struct memcg_channel channel;
    for (uint32_t i = 0; i < memcg_map_header(map)->channels; i++) {
        CHECK(memcg_channel_bind(writer, rings_channels(map)[i].name, &channel) == 0, "channel %u has no name to find it by",
              i);
        for (uint64_t row = 0; row < channel.header->capacity; row++) {
            for (uint32_t c = 0; c < channel.columns; c++)
                memcg_channel_put(&channel, (int)c, (int64_t)row);
            memcg_channel_publish(&channel);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    struct memcg_map *map = NULL;
    struct memcg_writer writer;
    uint64_t length = size;
    if (fd < 0)
        fd = rings_memfd();
    if (size >= sizeof(struct memcg_ring_header)) {
        uint64_t said;
        memcpy(&said, data + offsetof(struct memcg_ring_header, file_bytes), sizeof said);
        if (said > length && said <= LONGEST)
            length = said;
    }
    CHECK(ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size && ftruncate(fd, (off_t)length) == 0, "no file");

    int rc = memcg_map_open(fd, &map), writing = memcg_writer_open(fd, &writer);
    CHECK(rc == 0 || rc == -EBADMSG || rc == -EPROTO || rc == -ENOTSUP, "a reader says %d", rc);
    CHECK(writing == rc || rc == -ENOTSUP, "a reader says %d, a writer %d", rc, writing);
    CHECK(length != size || validate(data, size) == writing, "bytes and their file differ");
    if (rc == 0) {
        rings_read_all(map);
        write_all(&writer, map);
        memcg_map_free(map);
    }
    if (writing == 0)
        memcg_writer_close(&writer);
    return 0;
}
