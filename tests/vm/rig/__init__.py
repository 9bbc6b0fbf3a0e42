# SPDX-License-Identifier: Apache-2.0
"""Boots kernels to run a command there; needs nothing but Python's standard library."""

from __future__ import annotations
