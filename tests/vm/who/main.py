# SPDX-License-Identifier: Apache-2.0
"""Who a command may be run as, and how they are made."""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from who import confine
from who.groups import Group, remove_left_behind
from who.outside import VARIABLE, Outside
from who.places import make_file, on_disk, on_the_way, open_up, read_only_root

USER, FOREIGNER, NOBODY = 60123, 60124, 65534
FIRST_ID = 200_000
"""Of those that a user namespace's ids stand for outside."""
SMALL_LOCK = 64 << 10
HOME = "memcg-as-"
_EVENTS = [f"mm_vmscan_{kind}_{edge}" for kind in ("memcg_reclaim", "direct_reclaim") for edge in ("begin", "end")]


class Job:
    """A command, and what it is told by the environment."""

    def __init__(self, who: str, command: list[str], limit: int) -> None:
        self.who, self.limit = who, limit
        self.command = command
        self.home, self._lock = _make_home()
        self.environment = {**os.environ, "PYMEMCG_AS": who, "HOME": self.home, "TMPDIR": self.home}
        if on_disk(self.home):
            self.environment["PYMEMCG_AS_DISK"] = self.home
        if file := make_file(self.home, "file", 4 * limit):
            self.environment["PYMEMCG_AS_FILE"] = file
        if ids := _event_ids():
            self.environment["PYMEMCG_AS_EVENT_IDS"] = ids

    def give_home(self, uid: int) -> None:
        os.chown(self.home, uid, uid)

    def ask_outside(self, group: Group, *, inside: bool) -> Outside:
        outside = Outside(group, inside=inside)
        self.environment[VARIABLE] = outside.number
        return outside

    def execute(self, command: list[str] | None = None) -> None:
        try:
            os.execvpe((command or self.command)[0], command or self.command, self.environment)
        except OSError as error:
            print(f"tests/vm/as: {(command or self.command)[0]}: {error.strerror}", file=sys.stderr)
            os._exit(127)


def _homes() -> str:
    return "/scratch" if os.path.ismount("/scratch") else tempfile.gettempdir()


def _make_home() -> tuple[str, int]:
    """A folder, and the descriptor whose lock says as long as we live that it is in use."""
    while True:
        home = tempfile.mkdtemp(prefix=f"{HOME}{os.getpid()}-", dir=_homes())
        try:
            lock = os.open(home, os.O_RDONLY)
        except FileNotFoundError:  # another tests/vm/as was faster, and took it for one that is left behind
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(home):
            return home, lock
        os.close(lock)


def _remove_homes_left_behind() -> None:
    """Of a tests/vm/as that was killed: a large file is in each."""
    for home in Path(_homes()).glob(f"{HOME}*-*"):
        number = re.fullmatch(rf"{HOME}(\d+)-\w+", home.name)
        if number and not Path("/proc", number[1]).exists():  # in this pid namespace; the lock is of all
            _remove_if_unused(home)


def _remove_if_unused(home: Path) -> None:
    try:
        lock = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # another has just removed it, or it is none
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(home, ignore_errors=True)
    except BlockingIOError:
        pass  # its run goes on
    finally:
        os.close(lock)


def _event_ids() -> str:
    """What somebody who is root hands to a service that may not read tracefs."""
    top = Path("/sys/kernel/tracing/events/vmscan")
    return ",".join(f"{name}={(top / name / 'id').read_text().strip()}" for name in _EVENTS if (top / name / "id").exists())


class Asker:
    """How a process asks its parent for what only somebody outside of its namespaces can do."""

    def __init__(self) -> None:
        self._question, self._answer = os.pipe(), os.pipe()

    def ask(self, what: str) -> None:
        os.write(self._question[1], f"{what}\n".encode())
        os.read(self._answer[0], 1)

    def tell_on_stdout(self) -> None:
        """For a program that asks nothing, but has something to tell."""
        os.dup2(self._question[1], 1)

    def serve(self, last: str, **helps: Callable[[int], None]) -> None:
        """Do what is asked for, until the last of it."""
        os.close(self._question[1])
        with os.fdopen(self._question[0]) as questions:
            for line in questions:
                word, number = line.split()
                helps[word](int(number))
                os.write(self._answer[1], b"x")
                if word == last:
                    return
        raise SystemExit("tests/vm/as: it ended before it began")


def start(run: Callable[[], None], first: Callable[[int], None] | None = None) -> int:
    """Run in a child, which ends with this process; before it begins, its number is handed over."""
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid:
        if first is not None:
            first(pid)
        os.write(go_write, b"x")
        for fd in (go_read, go_write):
            os.close(fd)
        return pid
    try:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)  # a shell's background ignores some of them
        confine.die_with_parent()
        os.read(go_read, 1)
        run()
    except BaseException as error:  # noqa: BLE001 - else the child would go on as its parent does
        print(f"tests/vm/as: {error}", file=sys.stderr)
        os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 126)
    os._exit(0)


def wait_for(pid: int) -> int:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if status >= 0 else 128 - status


def attend(pid: int, outside: Outside | None) -> int:
    """Wait for the command, and do what it asks for meanwhile."""
    if outside is None:
        return wait_for(pid)
    outside.begin()
    try:
        return wait_for(pid)
    finally:
        outside.end()


def as_root(job: Job, group: Group) -> int:
    group.limit(job.limit)

    return wait_for(start(job.execute, first=group.add))


def as_owner(job: Job, group: Group) -> int:
    group.hand_down()
    group.delegate(USER)
    inner = Group("service", group)
    inner.delegate(USER)
    inner.limit(job.limit)
    return _as_user(job, inner)


def as_reader(job: Job, group: Group) -> int:
    group.limit(job.limit)
    return _as_user(job, group, job.ask_outside(group, inside=False))


def _as_user(job: Job, group: Group, outside: Outside | None = None) -> int:
    job.give_home(USER)
    job.environment |= {"USER": "pymemcg-user", "LOGNAME": "pymemcg-user"}

    def run() -> None:
        open_up(job.command)
        with suppress(ValueError):  # root without CAP_SYS_RESOURCE may not
            confine.limit_locked(resource.RLIM_INFINITY)  # tests lock what they load with, or it is reclaimed, too
        confine.become(USER)
        job.execute()

    return attend(start(run, first=group.add), outside)


def as_container(job: Job, group: Group) -> int:
    group.limit(job.limit)
    job.environment |= {"USER": "nobody", "LOGNAME": "nobody", "HOME": "/tmp", "TMPDIR": "/tmp"}
    job.give_home(FIRST_ID + NOBODY)
    outside, groups = Asker(), job.ask_outside(group, inside=True)

    def run() -> None:
        open_up(job.command)
        read_only_root(on_the_way([*job.command, job.home, os.getcwd()]), volume=job.home)
        own = os.getpid()
        confine.unshare(confine.NEWUSER)
        outside.ask(f"map_ids {own}")
        confine.become(0)
        confine.unshare(confine.NEWNS | confine.NEWPID)
        # It alone is in the group, and nobody of another pid namespace: so do runtimes do it.
        os._exit(wait_for(start(inside, first=lambda pid: outside.ask(f"add {pid}"))))

    def inside() -> None:
        _see_own_namespaces(group)
        _be_confined(NOBODY)
        job.execute()

    pid = start(run)
    outside.serve("add", map_ids=lambda pid: confine.map_ids(pid, FIRST_ID), add=group.add)
    return attend(pid, groups)


def _see_own_namespaces(group: Group) -> None:
    """/proc of this pid namespace, and hierarchies that begin at the root of a cgroup namespace of its own, read-only."""
    confine.unshare(confine.NEWCGROUP)
    confine.mount("proc", "/proc", "proc", confine.NOSUID | confine.NODEV | confine.NOEXEC)
    for at in group.hierarchies:
        confine.mount_again("cgroup" if at.version == 1 else "cgroup2", at.point, at.controllers or None)


def _be_confined(uid: int) -> None:
    confine.limit_locked(SMALL_LOCK)
    confine.become(uid)
    confine.no_new_privileges()
    confine.deny_perf_events()


def as_beside(job: Job, pod: Group) -> int:
    """Two containers of a pod: one is to be looked at, and the command looks from the other one."""
    pod.hand_down()
    target, own = Group("target", pod), Group("debug", pod)
    target.limit(job.limit)
    own.limit(job.limit)
    file = make_file(job.home, "neighbours", 4 * job.limit)  # pages are charged to whoever reads them first
    programs = [sys.executable, str(Path(__file__).with_name("neighbour.py"))]
    neighbour = [*programs, file or "", str(job.limit)]
    job.environment |= {"USER": "nobody", "LOGNAME": "nobody", "HOME": "/tmp", "TMPDIR": "/tmp"}
    # The neighbour's number inside is 1, and that of the process that belongs to somebody else there:
    job.environment["PYMEMCG_AS_FOREIGN"] = "2"
    job.give_home(NOBODY)
    outside, first = Asker(), [0]

    def prepare() -> None:
        open_up([*job.command, *programs])
        read_only_root(on_the_way([*job.command, *programs, job.home, os.getcwd()]), volume=job.home)

    def run_target() -> None:
        prepare()
        confine.unshare(confine.NEWPID)
        os._exit(wait_for(start(inside_target, first=lambda pid: outside.ask(f"add {pid}"))))

    def inside_target() -> None:
        _see_own_namespaces(target)
        start(inside_foreigner)
        _be_confined(NOBODY)
        outside.tell_on_stdout()
        job.execute(neighbour)

    def inside_foreigner() -> None:
        _be_confined(FOREIGNER)
        job.execute(["sleep", "infinity"])

    def run_own() -> None:
        prepare()
        confine.join(first[0], "pid", confine.NEWPID)
        os._exit(wait_for(start(inside_own, first=lambda pid: again.ask(f"add {pid}"))))

    def inside_own() -> None:
        _see_own_namespaces(own)
        _be_confined(NOBODY)
        job.execute()

    def add(pid: int) -> None:
        first[0] = pid
        target.add(pid)

    start(run_target)
    outside.serve("ready", add=add, ready=lambda pid: None)
    groups = job.ask_outside(own, inside=True)
    again = Asker()  # not before: the target would keep its pipes open, and nobody see that the other is gone
    pid = start(run_own)
    again.serve("add", add=own.add)
    return attend(pid, groups)


WHO: dict[str, Callable[[Job, Group], int]] = {
    "root": as_root,
    "owner": as_owner,
    "reader": as_reader,
    "container": as_container,
    "beside": as_beside,
}


def main(text: str) -> int:
    parser = argparse.ArgumentParser("as", description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("who", choices=WHO, metavar="WHO")
    parser.add_argument("--limit", type=int, default=512, metavar="MIB", help="of the command's group (%(default)s)")
    parser.add_argument("command", nargs="+", metavar="CMD")
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("tests/vm/as: needs root, to become somebody else")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    _remove_homes_left_behind()
    remove_left_behind()
    job = Job(options.who, options.command, options.limit << 20)
    try:
        group = Group(f"{os.getpid()}-as-{options.who}")
        try:
            return WHO[options.who](job, group)
        finally:
            group.remove()
    finally:
        shutil.rmtree(job.home, ignore_errors=True)
