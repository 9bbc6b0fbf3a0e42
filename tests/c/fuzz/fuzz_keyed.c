/* SPDX-License-Identifier: Apache-2.0 */
/* memcg_keyed: an input is texts with 0x1e between them, read one after the other from one object. Whatever it read before, a
 * text must give what a fresh object learns from it, or an error and the values of the last success; and a text of the lines that
 * were learnt must be read. */
#include <errno.h>
#include <string.h>

#include "../harness.h"
#include "keyed.h"

enum { SEPARATOR = 0x1e };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct memcg_keyed keyed, fresh;
static uint64_t last[MEMCG_KEYED_LINES];

static int same_keys(void)
{
    if (memcg_keyed_count(&keyed) != memcg_keyed_count(&fresh))
        return 0;
    for (size_t i = 0; i < memcg_keyed_count(&keyed); i++) {
        size_t length, fresh_length;
        const char *key = memcg_keyed_key(&keyed, i, &length);
        const char *fresh_key = memcg_keyed_key(&fresh, i, &fresh_length);
        if (length != fresh_length || memcmp(key, fresh_key, length) != 0)
            return 0;
    }
    return 1;
}

static void check_values(const uint64_t *expected)
{
    size_t bytes = memcg_keyed_count(&keyed) * sizeof *expected;
    CHECK(memcmp(memcg_keyed_values(&keyed), expected, bytes) == 0, "other values");
    memcpy(last, expected, bytes);
}

/* Every line of a learnt text is "key digits\n" and nothing else, and the values are those digits. */
static void check_learnt(const struct memcg_keyed *k, const char *text, size_t length)
{
    const char *at = text;
    for (size_t i = 0; i < memcg_keyed_count(k); i++) {
        size_t key_length;
        const char *key = memcg_keyed_key(k, i, &key_length);
        CHECK(at + key_length + 2 < text + length, "line %zu is past the end", i);
        CHECK(memcmp(at, key, key_length) == 0 && at[key_length] == ' ', "line %zu has another key", i);
        uint64_t value = 0;
        for (at += key_length + 1; *at != '\n'; at++) {
            CHECK(*at >= '0' && *at <= '9', "no digit in line %zu", i);
            value = value * 10 + (uint64_t)(*at - '0');
        }
        CHECK(value == memcg_keyed_value(k, i), "line %zu has another value", i);
        at++;
    }
    CHECK(at == text + length, "lines passed over");
}

static void take(const char *text, size_t length)
{
    int rc = memcg_keyed_read(&keyed, text, length);
    int fresh_rc = memcg_keyed_learn(&fresh, text, length);
    if (fresh_rc == 0)
        check_learnt(&fresh, text, length);
    CHECK(rc != 0 || fresh_rc == 0, "read what cannot be learnt (%d)", fresh_rc);
    CHECK(rc != 0 || same_keys(), "read other lines");
    if (rc == 0) {
        check_values(memcg_keyed_values(&fresh));
        return;
    }
    check_values(last);
    if (rc == -ESTALE && fresh_rc == 0) {
        CHECK(!same_keys() || length > MEMCG_KEYED_TEXT / 2, "took its own lines for others");
        CHECK(memcg_keyed_learn(&keyed, text, length) == 0, "cannot learn again");
        CHECK(same_keys(), "learnt other lines");
        check_values(memcg_keyed_values(&fresh));
        return;
    }
    CHECK(fresh_rc != 0, "%d for a good text", rc);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *at = (const char *)data;
    const char *end = at + size;
    memset(&keyed, 0, sizeof keyed);
    memset(&fresh, 0, sizeof fresh);
    for (;;) {
        const char *stop = at < end ? memchr(at, SEPARATOR, (size_t)(end - at)) : NULL;
        size_t length = (size_t)((stop ? stop : end) - at);
        char *text = malloc(length ? length : 1); /* of exactly this length: see what is read behind it */
        CHECK(text, "no memory");
        memcpy(text, at, length);
        take(text, length);
        free(text);
        if (!stop)
            break;
        at = stop + 1;
    }
    return 0;
}
