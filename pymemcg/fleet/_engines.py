# SPDX-License-Identifier: Apache-2.0
"""What runs tasks: worker processes of this machine, or of a dask cluster."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pymemcg.errors import MemcgError, NotSupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Protocol

    S = TypeVar("S")
    T = TypeVar("T")

    class Apply(Protocol):
        """What an engine gives: results in the order of the items."""

        def __call__(self, task: Callable[[S], T], items: Sequence[S], /) -> Iterator[T]: ...


ENGINES: Final = ("duckdb", "dask")
_ANY_PORT: Final = "127.0.0.1:0"
"""A scheduler without a dashboard has an HTTP server all the same, by default on one port: a second would warn."""
_CLOSE_S: Final = 10
"""So long a cluster may take to close: it gives its workers five seconds, and by then nothing is wanted of them."""


@contextmanager
def engine(name: str, workers: int | None) -> Iterator[Apply]:
    """A function that applies a task to items in worker processes; they are gone afterwards.

    Args:
        name: Of `ENGINES`.
        workers: Processes; None = a CPU each. A dask cluster that runs already has its own.

    Raises:
        ValueError: There is no such engine.
        NotSupported: dask.distributed is not installed.
        MemcgError: A worker died, or the cluster cannot be had; by the function, too.
    """
    if name not in ENGINES:
        raise ValueError(f"engine={name!r}: expected one of {', '.join(ENGINES)}")
    count = workers or len(os.sched_getaffinity(0))
    started = _dask if name == "dask" else _processes
    # Of this process, so that what workers leave there when they are killed goes with it.
    with tempfile.TemporaryDirectory(prefix="pymemcg-fleet-") as folder, started(count, folder) as mapping:
        yield mapping


# ---- Processes of this machine -------------------------------------------------------------------------------------


def _begin(folder: str) -> None:
    """Ctrl-C goes to all processes of a terminal: who asked for the report says what is to be said."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    tempfile.tempdir = folder


@contextmanager
def _processes(count: int, folder: str) -> Iterator[Apply]:
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that DuckDB's and Arrow's threads hold
    executor = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(folder,))
    try:
        yield executor.map
    except BrokenProcessPool as error:
        raise MemcgError("a worker process died; perhaps there was not enough memory", hint="see the kernel's log") from error
    except BaseException:
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


# ---- A cluster -----------------------------------------------------------------------------------------------------


@contextmanager
def _local(cluster_type: Any, **options: Any) -> Iterator[Any]:
    """A cluster of this machine. Where a worker died, closing it may fail or never end: then its processes are ended."""
    others = set(multiprocessing.active_children())
    cluster = cluster_type(**options)
    try:
        yield cluster
    finally:
        try:
            cluster.close(timeout=_CLOSE_S)
        except (OSError, asyncio.TimeoutError):  # until Python 3.11 the second is none of the first
            workers = set(multiprocessing.active_children()) - others
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.join()
            cluster.status = type(cluster.status).closed  # or it is closed once more when the interpreter ends


@contextmanager
def _dask(count: int, folder: str) -> Iterator[Apply]:
    try:
        import dask
        from distributed import Client, KilledWorker, LocalCluster
        from distributed.comm import CommClosedError
    except ImportError as error:
        raise NotSupported("the engine dask needs dask.distributed", hint="pip install 'pymemcg[fleet]'") from error
    with ExitStack() as stack:
        address: Any = dask.config.get("scheduler-address", None)
        try:
            if not address:
                address = stack.enter_context(
                    _local(
                        LocalCluster,
                        n_workers=count,
                        threads_per_worker=1,
                        processes=True,
                        dashboard_address=None,
                        scheduler_kwargs={"dashboard_address": _ANY_PORT},
                        silence_logs=logging.CRITICAL,  # what fails comes back; a worker that is closed may complain
                        local_directory=folder,
                        env={"TMPDIR": folder},
                    )
                )
            client = stack.enter_context(Client(address, set_as_default=False))
        except OSError as error:
            raise MemcgError(f"the dask cluster {address or ''} cannot be had: {error}") from error

        def mapping(task: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
            futures = [client.submit(task, item, pure=False) for item in items]  # one graph of all might be large
            for future in futures:
                yield future.result()
                future.release()

        try:
            yield mapping
        except (KilledWorker, CommClosedError) as error:
            raise MemcgError(f"a worker of the cluster died: {error}") from error
