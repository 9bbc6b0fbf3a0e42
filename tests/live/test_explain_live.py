# SPDX-License-Identifier: Apache-2.0
"""`pymemcg explain` of groups in which something really goes on."""

from __future__ import annotations

import json
import subprocess
import sys

import facts
import pytest
from stages import STAGES

pytestmark = pytest.mark.live

WORRY = {"healthy-cache": "no", "dirty-backlog": "watch", "growth": "yes", "parent-squeezed": "watch", "tmpfs-leak": "watch"}


def explained(*arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "pymemcg", "explain", "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=facts.PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("situation", STAGES)
def test_a_staged_situation_has_its_verdict(situation, make_group, make_actor, scratch):
    with STAGES[situation](make_group, make_actor, scratch) as group:
        told = explained(group.spec)
    assert told["verdict"]["name"] == situation, told["verdict"]
    assert told["verdict"]["worry"] == WORRY[situation]
