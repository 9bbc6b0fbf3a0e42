# SPDX-License-Identifier: Apache-2.0
"""One line in a service: every request is a span, and those that the kernel held for memory are logged.

`pymemcg.ASGIMiddleware` and `pymemcg.WSGIMiddleware` are loaded when they are first asked for.
"""

from __future__ import annotations
