# SPDX-License-Identifier: Apache-2.0
"""The only importer of duckdb: who lacks it is told what to install."""

from __future__ import annotations

from pymemcg.errors import NotSupported

try:
    import duckdb
except ImportError as error:
    raise NotSupported("fleet reports need duckdb", hint="pip install 'pymemcg[fleet]'") from error

__all__ = ["connected", "duckdb"]


def connected(**config: str) -> duckdb.DuckDBPyConnection:
    """A database in memory, on one thread: the processes are many."""
    database = duckdb.connect(config={"threads": 1, **config})
    database.execute("set enable_progress_bar = false")  # it would be among what a command prints
    return database
