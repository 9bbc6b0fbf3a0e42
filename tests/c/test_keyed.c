/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "keyed.h"

static struct memcg_keyed keyed; /* too large for some stacks */

/* Both take a copy of exactly the text's length, so that a sanitizer sees a byte read too many. */
static int with_copy(int (*function)(struct memcg_keyed *, const char *, size_t), const char *text, size_t length)
{
    char *block = malloc(length ? length : 1);
    CHECK(block, "no memory");
    memcpy(block, text, length);
    int rc = function(&keyed, block, length);
    free(block);
    return rc;
}

static int learn(const char *text)
{
    return with_copy(memcg_keyed_learn, text, strlen(text));
}

static int read_again(const char *text)
{
    return with_copy(memcg_keyed_read, text, strlen(text));
}

/* The lines of a text against the object, found with other means than its own. */
static void check_holds(const char *text, size_t length, const char *what)
{
    static char string[MEMCG_KEYED_TEXT + 256]; /* with the NUL that captured texts lack */
    CHECK(length < sizeof string, "%s: %zu bytes", what, length);
    memcpy(string, text, length);
    string[length] = '\0';
    const char *at = string;
    size_t line = 0;
    for (; *at; line++) {
        size_t key_length = strcspn(at, " "), have_length;
        CHECK(line < memcg_keyed_count(&keyed), "%s: %zu lines", what, memcg_keyed_count(&keyed));
        const char *have = memcg_keyed_key(&keyed, line, &have_length);
        CHECK(have_length == key_length && memcmp(have, at, key_length) == 0, "%s: line %zu has key %.*s", what, line,
              (int)have_length, have);
        char *end;
        uint64_t value = strtoull(at + key_length, &end, 10);
        CHECK(memcg_keyed_value(&keyed, line) == value, "%s: %.*s is %" PRIu64 ", not %" PRIu64, what, (int)key_length, at,
              memcg_keyed_value(&keyed, line), value);
        CHECK(memcg_keyed_values(&keyed)[line] == value, "%s: line %zu differs among all values", what, line);
        at = end + 1;
    }
    CHECK(line == memcg_keyed_count(&keyed), "%s: %zu lines, not %zu", what, memcg_keyed_count(&keyed), line);
}

#define LARGEST "18446744073709551615"
#define SAMPLE  "anon 51036160\nfile 14884864\npgscan 0\npgscan_direct 77\n"

static void test_learn(void)
{
    CHECK(learn(SAMPLE) == 0, "a good text");
    check_holds(SAMPLE, strlen(SAMPLE), "sample");
    CHECK(memcg_keyed_find(&keyed, "anon") == 0, "the first line");
    CHECK(memcg_keyed_find(&keyed, "pgscan") == 2, "a key that begins another");
    CHECK(memcg_keyed_find(&keyed, "pgscan_direct") == 3, "the last line");
    CHECK(memcg_keyed_find(&keyed, "pgscan_") == -ENOENT, "a part of a key");
    CHECK(memcg_keyed_find(&keyed, "shmem") == -ENOENT, "what is missing is not 0");
    CHECK(memcg_keyed_find(&keyed, "") == -ENOENT, "no key");

    static const struct {
        const char *text;
        int rc;
    } bad[] = {
        {"", -ENODATA},
        {"\n", -EINVAL},
        {"anon", -EINVAL},
        {"anon\n", -EINVAL},
        {"anon \n", -EINVAL},
        {" 1\n", -EINVAL},
        {"anon 1", -EINVAL},
        {"anon 1\nfile 2", -EINVAL},
        {"anon 1\n\n", -EINVAL},
        {"anon  1\n", -EINVAL},
        {"anon 1 \n", -EINVAL},
        {"anon 1 2\n", -EINVAL},
        {"anon -1\n", -EINVAL},
        {"anon 1:\n", -EINVAL},
        {"anon\t1\n", -EINVAL},
        {"anon N0=4096\n", -EINVAL}, /* memory.numa_stat */
        {"anon 18446744073709551616\n", -ERANGE},
        {"anon 184467440737095516150\n", -ERANGE},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(learn(SAMPLE) == 0, "a good text before '%s'", bad[i].text);
        int rc = learn(bad[i].text);
        CHECK(rc == bad[i].rc, "'%s' gave %d", bad[i].text, rc);
        CHECK(memcg_keyed_count(&keyed) == 0, "'%s' left %zu lines", bad[i].text, memcg_keyed_count(&keyed));
        CHECK(memcg_keyed_find(&keyed, "anon") == -ENOENT, "'%s' left a key", bad[i].text);
        rc = read_again(SAMPLE);
        CHECK(rc == -ESTALE, "reading after '%s' gave %d", bad[i].text, rc);
    }
}

static void test_read(void)
{
    static const char *const texts[] = {
        SAMPLE,
        SAMPLE,                                                                          /* nothing new */
        "anon 51036161\nfile 14884863\npgscan 9\npgscan_direct 78\n",                    /* as many digits */
        "anon 151036160\nfile 0\npgscan 12345\npgscan_direct 7\n",                       /* more and fewer */
        "anon 0\nfile 1234567890123456\npgscan 12345678901234567\npgscan_direct 1000\n", /* one, two and three words */
        "anon " LARGEST "\nfile " LARGEST "\npgscan " LARGEST "\npgscan_direct " LARGEST "\n",
        "anon 1\nfile 2\npgscan 3\npgscan_direct 4\n",
    };
    CHECK(learn(SAMPLE) == 0, "a good text");
    for (size_t round = 0; round < 3; round++) {
        for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
            int rc = read_again(texts[i]);
            CHECK(rc == 0, "round %zu, text %zu gave %d", round, i, rc);
            check_holds(texts[i], strlen(texts[i]), "text");
        }
    }
}

/* From every count of digits to every other, in the first, a middle and the last line. */
static void test_lengths(void)
{
    static const char digits[] = "18446744073709551615";
    char text[256];
    CHECK(learn("a 1\nb 1\nc 1\n") == 0, "a good text");
    for (int from = 1; from <= 20; from++) {
        for (int to = 1; to <= 20; to++) {
            for (int line = 0; line < 3; line++) {
                for (int step = 0; step < 2; step++) {
                    int length = step ? to : from;
                    snprintf(text, sizeof text, "a %.*s\nb %.*s\nc %.*s\n", line == 0 ? length : from, digits,
                             line == 1 ? length : from, digits, line == 2 ? length : from, digits);
                    int rc = read_again(text);
                    CHECK(rc == 0, "%d to %d digits in line %d gave %d", from, to, line, rc);
                    check_holds(text, strlen(text), text);
                }
            }
        }
    }
}

static void test_failed_reads(void)
{
    static const struct {
        const char *what, *text;
        int rc;
    } cases[] = {
        {"empty", "", -ENODATA},
        {"another key of the same length", "anom 51036160\nfile 14884864\npgscan 0\npgscan_direct 77\n", -ESTALE},
        {"another last key", "anon 51036160\nfile 14884864\npgscan 0\npgscan_kswapd 77\n", -ESTALE},
        {"a longer key", "anon_thp 5\nfile 14884864\npgscan 0\npgscan_direct 77\n", -ESTALE},
        {"a line in the middle", "anon 51036160\nfile 14884864\nhugetlb 0\npgscan 0\npgscan_direct 77\n", -ESTALE},
        {"a line in front", "all 1\n" SAMPLE, -ESTALE},
        {"a line behind", SAMPLE "pgsteal 1\n", -ESTALE},
        {"an empty line behind", SAMPLE "\n", -ESTALE},
        {"no first line", "file 14884864\npgscan 0\npgscan_direct 77\n", -ESTALE},
        {"no middle line", "anon 51036160\npgscan 0\npgscan_direct 77\n", -ESTALE},
        {"no last line", "anon 51036160\nfile 14884864\npgscan 0\n", -ESTALE}, /* the buffer behind it still has one */
        {"only the first line", "anon 51036160\n", -ESTALE},
        {"only the first line, longer", "anon 510361601\n", -ESTALE},
        {"other order", "file 51036160\nanon 14884864\npgscan 0\npgscan_direct 77\n", -ESTALE},
        {"garbage", "garbage\n", -ESTALE},
        {"cut in a number", "anon 51036160\nfile 14884864\npgscan 0\npgscan_direct 7", -EINVAL},
        {"cut in a key", "anon 51036160\nfile 14884864\npgscan 0\npgscan_dir", -EINVAL},
        {"cut before a number", "anon 51036160\nfile \n", -EINVAL},
        {"no number", "anon \nfile 14884864\npgscan 0\npgscan_direct 77\n", -EINVAL},
        {"a sign", "anon 51036160\nfile 14884864\npgscan -1\npgscan_direct 77\n", -EINVAL},
        {"a sign in place of a digit", "anon 51036160\nfile -4884864\npgscan 0\npgscan_direct 77\n", -EINVAL},
        {"a fraction", "anon 51036160\nfile 14884.64\npgscan 0\npgscan_direct 77\n", -EINVAL},
        {"what follows 9", "anon 51036160\nfile 1488:864\npgscan 0\npgscan_direct 77\n", -EINVAL},
        {"what follows 9, longer", "anon 51036160\nfile 14884864:\npgscan 0\npgscan_direct 77\n", -EINVAL},
        {"what precedes 0", "anon 5103/160\nfile 14884864\npgscan 0\npgscan_direct 77\n", -EINVAL},
        {"a high bit", "anon 5103616\xb0\nfile 14884864\npgscan 0\npgscan_direct 77\n", -EINVAL},
        {"two numbers", "anon 51036160\nfile 14884864 1\npgscan 0\npgscan_direct 77\n", -EINVAL},
        {"too large", "anon 51036160\nfile 18446744073709551616\npgscan 0\npgscan_direct 77\n", -ERANGE},
        {"much too large", "anon 51036160\nfile 1844674407370955161500\npgscan 0\npgscan_direct 77\n", -ERANGE},
        {"changed and malformed", "anon 123456789\nfile 1\npgscan 55\npgscan_direct x\n", -EINVAL},
    };
    static const char next[] = "anon 1\nfile 148848640\npgscan 5\npgscan_direct 78\n";
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK(learn(SAMPLE) == 0, "a good text before: %s", cases[i].what);
        for (int round = 0; round < 2; round++) {
            int rc = read_again(cases[i].text);
            CHECK(rc == cases[i].rc, "%s: %d, not %d", cases[i].what, rc, cases[i].rc);
            check_holds(SAMPLE, strlen(SAMPLE), cases[i].what);
        }
        CHECK(read_again(SAMPLE) == 0, "the old text after: %s", cases[i].what);
        check_holds(SAMPLE, strlen(SAMPLE), cases[i].what);
        CHECK(read_again(next) == 0, "a good text after: %s", cases[i].what);
        check_holds(next, strlen(next), cases[i].what);
    }
}

/* What earlier reads left in the buffers must not pass for a part of a later text. */
static void test_leftovers(void)
{
    CHECK(learn("a 1\nb 1\n") == 0, "a good text");
    CHECK(read_again("a 1\nb 22x\n") == -EINVAL, "a letter");
    int rc = read_again("a 1\n"); /* behind it the buffer still has "b 22x" */
    CHECK(rc == -ESTALE, "a line less gave %d", rc);

    /* The first line's number made room for two more digits before the second line failed. */
    CHECK(learn("a 1\nb 1\n") == 0, "a good text");
    CHECK(read_again("a 123\nb x\n") == -EINVAL, "a letter");
    CHECK(read_again("a 100\nb 1\n") == 0, "a good text after the letter");
    CHECK(memcg_keyed_value(&keyed, 0) == 100, "a is %" PRIu64, memcg_keyed_value(&keyed, 0));
}

/* A number that no uint64_t holds, with as many digits as the one before it had. */
static void test_overflow_in_place(void)
{
    CHECK(learn("a 18446744073709551615\nb 1\n") == 0, "the largest number");
    int rc = read_again("a 18446744073709551616\nb 1\n");
    CHECK(rc == -ERANGE, "one more gave %d", rc);
    rc = read_again("a 1844674407370955161x\nb 1\n");
    CHECK(rc == -EINVAL, "a letter gave %d", rc);
    rc = read_again("a 1844674407370955161:\nb 1\n");
    CHECK(rc == -EINVAL, "a colon gave %d", rc);
    CHECK(memcg_keyed_value(&keyed, 0) == UINT64_MAX && memcg_keyed_value(&keyed, 1) == 1, "the values stand");
}

static char large[MEMCG_KEYED_TEXT + 256];

static void test_limits(void)
{
    size_t length = 0;
    for (int i = 0; i < MEMCG_KEYED_LINES; i++)
        length += (size_t)sprintf(large + length, "key%d %d\n", i, i);
    CHECK(with_copy(memcg_keyed_learn, large, length) == 0, "as many lines as there may be");
    check_holds(large, length, "most lines");
    length += (size_t)sprintf(large + length, "more 1\n");
    CHECK(with_copy(memcg_keyed_read, large, length) == -ESTALE, "a line too many appeared");
    CHECK(with_copy(memcg_keyed_learn, large, length) == -E2BIG, "a line too many");

    memset(large, 'k', sizeof large);
    memcpy(large + MEMCG_KEYED_KEY, " 1\n", 4);
    CHECK(learn(large) == 0, "the longest key");
    check_holds(large, strlen(large), "longest key");
    memset(large, 'k', sizeof large);
    memcpy(large + MEMCG_KEYED_KEY + 1, " 1\n", 4);
    CHECK(learn(large) == -E2BIG, "a key too long");

    /* 128 lines of 128 bytes fill the text to the last byte. */
    for (length = 0; length < MEMCG_KEYED_TEXT; length += 128)
        sprintf(large + length, "%0119d %07d\n", (int)length, (int)length);
    CHECK(with_copy(memcg_keyed_learn, large, length) == 0, "the longest text");
    check_holds(large, length, "longest text");
    large[length - 2] ^= 1;
    CHECK(with_copy(memcg_keyed_read, large, length) == 0, "the last digit of the longest text");
    check_holds(large, length, "longest text, changed");
    memcpy(large + length - 1, "0\n", 2);
    CHECK(with_copy(memcg_keyed_read, large, length + 1) == -E2BIG, "a byte too many");
    CHECK(with_copy(memcg_keyed_learn, large, length + 1) == -E2BIG, "a byte too many to learn");

    /* As long as ever, but only after the first number has grown for which there is no room yet: to be learnt again. */
    large[length - 1] = '\n';
    CHECK(with_copy(memcg_keyed_learn, large, length) == 0, "the longest text again");
    memmove(large + 128, large + 127, length - 129);
    large[127] = '0';
    large[length - 1] = '\n';
    CHECK(with_copy(memcg_keyed_read, large, length) == -ESTALE, "no room to move");
    CHECK(with_copy(memcg_keyed_learn, large, length) == 0, "room when learnt again");
    check_holds(large, length, "longest text, learnt again");
}

static void test_nothing_learnt(void)
{
    memset(&keyed, 0, sizeof keyed);
    CHECK(memcg_keyed_count(&keyed) == 0, "lines without a text");
    CHECK(memcg_keyed_find(&keyed, "anon") == -ENOENT, "a key without a text");
    int rc = read_again(SAMPLE);
    CHECK(rc == -ESTALE, "reading gave %d", rc);
}

/* Numbers of all lengths that change at random, some with their length: what a busy group's memory.stat does, and worse. */
static void test_random_walk(void)
{
    static const char *const keys[] = {"anon",      "a_key_that_fills_most_of_a_block", "x", "pgscan", "pgscan_direct",
                                       "total_file"};
    enum { KEYS = sizeof keys / sizeof *keys };
    uint64_t values[KEYS] = {0}, state = 1;
    char text[512];

    for (int round = 0; round < 20000; round++) {
        size_t length = 0;
        for (size_t i = 0; i < KEYS; i++) {
            state = state * UINT64_C(6364136223846793005) + 1442695040888963407;
            if (state >> 62 == 0)
                values[i] = state >> (state >> 32 & 63);
            else if (state >> 62 == 1)
                values[i]++;
            length += (size_t)sprintf(text + length, "%s %" PRIu64 "\n", keys[i], values[i]);
        }
        int rc = round ? read_again(text) : learn(text);
        CHECK(rc == 0, "round %d gave %d: %s", round, rc, text);
        check_holds(text, length, "random walk");
    }
}

/* Every captured file, cut at every byte, and after it the twin that another group had, with other numbers. */
static void test_captured(void)
{
    static const struct {
        const char *path, *twin, *key;
        uint64_t value;
        size_t lines;
    } files[] = {
#define V2(kernel) kernel "/sys/fs/cgroup/pmc-parent/"
#define V1(kernel) kernel "/sys/fs/cgroup/memory/pmc-parent/"
        {V2("6.1-v2") "pmc-child/memory.stat", V2("6.1-v2") "memory.stat", "file", 57090048, 47},
        {V2("6.12-v2") "pmc-child/memory.stat", V2("6.12-v2") "memory.stat", "file", 63619072, 60},
        {V2("uml-6.1-v2") "pmc-child/memory.stat", V2("uml-6.1-v2") "memory.stat", "file", 58486784, 46},
        {V1("6.1-v1") "pmc-child/memory.stat", V1("6.1-v1") "memory.stat", "total_cache", 54329344, 40},
        {V1("6.18-hybrid") "pmc-child/memory.stat", V1("6.18-hybrid") "memory.stat", "hierarchical_memsw_limit",
         9223372036854771712u, 42},
        {V2("6.1-v2") "pmc-child/memory.events", V2("6.1-v2") "memory.events.local", "oom_kill", 1, 6},
        {V2("6.12-v2") "pmc-child/memory.events", V2("6.12-v2") "memory.events.local", "oom_kill", 1, 6},
        {V1("6.1-v1") "pmc-child/memory.oom_control", V1("6.1-v1") "memory.oom_control", "oom_kill", 1, 3},
        {V1("6.18-hybrid") "pmc-child/memory.oom_control", V1("6.18-hybrid") "memory.oom_control", "oom_kill", 1, 3},
        {V2("6.1-v2") "pmc-child/cpu.stat", NULL, NULL, 0, 3},
        {V2("6.12-v2") "cpu.stat", NULL, NULL, 0, 9},
        {"6.18-hybrid/sys/fs/cgroup/unified/pmc-child/cpu.stat", NULL, NULL, 0, 4},
        {"6.1-v2/proc/vmstat", NULL, NULL, 0, 171},
        {"6.12-v2/proc/vmstat", NULL, NULL, 0, 182},
        {"uml-6.1-v2/proc/vmstat", NULL, NULL, 0, 123},
        {"6.18-hybrid/proc/vmstat", NULL, NULL, 0, 192},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        const char *path = files[i].path;
        size_t length;
        char *text = harness_read(path, &length);
        int rc = memcg_keyed_learn(&keyed, text, length);
        CHECK(rc == 0, "%s: %d", path, rc);
        CHECK(memcg_keyed_count(&keyed) == files[i].lines, "%s has %zu lines", path, memcg_keyed_count(&keyed));
        check_holds(text, length, path);
        for (size_t cut = 1; cut < length; cut++) {
            rc = with_copy(memcg_keyed_read, text, cut);
            CHECK(rc == (text[cut - 1] == '\n' ? -ESTALE : -EINVAL), "%s cut to %zu bytes: %d", path, cut, rc);
        }
        check_holds(text, length, path);
        if (files[i].twin) {
            int line = memcg_keyed_find(&keyed, files[i].key);
            CHECK(line >= 0 && memcg_keyed_value(&keyed, (size_t)line) == files[i].value, "%s: %s", path, files[i].key);
            size_t twin_length;
            char *twin = harness_read(files[i].twin, &twin_length);
            rc = with_copy(memcg_keyed_read, twin, twin_length);
            CHECK(rc == 0, "%s after %s: %d", files[i].twin, path, rc);
            check_holds(twin, twin_length, files[i].twin);
            free(twin);
        }
        free(text);
    }
}

/* A layout of one kernel under the eyes of another's: relearnt, never mixed up. */
static void test_other_kernel(void)
{
    size_t old_length, new_length;
    char *old = harness_read(V2("6.1-v2") "memory.stat", &old_length);
    char *new = harness_read(V2("6.12-v2") "memory.stat", &new_length);
    CHECK(memcg_keyed_learn(&keyed, old, old_length) == 0, "the old one");
    int rc = memcg_keyed_read(&keyed, new, new_length);
    CHECK(rc == -ESTALE, "the new one gave %d", rc);
    check_holds(old, old_length, "the old one's values");
    CHECK(memcg_keyed_learn(&keyed, new, new_length) == 0, "the new one");
    check_holds(new, new_length, "the new one's values");
    free(old);
    free(new);
}

int main(void)
{
    test_learn();
    test_read();
    test_lengths();
    test_failed_reads();
    test_leftovers();
    test_overflow_in_place();
    test_limits();
    test_nothing_learnt();
    test_random_walk();
    test_captured();
    test_other_kernel();
    return 0;
}
