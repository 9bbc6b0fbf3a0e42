/* SPDX-License-Identifier: Apache-2.0 */

/* Files of "key value" lines: memory.stat (v1 and v2), memory.events, memory.oom_control, cpu.stat, /proc/vmstat.
 *
 *   anon 51036160
 *   file 14884864
 *   kernel_stack 16384
 *
 * Which keys there are differs between kernels and, after a remount, even within one boot. So the layout is learnt from a text,
 * not written down here, and every read verifies each key's bytes before it believes the number behind them: when a line has
 * moved, vanished or appeared, the read says -ESTALE and the caller learns again. Units are the file's own.
 *
 * Numbers follow parse.h's rules. Everything is in one object of fixed size: reading allocates nothing and touches no other
 * memory than it and the text. */
#ifndef MEMCG_KEYED_H
#define MEMCG_KEYED_H

#include <stddef.h>
#include <stdint.h>

#define MEMCG_KEYED_LINES 512   /* /proc/vmstat of 6.18 has 192 */
#define MEMCG_KEYED_TEXT  16384 /* memory.stat is cut at 4 KiB by the kernel, /proc/vmstat is about as long */
#define MEMCG_KEYED_KEY   127   /* the longest key of 6.18 has 30 bytes */

/* Blocks are compared and words loaded whole, so they may touch this many bytes before the first and behind the last of a text. */
#define MEMCG_KEYED_MARGIN 32

/* Room for a text with its margins. */
#define MEMCG_KEYED_ROOM (MEMCG_KEYED_MARGIN + MEMCG_KEYED_TEXT + MEMCG_KEYED_MARGIN)

/* Read it through the functions only. Zeroed, it is an object that has learnt nothing. */
struct memcg_keyed {
    uint32_t count;
    uint32_t length;  /* of the shape, margins not counted */
    uint32_t current; /* which reading is good; a read fills the other one and swaps when it succeeds */
    uint32_t kept;    /* does the current reading's text still stand as it was read? */

    uint16_t key_at[MEMCG_KEYED_LINES]; /* in keys */
    uint8_t key_length[MEMCG_KEYED_LINES];
    uint8_t digits[MEMCG_KEYED_LINES]; /* of each line's number, as the shape has it */

    struct memcg_keyed_reading {
        uint64_t value[MEMCG_KEYED_LINES];
        char text[MEMCG_KEYED_ROOM];
    } readings[2];

    /* The shape: which bits of a new text must be those of the current reading's text. All of a key, the space and the newline,
     * the upper half of a digit, nothing outside. */
    char shape[MEMCG_KEYED_ROOM];

    char keys[MEMCG_KEYED_TEXT];
};

/* Learns the lines of a text and takes its values. -ENODATA empty, -EINVAL malformed, -ERANGE a number is too large, -E2BIG more
 * or longer lines than fit. After a failure nothing is known: the count is 0. */
int memcg_keyed_learn(struct memcg_keyed *k, const char *text, size_t length);

/* Takes the values of a text with the lines that were learnt. -ESTALE other lines, -ENODATA, -EINVAL, -ERANGE and -E2BIG as
 * above. After a failure the values are still those of the last success. */
int memcg_keyed_read(struct memcg_keyed *k, const char *text, size_t length);

/* The line with this key, the first if there are several; -ENOENT. */
int memcg_keyed_find(const struct memcg_keyed *k, const char *key);

/* The key of a line, not NUL-terminated, good until the next learn. `line` < count. */
const char *memcg_keyed_key(const struct memcg_keyed *k, size_t line, size_t *ret_length);

static inline size_t memcg_keyed_count(const struct memcg_keyed *k)
{
    return k->count;
}

/* All values in the file's order, good until the next read. */
static inline const uint64_t *memcg_keyed_values(const struct memcg_keyed *k)
{
    return k->readings[k->current].value;
}

static inline uint64_t memcg_keyed_value(const struct memcg_keyed *k, size_t line)
{
    return memcg_keyed_values(k)[line];
}

#endif
