"""What is installed: the files and the description of wheel and source distribution, as they are built."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from email.message import Message

pytestmark = pytest.mark.services
ROOT = Path(__file__).parents[2]
PACKAGE = "airflow_mediation_provider"
RELATIVE_LINK = re.compile(r"\]\((?!https?://)[^)]*\)")


def run(*command: str, directory: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=directory, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with both distributions, as an index would get them."""
    directory = tmp_path_factory.mktemp("dist")
    run("hatchling", "build", "--directory", str(directory))
    return directory


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (file,) = built.glob("*.whl")
    return zipfile.ZipFile(file)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_bytes(wheel.read(name))


def test_an_index_accepts_both(built: Path) -> None:
    files = sorted(map(str, built.iterdir()))
    assert len(files) == 2
    assert run("twine", "--no-color", "check", "--strict", *files).count(": PASSED") == 2


def test_the_wheel_has_each_file_of_the_package_and_no_other(wheel: zipfile.ZipFile) -> None:
    tracked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", PACKAGE]
    package = subprocess.run(tracked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert files == set(package)
    # What is read at run time, and what type checkers read, is no Python file.
    assert {PurePosixPath(name).suffix for name in files} >= {".html", ".css", ".js", ".svg", ".ini", ".mako", ".typed"}
    assert f"{PACKAGE}/journal/migrations/versions/r0001_journal.py" in files


def test_the_wheel_has_the_entry_points_and_the_licence(wheel: zipfile.ZipFile) -> None:
    info = {PurePosixPath(name).relative_to(PurePosixPath(name).parts[0]): name for name in wheel.namelist()}
    assert PurePosixPath("licenses/LICENSE") in info
    entry_points = wheel.read(info[PurePosixPath("entry_points.txt")]).decode()
    assert re.findall(r"^\[(.+)\]$", entry_points, re.MULTILINE) == [
        "airflow.plugins",
        "apache_airflow_provider",
        "pytest11",
    ]


def test_the_source_distribution_makes_the_same_wheel(built: Path, wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as sources:
        sources.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    run("hatchling", "build", "--target", "wheel", "--directory", str(tmp_path / "dist"), directory=unpacked)
    (again,) = (tmp_path / "dist").iterdir()
    assert {each.filename: each.CRC for each in zipfile.ZipFile(again).infolist()} == {
        each.filename: each.CRC for each in wheel.infolist()
    }


def test_the_source_distribution_has_what_its_description_names(built: Path) -> None:
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as sources:
        names = {PurePosixPath(name).parts[1] for name in sources.getnames()}
    assert names >= {"docs", "dags", "constraints", "tests", "README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"}


def test_the_description_is_the_readme_without_links_that_an_index_does_not_have(metadata: Message) -> None:
    description = metadata.get_payload()
    assert isinstance(description, str)
    readme = (ROOT / "README.md").read_text()
    assert RELATIVE_LINK.findall(readme)
    assert RELATIVE_LINK.findall(description) == []
    headings = re.compile(r"^## (.+)$", re.MULTILINE)
    only_in_a_clone = {"Try it: two commands", "Quickstart: your own Airflow and the simulator", "More"}
    assert [each for each in headings.findall(readme) if each not in only_in_a_clone] == headings.findall(description)
    assert re.findall(r"clone|\((?:picture|more)\)", description) == []
    assert "](https://" in description


def test_no_address_of_the_project_is_invented(metadata: Message) -> None:
    assert metadata.get_all("Project-URL") is None
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
