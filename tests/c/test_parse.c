/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "parse.h"

/* What an output holds before a call, to see that a failure leaves it alone. */
#define BEFORE UINT64_C(0xa5a5a5a5a5a5a5a5)

/* Texts stand in blocks of exactly their length, so that a sanitizer sees a byte read too many. */
static char *exact(const char *text)
{
    size_t length = strlen(text);
    char *block = malloc(length ? length : 1);
    CHECK(block, "no memory");
    memcpy(block, text, length);
    return block;
}

struct number_case {
    const char *text;
    int rc;
    uint64_t value;
};

static void test_value(void)
{
    static const struct number_case cases[] = {
        {"0\n", 0, 0},
        {"67108864\n", 0, 67108864},
        {"max\n", 0, MEMCG_NO_LIMIT},
        {"9223372036854771712\n", 0, 9223372036854771712u}, /* v1's "no limit" with pages of 4 KiB */
        {"9999999999999999999\n", 0, 9999999999999999999u}, /* 19 digits */
        {"10000000000000000000\n", 0, 10000000000000000000u},
        {"18446744073709551614\n", 0, UINT64_MAX - 1},
        {"18446744073709551615\n", 0, UINT64_MAX},
        {"18446744073709551616\n", -ERANGE, 0},
        {"18446744073709551620\n", -ERANGE, 0},
        {"99999999999999999999\n", -ERANGE, 0},
        {"100000000000000000000\n", -ERANGE, 0},
        {"", -ENODATA, 0},
        {"\n", -EINVAL, 0},
        {"67108864", -EINVAL, 0}, /* cut short: how many digits were to come? */
        {"max", -EINVAL, 0},
        {"ma", -EINVAL, 0},
        {"maximum\n", -EINVAL, 0},
        {"-1\n", -EINVAL, 0},
        {"+1\n", -EINVAL, 0},
        {" 1\n", -EINVAL, 0},
        {"1 \n", -EINVAL, 0},
        {"1\n\n", -EINVAL, 0},
        {"1\n2\n", -EINVAL, 0},
        {"1.5\n", -EINVAL, 0},
        {"0x10\n", -EINVAL, 0},
        {"1:\n", -EINVAL, 0}, /* ':' follows '9' */
        {"/1\n", -EINVAL, 0}, /* '/' precedes '0' */
        {"\xb1\n", -EINVAL, 0},
        {"garbage\n", -EINVAL, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct number_case *c = &cases[i];
        char *text = exact(c->text);
        uint64_t value = BEFORE;
        int rc = memcg_parse_value(text, strlen(c->text), &value);
        CHECK(rc == c->rc, "'%s' gave %d, not %d", c->text, rc, c->rc);
        CHECK(value == (rc == 0 ? c->value : BEFORE), "'%s' gave %llu", c->text, (unsigned long long)value);
        free(text);
    }
}

static void test_u64(void)
{
    static const struct number_case cases[] = {
        {"7 rest", 0, 7},
        {"007", 0, 7},
        {"1234567890123456789x", 0, 1234567890123456789},
        {"12345678901234567890", 0, 12345678901234567890u},
        {"18446744073709551615 ", 0, UINT64_MAX},
        {"18446744073709551616 ", -ERANGE, 0},
        {"123456789012345678901", -ERANGE, 0},
        {"", -EINVAL, 0},
        {"x1", -EINVAL, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct number_case *c = &cases[i];
        char *text = exact(c->text);
        const char *at = text;
        uint64_t value = BEFORE;
        int rc = memcg_parse_u64(&at, text + strlen(c->text), &value);
        CHECK(rc == c->rc, "'%s' gave %d, not %d", c->text, rc, c->rc);
        CHECK(value == (rc == 0 ? c->value : BEFORE), "'%s' gave %llu", c->text, (unsigned long long)value);
        size_t digits = rc == 0 ? strspn(c->text, "0123456789") : 0;
        CHECK(at == text + digits, "'%s' moved by %td", c->text, at - text);
        free(text);
    }
}

static void test_psi(void)
{
#define SOME "some avg10=1.59 avg60=0.29 avg300=0.06 total=201495\n"
#define FULL "full avg10=100.00 avg60=12.34 avg300=0.00 total=18446744073709551615\n"
    static const struct {
        const char *text;
        int rc;
        struct memcg_psi psi;
    } cases[] = {
        {SOME FULL, 0, {159, 29, 6, 201495, 10000, 1234, 0, UINT64_MAX, 1}},
        {SOME, 0, {159, 29, 6, 201495, 0, 0, 0, 0, 0}}, /* the cpu file before 5.13 */
        {"none at all\n" SOME "later x=1\n" FULL, 0, {159, 29, 6, 201495, 10000, 1234, 0, UINT64_MAX, 1}},
        {"some avg10=0.00 avg60=0.00 avg300=0.00 total=5 avg900=1.00\n", 0, {0, 0, 0, 5, 0, 0, 0, 0, 0}},
        {"", -ENODATA, {0}},
        {FULL, -ENODATA, {0}}, /* the irq file */
        {"some avg10=1.59 avg60=0.29 avg300=0.06 total=201495", -EINVAL, {0}},
        {"some avg10=1.59 avg60=0.29 avg300=0.06 total=1 more", -EINVAL, {0}},
        {SOME "full avg10=1.59 avg60=0.2", -EINVAL, {0}},
        {SOME "unknown", -EINVAL, {0}},
        {"some avg10=1.59 avg60=0.29 avg300=0.06\n", -EINVAL, {0}},
        {"some avg60=0.29 avg10=1.59 avg300=0.06 total=1\n", -EINVAL, {0}},
        {"some avg10=1 avg60=0.29 avg300=0.06 total=1\n", -EINVAL, {0}},
        {"some avg10=1.5 avg60=0.29 avg300=0.06 total=1\n", -EINVAL, {0}},
        {"some avg10=1.595 avg60=0.29 avg300=0.06 total=1\n", -EINVAL, {0}},
        {"some avg10=.59 avg60=0.29 avg300=0.06 total=1\n", -EINVAL, {0}},
        {"some avg10=-1.59 avg60=0.29 avg300=0.06 total=1\n", -EINVAL, {0}},
        {"some avg10=1.59 avg60=0.29 avg300=0.06 total=\n", -EINVAL, {0}},
        {"some avg10=1.59 avg60=0.29 avg300=0.06 total=18446744073709551616\n", -ERANGE, {0}},
        {"some avg10=184467440737095516.16 avg60=0.29 avg300=0.06 total=1\n", -ERANGE, {0}},
        {"some\n", -ENODATA, {0}}, /* not "some " */
        {"garbage\n", -ENODATA, {0}},
        {"garbage", -EINVAL, {0}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = exact(cases[i].text);
        struct memcg_psi before, psi, expected = cases[i].psi;
        memset(&before, 0xa5, sizeof before);
        memcpy(&psi, &before, sizeof psi);
        int rc = memcg_parse_psi(text, strlen(cases[i].text), &psi);
        CHECK(rc == cases[i].rc, "'%s' gave %d, not %d", cases[i].text, rc, cases[i].rc);
        const struct memcg_psi *e = rc == 0 ? &expected : &before;
        CHECK(psi.some_avg10 == e->some_avg10 && psi.some_avg60 == e->some_avg60 && psi.some_avg300 == e->some_avg300 &&
                  psi.some_us == e->some_us,
              "'%s' gave another \"some\"", cases[i].text);
        CHECK(psi.full_avg10 == e->full_avg10 && psi.full_avg60 == e->full_avg60 && psi.full_avg300 == e->full_avg300 &&
                  psi.full_us == e->full_us && psi.has_full == e->has_full,
              "'%s' gave another \"full\"", cases[i].text);
        free(text);
    }
}

static void test_statm(void)
{
    static const struct {
        const char *text;
        int rc;
        uint64_t pages[MEMCG_STATM_FIELDS];
    } cases[] = {
        {"14921 14149 11913 1 0 2551 0\n", 0, {14921, 14149, 11913, 1, 0, 2551, 0}},
        {"0 0 0 0 0 0 1\n", 0, {0, 0, 0, 0, 0, 0, 1}},
        {"18446744073709551615 1 2 3 4 5 6\n", 0, {UINT64_MAX, 1, 2, 3, 4, 5, 6}},
        {"0 0 0 0 0 0 0\n", -ESRCH, {0}}, /* a zombie */
        {"", -ENODATA, {0}},
        {"14921 14149 11913 1 0 2551 0", -EINVAL, {0}},
        {"14921 14149 11913 1 0 2551\n", -EINVAL, {0}},
        {"14921 14149\n", -EINVAL, {0}},
        {"14921 14149 11913 1 0 2551 0 9\n", -EINVAL, {0}},
        {"14921 14149 11913 1 0 2551 0 \n", -EINVAL, {0}},
        {"14921  14149 11913 1 0 2551 0\n", -EINVAL, {0}},
        {"14921 -14149 11913 1 0 2551 0\n", -EINVAL, {0}},
        {"14921 14149 11913 1 0 2551 18446744073709551616\n", -ERANGE, {0}},
        {"garbage\n", -EINVAL, {0}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = exact(cases[i].text);
        uint64_t pages[MEMCG_STATM_FIELDS];
        for (size_t f = 0; f < MEMCG_STATM_FIELDS; f++)
            pages[f] = BEFORE;
        int rc = memcg_parse_statm(text, strlen(cases[i].text), pages);
        CHECK(rc == cases[i].rc, "'%s' gave %d, not %d", cases[i].text, rc, cases[i].rc);
        for (size_t f = 0; f < MEMCG_STATM_FIELDS; f++)
            CHECK(pages[f] == (rc == 0 ? cases[i].pages[f] : BEFORE), "'%s', field %zu", cases[i].text, f);
        free(text);
    }
}

static void test_captured_values(void)
{
    static const struct {
        const char *path;
        uint64_t value;
    } files[] = {
        {"6.1-v2/sys/fs/cgroup/pmc-parent/pmc-child/memory.max", 67108864},
        {"6.12-v2/sys/fs/cgroup/pmc-parent/pmc-child/memory.max", 67108864},
        {"6.12-v2/sys/fs/cgroup/pmc-parent/memory.max", MEMCG_NO_LIMIT},
        {"6.18-hybrid/sys/fs/cgroup/memory/pmc-parent/pmc-child/memory.limit_in_bytes", 67108864},
        {"6.18-hybrid/sys/fs/cgroup/memory/pmc-parent/pmc-child/memory.memsw.limit_in_bytes", 9223372036854771712u},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        size_t length;
        char *text = harness_read(files[i].path, &length);
        uint64_t value;
        int rc = memcg_parse_value(text, length, &value);
        CHECK(rc == 0, "%s: %d", files[i].path, rc);
        CHECK(value == files[i].value, "%s: %llu", files[i].path, (unsigned long long)value);
        free(text);
    }
}

static void test_captured_psi(void)
{
    static const struct {
        const char *path;
        uint64_t some_avg10, some_us, full_avg10, full_us;
    } files[] = {
        {"6.1-v2/proc/pressure/memory", 159, 201495, 159, 198205},
        {"6.1-v2/proc/pressure/cpu", 452, 821830, 0, 0},
        {"6.12-v2/proc/pressure/memory", 207, 298004, 177, 259595},
        {"6.18-hybrid/proc/pressure/memory", 0, 6662095, 0, 2740914},
        {"6.18-hybrid/proc/pressure/io", 35, 42887174, 35, 32908876},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        size_t length;
        char *text = harness_read(files[i].path, &length);
        struct memcg_psi psi;
        int rc = memcg_parse_psi(text, length, &psi);
        CHECK(rc == 0, "%s: %d", files[i].path, rc);
        CHECK(psi.has_full && psi.some_avg10 == files[i].some_avg10 && psi.some_us == files[i].some_us &&
                  psi.full_avg10 == files[i].full_avg10 && psi.full_us == files[i].full_us,
              "%s: other numbers", files[i].path);
        for (size_t cut = 1; cut < length; cut++) {
            int whole_line = text[cut - 1] == '\n';
            rc = memcg_parse_psi(text, cut, &psi);
            CHECK(rc == (whole_line ? 0 : -EINVAL), "%s cut to %zu bytes: %d", files[i].path, cut, rc);
        }
        free(text);
    }
}

static void test_captured_statm(void)
{
    static const struct {
        const char *path;
        uint64_t size, resident, shared;
    } files[] = {
        {"6.1-v2/proc/PID/statm", 14921, 14132, 11896},
        {"6.12-v2/proc/PID/statm", 14921, 12604, 11930},
        {"6.18-hybrid/proc/PID/statm", 14921, 14149, 11913},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        size_t length;
        char *text = harness_read(files[i].path, &length);
        uint64_t pages[MEMCG_STATM_FIELDS];
        int rc = memcg_parse_statm(text, length, pages);
        CHECK(rc == 0, "%s: %d", files[i].path, rc);
        CHECK(pages[0] == files[i].size && pages[1] == files[i].resident && pages[2] == files[i].shared, "%s: other numbers",
              files[i].path);
        for (size_t cut = 1; cut < length; cut++) {
            rc = memcg_parse_statm(text, cut, pages);
            CHECK(rc == -EINVAL, "%s cut to %zu bytes: %d", files[i].path, cut, rc);
        }
        free(text);
    }
}

int main(void)
{
    test_value();
    test_u64();
    test_psi();
    test_statm();
    test_captured_values();
    test_captured_psi();
    test_captured_statm();
    return 0;
}
