/* SPDX-License-Identifier: Apache-2.0 */
/* From events to rows of `reclaim`: pairing, whose a thread is, what is lost, and whether it waited for a CPU. The events are made
 * here; that the kernel's are read rightly is shown, against tracefs, by the live tests. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "sampler.h"

enum { OWN = 77, FOREIGN = 78, ROWS = 1024, MS = 1000000 };

static struct memcg_trace trace;
static struct memcg_writer writer;
static struct memcg_config config = {.cgroup_id = OWN, .memory_version = 2};
static uint64_t taken;

static void begin(void)
{
    static const struct memcg_column_spec columns[] = {{"start_ns", "ns"},   {"end_ns", "ns"}, {"pid", ""},
                                                       {"tid", ""},          {"kind", ""},     {"reclaimed_pages", "pages"},
                                                       {"cpu_wait_ns", "ns"}};
    const struct memcg_channel_spec channel = {"reclaim", 0, ROWS, 7, columns};
    int fd = memfd_create("trace", MFD_CLOEXEC);
    CHECK(fd >= 0 && memcg_ring_create(fd, &channel, 1, NULL, 0, (uint32_t)sysconf(_SC_PAGESIZE), 1) == 0, "no ring");
    CHECK(memcg_writer_open(fd, &writer) == 0, "no writer");
    close(fd);
    memset(&trace, 0, sizeof trace);
    CHECK(memcg_trace_open(&config, &writer, &trace) == 0, "not opened");
    taken = 0;
}

static void end(void)
{
    memcg_trace_close(&trace);
    memcg_writer_close(&writer);
}

static void event(int tracepoint, uint32_t tid, uint64_t t_ns, uint64_t cgroup, int64_t value)
{
    memcg_trace_event(&trace, &(struct memcg_perf_event){t_ns, cgroup, tid, tid, tracepoint, value});
}

static void drain(uint64_t now_ns)
{
    memcg_trace_drain(&trace, now_ns, &writer.header->state);
}

static int64_t cell(int column, uint64_t row)
{
    return trace.channel.column[column][row % trace.channel.header->capacity];
}

/* The next row, whose columns are these; cpu_wait_ns is the caller's affair. */
static void expect(int64_t start_ns, int64_t end_ns, int64_t tid, int64_t kind, int64_t pages)
{
    const int64_t wanted[] = {start_ns, end_ns, tid, tid, kind, pages};
    CHECK(trace.channel.head > taken, "no row %llu", (unsigned long long)taken);
    for (int i = 0; i < 6; i++)
        CHECK(cell(i, taken) == wanted[i], "column %d of row %llu is %lld, not %lld", i, (unsigned long long)taken,
              (long long)cell(i, taken), (long long)wanted[i]);
    taken++;
}

static void expect_no_more(void)
{
    CHECK(trace.channel.head == taken, "%llu rows too many", (unsigned long long)(trace.channel.head - taken));
}

static void test_pairs_by_thread(void)
{
    begin();
    event(MEMCG_TRACE_MEMCG_BEGIN, 10, 1000, OWN, MEMCG_NONE);
    event(MEMCG_TRACE_DIRECT_BEGIN, 11, 1500, OWN, MEMCG_NONE);
    event(MEMCG_TRACE_MEMCG_END, 10, 2000, OWN, 32);
    event(MEMCG_TRACE_THROTTLED, 11, 5000, OWN, 4); /* in jiffies, which seem to begin before that reclaim */
    event(MEMCG_TRACE_THROTTLED, 11, 9000, OWN, 4);
    event(MEMCG_TRACE_DIRECT_END, 11, 9500, OWN, 7);
    event(MEMCG_TRACE_COMPACTION_BEGIN, 11, 9600, OWN, MEMCG_NONE);
    event(MEMCG_TRACE_COMPACTION_END, 11, 9700, OWN, MEMCG_NONE);
    event(MEMCG_TRACE_MEMCG_BEGIN, 12, 9800, FOREIGN, MEMCG_NONE);
    event(MEMCG_TRACE_MEMCG_END, 12, 9900, FOREIGN, 1);
    drain(MS);
    memcg_trace_answer(&trace, &config); /* without a path of the group nothing but its id tells: 12 is another's */
    drain(2 * MS);
    expect(1000, 2000, 10, MEMCG_RECLAIM_MEMCG, 32);
    expect(1500, 5000, 11, MEMCG_RECLAIM_THROTTLED, MEMCG_NONE);
    expect(5000, 9000, 11, MEMCG_RECLAIM_THROTTLED, MEMCG_NONE);
    expect(1500, 9500, 11, MEMCG_RECLAIM_DIRECT, 7);
    expect(9600, 9700, 11, MEMCG_RECLAIM_COMPACTION, MEMCG_NONE);
    expect_no_more();
    CHECK(trace.unattributed == 0 && trace.open == 0 && trace.pending == 0, "something is left");
    end();
}

static void test_halves(void)
{
    begin();
    event(MEMCG_TRACE_MEMCG_END, 10, 1000, OWN, 5); /* it began before we were there */
    event(MEMCG_TRACE_MEMCG_BEGIN, 10, 2000, OWN, MEMCG_NONE);
    event(MEMCG_TRACE_MEMCG_BEGIN, 10, 3000, OWN, MEMCG_NONE); /* the first one's end was lost */
    event(MEMCG_TRACE_DIRECT_END, 10, 3500, OWN, 5);
    event(MEMCG_TRACE_MEMCG_END, 10, 4000, OWN, 6);
    event(MEMCG_TRACE_MEMCG_BEGIN, 0, 5000, OWN, MEMCG_NONE); /* not visible in our pid namespace, but ours */
    event(MEMCG_TRACE_MEMCG_END, 0, 6000, OWN, 6);
    event(MEMCG_TRACE_MEMCG_END, 0, 6000, FOREIGN, 6);
    drain(MS);
    expect(3000, 4000, 10, MEMCG_RECLAIM_MEMCG, 6);
    expect_no_more();
    CHECK(trace.unattributed == 1, "%llu unattributed", (unsigned long long)trace.unattributed);
    end();
}

static void test_more_threads_than_are_known_at_once(void)
{
    enum { THREADS = 4 * MEMCG_TRACE_SETS * MEMCG_TRACE_WAYS };
    begin();
    for (uint32_t tid = 1; tid <= THREADS; tid++)
        event(MEMCG_TRACE_MEMCG_BEGIN, tid, tid, OWN, MEMCG_NONE);
    CHECK(trace.open <= MEMCG_TRACE_SETS * MEMCG_TRACE_WAYS, "%u open", trace.open);
    uint32_t open = trace.open;
    for (uint32_t tid = 1; tid <= THREADS; tid++)
        event(MEMCG_TRACE_MEMCG_END, tid, 100000 + tid, OWN, 1);
    CHECK(trace.open == 0, "%u still open", trace.open);
    CHECK(trace.channel.head == open, "%llu rows of %u", (unsigned long long)trace.channel.head, open);
    CHECK(trace.channel.head + trace.unattributed == THREADS, "%llu are lost in silence",
          (unsigned long long)(THREADS - trace.channel.head - trace.unattributed));
    end();
}

/* A child process in a group, whose path we know from /proc. */
static pid_t start_child(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        pause();
        _exit(0);
    }
    CHECK(pid > 0, "no fork");
    return pid;
}

static void test_asks_the_keeper(void)
{
    pid_t pid = start_child();
    uint32_t tid = (uint32_t)pid, gone = 4194304; /* above every possible pid_max */
    config.memory_path = "/";
    config.memory_version = access("/sys/fs/cgroup/memory", F_OK) == 0 ? 1 : 2;
    begin();
    event(MEMCG_TRACE_MEMCG_BEGIN, tid, 1000, FOREIGN, MEMCG_NONE); /* in a group below ours it has another id, too */
    event(MEMCG_TRACE_MEMCG_END, tid, 2000, FOREIGN, 9);
    event(MEMCG_TRACE_MEMCG_BEGIN, gone, 1000, FOREIGN, MEMCG_NONE);
    event(MEMCG_TRACE_MEMCG_END, gone, 2000, FOREIGN, 9);
    drain(MS);
    expect_no_more(); /* nobody knows yet */
    CHECK(trace.asked && trace.pending == 2, "%u wait", trace.pending);
    memcg_trace_answer(&trace, &config);
    drain(2 * MS);
    expect(1000, 2000, tid, MEMCG_RECLAIM_MEMCG, 9);
    expect_no_more();
    CHECK(trace.unattributed == 1, "%llu unattributed", (unsigned long long)trace.unattributed);
    CHECK(trace.delays == 1, "its schedstat is not open");
    end();
    config.memory_path = NULL;
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* A thread that ends just when it is asked for again is still taken for what it was. */
static void test_asks_again(void)
{
    uint32_t tid = 4194304; /* there is no such thread */
    config.memory_path = "/nowhere";
    begin();
    event(MEMCG_TRACE_MEMCG_BEGIN, tid, 1000, OWN, MEMCG_NONE);
    event(MEMCG_TRACE_MEMCG_END, tid, 2000, OWN, 9);
    event(MEMCG_TRACE_MEMCG_BEGIN, tid, 3000000000, FOREIGN, MEMCG_NONE);
    event(MEMCG_TRACE_MEMCG_END, tid, 3000001000, FOREIGN, 9);
    drain(3001000000);
    expect(1000, 2000, tid, MEMCG_RECLAIM_MEMCG, 9);
    expect_no_more();
    for (int i = 0; i < 2; i++) { /* the first letter had asked for its schedstat alone */
        memcg_trace_answer(&trace, &config);
        drain(3002000000);
    }
    expect(3000000000, 3000001000, tid, MEMCG_RECLAIM_MEMCG, 9);
    end();
    config.memory_path = NULL;
}

static void test_end_of_the_world(void)
{
    begin();
    event(MEMCG_TRACE_MEMCG_BEGIN, 10, 1000, OWN, MEMCG_NONE);
    trace.perf = NULL;
    uint64_t id[MEMCG_TRACEPOINTS] = {0};
    CHECK(memcg_trace_probe(id) == -ENOENT, "no tracepoint is one");
    memcg_trace_finish(&trace, &config, MS, &writer.header->state);
    expect(1000, MEMCG_NONE, 10, MEMCG_RECLAIM_MEMCG, MEMCG_NONE);
    expect_no_more();
    end();
}

/* An end may be among what was lost: nobody is taken to be in reclaim for ever, nor two halves to be one. */
static void test_lost(void)
{
    begin();
    event(MEMCG_TRACE_MEMCG_BEGIN, 10, 1000, OWN, MEMCG_NONE);
    memcg_trace_lost(&trace, 3);
    CHECK(trace.open == 0 && trace.unattributed == 1, "%u open", trace.open);
    event(MEMCG_TRACE_MEMCG_END, 10, 9000, OWN, 5);
    event(MEMCG_TRACE_MEMCG_BEGIN, 10, 10000, OWN, MEMCG_NONE);
    event(MEMCG_TRACE_MEMCG_END, 10, 11000, OWN, 6);
    drain(MS);
    expect(10000, 11000, 10, MEMCG_RECLAIM_MEMCG, 6);
    expect_no_more();
    end();
}

static bool is_member(const char *text, int version, const char *group)
{
    char copy[256];
    snprintf(copy, sizeof copy, "%s", text);
    return memcg_whose_is(copy, version, group);
}

static void test_whose(void)
{
    const char v1[] = "4:memory:/a/b\n2:cpu,cpuacct:/x\n0::/c\n", joint[] = "3:cpu,memory:/a\n";
    CHECK(is_member(v1, 1, "/a/b") && is_member(v1, 1, "/a") && is_member(v1, 1, "/"), "is one");
    CHECK(!is_member(v1, 1, "/a/bb") && !is_member(v1, 1, "/a/") && !is_member(v1, 1, "/x"), "is none");
    CHECK(is_member(v1, 2, "/c") && !is_member(v1, 2, "/a/b"), "the other version's line");
    CHECK(is_member(joint, 1, "/a") && !is_member("", 1, "/") && !is_member("5:memory", 1, "/"), "other forms");
    CHECK(!is_member("0::/../other\n", 2, "/") && !is_member("0::/..\n", 2, "/"), "outside of the cgroup namespace");
    CHECK(is_member("0::/..a\n", 2, "/"), "a name with dots");
}

static void test_sleeps(void)
{
    CHECK(memcg_whose_sleeps("mem_cgroup_handle_over_high") && memcg_whose_sleeps("__mem_cgroup_handle_over_high"), "sleeps");
    CHECK(!memcg_whose_sleeps("0") && !memcg_whose_sleeps("futex_do_wait") && !memcg_whose_sleeps(""), "does not");
}

/* Two threads on one CPU, of which one is preempted while it "reclaims". */
static uint32_t victim;
static bool stop;

static void *spin(void *tid)
{
    if (tid)
        __atomic_store_n((uint32_t *)tid, (uint32_t)gettid(), __ATOMIC_RELEASE);
    while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE))
        ;
    return NULL;
}

static void test_cpu_wait(void)
{
    if (access("/proc/self/schedstat", R_OK) != 0)
        SKIP("the kernel has no /proc/TID/schedstat (CONFIG_SCHED_INFO)");
    pthread_t threads[2];
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET((size_t)sched_getcpu(), &one);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setaffinity_np(&attributes, sizeof one, &one);
    victim = 0;
    __atomic_store_n(&stop, false, __ATOMIC_RELEASE);
    CHECK(pthread_create(&threads[0], &attributes, spin, &victim) == 0, "no thread");
    CHECK(pthread_create(&threads[1], &attributes, spin, NULL) == 0, "no thread");
    while (!__atomic_load_n(&victim, __ATOMIC_ACQUIRE))
        usleep(1000);
    begin();
    pthread_attr_destroy(&attributes);
    uint64_t start = now_ns();
    event(MEMCG_TRACE_MEMCG_BEGIN, victim, start, OWN, MEMCG_NONE);
    drain(now_ns());
    memcg_trace_answer(&trace, &config);
    drain(now_ns()); /* the file is open: what its run_delay is at the beginning */
    usleep(300000);
    uint64_t end_ns = now_ns();
    trace.drains++; /* events come within one */
    event(MEMCG_TRACE_MEMCG_END, victim, end_ns, OWN, 1);
    __atomic_store_n(&stop, true, __ATOMIC_RELEASE);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    int64_t waited = cell(6, 0);
    CHECK(waited > 20 * MS && waited <= (int64_t)(end_ns - start), "waited %lld ns of %llu", (long long)waited,
          (unsigned long long)(end_ns - start));
    end();
}

int main(void)
{
    test_pairs_by_thread();
    test_halves();
    test_more_threads_than_are_known_at_once();
    test_asks_the_keeper();
    test_asks_again();
    test_end_of_the_world();
    test_lost();
    test_whose();
    test_sleeps();
    test_cpu_wait();
    return 0;
}
