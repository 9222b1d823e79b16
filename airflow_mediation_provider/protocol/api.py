"""The REST calls that run, stop and watch a meter, as data: what to send, and how the answer reads. Sends nothing.

Each function makes one ``Call``; the hooks send it (``protocol.exchange`` says how often) and hand the reply's JSON to
``Call.read``. What the replies hold is in ``protocol.replies``, what a refusal means in ``protocol.refusals``.

The calls for what a session did are in ``protocol.audit``. Source: https://developer.zuora.com/v1-api-reference/api/meters/
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from airflow_mediation_provider.protocol.arguments import given, meter_text, path_part
from airflow_mediation_provider.protocol.refusals import METER_PERMISSIONS
from airflow_mediation_provider.protocol.replies import Json, MeterRun, UnreadableReplyError, read_run, read_status
from airflow_mediation_provider.protocol.status import RunType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["DEFAULT_VERSION", "Call", "Json", "MeterRun", "UnreadableReplyError"]

T = TypeVar("T")

DEFAULT_VERSION = "0.0.1"
# Meter ids are positive numbers: the connection test asks for one that cannot exist.
IMPOSSIBLE_METER_ID = "0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One REST call.

    :param what: the call in words, for errors and logs: "run status of meter 2470"
    :param path: below the REST base URL, which has no ``/v1``
    :param read: makes the result out of the reply's JSON; raises :class:`UnreadableReplyError`
    :param repeatable: may be sent again when its fate is not known
    :param unique_key: the run's ``uniqueKey``, where it has one
    :param permission: what the OAuth client's user must be allowed to do, in Zuora's words
    """

    what: str
    method: str
    path: str
    read: Callable[[Json], T]
    repeatable: bool = True
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

    :param meter_id: the meter; it is in the URL of its page in Zuora
    :param unique_key: Zuora starts at most one run of the meter under it; only with it a lost reply is asked for again
    :param runtime_source_configs: sources of this run alone, as Zuora documents ``runtimeSourceConfigs``
    :param source_options: the older ``sourceOptions``
    :param event_store_source_options: the older ``eventStoreSourceOptions``
    :return: the session that started
    :raises DuplicateKeyError: the key was used before: that run was started, and no second one is
    :raises CapacityError: five meters of the tenant run already

    https://developer.zuora.com/v1-api-reference/api/meters/runspecificversionofmeter
    """
    meter = meter_text(meter_id)
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

    Zuora documents no ``uniqueKey`` for it, so it is never sent twice. Parameters as of :func:`run_meter`;
    ``source_options`` of a debug run also take ``testData``, ``sampleFileId`` and the like.

    https://developer.zuora.com/v1-api-reference/api/meters/testspecificversionofmeter
    """
    meter = meter_text(meter_id)
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
    )


def stop_meter(meter_id: str | int, version: str = DEFAULT_VERSION, *, force: bool = False) -> Call[None]:
    """Stop every NORMAL run of a meter version; Zuora cannot stop one session.

    :param force: cancel at once, without a savepoint; records in flight can be lost
    :raises NotRunningError: nothing runs (any more)
    :raises StopInProgressError: a stop is under way already; force has to wait until it is over

    https://developer.zuora.com/v1-api-reference/api/meters/stopmeterversion
    """
    meter = meter_text(meter_id)
    return Call(
        what=f"stop of meter {meter}",
        method="POST",
        path=f"/meters/stop/{path_part('meter_id', meter)}/{path_part('version', version)}",
        query=(("forceStop", "true"),) if force else (),
        read=lambda _reply: None,
    )


def run_status(meter_id: str | int, version: str = DEFAULT_VERSION) -> Call[str]:
    """Ask for the status of a meter version; the reply names no session.

    :return: Zuora's name of the status; one that Zuora does not document is kept as it is

    https://developer.zuora.com/v1-api-reference/api/meters/getrunstatusofspecificmeterversion
    """
    meter = meter_text(meter_id)
    return Call(
        what=f"run status of meter {meter}",
        method="GET",
        path=f"/meters/{path_part('meter_id', meter)}/{path_part('version', version)}/runStatus",
        read=read_status,
    )
