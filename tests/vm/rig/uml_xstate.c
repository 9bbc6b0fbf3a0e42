// SPDX-License-Identifier: Apache-2.0
/*
 * Preloaded into user-mode Linux, so that it runs on processors with AMX.
 *
 * User-mode Linux 6.1 keeps 2696 bytes of extended registers (XSAVE) for each of its processes. A kernel accepts them from a
 * tracer only in the size that it has for its processor: 11008 bytes with AMX, else EFAULT, and user-mode Linux ends at its
 * first process with `put_fp_registers`. So what it sets is made as long as it must be. The rest is zero: AMX is off in its
 * processes, as nobody in there can ask for it.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* Not on the stack: this runs on stacks of its kernel, 16 KiB each. It has one thread. */
static char registers[1 << 16];
static size_t size;

static long set_registers(pid_t pid, const struct iovec *given)
{
    struct iovec all = {registers, sizeof registers};
    if (size == 0) {
        if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, NT_X86_XSTATE, &all) < 0)
            return -1;
        size = all.iov_len;
        memset(registers, 0, sizeof registers);
    }
    all.iov_len = given->iov_len > size ? given->iov_len : size;
    memcpy(registers, given->iov_base, given->iov_len);
    return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, &all);
}

/* The C library's, but for one request. */
long ptrace(enum __ptrace_request request, ...)
{
    va_list rest;
    va_start(rest, request);
    pid_t pid = va_arg(rest, pid_t);
    void *address = va_arg(rest, void *);
    void *data = va_arg(rest, void *);
    va_end(rest);
    if (request == PTRACE_SETREGSET && address == (void *)NT_X86_XSTATE)
        return set_registers(pid, data);
    if (request != PTRACE_PEEKTEXT && request != PTRACE_PEEKDATA && request != PTRACE_PEEKUSER)
        return syscall(SYS_ptrace, request, pid, address, data);
    long word = 0;
    long failed = syscall(SYS_ptrace, request, pid, address, &word);
    if (failed < 0)
        return failed;
    errno = 0;
    return word;
}
