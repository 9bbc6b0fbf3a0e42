/* SPDX-License-Identifier: Apache-2.0 */
/* The promise of the tick thread's loop, as a tracer sees it: a sleep, a pread of each file, now and then a look at the thread's own
 * CPU time, and no other system call: nothing that allocates, locks, logs or opens. */
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "fake.h"

enum { FILES = 3 /* that a row of usage is made of */ };

static struct fake fake;

/* Runs a sampler; tells its tick thread through the pipe. */
static void run_sampler(int pipe_fd, uint32_t flags)
{
    fake.config.flags = flags;
    (void)fake_start(&fake);
    pid_t tid = fake_thread("pymemcg-tick");
    usleep(200000);
    CHECK(write(pipe_fd, &tid, sizeof tid) == sizeof tid, "no pipe");
    for (int step = 0;; step++) { /* hits, and CPU time of the group, so that there is PSI to read */
        char text[128];
        usleep(100000);
        snprintf(text, sizeof text, "usage_usec %d\nuser_usec 5000000\nsystem_usec 2000000\n", 7000000 + step * 90000);
        fake_write(&fake, CPU_STAT, text);
        snprintf(text, sizeof text, "low 0\nhigh 20\nmax %d\noom 0\noom_kill 30\n", 10 + step % 80);
        fake_write(&fake, EVENTS, text);
    }
}

/* One system call of the traced thread; its number, and its first argument. */
static uint64_t next_call(pid_t tid, uint64_t *ret_argument)
{
    struct __ptrace_syscall_info call = {0};
    int status;
    do {
        CHECK(ptrace(PTRACE_SYSCALL, tid, NULL, NULL) == 0, "the tracer is gone: %s", strerror(errno));
        CHECK(waitpid(tid, &status, __WALL) == tid && WIFSTOPPED(status), "it ended with %#x", (unsigned)status);
        CHECK(ptrace(PTRACE_GET_SYSCALL_INFO, tid, (void *)sizeof call, &call) > 0, "no call: %s", strerror(errno));
    } while (call.op != PTRACE_SYSCALL_INFO_ENTRY);
    *ret_argument = call.entry.args[0];
    return call.entry.nr;
}

static bool is_sleep(uint64_t call)
{
    return call == SYS_futex || call == SYS_clock_nanosleep;
}

static void trace(pid_t tid, int count)
{
    uint64_t argument, reads = 0, others = 0, plain = 0, most_reads = 0, most_others = 0;
    while (!is_sleep(next_call(tid, &argument)))
        continue;
    for (int ticks = 0; ticks < count;) {
        uint64_t call = next_call(tid, &argument);
        if (is_sleep(call)) {
            CHECK(reads >= FILES, "tick %d read %" PRIu64 " files", ticks, reads);
            plain += reads == FILES && others == 0;
            most_reads = reads > most_reads ? reads : most_reads;
            most_others = others > most_others ? others : most_others;
            reads = others = 0;
            ticks++;
        } else if (call == SYS_clock_gettime) {
            others += argument == CLOCK_THREAD_CPUTIME_ID; /* the other clocks are calls only where the vDSO has none */
        } else {
            CHECK(call == SYS_pread64, "tick %d: system call %" PRIu64, ticks, call);
            reads++;
        }
    }
    printf("%" PRIu64 " of %d ticks are a sleep and %d preads; at most %" PRIu64 " preads and %" PRIu64 " others\n", plain,
           count, FILES, most_reads, most_others);
    CHECK(plain > (uint64_t)count / 4, "only %" PRIu64 " ticks are plain", plain);
    CHECK(most_reads > FILES, "PSI was never read: nothing was tried");
    CHECK(most_reads <= FILES + 3 && most_others <= 4, "%" PRIu64 " preads and %" PRIu64 " others in one tick", most_reads,
          most_others); /* cpu.stat twice, and PSI */
}

static void test_calls(uint32_t flags, int count)
{
    int pipes[2], status;
    pid_t tid;
    fake_make(&fake);
    CHECK(pipe(pipes) == 0, "no pipe");
    pid_t pid = fork();
    CHECK(pid >= 0, "no process");
    if (pid == 0)
        run_sampler(pipes[1], flags);
    CHECK(read(pipes[0], &tid, sizeof tid) == sizeof tid, "no thread");
    if (ptrace(PTRACE_SEIZE, tid, NULL, (void *)PTRACE_O_TRACESYSGOOD) != 0) {
        kill(pid, SIGKILL);
        fake_remove(&fake);
        SKIP("no tracing here: %s", strerror(errno));
    }
    CHECK(ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) == 0 && waitpid(tid, &status, __WALL) == tid, "it goes on");
    trace(tid, count);
    CHECK(kill(pid, SIGKILL) == 0, "it is gone");
    while (waitpid(-1, &status, __WALL) > 0)
        continue;
    close(pipes[0]);
    close(pipes[1]);
    fake_remove(&fake);
}

int main(void)
{
    if (FAKE_SANITIZED)
        SKIP("the sanitizer makes calls of its own");
    test_calls(0, 2000);
    test_calls(MEMCG_ADAPTIVE | MEMCG_INSIDE, 300);
    return 0;
}
