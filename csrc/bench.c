/* SPDX-License-Identifier: Apache-2.0 */
/* What the sampler is measured against, and loops that Python would blur. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "sampler.h"

enum { TEXT_BYTES = 16384, FILES = 32 };

/* Memory that is faulted in and given back, so that the group's counters move. */
struct churn {
    char *memory;
    size_t page_bytes, pages;
    uint32_t turn;
};

static int churn_open(size_t bytes, struct churn *ret_churn)
{
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    struct churn churn = {.page_bytes = page_bytes, .pages = bytes / page_bytes};
    if (churn.pages == 0)
        return -EINVAL;
    churn.memory =
        mmap(NULL, churn.pages * page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (churn.memory == MAP_FAILED)
        return -ENOMEM;
    (void)madvise(churn.memory, churn.pages * page_bytes, MADV_NOHUGEPAGE); /* a huge page would be one fault */
    *ret_churn = churn;
    return 0;
}

/* Another number of pages each time, between a half and all of them, or the group would be back where it was. */
static void churn_once(struct churn *churn)
{
    size_t pages = churn->pages / 2 + (size_t)churn->turn++ * 37 % (churn->pages - churn->pages / 2);
    (void)madvise(churn->memory, churn->pages * churn->page_bytes, MADV_DONTNEED);
    for (size_t i = 0; i <= pages && i < churn->pages; i++)
        ((volatile char *)churn->memory)[i * churn->page_bytes] = 1;
}

static int read_sources(struct memcg_source *const *sources, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        int rc = memcg_source_read(sources[i]);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int read_bare(const int *fds, size_t count, char (*texts)[TEXT_BYTES], ssize_t *ret_lengths)
{
    for (size_t i = 0; i < count; i++) {
        ret_lengths[i] = pread(fds[i], texts[i], TEXT_BYTES, 0);
        if (ret_lengths[i] < 0)
            return -errno;
    }
    return 0;
}

int memcg_bench_read(struct memcg_source *const *sources, size_t count, uint32_t rounds, size_t churn_bytes,
                     uint64_t *ret_source_ns, uint64_t *ret_pread_ns, uint32_t *ret_changed)
{
    int fds[FILES];
    ssize_t lengths[FILES] = {0};
    struct churn churn;
    uint64_t source_ns = 0, pread_ns = 0;
    uint32_t changed = 0;
    size_t longest = 0;
    if (count == 0 || count > FILES)
        return -EINVAL;
    int rc = churn_open(churn_bytes, &churn);
    if (rc != 0)
        return rc;
    char(*texts)[TEXT_BYTES] = calloc(count + 1, TEXT_BYTES), *before = texts ? texts[count] : NULL;
    if (!texts)
        rc = -ENOMEM;
    for (size_t i = 0; i < count; i++)
        fds[i] = memcg_source_fd(sources[i]);
    if (rc == 0)
        rc = read_bare(fds, count, texts, lengths); /* touches the buffers, as opening touched those of the sources */
    for (size_t i = 0; rc == 0 && i < count; i++)
        if (lengths[i] > lengths[longest])
            longest = i;
    for (uint32_t i = 0; rc == 0 && i < 2 * rounds; i++) {
        bool bare = (i ^ i >> 1) & 1; /* either comes first in every second round */
        memcpy(before, texts[longest], TEXT_BYTES);
        churn_once(&churn);
        uint64_t begun = now_ns();
        rc = bare ? read_bare(fds, count, texts, lengths) : read_sources(sources, count);
        *(bare ? &pread_ns : &source_ns) += now_ns() - begun;
        changed += bare && memcmp(before, texts[longest], TEXT_BYTES) != 0;
    }
    munmap(churn.memory, churn.pages * churn.page_bytes);
    free(texts);
    if (rc != 0)
        return rc;
    *ret_source_ns = source_ns;
    *ret_pread_ns = pread_ns;
    *ret_changed = changed;
    return 0;
}

static int bare_file(const struct memcg_bench_file *file, char *text)
{
    int fd = file->path ? open(file->path, O_RDONLY | O_CLOEXEC) : file->fd;
    int rc = fd < 0 || pread(fd, text, TEXT_BYTES, 0) < 0 ? -errno : 0;
    if (file->path && fd >= 0)
        close(fd);
    return rc;
}

/* What has become due since the tick before. */
static int bare_tick(const struct memcg_bench_file *files, size_t count, uint64_t before, uint64_t tick,
                     char (*texts)[TEXT_BYTES])
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < count; i++)
        if (before / files[i].every != tick / files[i].every)
            rc = bare_file(&files[i], texts[i]);
    return rc;
}

int memcg_bench_loop(const struct memcg_bench_file *files, size_t count, uint64_t period_ns, size_t ticks, int64_t *ret_late_ns,
                     uint64_t *ret_cpu_ns)
{
    if (count > FILES || period_ns == 0)
        return -EINVAL;
    for (size_t i = 0; i < count; i++)
        if (files[i].every == 0)
            return -EINVAL;
    char(*texts)[TEXT_BYTES] = calloc(count + 1, TEXT_BYTES);
    if (!texts)
        return -ENOMEM;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < count; i++)
        rc = bare_file(&files[i], texts[i]); /* touches the buffers */
    int slack = prctl(PR_GET_TIMERSLACK);
    prctl(PR_SET_TIMERSLACK, 1UL);
    uint64_t begun_cpu = memcg_thread_cpu_ns(), start = now_ns();
    for (size_t i = 0, before = 0; rc == 0 && i < ticks;) {
        uint64_t due = start + (i + 1) * period_ns;
        const struct timespec deadline = {.tv_sec = (time_t)(due / 1000000000u), .tv_nsec = (long)(due % 1000000000u)};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, NULL) == EINTR)
            ;
        ret_late_ns[i] = (int64_t)(now_ns() - due);
        rc = bare_tick(files, count, before, i + 1, texts);
        before = i + 1;
        /* As the sampler does: what has passed is skipped, not bunched. */
        uint64_t passed = (now_ns() - start) / period_ns;
        for (i++; i < passed && i < ticks; i++)
            ret_late_ns[i] = -1;
    }
    uint64_t cpu_ns = memcg_thread_cpu_ns() - begun_cpu;
    prctl(PR_SET_TIMERSLACK, (unsigned long)(slack > 0 ? slack : 0)); /* 0 = the thread's default */
    free(texts);
    if (rc == 0)
        *ret_cpu_ns = cpu_ns;
    return rc;
}

int memcg_bench_ticks(const struct memcg_config *config, uint64_t ticks, uint64_t *ret_cpu_ns)
{
    struct memcg_sampler *sampler =
        mmap(NULL, sizeof *sampler, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (sampler == MAP_FAILED)
        return -ENOMEM;
    sampler->config = *config;
    uint64_t last_ns;
    int rc = memcg_sampler_begin(sampler, &last_ns);
    if (rc == 0) {
        uint64_t begun_cpu = memcg_thread_cpu_ns();
        for (uint64_t i = 0; rc == 0 && i < ticks; i++)
            rc = memcg_tick_sample(sampler, now_ns());
        uint64_t cpu_ns = memcg_thread_cpu_ns() - begun_cpu;
        memcg_sampler_end(sampler);
        if (rc == 0)
            *ret_cpu_ns = cpu_ns;
    }
    munmap(sampler, sizeof *sampler);
    return rc;
}
