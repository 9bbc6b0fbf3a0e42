# SPDX-License-Identifier: Apache-2.0
"""`python -m pymemcg COMMAND …`."""

from __future__ import annotations

import sys

from pymemcg.cli import main

sys.exit(main())
