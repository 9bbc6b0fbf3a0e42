/* SPDX-License-Identifier: Apache-2.0 */
/* Threads as such: starting, sleeping, stopping. */
#include <errno.h>
#include <link.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "sampler.h"

static const uint64_t BRIEF_NS = 2000000; /* a stop may wait that long */

uint64_t memcg_thread_cpu_ns(void)
{
    struct timespec used;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

/* Locks the code of the object that this function is in; of a page that is not there yet, when it is first used. */
static int lock_code(struct dl_phdr_info *info, size_t size, void *done)
{
    (void)size;
    uintptr_t here = (uintptr_t)&memcg_thread_begin;
    for (size_t i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        uintptr_t begin = info->dlpi_addr + segment->p_vaddr;
        if (segment->p_type != PT_LOAD || !(segment->p_flags & PF_X) || here < begin || here - begin >= segment->p_memsz)
            continue;
        uintptr_t page = begin & ~((uintptr_t)sysconf(_SC_PAGESIZE) - 1);
        (void)mlock2((const void *)page, segment->p_memsz + (begin - page), MLOCK_ONFAULT);
        *(bool *)done = true;
    }
    return *(bool *)done;
}

void memcg_thread_lock_code(void)
{
    bool done = false;
    dl_iterate_phdr(lock_code, &done);
}

void memcg_thread_begin(const char *name)
{
    volatile char stack[MEMCG_STACK_TOUCHED];
    for (size_t i = 0; i < sizeof stack; i += 4096)
        stack[i] = 0;
    (void)mlock((const void *)(uintptr_t)stack, sizeof stack);
    prctl(PR_SET_NAME, name);
    prctl(PR_SET_TIMERSLACK, 1UL); /* ns; the default of 50 us is half of a 10 kHz tick */
}

/* True = the deadline has passed; false = woken before. The same absolute deadline on CLOCK_MONOTONIC either way: a futex lets a
 * stop end the sleep at once, but takes 0.5 us of CPU time more than clock_nanosleep, 1/20 of what a sleep and its end take in all. */
static bool sleep_until(uint32_t *word, uint64_t deadline_ns, bool brief)
{
    const struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / 1000000000u),
                                      .tv_nsec = (long)(deadline_ns % 1000000000u)};
    if (brief)
        return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, NULL) == 0;
    return syscall(SYS_futex, word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, 0, &deadline, NULL, FUTEX_BITSET_MATCH_ANY) != 0 &&
           errno == ETIMEDOUT;
}

bool memcg_thread_wait(uint32_t *stop, uint64_t now, uint64_t deadline)
{
    bool brief = deadline < now + BRIEF_NS;
    while (!__atomic_load_n(stop, __ATOMIC_ACQUIRE))
        if (sleep_until(stop, deadline, brief))
            return __atomic_load_n(stop, __ATOMIC_ACQUIRE);
    return true;
}

void memcg_thread_end(uint32_t *stop)
{
    __atomic_store_n(stop, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, stop, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT32_MAX, NULL, NULL, 0);
}

bool memcg_thread_wait_for_post(struct memcg_sampler *sampler, uint64_t deadline, bool *ret_called)
{
    *ret_called = false;
    while (!__atomic_load_n(&sampler->stop, __ATOMIC_ACQUIRE)) {
        *ret_called = __atomic_exchange_n(&sampler->call, 0, __ATOMIC_ACQ_REL) != 0;
        if (*ret_called || sleep_until(&sampler->call, deadline, false))
            return __atomic_load_n(&sampler->stop, __ATOMIC_ACQUIRE);
    }
    return true;
}

void memcg_thread_call(struct memcg_sampler *sampler)
{
    if (__atomic_exchange_n(&sampler->call, 1, __ATOMIC_ACQ_REL) == 0)
        syscall(SYS_futex, &sampler->call, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, NULL, NULL, 0);
}

/* Signals go to the threads of the program that embeds us. */
int memcg_thread_start(pthread_t *ret_thread, void *(*run)(void *), void *argument)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    sigfillset(&all);
    int rc = pthread_attr_init(&attributes);
    if (rc != 0)
        return -rc;
    (void)pthread_attr_setstacksize(&attributes, MEMCG_STACK_BYTES);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(ret_thread, &attributes, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return -rc;
}

void memcg_thread_stop(struct memcg_sampler *sampler)
{
    memcg_thread_end(&sampler->stop);
    memcg_thread_call(sampler);
}
