# SPDX-License-Identifier: Apache-2.0
"""Which groups are systemd's own, and which slice a scope is asked for in."""

from __future__ import annotations

import pytest

from pymemcg import _scope
from pymemcg.mounts import Mount, parse_mounts
from pymemcg.places import Place

MOUNTINFO = "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"


@pytest.fixture
def mount() -> Mount:
    return parse_mounts(MOUNTINFO)[0]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", True),
        ("/system.slice", True),
        ("/user.slice/user-1000.slice", True),
        ("/user.slice/user-1000.slice/user@1000.service", True),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice", True),
        ("/system.slice/docker-0123.scope", False),
        ("/system.slice/shop.service", False),
        ("/system.slice/user@shop.service", False),
        ("/system.slice/shop.service/workers", False),
        ("/kubepods/burstable", False),
    ],
)
def test_slices_and_managers_are_systemds_own(path, expected, mount, tmp_path, monkeypatch):
    place = Place(mount, f"/sys/fs/cgroup{path}")
    monkeypatch.setattr(_scope, "_RUNS", str(tmp_path))
    assert _scope.systemd_manages(place) is expected
    monkeypatch.setattr(_scope, "_RUNS", str(tmp_path / "missing"))
    assert not _scope.systemd_manages(place), "where it does not run, nothing is"


@pytest.mark.parametrize(
    ("path", "user", "expected"),
    [
        ("/system.slice/shop.service", False, ["--slice=system.slice"]),
        ("/user.slice/user-0.slice/session-1.scope", False, ["--slice=user-0.slice"]),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/sudo.scope", False, ["--slice=user-1000.slice"]),
        ("/init.scope", False, []),
        ("/", False, []),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/shell.scope", True, ["--slice=app.slice"]),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", True, []),
        ("/user.slice/user-1000.slice/session-1.scope", True, []),
    ],
)
def test_the_slice_is_named_as_its_manager_knows_it(path, user, expected):
    assert _scope._slice_of(path, user=user) == expected
