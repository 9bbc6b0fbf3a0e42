/* SPDX-License-Identifier: Apache-2.0 */
/* The files of one level of the memory hierarchy. */
#include <errno.h>

#include "sampler.h"

static int open_file(const char *path, const char *key, struct memcg_source **ret_source, const char **ret_failed)
{
    if (!path)
        return 0;
    *ret_failed = path;
    int rc = memcg_source_open(path, key[0] ? MEMCG_FORMAT_KEYED : MEMCG_FORMAT_VALUE, ret_source);
    return rc == 0 && memcg_source_find(*ret_source, key) < 0 ? -ENODATA : rc;
}

int memcg_level_open(const struct memcg_level *level, bool limits, struct memcg_level_sources *ret_sources,
                     const char **ret_failed)
{
    ret_sources->hits_key = level->hits_key ? level->hits_key : "";
    ret_sources->high_key = level->high_key;
    int rc = open_file(level->usage, "", &ret_sources->usage, ret_failed);
    if (rc == 0)
        rc = open_file(level->hits, ret_sources->hits_key, &ret_sources->hits, ret_failed);
    if (rc == 0 && limits)
        rc = open_file(level->limit, "", &ret_sources->limit, ret_failed);
    if (rc == 0 && limits)
        rc = open_file(level->high, "", &ret_sources->high, ret_failed);
    return rc;
}

int64_t memcg_level_value(struct memcg_source *source, const char *key)
{
    if (!source || memcg_source_read(source) != 0)
        return MEMCG_NONE;
    int index = memcg_source_find(source, key); /* anew: a few lines, and they may have moved */
    return index < 0 ? MEMCG_NONE : memcg_source_value(source, (size_t)index);
}

int64_t memcg_level_hits(const struct memcg_level_sources *level, int64_t *ret_high)
{
    int64_t hits = memcg_level_value(level->hits, level->hits_key);
    int index = hits != MEMCG_NONE && level->high_key ? memcg_source_find(level->hits, level->high_key) : -1;
    *ret_high = index < 0 ? 0 : memcg_source_value(level->hits, (size_t)index);
    return hits == MEMCG_NONE ? hits : hits + *ret_high;
}

void memcg_level_close(struct memcg_level_sources *sources)
{
    memcg_source_free(sources->usage);
    memcg_source_free(sources->limit);
    memcg_source_free(sources->high);
    memcg_source_free(sources->hits);
    *sources = (struct memcg_level_sources){0};
}

size_t memcg_level_bytes(const struct memcg_level_sources *sources)
{
    const struct memcg_source *const all[] = {sources->usage, sources->limit, sources->high, sources->hits};
    size_t bytes = 0;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        bytes += all[i] ? memcg_source_bytes(all[i]) : 0;
    return bytes;
}
