"""Find words that this project does not use in its texts: ``python docs/check_words.py [PATH...]``.

Reads comments, docstrings, string literals, names of tests, templates and documents; ``words.toml`` lists the words and
the allowances. Without paths, all files of the repository are read, and an allowance that nothing needs is an error.

Code is blanked out of a copy of the file, and what remains is searched: so each match keeps its line, and a phrase may
go over several lines. Python's own tokenizer alone takes longer than the whole check.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[1]
WORDS = Path(__file__).with_name("words.toml")

# Stands for a piece of code: neither a letter nor a space, so no phrase goes across it.
CODE = "\0"
# Possessive (*+): a string that is not terminated fails at once, instead of after every way to divide its text.
STRING = r"""(?P<prefix>\b[bfru]{1,2}(?=["']))?(?P<quote>\"{3}|'{3}|["'`])
    (?P<text>(?:[^\\"'`]+|\\.|(?!(?P=quote)).)*+)(?P=quote)"""
PYTHON = re.compile(
    rf"(?P<comment>\#[^\n]*) | {STRING} | \bdef\ (?P<test>test_\w+)", re.VERBOSE | re.DOTALL | re.IGNORECASE
)
JAVASCRIPT = re.compile(rf"(?P<comment>//[^\n]*|/\*.*?\*/) | {STRING}", re.VERBOSE | re.DOTALL)
PLACEHOLDER = re.compile(r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}")
QUOTED_CODE = re.compile(r"`+[^`\n]+`+|:param \w+:")
FENCED_CODE = re.compile(r"^ *(```+).*?^ *\1", re.DOTALL | re.MULTILINE)
LINK_TARGET = re.compile(r"\]\([^)]*\)|<!--.*?-->|<[^>\n]*>")
JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
TAG = re.compile(r"<[^>]*>")
# Terminals and Airflow's viewer of logs take the comma or semicolon as a part of the link.
MARKS = {", ": "comma", "; ": "semicolon"}
LINK = re.compile(r"url|address", re.IGNORECASE)
MAY_END_LINK = re.compile(r"(%s|(?:url|address)[^{}\n]*\})[,;] ", re.IGNORECASE)


@dataclass(frozen=True)
class Word:
    """A word that is not used.

    :param find: regular expression of whole words in either case; a space stands for any white space
    :param write: what to write instead
    :param why: what is wrong with the word
    """

    find: str
    write: str
    why: str


@dataclass(frozen=True)
class Allowance:
    """A text that may contain such a word.

    :param files: pattern of paths from the repository's root
    :param text: the words around, as they are written; a space stands for any white space
    :param reason: why they stay
    """

    files: str
    text: str
    reason: str

    def covers(self, path: str, text: str, match: re.Match[str]) -> bool:
        """Return whether a match in the text of a file lies within the allowed text."""
        if not fnmatch(path, self.files):
            return False
        around = re.finditer(_any_space(re.escape(self.text).replace(r"\ ", " ")), text)
        return any(each.start() <= match.start() and match.end() <= each.end() for each in around)


@dataclass
class Words:
    """The words that are not used, and the allowances, with those that were needed so far."""

    words: list[Word]
    allowances: list[Allowance]
    skipped: list[str]
    needed: set[Allowance] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        found = "|".join(f"(?P<word{number}>{_any_space(word.find)})" for number, word in enumerate(self.words))
        # Not within names: of_told, told_at, told(), entry.told, pass-word, /told.
        self._pattern = re.compile(rf"\b(?=\w)(?<![./-])(?:{found})(?![\w(/-]|\.\w)", re.IGNORECASE)

    @classmethod
    def read(cls, path: Path = WORDS) -> Words:
        """Read the words from a file.

        :raises ValueError: an entry misses a part, for example an allowance its reason
        """
        data = tomllib.loads(path.read_text())
        return cls(_entries(Word, data["words"]), _entries(Allowance, data["allowances"]), data["skipped"])

    def check(self, path: str, source: str) -> list[str]:
        """Return a line for each such word in the texts of a file, in their order.

        :param path: from the repository's root; its name decides which parts of the file are texts
        """
        read = _reader(path)
        if read is None or path in self.skipped:
            return []
        text = read(source)
        found = []
        for match in self._pattern.finditer(text):
            needed = [allowance for allowance in self.allowances if allowance.covers(path, text, match)]
            self.needed.update(needed)
            if not needed:
                word = self.words[int(str(match.lastgroup).removeprefix("word"))]
                line = text.count("\n", 0, match.start()) + 1
                found.append((line, f"{' '.join(match[0].split())} -> write {word.write} instead"))
        if path.endswith(".py"):
            found += [(line, f"link before a {mark} -> write a space instead") for line, mark in _ended_links(source)]
        return [f"{path}:{line}: {message}" for line, message in sorted(found, key=itemgetter(0))]

    def unneeded(self) -> list[str]:
        """Return a line for each allowance that no text needed so far."""
        return [
            f"{WORDS.name}: the allowance of {each.text!r} in {each.files} is not needed -> remove it"
            for each in self.allowances
            if each not in self.needed
        ]


def _entries(kind: type[Any], entries: list[dict[str, str]]) -> list[Any]:
    names = list(kind.__annotations__)
    for entry in entries:
        missing = [name for name in names if not entry.get(name, "").strip()]
        if missing or len(entry) > len(names):
            raise ValueError(f"{WORDS.name}: each {kind.__name__.lower()} needs {', '.join(names)} alone: {entry}")
    return [kind(**entry) for entry in entries]


def _any_space(pattern: str) -> str:
    return pattern.replace(" ", r"\s+")


def _blank(code: str) -> str:
    return CODE + "\n" * code.count("\n")


def _program(source: str, pattern: re.Pattern[str]) -> str:
    """Blank out all that is neither a comment, a string with spaces, nor the name of a test."""
    parts, end = [], 0
    for match in pattern.finditer(source):
        between = source[end : match.start()]
        # Two strings or comments with white space between them are one text.
        parts += [between if between.isspace() else _blank(between), _literal(match, pattern)]
        end = match.end()
    return "".join(parts) + _blank(source[end:])


def _literal(match: re.Match[str], pattern: re.Pattern[str]) -> str:
    group = match.groupdict("")
    if group["comment"]:
        return group["comment"].replace("#", " ")
    if group.get("test"):
        return group["test"].replace("_", " ")
    prefix, text = group["prefix"].lower(), group["text"]
    if " " not in text or "r" in prefix or "b" in prefix:
        return _blank(match[0])
    if "\\" in text:
        text = re.sub(r"\\[^\n]", " ", text)
    return PLACEHOLDER.sub(lambda code: _program(code[0], pattern), text) if "f" in prefix else text


def _python(source: str) -> str:
    return QUOTED_CODE.sub(lambda code: _blank(code[0]), _program(source, PYTHON))


def _javascript(source: str) -> str:
    return _program(source, JAVASCRIPT)


def _document(source: str) -> str:
    for code in (FENCED_CODE, QUOTED_CODE, LINK_TARGET):
        source = code.sub(lambda match: _blank(match[0]), source)
    return source


def _template(source: str) -> str:
    """Blank out expressions and tags, but for the strings within."""
    for code in (JINJA, TAG):
        source = code.sub(lambda match: _program(match[0], PYTHON), source)
    return source


# Files of other names are not read.
READERS: dict[str, Callable[[str], str]] = {
    ".py": _python,
    ".toml": _python,
    "Makefile": _python,
    ".js": _javascript,
    ".md": _document,
    ".html": _template,
}


def _reader(path: str) -> Callable[[str], str] | None:
    file = Path(path)
    return READERS.get(file.suffix or file.name)


def _ended_links(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the mark of each message in which a comma or semicolon follows a URL at once."""
    if not MAY_END_LINK.search(source):
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            behind = re.split(r"%[.\d]*[srdf]", str(node.args[0].value))[1:]
            pairs = list(zip(map(ast.unparse, node.args[1:]), behind, strict=False))
        elif isinstance(node, ast.JoinedStr):
            pairs = [
                (ast.unparse(value), str(after.value))
                for value, after in pairwise(node.values)
                if isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant)
            ]
        else:
            continue
        for value, after in pairs:
            if LINK.search(value) and after.startswith(tuple(MARKS)):
                yield node.lineno, MARKS[after[:2]]


def _tracked() -> list[str]:
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()  # noqa: S603


def main(arguments: list[str]) -> int:
    """Print what is found, and return the exit status: 1 when anything is."""
    words = Words.read()
    missing = [each for each in arguments if not Path(each).resolve().is_relative_to(ROOT) or not Path(each).exists()]
    if missing:
        raise SystemExit(f"not in this repository: {', '.join(missing)}")
    wanted = [Path(each).resolve() for each in arguments]
    found = []
    for path in _tracked():
        file = ROOT / path
        chosen = not wanted or any(file.is_relative_to(each) for each in wanted)
        if chosen and file.exists() and _reader(path):
            found += words.check(path, file.read_text())
    if not wanted:
        found += words.unneeded()
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
