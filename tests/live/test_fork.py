# SPDX-License-Identifier: Apache-2.0
"""A sampler that was started before a fork: it attaches anew in the child, and the parent does not notice."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from actor import files, lock_is_free, ring_file, threads, until

pytestmark = pytest.mark.live

# forked(use): what use() says in a forked child, and how the child ended.
FORKED = """
import json, warnings
from pymemcg import Sampler
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of any fork beside threads
def forked(use, end=os._exit):
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(here)
        try: answer = use()
        except BaseException as error: answer = repr(error)
        os.write(there, json.dumps(answer, default=plain).encode())
        os.close(there)
        end(0)
    os.close(there)
    with os.fdopen(here) as file: answer = json.loads(file.read())
    return [os.waitpid(pid, 0)[1], answer]
def opened():
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return [os.readlink(link) for link in links if os.path.islink(link)]
def tasks(): return len(os.listdir("/proc/self/task"))
"""


@pytest.fixture
def parent(group, make_actor):
    actor = make_actor(group)
    actor.do(f"plain = repr\n{FORKED}\ns = Sampler(adaptive=False).start()")
    return actor


def goes_on(actor) -> bool:
    head = actor.do("s.usage.head")
    return bool(until(lambda: actor.do("s.usage.head") > head)) and actor.do("s.role") == "sampling"


class TestChild:
    def test_it_attaches_at_the_first_use_and_says_so_once(self, parent):
        status, (role, again, running, writer) = parent.do(
            "forked(lambda: [s.role, s.usage.head >= 1 and s.role, tasks(), s.stats()['writer_pid']])"
        )
        assert (status, role, again) == (0, "attached", "attached")
        assert running == 2, "the keeper, which waits to take over"
        assert writer == parent.pid
        assert parent.errors().count("forked") == 1
        assert goes_on(parent)

    @pytest.mark.parametrize("use", ["s.usage.head > 0", "s.stats()", "s.role", "s.absent", "s.describe()"])
    def test_any_use_is_a_first_use(self, parent, use):
        status, (first, role) = parent.do(f"forked(lambda: [{use}, s.role])")
        assert (status, role) == (0, "attached")
        assert first
        assert "stopped" not in str(first)
        assert parent.errors().count("forked") == 1

    def test_to_be_shown_is_no_use(self, parent):
        """A debugger, or a log of local variables, must not start threads."""
        status, (shown, running) = parent.do("forked(lambda: [repr(s), tasks()])")
        assert (status, running) == (0, 1)
        assert "not attached since the fork" in shown
        assert parent.errors() == ""

    def test_unused_it_holds_nothing(self, parent, group):
        status, (found, running) = parent.do("forked(lambda: [opened(), tasks()])")
        assert status == 0
        assert not [path for path in found if "/sys/fs/cgroup" in path or "pymemcg" in path]
        assert running == 1
        assert parent.errors() == ""
        assert goes_on(parent)

    def test_channels_and_arrays_from_before_still_show_the_ring(self, parent):
        parent.do("c = s.usage; w = c.window(); a = w['t_ns']; before = a.tolist()")
        status, (same, more) = parent.do("forked(lambda: [a.tolist() == before, c.head >= len(before)])")
        assert (status, same, more) == (0, True, True)

    def test_it_may_stop(self, parent):
        status, roles = parent.do("forked(lambda: [s.role, s.stop(), s.role, s.start().role, s.stop(), s.role])")
        assert (status, roles) == (0, ["attached", None, "stopped", "attached", None, "stopped"])
        assert goes_on(parent)

    def test_stopped_before_its_first_use_it_stays_stopped(self, parent):
        status, roles = parent.do("forked(lambda: [s.stop(), s.role, tasks()])")
        assert (status, roles) == (0, [None, "stopped", 1])
        assert "forked" not in parent.errors()
        assert goes_on(parent)

    def test_started_by_the_child_itself_it_has_nothing_to_say(self, parent):
        status, roles = parent.do("forked(lambda: [s.start().role, s.usage.head > 0, s.role])")
        assert (status, roles) == (0, ["attached", True, "attached"])

    @pytest.mark.parametrize("used", ["None", "s.role"])
    def test_its_end_leaves_the_parents_ring(self, parent, group, used):
        """By the interpreter's own end, with everything that runs there."""
        status, _ = parent.do(f"forked(lambda: {used}, sys.exit)")
        assert status == 0
        assert ring_file(group.directory).exists()
        assert goes_on(parent)
        assert "Traceback" not in parent.errors()

    def test_a_grandchild(self, parent):
        status, (inner, role) = parent.do("forked(lambda: [forked(lambda: s.role), s.role])")
        assert (status, inner, role) == (0, [0, "attached"], "attached")
        assert goes_on(parent)

    def test_in_the_middle_of_a_with_block(self, parent):
        parent.do("def use():\n    with s: return [s.role, s.usage.head > 0]\ndef inside():\n    with s: return forked(use)")
        assert parent.do("inside()") == [0, ["attached", True]]

    def test_several_threads_use_it_first(self, parent):
        parent.do(
            "def race():\n"
            "    import threading\n"
            "    found = []; barrier = threading.Barrier(8)\n"
            "    def use(): barrier.wait(); found.append([s.role, s.usage.head > 0])\n"
            "    threads = [threading.Thread(target=use) for _ in range(8)]\n"
            "    for t in threads: t.start()\n"
            "    for t in threads: t.join()\n"
            "    return found"
        )
        status, found = parent.do("forked(race)")
        assert status == 0
        assert found == [["attached", True]] * 8
        assert parent.errors().count("forked") == 1

    def test_of_an_attached_parent(self, parent, group, make_actor):
        other = make_actor(group)
        other.do(f"plain = repr\n{FORKED}\ns = Sampler().start()")
        assert other.do("s.role") == "attached"
        assert other.do("forked(lambda: s.role)") == [0, "attached"]
        assert other.do("s.role") == "attached"

    def test_of_a_stopped_sampler(self, parent):
        parent.do("s.stop()")
        assert parent.do("forked(lambda: [s.role, s.usage.head > 0])") == [0, ["stopped", True]]
        assert parent.errors() == ""


class TestParent:
    def test_its_death_frees_the_lock_although_children_live(self, parent, group):
        parent.do("child = os.fork()\nif child == 0:\n    time.sleep(60); os._exit(0)")
        child = parent.do("child")
        try:
            assert not lock_is_free(group.directory)
            parent.kill()
            until(lambda: lock_is_free(group.directory))
            assert Path(f"/proc/{child}").exists()
        finally:
            os.kill(child, signal.SIGKILL)

    def test_its_stop_frees_the_lock_although_children_live(self, parent, group):
        parent.do("child = os.fork()\nif child == 0:\n    time.sleep(60); os._exit(0)")
        parent.do("s.stop()")
        until(lambda: lock_is_free(group.directory))  # the child closes what it inherited at its first turn
        assert not ring_file(group.directory).exists()
        os.kill(parent.do("child"), signal.SIGKILL)

    def test_what_it_executes_inherits_nothing(self, parent):
        parent.do("import subprocess")
        found = parent.do(
            "subprocess.run(['ls', '-l', '/proc/self/fd'], close_fds=False, capture_output=True, text=True).stdout"
        )
        assert found
        assert "cgroup" not in found
        assert "pymemcg" not in found


# Each worker tells on stderr, by then its master's grave, what became of it.
PRELOADED = """
pipes = []; master = os.getpid()
def work(there):
    w, cursor, _ = s.usage.read(); seen = len(w)
    os.write(there, b"x")
    while os.getppid() == master: time.sleep(0.01)
    while 1 not in s.events.window()["kind"]: time.sleep(0.01)  # a busy machine has events of other kinds before it
    while s.stats()["writer_pid"] == os.getpid() and s.role != "sampling": time.sleep(0.01)
    w, cursor, lost = s.usage.read(cursor)
    told = {"role": s.role, "pid": os.getpid(), "writer": s.stats()["writer_pid"]}
    told |= {"whole": seen + len(w) == cursor and lost == 0, "events": s.events.window()["kind"].tolist()}
    os.write(2, json.dumps(told).encode() + b"\\n")
    time.sleep(1)  # nobody leaves before all have told
    s.stop()
    os._exit(0)
for _ in range(4):
    here, there = os.pipe(); pid = os.fork()
    if pid == 0: work(there)
    pipes.append((here, pid))
for here, _ in pipes: os.read(here, 1)
"""


class TestServers:
    def test_multiprocessing(self, parent):
        parent.do(
            "import multiprocessing; context = multiprocessing.get_context('fork'); queue = context.SimpleQueue()\n"
            "def work():\n"
            "    for _ in range(3): queue.put([os.getpid(), s.role, s.usage.head > 0])\n"
            "workers = [context.Process(target=work) for _ in range(3)]\n"
            "for worker in workers: worker.start()\n"
            "found = [queue.get() for _ in range(9)]\n"
            "for worker in workers: worker.join()"
        )
        found = parent.do("found")
        assert parent.do("[worker.exitcode for worker in workers]") == [0, 0, 0]
        assert all((role, rows) == ("attached", True) for _, role, rows in found)
        assert parent.errors().count("forked") == len({pid for pid, _, _ in found}) == 3
        assert goes_on(parent)

    def test_a_preloading_master_dies_and_a_worker_takes_over(self, parent, group):
        """As `gunicorn --preload`: started in the master, used in the workers, which outlive it."""
        parent.do(PRELOADED)
        workers = parent.do("[pid for _, pid in pipes]")
        assert "pymemcg-tick" in threads(parent.pid)
        parent.kill()
        until(lambda: parent.errors().count('"writer"') == 4)
        told = [json.loads(line) for line in parent.errors().splitlines() if line.startswith("{")]
        assert sorted(one["pid"] for one in told) == sorted(workers)
        assert sorted(one["role"] for one in told) == ["attached"] * 3 + ["sampling"]
        (writer,) = {one["writer"] for one in told}
        assert writer == next(one["pid"] for one in told if one["role"] == "sampling")
        assert all(one["whole"] for one in told)
        assert all(1 in one["events"] for one in told)
        until(lambda: not ring_file(group.directory).exists())


def test_forks_while_other_threads_start_and_stop(group, make_actor):
    """Whatever the parent was about, a child holds no lock of it: when the parent is done, the group is free."""
    actor = make_actor()
    actor.do(
        f"plain = repr\n{FORKED}\n"
        "import threading\n"
        f"samplers = [Sampler({group.spec!r}, history_s=1) for _ in range(2)]; done = []\n"
        "def churn(s):\n"
        "    while not done: s.start(); s.stop()\n"
        "threads = [threading.Thread(target=churn, args=[s]) for s in samplers]\n"
        "for t in threads: t.start()\n"
        "children = []\n"
        "for _ in range(40):\n"
        "    child = os.fork()\n"
        "    if child == 0: time.sleep(60); os._exit(0)\n"
        "    children.append(child); time.sleep(0.003)\n"
        "done.append(1)\n"
        "for t in threads: t.join()"
    )
    children = actor.do("children")
    try:
        for pid in children:  # the last may not have had its turn yet
            until(lambda pid=pid: not any("pymemcg" in path or group.directory in path for path in files(pid)))
        assert lock_is_free(group.directory)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
