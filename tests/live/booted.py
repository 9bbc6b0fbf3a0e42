# SPDX-License-Identifier: Apache-2.0
"""systemd as the first process of namespaces of its own, for tests of what it is asked for; or the one that runs anyway."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pymemcg.places import View

UID = 1  # somebody whom every system knows, and who runs nothing
_PATIENCE_S = 90  # a machine in a machine is slow
_SYSTEMD = "/lib/systemd/systemd"
_TOP = Path("/sys/fs/cgroup/pymemcg-systemd")
_UNITS = "/run/systemd/system"

# Its own few units and no others, which would set up a whole machine.
_FILES = {
    "start.target": "[Unit]\nDefaultDependencies=no\nWants=dbus.socket\n",
    "dbus.socket": "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n",
    "dbus.service": (
        "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\n[Service]\nType=notify\n"
        "ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation --syslog-only\n"
    ),
    "user@.service": (
        "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\nAfter=dbus.socket\n[Service]\nType=notify\nUser=%i\nGroup=%i\n"
        "Environment=XDG_RUNTIME_DIR=/run/user/%i HOME=/tmp SYSTEMD_UNIT_PATH=/usr/lib/systemd/user\n"
        "Environment=SYSTEMD_GENERATOR_PATH=/run\n"
        f"ExecStart={_SYSTEMD} --user --unit=dbus.socket\nSlice=user-%i.slice\nDelegate=pids memory\n"
        f"TimeoutStartSec={_PATIENCE_S}\n"
    ),
}

# The parent stays behind in the group below which systemd manages all, and must leave it: else nothing can be handed down.
_INNER = f"""
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs run /run
umount /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p {_UNITS} /run/dbus /run/user/{UID}
chown {UID}:{UID} /run/user/{UID}
{{}}
while {{{{ read -r _ && read -r _; }}}} < /sys/fs/cgroup/cgroup.procs; do sleep 0.1; done
exec env -i container=other PATH=/usr/bin:/bin SYSTEMD_UNIT_PATH={_UNITS} SYSTEMD_GENERATOR_PATH=/run \
    {_SYSTEMD} --system --unit=start.target --log-target=kmsg --show-status=no
"""


class Systemd:
    """To run commands where systemd manages the groups. Attributes: `own` = it is ours alone, with its own buses and users."""

    def __init__(self) -> None:
        self.own = not os.path.isdir(_UNITS)
        self._enter: list[str] = []
        if self.own:
            self._boot()

    def _boot(self) -> None:
        for folder in Path(os.path.realpath(sys.executable)).parents:  # let others through, as /root does not
            folder.chmod(folder.stat().st_mode | 0o001)
        _TOP.mkdir()
        writes = "".join(f"cat > {_UNITS}/{name} <<'END'\n{text}END\n" for name, text in _FILES.items())
        inner = _INNER.format(writes)
        outer = 'echo $$ > "$0/cgroup.procs"; exec unshare --pid --mount --cgroup --fork sh -c "$1"'
        self._process = subprocess.Popen(["sh", "-c", outer, str(_TOP), inner])
        first = self._until(lambda: next(iter(_children(self._process.pid)), None), "its namespaces")
        Path("/sys/fs/cgroup/cgroup.procs").write_text(str(self._process.pid))
        self.pid = first
        self._enter = ["nsenter", f"--target={first}", "--pid", "--mount", "--cgroup", "--root", "--wd"]
        self._until(lambda: self.run("systemctl", "is-active", "start.target").returncode == 0, "systemd")

    def _until(self, true, what: str):
        deadline = time.monotonic() + _PATIENCE_S
        while not (value := true()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                pytest.fail(f"{what} did not come up")
            time.sleep(0.1)
        return value

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command, beside all groups of systemd's."""
        command = [*self._enter, *words]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )

    def scope(self, *words: str, user: bool = False, properties: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Run a command in a scope: root's is as a service's, a user's as a login session's."""
        who = [f"--uid={UID}", f"--gid={UID}", f"--slice=user-{UID}.slice", f"--setenv=XDG_RUNTIME_DIR=/run/user/{UID}"]
        options = [f"--property={value}" for value in properties]
        return self.run("systemd-run", "--scope", "--quiet", "--collect", *options, *(who if user else []), "--", *words)

    def user_manager(self) -> None:
        """Start a user's manager; where that cannot be, the test skips."""
        if not self.own:
            pytest.skip("a manager for a user is started by a systemd of the tests' own alone")
        if not os.path.exists("/usr/bin/dbus-daemon") or not os.path.exists("/usr/lib/systemd/user/dbus.socket"):
            pytest.skip("there are no dbus-daemon and no unit for a user's (packages dbus, dbus-user-session)")
        done = self.run("systemctl", "start", f"user@{UID}.service")
        assert done.returncode == 0, done.stderr + self.run("dmesg").stdout[-4000:]
        probe = self.scope(sys.executable, "-c", "import pymemcg.cli", user=True)
        if probe.returncode != 0:
            pytest.skip(f"another user cannot run the interpreter of the tests: {probe.stderr.strip()[-200:]}")

    def groups(self) -> list[str]:
        """The groups of ours that there are, and scopes."""
        top = _TOP if self.own else Path("/sys/fs/cgroup")
        return [str(path) for path in top.glob("**/*pymemcg-*") if path.is_dir()]

    def close(self) -> None:
        """End it, and all that it started."""
        if not self.own:
            return
        for pid in _children(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        for _ in range(200):
            for folder, _, _ in os.walk(_TOP, topdown=False):
                with suppress(OSError):
                    os.rmdir(folder)
            if not _TOP.exists():
                return
            time.sleep(0.05)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def why_not() -> str | None:
    """Why there can be no systemd here, or none that matters."""
    runs, in_guest = os.path.isdir(_UNITS), bool(os.environ.get("PYMEMCG_VM"))
    reasons = {
        "the memory controller is on v1, where a group may hold both processes and groups": View().version == 1,
        "only root can ask for all that is tested": os.geteuid() != 0,
        f"there is no {_SYSTEMD}": not runs and not os.path.exists(_SYSTEMD),
        "systemd does not run here, and is started in guests alone": not runs and not in_guest,
        "systemd is started below the true root alone": not runs and os.path.exists("/sys/fs/cgroup/cgroup.events"),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
