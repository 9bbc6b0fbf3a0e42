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

/* As wide as the registers of any 64-bit machine; the compiler splits it where there are none. */
typedef uint64_t vector __attribute__((vector_size(BLOCK / 2)));

static inline vector load_vector(const char *at)
{
    vector loaded;
    memcpy(&loaded, at, sizeof loaded);
    return loaded;
}

/* The last `count` (1 to 8) of the 8 characters before `end`, '0' to '?', as bytes 0 to 15, the first lowest, and 0 for the
 * others. A byte above 9 sets the top bit of some byte in *bad. */
static inline uint64_t load_digits(const char *end, unsigned count, uint64_t *bad)
{
    static const uint64_t low_halves[] = {
        0,
        REPEAT(0x0f) << 56,
        REPEAT(0x0f) << 48,
        REPEAT(0x0f) << 40,
        REPEAT(0x0f) << 32,
        REPEAT(0x0f) << 24,
        REPEAT(0x0f) << 16,
        REPEAT(0x0f) << 8,
        REPEAT(0x0f),
    };
    uint64_t digits;
    memcpy(&digits, end - sizeof digits, sizeof digits);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    digits = __builtin_bswap64(digits);
#endif
    digits &= low_halves[count];
    *bad |= digits + REPEAT(0x80 - 10);
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
        size_t half = at + BLOCK / 2;
        vector differ = ((load_vector(text + at) ^ load_vector(like + at)) & load_vector(shape + at)) |
                        ((load_vector(text + half) ^ load_vector(like + half)) & load_vector(shape + half));
        if (differ[0] | differ[1])
            break;
    }
    while (at < length && ((text[at] ^ like[at]) & shape[at]) == 0)
        at++;
    return at;
}

/* Makes the shape fit the number that a line has in a new text, and moves everything behind it. `newline` is where the line ends
 * in the shape, and then where it ends in the text. */
static int refit_line(struct memcg_keyed *k, size_t line, size_t *newline, const char *text, size_t length)
{
    char *like = text_of(k, k->current);
    char *shape = k->shape + MEMCG_KEYED_MARGIN;
    size_t from = *newline;
    const char *at = text + from - k->digits[line];
    uint64_t value;

    int rc = memcg_parse_u64(&at, text + length, &value);
    if (rc < 0)
        return rc;
    if (*at != '\n')
        return -EINVAL;
    size_t to = (size_t)(at - text);
    size_t behind = k->length - from;
    if (to + behind > MEMCG_KEYED_TEXT)
        return -ESTALE;

    k->kept = 0;
    memmove(like + to, like + from, behind);
    memmove(shape + to, shape + from, behind);
    for (size_t i = from; i < to; i++) {
        like[i] = '0';
        shape[i] = DIGIT;
    }
    for (size_t i = to; i < from; i++)
        shape[i + behind] = 0;
    k->length = (uint32_t)(to + behind);
    k->digits[line] = (uint8_t)(k->digits[line] + to - from);
    *newline = to;
    return 0;
}

/* Makes the shape that of a new text, if that has the same lines. */
static int fit_shape(struct memcg_keyed *k, const char *text, size_t length)
{
    size_t at = 0;
    size_t line = 0;
    size_t newline = k->count ? k->key_length[0] + 1u + k->digits[0] : 0;

    for (;;) {
        at = find_misfit(text, text_of(k, k->current), k->shape + MEMCG_KEYED_MARGIN, at, k->length);
        if (at >= k->length)
            return length == k->length ? 0 : -ESTALE;
        if (at >= length) /* what is there was left by an earlier text */
            return -ESTALE;
        while (newline < at) {
            line++;
            newline += k->key_length[line] + 2u + k->digits[line];
        }
        if (at < newline - k->digits[line])
            return -ESTALE;
        int rc = refit_line(k, line, &newline, text, length);
        if (rc < 0)
            return rc;
        at = newline + 1;
    }
}

/* Takes the numbers of a text that fits the shape. */
static int take_values(const struct memcg_keyed *k, const char *text, uint64_t *ret_values)
{
    const char *end = text - 1;
    uint64_t bad = 0;

    for (size_t i = 0, count = k->count; i < count; i++) {
        unsigned digits = k->digits[i];
        end += k->key_length[i] + 2u + digits;
        if (digits <= 8) {
            ret_values[i] = join_digits(load_digits(end, digits, &bad));
        } else if (digits <= 16) {
            ret_values[i] =
                join_digits(load_digits(end - 8, digits - 8, &bad)) * 100000000 + join_digits(load_digits(end, 8, &bad));
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

static void forget_lines(struct memcg_keyed *k)
{
    memset(k->shape + MEMCG_KEYED_MARGIN, 0, k->length);
    k->count = 0;
    k->length = 0;
    k->kept = 0;
}

/* Notes the key and the shape of one line. */
static int learn_line(struct memcg_keyed *k, const char *line, const char *newline)
{
    uint32_t i = k->count;
    const char *space = memchr(line, ' ', (size_t)(newline - line));
    if (!space || space == line)
        return -EINVAL;
    const char *at = space + 1;
    uint64_t value;
    int rc = memcg_parse_u64(&at, newline, &value);
    if (rc < 0)
        return rc;
    if (at != newline)
        return -EINVAL;
    if (space - line > MEMCG_KEYED_KEY || i == MEMCG_KEYED_LINES)
        return -E2BIG;

    size_t key_length = (size_t)(space - line);
    size_t digits = (size_t)(newline - space) - 1;
    char *shape = k->shape + MEMCG_KEYED_MARGIN + k->length;
    memset(shape, SAME, key_length + 1);
    memset(shape + key_length + 1, DIGIT, digits);
    shape[key_length + 1 + digits] = SAME;

    k->key_at[i] = (uint16_t)(i ? k->key_at[i - 1] + k->key_length[i - 1] : 0);
    k->key_length[i] = (uint8_t)key_length;
    memcpy(k->keys + k->key_at[i], line, key_length);
    k->digits[i] = (uint8_t)digits;
    k->length += (uint32_t)(key_length + 1 + digits + 1);
    k->count = i + 1;
    return 0;
}

int memcg_keyed_learn(struct memcg_keyed *k, const char *text, size_t length)
{
    int rc = 0;

    forget_lines(k);
    if (length > MEMCG_KEYED_TEXT)
        return -E2BIG;
    for (const char *at = text, *end = text + length; rc == 0 && at < end;) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        if (newline) {
            rc = learn_line(k, at, newline);
            at = newline + 1;
        } else {
            rc = -EINVAL;
        }
    }
    if (rc == 0) {
        memcpy(text_of(k, k->current), text, length);
        rc = memcg_keyed_read(k, text, length);
    }
    if (rc < 0)
        forget_lines(k);
    return rc;
}

int memcg_keyed_find(const struct memcg_keyed *k, const char *key)
{
    size_t length = strlen(key);

    for (uint32_t i = 0; i < k->count; i++) {
        if (k->key_length[i] == length && memcmp(k->keys + k->key_at[i], key, length) == 0)
            return (int)i;
    }
    return -ENOENT;
}

const char *memcg_keyed_key(const struct memcg_keyed *k, size_t line, size_t *ret_length)
{
    *ret_length = k->key_length[line];
    return k->keys + k->key_at[line];
}
