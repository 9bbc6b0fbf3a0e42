/* SPDX-License-Identifier: Apache-2.0 */
#include "keyed.h"

#include <string.h>

#include "parse.h"

/* How a read is made fast. Nearly always the new text has the shape of the last one: the same lines, and numbers of as many
 * digits. Then every byte that is not a digit is where it was, and one pass over the whole text in blocks, without a look at
 * where lines begin, verifies all keys at once; the numbers' places are known, so each is converted from words of 8 digits on its
 * own, and no branch depends on what the digits are. Where a number has become longer or shorter, the pass stops at its line, the
 * rest of the shape is moved by the difference, and the pass goes on.
 *
 * The new text is copied into a buffer with margins first, so that blocks and words need no check of bounds. */

enum { BLOCK = 32 };

#define SAME  ((char)0xff) /* in the shape: the byte of a key, a space or a newline */
#define DIGIT ((char)0xf0) /* '0' to '9', and ':' to '?', which load_digits() finds */

#define REPEAT(byte) (UINT64_MAX / 255 * (byte))

static inline uint64_t load(const char *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

/* The first of 8 bytes as the lowest of the word. */
static inline uint64_t load_text(const char *at)
{
    uint64_t word = load(at);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

/* The last `count` (1 to 8) of the 8 characters before `end`, as bytes 0 to 9; anything else sets the top bit of some byte in
 * *bad. */
static inline uint64_t load_digits(const char *end, unsigned count, uint64_t *bad)
{
    uint64_t digits = (load_text(end - 8) ^ REPEAT('0')) & (UINT64_MAX << (64 - 8 * count));
    *bad |= (digits + REPEAT(0x76)) | digits;
    return digits;
}

/* 8 bytes 0 to 9, the first digit lowest, to their number: neighbours are joined to pairs, pairs to fours, fours to eight. */
static inline uint64_t join_digits(uint64_t digits)
{
    digits = (digits * (1 + (10 << 8)) >> 8) & 0x00ff00ff00ff00ff;
    digits = (digits * (1 + (100 << 16)) >> 16) & 0x0000ffff0000ffff;
    return digits * (1 + (UINT64_C(10000) << 32)) >> 32;
}


/* The text of a reading. */
static inline char *text_of(struct memcg_keyed *k, uint32_t reading)
{
    return k->readings[reading].text + MEMCG_KEYED_MARGIN;
}

/* The first place from `at` on where a text does not have the shape, or a place behind the shape if there is none. */
static size_t find_misfit(const char *text, const char *like, const char *shape, size_t at, size_t length)
{
    for (; at < length; at += BLOCK) {
        uint64_t differ = 0;
        for (size_t i = at; i < at + BLOCK; i += sizeof differ)
            differ |= (load(text + i) ^ load(like + i)) & load(shape + i);
        if (differ)
            break;
    }
    while (at < length && ((text[at] ^ like[at]) & shape[at]) == 0)
        at++;
    return at;
}

/* Makes the shape fit the number that a line has in a new text, and moves everything behind it. */
static int refit_line(struct memcg_keyed *k, size_t line, const char *text, size_t length)
{
    char *like = text_of(k, k->current);
    char *shape = k->shape + MEMCG_KEYED_MARGIN;
    size_t newline = k->newline[line];
    const char *at = text + newline - k->digits[line];
    uint64_t value;

    int rc = memcg_parse_u64(&at, text + length, &value);
    if (rc < 0)
        return rc;
    if (*at != '\n')
        return -EINVAL;
    size_t moved = (size_t)(at - text);
    if (k->length - newline + moved > MEMCG_KEYED_TEXT)
        return -ESTALE;

    k->kept = 0;
    memmove(like + moved, like + newline, k->length - newline);
    memmove(shape + moved, shape + newline, k->length - newline);
    if (moved > newline) {
        memset(like + newline, '0', moved - newline);
        memset(shape + newline, DIGIT, moved - newline);
    } else {
        memset(shape + k->length - newline + moved, 0, newline - moved);
    }
    k->length = (uint32_t)(k->length - newline + moved);
    k->digits[line] = (uint8_t)(k->digits[line] - newline + moved);
    for (size_t i = line; i < k->count; i++)
        k->newline[i] = (uint16_t)(k->newline[i] - newline + moved);
    return 0;
}

/* Makes the shape that of a new text, if that has the same lines. */
static int fit_shape(struct memcg_keyed *k, const char *text, size_t length)
{
    size_t line = 0;
    size_t at = 0;

    for (;;) {
        at = find_misfit(text, text_of(k, k->current), k->shape + MEMCG_KEYED_MARGIN, at, k->length);
        if (at >= k->length)
            return length == k->length ? 0 : -ESTALE;
        if (at >= length)
            return -ESTALE;
        while (k->newline[line] < at)
            line++;
        if (at < (size_t)k->newline[line] - k->digits[line])
            return -ESTALE;
        int rc = refit_line(k, line, text, length);
        if (rc < 0)
            return rc;
        at = k->newline[line] + 1u;
    }
}

/* Takes the numbers of a text that fits the shape. */
static int take_values(const struct memcg_keyed *k, const char *text, uint64_t *ret_values)
{
    uint64_t bad = 0;

    for (size_t i = 0, count = k->count; i < count; i++) {
        const char *end = text + k->newline[i];
        unsigned digits = k->digits[i];
        if (digits <= 8) {
            ret_values[i] = join_digits(load_digits(end, digits, &bad));
        } else if (digits <= 16) {
            ret_values[i] = join_digits(load_digits(end - 8, digits - 8, &bad)) * 100000000 +
                            join_digits(load_digits(end, 8, &bad));
        } else {
            const char *at = end - digits;
            int rc = memcg_parse_u64(&at, end, &ret_values[i]);
            if (rc < 0 || at != end)
                return rc < 0 ? rc : -EINVAL;
        }
    }
    return bad & REPEAT(0x80) ? -EINVAL : 0;
}

int memcg_keyed_read(struct memcg_keyed *k, const char *text, size_t length)
{
    uint32_t other = k->current ^ 1;

    if (length == 0)
        return -ENODATA;
    if (length > MEMCG_KEYED_TEXT)
        return -E2BIG;
    if (text[length - 1] != '\n')
        return -EINVAL;
    if (k->kept && length == k->length && memcmp(text_of(k, k->current), text, length) == 0)
        return 0;

    memcpy(text_of(k, other), text, length);
    int rc = fit_shape(k, text_of(k, other), length);
    if (rc == 0)
        rc = take_values(k, text_of(k, other), k->readings[other].value);
    if (rc < 0)
        return rc;
    k->current = other;
    k->kept = 1;
    return 0;
}

/* Notes one line's key and shape. */
static int learn_line(struct memcg_keyed *k, const char *line, size_t key_length, size_t digits)
{
    char *shape = k->shape + MEMCG_KEYED_MARGIN + k->length;
    size_t i = k->count;
    size_t key_at = i ? k->key_at[i - 1] + (size_t)k->key_length[i - 1] : 0;

    if (key_length == 0 || digits == 0)
        return -EINVAL;
    if (digits > MEMCG_DIGITS_MAX)
        return -ERANGE;
    if (key_length > MEMCG_KEYED_KEY || i == MEMCG_KEYED_LINES)
        return -E2BIG;
    for (size_t d = 0; d < digits; d++) {
        if ((unsigned)line[key_length + 1 + d] - '0' > 9)
            return -EINVAL;
    }
    memcpy(k->keys + key_at, line, key_length);
    memset(shape, SAME, key_length + 1);
    memset(shape + key_length + 1, DIGIT, digits);
    shape[key_length + 1 + digits] = SAME;
    k->key_at[i] = (uint16_t)key_at;
    k->key_length[i] = (uint8_t)key_length;
    k->digits[i] = (uint8_t)digits;
    k->newline[i] = (uint16_t)(k->length + key_length + 1 + digits);
    k->length = k->newline[i] + 1u;
    k->count++;
    return 0;
}
