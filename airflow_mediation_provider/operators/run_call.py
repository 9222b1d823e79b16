"""The one call that starts a session: what is kept before it, and what each kind of answer means.

Zuora documents ``uniqueKey`` as the cure for a lost reply: repeat the identical request, and *duplicate* says that the
first one did start a session. It does not say which. A DEBUG run has no documented key, so its call is never repeated
after an answer that may have been lost.

Source: https://developer.zuora.com/v1-api-reference/api/meters/runspecificversionofmeter
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.operators.run_state import Phase, RunMemory, RunState
from airflow_mediation_provider.protocol.errors import (
    DuplicateKeyError,
    MediationError,
    PermanentError,
    TransientError,
)
from airflow_mediation_provider.protocol.refusals import RATE_LIMITED
from airflow_mediation_provider.protocol.status import RunType, SessionStatus
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_mediation_provider.hooks.mediation import MediationHook
    from airflow_mediation_provider.protocol.api import MeterRun

_TOO_MANY: Final = 429
FIRST_STATUS: Final = {RunType.NORMAL: SessionStatus.INITIALIZING, RunType.DEBUG: SessionStatus.TESTING}
"""What a session that was just started is in, where the reply does not say it."""


class RunCall:
    """The call of one generation, made again and again until its answer is known.

    :param hook: asks Zuora once per request; pausing between two is the caller's, who can do it without a worker
    :param state: the generation, in phase ``CALLING``
    :param memory: keeps the state before the call and after it
    :param now: the clock
    """

    def __init__(self, hook: MediationHook, state: RunState, memory: RunMemory, now: Callable[[], datetime]) -> None:
        self._hook = hook
        self._memory = memory
        self._now = now
        self.state = state

    def once(self) -> RunState:
        """Call once, and return the state after it: ``STARTED`` or ``UNNAMED``.

        :raises CapacityError: five meters run already; this call started nothing
        :raises PermanentError: Zuora refused
        :raises TransientError: the answer is not known; calling again is safe
        """
        first = self.state.called_at is None
        if first:
            baseline = self._hook.run_status(self.state.request["meter_id"], self.state.request["version"])
            self._keep(baseline=baseline, called_at=self._now())
        elif self.state.unique_key is None:
            return self._keep(phase=Phase.UNNAMED)
        try:
            run = self._send()
        except DuplicateKeyError:
            return self._keep(phase=Phase.UNNAMED)
        except TransientError as error:
            # The one transient answer that says the request was not carried out; of Mediation's own limit only the
            # code is documented.
            if error.status_code == _TOO_MANY or error.code == RATE_LIMITED:
                self._refused(first=first)
            elif self.state.unique_key is None:
                return self._keep(phase=Phase.UNNAMED)
            raise
        except PermanentError:
            self._refused(first=first)
            raise
        # A session was started in any case; a reply that does not name it is as good as a lost one.
        phase = Phase.STARTED if run.session_id else Phase.UNNAMED
        return self._keep(phase=phase, session=_transition(run, self._now()).to_dict(), run_id=run.run_id)

    def _send(self) -> MeterRun:
        request = dict(self.state.request)
        if request.pop("run_type") == RunType.DEBUG:
            return self._hook.debug_meter(**request)
        return self._hook.run_meter(**request, unique_key=self.state.unique_key)

    def _refused(self, *, first: bool) -> None:
        """Read the status anew before the next call: nothing was started, unless by an earlier one."""
        if first:
            self._keep(called_at=None, baseline=None)

    def _keep(self, **changes: Any) -> RunState:
        self.state = self._memory.save(replace(self.state, **changes))
        return self.state


def _transition(run: MeterRun, observed_at: datetime) -> SessionTransition:
    return SessionTransition(
        meter_id=str(run.meter_id),
        session_id=run.session_id,
        run_type=RunType(run.run_type),
        status=str(run.status or FIRST_STATUS[RunType(run.run_type)]),
        started_at=run.started_at,
        observed_at=observed_at,
        source=Source.RUN,
    )


def only_session_since(hook: MediationHook, request: dict[str, Any], since: datetime, until: datetime) -> str | None:
    """Name the only session that wrote records of the meter in a window; a hint, for sessions without records hide.

    The summary is the one documented call that names sessions at all, and only once they have records:
    https://developer.zuora.com/v1-api-reference/api/audit-trail/ (summary, grouped by ``sessionId``).

    :return: the session's id; ``None`` where there is none, several, or no answer
    """
    try:
        summary = hook.meter_summary(
            request["meter_id"],
            run_type=request["run_type"],
            group_by=["sessionId"],
            query_from=since - timedelta(seconds=1),
            query_to=until,
        )
    except MediationError:
        return None
    rows = summary.get("output") or []
    named = {str((row.get("dimensions") or {}).get("sessionId") or "") for row in rows} - {""}
    return named.pop() if len(named) == 1 else None
