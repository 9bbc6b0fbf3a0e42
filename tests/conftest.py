# SPDX-License-Identifier: Apache-2.0
"""What all tests share: pytest's importlib mode puts no folder on the path, so the builders in tests/unit are put there."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "unit"))
