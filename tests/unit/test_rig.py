# SPDX-License-Identifier: Apache-2.0
"""tests/vm/rig: what needs no guest, such as reading what pytest said, choosing a kernel, archives that a kernel can unpack.

And what guests do when something is amiss, where there is one at hand.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vm"))

from rig import initramfs, kernels, processes, pytests, qemu, uml

VM = Path(pytests.__file__).resolve().parents[1]
PASSES = "def test_good(): pass"
SKIPS = "import pytest\n@pytest.mark.parametrize('n', [1, 2])\ndef test_absent(n): pytest.skip('not: in [this] kernel')"
FAILS = "def test_bad(): assert not 'a word that is long enough to be cut off: ' + 'x' * 200"
BREAKS = "import pytest\n@pytest.fixture\ndef broken(): raise OSError\ndef test_unsaid(broken): pass"


def said(folder: Path, *tests: str, status: int | None = None) -> pytests.Said:
    (folder / "test_it.py").write_text("\n".join(tests))
    command = pytests.command(Path(sys.executable), str(folder / "test_it.py"))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return pytests.Said.of(done.stdout, done.returncode if status is None else status)


def test_what_pytest_said_is_read(tmp_path):
    found = said(tmp_path, PASSES, SKIPS, FAILS, BREAKS)
    assert found.counts == {"failed": 1, "passed": 1, "skipped": 2, "error": 1}
    assert found.summary == "1 failed, 1 passed, 2 skipped, 1 error"
    assert found.reasons == {"not: in [this] kernel": 2}
    assert {name.rpartition("::")[2] for name in found.failed} == {"test_bad", "test_unsaid"}
    assert found.complaint() == "failed with exit status 1"


def test_a_run_is_a_success_only_if_something_passed(tmp_path):
    assert said(tmp_path, PASSES, SKIPS).complaint() is None
    assert said(tmp_path, SKIPS).complaint() == "no test ran"
    assert said(tmp_path, "").complaint() == "no test ran"


@pytest.mark.parametrize(
    ("status", "complaint"), [(124, "took too long"), (125, "the guest died or could not be had"), (137, "137")]
)
def test_a_guest_that_did_not_finish_is_no_success(tmp_path, status, complaint):
    assert complaint in said(tmp_path, PASSES, status=status).complaint()


def test_output_that_ends_early_has_no_counts():
    assert pytests.Said.of("tests/live/test_child.py ....", 124).counts == {}


def kernel_in(folder: Path, package: str, release: str) -> Path:
    modules = folder / package / "lib/modules" / release
    modules.mkdir(parents=True)
    (folder / package / "boot").mkdir()
    (folder / package / "boot" / f"vmlinuz-{release}").touch()
    return modules


def test_the_newest_kernel_of_a_release_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PYMEMCG_VM_CACHE", str(tmp_path))
    for release in ("6.1.0-9-cloud-amd64", "6.1.0-56-cloud-amd64", "6.12.9-cloud-amd64", "6.12.117+deb12-cloud-amd64"):
        kernel_in(tmp_path / "kernels", f"linux-image-{release}", release)
    assert kernels.find("6.1").release == "6.1.0-56-cloud-amd64"
    assert kernels.find("6.12").release == "6.12.117+deb12-cloud-amd64"


def test_a_kernel_may_be_a_folder(tmp_path):
    modules = kernel_in(tmp_path, "mine", "7.0")
    assert kernels.find(f"{tmp_path}/mine") == kernels.Kernel("mine", tmp_path / "mine/boot/vmlinuz-7.0", modules)


@pytest.mark.parametrize("name", ["6", "6.1.0", "-x", "..", "./", "/nowhere"])
def test_what_is_no_kernel_is_refused(name):
    with pytest.raises(kernels.UnavailableError, match=r"no kernel"):
        kernels.find(name)


@pytest.mark.skipif(not (shutil.which("busybox") and shutil.which("cpio")), reason="busybox and cpio are not both here")
def test_an_archive_can_be_unpacked(tmp_path):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "overlay.ko").write_bytes(b"ELF\0depends=zram,ext4\0")
    (tmp_path / "modules" / "zram.ko").write_bytes(b"ELF\0depends=\0")
    archive = initramfs.build(tmp_path / "modules", {"command": "exec true\n"})
    (tmp_path / "root").mkdir()
    done = subprocess.run(["cpio", "-i", "--quiet"], cwd=tmp_path / "root", input=archive, capture_output=True, check=True)
    assert done.stderr == b""
    assert (tmp_path / "root/command").read_text() == "exec true\n"
    assert stat.S_IMODE((tmp_path / "root/init").stat().st_mode) == 0o755
    # zram before overlay, which depends on it; ext4 is not there as a module.
    assert sorted(os.listdir(tmp_path / "root/modules")) == ["00-zram.ko", "01-overlay.ko"]


def test_a_busybox_that_needs_libraries_is_none(tmp_path, monkeypatch):
    (tmp_path / "busybox").symlink_to(sys.executable)
    (tmp_path / "cat").symlink_to(sys.executable)
    monkeypatch.setattr(processes, "SEARCHED", str(tmp_path))
    assert processes.missing_of({"busybox": "busybox-static", "cat": "coreutils"}) == {"busybox-static"}
    assert processes.missing_of({"cat": "coreutils", "no-such": "nothing"}) == {"nothing"}


HOLDS = """
    import sys, time
    sys.path.insert(0, {vm!r})
    from rig import processes
    processes.exit_on_signals()
    with processes.folder() as folder, processes.running("sleep", "300") as process:
        print(folder, process.pid, flush=True)
        time.sleep(300)
"""


@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv is not here")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_outlives_a_run(number):
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + textwrap.dedent(
        HOLDS.format(vm=str(VM))
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
        folder, process = run.stdout.readline().split()
        run.send_signal(number)
    until = time.monotonic() + 30
    while is_running(int(process)):
        assert time.monotonic() < until, "it still runs"
        time.sleep(0.05)
    assert Path(folder).exists() == (number == signal.SIGKILL)
    if number == signal.SIGKILL:
        os.utime(folder, (0, 0))
        with processes.folder():  # the next run finds it
            assert not Path(folder).exists()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def is_guest(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith(("qemu-system", "linux.uml"))
    except FileNotFoundError:
        return False


def below(pid: int) -> list[int]:
    """All processes that it started, and that those started."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [child, *below(child)]
    return found


@pytest.fixture
def kernel_at_hand() -> str:
    """One that needs no download."""
    if os.geteuid() != 0:
        pytest.skip("only root may start a guest")
    for name, tools in (("uml", uml.TOOLS), ("6.12", qemu.TOOLS), ("6.1", qemu.TOOLS)):
        pattern = kernels.UML_PACKAGE if name == "uml" else f"linux-image-{name}.*"
        if [*(kernels.cache() / "kernels").glob(pattern)] and not processes.missing_of(tools):
            return name
    pytest.skip("there is no kernel in the cache of tests/vm/run, or not what boots it")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_guest_outlives_a_program_that_boots_it(number, kernel_at_hand, tmp_path):
    with subprocess.Popen([VM / "capture", kernel_at_hand, tmp_path / "tree"], stderr=subprocess.PIPE, text=True) as capture:
        until = time.monotonic() + 60
        while not (guests := [pid for pid in below(capture.pid) if is_guest(pid)]):
            assert capture.poll() is None, capture.stderr.read()
            assert time.monotonic() < until, "no guest"
            time.sleep(0.05)
        capture.send_signal(number)
    until = time.monotonic() + 30
    while any(is_running(pid) for pid in guests):
        assert time.monotonic() < until, "it still runs"
        time.sleep(0.05)
    assert not (tmp_path / "tree").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--swap", "16", "--kernel-args=module_blacklist=zram"], "there is no zram to swap to"),
        (["--kernel-args=module_blacklist=virtio_blk ubda=/nowhere"], "there is no /dev/[uv][a-z]+ for /scratch"),
    ],
)
def test_a_guest_without_what_it_was_asked_for_dies_with_the_reason(kernel_at_hand, options, reason):
    command = [VM / "run", kernel_at_hand, *options, "--", "echo", "it ran"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (125, "")
    assert re.search(f"pymemcg-vm: {reason}\n", done.stderr), done.stderr
