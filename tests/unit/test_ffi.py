# SPDX-License-Identifier: Apache-2.0
"""What the native side's error numbers become."""

from __future__ import annotations

import errno

import pytest

from pymemcg._ffi import check, check_ring
from pymemcg.errors import RecordingError, SourceError

# Linux has one number for ENOTSUP, which a ring gives, and EOPNOTSUPP, which PSI gives.
NUMBERS = [errno.EBADMSG, errno.EPROTO, errno.EOPNOTSUPP]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_file_of_the_kernel_is_no_recording(number):
    with pytest.raises(SourceError) as caught:
        check(-number, "/sys/fs/cgroup/memory.pressure")
    assert caught.value.errno == number


def test_psi_that_is_switched_off_says_how_to_switch_it_on():
    with pytest.raises(SourceError, match=r"memory\.pressure: cannot be read: Operation not supported \(.*psi=1\)"):
        check(-errno.EOPNOTSUPP, "/sys/fs/cgroup/memory.pressure")


@pytest.mark.parametrize("number", NUMBERS)
def test_a_ring_that_cannot_be_read_is_a_recording(number):
    with pytest.raises(RecordingError, match=r"run\.memcg"):
        check_ring(-number, "run.memcg", "cannot be mapped")


def test_a_ring_without_room_is_the_systems_fault():
    with pytest.raises(SourceError, match="cannot be created: No space left") as caught:
        check_ring(-errno.ENOSPC, "the ring", "cannot be created")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("result", [0, 7])
def test_what_is_no_error_is_given_back(result):
    assert check(result, "/x") == check_ring(result, "/x", "cannot be mapped") == result
