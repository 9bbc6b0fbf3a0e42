# SPDX-License-Identifier: Apache-2.0
"""A recording as one HTML page to look at, with plots that zoom; `pymemcg report` writes it. Needs the extra `[report]`."""

from __future__ import annotations

from pymemcg.report.page import html

__all__ = ["html"]
