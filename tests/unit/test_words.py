"""The check for words that this project does not use: what it finds, and which allowances it refuses."""

from __future__ import annotations

import re
import tokenize
from pathlib import Path

import pytest

from docs.check_words import PYTHON, ROOT, Words, main

MODULE = '''"""The hub tells the wait."""

LIMIT = 3  # as somebody wrote
LINKS = ("https://told.example/", "told", r"said \\d", told.said, b"told of")


def test_what_a_hub_said(hub, told):
    """Quoted: ``told``, `entry.told`.

    :param told: of told_at, and hub.told()
    """
    # what came
    # of it
    log.info("the trigger was %s "
             " told", told)
    raise ValueError(f"{told} of {'what was learned' if told else 'told'} at the DAG, not the dag")
'''


def words(tmp_path: Path, allowances: str = "") -> Words:
    """Return the project's words with these allowances instead of its own."""
    file = tmp_path / "words.toml"
    listed = (ROOT / "docs" / "words.toml").read_text()
    file.write_text(re.sub(r"^allowances = \[.*?^\]", f"allowances = [{allowances}]", listed, flags=re.S | re.M))
    return Words.read(file)


def found(words: Words, path: str, source: str) -> list[str]:
    return [line.removeprefix(f"{path}:").partition(" -> ")[0] for line in words.check(path, source)]


def test_in_python_comments_strings_and_names_of_tests_are_read(tmp_path):
    assert found(words(tmp_path), "tests/test_hub.py", MODULE) == [
        "1: tells",
        "3: somebody",
        "7: said",
        "12: came of",
        "15: told",
        "16: learned",
        "16: DAG",
    ]


def test_a_string_that_is_not_terminated_is_skipped_without_trying_every_division_of_its_text(tmp_path):
    assert found(words(tmp_path), "a.py", '"' + "plain text " * 500 + "\n# as somebody wrote\n") == ["2: somebody"]


def test_a_line_names_the_replacement(tmp_path):
    assert words(tmp_path).check("docs/a.md", "How manieth\n") == [
        "docs/a.md:1: How manieth -> write index, n-th instead"
    ]


def test_in_documents_code_and_links_are_not_read(tmp_path):
    source = "It `told`:\n\n```\nthe DAG told\n```\n\n[The begin](told.md#said) was\ntold <!-- told -->\n"
    assert found(words(tmp_path), "README.md", source) == ["7: The begin", "8: told"]


def test_in_templates_text_and_strings_of_expressions_are_read(tmp_path):
    source = '{% if told %}\n<p class="unread" title="Last heard">{{ told or "not told" }}\n{{ told }} Whoever</p>\n'
    assert found(words(tmp_path), "a.html", source) == ["2: heard", "2: told", "3: Whoever"]


def test_in_scripts_comments_and_strings_are_read(tmp_path):
    source = '// told\nlet told = "told"; /* a\nlook */ show(`It looks`);\n'
    assert found(words(tmp_path), "a.js", source) == ["1: told", "3: look", "3: looks"]


def test_other_files_are_not_read(tmp_path):
    assert found(words(tmp_path), "tests/unit/golden/told.json", '{"text": "it was told"}') == []


@pytest.mark.parametrize(
    "text", ["look it up", "looked up", "the lookup", "the look-up", "whatever the order", "those that begin", "known"]
)
def test_plain_words_are_allowed(tmp_path, text):
    assert found(words(tmp_path), "a.md", text) == []


@pytest.mark.parametrize(
    ("call", "lines"),
    [
        ('log.info("%s: at %s, from", name, self.url)', ["1: link before a comma"]),
        ('log.info("%s, at %s from", name, self.url)', []),
        ('fail(f"at {feed_url}; polls")', ["1: link before a semicolon"]),
        ('fail(f"at {feed_url} from {name}, polls")', []),
    ],
)
def test_a_comma_or_semicolon_after_a_link_is_found(tmp_path, call, lines):
    assert found(words(tmp_path), "a.py", call) == lines


def test_an_allowance_covers_its_text_in_its_files_alone(tmp_path):
    checked = words(tmp_path, '{files = "docs/*.md", text = "DAG Runs", reason = "a name"}')
    assert found(checked, "docs/a.md", "DAG\nRuns, and a DAG") == ["2: DAG"]
    assert found(checked, "README.md", "DAG Runs") == ["1: DAG"]
    assert checked.unneeded() == []


def test_a_path_that_is_not_there_is_refused():
    with pytest.raises(SystemExit, match=r"not in this repository: nothing\.py"):
        main(["nothing.py"])


@pytest.mark.parametrize("reason", ["", ', reason = " "'])
def test_an_allowance_without_a_reason_is_refused(tmp_path, reason):
    with pytest.raises(ValueError, match="each allowance needs files, text, reason"):
        words(tmp_path, f'{{files = "*", text = "DAG Runs"{reason}}}')


def test_an_allowance_that_nothing_needs_is_refused(tmp_path):
    checked = words(tmp_path, '{files = "*", text = "DAG Runs", reason = "a name"}')
    checked.check("docs/a.md", "A DAG.")
    assert checked.unneeded() == ["words.toml: the allowance of 'DAG Runs' in * is not needed -> remove it"]


def test_comments_are_those_of_pythons_tokenizer():
    """A regular expression separates text from code: a string that it ends too early or too late shows here."""
    for file in (Path(__file__), *ROOT.glob("docs/*.py"), *ROOT.glob("dags/*.py"), *ROOT.glob("tests/unit/*.py")):
        with file.open() as lines:
            comments = [
                each.string for each in tokenize.generate_tokens(lines.readline) if each.type == tokenize.COMMENT
            ]
        assert [each[0] for each in PYTHON.finditer(file.read_text()) if each["comment"]] == comments
