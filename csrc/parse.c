/* SPDX-License-Identifier: Apache-2.0 */
#include "parse.h"

#include <string.h>

/* Steps over a word that must stand at *at. Inlined, so that a literal is compared in one or two loads. */
static inline int skip_word(const char **at, const char *end, const char *word, size_t length)
{
    if ((size_t)(end - *at) < length || memcmp(*at, word, length) != 0)
        return 0;
    *at += length;
    return 1;
}
#define SKIP(at, end, literal) skip_word(at, end, literal, sizeof(literal) - 1)

/* memory.current, memory.usage_in_bytes, memory.max, memory.failcnt, … : bytes, or a count
 *
 *   67108864
 *
 * or "max" where a v2 limit is not set. v1 prints LONG_MAX rounded down to a page there, which is returned as the number it is. */
int memcg_parse_value(const char *text, size_t length, uint64_t *ret_value)
{
    const char *at = text;
    const char *end = text + length;
    uint64_t value;

    if (length == 0)
        return -ENODATA;
    if (SKIP(&at, end, "max")) {
        value = MEMCG_NO_LIMIT;
    } else {
        int rc = memcg_parse_u64(&at, end, &value);
        if (rc < 0)
            return rc;
    }
    if (!SKIP(&at, end, "\n") || at != end)
        return -EINVAL;
    *ret_value = value;
    return 0;
}

/* "1.59" percent -> 159 */
static int parse_hundredths(const char **at, const char *end, uint64_t *ret_hundredths)
{
    const char *p = *at;
    uint64_t whole;
    int rc = memcg_parse_u64(&p, end, &whole);
    if (rc < 0)
        return rc;
    if (end - p < 3 || p[0] != '.' || (unsigned)p[1] - '0' > 9 || (unsigned)p[2] - '0' > 9)
        return -EINVAL;
    if (whole > (UINT64_MAX - 99) / 100)
        return -ERANGE;
    *ret_hundredths = whole * 100 + (uint64_t)(p[1] - '0') * 10 + (uint64_t)(p[2] - '0');
    *at = p + 3;
    return 0;
}

/* The rest of a line behind its "some " or "full ": avg10, avg60, avg300, total. Fields that a later kernel adds behind pass. */
static int parse_psi_line(const char **at, const char *end, uint64_t ret_fields[4])
{
    int rc;

    if (!SKIP(at, end, "avg10="))
        return -EINVAL;
    if ((rc = parse_hundredths(at, end, &ret_fields[0])) < 0)
        return rc;
    if (!SKIP(at, end, " avg60="))
        return -EINVAL;
    if ((rc = parse_hundredths(at, end, &ret_fields[1])) < 0)
        return rc;
    if (!SKIP(at, end, " avg300="))
        return -EINVAL;
    if ((rc = parse_hundredths(at, end, &ret_fields[2])) < 0)
        return rc;
    if (!SKIP(at, end, " total="))
        return -EINVAL;
    if ((rc = memcg_parse_u64(at, end, &ret_fields[3])) < 0)
        return rc;
    if (*at < end && **at == ' ')
        *at = memchr(*at, '\n', (size_t)(end - *at));
    return *at && SKIP(at, end, "\n") ? 0 : -EINVAL;
}

/* memory.pressure, cpu.pressure, io.pressure, /proc/pressure/memory, …: averages in percent, total in microseconds
 *
 *   some avg10=1.59 avg60=0.29 avg300=0.06 total=201495
 *   full avg10=1.59 avg60=0.29 avg300=0.06 total=198205
 *
 * Other lines pass. Without a "some" line (irq.pressure has "full" alone) there is no answer: -ENODATA. */
int memcg_parse_psi(const char *text, size_t length, struct memcg_psi *ret_psi)
{
    const char *at = text;
    const char *end = text + length;
    uint64_t some[4], full[4] = {0};
    int has_some = 0, has_full = 0;

    while (at < end) {
        int rc = 0;
        if (SKIP(&at, end, "some ")) {
            rc = parse_psi_line(&at, end, some);
            has_some = 1;
        } else if (SKIP(&at, end, "full ")) {
            rc = parse_psi_line(&at, end, full);
            has_full = 1;
        } else {
            at = memchr(at, '\n', (size_t)(end - at));
            if (!at)
                return -EINVAL;
            at++;
        }
        if (rc < 0)
            return rc;
    }
    if (!has_some)
        return -ENODATA;
    *ret_psi = (struct memcg_psi){some[0], some[1], some[2], some[3], full[0], full[1], full[2], full[3], has_full};
    return 0;
}

/* /proc/PID/statm, in pages: size resident shared text lib data dt
 *
 *   14921 14149 11913 1 0 2551 0
 *
 * A zombie (and a kernel thread) has no memory to speak of and reads "0 0 0 0 0 0 0" successfully: -ESRCH. */
int memcg_parse_statm(const char *text, size_t length, uint64_t ret_pages[MEMCG_STATM_FIELDS])
{
    const char *at = text;
    const char *end = text + length;
    uint64_t pages[MEMCG_STATM_FIELDS];
    uint64_t any = 0;

    if (length == 0)
        return -ENODATA;
    for (int i = 0; i < MEMCG_STATM_FIELDS; i++) {
        if (i > 0 && !SKIP(&at, end, " "))
            return -EINVAL;
        int rc = memcg_parse_u64(&at, end, &pages[i]);
        if (rc < 0)
            return rc;
        any |= pages[i];
    }
    if (!SKIP(&at, end, "\n") || at != end)
        return -EINVAL;
    if (any == 0)
        return -ESRCH;
    memcpy(ret_pages, pages, sizeof pages);
    return 0;
}
