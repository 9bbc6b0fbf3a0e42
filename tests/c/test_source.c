/* SPDX-License-Identifier: Apache-2.0 */
/* Opened files and their values: what kernels printed, the files of this kernel, and files that change under the reader. Values are
 * found a second time by other means, with stdio. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "source.h"

/* PSI is not read when it is opened. */
static int open_and_read(const char *path, int format, struct memcg_source **ret_source)
{
    int rc = memcg_source_open(path, format, ret_source);
    if (rc == 0 && format == MEMCG_FORMAT_PSI && (rc = memcg_source_read(*ret_source)) != 0) {
        memcg_source_free(*ret_source);
        *ret_source = NULL;
    }
    return rc;
}

static struct memcg_source *open_source(const char *path, int format)
{
    struct memcg_source *source;
    int rc = open_and_read(path, format, &source);
    CHECK(rc == 0, "%s gave %d", path, rc);
    return source;
}

static struct memcg_source *open_data(const char *relative, int format)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", TEST_DATA_DIR, relative);
    return open_source(path, format);
}

static int64_t value_of(const struct memcg_source *source, const char *key)
{
    int index = memcg_source_find(source, key);
    CHECK(index >= 0, "there is no %s", key);
    return memcg_source_value(source, (size_t)index);
}

/* A captured file as a string. */
static const char *read_text(const char *relative)
{
    static char text[32768];
    size_t length;
    char *block = harness_read(relative, &length);
    snprintf(text, sizeof text, "%.*s", (int)length, block);
    free(block);
    return text;
}

/* ---- What kernels printed --------------------------------------------------------------------------------------------------- */

static void check_keyed(struct memcg_source *source, const char *text, const char *what)
{
    char key[128];
    uint64_t value;
    size_t line = 0;
    for (int n; sscanf(text, "%127s %" SCNu64 " %n", key, &value, &n) == 2; text += n, line++) {
        int64_t expected = value >= INT64_MAX - 0xffff ? MEMCG_NONE : (int64_t)value;
        const char *have = memcg_source_key(source, line);
        CHECK(have && strcmp(have, key) == 0, "%s: line %zu is %s, not %s", what, line, have, key);
        CHECK(memcg_source_value(source, line) == expected, "%s: %s is %" PRId64, what, key, memcg_source_value(source, line));
        CHECK(value_of(source, key) == expected, "%s: %s", what, key);
    }
    CHECK(*text == '\0' && line > 0 && line == memcg_source_count(source), "%s: %zu lines, then '%s'", what, line, text);
    CHECK(memcg_source_key(source, line) == NULL, "%s: a key behind the last", what);
    CHECK(memcg_source_value(source, line) == MEMCG_NONE, "%s: a value behind the last", what);
}

static void test_captured_keyed(void)
{
    static const char *const files[] = {
        "6.1-v2/proc/vmstat",
        "6.1-v2/sys/fs/cgroup/pmc-parent/cpu.stat",
        "6.1-v2/sys/fs/cgroup/pmc-parent/memory.events",
        "6.1-v2/sys/fs/cgroup/pmc-parent/pmc-child/memory.stat",
        "6.12-v2/proc/vmstat",
        "6.12-v2/sys/fs/cgroup/pmc-parent/pmc-child/memory.stat",
        "6.18-hybrid/proc/vmstat",
        "6.18-hybrid/sys/fs/cgroup/memory/pmc-parent/memory.stat",
        "6.18-hybrid/sys/fs/cgroup/memory/pmc-parent/memory.oom_control",
        "6.18-hybrid/sys/fs/cgroup/unified/pmc-child/cpu.stat",
    };
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        const char *text = read_text(files[i]);
        struct memcg_source *source = open_data(files[i], MEMCG_FORMAT_KEYED);
        check_keyed(source, text, files[i]);
        CHECK(memcg_source_read(source) == 0, "%s: the second time", files[i]);
        check_keyed(source, text, files[i]);
        memcg_source_free(source);
    }
}

static void test_captured_values(void)
{
    static const struct {
        const char *file;
        int64_t value; /* 0 = what stdio reads */
    } cases[] = {
        {"6.18-hybrid/sys/fs/cgroup/memory/pmc-parent/memory.usage_in_bytes", 0},
        {"6.18-hybrid/sys/fs/cgroup/memory/pmc-parent/pmc-child/memory.limit_in_bytes", 64 << 20},
        {"6.18-hybrid/sys/fs/cgroup/memory/pmc-parent/memory.soft_limit_in_bytes", MEMCG_NONE}, /* 9223372036854771712 */
        {"6.12-v2/sys/fs/cgroup/pmc-parent/pmc-child/memory.max", 64 << 20},
        {"6.12-v2/sys/fs/cgroup/pmc-parent/pmc-child/memory.high", MEMCG_NONE}, /* max */
        {"6.12-v2/sys/fs/cgroup/pmc-parent/memory.current", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct memcg_source *source = open_data(cases[i].file, MEMCG_FORMAT_VALUE);
        int64_t expected = cases[i].value ? cases[i].value : strtoll(read_text(cases[i].file), NULL, 10);
        CHECK(value_of(source, "") == expected, "%s is %" PRId64, cases[i].file, memcg_source_value(source, 0));
        CHECK(memcg_source_count(source) == 1 && strcmp(memcg_source_key(source, 0), "") == 0, "one value without a name");
        CHECK(memcg_source_find(source, "usage") == -ENOENT, "a name for it");
        memcg_source_free(source);
    }
}

static void test_captured_psi(void)
{
    static const char *const files[] = {"6.1-v2/sys/fs/cgroup/pmc-parent/memory.pressure",
                                        "6.18-hybrid/sys/fs/cgroup/unified/pmc-child/memory.pressure",
                                        "6.12-v2/proc/pressure/memory", "6.12-v2/proc/pressure/cpu"};
    static const char *const averages[] = {"avg10", "avg60", "avg300"};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        struct memcg_source *source = open_data(files[i], MEMCG_FORMAT_PSI);
        for (const char *line = read_text(files[i]); *line; line = strchr(line, '\n') + 1) {
            char kind[8], key[32];
            unsigned whole[3], cents[3];
            int64_t total;
            CHECK(sscanf(line, "%7s avg10=%u.%u avg60=%u.%u avg300=%u.%u total=%" SCNd64, kind, &whole[0], &cents[0], &whole[1],
                         &cents[1], &whole[2], &cents[2], &total) == 8,
                  "%s is something else", files[i]);
            snprintf(key, sizeof key, "%s_us", kind);
            CHECK(value_of(source, key) == total, "%s: %s is %" PRId64, files[i], key, value_of(source, key));
            for (size_t k = 0; k < 3; k++) {
                snprintf(key, sizeof key, "%s_%s", kind, averages[k]);
                CHECK(value_of(source, key) == whole[k] * 100 + cents[k], "%s: %s is %" PRId64, files[i], key,
                      value_of(source, key));
            }
        }
        CHECK(memcg_source_find(source, "some_avg11") == -ENOENT, "an average that is not there");
        memcg_source_free(source);
    }
}

static void test_captured_statm(void)
{
    static const char *const keys[] = {"size", "resident", "shared", "text", "lib", "data", "dt"};
    struct memcg_source *source = open_data("6.12-v2/proc/PID/statm", MEMCG_FORMAT_STATM);
    const char *text = read_text("6.12-v2/proc/PID/statm");
    for (size_t i = 0; i < 7; i++) {
        char *end;
        CHECK(value_of(source, keys[i]) == strtoll(text, &end, 10) * sysconf(_SC_PAGESIZE), "%s", keys[i]);
        text = end;
        CHECK(strcmp(memcg_source_key(source, i), keys[i]) == 0, "key %zu", i);
    }
    CHECK(memcg_source_count(source) == 7, "%zu values", memcg_source_count(source));
    memcg_source_free(source);
}

/* ---- This kernel ------------------------------------------------------------------------------------------------------------ */

static void test_own_memory(void)
{
    enum { GROWN = 64 << 20, SLACK = 8 << 20 }; /* kernels 6.2 to 6.14 count a CPU's last pages late */
    struct memcg_source *source = open_source("/proc/self/statm", MEMCG_FORMAT_STATM);
    int64_t before = value_of(source, "resident");
    char *block = malloc(GROWN);
    CHECK(block, "no memory");
    memset(block, 1, GROWN);
    CHECK(memcg_source_read(source) == 0, "the second time");
    int64_t grown = value_of(source, "resident") - before;
    CHECK(grown > GROWN - SLACK, "64 MiB more are %" PRId64 " bytes", grown);
    CHECK(value_of(source, "size") >= value_of(source, "resident"), "more resident than mapped");
    free(block);
    memcg_source_free(source);
}

static void test_own_kernel(void)
{
    struct memcg_source *source = open_source("/proc/vmstat", MEMCG_FORMAT_KEYED);
    const uint32_t generation = memcg_source_generation(source);
    int64_t faults = value_of(source, "pgfault");
    for (int i = 0; i < 1000; i++)
        CHECK(memcg_source_read(source) == 0, "read %d", i);
    CHECK(value_of(source, "pgfault") >= faults && faults > 0, "page faults went back");
    CHECK(value_of(source, "nr_free_pages") > 0, "no free memory");
    CHECK(memcg_source_generation(source) == generation, "the layout moved %u times", memcg_source_generation(source));
    memcg_source_free(source);
}

/* ---- Files that change ------------------------------------------------------------------------------------------------------ */

static char path[] = "/tmp/memcg-source-XXXXXX";

static void rewrite(const char *text, size_t length)
{
    int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
    CHECK(fd >= 0 && write(fd, text, length) == (ssize_t)length, "cannot rewrite %s", path);
    close(fd);
}

static void test_moving_layout(void)
{
    static const struct {
        const char *what, *text;
        int rc;
    } steps[] = {
        {"as learnt", "anon 1\nfile 2\nshmem 3\n", 0},
        {"longer numbers", "anon 100\nfile 20000000000\nshmem 30\n", 0},
        {"a key in the middle", "anon 4\nfile 5\nhugetlb 6\nshmem 7\n", 0},
        {"the same again", "anon 41\nfile 51\nhugetlb 61\nshmem 71\n", 0},
        {"a key in front and one behind", "all 0\nanon 8\nfile 9\nhugetlb 10\nshmem 11\nzswap 12\n", 0},
        {"keys gone", "anon 13\nshmem 14\n", 0},
        {"another order", "shmem 15\nanon 16\n", 0},
        {"emptied", "", -ENODATA},
        {"back", "shmem 17\nanon 18\n", 0},
        {"garbage", "<html>", -EINVAL},
        {"back, other keys", "anon 19\nfile 20\n", 0},
        {"a number too large", "anon 19\nfile 99999999999999999999\n", -ERANGE},
        {"back once more", "anon 21\nfile 22\n", 0},
    };
    rewrite(steps[0].text, strlen(steps[0].text));
    struct memcg_source *source = open_source(path, MEMCG_FORMAT_KEYED);
    for (size_t i = 1; i < sizeof steps / sizeof steps[0]; i++) {
        const char *before = memcg_source_key(source, 1);
        char second[128];
        snprintf(second, sizeof second, "%s", before ? before : "");
        uint32_t generation = memcg_source_generation(source);
        rewrite(steps[i].text, strlen(steps[i].text));
        int rc = memcg_source_read(source);
        CHECK(rc == steps[i].rc, "%s gave %d", steps[i].what, rc);
        if (rc != 0)
            continue;
        check_keyed(source, steps[i].text, steps[i].what);
        const char *after = memcg_source_key(source, 1);
        CHECK((after && strcmp(after, second) == 0) || memcg_source_generation(source) != generation,
              "%s: the second key was %s and is %s, and nobody is told", steps[i].what, second, after);
    }
    CHECK(memcg_source_find(source, "shmem") == -ENOENT, "a key that is gone is absent, not 0");
    memcg_source_free(source);
}

static void test_too_large(void)
{
    static char text[1 << 20];
    static const int formats[] = {MEMCG_FORMAT_VALUE, MEMCG_FORMAT_KEYED, MEMCG_FORMAT_STATM, MEMCG_FORMAT_PSI};
    size_t length = 0;
    while (length < sizeof text - 64)
        length += (size_t)snprintf(text + length, sizeof text - length, "key%zu 1\n", length);
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        struct memcg_source *source = NULL;
        rewrite(text, length);
        int rc = open_and_read(path, formats[i], &source);
        CHECK(rc == -EFBIG && !source, "format %d: 1 MiB gave %d", formats[i], rc);
    }
    rewrite("key 1\n", 6);
    struct memcg_source *source = open_source(path, MEMCG_FORMAT_KEYED);
    rewrite(text, length);
    CHECK(memcg_source_read(source) == -EFBIG, "grown too large");
    CHECK(value_of(source, "key") == 1, "the values of the last good read");
    rewrite("key 2\n", 6);
    CHECK(memcg_source_read(source) == 0 && value_of(source, "key") == 2, "small again");
    memcg_source_free(source);
}

static void test_failed_values(void)
{
    static const char *const texts[] = {"", "x\n", "-1\n", "12", "12 13\n", "99999999999999999999\n"};
    rewrite("4096\n", 5);
    struct memcg_source *source = open_source(path, MEMCG_FORMAT_VALUE);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        rewrite(texts[i], strlen(texts[i]));
        CHECK(memcg_source_read(source) < 0, "'%s' is no value", texts[i]);
        CHECK(memcg_source_value(source, 0) == 4096, "'%s' touched the value", texts[i]);
    }
    memcg_source_free(source);
}

/* A zombie's zeros are no data, and what follows it under its pid is never read by mistake. */
static void test_vanished_process(void)
{
    char statm[64];
    pid_t pid = fork();
    CHECK(pid >= 0, "no process");
    if (pid == 0)
        for (;;)
            pause();
    snprintf(statm, sizeof statm, "/proc/%d/statm", pid);
    struct memcg_source *source = open_source(statm, MEMCG_FORMAT_STATM);
    siginfo_t info;
    CHECK(kill(pid, SIGKILL) == 0 && waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) == 0, "it lives");
    CHECK(memcg_source_read(source) == -ESRCH, "a zombie");
    CHECK(waitpid(pid, NULL, 0) == pid, "not reaped");
    for (int i = 0; i < 2; i++)
        CHECK(memcg_source_read(source) == -ESRCH, "gone");
    memcg_source_free(source);
}

static int count_descriptors(void)
{
    DIR *folder = opendir("/proc/self/fd");
    CHECK(folder, "no /proc/self/fd");
    int count = 0;
    while (readdir(folder))
        count++;
    closedir(folder);
    return count;
}

static void test_bad_files(void)
{
    static const struct {
        const char *path;
        int format, rc;
    } cases[] = {
        {"/proc/self/no-such-file", MEMCG_FORMAT_KEYED, -ENOENT},
        {"/proc/self", MEMCG_FORMAT_KEYED, -EISDIR},
        {"/proc/self/statm/x", MEMCG_FORMAT_STATM, -ENOTDIR},
        {"/proc/self/statm", MEMCG_FORMAT_PSI, -ENODATA},
        {"/proc/self/statm", MEMCG_FORMAT_KEYED, -EINVAL},
        {"/proc/vmstat", MEMCG_FORMAT_STATM, -EFBIG},
        {"/proc/self/statm", -1, -EINVAL},
        {"/proc/self/statm", MEMCG_FORMAT_PSI + 1, -EINVAL},
        {"/dev/null", MEMCG_FORMAT_VALUE, -ENODATA},
    };
    int descriptors = count_descriptors();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct memcg_source *source = NULL;
        int rc = open_and_read(cases[i].path, cases[i].format, &source);
        CHECK(rc == cases[i].rc && !source, "%s as format %d gave %d", cases[i].path, cases[i].format, rc);
    }
    struct memcg_source *source = open_source("/proc/self/statm", MEMCG_FORMAT_STATM);
    CHECK(count_descriptors() == descriptors + 1, "descriptors");
    CHECK(fcntl(memcg_source_fd(source), F_GETFD) & FD_CLOEXEC, "a child inherits it");
    memcg_source_free(source);
    memcg_source_free(NULL);
    CHECK(count_descriptors() == descriptors, "descriptors leaked");
}

static void remove_path(void)
{
    unlink(path);
}

int main(void)
{
    int fd = mkstemp(path);
    CHECK(fd >= 0, "no file %s", path);
    close(fd);
    atexit(remove_path);
    test_captured_keyed();
    test_captured_values();
    test_captured_psi();
    test_captured_statm();
    test_own_memory();
    test_own_kernel();
    test_moving_layout();
    test_too_large();
    test_failed_values();
    test_vanished_process();
    test_bad_files();
    return 0;
}
