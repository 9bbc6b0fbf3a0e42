/* SPDX-License-Identifier: Apache-2.0 */
/* A source bound to the columns of a channel. */
#ifndef MEMCG_FEED_H
#define MEMCG_FEED_H

#include "ring.h"
#include "source.h"

enum { MEMCG_FEEDS = 8 }; /* at most, in one channel */

/* Everything that a tick needs stands together: between ticks the service has had the caches. */
struct memcg_feed_binding {
    struct memcg_source *source;
    uint32_t generation; /* of the source's layout that `index` speaks of */
    uint32_t fields;
    struct {
        int16_t index;  /* in the source */
        int16_t column; /* in the channel; -1 = it has none for this */
    } link[MEMCG_CHANNEL_COLUMNS];
    const struct memcg_feed *spec;
};

/* A channel with all that feeds it. */
struct memcg_fed {
    struct memcg_channel channel;
    int t_ns; /* position of that column */
    uint32_t unfed;
    int unfed_column[MEMCG_CHANNEL_COLUMNS]; /* filled by the channel's writer itself, or by nobody: MEMCG_NONE */
    uint32_t feeds;
    struct memcg_feed_binding feed[MEMCG_FEEDS];
};

/* Binds the channel and opens what config->feed says feeds it; *ret_failed names the file that could not be opened.
 * Nothing to do (0, and the channel's header stays NULL) where the ring has no such channel. */
int memcg_fed_open(const struct memcg_config *config, const struct memcg_writer *writer, const char *channel,
                   struct memcg_fed *ret_fed, const char **ret_failed);
void memcg_fed_close(struct memcg_fed *fed);
size_t memcg_fed_bytes(const struct memcg_fed *fed);

/* Reads every feed and puts its values into the row that is being written; what nothing feeds becomes MEMCG_NONE, until the caller
 * knows better. Publishing is the caller's. */
int memcg_fed_read(struct memcg_fed *fed);

/* Where one column's value comes from; `feed` NULL = nothing feeds it. */
struct memcg_cell {
    const struct memcg_feed_binding *feed;
    size_t field;
};
struct memcg_cell memcg_fed_find(const struct memcg_fed *fed, const char *column);
/* Its value as last read; 0 where nothing feeds it. */
static inline int64_t memcg_cell_value(struct memcg_cell cell)
{
    return cell.feed ? memcg_source_value(cell.feed->source, (size_t)cell.feed->link[cell.field].index) : 0;
}

#endif
