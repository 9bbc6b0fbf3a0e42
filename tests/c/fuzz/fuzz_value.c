/* SPDX-License-Identifier: Apache-2.0 */
/* memcg_parse_value against the grammar, read slowly: "max" or 1 to 20 digits, and a newline. */
#include <errno.h>
#include <string.h>

#include "../harness.h"
#include "parse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What the parser has to answer. */
static int expect(const char *text, size_t length, uint64_t *ret_value)
{
    if (length == 0)
        return -ENODATA;
    if (length == 4 && memcmp(text, "max\n", 4) == 0) {
        *ret_value = MEMCG_NO_LIMIT;
        return 0;
    }
    size_t digits = 0;
    while (digits < length && text[digits] >= '0' && text[digits] <= '9')
        digits++;
    if (digits == 0)
        return -EINVAL;
    uint64_t value = 0;
    for (size_t i = 0; i < digits; i++) {
        if (digits > MEMCG_DIGITS_MAX || __builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(text[i] - '0'), &value))
            return -ERANGE;
    }
    if (length != digits + 1 || text[digits] != '\n')
        return -EINVAL;
    *ret_value = value;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    uint64_t expected = 42, value = 42; /* both stay so where there is none */
    int expected_rc = expect(text, size, &expected);
    int rc = memcg_parse_value(text, size, &value);
    CHECK(rc == expected_rc, "%d, not %d", rc, expected_rc);
    CHECK(value == expected, "another value");
    return 0;
}
