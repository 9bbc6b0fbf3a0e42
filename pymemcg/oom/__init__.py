# SPDX-License-Identifier: Apache-2.0
"""Kernel log → OOM kills: who died, for whose allocation, by which limit, and of which of five causes.

Pure, without numpy and without the extension: it runs on any log of any machine, and in a container that is full.
"""

from __future__ import annotations

from pymemcg.oom._kill import CAUSES, Asker, Candidate, Kill, Zone
from pymemcg.oom._reader import Reader, kills

__all__ = ["CAUSES", "Asker", "Candidate", "Kill", "Reader", "Zone", "kills"]
