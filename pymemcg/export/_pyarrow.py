# SPDX-License-Identifier: Apache-2.0
"""The only importer of pyarrow: who lacks it is told what to install."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pymemcg.errors import NotSupported

try:
    import pyarrow as pa
except ImportError as error:
    raise NotSupported("Arrow, Parquet and CSV need pyarrow", hint="pip install 'pymemcg[arrow]'") from error


def part(name: str) -> Any:
    """One of its modules, which are loaded where they are needed."""
    return import_module(f"pyarrow.{name}")


__all__ = ["pa", "part"]
