"""A page as a browser's parser reads it: its elements, their texts, and their links."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

WITHIN_WORDS = frozenset({"bdi", "span", "a", "code", "strong"})
VOID = frozenset({"meta", "link", "input", "br", "img"})


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    inside: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text, with single spaces."""
        return " ".join("".join(self._words()).split())

    @property
    def classes(self) -> set[str]:
        return set(self.attributes.get("class", "").split())

    def _words(self) -> Iterator[str]:
        for each in self.inside:
            if isinstance(each, str):
                yield each
            else:
                # The text of a cell or a line of its own is separate from the text before or after it.
                around = "" if each.tag in WITHIN_WORDS else " "
                yield from (around, *each._words(), around)

    def walk(self) -> Iterator[Element]:
        yield self
        for each in self.inside:
            if isinstance(each, Element):
                yield from each.walk()

    def all(self, tag: str | None = None, **attributes: str) -> list[Element]:
        """The elements within; `class_` and `data_x` stand for names that Python does not allow."""

        def fits(element: Element) -> bool:
            if tag is not None and element.tag != tag:
                return False
            return all(
                value in element.classes
                if name == "class_"
                else element.attributes.get(name.replace("_", "-")) == value
                for name, value in attributes.items()
            )

        return [element for element in self.walk() if element is not self and fits(element)]

    def one(self, tag: str | None = None, **attributes: str) -> Element:
        found = self.all(tag, **attributes)
        assert len(found) == 1, f"{len(found)} of {tag} {attributes}"
        return found[0]

    def links(self) -> dict[str, str]:
        """The target of each link, by its text."""
        return {each.text: each.attributes["href"] for each in self.all("a")}

    def cells(self) -> list[dict[str, str]]:
        """The text of each cell of the tables, by the heads of the columns."""
        return [
            {cell.attributes["data-label"]: cell.text for cell in row.all() if "data-label" in cell.attributes}
            for body in self.all("tbody")
            for row in body.all("tr")
        ]

    def skeleton(self) -> Counter[tuple[str, ...]]:
        """The elements with the names of their attributes, and how often: all that values must not change.

        Alternative names are in alphabetical order.
        """
        return Counter((each.tag, *each.attributes) for each in self.walk())


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice: {names}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].inside.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> within <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].inside.append(data)


def parsed(text: str) -> Element:
    """Return the page; every opened element must be closed at the right place."""
    builder = _Builder()
    builder.feed(text)
    builder.close()
    assert builder.open == [builder.root], f"<{builder.open[-1].tag}> is left open"
    return builder.root


def asked(address: str) -> tuple[str, dict[str, str]]:
    """Return the path of an address and its parameters."""
    parts = urlsplit(address)
    return parts.path, dict(parse_qsl(parts.query, keep_blank_values=True))
