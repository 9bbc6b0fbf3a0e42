# SPDX-License-Identifier: Apache-2.0
"""Groups and processes for live tests: made for one test and removed after it; where they may not be made, tests skip."""

from __future__ import annotations

import errno
import os
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import facts
import outside
import tracepointhold
from actor import Actor
from outside import OutsideGroup
from swapping import swap_of

from pymemcg.bench.tracefs import Trace
from pymemcg.child import ChildGroup
from pymemcg.errors import NotSupported
from pymemcg.mounts import IN_MEMORY, file_system


@pytest.fixture(scope="session")
def _group_maker() -> type[ChildGroup] | str:
    """Who makes groups for tests; or why nobody does."""
    return OutsideGroup if outside.POSSIBLE else _refusal() or ChildGroup


def _refusal() -> str | None:
    """Why no groups can be made by this process. That none can where they can is an error."""
    refused = ChildGroup.possible()
    if refused is not None and facts.groups_can_be_made():
        pytest.fail(f"whoever is {facts.WHO or 'root'} here can make groups, but: {refused}")
    return refused


def _is_kept_out(error: OSError) -> bool:
    """Whether the test itself was to write to a group that somebody else has made; pymemcg's own errors are none of these."""
    refused = isinstance(error, PermissionError) or error.errno == errno.EROFS
    return refused and str(error.filename).startswith("/sys/fs/cgroup") and _raised_for_a_test(error)


def _raised_for_a_test(error: BaseException) -> bool:
    """Whether a line of a test, and none of pymemcg's, asked Python's library for what failed."""
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    library = Path(sysconfig.get_path("stdlib"))
    asked = [file for file in files if not file.is_relative_to(library) or "site-packages" in file.parts]
    return bool(asked) and asked[-1].is_relative_to(Path(__file__).resolve().parent)


@contextmanager
def _skipped_if_kept_out(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not (outside.POSSIBLE and _is_kept_out(error)):
            raise
        pytest.skip(f"only who may write to the hierarchy can {what}: {error}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    with _skipped_if_kept_out("do what this test does"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    with _skipped_if_kept_out("prepare this test"):
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def _tracefs() -> Iterator[None]:
    """Mounted while live tests run, where it may be: then samplers have evidence `trace`, as a prepared host's have.

    And held, or each stop of a sampler would wait for RCU.
    """
    with ExitStack() as stack:
        with suppress(NotSupported):
            stack.enter_context(Trace(0.1, {}, name="tests"))
        stack.callback(tracepointhold.let_go)
        tracepointhold.hold()
        yield


@pytest.fixture
def let_go_of_tracepoints(_tracefs: None) -> Iterator[None]:
    """For what shows how samplers end: the last to let go of tracepoints waits for RCU, a quarter of a second."""
    with tracepointhold.let_go_meanwhile():
        yield


@pytest.fixture
def own_groups() -> None:
    """For programs that make a group themselves."""
    if refused := _refusal():
        pytest.skip(refused)


@pytest.fixture
def tracing(_tracefs: None) -> None:
    """For what cannot be shown without tracepoints: who may open them has to be able to."""
    if why := facts.no_tracepoints():
        pytest.skip(why)


@pytest.fixture
def only_root() -> None:
    """For what becomes another user, or enters namespaces without one of users."""
    if os.geteuid() != 0:
        pytest.skip("only root may become another user, enter namespaces without one of users, or choose pids")


@pytest.fixture
def importable_bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lets workers import `bench` of this checkout, but not its `pymemcg`, which has no extension beside it."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "bench").symlink_to(Path(__file__).resolve().parents[2] / "bench")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))


@pytest.fixture
def make_group(_group_maker: type[ChildGroup] | str) -> Iterator[Callable[..., ChildGroup]]:
    """Makes groups: `make_group("name", limit_bytes=…)`."""
    if isinstance(_group_maker, str):
        pytest.skip(_group_maker)
    made: list[ChildGroup] = []

    def make(name: str, **options: Any) -> ChildGroup:
        made.append(_group_maker(name, **options))
        return made[-1]

    yield make
    for group in reversed(made):
        group.close()


@pytest.fixture
def group(make_group: Callable[..., ChildGroup]) -> ChildGroup:
    """A group without a limit."""
    return make_group("test")


@pytest.fixture
def make_actor(make_group: Callable[..., ChildGroup]) -> Iterator[Callable[..., Actor]]:
    """Starts processes: `make_actor(group)`. They end before the groups that they are in."""
    made: list[Actor] = []

    def make(group: ChildGroup | None = None, **options: Any) -> Actor:
        made.append(Actor(group=group, **options))
        return made[-1]

    yield make
    for actor in made:
        actor.close()


@pytest.fixture(scope="module")  # no longer: other tests want none
def swap() -> Iterator[None]:
    """Something to swap to, in memory."""
    with swap_of(500 << 20):
        yield


@pytest.fixture
def zram() -> None:
    """For what makes its own swap."""
    if why := facts.no_zram():
        pytest.skip(why)


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """A folder in memory."""
    with tempfile.TemporaryDirectory(prefix="pymemcg-", dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder on a real disk."""
    in_guest = bool(os.environ.get("PYMEMCG_VM"))  # where all but /scratch is in memory, whatever it is called
    given = os.environ.get("PYMEMCG_AS_DISK")  # what tests/vm/as gives to who may not write elsewhere
    for place in [given] if given else ["/scratch"] if in_guest else [tempfile.gettempdir(), "/var/tmp"]:
        if os.access(place, os.W_OK) and file_system(place) not in IN_MEMORY:
            with tempfile.TemporaryDirectory(prefix="pymemcg-", dir=place) as folder:
                yield Path(folder)
            return
    pytest.skip("there is no disk that may be written to")
