# SPDX-License-Identifier: Apache-2.0
"""Tables as CSV: a line of names, then a line a row; what is absent is empty."""

from __future__ import annotations

from typing import Any

from pymemcg.export._pyarrow import pa, part


def writer(sink: Any, schema: pa.Schema) -> Any:
    """Writes batches as CSV; a context manager."""
    return part("csv").CSVWriter(sink, schema)
