/* SPDX-License-Identifier: Apache-2.0 */

/* The text of one pseudo-file, whole, as one pread gave it -> numbers. Pure: no I/O, no locale, no allocation, never a byte
 * past `length`. Each function says first what its file looks like and in which unit.
 *
 * What the kernel prints ends with a newline, so a text without one was cut short and is malformed. Numbers are unsigned
 * decimals without a sign: where a counter could be negative the kernel clamps it (memory.stat) or prints it wrapped
 * (/proc/vmstat), so the whole range of uint64_t is legal and '-' is not.
 *
 * 0, or: -ENODATA nothing there, -EINVAL malformed, -ERANGE a number that no uint64_t holds. Outputs stay untouched then. */
#ifndef MEMCG_PARSE_H
#define MEMCG_PARSE_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#define MEMCG_NO_LIMIT UINT64_MAX /* "max" */

#define MEMCG_DIGITS_ANY 19 /* so many digits always fit in a uint64_t */
#define MEMCG_DIGITS_MAX 20 /* and more never do; the kernel prints no leading zeros, so they are not told apart */

struct memcg_psi {
    uint64_t some_avg10, some_avg60, some_avg300; /* hundredths of a percent */
    uint64_t some_us;
    uint64_t full_avg10, full_avg60, full_avg300; /* 0 unless has_full */
    uint64_t full_us;
    int has_full; /* before Linux 5.13 the cpu file has no "full" line */
};

enum { MEMCG_STATM_FIELDS = 7 };

int memcg_parse_value(const char *text, size_t length, uint64_t *ret_value);
int memcg_parse_psi(const char *text, size_t length, struct memcg_psi *ret_psi);
int memcg_parse_statm(const char *text, size_t length, uint64_t ret_pages[MEMCG_STATM_FIELDS]);

/* One decimal number at *at, which moves behind its last digit. -EINVAL there is no digit, -ERANGE too large. */
static inline int memcg_parse_u64(const char **at, const char *end, uint64_t *ret_value)
{
    const char *p = *at;
    const char *safe = end - p > MEMCG_DIGITS_ANY ? p + MEMCG_DIGITS_ANY : end;
    uint64_t value = 0;
    unsigned digit;

    for (; p < safe && (digit = (unsigned)*p - '0') <= 9; p++)
        value = value * 10 + digit;
    if (p == *at)
        return -EINVAL;
    if (p == safe && p < end && (digit = (unsigned)*p - '0') <= 9) {
        if (value > UINT64_MAX / 10 || (value == UINT64_MAX / 10 && digit > UINT64_MAX % 10))
            return -ERANGE;
        value = value * 10 + digit;
        p++;
        if (p < end && (unsigned)*p - '0' <= 9)
            return -ERANGE;
    }
    *at = p;
    *ret_value = value;
    return 0;
}

#endif
