/* SPDX-License-Identifier: Apache-2.0 */
/* One opened pseudo-file and its values. The descriptor stays open and is read with pread at 0, whole, in one go. */
#include "source.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "keyed.h"
#include "parse.h"

enum { MUCH_BYTES = 2048 };                 /* half of the smallest page */
enum { TEXT_BYTES = 1024, FEW_VALUES = 8 }; /* of the formats that are not keyed */

struct memcg_source {
    /* What every read needs, in one cache line … */
    int fd;
    int format;
    char *text;
    size_t text_bytes;
    struct memcg_keyed *keyed;
    uint32_t generation; /* how often the layout was learnt */
    uint32_t count;
    size_t page_bytes;
    int64_t value[FEW_VALUES];     /* … and the next; of the formats that are not keyed */
    size_t bytes;                  /* of this object */
    char key[MEMCG_KEYED_KEY + 1]; /* for memcg_source_key() */
};

static const char *const STATM_KEYS[] = {"size", "resident", "shared", "text", "lib", "data", "dt"};
static const char *const PSI_KEYS[] = {"some_us", "some_avg10", "some_avg60", "some_avg300",
                                       "full_us", "full_avg10", "full_avg60", "full_avg300"};

/* "max", and v1's largest page counter, which is LONG_MAX rounded down to a page of up to 64 KiB. */
static int64_t signed_value(uint64_t value)
{
    return value >= INT64_MAX - 0xffff ? MEMCG_NONE : (int64_t)value;
}

static void take_psi(struct memcg_source *source, const struct memcg_psi *psi)
{
    const uint64_t values[FEW_VALUES] = {psi->some_us, psi->some_avg10, psi->some_avg60, psi->some_avg300,
                                         psi->full_us, psi->full_avg10, psi->full_avg60, psi->full_avg300};
    for (size_t i = 0; i < FEW_VALUES; i++)
        source->value[i] = signed_value(values[i]);
    source->count = psi->has_full ? 8 : 4;
}

static int parse(struct memcg_source *source, size_t length)
{
    uint64_t value, pages[MEMCG_STATM_FIELDS];
    struct memcg_psi psi;
    int rc;
    switch (source->format) {
    case MEMCG_FORMAT_VALUE:
        rc = memcg_parse_value(source->text, length, &value);
        if (rc == 0)
            source->value[0] = signed_value(value);
        return rc;
    case MEMCG_FORMAT_STATM:
        rc = memcg_parse_statm(source->text, length, pages);
        for (size_t i = 0; rc == 0 && i < MEMCG_STATM_FIELDS; i++)
            source->value[i] = signed_value(pages[i] * source->page_bytes);
        return rc;
    case MEMCG_FORMAT_PSI:
        rc = memcg_parse_psi(source->text, length, &psi);
        if (rc == 0)
            take_psi(source, &psi);
        return rc;
    default:
        rc = memcg_keyed_read(source->keyed, source->text, length);
        if (rc == -ESTALE) {
            rc = memcg_keyed_learn(source->keyed, source->text, length);
            source->generation++;
        }
        return rc;
    }
}

/* The whole text. A file that the kernel prints record by record (/proc/vmstat) gives at most a page at a time: then there is more
 * behind what came. Most files are far from that, and one read is all. */
static ssize_t read_text(struct memcg_source *source)
{
    size_t length = 0;
    for (;;) {
        ssize_t n = pread(source->fd, source->text + length, source->text_bytes - length, (off_t)length);
        if (n < 0)
            return -errno;
        length += (size_t)n;
        if (length == source->text_bytes)
            return -EFBIG;
        if (n < MUCH_BYTES)
            return (ssize_t)length;
    }
}

int memcg_source_read(struct memcg_source *source)
{
    ssize_t n = read_text(source);
    return n < 0 ? (int)n : parse(source, (size_t)n);
}

/* One mapping for everything a read touches. Locked page by page as it is first used (the first read touches what later ones
 * do), and only where the limit allows. */
static struct memcg_source *source_alloc(int format)
{
    size_t keyed_bytes = format == MEMCG_FORMAT_KEYED ? sizeof(struct memcg_keyed) : 0;
    size_t text_bytes = format == MEMCG_FORMAT_KEYED ? MEMCG_KEYED_TEXT : TEXT_BYTES;
    size_t bytes = sizeof(struct memcg_source) + keyed_bytes + text_bytes;
    struct memcg_source *source = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (source == MAP_FAILED)
        return NULL;
    (void)mlock2(source, bytes, MLOCK_ONFAULT);
    source->bytes = bytes;
    source->format = format;
    source->keyed = keyed_bytes ? (void *)(source + 1) : NULL;
    source->text = (char *)(source + 1) + keyed_bytes;
    source->text_bytes = text_bytes;
    source->page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    source->count = format == MEMCG_FORMAT_VALUE ? 1 : format == MEMCG_FORMAT_PSI ? FEW_VALUES : MEMCG_STATM_FIELDS;
    return source;
}

int memcg_source_open(const char *path, int format, struct memcg_source **ret_source)
{
    if (format < MEMCG_FORMAT_VALUE || format > MEMCG_FORMAT_PSI)
        return -EINVAL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    struct memcg_source *source = source_alloc(format);
    if (!source) {
        close(fd);
        return -ENOMEM;
    }
    source->fd = fd;
    int rc = format == MEMCG_FORMAT_PSI ? 0 : memcg_source_read(source);
    if (rc != 0) {
        memcg_source_free(source);
        return rc;
    }
    *ret_source = source;
    return 0;
}

bool memcg_source_may_recover(int rc)
{
    return rc == -EMFILE || rc == -ENFILE || rc == -ENOMEM || rc == -EINTR || rc == -EAGAIN;
}

void memcg_source_free(struct memcg_source *source)
{
    if (!source)
        return;
    close(source->fd);
    munmap(source, source->bytes);
}

size_t memcg_source_count(const struct memcg_source *source)
{
    return source->keyed ? memcg_keyed_count(source->keyed) : source->count;
}

const char *memcg_source_key(struct memcg_source *source, size_t index)
{
    if (index >= memcg_source_count(source))
        return NULL;
    if (source->format == MEMCG_FORMAT_STATM)
        return STATM_KEYS[index];
    if (source->format == MEMCG_FORMAT_PSI)
        return PSI_KEYS[index];
    if (source->format == MEMCG_FORMAT_VALUE)
        return "";
    size_t length;
    const char *key = memcg_keyed_key(source->keyed, index, &length);
    memcpy(source->key, key, length);
    source->key[length] = '\0';
    return source->key;
}

int64_t memcg_source_value(const struct memcg_source *source, size_t index)
{
    if (index >= memcg_source_count(source))
        return MEMCG_NONE;
    return source->keyed ? signed_value(memcg_keyed_value(source->keyed, index)) : source->value[index];
}

int memcg_source_find(const struct memcg_source *source, const char *key)
{
    if (source->keyed)
        return memcg_keyed_find(source->keyed, key);
    if (source->format == MEMCG_FORMAT_VALUE)
        return key[0] ? -ENOENT : 0;
    const char *const *keys = source->format == MEMCG_FORMAT_PSI ? PSI_KEYS : STATM_KEYS;
    for (size_t i = 0; i < source->count; i++)
        if (strcmp(keys[i], key) == 0)
            return (int)i;
    return -ENOENT;
}

uint32_t memcg_source_generation(const struct memcg_source *source)
{
    return source->generation;
}

int memcg_source_fd(const struct memcg_source *source)
{
    return source->fd;
}

size_t memcg_source_bytes(const struct memcg_source *source)
{
    return source->bytes;
}
