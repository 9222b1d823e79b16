"""Installs what the drill of a cluster runs: Airflow with Celery in one environment, and each version of the package,
from its wheel, in a small one beside it.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

from testkit.postgres import PostgresError, binaries
from testkit.stage import PROJECT

CONSTRAINTS = PROJECT / "constraints" / "airflow-3.3.txt"
PROGRAMS = {"redis-server": "redis-server", "nginx": "nginx-light"}
FAKETIME = ("/usr/lib/*/faketime", "libfaketimeMT.so.1")


class NotInstalledError(Exception):
    """Programs are missing; the message names the packages."""


@dataclass(frozen=True)
class Programs:
    """The programs of the system."""

    redis: str
    nginx: str

    @classmethod
    def find(cls) -> Programs:
        """Return them.

        :raises NotInstalledError: some are missing
        """
        missing = [package for program, package in PROGRAMS.items() if _which(program) is None]
        try:
            binaries()
        except PostgresError:
            missing.append("postgresql")
        if missing:
            raise NotInstalledError(f"missing: apt-get install {' '.join(missing)}")
        return cls(*(str(_which(program)) for program in PROGRAMS))


def faketime() -> Path | None:
    """Return the library that gives a process another clock, if it is installed (Debian: libfaketime)."""
    return next((each / FAKETIME[1] for each in Path("/").glob(FAKETIME[0][1:]) if (each / FAKETIME[1]).exists()), None)


def _which(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")


class Environments:
    """Makes the environments in a directory, and keeps them there for the next run.

    :param root: directory
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._base = root / "airflow"

    def airflow(self) -> Path:
        """Return the interpreter of Airflow with Celery and what the package needs, without the package itself."""
        python = self._base / "bin" / "python"
        declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())
        requirements = [*declared["project"]["dependencies"], *declared["dependency-groups"]["celery"]]
        made_of = hashlib.sha256(CONSTRAINTS.read_bytes() + repr((requirements, sys.version)).encode()).hexdigest()
        stamp = self._base / "made-of"
        if not stamp.exists() or stamp.read_text() != made_of:
            _run(sys.executable, "-m", "venv", self._base)
            _run(python, "-m", "pip", "install", "--quiet", "--compile", "-c", CONSTRAINTS, *requirements)
            stamp.write_text(made_of)
        return python

    def package(self, commit: str | None = None) -> Path:
        """Return the interpreter of an environment that has the package too, from its wheel.

        :param commit: of which version; the files of the project as they are by default
        """
        base = self.airflow()
        root = self._root / (commit or "this")
        python = root / "bin" / "python"
        if commit and python.exists():
            return python
        shutil.rmtree(root, ignore_errors=True)
        wheels = root / "wheels"
        wheels.mkdir(parents=True)
        source = self._source(commit, root / "source") if commit else PROJECT
        _run(base, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, source)
        _run(base, "-m", "venv", "--without-pip", root)
        (packages,) = root.glob("lib/python*/site-packages")
        (below,) = self._base.glob("lib/python*/site-packages")
        (packages / "airflow.pth").write_text(f"{below}\n")
        _run(base, "-m", "pip", "--python", python, "install", "--quiet", "--compile", "--no-deps", *wheels.iterdir())
        return python

    @staticmethod
    def _source(commit: str, root: Path) -> Path:
        root.mkdir()
        archive = root.with_suffix(".tar")
        _run("git", "-C", PROJECT, "archive", "--output", archive, commit)
        with tarfile.open(archive) as files:
            files.extractall(root, filter="data")
        return root


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotInstalledError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
