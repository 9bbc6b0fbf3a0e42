# SPDX-License-Identifier: Apache-2.0
"""A guest that is a program: user-mode Linux. It has no PSI, no tracing and one CPU, and runs at nearly full speed."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from rig.kernels import Kernel, UnavailableError
from rig.processes import folder, outcome, relay, running
from rig.qemu import Job, make_disk

HERE = Path(__file__).resolve().parent
TOOLS = {"cc": "gcc libc6-dev", "busybox": "busybox-static", "setpriv": "util-linux", "mkfs.ext4": "e2fsprogs"}


def run(kernel: Kernel, job: Job) -> int:
    """Boot, run the command, return its exit status; or 124, 125."""
    if job.cpus > 1 or job.icount:
        raise UnavailableError("user-mode Linux has one CPU and counts no instructions")
    begun = time.monotonic()
    with folder() as base:
        log = job.kernel_log or base / "kernel.log"
        if job.out:
            job.out.mkdir(parents=True, exist_ok=True)
        settings = {
            "CGROUP": job.cgroup,
            "SWAP": str(job.swap),
            "DISK": str(job.disk),
            "OUT": str(job.out.resolve()) if job.out else "",
            "MODULES": str(kernel.modules.resolve() / "kernel"),
        }
        (base / "settings").write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items()))
        (base / "command").write_text(job.script(kernel.name))
        environment = {**os.environ, "LD_PRELOAD": str(_registers(base))}
        source, sink = os.pipe()
        with log.open("wb") as errors:
            options = {"stdout": sink, "stderr": errors, "env": environment, "start_new_session": True}
            # A signal that it can handle: its processes are processes of ours, and it must end them.
            with running(kernel.image, *_arguments(job, base), dies_by="TERM", **options) as process, _all_of(process):
                os.close(sink)
                in_time = relay(source, begun + job.timeout - time.monotonic())
        os.close(source)
        if (base / "dmesg").exists():
            with log.open("ab") as end:
                end.write((base / "dmesg").read_bytes())
        return outcome(base / "status", log, in_time=in_time, seconds=job.timeout)


def _arguments(job: Job, base: Path) -> list[str]:
    arguments = [f"mem={job.memory}M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", "panic=-1"]
    arguments += [f"init={HERE / 'uml_init'}", f"HANDED={base}", f"uml_dir={base}/", "umid=guest"]
    arguments += ["con=null", "ssl=null", "ssl0=null,fd:1", *job.kernel_args.split()]
    if job.disk:
        make_disk(base / "disk", job.disk)
        arguments.append(f"ubda={base / 'disk'}")
    return arguments


def _registers(base: Path) -> Path:
    """What user-mode Linux needs on some processors, compiled."""
    library = base / "uml_xstate.so"
    source = HERE / "uml_xstate.c"
    done = subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"{source} does not compile here:\n{done.stderr}")
    return library


@contextlib.contextmanager
def _all_of(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ends its session, too: that is all processes of the guest."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
