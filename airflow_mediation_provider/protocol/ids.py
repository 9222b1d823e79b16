"""Ids given by users: one check for every argument that names a meter, a session or a connection.

It runs when the Dag is parsed, and again on the rendered values of templates. Ids from Zuora are not checked here: they
are stored as received.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

LONGEST_ID: Final = 64
"""Characters of a meter's or session's id; the size of the journal's columns."""
LONGEST_CONNECTION_ID: Final = 250
"""Characters of a connection's id in Airflow."""
_ID: Final = re.compile(rf"(?=.*\w)[\w.:-]{{1,{LONGEST_ID}}}")
# Airflow's own rule (``airflow.models.connection.sanitize_conn_id``).
_CONNECTION_ID: Final = re.compile(rf"[\w#!()\-.:/\\]{{1,{LONGEST_CONNECTION_ID}}}")
# A template without a value is rendered to one of these.
_MISSING: Final = ("None", "null")


def id_of(name: str, value: object) -> str:
    """Return the id of a meter or a session as text, without surrounding blanks; a whole number is accepted too.

    :param name: name of the argument, for the error
    :raises ValueError: it is empty, ``None``, an object, an address, a pattern, several ids, or too long
    """
    text = _text(name, str(value) if type(value) is int else value)
    if not _ID.fullmatch(text):
        raise ValueError(
            f"{name} must be one id, of at most {LONGEST_ID} letters, digits, '.', ':', '_' and '-', not {text!r:.80}"
        )
    return text


def connection_id_of(name: str, value: object) -> str:
    """Return the id of an Airflow connection, without surrounding blanks.

    :param name: name of the argument, for the error
    :raises ValueError: it is empty, ``None``, an object, an address, or too long
    """
    text = _text(name, value)
    if not is_connection_id(text):
        raise ValueError(
            f"{name} must be the id of an Airflow connection, of at most {LONGEST_CONNECTION_ID} characters, "
            f"not {text!r:.80}"
        )
    return text


def is_connection_id(text: str) -> bool:
    """Return whether a connection may have this id: as Airflow, without the steps of a path.

    A secrets backend may use the id as a path, in which ``a/../b`` and ``b/`` are ``b``, so that one connection had
    many ids.
    """
    return _CONNECTION_ID.fullmatch(text) is not None and not {"", ".", ".."} & set(re.split(r"[/\\]", text))


def id_in_use(conn_id: str, *in_use: Collection[str]) -> str:
    """Return the id that a connection has, of the spellings by which a secrets backend may find it.

    Airflow reads environment variables in upper case, so a connection there is found by any spelling of its id, and
    nothing in the variable shows which one is meant.

    :param conn_id: one spelling
    :param in_use: ids in use, with other connections' ids among them, the best evidence first; a spelling in the first
        of them that has any counts. Without any: lower case, which is Airflow's convention
    :return: ``conn_id`` itself, where it is one of the spellings in use
    """
    upper = conn_id.upper()
    for ids in in_use:
        if spellings := {each for each in ids if each.upper() == upper}:
            return conn_id if conn_id in spellings else max(spellings)
    return upper.lower()


def _text(name: str, value: object) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"{name} must not be empty")
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, not {value!r:.80}")
    text = value.strip()
    if text in _MISSING:
        raise ValueError(f"{name} is {text!r}, which names nothing: the template or task behind it gave no value")
    return text


def event_category_of(name: str, value: object) -> str | None:
    """Return an event category as Zuora's query takes it.

    :param name: of the argument, for the error
    :param value: ``{namespace}:{event type}`` of a custom event, the number of a standard event, or ``None``
    :raises ValueError: it is neither
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f"{name} must be a number or a text like 'namespace:event type', not {value!r:.80}")
    return str(value).strip()
