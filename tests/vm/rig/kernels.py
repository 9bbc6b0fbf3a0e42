# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels, downloaded with apt into a cache and extracted there, never installed."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

UML = "uml"
UML_PACKAGE = "user-mode-linux"
APT_TIMEOUT_S = 300


class UnavailableError(Exception):
    """A guest cannot be had here; the message says what would help."""


@dataclass(frozen=True)
class Kernel:
    """An extracted package of a kernel."""

    name: str
    image: Path
    modules: Path

    @property
    def release(self) -> str:
        """What `uname -r` says."""
        return self.modules.name


def cache() -> Path:
    """Where kernels are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("PYMEMCG_VM_CACHE") or f"{base}/pymemcg-vm").expanduser()


def find(name: str) -> Kernel:
    """The kernel `6.1`, `6.12`, … (the newest that the cache has, else that apt has), `uml`, or one extracted in a folder."""
    if "/" in name:
        return _extracted(Path(name), Path(name).resolve().name)
    if name != UML and not re.fullmatch(r"\d+\.\d+", name):
        raise UnavailableError(
            f"there is no kernel {name!r}: give a release like 6.12, {UML}, or a folder with a '/' in its path"
        )
    with _locked_cache() as kernels:
        package = _newest([path.name for path in kernels.iterdir()], name)
        if not package:
            package = _newest(_known_to_apt(name), name)
            if not package:
                raise UnavailableError(f"apt knows no {_described(name)}; Debian 12 has 6.1, 6.12 and {UML_PACKAGE}")
            _download(package, kernels / package)
        return _extracted(kernels / package, name)


def _described(name: str) -> str:
    return UML_PACKAGE if name == UML else f"linux-image-{name}.*-cloud-amd64"


def _newest(packages: list[str], name: str) -> str | None:
    pattern = re.escape(UML_PACKAGE) if name == UML else rf"linux-image-{re.escape(name)}\.[0-9].*-cloud-amd64"
    fitting = [package for package in packages if re.fullmatch(pattern, package)]
    return max(fitting, key=lambda package: [int(number) for number in re.findall(r"\d+", package)], default=None)


@contextmanager
def _locked_cache() -> Iterator[Path]:
    kernels = cache() / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two guests that start at once download once
        yield kernels


def _known_to_apt(name: str) -> list[str]:
    prefix = UML_PACKAGE if name == UML else f"linux-image-{name}."
    packages = apt("apt-cache", "pkgnames", prefix).split()
    if not _newest(packages, name) and os.geteuid() == 0:
        apt("apt-get", "-q", "update")
        packages = apt("apt-cache", "pkgnames", prefix).split()
    return packages


def _download(package: str, folder: Path) -> None:
    with TemporaryDirectory(dir=folder.parent) as temporary:
        fetch = ("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package)
        try:
            apt(*fetch, folder=temporary)
        except UnavailableError:  # apt's lists may name a version that the archive no longer has
            apt("apt-get", "-q", "update")
            apt(*fetch, folder=temporary)
        (archive,) = Path(temporary).glob("*.deb")
        tree = Path(temporary) / "tree"
        apt("dpkg-deb", "--extract", str(archive), str(tree))
        tree.rename(folder)


def apt(*command: str, folder: str = "/") -> str:
    """What one of its commands prints."""
    if not shutil.which(command[0]):
        raise UnavailableError(
            f"{command[0]} is not here; on another system than Debian, extract a Debian kernel and give its folder"
        )
    options = {"cwd": folder, "stdin": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
    try:
        done = subprocess.run(command, **options, capture_output=True, text=True, timeout=APT_TIMEOUT_S, check=True)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{' '.join(command)}: not done after {APT_TIMEOUT_S} s") from None
    except subprocess.CalledProcessError as error:
        raise UnavailableError(f"{' '.join(command)}: {error.stderr.strip() or error.returncode}") from None
    return done.stdout


def _extracted(folder: Path, name: str) -> Kernel:
    # Debian 12's place of modules, that of a merged /usr, user-mode Linux's.
    for modules in [*folder.glob("lib/modules/*"), *folder.glob("usr/lib/modules/*"), *folder.glob("usr/lib/uml/modules/*")]:
        for image in (folder / "boot" / f"vmlinuz-{modules.name}", modules / "vmlinuz", folder / "usr/bin/linux.uml"):
            if image.exists():
                return Kernel(name, image, modules)
    raise UnavailableError(f"no kernel in {folder}: dpkg-deb --extract linux-image-….deb {folder}")
