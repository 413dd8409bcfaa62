"""Podman with everything it keeps in one folder, and a base image made without a registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

TOOLS = ("podman", "buildah", "runc", "debootstrap")
BASE = "localhost/base/python:bookworm"
_PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
_CONF = """\
[containers]
default_ulimits = ["nofile=16384:16384", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
_POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'


def missing() -> str:
    """Why no image can be built here; empty where one can."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (apt-get install --no-install-recommends {' '.join(TOOLS)})"
    return "" if os.geteuid() == 0 else "debootstrap needs root"


class Podman:
    """Podman on `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "containers.conf").write_text(_CONF)
        (folder / "bin").mkdir()
        flags = f"--root {folder}/store --runroot {folder}/run"
        wrapper = folder / "bin" / "podman"
        wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("podman")} {flags} "$@"\n')
        wrapper.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """In which `podman` is this one, and docker, which may be there, has no daemon."""
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return {
            **os.environ,
            "PATH": path,
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "DOCKER_HOST": "unix:///nowhere",
        }

    def __call__(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["podman", *arguments], env=self.environment, capture_output=True, text=True, timeout=timeout
        )

    def make_base(self) -> None:
        """Debian's Python as `BASE`."""
        root = self.folder / "rootfs"
        _run(["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(root), *_mirror()])
        archive = self.folder / "rootfs.tar"
        _run(["tar", "-C", str(root), "-cf", str(archive), "."])
        shutil.rmtree(root)
        _run(["podman", "import", str(archive), BASE], environment=self.environment)
        archive.unlink()

    def clean(self) -> None:
        self("system", "reset", "--force")
        shutil.rmtree(self.folder, ignore_errors=True)


def wheelhouse(folder: Path, *, extras: str) -> Path:
    """All that the requirements of `extras` need, fetched with this machine's pip settings; the pip.conf that makes a
    build take them from /wheels is returned."""
    wheels = folder / "wheels"
    listed = subprocess.run(
        [sys.executable, "images/requirements.py", "pyproject.toml", extras], capture_output=True, text=True, check=True
    )
    (folder / "requirements.txt").write_text(listed.stdout + "setuptools>=80\nwheel\n")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(wheels)]
    _run([*pip, "--constraint", "constraints.txt", "--requirement", str(folder / "requirements.txt")])
    settings = folder / "pip.conf"
    settings.write_text("[global]\nno-index = true\nfind-links = /wheels\ndisable-pip-version-check = true\n")
    return settings


def _run(command: list[str], *, environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def _mirror() -> list[str]:
    """Where this machine gets Debian's packages from."""
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for path in sources:
        for line in path.read_text().splitlines() if path.is_file() else []:
            words = line.split()
            if words[:1] in (["deb"], ["URIs:"]):
                return [next(word for word in words if "://" in word)]
    return []
