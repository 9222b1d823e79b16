"""The output of the benchmarks: tables on the terminal, Markdown and JSON, and their common options."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGES = (
    "airflow-mediation-provider",
    "apache-airflow",
    "apache-airflow-providers-databricks",
    "apache-airflow-providers-dbt-cloud",
    "apache-airflow-providers-http",
)


def environment() -> dict[str, str]:
    """Return what the numbers depend on: date, machine, versions."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # not every program needs the other providers
            versions[package] = version(package)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    } | versions


def quantile(seconds: Sequence[float], part: float) -> float:
    """Return the seconds within which this part of them ended."""
    ordered = sorted(seconds)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)]


@dataclass
class Table:
    """A result for readers: a title, columns, rows of text, and notes.

    :param name: of the section that it fills in a Markdown file
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]]
    notes: Sequence[str]

    def show(self) -> None:
        """Print it to the terminal."""
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable

        table = RichTable(*self.columns, title=self.title, title_justify="left", box=box.SIMPLE_HEAD)
        for row in self.rows:
            table.add_row(*row)
        console = Console()
        console = console if console.is_terminal else Console(width=230)
        console.print(table)
        for note in self.notes:
            console.print(note, style="dim", highlight=False, markup=False)

    def markdown(self) -> str:
        """Return it as Markdown, with the environment of the measurement."""
        lines = [f"### {self.title}", "", f"| {' | '.join(self.columns)} |", "|" + " --- |" * len(self.columns)]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        where = ", ".join(f"{name} {value}" for name, value in environment().items())
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes), f"- Measured: {where}.", ""])

    def write_markdown(self, file: Path) -> None:
        """Write the table between `<!-- begin NAME -->` and `<!-- end NAME -->`; without these it is the whole file."""
        begin, end = f"<!-- begin {self.name} -->\n", f"<!-- end {self.name} -->"
        text = file.read_text() if file.exists() else ""
        before, found, rest = text.partition(begin)
        file.write_text(before + begin + self.markdown() + end + rest.partition(end)[2] if found else self.markdown())


def common_arguments(description: str, kinds: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser with the options that all programs have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=kinds, metavar="KIND", help=f"of: {', '.join(kinds)}")
    parser.add_argument("--check", action="store_true", help="exit with 1 unless all claims hold")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, or into its section")
    return parser


def publish(arguments: argparse.Namespace, table: Table, numbers: object, broken: Sequence[str]) -> int:
    """Print the table, write the requested files, and return the program's exit code.

    :param numbers: what goes into the JSON file
    :param broken: the claims that failed, one sentence each; they affect the exit code only with `--check`
    """
    table.show()
    if arguments.json:
        arguments.json.write_text(json.dumps({"environment": environment(), "results": numbers}, indent=2) + "\n")
    if arguments.markdown:
        table.write_markdown(arguments.markdown)
    if not arguments.check:
        return 0
    for sentence in broken:
        print(f"NOT KEPT: {sentence}")
    if not broken:
        print("every claim holds")
    return 1 if broken else 0
