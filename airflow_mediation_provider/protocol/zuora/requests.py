"""The REST calls that run, stop and poll a meter, as data: data centers, checked arguments, requests. Sends nothing.

Each function makes one ``Call``; the hooks send it (``flow`` decides how often) and pass the reply's JSON to
``Call.read``. ``replies`` parses the replies, ``refusals`` classifies the refusals. The calls for the records of a
session are in ``audit``.

Sources: https://developer.zuora.com/v1-api-reference/api/meters/ (paths, times, repeated query parameters),
https://developer.zuora.com/v1-api-reference/introduction/ (REST data centers, under the names of Zuora's own SDK) and
https://developer.zuora.com/docs/get-started/oauth-client-setup-steps/ (UI data centers; Zuora lists sandboxes only)
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

from airflow_mediation_provider.protocol.ids import id_of
from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.zuora.refusals import METER_PERMISSIONS
from airflow_mediation_provider.protocol.zuora.replies import (
    Json,
    MeterRun,
    UnreadableReplyError,
    read_run,
    read_status,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["DEFAULT_VERSION", "Call", "Json", "MeterRun", "UnreadableReplyError"]
T = TypeVar("T")
DEFAULT_VERSION = "0.0.1"
# Meter ids are positive numbers: the connection test asks for one that cannot exist.
IMPOSSIBLE_METER_ID = "0"


class DataCenter(Enum):
    """A data center by its name in Zuora's SDK: label, REST host, and UI host where documented."""

    CSBX = ("US Developer & Central Sandbox", "rest.test.zuora.com", "test.zuora.com")
    SBX_NA = ("US API Sandbox Cloud 1", "rest.sandbox.na.zuora.com", "sandbox.na.zuora.com")
    SBX = ("US API Sandbox Cloud 2", "rest.apisandbox.zuora.com", "apisandbox.zuora.com")
    PROD_NA = ("US Production Cloud 1", "rest.na.zuora.com", None)
    PROD = ("US Production Cloud 2", "rest.zuora.com", None)
    CSBX_EU = ("EU Developer & Central Sandbox", "rest.test.eu.zuora.com", "test.eu.zuora.com")
    SBX_EU = ("EU API Sandbox", "rest.sandbox.eu.zuora.com", "sandbox.eu.zuora.com")
    PROD_EU = ("EU Production", "rest.eu.zuora.com", None)
    CSBX_AP = ("APAC Developer & Central Sandbox", "rest.test.ap.zuora.com", "test.ap.zuora.com")
    PROD_AP = ("APAC Production", "rest.ap.zuora.com", None)

    @classmethod
    def named(cls, name: object) -> DataCenter | None:
        """Return the data center with this name, as spelled in a connection's extra; ``None``: there is none."""
        return cls.__members__.get(str(name).strip().upper().replace("-", "_"))

    @property
    def label(self) -> str:
        """The common name, with the host."""
        return f"{self.value[0]} ({self.value[1]})"

    @property
    def rest_url(self) -> str:
        """The REST base URL; ``/meters`` follows it directly."""
        return f"https://{self.value[1]}"

    @property
    def ui_url(self) -> str | None:
        """The root of the UI, where Zuora documents it."""
        return f"https://{self.value[2]}" if self.value[2] else None


def path_part(name: str, part: str) -> str:
    """Return an id as one part of a path, quoted.

    :raises ValueError: it is not an id
    """
    return quote(id_of(name, part), safe="")


def instant_of(name: str, value: object) -> datetime:
    """Return the instant that an argument gives.

    :param name: name of the argument, for the error
    :param value: a datetime with its zone, or the same as ISO 8601 text
    :raises ValueError: it is not a time, or has no zone
    """
    try:
        time = datetime.fromisoformat(value.strip()) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"{name} must be an ISO 8601 time, not {value!r}") from None
    if not isinstance(time, datetime) or time.tzinfo is None:
        raise ValueError(f"{name} must be a time with a zone, not {value!r}")
    return time


def format_time(name: str, value: datetime | str) -> str:
    """Return a time in the form that queries need, ``2026-01-31T22:00:00+0000``, in UTC.

    :param name: name of the argument, for the error
    :param value: a datetime with its zone, or the same as ISO 8601 text
    :raises ValueError: it is not a time, or has no zone
    """
    return instant_of(name, value).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")


def one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    """Return ``value`` if it is allowed.

    :raises ValueError: it is not; the message names the argument and the allowed values
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    return value


def texts(name: str, values: Iterable[str]) -> list[str]:
    """Return a list of texts.

    :raises ValueError: it is a single text, which would silently become one value per letter
    """
    if isinstance(values, str):
        raise ValueError(f"{name} must be a list, not the text {values!r}")
    return [str(value) for value in values]


def ids(name: str, values: Iterable[str]) -> list[str]:
    """Return a list of ids.

    :raises ValueError: it is a single text, or one of them is not an id
    """
    return [id_of(name, value) for value in texts(name, values)]


def given(**fields: Any) -> dict[str, Any]:
    """Return the fields of a body that were given."""
    return {name: value for name, value in fields.items() if value is not None and value != []}


def query_of(**fields: str | list[str] | None) -> tuple[tuple[str, str], ...]:
    """Return query parameters; a list becomes a repeated parameter, OpenAPI's default."""
    return tuple(
        (name, value)
        for name, values in fields.items()
        for value in ([] if values is None else [values] if isinstance(values, str) else values)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One REST call.

    :param what: a noun phrase for errors and logs: "run status of meter 2470"
    :param path: below the REST base URL, which has no ``/v1``
    :param read: makes the result from the reply's JSON; raises :class:`UnreadableReplyError`
    :param repeatable: whether it may be sent again where it is not known if Zuora received it
    :param changes: whether it changes something at Zuora
    :param unique_key: the run's ``uniqueKey``, where it has one
    :param permission: Zuora's name of the permission that the OAuth client's user needs
    """

    what: str
    method: str
    path: str
    read: Callable[[Json], T]
    repeatable: bool = True
    changes: bool = False
    query: tuple[tuple[str, str], ...] = ()
    body: Json | None = None
    unique_key: str | None = None
    permission: str = METER_PERMISSIONS


def run_meter(
    meter_id: str | int,
    version: str = DEFAULT_VERSION,
    *,
    unique_key: str | None = None,
    runtime_source_configs: Sequence[Mapping[str, Any]] | None = None,
    source_options: Sequence[Mapping[str, Any]] | None = None,
    event_store_source_options: Sequence[Mapping[str, Any]] | None = None,
) -> Call[MeterRun]:
    """Start a NORMAL run of a meter.

    :param meter_id: the meter; its id is in the URL of its page in Zuora
    :param version: version of the meter
    :param unique_key: Zuora starts at most one run of the meter with it; only with it the call is repeated after a lost
        reply
    :param runtime_source_configs: sources of this run alone, as Zuora documents ``runtimeSourceConfigs``
    :param source_options: the older ``sourceOptions``
    :param event_store_source_options: the older ``eventStoreSourceOptions``
    :return: the session that started
    :raises DuplicateKeyError: the key was used before: that run was started, and Zuora starts no second one
    :raises CapacityError: five meters of the tenant run already

    https://developer.zuora.com/v1-api-reference/api/meters/runspecificversionofmeter
    """
    meter = id_of("meter_id", meter_id)
    if unique_key is not None and not unique_key.strip():
        raise ValueError("unique_key must not be empty")
    body = given(
        uniqueKey=unique_key,
        runtimeSourceConfigs=runtime_source_configs,
        sourceOptions=source_options,
        eventStoreSourceOptions=event_store_source_options,
    )
    return Call(
        what=f"run of meter {meter}",
        method="POST",
        path=f"/meters/run/{path_part('meter_id', meter)}/{path_part('version', version)}",
        body=body,
        read=lambda reply: read_run(reply, meter, version, RunType.NORMAL),
        repeatable=unique_key is not None,
        changes=True,
        unique_key=unique_key,
    )


def debug_meter(
    meter_id: str | int,
    version: str = DEFAULT_VERSION,
    *,
    runtime_source_configs: Sequence[Mapping[str, Any]] | None = None,
    source_options: Sequence[Mapping[str, Any]] | None = None,
    event_store_source_options: Sequence[Mapping[str, Any]] | None = None,
) -> Call[MeterRun]:
    """Start a DEBUG run: a test that writes nothing downstream.

    Zuora documents no ``uniqueKey`` for it, so it is never sent twice. Parameters as for :func:`run_meter`;
    ``source_options`` of a debug run also take ``testData``, ``sampleFileId`` and the like.

    https://developer.zuora.com/v1-api-reference/api/meters/testspecificversionofmeter
    """
    meter = id_of("meter_id", meter_id)
    return Call(
        what=f"debug run of meter {meter}",
        method="POST",
        path=f"/meters/debug/{path_part('meter_id', meter)}/{path_part('version', version)}",
        body=given(
            runtimeSourceConfigs=runtime_source_configs,
            sourceOptions=source_options,
            eventStoreSourceOptions=event_store_source_options,
        ),
        read=lambda reply: read_run(reply, meter, version, RunType.DEBUG),
        repeatable=False,
        changes=True,
    )


def stop_meter(meter_id: str | int, version: str = DEFAULT_VERSION, *, force: bool = False) -> Call[None]:
    """Stop every NORMAL run of a meter version; Zuora cannot stop one session.

    :param force: cancel at once, without a savepoint; records in flight can be lost
    :raises NotRunningError: no run is active (any more)
    :raises StopInProgressError: a stop is in progress already; a forced stop is possible after it

    https://developer.zuora.com/v1-api-reference/api/meters/stopmeterversion
    """
    meter = id_of("meter_id", meter_id)
    return Call(
        what=f"stop of meter {meter}",
        method="POST",
        path=f"/meters/stop/{path_part('meter_id', meter)}/{path_part('version', version)}",
        query=(("forceStop", "true"),) if force else (),
        read=lambda _reply: None,
        changes=True,
    )


def run_status(meter_id: str | int, version: str = DEFAULT_VERSION) -> Call[str]:
    """Read the status of a meter version; the reply names no session.

    :return: Zuora's name of the status; one that Zuora does not document is kept as it is

    https://developer.zuora.com/v1-api-reference/api/meters/getrunstatusofspecificmeterversion
    """
    meter = id_of("meter_id", meter_id)
    return Call(
        what=f"run status of meter {meter}",
        method="GET",
        path=f"/meters/{path_part('meter_id', meter)}/{path_part('version', version)}/runStatus",
        read=read_status,
    )
