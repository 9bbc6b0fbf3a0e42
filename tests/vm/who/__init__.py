# SPDX-License-Identifier: Apache-2.0
"""What tests/vm/as is made of. Nothing but Python's own library is needed, and nothing of what is tested is used."""

from __future__ import annotations
