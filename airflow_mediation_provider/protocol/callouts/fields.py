"""The documented fields of a callout's body, by any names that the template has and in any wrappers.

Users write the template, and gateways wrap what they pass on, so there is no single shape. One rule normalizes names:
letters and digits in lower case, without ``DataSource.`` and without the event's base object before an object's name.
So "Session Previous Status", ``MeterSession.PreviousStatus``, ``MeterSessionPreviousStatus``, ``previousStatus`` and
``previous_status`` are the same field, and so are ``Meter.Id`` and ``MeterSession.Meter.Id``. Objects are read as if
their names were joined, and the longest end of a joined name that the one table has counts: what is before it is a
wrapper.

A body may also have objects that are not the event's, and an envelope may name a session of its own. So the outermost
object that names the session and its status or meter is *the event's*, and its fields count first, then those of the
objects around it. A status from elsewhere counts only where Zuora documents it and the previous status is beside it.

A body is read on the event loop, so its cost is linear in its size: no name is joined beyond the longest one that
counts.

Sources: https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation and
https://docs.zuora.com/en/zuora-platform/extensibility/events-and-notifications/callout-templates/merge-fields-for-email-and-callout-templates/merge-field-syntax
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.status import SessionStatus, names_nothing, parse_status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Path = tuple[str, ...]

_UNRESOLVED: Final = re.compile(r"\{\{[^{}]*\}\}|<[A-Za-z][\w.]*>")
# A form joins the names of objects with brackets, a merge field with dots.
_JOINTS: Final = re.compile(r"[.\[\]/]+")


class UnparsedCalloutError(ValueError):
    """A body from which the session or its new status cannot be parsed."""


def _names(prefixes: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(prefix + name for prefix in prefixes for name in names)


_SESSION: Final = ("", "session", "metersession")
_ALIASES: Final[dict[str, str]] = {
    alias: field
    for field, aliases in {
        "meter_id": ("meterid",),
        "meter_name": ("metername",),
        "session_id": _names(_SESSION[1:], ("id",)),
        "run_type": _names((*_SESSION, "meter"), ("runtype",)),
        "status": _names(_SESSION, ("status", "currentstatus", "newstatus")),
        "previous_status": _names(_SESSION, ("previousstatus", "prevstatus", "oldstatus")),
        "started_at": _names(_SESSION, ("starttime", "startedat", "startdate", "startdatetime", "start")),
        # The last one is Zuora's label in full: "Session end time (if completed)".
        "ended_at": _names(_SESSION, ("endtime", "endedat", "enddate", "enddatetime", "end", "endtimeifcompleted")),
    }.items()
    for alias in aliases
}
# An advanced merge field begins with the base object of its event. Only an object's name may follow: ``meterStatus`` is
# the status of a meter.
_BASE: Final = re.compile(r"^(?:metersession|meter|session)(?=meter|session|operator|eventstore)")
# What the last name of a path may be: most names of a large body are none of these.
_ENDS: Final = frozenset(alias[start:] for alias in _ALIASES for start in range(len(alias)))
# No joined name that is longer means anything; the longest one has both prefixes.
_LONGEST_NAME: Final = max(map(len, _ALIASES)) + len("datasource") + len("metersession")
# ``DataSource.MeterSession.MeterOperator.Id`` has the most parts of all documented names.
_PARTS: Final = 4
DEEPEST: Final = 32
"""Objects within each other, and parts of a name; deeper bodies are not Zuora's."""
# Objects of the event whose own fields are not the session's.
_OTHER_OBJECTS: Final = frozenset({"meter", "operator", "meteroperator", "eventstore", "eventstorequery", "query"})


@dataclass(frozen=True, slots=True)
class EventFields:
    """The fields of one event.

    :param known: the documented fields that are not empty, by our names
    :param names: the normalized names of all fields of the event that are not empty, with those of objects joined; the
        beginnings of longer ones than any that Zuora documents
    :param empty: the documented fields that the template has, and that are empty
    """

    known: dict[str, str]
    names: frozenset[str]
    empty: frozenset[str]


def event_fields(body: Mapping[str, Any]) -> EventFields:
    """Find the event's fields in a body.

    :param body: its fields by their names; objects, lists of one object and objects as JSON text may be nested
    :raises UnparsedCalloutError: it names several sessions, or one in several statuses; or it is nested too deep
    :raises RecursionError: JSON text in it is nested much too deep

    Example: ``event_fields({"event": {"Meter.Id": 7, "session": {"id": "R-1", "status": "FAILED"}}}).known`` is
    ``{"session_id": "R-1", "status": "FAILED", "meter_id": "7"}``.
    """
    leaves = list(_leaves(body, ()))
    objects = _objects(leaves)
    frame = _frame(objects)
    session = _held(objects.get(frame, {}), "session_id")
    outwards = (frame[:depth] for depth in range(len(frame), -1, -1))
    near = [path for path in outwards if path in objects and _held(objects[path], "session_id") in (None, session)]
    known: dict[str, str] = {}
    changed = _object_of_status(objects, near)
    if changed is not None:
        known |= _of(objects, [changed], ("status", "previous_status"))
    places = [*near, *([changed] if changed is not None and changed not in near else [])]
    known |= _of(objects, places, ("session_id", "started_at", "ended_at"))
    for field in ("meter_id", "meter_name", "run_type"):
        known |= _of(objects, places, (field,)) or _the_only_one(objects, field)
    return EventFields(
        known=known,
        names=frozenset(_all_names(leaves, frame if "session_id" in known else None)),
        empty=frozenset(name for place in places for name in objects[place]) - frozenset(known),
    )


def documented_field(name: str) -> str | None:
    """Return the documented field of the event that a name means, by our name; ``None`` for another name."""
    found = _documented(_path(name))
    return None if found is None else found[0]


def plain_name(name: object) -> str:
    """Return the normalized form of a field's name: its letters and digits in lower case."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def object_of(value: object) -> Mapping[str, Any] | None:
    """Return the object that a value is, or holds alone: a list of one object, or an object as JSON text.

    :return: ``None``: it is another value
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(value, strict=False)
        except ValueError:
            return None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, dict) else None


@dataclass(frozen=True, slots=True)
class _Found:
    """A documented field in an object; of two with the same meaning the one with the greater rank counts."""

    text: str | None
    rank: tuple[bool, int, int]


_Objects = dict[Path, dict[str, _Found]]


def _leaves(fields: Mapping[str, Any], path: Path, depth: int = 0) -> Iterator[tuple[Path, str | None]]:
    for name, value in fields.items():
        joined = path + _path(name)
        if max(depth, len(joined)) > DEEPEST:
            raise UnparsedCalloutError(f"it is nested more than {DEEPEST} deep")
        within = object_of(value)
        if within is not None:
            yield from _leaves(within, joined, depth + 1)
        else:
            yield joined, _text(value)


def _path(name: object) -> Path:
    return tuple(filter(None, map(plain_name, _JOINTS.split(str(name)))))


def _text(value: object) -> str | None:
    """Return the text of a field, ``None`` where it is empty, or a merge field that was not resolved."""
    if value is None or isinstance(value, (bool, list)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return None if names_nothing(text) or _UNRESOLVED.fullmatch(text) else text


def _objects(leaves: Iterable[tuple[Path, str | None]]) -> _Objects:
    """Return the documented fields by the wrappers that they are in."""
    objects: _Objects = {}
    for path, text in leaves:
        found = _documented(path)
        if found is None:
            continue
        field, wrappers, rank = found
        held = objects.setdefault(path[:wrappers], {})
        this = _Found(text, (text is not None, *rank))
        if field not in held or this.rank > held[field].rank:
            held[field] = this
    return objects


def _documented(path: Path) -> tuple[str, int, tuple[int, int]] | None:
    """Return the field that a path names, the number of wrappers before it, and how exact the name is."""
    found = None
    for wrappers, joined in _ends(path):
        if len(joined) > _LONGEST_NAME or (wrappers == len(path) - 1 and _unbased(joined) not in _ENDS):
            break
        field = _ALIASES.get(joined.removeprefix("datasource")) or _ALIASES.get(_unbased(joined))
        if field is not None:
            found = field, wrappers, (len(joined), wrappers - len(path))
    if found is None or (found[1] and path[found[1] - 1] in _OTHER_OBJECTS):
        return None
    return found


def _ends(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the joined ends of a path, the shortest first, with the number of names before each.

    None is much longer than the longest name that counts, of which only the beginning matters.
    """
    joined = ""
    for before in range(len(path) - 1, max(len(path) - _PARTS, 0) - 1, -1):
        joined = path[before][: _LONGEST_NAME + 1] + joined
        yield before, joined


def _unbased(joined: str) -> str:
    return _BASE.sub("", joined.removeprefix("datasource"))


def _frame(objects: _Objects) -> Path:
    """Return the event's object; where none names the session, the outermost one.

    :raises UnparsedCalloutError: it is open which object or which of two statuses is the event's
    """
    homes = [path for path in objects if _held(objects[path], "session_id")]
    whole = [path for path in homes if _held(objects[path], "status") or _held(objects[path], "meter_id")]
    homes = sorted(whole or homes, key=len)
    nearest = [path for path in homes if len(path) == len(homes[0])]
    for field, places in (("session_id", homes), ("status", nearest)):
        if len({_held(objects[path], field) for path in places} - {None}) > 1:
            raise UnparsedCalloutError("it holds several events")
    return homes[0] if homes else min(objects, key=len, default=())


def _object_of_status(objects: _Objects, near: list[Path]) -> Path | None:
    """Return the object whose status is the session's; ``None`` where the session's is empty or there is none."""
    if not near:
        return None
    frame, *around = near
    # A template whose own field came empty has a wrong merge field: no other status is meant.
    if "status" in objects[frame]:
        return frame
    for path in around:
        if _is_documented_status(objects[path]):
            return path
    beside = [path for path in objects if path not in near and _is_documented_status(objects[path])]
    changes = [path for path in beside if _held(objects[path], "previous_status")]
    edges = {(_held(objects[path], "previous_status"), _held(objects[path], "status")) for path in changes}
    return changes[0] if len(edges) == 1 else None


def _is_documented_status(held: Mapping[str, _Found]) -> bool:
    status = _held(held, "status")
    return status is not None and parse_status(status) in SessionStatus.__members__


def _of(objects: _Objects, places: Iterable[Path], fields: Iterable[str]) -> dict[str, str]:
    """Return each field from the first of some places that has it."""
    found: dict[str, str] = {}
    for place in places:
        for field in fields:
            text = _held(objects[place], field)
            if text is not None:
                found.setdefault(field, text)
    return found


def _the_only_one(objects: _Objects, field: str) -> dict[str, str]:
    """Return a field wherever it is, if the body has a single value of it."""
    texts = {text for held in objects.values() if (text := _held(held, field)) is not None}
    return {field: texts.pop()} if len(texts) == 1 else {}


def _held(held: Mapping[str, _Found], field: str) -> str | None:
    found = held.get(field)
    return None if found is None else found.text


def _all_names(leaves: Iterable[tuple[Path, str | None]], frame: Path | None) -> Iterator[str]:
    """Yield the joined names within the event's object; where that is not known, as if each wrapper were it."""
    for path, text in leaves:
        if text is None:
            continue
        if frame is None:
            joined = [each for _, each in _ends(path)]
        else:
            joined = [_beginning(path[len(frame) :])] if path[: len(frame)] == frame else []
        for each in joined:
            yield each.removeprefix("datasource")
            yield _unbased(each)


def _beginning(path: Path) -> str:
    # One part more than any name has, so that the beginning of a longer one is none.
    return "".join(name[: _LONGEST_NAME + 1] for name in path[: _PARTS + 1])
