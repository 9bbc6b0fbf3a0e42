# SPDX-License-Identifier: Apache-2.0
"""Why a group's memory is as it is: a snapshot of files → tables and a verdict, pure after the snapshot.

Without numpy and without the extension, so that it runs in a container that is full.
"""

from __future__ import annotations
