# SPDX-License-Identifier: Apache-2.0
"""PSI undisturbed, load by load; `pymemcg bench fidelity` is the same for people."""

from __future__ import annotations

import pytest

from pymemcg.bench.fidelity import PROCESSES, run
from pymemcg.bench.loads import LOADS
from pymemcg.errors import NotSupported


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
def test_psi_is_undisturbed(load, processes, record_property):
    try:
        result = run(loads=[load], processes=[processes])
    except NotSupported as error:
        pytest.skip(str(error))
    record_property("found", result.describe())
    print(result.to_markdown())
    if not load.promised and not result.rows[0].undisturbed_by_reading:
        pytest.xfail("a known loss")
    assert result.kept
