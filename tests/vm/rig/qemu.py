# SPDX-License-Identifier: Apache-2.0
"""A guest in QEMU. It is emulated, with KVM or without: so it is the same everywhere, and instructions can be counted."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rig import initramfs
from rig.kernels import Kernel, UnavailableError
from rig.processes import SEARCHED, folder, outcome, relay, running

KERNEL_ARGUMENTS = "console=ttyS0 quiet panic=-1 oops=panic mitigations=off nokaslr apparmor=0 audit=0 tsc=reliable"
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")  # QEMU's own up to Debian 12, its successor's
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "mkfs.ext4": "e2fsprogs",
}
START_S = 60  # a mount that hangs, of a network for one, keeps it from starting
NOT_SHARED = ("/proc", "/sys", "/dev", "/run")

# Binds file systems read-only below a folder, in a mount namespace of its own: FOLDER TARGET… -- COMMAND…
BIND = """
root=$1
shift
while [ "$1" != -- ]; do
    mount -o bind,ro "$1" "$root$1" || [ "$1" != / ] || exit
    shift
done
shift
exec "$@"
"""


@dataclass(frozen=True)
class Job:
    """What a guest is to do, and what it is given; sizes in MiB, time in seconds."""

    command: list[str]
    workdir: str
    cgroup: str
    memory: int
    cpus: int
    swap: int
    disk: int
    timeout: float
    out: Path | None
    icount: bool
    kernel_args: str
    kernel_log: Path | None

    def script(self, name: str) -> str:
        """What the guest's shell runs."""
        variables = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": os.environ.get("HOME", "/root"),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "PYMEMCG_VM": name,
        }
        exports = shlex.join(f"{variable}={value}" for variable, value in variables.items())
        return f"export {exports}\ncd {shlex.quote(self.workdir)} || exit 126\nexec {shlex.join(self.command)}\n"


def run(kernel: Kernel, job: Job) -> int:
    """Boot, run the command, return its exit status; or 124, 125."""
    begun = time.monotonic()
    with folder() as base, ExitStack() as stack:
        log = job.kernel_log or base / "kernel.log"
        status = base / "status"
        settings = {"CGROUP": job.cgroup, "SWAP": job.swap, "DISK": job.disk, "OUT": "yes" if job.out else "no"}
        files = {
            "settings": "".join(f"{name}={value}\n" for name, value in settings.items()),
            "command": job.script(kernel.name),
        }
        (base / "initramfs").write_bytes(initramfs.build(kernel.modules, files))
        options = [*_machine(kernel, job, base, log), *stack.enter_context(_share(base, "host", Path("/"), read_only=True))]
        if job.out:
            job.out.mkdir(parents=True, exist_ok=True)
            options += stack.enter_context(_share(base, "out", job.out.resolve(), read_only=False))
        if job.disk:
            make_disk(base / "disk", job.disk)
            options += _drive(base / "disk")
        source, sink = os.pipe()
        options += [*_port("output", f"/proc/self/fd/{sink}"), *_port("status", str(status))]
        qemu = stack.enter_context(running("qemu-system-x86_64", *options, pass_fds=[sink]))
        os.close(sink)
        in_time = relay(source, begun + job.timeout - time.monotonic())
        if in_time:
            qemu.wait()
        return outcome(status, log, in_time=in_time, seconds=job.timeout)


def _machine(kernel: Kernel, job: Job, base: Path, log: Path) -> list[str]:
    options = f"-M q35 -cpu max -smp {job.cpus} -nodefaults -no-user-config -display none -no-reboot".split()
    if job.icount:  # the guest's clock counts instructions, 1 ns each
        options += ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]
    else:
        options += ["-accel", "tcg,thread=multi"]
    # Memory that virtiofsd can map, too.
    options += ["-m", str(job.memory), "-object", f"memory-backend-memfd,id=memory,size={job.memory}M,share=on"]
    options += ["-numa", "node,memdev=memory"]
    options += ["-kernel", str(kernel.image), "-initrd", str(base / "initramfs")]
    options += ["-append", f"{KERNEL_ARGUMENTS} {job.kernel_args}", "-serial", f"file:{log}"]
    return [*options, "-device", "virtio-serial-pci,disable-legacy=on"]


def _port(name: str, path: str) -> list[str]:
    return ["-chardev", f"file,id={name},path={path}", "-device", f"virtserialport,chardev={name},name={name}"]


def make_disk(path: Path, size: int) -> None:
    """An ext4 file system of so many MiB in a file."""
    with path.open("wb") as file:
        file.truncate(size << 20)
    mkfs = shutil.which("mkfs.ext4", path=SEARCHED) or "mkfs.ext4"
    subprocess.run([mkfs, "-q", "-F", "-E", "lazy_itable_init=1", "-O", "^has_journal", path], check=True)


def _drive(path: Path) -> list[str]:
    drive = f"file={path},if=none,id=disk,format=raw,cache=unsafe"
    return ["-drive", drive, "-device", "virtio-blk-pci,drive=disk,disable-legacy=on"]


@contextmanager
def _share(base: Path, tag: str, path: Path, *, read_only: bool) -> Iterator[list[str]]:
    """A folder of the host for virtiofs; nothing is mounted where the host would see it."""
    daemon = next((path for path in VIRTIOFSD if os.access(path, os.X_OK)), None)
    if not daemon:
        raise UnavailableError("virtiofsd is missing here: apt-get install qemu-system-common, or virtiofsd from Debian 13 on")
    socket = base / f"{tag}.socket"
    source, prefix = path, []
    if read_only:  # as far as is known by no switch of its own
        source = base / tag
        source.mkdir()
        prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", BIND, "bind", str(source), *_mounts(), "--"]
    serve = [daemon, f"--socket-path={socket}", "-o", f"source={source},cache=always,sandbox=chroot", "--thread-pool-size=1"]
    log = base / f"{tag}.log"
    with log.open("wb") as sink, running(*prefix, *serve, stdout=sink, stderr=sink) as process:
        end = time.monotonic() + START_S
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > end:
                raise UnavailableError(f"virtiofsd did not start: {log.read_text(errors='replace').strip()}")
            time.sleep(0.01)
        device = f"vhost-user-fs-pci,chardev={tag},tag={tag}"
        yield ["-chardev", f"socket,id={tag},path={socket}", "-device", device]


def _mounts() -> list[str]:
    """Where file systems with files are mounted, `/` first."""
    with open("/proc/self/mountinfo") as lines:
        targets = {re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), line.split()[4]) for line in lines}
    return sorted(target for target in targets if not any(f"{target}/".startswith(f"{kernels}/") for kernels in NOT_SHARED))
