# SPDX-License-Identifier: Apache-2.0
"""What doctor finds, and that it says the same in words and in JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pymemcg import surroundings, tracepoints
from pymemcg.errors import NotSupported
from pymemcg.surroundings import check_surroundings, jiffy_ns

COMMAND = [sys.executable, "-m", "pymemcg", "doctor"]

# Seccomp's and the capabilities' lines of /proc/self/status in a container of Docker's defaults, as root.
DOCKER = {"CapEff": "00000000a80425fb", "Seccomp": "2"}


@pytest.fixture(scope="module")
def report():
    done = subprocess.run([*COMMAND, "--json"], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return json.loads(done.stdout)


def checks(report) -> dict[str, dict]:
    return {check["name"]: check for check in report["checks"]}


def test_every_check_says_something_and_what_is_missing_says_what_it_needs(report):
    for check in report["checks"]:
        assert check["state"] in ("yes", "partly", "no", "info")
        assert check["says"]
        if check["state"] == "partly":
            assert check["needs"]


def test_each_surrounding_is_looked_at(report):
    assert {"HZ", "privileges", "seccomp", "tracefs", "perf events", "sandbox"} <= checks(report).keys()


def test_a_group_is_described_with_its_limits_and_what_the_sampler_would_hold(report):
    if report["group"] is None:
        pytest.skip(checks(report)["group"]["says"])
    assert os.path.isdir(report["group"]["directory"])
    assert report["group"]["own"] is True
    assert report["group"]["levels"][0]["name"]
    held = checks(report)["sampler's memory"]
    assert held["state"] == "yes"
    assert 0 < held["facts"]["ring_bytes"] < held["facts"]["held_bytes_at_most"] <= 8 << 20


def test_words_and_json_are_of_one_structure(report):
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"COLUMNS": "120"})
    text = " ".join(done.stdout.split())
    for check in report["checks"]:
        assert check["name"] in text
        if check["name"] not in ("shared rings", "sampler's memory"):  # these may have changed in between
            assert " ".join(check["says"].split()) in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_words_fit_the_terminal(width):
    done = subprocess.run(
        COMMAND, capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"COLUMNS": str(width)}
    )
    checked = done.stdout.split("\n\n")[-1].splitlines()
    assert len(checked) > 6
    assert all(len(line) <= width or " " not in line.strip()[27:] for line in checked)


def test_no_colours_where_it_is_no_terminal(report):
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60, check=False)
    assert "\x1b" not in done.stdout


def test_hz_is_the_kernels_and_not_userspaces():
    hertz = 1e9 / jiffy_ns()
    assert any(hertz == pytest.approx(known, rel=0.01) for known in (100, 250, 300, 1000))
    config = f"/boot/config-{os.uname().release}"
    if os.path.exists(config):
        with open(config, encoding="ascii") as file:
            assert f"CONFIG_HZ={hertz:.0f}\n" in file.read()


def test_privileges_of_a_common_container(monkeypatch):
    def event_ids():
        raise NotSupported("tracefs is not mounted", hint="mount it")

    monkeypatch.setattr(surroundings, "_status", lambda: DOCKER)
    monkeypatch.setattr(tracepoints, "event_ids", event_ids)
    found = {check.name: check for check in check_surroundings()}
    assert (found["tracefs"].state, found["tracefs"].needs) == ("no", "mount it")
    assert found["seccomp"].facts == {"seccomp_mode": 2}
    assert "perf_event_open" in found["seccomp"].says
    assert not any(found["privileges"].facts["capabilities"].values())
    assert found["perf events"].facts["allowed"] is False


@pytest.mark.parametrize(
    ("release", "version"), [("4.4.0", "#1 SMP Sun Jan 10 15:06:54 PST 2016"), ("4.19.0-gvisor", "#1 SMP today")]
)
def test_gvisor_is_recognised(monkeypatch, release, version):
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "box", release, version, "x86_64")))
    found = {check.name: check for check in check_surroundings()}
    assert found["sandbox"].facts == {"sandbox": "gvisor"}
    assert found["sandbox"].needs


def test_kata_is_recognised_by_the_share_it_is_handed(monkeypatch):
    line = "592 586 0:31 /passthrough/abc/rootfs / rw,relatime master:1 - virtiofs kataShared rw\n"
    monkeypatch.setattr(surroundings, "read_text", lambda path: line if path == "/proc/self/mountinfo" else "")
    assert surroundings._sandbox().facts == {"sandbox": "kata"}


def test_nothing_is_left_behind(report):
    folder = f"/dev/shm/pymemcg-{os.geteuid()}"
    before = set(os.listdir(folder)) if os.path.isdir(folder) else None
    subprocess.run(COMMAND, capture_output=True, timeout=60, check=False)
    after = set(os.listdir(folder)) if os.path.isdir(folder) else None
    if before is None:
        assert after is None
    group = report["group"]
    if group is not None:
        status = os.stat(group["directory"])
        name = f"{status.st_dev:x}-{status.st_ino:x}"
        assert (name in (after or ())) == (name in (before or ()))
