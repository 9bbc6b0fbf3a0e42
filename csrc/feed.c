/* SPDX-License-Identifier: Apache-2.0 */
#include "feed.h"

#include <errno.h>
#include <string.h>

/* Finds the feed's keys where the source has them now. */
static int find_keys(struct memcg_feed_binding *feed)
{
    for (uint32_t i = 0; i < feed->fields; i++) {
        int index = memcg_source_find(feed->source, feed->spec->field[i].key);
        if (index < 0)
            return -ENODATA; /* a key that a column stands for is gone: absent, not 0 */
        feed->link[i].index = (int16_t)index;
    }
    feed->generation = memcg_source_generation(feed->source);
    return 0;
}

static int bind_feed(const struct memcg_writer *writer, const struct memcg_channel *channel, const struct memcg_feed *spec,
                     struct memcg_feed_binding *feed)
{
    if (spec->fields > MEMCG_CHANNEL_COLUMNS)
        return -E2BIG;
    feed->spec = spec;
    feed->fields = (uint32_t)spec->fields;
    int rc = memcg_source_open(spec->path, spec->format, &feed->source);
    if (rc != 0)
        return rc;
    /* A ring that another process laid out may lack a column: then that value goes nowhere. */
    for (size_t i = 0; i < spec->fields; i++)
        feed->link[i].column = (int16_t)memcg_channel_find(writer, channel, spec->field[i].column);
    return find_keys(feed);
}

/* … or have one that we cannot fill: a row must not show what stood there a lap ago. */
static void find_unfed(struct memcg_fed *fed)
{
    bool is_fed[MEMCG_CHANNEL_COLUMNS] = {false};
    for (uint32_t i = 0; i < fed->feeds; i++)
        for (uint32_t k = 0; k < fed->feed[i].fields; k++)
            if (fed->feed[i].link[k].column >= 0)
                is_fed[fed->feed[i].link[k].column] = true;
    for (uint32_t c = 0; c < fed->channel.columns; c++)
        if (!is_fed[c])
            fed->unfed_column[fed->unfed++] = (int)c;
}

int memcg_fed_open(const struct memcg_config *config, const struct memcg_writer *writer, const char *channel,
                   struct memcg_fed *ret_fed, const char **ret_failed)
{
    if (memcg_channel_bind(writer, channel, &ret_fed->channel) != 0)
        return 0;
    ret_fed->t_ns = memcg_channel_find(writer, &ret_fed->channel, "t_ns");
    for (uint32_t i = 0; i < config->feeds; i++) {
        const struct memcg_feed *spec = &config->feed[i];
        if (strcmp(spec->channel, channel) != 0)
            continue;
        *ret_failed = spec->path;
        if (ret_fed->feeds == MEMCG_FEEDS)
            return -E2BIG;
        int rc = bind_feed(writer, &ret_fed->channel, spec, &ret_fed->feed[ret_fed->feeds++]);
        if (rc != 0)
            return rc;
    }
    find_unfed(ret_fed);
    return ret_fed->t_ns < 0 ? ret_fed->t_ns : 0;
}

void memcg_fed_close(struct memcg_fed *fed)
{
    for (uint32_t i = 0; i < fed->feeds; i++)
        memcg_source_free(fed->feed[i].source);
    fed->feeds = 0;
}

size_t memcg_fed_bytes(const struct memcg_fed *fed)
{
    size_t bytes = 0;
    for (uint32_t i = 0; i < fed->feeds; i++)
        bytes += memcg_source_bytes(fed->feed[i].source);
    return bytes;
}

int memcg_fed_read(struct memcg_fed *fed)
{
    memcg_channel_prefetch(&fed->channel);
    for (uint32_t i = 0; i < fed->unfed; i++)
        memcg_channel_put(&fed->channel, fed->unfed_column[i], MEMCG_NONE);
    for (uint32_t i = 0; i < fed->feeds; i++) {
        struct memcg_feed_binding *feed = &fed->feed[i];
        int rc = memcg_source_read(feed->source);
        if (rc == 0 && feed->generation != memcg_source_generation(feed->source))
            rc = find_keys(feed);
        if (rc != 0)
            return rc;
        for (uint32_t k = 0; k < feed->fields; k++)
            if (feed->link[k].column >= 0)
                memcg_channel_put(&fed->channel, feed->link[k].column,
                                  memcg_source_value(feed->source, (size_t)feed->link[k].index));
    }
    return 0;
}

struct memcg_cell memcg_fed_find(const struct memcg_fed *fed, const char *column)
{
    for (uint32_t i = 0; i < fed->feeds; i++)
        for (uint32_t k = 0; k < fed->feed[i].fields; k++)
            if (strcmp(fed->feed[i].spec->field[k].column, column) == 0)
                return (struct memcg_cell){.feed = &fed->feed[i], .field = k};
    return (struct memcg_cell){0};
}
