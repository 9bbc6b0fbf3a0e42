# SPDX-License-Identifier: Apache-2.0
"""What `import pymemcg` loads, where it may be imported, and who may import whom."""

from __future__ import annotations

import ast
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
    assert run(f"import pymemcg, sys; print({module!r} in sys.modules)") == "False\n"


def test_resolving_a_target_and_a_disabled_sampler_need_no_numpy():
    code = (
        "import os, sys; os.environ['PYMEMCG_DISABLE'] = '1'\n"
        "import pymemcg\n"
        "with pymemcg.Sampler() as s: s.usage.head, s.role, s.absent, s.stats(), s.usage.read()\n"
        "print('numpy' in sys.modules)"
    )
    assert run(code) == "False\n"


def test_all_that_is_promised_is_there():
    assert pymemcg.__version__
    for name in pymemcg.__all__:
        assert getattr(pymemcg, name) is not None


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
def test_a_subinterpreter_gets_a_clear_import_error(before):
    inside = (
        "try:\n"
        "    import pymemcg\n"
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
