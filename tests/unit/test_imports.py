# SPDX-License-Identifier: Apache-2.0
"""What `import pymemcg` loads, where it may be imported, and who may import whom."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import pymemcg

PACKAGE = Path(pymemcg.__file__).resolve().parent
SUBINTERPRETERS = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("module", ["numpy", "pandas", "rich", "json.tool", "asyncio", "subprocess"])
def test_import_pymemcg_loads_no(module):
    assert run(f"import pymemcg, sys; pymemcg.Sampler, pymemcg.open; print({module!r} in sys.modules)") == "False\n"


def test_import_pymemcg_loads_nothing_of_it():
    code = "import sys, pymemcg; print(sorted(name for name in sys.modules if name.startswith(('pymemcg.', 'cffi', '_cffi'))))"
    assert run(code) == "['pymemcg._version']\n"


def test_resolving_a_target_and_a_disabled_sampler_need_no_numpy():
    code = (
        "import os, sys; os.environ['PYMEMCG_DISABLE'] = '1'\n"
        "import pymemcg\n"
        "with pymemcg.Sampler() as s: s.usage.head, s.role, s.absent, s.stats(), s.usage.read()\n"
        "print('numpy' in sys.modules)"
    )
    assert run(code) == "False\n"


def imported_for_types() -> dict[str, str]:
    """Name to module, as type checkers see the package."""
    tree = ast.parse(Path(pymemcg.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    froms = (node for node in block.body if isinstance(node, ast.ImportFrom))
    return {alias.name: node.module for node in froms for alias in node.names}


def test_all_that_is_promised_is_there():
    assert set(imported_for_types()) | {"__version__"} == set(pymemcg.__all__)
    for name, module in imported_for_types().items():
        assert getattr(pymemcg, name) is getattr(importlib.import_module(module), name)
        assert vars(pymemcg)[name] is getattr(pymemcg, name), "found once"


def test_all_that_is_promised_is_listed():
    assert run("import pymemcg; print(set(pymemcg.__all__) <= set(dir(pymemcg)))") == "True\n"
    assert run("from pymemcg import *; print(__version__, stalls.__name__, open.__module__)").endswith(
        " stalls pymemcg.recording\n"
    )


@pytest.mark.parametrize("first", [[], ["stalls"], ["open"]], ids=["last", "stalls first", "open first"])
@pytest.mark.parametrize("order", [1, -1])
def test_no_import_hides_a_name(first, order):
    """Importing a module makes it an attribute of its package."""
    modules = sorted({module for path in PACKAGE.glob("*.py") if (module := path.stem) not in {"__init__", "__main__"}})[
        ::order
    ]
    code = (
        "import importlib, sys, pymemcg\n"
        f"before = [getattr(pymemcg, name) for name in {first}]\n"
        f"for module in {[*modules, 'cli.stalls', 'cli.oom']}: importlib.import_module('pymemcg.' + module)\n"
        "from pymemcg import stalls, open, attach, resolve\n"
        f"assert before == [getattr(pymemcg, name) for name in {first}]\n"
        "print(*(f'{one.__module__}.{one.__qualname__}' for one in (stalls, pymemcg.stalls, open, attach, resolve)))"
    )
    names = ["detecting.stalls", "detecting.stalls", "recording.open", "attaching.attach", "cgroup.resolve"]
    assert run(code) == " ".join(f"pymemcg.{name}" for name in names) + "\n"


def test_modules_of_the_reference_need_no_import_of_their_own():
    code = "import pymemcg; print(pymemcg.errors.NotStarted, pymemcg.schema.CHANNELS, pymemcg.oom.CAUSES, pymemcg.metrics)"
    assert "NotStarted" in run(code)


def test_what_is_not_there():
    assert not hasattr(pymemcg, "cgroups")
    with pytest.raises(ImportError, match="cannot import name 'sampel'"):
        from pymemcg import sampel  # noqa: F401


def test_no_module_is_called_like_what_the_package_offers():
    """Importing it would put the module in the name's place."""
    modules = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert "detecting" in modules
    assert modules & set(pymemcg.__all__) == set()


def test_every_error_is_caught_by_the_base():
    for error in (pymemcg.NotSupported, pymemcg.RecordingError, pymemcg.SourceError, pymemcg.TargetError):
        assert issubclass(error, pymemcg.MemcgError)


def importers(name: str) -> set[str]:
    """The package's files that import a module of this name, wherever in them; or one within it."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            module = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names = [".".join([*module, alias.name]) for alias in node.names]
            if any(f".{name}." in f"{imported}." for imported in names):
                found.add(str(path.relative_to(PACKAGE)))
    return found


def test_only_ffi_imports_the_extension():
    assert importers("_native") == {"_ffi.py"}


def test_only_commands_import_commands():
    assert {path for path in importers("cli") if not path.startswith("cli/")} == {"__main__.py"}


@pytest.mark.skipif(importlib.util.find_spec(SUBINTERPRETERS) is None, reason="this Python has no subinterpreters module")
@pytest.mark.parametrize("before", ["", "import pymemcg"], ids=["first", "after the main interpreter"])
@pytest.mark.parametrize("what", ["from pymemcg import Sampler", "import pymemcg; pymemcg.open"])
def test_a_subinterpreter_gets_a_clear_import_error(before, what):
    inside = (
        "try:\n"
        f"    {what}\n"
        "except ImportError as error:\n"
        "    print('refused:', error, flush=True)\n"
        "else:\n"
        "    print('imported', flush=True)\n"
    )
    code = (
        f"{before}\n"
        f"import {SUBINTERPRETERS} as interpreters\n"
        "interpreter = interpreters.create()\n"
        f"interpreters.run_string(interpreter, {inside!r})\n"
        "interpreters.destroy(interpreter)\n"
        "import pymemcg; print(pymemcg.Sampler())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("refused:")
    assert "subinterpreter" in first
    assert "stopped" in second
